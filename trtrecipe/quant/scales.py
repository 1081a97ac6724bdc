"""The scales document, and the arithmetic of symmetric INT8.

`scales.json`: {"schema": "trtrecipe/scales/v1", "method": …, "samples": …, "tensors": {name: {"threshold": …, "min":
…, "max": …, "values": …, "clipped": …}}, "ranges": {name: [least, largest]}} as canonical JSON. A threshold is the
absolute value that maps to 127, min and max are the least and the largest value that was seen, `values` how many there
were, and `clipped` how many of them are beyond the threshold, to one part in 2048 of it. `ranges` has the least and the
largest value of every FP32 activation that was observed, quantized or not. Figures are float32, written as their
shortest decimals. A threshold of 0 means that the tensor was zero in every sample.

Where only ranges were asked for, the method is "ranges". Where scales were given and nothing was observed, it is
"table" or "model", samples is 0, and only thresholds are there; an entry whose scale is that of no float32 threshold
has it as `scale`, which counts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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

    `ranges`: tensor name → least and largest value, also of tensors without a threshold. `values`, `clipped`: tensor
    name → how many values were seen, and how many of them are beyond the threshold. All three may lack tensors. A
    threshold is a float32, or 127 times one.
    """

    method: str
    samples: int
    thresholds: Mapping[str, float]
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    values: Mapping[str, int] = field(default_factory=dict)
    clipped: Mapping[str, int] = field(default_factory=dict)


def dump(scales: Scales) -> bytes:
    """The document as canonical JSON."""
    ranges = {name: [shortest(low), shortest(high)] for name, (low, high) in scales.ranges.items()}
    tensors: dict[str, dict[str, float]] = {}
    for name, threshold in scales.thresholds.items():
        tensors[name] = {"threshold": shortest(threshold)}
        if float(np.float32(threshold)) != threshold:
            tensors[name]["scale"] = shortest(float(scale_of(threshold)))
        if name in ranges:
            tensors[name] |= {"min": ranges[name][0], "max": ranges[name][1]}
        if name in scales.values:
            tensors[name] |= {"values": scales.values[name], "clipped": scales.clipped[name]}
    document = {"schema": SCHEMA, "method": scales.method, "samples": scales.samples, "tensors": tensors}
    return canonical_json(document | {"ranges": ranges})


def load(path: Path) -> Scales:
    """The document in `path`. Raises StepError when it is damaged or of another version."""
    try:
        return _parsed(json.loads(path.read_bytes()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StepError(f"{path.name} is not a usable scales document: {error}", "calibrate again") from None


def _parsed(document: Any) -> Scales:
    if document["schema"] != SCHEMA:
        raise ValueError(f"its schema is {document['schema']}, not {SCHEMA}")
    tensors = document["tensors"]
    thresholds = {name: _threshold(entry) for name, entry in tensors.items()}
    for name, threshold in thresholds.items():
        if not 0 <= threshold <= _LARGEST:
            raise ValueError(f"the threshold of {name} is {threshold}")
    ranges = {name: (float(entry["min"]), float(entry["max"])) for name, entry in tensors.items() if "min" in entry}
    ranges |= {name: (float(low), float(high)) for name, (low, high) in document.get("ranges", {}).items()}
    for name, (low, high) in ranges.items():
        if not -_LARGEST <= low <= high <= _LARGEST:
            raise ValueError(f"the range of {name} is {low} to {high}")
    counted = {name: entry for name, entry in tensors.items() if "values" in entry}
    values = {name: int(entry["values"]) for name, entry in counted.items()}
    clipped = {name: int(entry["clipped"]) for name, entry in counted.items()}
    for name in counted:
        if not 0 <= clipped[name] <= values[name]:
            raise ValueError(f"{clipped[name]} of the {values[name]} values of {name} are clipped")
    return Scales(str(document["method"]), int(document["samples"]), thresholds, ranges, values, clipped)


def shortest(value: float) -> float:
    """The float whose repr is the shortest decimal that reads back as the float32 nearest to `value`."""
    return float(str(np.float32(value)))


def _threshold(entry: Mapping[str, Any]) -> float:
    """Of an entry; the float32 that its decimal stands for, or 127 times its scale."""
    if "scale" in entry:
        return LIMIT * float(np.float32(entry["scale"]))
    threshold = float(entry["threshold"])
    return float(np.float32(threshold)) if abs(threshold) <= _LARGEST else threshold


def scale_of(thresholds: npt.ArrayLike) -> Float32:
    """Thresholds → float32 scales: threshold / 127, rounded once.

    Where the threshold is 0 nothing is known of the tensor, and dividing by 0 is no answer: the scale is then 1. A
    threshold so small that its scale would be subnormal gets the smallest normal float32.
    """
    scales = (np.asarray(thresholds, np.float64) / LIMIT).astype(np.float32)
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
