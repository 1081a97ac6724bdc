"""quant.calibrate: which tensors are observed, and their thresholds."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from trtrecipe.data.batches import Batch, Samples, batches
from trtrecipe.errors import StepError
from trtrecipe.graphs.interface import interface
from trtrecipe.quant.calibrate import BINS, METHODS, thresholds

RNG = np.random.default_rng(3)


def model(weight: float = 1.0, batch: int | str = "n") -> onnx.ModelProto:
    """x → MatMul w → Relu → Abs (not quantized) → MatMul by the unit matrix."""
    node = helper.make_node
    nodes = [
        node("MatMul", ["x", "w"], ["m"], "first"),
        node("Relu", ["m"], ["r"], "relu"),
        node("Abs", ["r"], ["a"], "abs"),
        node("MatMul", ["a", "unit"], ["y"], "second"),
    ]
    constants = [
        numpy_helper.from_array(np.eye(4, dtype=np.float32) * np.float32(weight), "w"),
        numpy_helper.from_array(np.eye(4, dtype=np.float32), "unit"),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "graph",
        [value("x", TensorProto.FLOAT, [batch, 4])],
        [value("y", TensorProto.FLOAT, [batch, 4])],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def feeds(given: onnx.ModelProto, x: np.ndarray, size: int = 16) -> Iterator[Batch]:
    return batches(Samples({"x": x}, None, len(x)), interface(given), {}, size)


def found(method: str, x: np.ndarray, given: onnx.ModelProto | None = None, size: int = 16) -> dict[str, float]:
    given = given or model()
    return thresholds(given, method, lambda: feeds(given, x, size))[0]


NORMAL = RNG.standard_normal((500, 4)).astype(np.float32)


def test_minmax_is_the_largest_absolute_value_of_the_observed_tensors() -> None:
    assert found("minmax", NORMAL) == {"x": np.abs(NORMAL).max(), "a": NORMAL.max()}


@pytest.mark.parametrize("method", METHODS)
def test_result_does_not_depend_on_the_batch(method: str) -> None:
    assert found(method, NORMAL, size=7) == found(method, NORMAL, size=64)


@pytest.mark.parametrize("method", METHODS)
def test_result_does_not_depend_on_the_order_of_samples(method: str) -> None:
    assert found(method, NORMAL) == found(method, NORMAL[::-1])


def test_samples_that_fill_the_last_batch_do_not_count() -> None:
    """One sample in a batch of 16: percentile of 4 values, whichever of them is repeated."""
    x = np.float32([[1, 2, 3, 4], [0.1, 0.1, 0.1, 8]])
    fixed = model(batch=16)
    assert found("percentile", x, fixed) == found("percentile", x)


def test_percentile_ignores_an_outlier_that_entropy_and_minmax_see() -> None:
    x = np.tile(NORMAL, (250, 1))
    x[77, 2] = 1000
    step = 1000 / BINS
    assert found("percentile", x)["x"] <= np.abs(NORMAL).max() + 2 * step
    assert found("minmax", x)["x"] == 1000


def test_percentile_counts_values_below_the_first_batchs_smallest() -> None:
    """ONNX Runtime alone takes its first batch's range for the bins and drops what is below."""
    x = np.concatenate([np.full((16, 4), 5, np.float32), np.full((40_000, 4), 1, np.float32)])
    x[0, 0] = 100
    assert found("percentile", x, size=16)["x"] == pytest.approx(5, abs=100 / BINS)


def test_entropy_cuts_a_long_tail() -> None:
    x = np.tile(NORMAL, (40, 1))
    x[:3, 0] = 40
    chosen = found("entropy", x)["x"]
    assert 1.5 < chosen < 20


@pytest.mark.parametrize("method", METHODS)
def test_tensor_that_is_always_zero_has_threshold_zero(method: str) -> None:
    assert found(method, NORMAL, model(weight=0.0))["a"] == 0


@pytest.mark.parametrize("method", METHODS)
def test_all_zero_data(method: str) -> None:
    assert found(method, np.zeros((3, 4), np.float32)) == {"x": 0, "a": 0}


def test_tensor_that_overflows_is_named_with_its_reader() -> None:
    with pytest.raises(StepError) as caught:
        found("minmax", NORMAL * 1e30, model(weight=1e30))
    assert "tensor a, the input of MatMul second" in caught.value.message


def test_nan_inside_the_graph_is_named() -> None:
    given = model()
    given.graph.node[2].op_type = "Log"  # of what Relu leaves: minus infinity; its square root below: NaN
    given.graph.node[1].op_type = "Sqrt"
    with pytest.raises(StepError, match="NaN or infinite"):
        found("minmax", NORMAL, given)


def test_no_samples() -> None:
    with pytest.raises(StepError, match="no calibration samples"):
        thresholds(model(), "minmax", lambda: iter(()))


def test_unknown_method() -> None:
    with pytest.raises(StepError, match="no calibration method is called best") as caught:
        found("best", NORMAL)
    assert caught.value.hint


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    found("entropy", NORMAL[:20])
    assert capfd.readouterr().out == ""
