"""Latency and throughput of an engine on this machine, and the conditions they were taken under."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

VERSION = 1
OUTPUTS: Mapping[str, str] = {}
NUMERIC = True

WARM_UP = (3, 0.25)
"""Runs and seconds that are both passed before anything counts."""
MEASURE = (50, 2.0)
"""Runs and seconds that are both passed before measuring ends, unless LIMIT seconds come first."""
LIMIT = 20.0
NOISY = 0.1
"""Relative difference between the medians of both halves of a run, above which a note says so."""


@dataclass(frozen=True)
class Params:
    """`dims`: name → {"opt"}: the size that open axes are timed at. `dla_core`: of an engine for a device's DLA."""

    runtime: str
    dims: dict[str, dict[str, int]] = field(default_factory=dict)
    dla_core: int | None = None


def tools(params: Params) -> tuple[str, ...]:
    """The distribution whose speed is measured; a device's own software is in its fingerprint."""
    if params.runtime == "trtexec":
        return ()
    distributions = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt-rtx", "litert": "ai-edge-litert"}
    return (distributions.get(params.runtime, "onnxruntime"),)


def run(
    params: Params,
    inputs: Mapping[str, Path],
    out: Path,
    *,
    device: Mapping[str, Any] | None = None,
    key: str = "",
    say: Callable[[str], None] = print,
) -> Mapping[str, Any]:
    """With "engine", "onnx" → figures; no output.

    Measures latency_ms {p50, p90, p99} of one run by the wall clock, throughput (samples per second at the mean),
    batch, runs, noise (relative difference between the medians of the first and second half), conditions, and notes;
    on a `device` what `on_device.benchmark` does. Raises StepError, Unreachable.
    """
    from trtrecipe.data import batches, draw
    from trtrecipe.engines import open_engine
    from trtrecipe.graphs import files
    from trtrecipe.graphs.interface import interface

    graph = interface(files.load(inputs["onnx"]))
    opt = {name: sizes["opt"] for name, sizes in params.dims.items()}
    if params.runtime == "trtexec":
        from trtrecipe.steps import on_device

        assert device is not None  # the plan gives such a step a device
        return on_device.benchmark(opt, params.dla_core, inputs["engine"], graph, device, key, say)
    open_axis = next((spec.shape[0] for spec in graph.inputs if spec.shape and isinstance(spec.shape[0], str)), None)
    batch = batches.batch_size(graph, opt.get(open_axis, 1) if open_axis else 1)
    feeds = draw.arrays(graph, {"samples": batch, "seed": 0, "dims": opt})
    with open_engine(params.runtime, inputs["engine"]) as engine:
        seconds = _time(lambda: engine.run(feeds))
        return {**_figures(seconds, batch), "conditions": {**engine.conditions(), **_load()}}


def _time(once: Callable[[], object]) -> list[float]:
    """Seconds of each run after warming up."""
    from time import perf_counter

    start, runs = perf_counter(), 0
    while runs < WARM_UP[0] or (perf_counter() - start < WARM_UP[1]):
        once()
        runs += 1
    seconds: list[float] = []
    start = before = perf_counter()
    while (len(seconds) < MEASURE[0] or before - start < MEASURE[1]) and (before - start < LIMIT or len(seconds) < 2):
        once()
        now = perf_counter()
        seconds.append(now - before)
        before = now
    return seconds


def _figures(seconds: list[float], batch: int) -> dict[str, Any]:
    import numpy as np

    times = np.asarray(seconds)
    p50, p90, p99 = (float(value) for value in np.percentile(times * 1e3, (50, 90, 99)))
    halves = np.median(times[: len(times) // 2]), np.median(times[len(times) // 2 :])
    noise = float(abs(halves[0] - halves[1]) / min(halves))
    notes = []
    if noise > NOISY:
        notes.append(f"the latency is uncertain: the medians of both halves of the run differ by {noise:.0%}")
    if len(seconds) < MEASURE[0]:
        notes.append(f"only {len(seconds)} runs fit into {LIMIT:g} s, so p99 is their slowest")
    return {
        "latency_ms": {"p50": round(p50, 4), "p90": round(p90, 4), "p99": round(p99, 4)},
        "throughput": round(batch / float(times.mean()), 2),
        "batch": batch,
        "runs": len(seconds),
        "noise": round(noise, 4),
        "notes": notes,
    }


def _load() -> dict[str, float]:
    """How busy the machine was: processes ready to run, averaged over the last minute, where the system tells."""
    import os

    return {"load": round(os.getloadavg()[0], 2)} if hasattr(os, "getloadavg") else {}
