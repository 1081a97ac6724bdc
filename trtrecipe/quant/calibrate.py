"""Thresholds of activations, by ONNX Runtime's calibrators."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from trtrecipe.data.batches import Batch
from trtrecipe.data.preprocess import Array
from trtrecipe.engines.ort import OrtEngine
from trtrecipe.errors import StepError
from trtrecipe.quant.sites import find_sites

METHODS = ("minmax", "percentile", "entropy")
BINS = 2048
ENTROPY_LEVELS = 128
PERCENTILE = 99.999

Batches = Callable[[], Iterable[Batch]]


def thresholds(model: onnx.ModelProto, method: str, batches: Batches) -> tuple[dict[str, float], list[str]]:
    """Activation tensor → the absolute value that maps to 127, for each that quantize needs; and notes.

    The samples run twice: once for the range of every tensor, once, unless `method` is minmax, to count values within
    it. Histograms so have the same bins whatever comes first, and memory holds one batch. Only |value| matters, as
    quantization is symmetric: minmax takes the largest, percentile and entropy choose a smaller one from the histogram.
    Raises StepError naming tensor and node for NaN and infinite values, and when `batches` is empty.
    """
    if method not in METHODS:
        raise StepError(f"no calibration method is called {method}", f"methods: {', '.join(METHODS)}")
    found = find_sites(model)
    readers = {site.activation: site.node for site in reversed(found.sites)}
    with OrtEngine(_observable(model, list(readers))) as engine:
        ranges = _ranges(engine, readers, batches())
        if method != "minmax":
            ranges = ranges | _from_histograms(engine, method, ranges, batches())
    return {name: ranges[name] for name in sorted(ranges)}, list(found.skipped)


def _observable(model: onnx.ModelProto, tensors: Iterable[str]) -> bytes:
    """`model` with `tensors` as its only outputs."""
    observed = onnx.ModelProto()
    observed.CopyFrom(model)
    del observed.graph.output[:]
    observed.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in tensors)
    data: bytes = observed.SerializeToString(deterministic=True)
    return data


def _observe(engine: OrtEngine, batches: Iterable[Batch]) -> Iterator[dict[str, Array]]:
    """Values of every tensor, batch by batch, without the samples that only fill the last one.

    A first axis that is a multiple of the batch's counts samples too (several rows of each, as after a Reshape).
    """
    for batch in batches:
        values = {}
        for name, value in engine.run(batch.feeds).items():
            rows = len(value) // batch.size * batch.count if value.ndim and len(value) % batch.size == 0 else None
            values[name] = value[:rows]
        yield values


def _ranges(engine: OrtEngine, readers: Mapping[str, str], batches: Iterable[Batch]) -> dict[str, float]:
    largest = dict.fromkeys(readers, np.float32(-1))
    for values in _observe(engine, batches):
        for name, value in values.items():
            peak = np.abs(value).max(initial=np.float32(0))
            if not np.isfinite(peak):
                raise StepError(
                    f"tensor {name}, the input of {readers[name]}, becomes NaN or infinite on the calibration data",
                    "check preprocess (scale, mean, std) and that the samples are of the kind the model was trained on",
                )
            largest[name] = max(largest[name], peak)
    if any(value < 0 for value in largest.values()):
        raise StepError("there are no calibration samples", "give at least one under calibration.data")
    return {name: float(value) for name, value in largest.items()}


def _from_histograms(
    engine: OrtEngine, method: str, ranges: Mapping[str, float], batches: Iterable[Batch]
) -> dict[str, float]:
    """Thresholds from histograms over `ranges`; a tensor that is always 0 keeps its range."""
    from onnxruntime.quantization.calibrate import HistogramCollector

    collector = HistogramCollector(
        method=method,
        symmetric=True,
        num_bins=BINS,
        num_quantized_bins=ENTROPY_LEVELS,
        percentile=PERCENTILE,
        scenario="same",
    )
    used = {name: np.float32(high) for name, high in ranges.items() if high > 0}
    # The collector widens its bins when a later batch exceeds them, and percentile drops what is below its first one.
    # It starts with empty bins over the whole range instead.
    collector.histogram_dict = {name: _empty(method, high) for name, high in used.items()}
    if not used:
        return {}
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        for values in _observe(engine, batches):
            collector.collect({name: value.ravel() for name, value in values.items() if name in used})
        chosen = collector.compute_collection_result()
    return {name: float(max(abs(bounds[0]), abs(bounds[1]))) for name, bounds in chosen.items()}


def _empty(method: str, high: np.float32) -> tuple[Any, ...]:
    """The collector's entry for a tensor: counts, bin edges, least and largest value, and for entropy the range."""
    counts = np.zeros(BINS, np.int64)
    if method == "percentile":
        edges = np.linspace(0, high, BINS + 1).astype(np.float32)
        return counts, edges, np.float32(-high), high
    return counts, np.linspace(-high, high, BINS + 1).astype(np.float32), np.float32(-high), high, high
