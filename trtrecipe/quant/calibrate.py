"""Observes a graph on the calibration samples: histograms of what is quantized, ranges of everything else.

Memory: one run's values of the tensors counted, and a histogram for each. Where the limit is too small for all of them
together they are counted in groups, and the samples run once per group. Ranges cost next to nothing: nodes in the graph
reduce each tensor to two figures. Processes share the limit; beside it each has the model and ONNX Runtime.

What is counted is written to a folder now and then. A calibration that finds such counts of its own takes them over and
runs only the samples that are missing; as counts are integers, the result is the same.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx

from trtrecipe.data import checks
from trtrecipe.data.preprocess import Operations
from trtrecipe.errors import StepError
from trtrecipe.quant import counts
from trtrecipe.quant.activations import Activation, activations
from trtrecipe.quant.counting import Given, Group, Saver, Watch, count
from trtrecipe.quant.counts import Counts, Range, Span
from trtrecipe.quant.histogram import CELLS, Histogram
from trtrecipe.quant.observed import observing
from trtrecipe.quant.parts import Part, run_all

WORTH = 1.0
"""Seconds of work that a process of its own is started for: about twice what starting it costs."""

_HISTOGRAM = 8 * (1 + CELLS)
_COPIES = 2  # ONNX Runtime's buffer and the array that it gives out
_FEEDS = 3  # a sample as it is stored, as float32 while it is preprocessed, and as it is fed

Finish = Callable[[str, Histogram], None]


@dataclass(frozen=True)
class Limits:
    """What observing may use: bytes of memory beside the model, processes, and a folder for what is counted so far.

    The folder's name stands for the work; counts of work of another name in it are not taken over.
    """

    memory: int
    jobs: int = 1
    checkpoint: Path | None = None


@dataclass(frozen=True)
class Observed:
    """Ranges by tensor; notes; and of the work: samples, passes over them, processes, samples run and taken over."""

    ranges: Mapping[str, Range]
    notes: tuple[str, ...]
    samples: int
    passes: int
    processes: int
    runs: int
    resumed: int


def observe(
    model: onnx.ModelProto,
    inputs: Mapping[str, Path],
    preprocess: Mapping[str, Operations],
    needed: Mapping[str, str],
    everything: bool,
    limits: Limits,
    finish: Finish,
) -> Observed:
    """Give the histogram of every tensor in `needed` (→ the node that reads it) to `finish`, one after the other.

    With `everything`, of every FP32 activation; those not needed that become NaN or infinite are left out, with a note.
    `inputs` are the step's: "onnx", which `model` is, and "data.*". Limits do not change the result. Raises StepError
    naming tensor and node for NaN and infinite values in what is needed and for values that depend on other samples,
    and for samples that are too large for this machine.
    """
    given = Given.open(model, inputs, preprocess)
    _check_samples_fit(given)
    looked = checks.look(given.samples, given.graph, given.preprocess)
    found = activations(given.model, next(given.batches([(0, given.samples.count)]))[1].feeds)
    counted = [name for name in found if everything or name in needed]
    sizes = {name: _COPIES * found[name].size + _HISTOGRAM for name in counted}
    _check_tensors_fit(found, sizes)
    groups, processes = _plan(sizes, limits, -(-given.samples.count // given.batch))
    ranged = tuple(name for name in found if name not in sizes)
    if not found:
        raise StepError("the graph has no FP32 tensors, so there is nothing to calibrate", "remove calibration")
    watch = Watch(
        tuple(Group(tuple(group), () if number else ranged) for number, group in enumerate(groups)),
        needed,
        {name: activation.maker for name, activation in found.items()},
    )
    with ExitStack() as stack:
        folder = limits.checkpoint
        if folder is None and processes > 1:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        observed = _Calibration(given, inputs, watch, folder).run(processes, finish)
    large = _beyond(sizes, watch.makers, limits.memory)
    return replace(observed, notes=(*looked, *observed.notes, *large))


class _Calibration:
    """One pass of each group over the samples. `run` may be called once."""

    def __init__(self, given: Given, inputs: Mapping[str, Path], watch: Watch, folder: Path | None) -> None:
        self._given, self._inputs, self._watch, self._folder = given, inputs, watch, folder
        self._count = given.samples.count
        self._layouts = [
            counts.layout_name(
                {
                    "work": folder.name if folder is not None else None,
                    "counted": group.counted,
                    "ranged": group.ranged,
                    "samples": self._count,
                    "batch": given.batch,
                }
            )
            for group in watch.groups
        ]
        self._token = os.urandom(4).hex()  # files of this run are not those of an earlier one

    def run(self, processes: int, finish: Finish) -> Observed:
        done = [self._saved(number).spans for number in range(len(self._watch.groups))]
        missing = [counts.missing(spans, self._count) for spans in done]
        runs = sum(stop - start for spans in missing for start, stop in spans)
        if processes > 1:
            processes = max(1, min(processes, int(_seconds(self._given, self._watch.groups[0], runs) / WORTH)))
        if processes > 1:
            self._count_in_parts(missing, processes)
        ranges: dict[str, Range] = {}
        odd: set[str] = set()
        for number in range(len(self._watch.groups)):
            total = self._saved(number)
            if processes == 1:
                total.merge(self._count_here(number, counts.missing(total.spans, self._count)))
            if counts.missing(total.spans, self._count):
                raise StepError("what was counted of the samples was damaged on disk", "check that disk")
            ranges |= total.ranges
            odd |= total.odd
            for name in list(total.histograms):
                histogram = total.histograms.pop(name)
                if histogram.count:
                    ranges[name] = histogram.min, histogram.max
                finish(name, histogram)
        passes = len(self._watch.groups)
        kept = {name: found for name, found in sorted(ranges.items()) if found != counts.NOTHING}
        return Observed(kept, self._notes(odd), self._count, passes, processes, runs, self._count * passes - runs)

    def _saved(self, number: int) -> Counts:
        if self._folder is None:
            return Counts()
        return counts.read_all(self._folder, number, self._layouts[number])

    def _path(self, number: int, part: int) -> Path | None:
        if self._folder is None:
            return None
        return self._folder / counts.file_name(number, f"{self._token}-{part}")

    def _count_here(self, number: int, spans: Sequence[Span]) -> Counts:
        if not spans:
            return Counts()
        path = self._path(number, 0)
        saver = Saver(path, self._layouts[number]) if path is not None else None
        whole = spans == [(0, self._count)]
        found = count(self._given, self._watch, self._watch.groups[number], spans, saver, check=whole)
        if saver is not None and number + 1 < len(self._watch.groups):
            saver.write(found)  # the next group takes as long again
        return found

    def _count_in_parts(self, missing: Sequence[Sequence[Span]], processes: int) -> None:
        shares = [counts.shares(spans, processes, self._given.batch) for spans in missing]
        run_all(
            [
                Part(
                    inputs={role: str(path.absolute()) for role, path in self._inputs.items()},
                    preprocess=self._given.preprocess,
                    watch=self._watch,
                    layouts=self._layouts,
                    spans=[share[part] for share in shares],
                    saved=[str(self._path(number, part)) for number in range(len(missing))],
                    # Looked at once: by who has the first samples of a group, when none of it is done.
                    check=[part == 0 and spans == [(0, self._count)] for spans in missing],
                )
                for part in range(processes)
            ]
        )

    def _notes(self, odd: set[str]) -> tuple[str, ...]:
        return tuple(
            f"tensor {name}, made by {maker}, becomes NaN or infinite on the calibration data; it has no range and no "
            "scale"
            for name, maker in self._watch.makers.items()
            if name in odd
        )


def _plan(sizes: Mapping[str, int], limits: Limits, batches: int) -> tuple[list[list[str]], int]:
    """Groups, and how many processes go through them: those that end first, and of equals the fewest.

    Only one process alone may go beyond the limit, for a tensor that does not fit.
    """
    most = min(limits.jobs, batches, limits.memory // max(sizes.values(), default=1))
    plans = {n: grouped(sizes, limits.memory // n) or [[]] for n in range(1, max(1, most) + 1)}
    processes = min(plans, key=lambda n: (len(plans[n]) / n, n))
    return plans[processes], processes


def grouped(sizes: Mapping[str, int], memory: int) -> list[list[str]]:
    """The tensors in order, in as few runs of neighbours as fit into `memory`; one that is too large is alone."""
    groups: list[list[str]] = []
    left = 0
    for name, size in sizes.items():
        if not groups or size > left:
            groups.append([])
            left = memory
        groups[-1].append(name)
        left -= size
    return groups


def _seconds(given: Given, group: Group, runs: int) -> float:
    """What running so many samples takes and counting the tensors of a group, by one run."""
    _, batch = next(given.batches([(0, given.samples.count)]))
    with observing(given.model, group.counted or [value.name for value in given.model.graph.output]) as engine:
        engine.run(batch.feeds)
        started = time.monotonic()
        values = engine.run(batch.feeds)
        for name in group.counted:
            # What is not finite is reported where it is counted in earnest.
            if np.isfinite(values[name]).all():
                Histogram().add(values[name])
        return (time.monotonic() - started) * runs / batch.count


def physical_memory() -> int:
    """Bytes that this machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _check_samples_fit(given: Given) -> None:
    """Before one is read: what does not fit would end the process without a word."""
    for spec in given.graph.inputs:
        shape = given.samples.shapes[spec.name]
        values = given.batch * math.prod(shape)
        _check_fits(f"input {spec.name} of {given.batch} x {list(shape)} values", _FEEDS * 4 * values)


def _check_tensors_fit(found: Mapping[str, Activation], sizes: Mapping[str, int]) -> None:
    for name, size in sizes.items():
        _check_fits(f"tensor {name}, made by {found[name].maker}, in one run", size)


def _beyond(sizes: Mapping[str, int], makers: Mapping[str, str], memory: int) -> list[str]:
    """What had to take more memory than the limit allows."""
    beyond = [name for name in sizes if sizes[name] > memory]
    if not beyond:
        return []
    most = max(beyond, key=lambda name: sizes[name])
    return [
        f"{len(beyond)} of the tensors take more to observe than the limit of {memory / 2**20:.0f} MiB of memory, the "
        f"largest {sizes[most] / 2**20:.0f} MiB ({most}, made by {makers[most]}); each was observed alone"
    ]


def _check_fits(what: str, need: int) -> None:
    have = physical_memory()
    if need > have:
        raise StepError(
            f"{what} takes {need / 2**30:.1f} GiB while it is observed, and this machine has {have / 2**30:.1f} GiB",
            "calibrate with smaller samples, or on a machine with more memory",
        )
