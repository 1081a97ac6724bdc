"""Limits that fail a build, evaluated from what was measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the recipe's own frozen values pass through; nothing here needs pydantic
    from trtrecipe.recipe.model import Gates

# Without gates, an unquantized engine must at least point the same way as its reference.
DEFAULT_COSINE = 0.99


@dataclass(frozen=True, slots=True)
class Verdict:
    """One gate. `status`: "met", "missed" or "pending" (its figure was not measured). `better` is "<=" or ">="."""

    gate: str
    status: str
    limit: float
    better: str
    value: float | None

    def __str__(self) -> str:
        if self.value is None:
            return f"{self.gate} {self.better} {self.limit:g}: not measured"
        return f"{self.gate} {self.value:.6g}, must be {self.better} {self.limit:g}"


def evaluate(
    gates: Gates | None, precision: str, metric: str | None, metrics: Mapping[str, Any]
) -> tuple[Verdict, ...]:
    """The verdict of every gate, from the metrics of a target and the "size" of its engine in bytes."""
    return tuple(
        Verdict(gate, _status(limit, better, value), limit, better, value)
        for gate, limit, better, value in _limits(gates, precision, metric, metrics)
    )


def _limits(
    gates: Gates | None, precision: str, metric: str | None, metrics: Mapping[str, Any]
) -> Iterator[tuple[str, float, str, float | None]]:
    if gates is None:
        if precision != "int8":
            yield "cosine", DEFAULT_COSINE, ">=", metrics.get("cosine")
        return
    accuracy, reference = metrics.get("accuracy"), metrics.get("reference_accuracy")
    if gates.accuracy is not None:
        # mse is an error: worse is more of it.
        worse_is_more = metric == "mse"
        if gates.accuracy.max_drop is not None:
            drop = None if accuracy is None or reference is None else reference - accuracy
            yield "accuracy.max_drop", gates.accuracy.max_drop, "<=", -drop if drop and worse_is_more else drop
        if gates.accuracy.min is not None:
            yield "accuracy.min", gates.accuracy.min, "<=" if worse_is_more else ">=", accuracy
    if gates.agreement is not None:
        yield "agreement", gates.agreement, ">=", metrics.get("agreement")
    if gates.cosine is not None:
        yield "cosine", gates.cosine, ">=", metrics.get("cosine")
    if gates.latency_ms is not None:
        latency = metrics.get("latency_ms", {})
        for name, limit in gates.latency_ms.model_dump(exclude_none=True).items():
            yield f"latency_ms.{name}", limit, "<=", latency.get(name)
    if gates.size is not None:
        yield "size", gates.size, "<=", metrics.get("size")


def _status(limit: float, better: str, value: float | None) -> str:
    if value is None:
        return "pending"
    # A difference of two accuracies carries rounding in its last digits: 0.98 - 0.97 is a hair above 0.01.
    slack = 1e-9
    return "met" if (value <= limit + slack if better == "<=" else value >= limit - slack) else "missed"
