"""quant.sites, quant.scales, quant.qdq: where pairs stand, and what they compute."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from trtrecipe.errors import StepError
from trtrecipe.graphs import files, keep
from trtrecipe.quant import scales
from trtrecipe.quant.qdq import insert_qdq
from trtrecipe.quant.sites import find_sites
from trtrecipe.steps import quantize

RNG = np.random.default_rng(5)


def array(name: str, *shape: int) -> onnx.TensorProto:
    return numpy_helper.from_array(RNG.standard_normal(shape).astype(np.float32), name)


def make(nodes, inputs, outputs, constants, opset: int = 13) -> onnx.ModelProto:
    values = [[helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in group] for group in (inputs, outputs)]
    graph = helper.make_graph(nodes, "graph", *values, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def residual() -> onnx.ModelProto:
    """Conv, Relu, Conv, Add with the first Relu, Relu, Gemm: every rule has something to break."""
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["c1"], "conv1", pads=[1] * 4),
        node("Relu", ["c1"], ["r1"], "relu1"),
        node("Conv", ["r1", "w2", "b2"], ["c2"], "conv2", pads=[1] * 4),
        node("Conv", ["r1", "w3"], ["c3"], "conv3", pads=[1] * 4, group=16),
        node("Add", ["c2", "c3"], ["s"], "sum"),
        node("Add", ["s", "r1"], ["a"], "residual"),
        node("Relu", ["a"], ["r2"], "relu2"),
        node("GlobalAveragePool", ["r2"], ["p"], "pool"),
        node("Flatten", ["p"], ["f"], "flatten"),
        node("Gemm", ["f", "g", "gb"], ["y"], "gemm", transB=1),
    ]
    constants = [array("w1", 16, 3, 3, 3), array("b1", 16), array("w2", 16, 16, 3, 3), array("b2", 16)]
    constants += [array("w3", 16, 1, 3, 3), array("g", 20, 16), array("gb", 20)]
    return make(nodes, [("x", ["n", 3, 6, 6])], [("y", ["n", 20])], constants)


THRESHOLDS = {"x": 2.5, "r1": 4.0, "c2": 5.0, "r2": 4.5, "f": 3.0}


def producers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {name: node for node in model.graph.node for name in node.output}


def consumers(model: onnx.ModelProto, name: str) -> list[str]:
    return [node.op_type for node in model.graph.node if name in node.input]


def values(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


@pytest.fixture(scope="module")
def quantized() -> onnx.ModelProto:
    return insert_qdq(residual(), THRESHOLDS)[0]


def test_activation_and_weight_inputs_come_from_a_pair(quantized: onnx.ModelProto) -> None:
    made = producers(quantized)
    for node in quantized.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            for name in node.input[:2]:
                dequantize = made[name]
                assert dequantize.op_type == "DequantizeLinear"
                assert made[dequantize.input[0]].op_type == "QuantizeLinear"


def test_no_pair_stands_between_a_conv_and_what_follows_it(quantized: onnx.ModelProto) -> None:
    for name, reader in (("c1", "Relu"), ("c3", "Add"), ("s", "Add"), ("a", "Relu")):
        assert consumers(quantized, name) == [reader]


def test_a_sum_that_no_convolution_feeds_reads_the_float_tensor(quantized: onnx.ModelProto) -> None:
    assert list(next(n for n in quantized.graph.node if n.name == "residual").input) == ["s", "r1"]


def test_biases_are_untouched(quantized: onnx.ModelProto) -> None:
    for bias, operator in (("b1", "Conv"), ("b2", "Conv"), ("gb", "Gemm")):
        assert consumers(quantized, bias) == [operator]


def test_one_pair_serves_all_consumers_of_an_activation(quantized: onnx.ModelProto) -> None:
    assert consumers(quantized, "r1").count("QuantizeLinear") == 1
    convs = {n.name: n for n in quantized.graph.node if n.op_type == "Conv"}
    assert convs["conv2"].input[0] == convs["conv3"].input[0]


def test_zero_points_are_int8_zero_and_scales_float32(quantized: onnx.ModelProto) -> None:
    held = values(quantized)
    pairs = [n for n in quantized.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(pairs) == 2 * (5 + 4)
    for node in pairs:
        scale, zero = held[node.input[1]], held[node.input[2]]
        assert scale.dtype == np.float32
        assert zero.dtype == np.int8
        assert not zero.any()


def test_activation_scale_is_threshold_over_127(quantized: onnx.ModelProto) -> None:
    assert values(quantized)["r1/scale"] == np.float32(4.0) / np.float32(127)


def test_weights_stay_float32(quantized: onnx.ModelProto) -> None:
    before, after = values(residual()).keys(), values(quantized)
    assert all(after[name].dtype == np.float32 for name in before)


def test_names_nodes_and_types_of_the_float_graph_survive(quantized: onnx.ModelProto) -> None:
    original = residual()
    assert set(producers(original)) <= set(producers(quantized))
    kept = [n.name for n in quantized.graph.node if not n.op_type.endswith("Linear")]
    assert kept == [n.name for n in original.graph.node]
    assert list(quantized.graph.input) == list(original.graph.input)
    assert list(quantized.graph.output) == list(original.graph.output)


@pytest.mark.parametrize(
    ("operator", "shape", "attributes", "axis"),
    [
        ("Conv", (6, 4, 3, 3), {}, 0),
        ("Conv", (4, 1, 3, 3), {"group": 4}, 0),
        ("ConvTranspose", (4, 6, 3, 3), {}, 1),
        ("ConvTranspose", (4, 3, 3, 3), {"group": 2}, None),
        ("Gemm", (4, 6), {}, 1),
        ("Gemm", (6, 4), {"transB": 1}, 0),
        ("MatMul", (4, 6), {}, 1),
        ("MatMul", (3, 4, 6), {}, 2),
        ("MatMul", (4,), {}, None),
    ],
)
def test_channel_axis(operator: str, shape: tuple[int, ...], attributes: dict[str, int], axis: int | None) -> None:
    spatial = operator.startswith("Conv")
    node = helper.make_node(operator, ["x", "w"], ["y"], "node", **attributes)
    weights = array("w", *shape)
    size = ["n", 4, 5, 5] if spatial else [3, 2, 4] if len(shape) == 3 else ["n", 4]
    model = make([node], [("x", size)], [("y", [f"d{i}" for i in range(len(size) - (len(shape) == 1))])], [weights])
    assert [site.axis for site in find_sites(model).sites] == [axis]
    quantized, _ = insert_qdq(model, {"x": 1.0})
    expected = numpy_helper.to_array(weights)
    axes = tuple(i for i in range(expected.ndim) if i != axis) if axis is not None else None
    np.testing.assert_array_equal(
        values(quantized)["w/scale"], (np.abs(expected).max(axis=axes) / np.float32(127)).astype(np.float32)
    )


def test_zero_channel_gets_scale_one() -> None:
    model = residual()
    weights = values(model)["w1"].copy()
    weights[2] = 0
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights, "w1"))
    assert values(insert_qdq(model, THRESHOLDS)[0])["w1/scale"][2] == 1


def test_tensor_that_was_always_zero_gets_scale_one_and_a_note() -> None:
    quantized, notes = insert_qdq(residual(), {**THRESHOLDS, "f": 0.0})
    assert values(quantized)["f/scale"] == 1
    assert len(notes) == 1
    assert "tensor f" in notes[0]
    assert "gemm" in notes[0]


def test_smallest_thresholds_keep_a_normal_scale() -> None:
    assert scales.scale_of(np.float32(1e-44)) == np.finfo(np.float32).tiny


def test_taken_names_are_left_alone() -> None:
    model = residual()
    model.graph.node[1].output[0] = "x/scale"
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name == "r1":
                node.input[index] = "x/scale"
    quantized, _ = insert_qdq(model, {**THRESHOLDS, "x": 1.0, "x/scale": 2.0})
    assert values(quantized)["x/scale_1"] == np.float32(1.0) / np.float32(127)
    assert values(quantized)["x/scale/scale"] == np.float32(2.0) / np.float32(127)


def test_weights_shared_by_two_nodes_share_a_pair() -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"], "a"), helper.make_node("MatMul", ["h", "w"], ["y"], "b")]
    model = make(nodes, [("x", ["n", 4])], [("y", ["n", 4])], [array("w", 4, 4)])
    quantized, _ = insert_qdq(model, {"x": 1.0, "h": 1.0})
    assert consumers(quantized, "w") == ["QuantizeLinear"]


def test_weights_from_a_constant_node() -> None:
    constant = helper.make_node("Constant", [], ["w"], value=array("", 4, 4))
    model = make([constant, helper.make_node("MatMul", ["x", "w"], ["y"], "m")], [("x", [1, 4])], [("y", [1, 4])], [])
    quantized, _ = insert_qdq(model, {"x": 1.0})
    assert consumers(quantized, "w") == ["QuantizeLinear"]


def test_product_of_a_tensor_with_itself_reads_one_pair() -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"], "m"), helper.make_node("MatMul", ["h", "h"], ["y"], "hh")]
    model = make(nodes, [("x", [4, 4])], [("y", [4, 4])], [array("w", 4, 4)])
    quantized, _ = insert_qdq(model, {"x": 1.0, "h": 2.0})
    assert list(next(n for n in quantized.graph.node if n.name == "hh").input) == ["h/dequantized"] * 2


def refused(model: onnx.ModelProto, thresholds: dict[str, float]) -> StepError:
    with pytest.raises(StepError) as caught:
        insert_qdq(model, thresholds)
    return caught.value


def test_missing_scale_names_tensor_and_node() -> None:
    error = refused(residual(), {"x": 1.0, "f": 1.0})
    assert "tensor r1" in error.message
    assert "conv2" in error.message


def test_quantized_model_is_refused() -> None:
    error = refused(insert_qdq(residual(), THRESHOLDS)[0], THRESHOLDS)
    assert "already quantized" in error.message


def test_old_opset_is_refused() -> None:
    assert (
        "opset 12"
        in refused(
            make(
                [helper.make_node("MatMul", ["x", "w"], ["y"])],
                [("x", [1, 4])],
                [("y", [1, 4])],
                [array("w", 4, 4)],
                12,
            ),
            {"x": 1.0},
        ).message
    )


def test_nothing_to_quantize_is_refused_saying_what_is_there() -> None:
    error = refused(make([helper.make_node("Relu", ["x"], ["y"])], [("x", [1])], [("y", [1])], []), {})
    assert "Relu" in error.message
    assert error.hint


def test_weights_with_nan_are_refused() -> None:
    model = residual()
    broken = values(model)["w2"].copy()
    broken[0, 0, 0, 0] = np.nan
    model.graph.initializer[2].CopyFrom(numpy_helper.from_array(broken, "w2"))
    assert "w2" in refused(model, THRESHOLDS).message


def test_numpy_computes_what_onnx_runtime_does() -> None:
    """The whole net, pairs included, in NumPy; x.5 steps are among the values, so the rounding rule shows."""
    node = helper.make_node
    nodes = [
        node("MatMul", ["x", "w"], ["m"], "m"),
        node("Relu", ["m"], ["r"], "r"),
        node("Gemm", ["r", "g", "b"], ["y"], "g", transB=1),
    ]
    constants = [array("w", 8, 6), array("g", 4, 6), array("b", 4)]
    model = make(nodes, [("x", [64, 8])], [("y", [64, 4])], constants)
    w, g, b = (numpy_helper.to_array(tensor) for tensor in constants)
    thresholds = {"x": 127 / 8, "r": 9.0}
    x = (RNG.integers(-300, 300, (64, 8)) / 16).astype(np.float32)
    fake = scales.fake_quantize
    m = fake(x, scales.scale_of(thresholds["x"])) @ fake(w, scales.weight_scales(w, 1), 1)
    r = np.maximum(m, 0)
    y = fake(r, scales.scale_of(thresholds["r"])) @ fake(g, scales.weight_scales(g, 0), 0).T + b
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(insert_qdq(model, thresholds)[0].SerializeToString(), options)
    np.testing.assert_allclose(session.run(None, {"x": x})[0], y, rtol=0, atol=2e-5 * np.abs(y).max())


def test_half_steps_round_to_even_and_values_saturate() -> None:
    given = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 300, -300], np.float32)
    expected = [0, 2, 2, 0, -2, 127, -128]
    np.testing.assert_array_equal(scales.fake_quantize(given, np.float32(1)), np.float32(expected))


def test_scales_document_round_trips_as_shortest_decimals(tmp_path: Path) -> None:
    thresholds = {"b": float(np.float32(0.1)), "a": 3.0, "c": 0.0}
    data = scales.dump(scales.Scales("minmax", 7, thresholds, {"a": (-3.0, 2.5)}))
    assert data == (
        b'{"method":"minmax","ranges":{"a":[-3.0,2.5]},"samples":7,"schema":"trtrecipe/scales/v1",'
        b'"tensors":{"a":{"max":2.5,"min":-3.0,"threshold":3.0},"b":{"threshold":0.1},"c":{"threshold":0.0}}}'
    )
    path = tmp_path / "scales.json"
    path.write_bytes(data)
    loaded = scales.load(path)
    assert (loaded.method, loaded.samples, loaded.ranges) == ("minmax", 7, {"a": (-3.0, 2.5)})
    assert {name: np.float32(value) for name, value in loaded.thresholds.items()} == {
        name: np.float32(value) for name, value in thresholds.items()
    }


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"schema": "trtrecipe/scales/v2"}',
        json.dumps({"schema": scales.SCHEMA, "method": "minmax", "samples": 1, "tensors": {"x": {"threshold": -1}}}),
        json.dumps({"schema": scales.SCHEMA, "method": "minmax", "samples": 1, "tensors": {"x": {"threshold": 1e60}}}),
        json.dumps({"schema": scales.SCHEMA, "method": "minmax", "samples": 1, "tensors": ["x"]}),
        '{"schema": "trtrecipe/scales/v1", "method": "minmax", "samples": 1, "tensors": '
        '{"x": {"threshold": 1, "min": 1, "max": 0}}}',
        '{"schema": "trtrecipe/scales/v1", "method": "minmax", "samples": 1, "tensors": '
        '{"x": {"threshold": 1, "min": 1}}}',
    ],
)
def test_damaged_scales_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "scales.json"
    path.write_text(text)
    with pytest.raises(StepError, match="scales"):
        scales.load(path)


def step(folder: Path, model: onnx.ModelProto, kept: dict[str, str] | None) -> tuple[onnx.ModelProto, list[str]]:
    files.save(model, folder / "in.onnx")
    inputs = {"onnx": folder / "in.onnx", "scales": folder / "scales.json"}
    inputs["scales"].write_bytes(scales.dump(scales.Scales("minmax", 1, THRESHOLDS)))
    if kept is not None:
        inputs["keep"] = folder / "keep.json"
        inputs["keep"].write_bytes(keep.dump(kept))
    measured = quantize.run(quantize.Params(), inputs, folder)
    return files.load(folder / "model.onnx"), measured["notes"]


def test_step_leaves_kept_nodes_alone(tmp_path: Path) -> None:
    model = residual()
    result, notes = step(tmp_path, model, {"conv2": "fp32", "relu2": "fp16"})
    assert result == insert_qdq(model, THRESHOLDS, ["conv2"])[0]
    assert list(next(n for n in result.graph.node if n.name == "conv2").input) == ["r1", "w2", "b2"]
    assert notes == []


def test_step_needs_no_list_of_kept_nodes(tmp_path: Path) -> None:
    model = residual()
    assert step(tmp_path, model, None)[0] == insert_qdq(model, THRESHOLDS)[0]


def test_step_passes_a_quantized_graph_through(tmp_path: Path) -> None:
    given = insert_qdq(residual(), THRESHOLDS)[0]
    result, notes = step(tmp_path, given, {})
    assert result == given
    assert notes == []


def test_kept_node_needs_no_scale() -> None:
    thresholds = {name: value for name, value in THRESHOLDS.items() if name != "f"}
    result, _ = insert_qdq(residual(), thresholds, ["gemm"])
    assert "f" not in {node.input[0] for node in result.graph.node if node.op_type == "QuantizeLinear"}
