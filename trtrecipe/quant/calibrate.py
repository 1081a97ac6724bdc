"""Runs the calibration samples and counts the values of every activation that quantize puts a pair on.

The samples run through ONNX Runtime with optimizations off, on one thread, and one by one where the model leaves the
batch open. That is for exactness. With ONNX Runtime 1.31, Conv, ConvTranspose, MatMul, Gemm, Softmax, LSTM and
LayerNormalization give the same bits for a sample whatever shares its batch, but Elu and Softplus do not: they are
computed in vectors, and what is left over at the end of a tensor rounds differently. One by one, a sample's values are
the same wherever it stands, and need the least memory. It costs nothing where convolutions dominate: a graph of
ResNet-18's shape takes as long per sample in batches of 16.

A model with a fixed batch runs as it is. There, and only there, the last bits may depend on the order of samples.

Memory: one run's values of the tensors observed, and a histogram for each. Where the limit is too small for all of them
together, they are observed in groups, and the samples run once per group.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from trtrecipe.data.batches import Batch
from trtrecipe.data.preprocess import Array
from trtrecipe.engines.ort import OrtEngine
from trtrecipe.errors import StepError
from trtrecipe.graphs import files
from trtrecipe.quant.company import check_independence, has_open_batch
from trtrecipe.quant.histogram import CELLS, Histogram
from trtrecipe.quant.sites import find_sites

BATCH = 1
"""Samples that run at once where the model leaves the number open."""

_HISTOGRAM = 8 * (1 + CELLS)
_COPIES = 2  # ONNX Runtime's buffer and the array that it gives out

Batches = Callable[[], Iterable[Batch]]


@dataclass(frozen=True)
class Observed:
    """Activation tensor → histogram of its values; notes; and how often the samples ran."""

    histograms: Mapping[str, Histogram]
    notes: tuple[str, ...]
    passes: int


def observe(model: onnx.ModelProto, batches: Batches, memory: int) -> Observed:
    """The histogram of every tensor that quantize needs, within `memory` bytes, which does not change the result.

    `batches` is called once per group of tensors, and once to learn their sizes. Raises StepError naming tensor and
    node for NaN and infinite values and for values that depend on other samples; and when `batches` is empty.
    """
    found = find_sites(model)
    readers = {site.activation: site.node for site in reversed(found.sites)}
    sizes = _sizes(model, list(readers), batches())
    histograms: dict[str, Histogram] = {}
    groups = _groups(sizes, memory)
    for group in groups:
        histograms |= _histograms(model, {name: readers[name] for name in group}, batches())
    return Observed({name: histograms[name] for name in sorted(histograms)}, found.skipped, len(groups))


def _sizes(model: onnx.ModelProto, tensors: Sequence[str], batches: Iterable[Batch]) -> dict[str, int]:
    """Bytes of every tensor in one run."""
    batch = next(iter(batches), None)
    if batch is None:
        raise StepError("there are no calibration samples", "give at least one under calibration.data")
    sizes = _declared(model, tensors, batch)
    unknown = [name for name in tensors if name not in sizes]
    if unknown:
        sizes |= _measured(model, unknown, batch)
    return {name: 4 * sizes[name] for name in tensors}


def _declared(model: onnx.ModelProto, tensors: Iterable[str], batch: Batch) -> dict[str, int]:
    """Number of values of each of the tensors whose shape the graph tells, given the sizes of its inputs."""
    graph = model.graph
    dims: dict[str, int] = {}
    for value in graph.input:
        if value.name in batch.feeds:
            shape = value.type.tensor_type.shape.dim
            dims |= {dim.dim_param: size for dim, size in zip(shape, batch.feeds[value.name].shape, strict=True)}
    dims.pop("", None)
    found = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        extents = [dims.get(dim.dim_param, dim.dim_value) for dim in kind.shape.dim]
        if kind.HasField("shape") and all(extents):
            found[value.name] = math.prod(extents)
    return {name: found[name] for name in tensors if name in found}


def _measured(model: onnx.ModelProto, tensors: Iterable[str], batch: Batch) -> dict[str, int]:
    """Number of values of each tensor. Only that leaves the graph, so it takes no memory for them."""
    taken = {name for node in model.graph.node for name in node.output}
    names = {name: _free(f"{name}_size", taken) for name in tensors}
    nodes = [helper.make_node("Size", [name], [size]) for name, size in names.items()]
    with _engine(model, names.values(), TensorProto.INT64, nodes) as engine:
        counted = engine.run(batch.feeds)
    return {name: int(counted[size]) for name, size in names.items()}


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _groups(sizes: Mapping[str, int], memory: int) -> list[list[str]]:
    """The tensors in order, in as few runs of neighbours as fit into `memory`; one that is too large is alone."""
    groups: list[list[str]] = []
    left = 0
    for name, size in sizes.items():
        need = _COPIES * size + _HISTOGRAM
        if not groups or need > left:
            groups.append([])
            left = memory
        groups[-1].append(name)
        left -= need
    return groups


def _histograms(model: onnx.ModelProto, readers: Mapping[str, str], batches: Iterable[Batch]) -> dict[str, Histogram]:
    """Tensor → histogram over all batches, for the tensors in `readers` (tensor → the node that reads it)."""
    histograms = {name: Histogram() for name in readers}
    rest = iter(batches)
    first = list(islice(rest, 2))
    with _engine(model, readers, TensorProto.FLOAT) as engine:
        if [batch.size for batch in first] == [1, 1] and has_open_batch(model):
            check_independence(engine, readers, *first)
        for batch in chain(first, rest):
            values = engine.run(batch.feeds)
            for name, histogram in histograms.items():
                try:
                    histogram.add(_real(values.pop(name), batch))
                except ValueError:
                    raise StepError(
                        f"tensor {name}, the input of {readers[name]}, becomes NaN or infinite on the calibration data",
                        "check preprocess (scale, mean, std) and that the samples are of the kind the model was "
                        "trained on",
                    ) from None
    return histograms


def _real(values: Array, batch: Batch) -> Array:
    """`values` without those of samples that only fill the last batch.

    A first axis that is a multiple of the batch's counts samples too (several rows of each, as after a Reshape).
    """
    if values.ndim == 0 or len(values) % batch.size:
        return values
    return values[: len(values) // batch.size * batch.count]


def _engine(
    model: onnx.ModelProto, tensors: Iterable[str], kind: int, nodes: Sequence[onnx.NodeProto] = ()
) -> OrtEngine:
    """`model` with `nodes` added, giving out `tensors` alone.

    The model is changed and put right again, and goes through a file, as there would be more copies of its weights in
    memory otherwise.
    """
    graph = model.graph
    outputs, count = list(graph.output), len(graph.node)
    try:
        graph.node.extend(nodes)
        del graph.output[:]
        graph.output.extend(helper.make_tensor_value_info(name, kind, None) for name in tensors)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "observed.onnx"
            files.save(model, path)
            return OrtEngine(path)
    finally:
        del graph.output[:]
        graph.output.extend(outputs)
        del graph.node[count:]
