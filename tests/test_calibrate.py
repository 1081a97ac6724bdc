"""quant.calibrate: which tensors are observed, and that nothing but the values counts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization.calibrate import CalibrationDataReader, create_calibrator

from trtrecipe.data.batches import Batch, Samples, batches
from trtrecipe.errors import StepError
from trtrecipe.graphs.interface import interface
from trtrecipe.quant.calibrate import Observed, observe
from trtrecipe.quant.histogram import MANTISSA, Histogram
from trtrecipe.quant.methods import METHODS
from trtrecipe.steps import calibrate as step

RNG = np.random.default_rng(3)
MEMORY = 1 << 30


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


def observed(x: np.ndarray, given: onnx.ModelProto | None = None, size: int = 1, memory: int = MEMORY) -> Observed:
    given = given or model()
    return observe(given, lambda: feeds(given, x, size), memory)


def found(method: str, x: np.ndarray, given: onnx.ModelProto | None = None, size: int = 1) -> dict[str, float]:
    return {name: METHODS[method](each) for name, each in observed(x, given, size).histograms.items()}


def all_bytes(seen: Observed) -> dict[str, bytes]:
    return {name: histogram.to_bytes() for name, histogram in seen.histograms.items()}


NORMAL = RNG.standard_normal((500, 4)).astype(np.float32)


def test_minmax_is_the_largest_absolute_value_of_the_observed_tensors() -> None:
    assert found("minmax", NORMAL) == {"x": np.abs(NORMAL).max(), "a": NORMAL.max()}


def test_result_does_not_depend_on_the_batch_the_memory_or_the_order() -> None:
    whole = all_bytes(observed(NORMAL))
    for size in (7, 32, 64):
        assert all_bytes(observed(NORMAL, size=size)) == whole
    for memory in (1, 500_000, 1_000_000):
        assert all_bytes(observed(NORMAL, memory=memory)) == whole
    assert all_bytes(observed(RNG.permutation(NORMAL))) == whole


def test_samples_run_one_by_one_as_elu_depends_on_the_batch(tmp_path: Path) -> None:
    """The step's result for one sample is that of the sample in any company."""
    given = model()
    given.graph.node[1].op_type = "Elu"
    onnx.save(given, tmp_path / "model.onnx")

    def scales(x: np.ndarray, name: str) -> bytes:
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "x.npy", x)
        inputs = {"onnx": tmp_path / "model.onnx", "data.x": tmp_path / name / "x.npy"}
        step.run(step.Params("minmax"), inputs, tmp_path / name)
        return (tmp_path / name / "scales.json").read_bytes()

    assert scales(NORMAL, "one") == scales(NORMAL[::-1], "other")


def test_parts_of_the_data_merge_to_the_whole() -> None:
    whole, parts = observed(NORMAL), [observed(part) for part in np.split(NORMAL, [3, 77, 400])]
    for name, histogram in whole.histograms.items():
        merged = Histogram()
        for part in reversed(parts):
            merged = merged.merge(part.histograms[name])
        assert merged.to_bytes() == histogram.to_bytes()


def test_groups_are_as_few_as_the_memory_allows() -> None:
    """Each group is one more time through the samples, after the one that looks at the first."""
    calls = []

    def counting() -> Iterator[Batch]:
        calls.append(1)
        return feeds(given, NORMAL[:3], 1)

    given = model()
    before = given.SerializeToString()
    for memory, times in ((MEMORY, 2), (1, 3)):
        calls.clear()
        observe(given, counting, memory)
        assert len(calls) == times
    assert given.SerializeToString() == before


def test_samples_that_fill_the_last_batch_do_not_count() -> None:
    """One sample in a batch of 16: percentile of 4 values, whichever of them is repeated."""
    x = np.float32([[1, 2, 3, 4], [0.1, 0.1, 0.1, 8]])
    assert all_bytes(observed(x, model(batch=16))) == all_bytes(observed(x))


def test_percentile_ignores_an_outlier_that_minmax_sees() -> None:
    x = np.tile(NORMAL, (250, 1))
    x[77, 2] = 1000
    assert np.abs(NORMAL).max() <= found("percentile", x, size=64)["x"] <= np.abs(NORMAL).max() * (1 + 2**-MANTISSA)
    assert found("minmax", x, size=64)["x"] == 1000


def test_minmax_is_that_of_onnxruntime(tmp_path: Path) -> None:
    class Reader(CalibrationDataReader):  # type: ignore[misc]
        samples = iter(np.split(NORMAL, len(NORMAL)))

        def get_next(self) -> dict[str, np.ndarray] | None:
            sample = next(self.samples, None)
            return None if sample is None else {"x": sample}

    onnx.save(model(), tmp_path / "model.onnx")
    augmented = str(tmp_path / "augmented.onnx")
    calibrator = create_calibrator(tmp_path / "model.onnx", ["MatMul"], augmented, extra_options={"symmetric": True})
    calibrator.collect_data(Reader())
    theirs = calibrator.compute_data().data
    assert found("minmax", NORMAL) == {name: theirs[name].range_value[1].item() for name in ("x", "a")}


def test_range_is_exact() -> None:
    histogram = observed(NORMAL).histograms["x"]
    assert (histogram.min, histogram.max, histogram.count) == (NORMAL.min(), NORMAL.max(), NORMAL.size)


def test_entropy_cuts_a_long_tail() -> None:
    x = np.tile(NORMAL, (40, 1))
    x[:3, 0] = 40
    assert 1.5 < found("entropy", x, size=64)["x"] < 20


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
        observe(model(), lambda: iter(()), MEMORY)


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    found("entropy", NORMAL[:20])
    assert capfd.readouterr().out == ""
