"""One engine, built on a device by its trtexec."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from trtrecipe.device.jobs import Job, Say, Work
from trtrecipe.device.link import Json
from trtrecipe.targets.buildspec import MIB, BuildSpec, Dla
from trtrecipe.targets.trtexec import arguments, workspace_flag

SHOWN = 8
"""Names that a note repeats."""


def build(
    device: Mapping[str, Any], key: str, spec: BuildSpec, files: Mapping[str, Path], engine: Path, say: Say
) -> Json:
    """Write the engine; its measurements. `spec` speaks of the names in `files`; `key` identifies the build there.

    `device` as `jobs.Work` takes it. A spec without a workspace is given the largest half, quarter, ... of the
    device's memory that is no more than half of what is free, and smaller ones where the build runs out of memory.
    Raises StepError, Unreachable.
    """
    shown = device["fingerprint"]
    with Work(device, say) as work:
        timing = {"name": timing_name(shown), "file": spec.timing_cache} if spec.timing_cache is not None else None
        workspace = {"flag": workspace_flag(shown["tensorrt"]), "bytes": spec.workspace, **_memory(work.probe)}
        job = Job(
            key=key,
            files=files,
            arguments=arguments(replace(spec, workspace=None), shown["tensorrt"]),
            outputs={"engine": spec.engine},
            more={
                "workspace": workspace,
                "table": spec.table,
                "timing_cache": timing,
                "placement": spec.dla is not None,
            },
        )
        result = work.run(job, {"engine": engine})
    return _measurements(device["name"], spec.dla, result)


def _memory(probe: Json) -> Json:
    return {name: probe["memory"][name] for name in ("total", "available")}


def _measurements(name: str, dla: Dla | None, result: Json) -> Json:
    tries = result["attempts"]
    notes = []
    if len(tries) > 1:
        sizes = [f"{entry['workspace'] // MIB} MiB" for entry in tries]
        notes.append(
            f"{name} ran out of memory with a workspace of {', '.join(sizes[:-1])}; "
            f"the engine was built with {sizes[-1]}"
        )
    placed = _placement(dla, result["placement"]) if dla is not None else None
    if placed is not None:
        notes.append(_in_words(placed))
    found = {
        "size": result["outputs"]["engine"]["size"],
        "workspace": tries[-1]["workspace"],
        "attempts": tries,
        "build_seconds": result["seconds"],
        "waited": result["waited"],
        "layers_timed": result["layers"],
        "timing_cache": result["timing_cache"],
        "collected": result["collected"],
        "notes": notes,
    }
    return found if placed is None else found | {"dla": placed}


def _placement(dla: Dla, told: Json) -> Json:
    """Where the parts of the engine run, as TensorRT's log tells: one on DLA is what it fused into a loadable.

    `left_out`: how many more parts there are than the log that was kept names.
    """
    found: Json = {"core": dla.core, "gpu_fallback": dla.gpu_fallback}
    named = {f"on_{where}": told[where]["names"] for where in ("dla", "gpu")}
    left_out = sum(told[where]["count"] for where in ("dla", "gpu")) - sum(map(len, named.values()))
    return found | named | {"left_out": left_out}


def _in_words(placed: Json) -> str:
    on_dla, on_gpu = placed["on_dla"], placed["on_gpu"]
    parts = len(on_dla) + len(on_gpu) + placed["left_out"]
    core = f"DLA core {placed['core']}"
    if not parts:
        return f"{core}: TensorRT's log does not say which layers run on it"
    if not on_dla:
        return f"{core}: nothing runs on it, all {parts} parts of the engine run on the GPU"
    if not on_gpu:
        return f"{core}: all {parts} parts of the engine run on it"
    names = ", ".join(on_gpu[:SHOWN]) + (f" and {len(on_gpu) - SHOWN} more" if len(on_gpu) > SHOWN else "")
    return f"{core}: {len(on_gpu)} of {parts} parts of the engine run on the GPU: {names}"


def timing_name(found: Mapping[str, Any]) -> str:
    """What may share measurements: the same module and the same TensorRT."""
    module = re.sub("[^a-z0-9]+", "-", (found["model"] or "unknown").lower()).strip("-")[:100]
    return f"{found['tensorrt']}-{module}-{found['memory'] >> 30}g"
