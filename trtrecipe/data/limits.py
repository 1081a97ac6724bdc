"""Limits on quality: which figure each of a recipe's gates reads, in which direction it is better, and when it is met.

Light: gates are evaluated where nothing numeric is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

QUALITY = ("accuracy", "agreement", "cosine")
"""The gates that are limits on quality."""

_SLACK = 1e-9
"""A difference of two accuracies carries rounding in its last digits: 0.98 - 0.97 is a hair above 0.01."""


@dataclass(frozen=True, slots=True)
class Limit:
    """One gate and the figure it reads, None where that was not measured. `better` is "<=" or ">="."""

    gate: str
    limit: float
    better: str
    value: float | None

    @property
    def status(self) -> str:
        """ "met", "missed" or "pending" (not measured)."""
        if self.value is None:
            return "pending"
        if self.better == "<=":
            return "met" if self.value <= self.limit + _SLACK else "missed"
        return "met" if self.value >= self.limit - _SLACK else "missed"

    def __str__(self) -> str:
        if self.value is None:
            return f"{self.gate} {self.better} {self.limit:g}: not measured"
        return f"{self.gate} {self.value:.6g}, must be {self.better} {self.limit:.9g}"


def quality(gates: Mapping[str, Any], metric: str | None, figures: Mapping[str, Any]) -> Iterator[Limit]:
    """The limits among `gates`: {"accuracy": {"max_drop", "min"}, "agreement", "cosine"}, each absent or None if unset.

    Reads accuracy, reference_accuracy, agreement and cosine of `figures`. mse is an error: worse is more of it.
    """
    accuracy, reference = figures.get("accuracy"), figures.get("reference_accuracy")
    worse_is_more = metric == "mse"
    limits = gates.get("accuracy") or {}
    if limits.get("max_drop") is not None:
        drop = None if accuracy is None or reference is None else reference - accuracy
        yield Limit("accuracy.max_drop", limits["max_drop"], "<=", -drop if drop and worse_is_more else drop)
    if limits.get("min") is not None:
        yield Limit("accuracy.min", limits["min"], "<=" if worse_is_more else ">=", accuracy)
    for name in ("agreement", "cosine"):
        if gates.get(name) is not None:
            yield Limit(name, gates[name], ">=", figures.get(name))
