"""What a person should look at in calibrated scales: tensors that were dead, constant, cut, or beyond FP16."""

from __future__ import annotations

from dataclasses import dataclass

from trtrecipe.quant.scales import Scales

SATURATED = 0.01
"""Share of a tensor's values beyond its threshold from which it counts as saturated. The methods give up outliers, far
less than this; where more is cut, the threshold does not fit the tensor."""
LARGEST_FP16 = 65504.0

FLAGS = {
    "dead": "0 in every sample: the scale is 1, so whatever the tensor holds later is rounded to whole numbers",
    "constant": "one value in every sample",
    "saturated": f"more than {SATURATED:.0%} of its values are beyond the threshold",
    "overflow": f"values beyond {LARGEST_FP16:.0f}, the largest of FP16",
}
"""Flag → what it says of a tensor."""


@dataclass(frozen=True)
class Reviewed:
    """One tensor, as far as it is known: its threshold, the least and the largest value that were seen, the share of
    its values beyond the threshold, and what of `FLAGS` holds."""

    name: str
    threshold: float | None
    low: float | None
    high: float | None
    clipped: float | None
    flags: tuple[str, ...]


def review(scales: Scales) -> tuple[Reviewed, ...]:
    """The tensors that have a threshold, in the document's order, then others in which FP16 would overflow."""
    found = [_reviewed(scales, name) for name in scales.thresholds]
    others = [_reviewed(scales, name) for name in scales.ranges if name not in scales.thresholds]
    return (*found, *(tensor for tensor in others if "overflow" in tensor.flags))


def _reviewed(scales: Scales, name: str) -> Reviewed:
    threshold = scales.thresholds.get(name)
    low, high = scales.ranges.get(name, (None, None))
    clipped = scales.clipped[name] / scales.values[name] if scales.values.get(name) else None
    holds = {
        "dead": threshold == 0,
        "constant": threshold != 0 and low is not None and low == high,
        "saturated": clipped is not None and clipped > SATURATED,
        "overflow": low is not None and high is not None and max(-low, high) > LARGEST_FP16,
    }
    return Reviewed(name, threshold, low, high, clipped, tuple(flag for flag in FLAGS if holds[flag]))
