"""steps.calibrate: the scales document from data, from a table, and from a model that carries its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.calibration import files_of, model

from trtrecipe.errors import StepError
from trtrecipe.quant import scales, table
from trtrecipe.quant.histogram import Histogram
from trtrecipe.quant.methods import METHODS
from trtrecipe.steps import calibrate as step

RNG = np.random.default_rng(4)
X = RNG.standard_normal((30, 4)).astype(np.float32)


def calibrated(
    folder: Path, given: onnx.ModelProto | None = None, entries: dict[str, float] | None = None, **params: Any
) -> tuple[scales.Scales, dict[str, Any]]:
    """The document and what was measured; `entries` of a table, or else the samples X."""
    inputs = files_of(folder, given or model(), X)
    if entries is not None:
        inputs = {"onnx": inputs["onnx"], "table": folder / "calibration.table"}
        (folder / "calibration.table").write_bytes(table.dump(table.Table("8.5.2", table.ENTROPY_2, entries)))
        params["source"] = "table"
    told = dict(step.run(step.Params(**{"method": "entropy", **params}), inputs, folder))
    return scales.load(folder / "scales.json"), told


@pytest.mark.parametrize("method", METHODS)
def test_the_document_tells_threshold_range_values_and_what_is_clipped(method: str, tmp_path: Path) -> None:
    found, told = calibrated(tmp_path, method=method)
    histogram = Histogram()
    histogram.add(X)
    assert (found.method, found.samples) == (method, 30)
    assert set(found.thresholds) == {"x", "a"}
    assert found.thresholds["x"] == np.float32(METHODS[method](histogram))
    assert found.values == {"x": X.size, "a": X.size}
    assert found.clipped["x"] == histogram.above(found.thresholds["x"])
    assert found.ranges["x"] == (X.min(), X.max())
    assert found.ranges["m"] == (X.min(), X.max()) and found.ranges["r"] == (0, X.max())
    assert (told["samples"], told["tensors"], told["passes"], told["processes"]) == (30, 2, 1, 1)


def test_all_tensors_have_thresholds_where_quantization_is_implicit(tmp_path: Path) -> None:
    (tmp_path / "quantized").mkdir()
    some, _ = calibrated(tmp_path / "quantized")
    found, _ = calibrated(tmp_path, tensors="all")
    assert set(found.thresholds) == {"x", "m", "r", "a", "y"} == set(found.ranges) == set(some.ranges)
    for name in ("x", "a"):
        assert found.thresholds[name] == some.thresholds[name]
    assert found.ranges == some.ranges


def test_a_table_gives_the_scales_of_the_tensors_that_are_quantized(tmp_path: Path) -> None:
    """Bit for bit: these two are no scale of any float32 threshold."""
    given = [float(np.float32(value)) for value in (1 + 2**-23, 0.1234567)]
    entries = dict.fromkeys(["x", "m", "r", "a", "y"], 1.0) | {"x": given[0], "a": given[1]}
    found, told = calibrated(tmp_path, entries=entries)
    assert (found.method, found.samples, found.ranges, found.values) == ("table", 0, {}, {})
    assert list(scales.scale_of([found.thresholds["x"], found.thresholds["a"]])) == given
    assert set(found.thresholds) == {"x", "a"} and told["notes"] == []
    found, _ = calibrated(tmp_path, entries=entries, tensors="all")
    assert {name: float(scales.scale_of(threshold)) for name, threshold in found.thresholds.items()} == entries


def test_every_scale_survives_the_document(tmp_path: Path) -> None:
    """Those of a table, and those of thresholds that were found."""
    given = RNG.integers(0x00800000, 0x7B000000, 20_000, dtype=np.uint32).view(np.float32)
    for thresholds in (scales.LIMIT * given.astype(np.float64), given.astype(np.float64)):
        expected = scales.scale_of(thresholds)
        named = {str(number): float(threshold) for number, threshold in enumerate(thresholds)}
        (tmp_path / "scales.json").write_bytes(scales.dump(scales.Scales("table", 0, named)))
        found = scales.load(tmp_path / "scales.json").thresholds
        assert found == named
        assert np.array_equal(scales.scale_of([found[str(number)] for number in range(given.size)]), expected)
    assert np.array_equal(scales.scale_of(scales.LIMIT * given.astype(np.float64)), given)


def test_a_table_of_another_network_is_refused_with_names(tmp_path: Path) -> None:
    with pytest.raises(StepError) as caught:
        calibrated(tmp_path, entries={"conv1": 0.5, "conv2": 0.25})
    assert "no scale for 2 of the 2 tensors that need one: it is from another network" in caught.value.message
    assert "It lacks x, a; it has conv1, conv2" in caught.value.message
    entries = {f"t{number:02}": 1.0 for number in range(40)} | {"x": 1.0}
    with pytest.raises(StepError, match=r"1 of the 2 .* It lacks a; it has t00, .*, t09 and 31 more"):
        calibrated(tmp_path, entries=entries)


def test_what_a_table_has_beyond_the_graph_is_noted(tmp_path: Path) -> None:
    _, told = calibrated(tmp_path, entries={"x": 1.0, "a": 1.0, "(Unnamed Layer* 3) [Constant]_output": 1.0})
    assert told["notes"] == [
        "the calibration table also has 1 tensors that this graph lacks: (Unnamed Layer* 3) [Constant]_output"
    ]


def carrying() -> onnx.ModelProto:
    """The model with a pair of scale 0.5 on x."""
    given = model()
    given.graph.initializer.append(numpy_helper.from_array(np.float32(0.5), "scale"))
    given.graph.initializer.append(numpy_helper.from_array(np.int8(0), "zero"))
    pair = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], "q"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"], "d"),
    ]
    given.graph.node[0].input[0] = "d"
    nodes = [*pair, *given.graph.node]
    del given.graph.node[:]
    given.graph.node.extend(nodes)
    return given


@pytest.mark.parametrize("source", ["data", "model"])
def test_a_model_that_carries_its_scales_is_not_calibrated(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trtrecipe.quant.calibrate.observe", None)
    found, told = calibrated(tmp_path, carrying(), source=source)
    assert (found.method, found.samples, found.thresholds) == ("model", 0, {"x": 63.5})
    [note] = told["notes"]
    assert note.startswith("calibration skipped: the model carries its own scales")
    assert ("the calibration data was not used" in note) == (source == "data")


def test_contradictions_with_the_model_are_errors(tmp_path: Path) -> None:
    with pytest.raises(StepError, match=r"calibration\.table gives scales, and the model carries its own"):
        calibrated(tmp_path, carrying(), entries={"x": 1.0})
    with pytest.raises(StepError, match="implicit, and the model carries Q/DQ"):
        calibrated(tmp_path, carrying(), source="data", tensors="all")
    with pytest.raises(StepError, match="carries its own scales, and it has no Q/DQ"):
        calibrated(tmp_path, source="model")


def only_relu() -> onnx.ModelProto:
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("Relu", ["x"], ["y"], "relu")]
    ends = [value("x", TensorProto.FLOAT, ["n", 4])], [value("y", TensorProto.FLOAT, ["n", 4])]
    given = helper.make_model(helper.make_graph(nodes, "g", *ends), opset_imports=[helper.make_opsetid("", 13)])
    given.ir_version = 8
    return given


def test_a_model_with_nothing_to_quantize_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(StepError, match="nothing in this graph can be quantized"):
        calibrated(tmp_path, only_relu())


@pytest.mark.parametrize("jobs", [1, 2])
def test_where_only_ranges_are_wanted_nothing_has_to_be_quantizable(jobs: int, tmp_path: Path) -> None:
    inputs = files_of(tmp_path, only_relu(), X)
    told = step.run(step.Params(None, tensors="ranges"), inputs, tmp_path, jobs=jobs)
    found = scales.load(tmp_path / "scales.json")
    assert (found.method, found.samples, found.thresholds) == ("ranges", 30, {})
    assert found.ranges == {"x": (X.min(), X.max()), "y": (0, X.max())}
    assert told["notes"] == []
