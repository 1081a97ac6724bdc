"""What verify and benchmark do on a device: samples there, outputs and times back."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from trtrecipe.data import outputs
from trtrecipe.data.batches import BATCH, Batch, Samples, batch_size
from trtrecipe.data.preprocess import Array
from trtrecipe.data.sampling import Sampling, select
from trtrecipe.device import measure
from trtrecipe.device.jobs import JobFailed, Work
from trtrecipe.errors import StepError
from trtrecipe.graphs.interface import Interface, TensorSpec
from trtrecipe.steps.evaluation import Judging, batches_of, compare, score

BY_TRTEXEC = 32
"""Samples, at most, where trtexec runs them: the values that it gives are text, and a batch is a start of it."""

NOISY = 0.1
"""As on a host: `benchmark.NOISY`."""
_NARROWER = {"int64": "int32", "float64": "float32"}
"""Types that TensorRT before 10 takes as narrower ones."""

_HINTS = {
    "space": "free space on the device, or lower evaluation.device_samples",
    "memory": "close what else runs on the device, or give the batch a smaller opt under model.dims",
    "engine": "build again; if that does not help, look at what JetPack's own `tensorrt` says of it",
    "cuda": "look at the device's kernel log, then build again",
}
"""What to try, by the reason that running the samples failed for."""

Say = Callable[[str], None]
Dims = Mapping[str, Mapping[str, int]]


def evaluate(
    params: Judging,
    dims: Dims,
    given: Mapping[str, Any],
    inputs: Mapping[str, Path],
    graph: Interface,
    samples: Samples,
    reference: Mapping[str, Array],
    device: Mapping[str, Any],
    key: str,
    say: Say,
) -> dict[str, Any]:
    """Run the engine among `inputs` on `device` and compare; the figures of `evaluation.compare`, and with a metric
    reference_accuracy on the same samples; samples, evaluated_by, and notes.

    `given`: "samples", at most, chosen by "seed", and the "dla_core". Raises StepError, Unreachable.
    """
    engine, count = inputs["engine"], samples.count
    with Work(device, say) as work, TemporaryDirectory(prefix="trtrecipe-") as name:
        folder = Path(name)
        rows = _rows(count, given["samples"], given["seed"])
        batches = _batches(params, samples, graph, rows, _usual(dims, graph))
        try:
            collected, notes, by = _by_tensorrt(work, key, engine, graph, batches, given["dla_core"], folder)
        except JobFailed as failed:
            if failed.reason != "module":
                raise StepError(failed.message, _HINTS.get(failed.reason, failed.hint)) from None
            rows = _rows(count, min(given["samples"], BY_TRTEXEC), given["seed"])
            batches = _batches(params, samples, graph, rows, _largest(dims, graph, len(rows)))
            collected, notes, by = _by_trtexec(work, key, engine, graph, batches, given["dla_core"], folder)
            notes += [f"trtexec ran the samples, whose values have six significant digits: {failed.message}"]
    label = None if samples.label is None else samples.label[rows]
    chosen = replace(samples, label=label, count=len(rows))
    theirs = {name: values[rows] if len(values) == count else values for name, values in reference.items()}
    figures: dict[str, Any] = {"samples": len(rows), "evaluated": "engine", **by}
    figures |= compare(params, chosen, graph, collected, theirs)
    figures |= {f"reference_{name}": value for name, value in score(params, chosen, graph, theirs).items()}
    if len(rows) < count:
        notes = [f"judged on {len(rows)} of {count} samples, which is what the device was given", *notes]
    return {**figures, "notes": notes}


def benchmark(
    dims: Mapping[str, int],
    dla_core: int | None,
    engine: Path,
    graph: Interface,
    device: Mapping[str, Any],
    key: str,
    say: Say,
) -> dict[str, Any]:
    """Time the engine on `device` by trtexec.

    latency_ms {p50, p90, p99} of one run with its copies to and from the GPU, compute_ms of the run alone, throughput
    (samples per second), batch, runs, noise as on a host, layers, conditions, and notes. Raises StepError, Unreachable.
    """
    shapes = {
        spec.name: tuple(axis if isinstance(axis, int) else _size(dims, spec, axis) for axis in spec.shape)
        for spec in graph.inputs
    }
    opened = {spec.name: shapes[spec.name] for spec in graph.inputs if not all(isinstance(a, int) for a in spec.shape)}
    first = graph.inputs[0].shape[0] if graph.inputs and graph.inputs[0].shape else 1
    batch = batch_size(graph, 1 if isinstance(first, int) else dims[first])
    with Work(device, say) as work, TemporaryDirectory(prefix="trtrecipe-") as name:
        entries, conditions, layers = measure.times(work, key, engine, opened, dla_core, Path(name))
    shown = device["fingerprint"]
    found = _figures(entries, batch)
    return {
        **found,
        "layers": layers,
        "conditions": {
            "runtime": "tensorrt",
            "version": shown["tensorrt"],
            "device": shown["model"],
            "l4t": shown["l4t"],
            "includes": "copies of inputs and outputs",
            **conditions,
        },
        "notes": [*found["notes"], *measure.remarks(conditions)],
    }


def _rows(count: int, at_most: int, seed: int) -> Sequence[int]:
    """Which samples, counted after selection: those with the smallest SHA-256, so that fewer are among more."""
    return list(select(count, Sampling(at_most, seed, at_most=True)))


def _batches(params: Judging, samples: Samples, graph: Interface, rows: Sequence[int], size: int) -> Iterator[Batch]:
    """The samples `rows` in batches of equal size, the last of them filled with its last sample."""
    size = batch_size(graph, size)
    for start in range(0, len(rows), size):
        mine = rows[start : start + size]
        single = [next(iter(batches_of(params, samples, graph, 1, (row, row + 1)))).feeds for row in mine]
        single += [single[-1]] * (size - len(mine))
        feeds = {spec.name: np.concatenate([feed[spec.name][:1] for feed in single]) for spec in graph.inputs}
        yield Batch(feeds, size, len(mine))


def _by_tensorrt(
    work: Work,
    key: str,
    engine: Path,
    graph: Interface,
    batches: Iterator[Batch],
    dla_core: int | None,
    folder: Path,
) -> tuple[dict[str, Array], list[str], dict[str, Any]]:
    """All samples in one process; outputs, notes, and what ran them."""
    values, sizes, tensors = folder / "inputs.bin", list[Batch](), list[dict[str, Any]]()
    with values.open("wb") as out:
        for batch in batches:
            feeds = [(spec.name, _little(batch.feeds[spec.name])) for spec in graph.inputs]
            tensors = [{"name": name, "dtype": str(feed.dtype), "shape": list(feed.shape)} for name, feed in feeds]
            for _, feed in feeds:
                out.write(feed.tobytes())
            sizes.append(Batch({}, batch.size, batch.count))
    asked = {"tensors": tensors, "batches": len(sizes), "dla_core": dla_core}
    report, file = measure.outputs(work, key, engine, values, asked, folder)
    values.unlink()
    if len(report["shapes"]) != len(sizes):
        raise StepError(f"{work.name} ran {len(report['shapes'])} of {len(sizes)} batches", "build again")
    results = iter(list(_unpacked(report, file, work.name)))
    collected, notes = outputs.collect(lambda _: next(results), sizes)
    return collected, notes, {"evaluated_by": "tensorrt", "module": report["module"], "cudart": report["cudart"]}


def _unpacked(report: Mapping[str, Any], file: Path, device: str) -> Iterator[dict[str, Array]]:
    """The outputs of each batch, from the file of their values one after the other."""
    values, at = np.fromfile(file, np.uint8), 0
    kinds = [(tensor["name"], np.dtype(tensor["dtype"]).newbyteorder("<")) for tensor in report["tensors"]]
    odd = [shapes for shapes in report["shapes"] if len(shapes) != len(kinds) or any(min([0, *s]) < 0 for s in shapes)]
    if odd:
        raise StepError(f"{device} gave outputs of shapes {odd[0]}, for {len(kinds)} outputs", "build again")
    needed = sum(
        math.prod(shape) * kind.itemsize
        for shapes in report["shapes"]
        for shape, (_, kind) in zip(shapes, kinds, strict=True)
    )
    if needed != len(values):
        raise StepError(f"{device} gave {len(values)} bytes of outputs where {needed} belong", "build again")
    for shapes in report["shapes"]:
        found = {}
        for shape, (name, kind) in zip(shapes, kinds, strict=True):
            size = math.prod(shape) * kind.itemsize
            found[name] = values[at : at + size].view(kind).reshape(shape)
            at += size
        yield found


def _by_trtexec(
    work: Work,
    key: str,
    engine: Path,
    graph: Interface,
    batches: Iterator[Batch],
    dla_core: int | None,
    folder: Path,
) -> tuple[dict[str, Array], list[str], dict[str, Any]]:
    """A process for each batch; outputs, notes, and what ran them."""
    narrow = int(work.device["fingerprint"]["tensorrt"].partition(".")[0]) < 10
    kinds = {spec.name: spec.dtype for spec in graph.outputs}
    asked, sizes = [], list[Batch]()
    for batch in batches:
        files, shapes = {}, {}
        for number, spec in enumerate(graph.inputs):
            feed = _little(batch.feeds[spec.name])
            feed = feed.astype(_NARROWER[spec.dtype]) if narrow and spec.dtype in _NARROWER else feed
            files[spec.name] = folder / f"input-{len(sizes)}-{number}.bin"
            files[spec.name].write_bytes(feed.tobytes())
            if not all(isinstance(axis, int) for axis in spec.shape):
                shapes[spec.name] = feed.shape
        asked.append((shapes, files))
        sizes.append(Batch({}, batch.size, batch.count))
    told = measure.outputs_of_trtexec(work, key, engine, asked, dla_core, folder)

    def run(_: Mapping[str, Array]) -> dict[str, Array]:
        return {entry["name"]: _exported(entry, kinds, work.name) for entry in next(told)}

    collected, notes = outputs.collect(_same_outputs(run, work.name), sizes)
    return collected, notes, {"evaluated_by": "trtexec"}


def _same_outputs(run: outputs.Run, device: str) -> outputs.Run:
    """`run`, which must give the same outputs for each batch."""
    names: list[list[str]] = []

    def checked(feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        found = run(feeds)
        names.append(sorted(found))
        if names[-1] != names[0]:
            raise StepError(f"{device} gave the outputs {names[0]}, and then {names[-1]}", "build again")
        return found

    return checked


def _exported(entry: Mapping[str, Any], kinds: Mapping[str, str], device: str) -> Array:
    """An output as trtexec exports it, in the graph's type."""
    shape = [int(size) for size in entry["dimensions"].split("x") if size]
    try:
        values = np.asarray(entry["values"])
    except ValueError:  # lists of several lengths
        values = np.asarray(None)
    if values.dtype.kind not in "biuf":
        raise StepError(f"{device}: trtexec exported what are no numbers as output {entry['name']}", "build again")
    if values.size != math.prod(shape):
        raise StepError(
            f"{device}: trtexec exported {values.size} values of output {entry['name']} with shape {shape}",
            "build again",
        )
    return values.reshape(shape).astype(kinds.get(entry["name"], "float32"))


def _little(feed: Array) -> Array:
    """As a device reads it: its values one after the other, little-endian."""
    return np.ascontiguousarray(feed, feed.dtype.newbyteorder("<")).reshape(feed.shape)


def _open_axis(dims: Dims, graph: Interface) -> Mapping[str, int] | None:
    """The range of the first axis, where that is open."""
    named = [spec.shape[0] for spec in graph.inputs if spec.shape and isinstance(spec.shape[0], str)]
    return dims.get(named[0]) if named else None


def _usual(dims: Dims, graph: Interface) -> int:
    span = _open_axis(dims, graph)
    return BATCH if span is None else span["opt"]


def _largest(dims: Dims, graph: Interface, count: int) -> int:
    """The largest batch that the engine takes, and no larger than what there is."""
    span = _open_axis(dims, graph)
    return count if span is None else max(span["min"], min(span["max"], count))


def _size(dims: Mapping[str, int], spec: TensorSpec, axis: str) -> int:
    if axis not in dims:
        raise StepError(f"input {spec}: axis {axis} is open and has no range", "give it one under model.dims")
    return dims[axis]


def _figures(entries: Sequence[Mapping[str, float]], batch: int) -> dict[str, Any]:
    latency, compute = (np.asarray([entry[name] for entry in entries]) for name in ("latencyMs", "computeMs"))
    first, last = entries[0], entries[-1]
    started = first.get("startH2dMs", first.get("startInMs", first["startComputeMs"]))
    ended = last.get("endD2hMs", last.get("endOutMs", last["endComputeMs"]))
    halves = np.median(latency[: len(latency) // 2]), np.median(latency[len(latency) // 2 :])
    noise = float(abs(halves[0] - halves[1]) / max(min(halves), 1e-9))
    notes = []
    if noise > NOISY:
        notes.append(f"the latency is uncertain: the medians of both halves of the run differ by {noise:.0%}")
    found: dict[str, Any] = {}
    for name, times in (("latency_ms", latency), ("compute_ms", compute)):
        p50, p90, p99 = (round(float(value), 4) for value in np.percentile(times, (50, 90, 99)))
        found[name] = {"p50": p50, "p90": p90, "p99": p99}
    return {
        **found,
        "throughput": round(batch * len(entries) / max(ended - started, 1e-6) * 1e3, 2),
        "batch": batch,
        "runs": len(entries),
        "noise": round(noise, 4),
        "notes": notes,
    }
