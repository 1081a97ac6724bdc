"""Finished engines on a device: their outputs for given values, how fast they are, and under which conditions.

Outputs come from JetPack's own `tensorrt` module (`evaluator.py`); where that is missing, from trtexec, whose values
have six significant digits. Times come from trtexec's own clock: samples/common/sampleReporting.cpp of
github.com/NVIDIA/TensorRT, release/8.0 to release/11.1.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

from trtrecipe.device import evaluator, forms
from trtrecipe.device.jobs import Job, Work
from trtrecipe.device.link import Json
from trtrecipe.digest import sha256_json
from trtrecipe.errors import StepError
from trtrecipe.targets.devices import GPU_CLOCK, settings
from trtrecipe.targets.trtexec_run import RunSpec, run_arguments

ENGINE = "model.engine"
WARM_UP = 500
"""Milliseconds before anything counts."""
SECONDS = 3
ITERATIONS = 50
"""Both are passed before a measurement ends."""
WARMED = 5.0
"""Degrees by which a sensor rises before a note says so."""
SLOWEST = 10
"""Layers of a profile that are kept."""

_NOT_JSON = re.compile(r"(?<=[\s\[,])(-?)(nan|inf)(?=[\s,\]])")


def outputs(
    work: Work, key: str, engine: Path, values: Path, asked: Mapping[str, Any], folder: Path
) -> tuple[Json, Path]:
    """What `evaluator.evaluate` reports, and the file of outputs that it speaks of.

    `values`: the file of inputs; `asked`: "tensors", "batches", "dla_core" of the request. Raises JobFailed, with the
    reason "module" where the device cannot be asked so; StepError, Unreachable.
    """
    request = folder / "request.json"
    named = {"engine": ENGINE, "inputs": "inputs.bin", "outputs": "outputs.bin", "report": "report.json"}
    request.write_text(json.dumps({**asked, **named}, sort_keys=True))
    program = Path(evaluator.__file__)
    job = Job(
        key=_key(key, "tensorrt"),
        files={ENGINE: engine, program.name: program, request.name: request, named["inputs"]: values},
        arguments=[program.name, request.name],
        outputs={role: named[role] for role in ("outputs", "report")},
        more={"program": "python"},
    )
    into = {role: folder / named[role] for role in job.outputs}
    work.run(job, into)
    return dict(_read(into["report"], forms.REPORT)), into["outputs"]


def outputs_of_trtexec(
    work: Work,
    key: str,
    engine: Path,
    batches: Sequence[tuple[Mapping[str, tuple[int, ...]], Mapping[str, Path]]],
    dla_core: int | None,
    folder: Path,
) -> Iterator[list[Json]]:
    """A run by trtexec for each batch: its outputs as [{"name", "dimensions": "1x10", "values"}].

    A batch: shapes of inputs with an open axis, and input → file of its values. Raises StepError, Unreachable.
    """
    asked = []
    for batch, (shapes, values) in enumerate(batches):
        files = {f"input-{number}.bin": path for number, path in enumerate(values.values())}
        spec = RunSpec(
            ENGINE,
            shapes=shapes,
            inputs=dict(zip(values, files, strict=True)),
            iterations=1,
            warm_up=0,
            dla_core=dla_core,
            output="outputs.json",
        )
        job = _job(work, _key(key, f"trtexec {batch}"), spec, {ENGINE: engine, **files}, {"output": "outputs.json"})
        asked.append((job, {"output": folder / f"outputs-{batch}.json"}))
    work.run_all(asked)
    return (_read(into["output"], forms.VALUES) for _, into in asked)


def times(
    work: Work, key: str, engine: Path, shapes: Mapping[str, tuple[int, ...]], dla_core: int | None, folder: Path
) -> tuple[list[Json], Json, Json]:
    """Milliseconds of every run that counts, as trtexec exports them; the conditions (`agent.conditions`); and the time
    that layers take, in a run of its own: "count" of layers, "slowest" [{"name", "ms", "share"}].

    Raises StepError, Unreachable.
    """
    measured = RunSpec(
        ENGINE,
        shapes=shapes,
        iterations=ITERATIONS,
        seconds=SECONDS,
        warm_up=WARM_UP,
        dla_core=dla_core,
        times="times.json",
    )
    profiled = RunSpec(ENGINE, shapes=shapes, seconds=1, dla_core=dla_core, profile="profile.json")
    files, told, layers = {ENGINE: engine}, folder / "times.json", folder / "profile.json"
    first = _job(work, _key(key, "times"), measured, files, {"times": told.name}, {"conditions": True})
    second = _job(work, _key(key, "profile"), profiled, files, {"profile": layers.name})
    result = work.run_all([(first, {"times": told}), (second, {"profile": layers})])[0]
    if result["collected"] and _changed(work, result):  # an earlier call was told so, and measured it all the same
        result = work.run(replace(first, more={**first.more, "fresh": True}), {"times": told})
    if changed := _changed(work, result):
        text = f"{work.name} was not as it was when the build was planned: {changed}"
        raise StepError(text, "build again: it is measured as it is then")
    # Older releases export the runs that warm up as well.
    counted = [entry for entry in _read(told, forms.TIMES) if entry["startComputeMs"] >= WARM_UP]
    if len(counted) < 2:
        raise StepError(f"{work.name}: trtexec timed {len(counted)} runs", "look at what else the device does")
    return counted, result["conditions"], _slowest(_read(layers, forms.PROFILE))


def _changed(work: Work, result: Json) -> str:
    """What of the settings that the key was made with was not so when the measurement began, in words."""
    then, now = work.device.get("settings"), settings(result["conditions"]["before"])
    if then is None:
        return ""
    return "; ".join(f"{name} {then[name]} -> {now[name]}" for name in then if now.get(name) != then[name])


def _slowest(profile: list[Json]) -> Json:
    layers = [entry for entry in profile if entry.get("name") is not None and entry.get("averageMs") is not None]
    total = sum(entry["averageMs"] for entry in layers) or 1.0
    layers.sort(key=lambda entry: -entry["averageMs"])
    return {
        "count": len(layers),
        "slowest": [
            {
                "name": entry["name"],
                "ms": round(entry["averageMs"], 4),
                "share": round(entry["averageMs"] / total, 4),
            }
            for entry in layers[:SLOWEST]
        ],
    }


def remarks(conditions: Mapping[str, Any]) -> Iterator[str]:
    """What to know of the conditions of a measurement before trusting it, in sentences."""
    before, during, after = (conditions[when] for when in ("before", "during", "after"))
    if before["power_mode"] != after["power_mode"]:
        yield "the power mode was changed while this was measured"
    for name, clock in before["clocks"].items():
        ends = clock.get("cur"), after["clocks"].get(name, {}).get("cur")
        if GPU_CLOCK.search(name) and clock.get("min", 0) < clock.get("max", 0):
            seen = during["clocks"].get(name)
            ran = f", and ran at {_mhz(seen[0])} to {_mhz(seen[1])} MHz" if seen else ""
            yield (
                f"the clocks are not pinned: the GPU may run at {_mhz(clock['min'])} to {_mhz(clock['max'])} MHz{ran}; "
                "`sudo jetson_clocks` before the build gives figures that repeat"
            )
        elif clock.get("min") == clock.get("max") and None not in ends and ends[0] != ends[1]:
            yield f"the clock of {name} changed from {_mhz(ends[0])} to {_mhz(ends[1])} MHz while this was measured"
    rises = {
        name: (value, after["temperatures"][name])
        for name, value in before["temperatures"].items()
        if name in after["temperatures"] and after["temperatures"][name] - value >= WARMED
    }
    if rises:
        name, (low, high) = max(rises.items(), key=lambda item: item[1][1] - item[1][0])
        yield f"the device warmed up: {name} rose from {low:g} to {high:g} °C"
    slowed = {name for look in (before, during, after) for name in look["cooling"]}
    if slowed:
        yield f"the device was slowed down for its heat: {', '.join(sorted(slowed))}"
    events = sum(count - before["events"].get(name, count) for name, count in after["events"].items())
    if events > 0:
        yield f"the device was slowed down {events} times for the current that it drew"


def _mhz(hertz: int) -> str:
    return f"{hertz / 1e6:,.0f}"


def _job(
    work: Work,
    key: str,
    spec: RunSpec,
    files: Mapping[str, Path],
    outputs: Mapping[str, str],
    more: Mapping[str, Any] = MappingProxyType({}),
) -> Job:
    """A run of trtexec."""
    return Job(key, files, run_arguments(spec, work.device["fingerprint"]["tensorrt"]), outputs, more)


def _key(key: str, what: str) -> str:
    """The key of one of a step's jobs."""
    return sha256_json({"step": key, "job": what})


def _read(path: Path, form: Any) -> Any:
    """JSON of a form; trtexec's, as C++ writes it, has numbers that JSON has no words for. Raises StepError."""
    words = {"nan": "NaN", "inf": "Infinity"}
    text = _NOT_JSON.sub(
        lambda found: ("" if found[2] == "nan" else found[1]) + words[found[2]], path.read_text("utf-8", "replace")
    )
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise StepError(f"what came from the device as {path.name} is not readable: {error}", "build again") from None
    if wrong := list(islice(forms.misshapen(value, form), 4)):
        where = ", ".join(wrong) or "all of it"
        raise StepError(f"what came from the device as {path.name} is not as it should be: {where}", "build again")
    return value
