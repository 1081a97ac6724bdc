"""The scales document, and the arithmetic of symmetric INT8.

`scales.json`: {"schema": "trtrecipe/scales/v1", "method": …, "samples": …, "tensors": {name: {"threshold": …, "min":
…, "max": …}}} as canonical JSON. A threshold is the absolute value that maps to 127, min and max are the least and the
largest value that was seen: float32, written as their shortest decimals. min and max may be absent, as nothing is
computed from them. A threshold of 0 means that the tensor was zero in every sample.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from trtrecipe.digest import canonical_json
from trtrecipe.errors import StepError

SCHEMA = "trtrecipe/scales/v1"
LIMIT = 127
_TINY = np.finfo(np.float32).tiny
_LARGEST = float(np.finfo(np.float32).max)

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Scales:
    """Calibrated thresholds (tensor name → absolute value that maps to 127) and how they were found.

    `ranges`: tensor name → least and largest value, of those that they are known of.
    """

    method: str
    samples: int
    thresholds: Mapping[str, float]
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)


def dump(scales: Scales) -> bytes:
    """The document as canonical JSON."""
    tensors = {name: {"threshold": shortest(threshold)} for name, threshold in scales.thresholds.items()}
    for name, (low, high) in scales.ranges.items():
        tensors[name] |= {"min": shortest(low), "max": shortest(high)}
    return canonical_json({"schema": SCHEMA, "method": scales.method, "samples": scales.samples, "tensors": tensors})


def load(path: Path) -> Scales:
    """The document in `path`. Raises StepError when it is damaged or of another version."""
    try:
        document = json.loads(path.read_bytes())
        if document["schema"] != SCHEMA:
            raise ValueError(f"its schema is {document['schema']}, not {SCHEMA}")
        thresholds = {name: float(entry["threshold"]) for name, entry in document["tensors"].items()}
        for name, threshold in thresholds.items():
            if not 0 <= threshold <= _LARGEST:
                raise ValueError(f"the threshold of {name} is {threshold}")
        ranges = {
            name: (float(entry["min"]), float(entry["max"]))
            for name, entry in document["tensors"].items()
            if "min" in entry or "max" in entry
        }
        for name, (low, high) in ranges.items():
            if not -_LARGEST <= low <= high <= _LARGEST:
                raise ValueError(f"the range of {name} is {low} to {high}")
        return Scales(str(document["method"]), int(document["samples"]), thresholds, ranges)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StepError(f"{path.name} is not a usable scales document: {error}", "calibrate again") from None


def shortest(value: float) -> float:
    """The float whose repr is the shortest decimal that reads back as the float32 nearest to `value`."""
    return float(str(np.float32(value)))


def scale_of(thresholds: npt.ArrayLike) -> Float32:
    """Thresholds → scales, both float32: threshold / 127.

    Where the threshold is 0 nothing is known of the tensor, and dividing by 0 is no answer: the scale is then 1. A
    threshold so small that its scale would be subnormal gets the smallest normal float32.
    """
    scales = np.asarray(thresholds, np.float32) / np.float32(LIMIT)
    chosen: Float32 = np.where(np.asarray(thresholds) == 0, np.float32(1), np.maximum(scales, _TINY))
    return chosen


def weight_scales(weights: Float32, axis: int | None) -> Float32:
    """Scales of float32 `weights`: one per entry of `axis`, or a single one (shape []) when `axis` is None."""
    axes = None if axis is None else tuple(other for other in range(weights.ndim) if other != axis)
    return scale_of(np.max(np.abs(weights), axis=axes, initial=0.0))


def fake_quantize(values: Float32, scales: Float32, axis: int | None = None) -> Float32:
    """What QuantizeLinear then DequantizeLinear compute in float32: round half to even, saturate to [-128, 127]."""
    if axis is not None:
        scales = scales.reshape([-1 if other == axis else 1 for other in range(values.ndim)])
    steps: Float32 = np.clip(np.rint(values / scales), -128, LIMIT)
    return steps * scales
