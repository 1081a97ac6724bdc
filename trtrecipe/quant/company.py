"""Whether what a model computes for a sample depends on the samples that run with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx

from trtrecipe.data.batches import Batch
from trtrecipe.data.preprocess import Array
from trtrecipe.engines.ort import OrtEngine
from trtrecipe.errors import StepError

_TOLERANCE = 1e-3  # of the largest value: far above rounding, far below what a step of INT8 is


def has_open_batch(model: onnx.ModelProto) -> bool:
    """Whether no input that is fed has a fixed first axis."""
    constant = {tensor.name for tensor in model.graph.initializer}
    shapes = [value.type.tensor_type.shape.dim for value in model.graph.input if value.name not in constant]
    return all(shape and not shape[0].HasField("dim_value") for shape in shapes)


def check_independence(engine: OrtEngine, readers: Mapping[str, str], first: Batch, second: Batch) -> None:
    """Raise StepError when a tensor in `readers` has other values for two samples together than for each alone.

    Compared are the least, the largest and the mean absolute value, as these need no knowledge of where in a tensor a
    sample's values are. A tensor that does not grow with the samples has nothing to compare.
    """
    together = {name: np.concatenate([feed, second.feeds[name]]) for name, feed in first.feeds.items()}
    one, other, both = (_figures(engine.run(feeds)) for feeds in (first.feeds, second.feeds, together))
    for name, reader in readers.items():
        if both[name][0] != one[name][0] + other[name][0] or not np.isfinite([*one[name], *other[name]]).all():
            continue
        expected = _joined(one[name], other[name])
        if not np.allclose(both[name], expected, rtol=0, atol=_TOLERANCE * max(map(abs, expected[1:3]))):
            raise StepError(
                f"tensor {name}, the input of {reader}, has other values when two samples run together than when each "
                "runs alone, so it has no range of its own to calibrate",
                "something is computed over the first axis: if that is no batch, fix its size under model.inputs; if "
                "it is a batch norm in training mode, export the model for inference",
            )


def _figures(values: Mapping[str, Array]) -> dict[str, Sequence[float]]:
    """Count, least, largest and mean absolute value of every tensor that has values."""
    return {
        name: (value.size, float(value.min()), float(value.max()), float(np.abs(value).mean(dtype=np.float64)))
        if value.size
        else (0, 0.0, 0.0, 0.0)
        for name, value in values.items()
    }


def _joined(one: Sequence[float], other: Sequence[float]) -> Sequence[float]:
    count = one[0] + other[0]
    mean = (one[3] * one[0] + other[3] * other[0]) / max(count, 1)
    return count, min(one[1], other[1]), max(one[2], other[2]), mean
