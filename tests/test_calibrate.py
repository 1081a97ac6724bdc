"""quant.calibrate: which tensors are observed, that nothing but the values counts, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization.calibrate import CalibrationDataReader, create_calibrator
from support.calibration import files_of, model, observed, with_operator

from trtrecipe.data.batches import batches, load
from trtrecipe.engines.ort import OrtEngine
from trtrecipe.errors import StepError
from trtrecipe.graphs.interface import interface
from trtrecipe.quant import calibrate, counting
from trtrecipe.quant.activations import activations, names
from trtrecipe.quant.histogram import CELLS, MANTISSA, Histogram
from trtrecipe.quant.methods import METHODS
from trtrecipe.steps import calibrate as step

RNG = np.random.default_rng(3)
NORMAL = RNG.standard_normal((500, 4)).astype(np.float32)
FEW = NORMAL[:20]


def found(method: str, x: np.ndarray, given: onnx.ModelProto | None = None) -> dict[str, float]:
    return {name: METHODS[method](each) for name, each in observed(x, given).histograms.items()}


def fixed(given: onnx.ModelProto, batch: int) -> onnx.ModelProto:
    for value in (*given.graph.input, *given.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = batch
    return given


def test_minmax_is_the_largest_absolute_value_of_the_observed_tensors() -> None:
    assert found("minmax", NORMAL) == {"x": np.abs(NORMAL).max(), "a": NORMAL.max()}


def test_result_does_not_depend_on_the_batch_the_memory_or_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = observed(NORMAL).bytes()
    for memory in (1, 500_000, 1_000_000):
        assert observed(NORMAL, memory=memory).bytes() == whole
    assert observed(RNG.permutation(NORMAL)).bytes() == whole
    for size in (7, 32, 64):
        monkeypatch.setattr(counting, "BATCH", size)
        assert observed(NORMAL).bytes() == whole


@pytest.mark.parametrize("batch", ["n", 8])
def test_the_scales_file_is_the_same_for_every_order_memory_and_number_of_processes(
    batch: int | str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the batch is open samples run one by one: what Elu computes depends on the batch in its last bit."""
    monkeypatch.setattr(calibrate, "WORTH", 1e-9)
    given = model(batch=batch)
    if batch == "n":
        given.graph.node[1].op_type = "Elu"

    def scales(x: np.ndarray, name: str, processes: int = 1, **limits: int) -> bytes:
        inputs = files_of(tmp_path / name, given, x)
        told = step.run(step.Params("entropy"), inputs, tmp_path / name, **limits)
        assert told["processes"] == processes
        return (tmp_path / name / "scales.json").read_bytes()

    x = NORMAL[:205]
    whole = scales(x, "one")
    assert scales(x[::-1], "reversed", memory=128 << 20) == whole
    assert scales(RNG.permutation(x), "shuffled", memory=2 << 30, jobs=2, processes=2) == whole
    assert scales(x, "little memory", memory=3 << 20, jobs=3, processes=3) == whole
    assert scales(x, "less", memory=1, jobs=3, processes=1) == whole


def test_samples_run_one_by_one_where_the_batch_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def watched(self: OrtEngine, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        sizes.append(len(feeds["x"]))
        return run(self, feeds)

    run = OrtEngine.run
    monkeypatch.setattr(OrtEngine, "run", watched)
    assert observed(FEW).observed.runs == 20
    assert sizes == [1, 1, 2] + [1] * 20, "the first two are also run together"


def test_a_tensor_that_depends_on_other_samples_is_named() -> None:
    with pytest.raises(StepError, match="tensor a, the input of MatMul second, has other values when two") as caught:
        observed(NORMAL, with_operator("Softmax", axis=0))
    assert "first axis" in str(caught.value.hint)


def test_a_tensor_that_depends_on_its_own_sample_alone_is_not() -> None:
    """Wherever the samples are: the transposed tensor has them along its second axis, then mixed into its first."""
    for given in (with_operator("Softmax", axis=1), with_operator("Elu"), with_operator("HardSwish")):
        given.opset_import[0].version = 14
        observed(NORMAL[:3], given)
    given = with_operator("Transpose", perm=[1, 0])
    given.graph.node[3].CopyFrom(helper.make_node("MatMul", ["flat", "one"], ["y"], "second"))
    given.graph.node.insert(3, helper.make_node("Reshape", ["a", "rows"], ["flat"], "rows"))
    given.graph.initializer.append(numpy_helper.from_array(np.int64([-1, 1]), "rows"))
    given.graph.initializer.append(numpy_helper.from_array(np.ones((1, 1), np.float32), "one"))
    assert observed(NORMAL[:3], given).histograms["flat"].count == 12


def test_where_the_batch_is_fixed_samples_may_depend_on_each_other() -> None:
    assert observed(NORMAL[:4], fixed(with_operator("Softmax", axis=0), 2)).histograms["a"].count == 16


def test_parts_of_the_data_merge_to_the_whole() -> None:
    whole, seen = observed(NORMAL), [observed(part) for part in np.split(NORMAL, [3, 77, 400])]
    for name, histogram in whole.histograms.items():
        merged = Histogram()
        for part in reversed(seen):
            merged = merged.merge(part.histograms[name])
        assert merged.to_bytes() == histogram.to_bytes()


def test_groups_are_as_few_as_the_memory_allows() -> None:
    need = 2 * 4 * 4 + 8 * (1 + CELLS)  # twice the values of one sample, and a histogram
    for memory, passes in ((1 << 30, 1), (2 * need, 1), (2 * need - 1, 2), (1, 2)):
        seen = observed(FEW, memory=memory)
        assert (seen.observed.passes, seen.observed.runs) == (passes, 20 * passes)


def test_processes_share_the_memory_and_are_as_few_as_end_first() -> None:
    def plan(memory: int, jobs: int, batches: int = 100) -> tuple[int, int]:
        groups, processes = calibrate._plan(dict.fromkeys("abcdef", 10), calibrate.Limits(memory, jobs), batches)
        assert [name for group in groups for name in group] == list("abcdef")
        return len(groups), processes

    assert plan(60, 1) == (1, 1)
    assert plan(60, 2) == (1, 1), "two processes would each need two passes"
    assert plan(120, 2) == (1, 2)
    assert plan(150, 4) == (1, 2)
    assert plan(100, 5) == (3, 5), "three passes of five at once end before one pass of one"
    assert plan(20, 4) == (3, 1), "no more than two could have a tensor each"
    assert plan(5, 4) == (6, 1), "beyond the limit is only what cannot be helped"
    assert plan(600, 8, batches=3) == (1, 3)


def test_the_model_is_left_as_it_was() -> None:
    given = model()
    before = given.SerializeToString()
    observed(FEW, given, memory=1, everything=True)
    assert given.SerializeToString() == before


def test_every_fp32_activation_has_its_exact_range() -> None:
    given = with_operator("Neg")
    given.graph.node.extend(
        [
            helper.make_node("Cast", ["a"], ["whole"], "whole", to=TensorProto.INT64),
            helper.make_node("Split", ["a"], ["left", "right"], "halves", axis=1, num_outputs=2),
            helper.make_node("Constant", [], ["c"], "constant", value_float=3.0),
            helper.make_node("Compress", ["a", "never"], ["none"], "nothing", axis=0),
        ]
    )
    given.opset_import[0].version = 18
    given.graph.initializer.append(numpy_helper.from_array(np.array([False]), "never"))
    for everything in (False, True):
        seen = observed(FEW, given, everything=everything)
        relu = np.maximum(FEW, 0)
        expected = {"x": FEW, "m": FEW, "r": relu, "a": -relu, "left": -relu[:, :2], "right": -relu[:, 2:], "y": -relu}
        ranges = {name: (values.min() + 0.0, values.max() + 0.0) for name, values in expected.items()}
        assert seen.observed.ranges == ranges, "but for what is no FP32, constant, or always empty"
        assert set(seen.histograms) == ({*expected, "none"} if everything else {"x", "a"})


def test_sizes_are_known_or_measured() -> None:
    """What NonZero gives has as many rows as the data has values that are not 0."""
    given = model()
    nodes = [
        helper.make_node("NonZero", ["a"], ["where"], "where"),
        helper.make_node("Cast", ["where"], ["f"], "f", to=TensorProto.FLOAT),
    ]
    given.graph.node.extend(nodes)
    x = np.float32([[1, -1, 2, 3], [0, 0, 0, 0], [1, 1, 1, 1]])
    sizes = {name: each.size // 4 for name, each in activations(given, {"x": x}).items()}
    assert sizes == {"x": 12, "m": 12, "r": 12, "a": 12, "y": 12, "f": 2 * 7}
    assert names(given) == ["x", "m", "r", "a", "y", "f"]


def test_open_axes_beside_the_batch_take_the_sizes_of_the_samples() -> None:
    given = model()
    for value in (*given.graph.input, *given.graph.output):
        value.type.tensor_type.shape.dim.add().dim_value = 4
        value.type.tensor_type.shape.dim[1].dim_param = "rows"
    for rows in (1, 3):
        assert observed(NORMAL[: 5 * rows].reshape(5, rows, 4), given).histograms["a"].count == 5 * rows * 4


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
    assert observed(x, model(batch=16)).bytes() == observed(x).bytes()


def test_percentile_ignores_an_outlier_that_minmax_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "BATCH", 1000)
    x = np.tile(NORMAL, (250, 1))
    x[77, 2] = 1000
    assert np.abs(NORMAL).max() <= found("percentile", x)["x"] <= np.abs(NORMAL).max() * (1 + 2**-MANTISSA)
    assert found("minmax", x)["x"] == 1000


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


def test_entropy_cuts_a_long_tail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "BATCH", 64)
    x = np.tile(NORMAL, (40, 1))
    x[:3, 0] = 40
    assert 1.5 < found("entropy", x)["x"] < 20


@pytest.mark.parametrize("method", METHODS)
def test_tensor_that_is_always_zero_has_threshold_zero(method: str) -> None:
    assert found(method, FEW, model(weight=0.0))["a"] == 0


@pytest.mark.parametrize("method", METHODS)
def test_all_zero_data(method: str) -> None:
    assert found(method, np.zeros((3, 4), np.float32)) == {"x": 0, "a": 0}


def test_tensor_that_overflows_is_named_with_its_reader_its_sample_and_where_it_begins() -> None:
    x = FEW.copy()
    x[7] *= 1e30
    with pytest.raises(StepError) as caught:
        observed(x, model(weight=1e30))
    assert "tensor a, the input of MatMul second, becomes infinite" in caught.value.message
    assert "in sample 7 (" in caught.value.message
    assert "it begins at MatMul first (its output m)" in caught.value.message


@pytest.mark.parametrize("weight", [1.0, -1.0])
def test_nan_is_named_with_the_node_that_makes_it(weight: float) -> None:
    """Some values, or all of them."""
    given = model(weight=weight)
    given.graph.node[1].op_type = "Sqrt"
    x = np.abs(FEW)
    if weight == 1:
        x[:, 2] = -1
    with pytest.raises(StepError, match=r"becomes NaN .* it begins at Sqrt relu \(its output r\)"):
        observed(x, given)


def test_what_is_not_quantized_may_be_infinite_and_is_noted() -> None:
    """As a mask of attention is before its Softmax, and the branch that Where does not take."""
    given = model()
    nodes = [
        helper.make_node("Log", ["r"], ["log"], "log"),  # minus infinity where Relu gave 0
        helper.make_node("Softmax", ["log"], ["soft"], "soft"),
    ]
    given.graph.node.extend(nodes)
    x = FEW.copy()
    x[:, 0] = np.abs(x[:, 0])
    for everything in (False, True):
        for memory in (1, 1 << 30):
            seen = observed(x, given, memory=memory, everything=everything)
            assert "log" not in seen.observed.ranges and "log" not in seen.histograms
            [note] = [note for note in seen.observed.notes if "NaN or infinite" in note]
            assert "tensor log, made by Log log," in note
            assert seen.observed.ranges["r"] == (0.0, x.max())


def test_a_sample_that_no_memory_holds_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate, "physical_memory", lambda: 3 * 4 * 4 - 1)
    with pytest.raises(StepError, match=r"input x of 1 x \[4\] values takes .* this machine has"):
        observed(FEW)
    monkeypatch.setattr(calibrate, "physical_memory", lambda: 8 * (1 + CELLS) + 31)
    with pytest.raises(StepError, match="tensor x, made by the model's input, in one run takes"):
        observed(FEW)


def test_a_tensor_beyond_the_limit_is_counted_alone_and_noted() -> None:
    seen = observed(FEW, memory=1)
    assert seen.observed.passes == 2
    assert seen.observed.notes == (
        "2 of the tensors take more to observe than the limit of 0 MiB of memory, the largest 0 MiB (x, made by the "
        "model's input); each was observed alone",
    )
    assert not observed(FEW).observed.notes


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    observed(FEW)
    assert capfd.readouterr() == ("", "")
