"""Gates: limits against what was measured."""

from __future__ import annotations

from typing import Any

import pytest

from trtrecipe.recipe.model import Gates
from trtrecipe.run.gates import evaluate

MEASURED = {
    "accuracy": 0.97,
    "reference_accuracy": 0.98,
    "agreement": 0.99,
    "cosine": 0.995,
    "latency_ms": {"p50": 1.0, "p90": 2.0, "p99": 3.0},
    "size": 2048,
}


def verdicts(
    gates: dict[str, Any] | None, metrics: dict[str, Any], precision: str = "int8", metric: str = "top1"
) -> Any:
    model = Gates.model_validate(gates) if gates is not None else None
    return {verdict.gate: verdict.status for verdict in evaluate(model, precision, metric, metrics)}


@pytest.mark.parametrize(
    ("gates", "met"),
    [
        ({"accuracy": {"max_drop": 0.01}}, True),  # 0.98 - 0.97 is a hair above 0.01 in binary
        ({"accuracy": {"max_drop": 0.009}}, False),
        ({"accuracy": {"min": 0.97}}, True),
        ({"accuracy": {"min": 0.971}}, False),
        ({"agreement": 0.99}, True),
        ({"agreement": 0.991}, False),
        ({"cosine": 0.995}, True),
        ({"cosine": 0.996}, False),
        ({"latency_ms": {"p50": 1.0, "p90": 2.0, "p99": 3.0}}, True),
        ({"latency_ms": {"p50": 1.0, "p99": 2.9}}, False),
        ({"size": "2KiB"}, True),
        ({"size": "2047B"}, False),
    ],
)
def test_limits(gates: dict[str, Any], met: bool) -> None:
    found = verdicts(gates, MEASURED)
    assert found and ("missed" not in found.values()) is met


def test_an_error_metric_is_worse_when_it_grows() -> None:
    measured = {"accuracy": 0.5, "reference_accuracy": 0.4}
    for limit, status in ((0.2, "met"), (0.05, "missed")):
        assert verdicts({"accuracy": {"max_drop": limit}}, measured, metric="mse") == {"accuracy.max_drop": status}
    assert verdicts({"accuracy": {"min": 0.4}}, measured, metric="mse") == {"accuracy.min": "missed"}
    better = {"accuracy": 0.3, "reference_accuracy": 0.4}
    assert verdicts({"accuracy": {"max_drop": 0}}, better, metric="mse") == {"accuracy.max_drop": "met"}


def test_a_figure_that_was_not_measured_is_pending() -> None:
    gates = {"accuracy": {"max_drop": 0.1, "min": 0.1}, "latency_ms": {"p50": 9.0}, "size": "1GiB", "cosine": 0.5}
    assert set(verdicts(gates, {}).values()) == {"pending"}


def test_without_gates_a_float_engine_must_still_resemble_its_reference() -> None:
    assert verdicts(None, {"cosine": 0.98}, precision="fp16") == {"cosine": "missed"}
    assert verdicts(None, {"cosine": 0.9901}, precision="fp32") == {"cosine": "met"}
    assert verdicts(None, {"cosine": 0.5}, precision="int8") == {}
