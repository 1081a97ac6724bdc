"""Limits that fail a build, evaluated from what was measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trtrecipe.data.limits import Limit, quality

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
        return str(Limit(self.gate, self.limit, self.better, self.value))


def evaluate(
    gates: Gates | None, precision: str, metric: str | None, metrics: Mapping[str, Any]
) -> tuple[Verdict, ...]:
    """The verdict of every gate, from the metrics of a target and the "size" of its engine in bytes."""
    return tuple(
        Verdict(each.gate, each.status, each.limit, each.better, each.value)
        for each in _limits(gates, precision, metric, metrics)
    )


def _limits(gates: Gates | None, precision: str, metric: str | None, metrics: Mapping[str, Any]) -> Iterator[Limit]:
    if gates is None:
        if precision != "int8":
            # A model may have no floating-point output; its integers are then compared one by one.
            name = "equal" if "equal" in metrics and "cosine" not in metrics else "cosine"
            yield Limit(name, DEFAULT_COSINE, ">=", metrics.get(name))
        return
    wanted = gates.model_dump(include={"accuracy", "agreement", "cosine"})
    yield from quality(wanted, metric, metrics)
    if gates.latency_ms is not None:
        latency = metrics.get("latency_ms", {})
        for name, limit in gates.latency_ms.model_dump(exclude_none=True).items():
            yield Limit(f"latency_ms.{name}", limit, "<=", latency.get(name))
    if gates.size is not None:
        yield Limit("size", gates.size, "<=", metrics.get("size"))
