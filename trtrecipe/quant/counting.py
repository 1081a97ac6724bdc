"""Runs a part of the samples and counts what is observed: what each process of a calibration does.

The samples run through ONNX Runtime with optimizations off, on one thread, and one by one where the model leaves the
batch open. That is for exactness. With ONNX Runtime 1.31, Conv, ConvTranspose, MatMul, Gemm, Softmax, LSTM and
LayerNormalization give the same bits for a sample whatever shares its batch, but Elu and Softplus do not: they are
computed in vectors, and what is left over at the end of a tensor rounds differently. One by one, a sample's values are
the same wherever it stands, and need the least memory. It costs nothing where convolutions dominate: a graph of
ResNet-18's shape takes as long per sample in batches of 16.

A model with a fixed batch runs as it is. There, and only there, the last bits may depend on the order of samples.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np
import onnx

from trtrecipe.data import batches
from trtrecipe.data.batches import Batch
from trtrecipe.data.preprocess import Array, Operations
from trtrecipe.errors import StepError
from trtrecipe.graphs.interface import Interface, interface
from trtrecipe.quant import counts, observed
from trtrecipe.quant.company import check_independence, has_open_batch
from trtrecipe.quant.counts import Counts, Span
from trtrecipe.quant.histogram import Histogram

BATCH = 1
"""Samples that run at once where the model leaves the number open."""
EVERY = 0.5
"""Seconds, at least, between two writings of what was counted so far."""

_SHARE = 20  # writing takes no more than one part of so many of the time


@dataclass(frozen=True)
class Group:
    """Tensors observed in one pass over the samples: those `counted`, and those of which only the range is taken."""

    counted: tuple[str, ...]
    ranged: tuple[str, ...] = ()


@dataclass(frozen=True)
class Watch:
    """What is observed. `needed`: tensor → the node that reads it, of those that may not become NaN or infinite.

    `makers`: tensor → the node that makes it, in the order of the graph, of every FP32 activation.
    """

    groups: tuple[Group, ...]
    needed: Mapping[str, str]
    makers: Mapping[str, str]

    def readers(self, group: Group) -> dict[str, str]:
        """Counted tensor → what a person is told of its use."""
        return {name: self.needed.get(name) or "the engine" for name in group.counted}


@dataclass(frozen=True)
class Given:
    """A graph and its samples, opened."""

    model: onnx.ModelProto
    graph: Interface
    samples: batches.Samples
    preprocess: Mapping[str, Operations]

    @classmethod
    def open(cls, model: onnx.ModelProto, inputs: Mapping[str, Path], preprocess: Mapping[str, Operations]) -> Given:
        """From a step's inputs (roles "data.NAME"). Raises StepError when the samples do not fit."""
        graph = interface(model)
        return cls(model, graph, batches.load(inputs, graph, preprocess), preprocess)

    @property
    def batch(self) -> int:
        """Samples per run."""
        return batches.batch_size(self.graph, BATCH)

    def batches(self, spans: Sequence[Span]) -> Iterator[tuple[Span, Batch]]:
        """The samples of `spans` as feeds, each with the samples it holds."""
        for start, stop in spans:
            first = start
            for batch in batches.batches(self.samples, self.graph, self.preprocess, BATCH, (start, stop)):
                yield (first, first + batch.count), batch
                first += batch.count


class Saver:
    """Writes counts to a file now and then, so that an interruption costs seconds."""

    def __init__(self, path: Path, layout: str) -> None:
        self._path, self._layout = path, layout
        self._due = time.monotonic() + EVERY

    def offer(self, found: Counts) -> None:
        """Write them if it is time. Raises OSError."""
        started = time.monotonic()
        if started >= self._due:
            self.write(found)
            ended = time.monotonic()
            self._due = ended + max(EVERY, _SHARE * (ended - started))

    def write(self, found: Counts) -> None:
        """Write them. Raises OSError."""
        counts.write(found, self._layout, self._path)


def count(given: Given, watch: Watch, group: Group, spans: Sequence[Span], saver: Saver | None, check: bool) -> Counts:
    """What the samples of `spans` give; with `check`, whether the values of the first two depend on each other too.

    Raises StepError naming tensor and node for NaN and infinite values of what is needed and for values that depend on
    other samples.
    """
    figures = observed.Figures(given.model)
    scalars = {name: (figures.add(name, "ReduceMin"), figures.add(name, "ReduceMax")) for name in group.ranged}
    found = Counts({name: Histogram() for name in group.counted}, dict.fromkeys(group.ranged, counts.NOTHING))
    rest = given.batches(spans)
    first = list(islice(rest, 2)) if check else []
    outputs = [*group.counted, *(name for pair in scalars.values() for name in pair)]
    with observed.observing(given.model, outputs, figures.nodes) as engine:
        if [batch.size for _, batch in first] == [1, 1] and has_open_batch(given.model):
            check_independence(engine, watch.readers(group), *(batch for _, batch in first))
        for span, batch in chain(first, rest):
            values = engine.run(batch.feeds)
            for name in group.counted:
                _add(found, name, _real(values.pop(name), batch), _Run(given, watch, span, batch))
            for name, (least, most) in scalars.items():
                _widen(found, name, float(values[least]), float(values[most]))
            found.spans = counts.joined([*found.spans, span])
            if saver is not None:
                saver.offer(found)
    return found


@dataclass(frozen=True)
class _Run:
    """One run of the graph, for saying what is wrong with it."""

    given: Given
    watch: Watch
    span: Span
    batch: Batch

    def error(self, tensor: str, values: Array) -> StepError:
        """Names the tensor, its reader, the samples, and the node where it begins."""
        operator, kind = ("IsNaN", "NaN") if np.isnan(values).any() else ("IsInf", "infinite")
        origin = observed.first_with(operator, self.given.model, list(self.watch.makers), self.batch.feeds)
        begins = f"; it begins at {self.watch.makers[origin]} (its output {origin})" if origin is not None else ""
        start, stop = self.span
        samples = self.given.samples.name(start)
        if stop - start > 1:
            samples = f"one of the {stop - start} samples from {samples} on"
        return StepError(
            f"tensor {tensor}, the input of {self.watch.needed[tensor]}, becomes {kind} on the calibration data, in "
            f"{samples}{begins}",
            "check preprocess (scale, mean, std), that the samples are of the kind the model was trained on, and the "
            "weights of that node",
        )


def _add(found: Counts, tensor: str, values: Array, run: _Run) -> None:
    if tensor in found.odd:
        return
    try:
        found.histograms[tensor].add(values)
    except ValueError:
        if tensor in run.watch.needed:
            raise run.error(tensor, values) from None
        del found.histograms[tensor]
        found.odd.add(tensor)


def _widen(found: Counts, tensor: str, least: float, most: float) -> None:
    if tensor in found.odd or (least, most) == counts.NOTHING:
        return
    if math.isfinite(least) and math.isfinite(most):
        found.ranges[tensor] = counts.widened(found.ranges[tensor], (least + 0.0, most + 0.0))
    else:
        del found.ranges[tensor]
        found.odd.add(tensor)


def _real(values: Array, batch: Batch) -> Array:
    """`values` without those of samples that only fill the last batch.

    A first axis that is a multiple of the batch's counts samples too (several rows of each, as after a Reshape).
    """
    if values.ndim == 0 or len(values) % batch.size:
        return values
    return values[: len(values) // batch.size * batch.count]
