"""quant.calibrate: which tensors are observed, and that nothing but the values counts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization.calibrate import CalibrationDataReader, create_calibrator

from trtrecipe.data.batches import Batch, Samples, batches, load
from trtrecipe.errors import StepError
from trtrecipe.graphs.interface import interface
from trtrecipe.quant.calibrate import Observed, _declared, _measured, observe
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


def test_the_scales_file_is_the_same_for_every_order_and_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Samples run one by one: what Elu computes depends on the batch in its last bit."""
    sizes = []

    def watched(*arguments: object) -> Iterator[Batch]:
        for batch in batches(*arguments):
            sizes.append(batch.size)
            yield batch

    def scales(x: np.ndarray, name: str, **limits: int) -> bytes:
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "x.npy", x)
        inputs = {"onnx": tmp_path / "model.onnx", "data.x": tmp_path / name / "x.npy"}
        step.run(step.Params("entropy"), inputs, tmp_path / name, **limits)
        return (tmp_path / name / "scales.json").read_bytes()

    given = model()
    given.graph.node[1].op_type = "Elu"
    onnx.save(given, tmp_path / "model.onnx")
    monkeypatch.setattr("trtrecipe.data.batches.batches", watched)
    assert scales(NORMAL, "one") == scales(NORMAL[::-1], "other") == scales(NORMAL, "little memory", memory=1)
    assert set(sizes) == {1}


def over_the_batch(operator: str, **attributes: object) -> onnx.ModelProto:
    """The model with `operator` instead of its Abs."""
    given = model()
    given.graph.node[2].CopyFrom(helper.make_node(operator, ["r"], ["a"], "abs", **attributes))
    return given


def test_a_tensor_that_depends_on_other_samples_is_named() -> None:
    with pytest.raises(StepError, match="tensor a, the input of MatMul second, has other values when two") as caught:
        observed(NORMAL, over_the_batch("Softmax", axis=0))
    assert "first axis" in caught.value.hint


def test_a_tensor_that_depends_on_its_own_sample_alone_is_not() -> None:
    """Wherever the samples are: the transposed tensor has them along its second axis, then mixed into its first."""
    for given in (over_the_batch("Softmax", axis=1), over_the_batch("Elu"), over_the_batch("HardSwish")):
        given.opset_import[0].version = 14
        observed(NORMAL[:3], given)
    given = over_the_batch("Transpose", perm=[1, 0])
    given.graph.node[3].CopyFrom(helper.make_node("MatMul", ["flat", "one"], ["y"], "second"))
    given.graph.node.insert(3, helper.make_node("Reshape", ["a", "rows"], ["flat"], "rows"))
    given.graph.initializer.append(numpy_helper.from_array(np.int64([-1, 1]), "rows"))
    given.graph.initializer.append(numpy_helper.from_array(np.ones((1, 1), np.float32), "one"))
    assert observed(NORMAL[:3], given).histograms["flat"].count == 12


def test_where_the_batch_is_fixed_samples_may_depend_on_each_other() -> None:
    fixed = over_the_batch("Softmax", axis=0)
    for value in (*fixed.graph.input, *fixed.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 2
    assert observed(NORMAL[:4], fixed).histograms["a"].count == 16


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


def test_sizes_are_declared_or_measured() -> None:
    """The size of Abs's output is not in the graph at first; a wrong guess of it would pass unseen elsewhere."""
    bare, told = model(), onnx.shape_inference.infer_shapes(model())
    for size, fixed in ((1, False), (5, False), (16, True)):
        batch = next(feeds(model(batch=16) if fixed else bare, NORMAL, size))
        expected = {"x": 4 * size, "a": 4 * size}
        assert _declared(bare, ["x", "a"], batch) == {"x": 4 * size}
        assert _declared(told, ["x", "a"], batch) == expected
        assert _measured(bare, ["x", "a"], batch) == expected


def test_a_batch_leaves_no_pages_of_the_samples_file_behind(tmp_path: Path) -> None:
    """Memory must not grow with the number of samples."""
    if not Path("/proc/self/smaps").is_file():
        pytest.skip("only Linux tells")
    np.save(tmp_path / "x.npy", np.ones((50_000, 64), np.float32))

    def resident() -> int:
        lines = iter(Path("/proc/self/smaps").read_text().splitlines())
        found = next(line for line in lines if line.endswith("x.npy"))
        assert found
        return next(int(line.split()[1]) for line in lines if line.startswith("Rss:"))

    given = interface(model())
    wide = replace(given, inputs=(replace(given.inputs[0], shape=("n", 64)),))
    samples = load({"data.x": tmp_path / "x.npy"}, wide, {})
    assert resident() == 0
    most = max(resident() for _ in batches(samples, wide, {}, 5_000))
    assert most == 0
    assert samples.arrays["x"].sum() == 50_000 * 64


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
    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
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
