"""prepare: each pass keeps what the graph computes, and removes what it promises to."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper, parser

from trtrecipe.graphs import fold_constants as folding
from trtrecipe.graphs import passes
from trtrecipe.graphs.edit import all_nodes
from trtrecipe.graphs.passes import simplified as simplified_by_name
from trtrecipe.graphs.passes import simplify
from trtrecipe.preflight import repairs
from trtrecipe.recipe.model import PassName
from trtrecipe.steps import lower, prepare

HEAD = '<ir_version: 8, opset_import: ["" : 13]> '
RANDOM = np.random.default_rng(7)


def run(model: ModelProto, feeds: dict[str, Any]) -> list[Any]:
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


def simplified(model: ModelProto, feeds: dict[str, Any], tolerance: float = 1e-5) -> ModelProto:
    """The simplified model, once it is shown to compute the same and to be left alone by a second round."""
    before = model.SerializeToString(deterministic=True)
    result = simplify(model)
    assert model.SerializeToString(deterministic=True) == before
    for expected, got in zip(run(model, feeds), run(result, feeds), strict=True):
        np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)
    assert [value.name for value in result.graph.output] == [value.name for value in model.graph.output]
    assert simplify(result).SerializeToString(deterministic=True) == result.SerializeToString(deterministic=True)
    return result


def operators(model: ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def image(*shape: int) -> dict[str, Any]:
    return {"x": RANDOM.standard_normal(shape).astype(np.float32)}


def conv_model(
    tail: str,
    constants: dict[str, Any],
    weight: tuple[int, ...] = (4, 3, 3, 3),
    op: str = "Conv",
    attributes: str = "",
    bias: bool = True,
) -> ModelProto:
    """x [2,3,6,6] → Conv → `tail`, which makes y of t."""
    names = "x, w, b" if bias else "x, w"
    inputs = constants.pop("inputs", 3)
    model = parser.parse_model(
        f"{HEAD} g (float[2,{inputs},6,6] x) => (float[N,C,H,W] y) {{ t = {op}{attributes}({names}) {tail} }}"
    )
    channels = constants.pop("channels", weight[0])
    arrays = {"w": RANDOM.standard_normal(weight), **constants}
    if bias:
        arrays["b"] = RANDOM.standard_normal(channels)
    for name, value in arrays.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value, np.float32), name))
    return model


def per_channel(channels: int, shape: str) -> Any:
    values = RANDOM.uniform(0.5, 2, channels)
    return {
        "[1,C,1,1]": values.reshape(1, -1, 1, 1),
        "[C,1,1]": values.reshape(-1, 1, 1),
        "scalar": np.array(1.5),
        "[1]": np.array([1.5]),
        "[1,1,1,1]": np.full((1, 1, 1, 1), 1.5),
    }[shape]


CONVOLUTIONS = {
    "plain": {"weight": (4, 3, 3, 3)},
    "no bias": {"weight": (4, 3, 3, 3), "bias": False},
    "grouped": {"weight": (4, 2, 3, 3), "attributes": "<group = 2>", "inputs": 4},
    "depthwise": {"weight": (4, 1, 3, 3), "attributes": "<group = 4>", "inputs": 4},
    "transposed": {"op": "ConvTranspose", "weight": (3, 4, 3, 3), "channels": 4},
    "transposed, grouped": {
        "op": "ConvTranspose",
        "weight": (4, 2, 3, 3),
        "attributes": "<group = 2>",
        "inputs": 4,
        "channels": 4,
    },
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
@pytest.mark.parametrize("shape", ["[1,C,1,1]", "[C,1,1]", "scalar", "[1]", "[1,1,1,1]"])
@pytest.mark.parametrize(
    "tail",
    [
        "y = Mul(t, c)",
        "y = Add(c, t)",
        "y = Sub(t, c)",
        "y = Sub(c, t)",
        "y = Div(t, c)",
        "m = Mul(t, c) y = Add(m, c)",
    ],
)
def test_constants_behind_a_convolution_are_folded(kind: str, shape: str, tail: str) -> None:
    options = dict(CONVOLUTIONS[kind])
    inputs, channels = options.pop("inputs", 3), options.pop("channels", 4)
    constants = {"c": per_channel(4, shape), "inputs": inputs, "channels": channels}
    model = conv_model(tail, constants, **options)
    result = simplified(model, image(2, inputs, 6, 6), 1e-4)
    assert operators(result) == [options.get("op", "Conv")]
    assert result.graph.node[0].name == "t" and list(result.graph.node[0].output) == ["y"]


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_batch_normalization_is_folded(kind: str) -> None:
    options = dict(CONVOLUTIONS[kind])
    inputs, channels = options.pop("inputs", 3), options.pop("channels", 4)
    values = {name: RANDOM.uniform(0.5, 2, 4) for name in ("gamma", "beta", "mean", "variance")}
    constants = {**values, "inputs": inputs, "channels": channels}
    tail = "y = BatchNormalization<epsilon = 0.01>(t, gamma, beta, mean, variance)"
    result = simplified(conv_model(tail, constants, **options), image(2, inputs, 6, 6), 1e-4)
    assert operators(result) == [options.get("op", "Conv")]


@pytest.mark.parametrize(
    ("tail", "value"),
    [
        ("y = Mul(t, c)", np.ones((1, 1, 4, 4)) * 2),  # along the image, not along channels
        ("y = Mul(t, c)", np.arange(4.0)),  # along the last axis
        ("y = Add(t, c)", np.ones((1, 1, 4, 1, 1))),  # gives the result one axis more
        ("y = Div(c, t)", np.array(2.0)),
        ("y = Div(t, c)", np.array([1.0, 0.0, 2.0, 1.0]).reshape(4, 1, 1)),
        ("y = Mul(t, t)", np.array(2.0)),
        ("m = Mul(t, c) y = Add(m, t)", np.array(2.0)),  # t has another reader
        ("y = Mul(t, c)", np.array(3e38)),  # the weights would overflow
    ],
)
def test_what_is_no_function_of_the_channel_stays(tail: str, value: Any) -> None:
    model = conv_model(tail, {"c": value, "w": np.full((4, 3, 3, 3), 2.0)})
    if value.ndim == 5:
        model.graph.output[0].type.tensor_type.shape.dim.add()
    with np.errstate(all="ignore"):
        result = simplify(model)
        for expected, got in zip(run(model, image(2, 3, 6, 6)), run(result, image(2, 3, 6, 6)), strict=True):
            assert expected.shape == got.shape
    assert len(operators(result)) == len(operators(model))


def test_weights_that_others_read_are_copied_not_changed() -> None:
    text = (
        HEAD + "g (float[1,3,4,4] x) => (float[1,3,2,2] y, float[1,3,2,2] z) "
        "{ z = Conv(x, w) t = Conv(x, w) y = Mul(t, c) }"
    )
    model = parser.parse_model(text)
    model.graph.initializer.append(numpy_helper.from_array(RANDOM.standard_normal((3, 3, 3, 3)).astype("f4"), "w"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(3, np.float32), "c"))
    result = simplified(model, image(1, 3, 4, 4))
    assert operators(result) == ["Conv", "Conv"]
    assert {tensor.name for tensor in result.graph.initializer} == {"w", "t/W"}


def test_a_convolution_that_is_an_output_keeps_its_values() -> None:
    text = HEAD + "g (float[1,3,4,4] x) => (float[1,3,2,2] t, float[1,3,2,2] y) { t = Conv(x, w) y = Mul(t, c) }"
    model = parser.parse_model(text)
    model.graph.initializer.append(numpy_helper.from_array(RANDOM.standard_normal((3, 3, 3, 3)).astype("f4"), "w"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(3, np.float32), "c"))
    assert operators(simplified(model, image(1, 3, 4, 4))) == ["Conv", "Mul"]


def test_constants_are_computed_now() -> None:
    model = parser.parse_model(
        HEAD + "g (float[2,3] x) => (float[2,3] y) <float[3] a = {1.0, 2.0, 3.0}, int64[1] axes = {0}> "
        "{ s = Sqrt(a) u = Unsqueeze(s, axes) m = Mul(u, u) k = Cast<to = 1>(m) y = Add(x, k) }"
    )
    result = simplified(model, image(2, 3))
    assert operators(result) == ["Add"]
    assert [tensor.name for tensor in result.graph.initializer] == ["m"]  # the tensor's own name


def test_folding_does_not_blow_up_the_graph() -> None:
    text = (
        HEAD + "g (float[1] x) => (float[R,C] y) <int64[2] shape = {4096, 4096}> "
        "{ c = ConstantOfShape(shape) y = Add(x, c) }"
    )
    result = simplify(parser.parse_model(text))
    assert operators(result) == ["ConstantOfShape", "Add"]
    small = parser.parse_model(text.replace("4096", "16"))
    assert operators(simplified(small, image(1))) == ["Add"]
    assert 16 * 16 * 4 < folding.LARGEST < 4096 * 4096 * 4


def test_random_numbers_are_not_constants() -> None:
    model = parser.parse_model(
        HEAD + "g (float[4] x) => (float[4] y) <float[4] p = {0.5, 0.5, 0.5, 0.5}> "
        "{ r = RandomNormalLike(p) y = Add(x, r) }"
    )
    assert operators(simplify(model)) == ["RandomNormalLike", "Add"]


def test_outputs_that_are_constant_stay_outputs() -> None:
    model = parser.parse_model(
        HEAD + "g (float[2] x) => (float[2] y, float[2] k) <float[2] a = {1.0, 4.0}> { k = Sqrt(a) y = Add(x, k) }"
    )
    simplified(model, image(2))


def test_nodes_that_do_nothing_go() -> None:
    model = parser.parse_model(
        HEAD + "g (float[2,3] x) => (float[2,3] y, float[2,3] z) "
        "{ a = Identity(x) b = Cast<to = 1>(a) c = Relu(b) d = Dropout(c) e = Transpose<perm = [0, 1]>(d) "
        "y = Identity(e) z = Neg(d) }"
    )
    result = simplified(model, image(2, 3))
    assert operators(result) == ["Relu", "Neg"]
    assert [list(node.output) for node in result.graph.node] == [["y"], ["z"]]


def test_what_only_looks_idle_stays() -> None:
    model = parser.parse_model(
        HEAD + "g (float[2,3] x, bool train) => (float[2,3] y, float[2,3] z, int32[2,3] i, float[2,3] same) "
        "<float ratio = {0.5}> "
        "{ y = Dropout(x, ratio, train) i = Cast<to = 6>(x) z = Relu(x) same = Identity(x) }"
    )
    assert sorted(operators(simplify(model))) == ["Cast", "Dropout", "Identity", "Relu"]


@pytest.mark.parametrize(
    ("first", "second", "left"),
    [([0, 2, 3, 1], [0, 3, 1, 2], 0), ([0, 2, 3, 1], [0, 2, 3, 1], 1), ([1, 0, 2, 3], [1, 0, 2, 3], 0)],
)
def test_transposes_in_a_row(first: list[int], second: list[int], left: int) -> None:
    model = parser.parse_model(
        f"{HEAD} g (float[1,2,3,4] x) => (float[A,B,C,D] y) "
        f"{{ r = Relu(x) a = Transpose<perm = {first}>(r) b = Transpose<perm = {second}>(a) y = Neg(b) }}"
    )
    assert operators(simplified(model, image(1, 2, 3, 4))).count("Transpose") == left


def test_a_transpose_that_others_read_stays() -> None:
    model = parser.parse_model(
        HEAD + "g (float[2,3] x) => (float[2,3] y, float[3,2] z) "
        "{ a = Transpose<perm = [1, 0]>(x) b = Transpose<perm = [1, 0]>(a) y = Neg(b) z = Neg(a) }"
    )
    assert sorted(operators(simplified(model, image(2, 3)))) == ["Neg", "Neg", "Transpose"]


def test_what_is_computed_twice_is_computed_once() -> None:
    model = parser.parse_model(
        HEAD + "g (float[2,3] x) => (float[2,3] y, float[2,3] z) { a = Relu(x) b = Relu(x) c = Neg(a) d = Neg(b) "
        "e = LeakyRelu<alpha = 0.5>(c) f = LeakyRelu<alpha = 0.25>(d) y = Add(e, f) z = Relu(x) }"
    )
    result = simplified(model, image(2, 3))
    assert sorted(operators(result)) == ["Add", "LeakyRelu", "LeakyRelu", "Neg", "Relu", "Relu"]  # z is an output


def test_random_numbers_are_drawn_as_often_as_before() -> None:
    model = parser.parse_model(
        HEAD + "g (float[4] x) => (float[4] y) { a = RandomNormalLike(x) b = RandomNormalLike(x) y = Sub(a, b) }"
    )
    assert operators(simplify(model)).count("RandomNormalLike") == 2


FLATTEN = (
    "{ s = Shape(x) g = Gather<axis = 0>(s, order) i = Cast<to = 6>(g) b = Slice(i, zero, one, zero) "
    "c = Concat<axis = 0>(b, rest) k = Cast<to = 7>(c) y = Reshape(x, k) } "
)


@pytest.mark.parametrize("batch", ["batch", "1"])
def test_shape_arithmetic_becomes_a_constant(batch: str) -> None:
    """What tf2onnx writes for a Keras Flatten."""
    model = parser.parse_model(
        f"{HEAD} g (float[{batch},48,2,2] x) => (float[N,192] y) "
        "<int64[4] order = {0, 2, 3, 1}, int32[1] zero = {0}, int32[1] one = {1}, int32[1] rest = {192}> " + FLATTEN
    )
    result = simplified(model, image(1, 48, 2, 2))
    assert operators(result) == ["Reshape"]
    assert numpy_helper.to_array(result.graph.initializer[0]).tolist() == ([0, 192] if batch == "batch" else [1, 192])
    if batch == "batch":
        for size in (1, 5):
            assert run(result, image(size, 48, 2, 2))[0].shape == (size, 192)


def test_a_named_dimension_survives_a_reshape() -> None:
    model = parser.parse_model(
        f"{HEAD} g (float[batch,8,8,1] x) => (float[N,1,8,8] y) "
        "<int64[4] to = {-1, 1, 8, 8}> { y = Reshape(x, to) }"
    )
    assert numpy_helper.to_array(simplified(model, image(3, 8, 8, 1)).graph.initializer[0]).tolist() == [0, 1, 8, 8]


def test_a_minus_one_that_stands_for_more_than_a_dimension_stays() -> None:
    model = parser.parse_model(
        f"{HEAD} g (float[batch,8,2] x) => (float[N,4] y) <int64[2] to = {{-1, 4}}> {{ y = Reshape(x, to) }}"
    )
    assert numpy_helper.to_array(simplified(model, image(3, 8, 2)).graph.initializer[0]).tolist() == [-1, 4]


def test_two_open_axes() -> None:
    model = parser.parse_model(
        f"{HEAD} g (float[batch,h,3,4] x) => (float[A,B,C] y) "
        "<int64[1] zero = {0}, int64[1] one = {1}, int64[1] size = {12}> "
        "{ s = Shape(x) b = Gather(s, zero) h = Gather(s, one) k = Concat<axis = 0>(b, h, size) y = Reshape(x, k) }"
    )
    result = simplified(model, image(2, 5, 3, 4))
    assert numpy_helper.to_array(result.graph.initializer[0]).tolist() == [0, 0, 12]


def test_bodies_keep_reading_what_they_read() -> None:
    model = parser.parse_model(
        HEAD + "g (float[2] x, bool c) => (float[2] y) { w = Identity(x) "
        "y = If(c) <then_branch = t () => (float[2] a) { a = Neg(w) }, "
        "else_branch = e () => (float[2] w2) { w2 = Identity(w) }> }"
    )
    for flag in (True, False):
        result = simplified(model, {**image(2), "c": np.array(flag)})
    assert operators(result) == ["If"]


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_random_chains_compute_the_same(data: st.DataObject) -> None:
    """Convolutions with any mix of what the passes touch behind them."""
    nodes, constants, tensor = [], {}, "x"
    for i in range(data.draw(st.integers(1, 7))):
        kind = data.draw(
            st.sampled_from(["Conv", "Mul", "Add", "Sub", "Relu", "BatchNormalization", "Identity", "Residual"])
        )
        out = f"t{i}"
        if kind == "Conv":
            constants[f"w{i}"] = RANDOM.standard_normal((4, 4, 1, 1)) / 2
            nodes.append(helper.make_node("Conv", [tensor, f"w{i}"], [out]))
        elif kind in ("Mul", "Add", "Sub"):
            constants[f"c{i}"] = per_channel(4, data.draw(st.sampled_from(["[1,C,1,1]", "[C,1,1]", "scalar"])))
            pair = [tensor, f"c{i}"] if data.draw(st.booleans()) else [f"c{i}", tensor]
            nodes.append(helper.make_node(kind, pair, [out]))
        elif kind == "BatchNormalization":
            names = [f"{part}{i}" for part in ("scale", "shift", "mean", "variance")]
            constants.update({name: RANDOM.uniform(0.5, 2, 4) for name in names})
            nodes.append(helper.make_node(kind, [tensor, *names], [out]))
        elif kind == "Residual":
            nodes.append(helper.make_node("Add", [tensor, "x"], [out]))
        else:
            nodes.append(helper.make_node(kind, [tensor], [out]))
        tensor = out
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [info("x", TensorProto.FLOAT, ["batch", 4, 3, 3])],
        [info(tensor, TensorProto.FLOAT, ["batch", 4, 3, 3])],
        [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    result = simplified(model, image(2, 4, 3, 3), 1e-3)
    constants = {tensor.name for tensor in result.graph.initializer}
    makers = {node.output[0]: node.op_type for node in result.graph.node}
    for node in result.graph.node:
        if node.op_type in ("Mul", "Add", "Sub", "BatchNormalization") and constants.intersection(node.input):
            assert "Conv" not in {makers.get(name) for name in node.input}


def test_the_step(tmp_path: Path) -> None:
    model = conv_model("y = Mul(t, c)", {"c": np.array(2.0)})
    (tmp_path / "in.onnx").write_bytes(model.SerializeToString())
    measured = prepare.run(prepare.Params(), {"onnx": tmp_path / "in.onnx"}, tmp_path)
    note = "passes that changed the graph (model.without_passes turns them off): affine"
    assert measured == {"nodes": 1, "nodes_before": 2, "notes": [note]}
    assert operators(onnx.load(tmp_path / "model.onnx")) == ["Conv"]
    measured = prepare.run(prepare.Params(["affine"]), {"onnx": tmp_path / "in.onnx"}, tmp_path)
    assert measured == {"nodes": 2, "nodes_before": 2}


# --- Passes by name


NEEDED = {
    "identities": ("a = Relu(x) b = Identity(a) y = Neg(b)", ""),
    "unused-outputs": ("y, i = MaxPool<kernel_shape = [2, 2]>(x)", ""),
    "merge-transposes": ("a = Transpose<perm = [0, 1, 3, 2]>(x) y = Transpose<perm = [0, 2, 1, 3]>(a)", ""),
    "move-transposes": (
        "a = Transpose<perm = [0, 2, 3, 1]>(x) b = Relu(a) y = Transpose<perm = [0, 3, 1, 2]>(b)",
        "",
    ),
    "duplicates": ("a = Relu(x) b = Relu(x) y = Add(a, b)", ""),
    "constants": ("c = Neg(k) y = Add(x, c)", "<float k = {2}>"),
    "shapes": ("s = Shape(x) y = Reshape(x, s)", ""),
    "mean-to-pool": ("y = ReduceMean<axes = [2, 3]>(x)", ""),
}


@pytest.mark.parametrize("name", NEEDED)
def test_a_pass_that_is_turned_off(name: str) -> None:
    body, constants = NEEDED[name]
    model = parser.parse_model(f"{HEAD} g (float[2,3,4,4] x) => (float[A,B,C,D] y) {constants} {{ {body} }}")
    result, applied = simplified_by_name(model)
    assert name in applied
    off, applied = simplified_by_name(model, [name])
    assert name not in applied
    assert off.SerializeToString(deterministic=True) != result.SerializeToString(deterministic=True)
    feeds = image(2, 3, 4, 4)
    for expected, got in zip(run(model, feeds), run(off, feeds), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_the_names_of_passes_are_the_same_everywhere(repository: Path) -> None:
    named = {each.name: each.does for each in (*passes.PASSES, *repairs.REPAIRS)}
    assert len(named) == len(passes.PASSES) + len(repairs.REPAIRS)
    assert tuple(each.name for each in passes.PASSES) == prepare.PASSES
    assert tuple(each.name for each in repairs.REPAIRS) == lower.PASSES
    assert sorted(named) == sorted(get_args(PassName))
    told = dict(re.findall(r"^\| ([a-z0-9-]+) \| (.+) \|$", (repository / "docs" / "passes.md").read_text(), re.M))
    assert told == {**named, "pass": "it"}


# --- Outputs that nobody reads


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("y, i = MaxPool<kernel_shape = [2, 2]>(x)", 1),
        ("a, i = MaxPool<kernel_shape = [2, 2]>(x) f = Cast<to = 1>(i) y = Add(a, f)", 2),
        ("y = If(c) <then_branch = t () => (float[A,B,C,D] p) "
         "{ q, i = MaxPool<kernel_shape = [1, 1]>(x) p = Relu(q) }, "
         "else_branch = e () => (float[A,B,C,D] r) { r = Neg(x) }>", 1),
        ("a, b = Split<axis = 2>(x) y = Relu(a)", 2),
    ],
)  # fmt: skip
def test_last_outputs_that_nobody_reads_go(body: str, expected: int) -> None:
    model = parser.parse_model(f"{HEAD} g (float[2,3,4,4] x) => (float[A,B,C,D] y) <bool c = {{1}}> {{ {body} }}")
    result = simplified(model, image(2, 3, 4, 4))
    counts = [len(node.output) for node in all_nodes(result.graph) if node.op_type in ("MaxPool", "Split")]
    assert counts == [expected]


# --- Means of images


@pytest.mark.parametrize(
    ("version", "shape", "body", "constants", "expected"),
    [
        (13, "2,3,4,5", "y = ReduceMean<axes = [2, 3]>(x)", "", ["GlobalAveragePool"]),
        (13, "2,3,4,5", "y = ReduceMean<axes = [-1, 2], keepdims = 0>(x)", "", ["GlobalAveragePool", "Squeeze"]),
        (18, "2,3,4,5,6", "y = ReduceMean(x, a)", "<int64[3] a = {4, 2, 3}>", ["GlobalAveragePool"]),
        (13, "2,3,4,5", "y = ReduceMean<axes = [1, 2]>(x)", "", ["ReduceMean"]),
        (13, "2,3,4,5", "y = ReduceMean<axes = [2]>(x)", "", ["ReduceMean"]),
        (13, "2,3,4", "y = ReduceMean<axes = [2]>(x)", "", ["ReduceMean"]),  # the features of a sequence
        (13, "2,3,4,5", "y = ReduceMean(x)", "", ["ReduceMean"]),
    ],
)
def test_a_mean_over_the_image_is_a_pool(
    version: int, shape: str, body: str, constants: str, expected: list[str]
) -> None:
    axes = "A,B" if "keepdims = 0" in body else ",".join("ABCDE"[: shape.count(",") + 1])
    model = parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : {version}]> g (float[{shape}] x) => (float[{axes}] y) '
        f"{constants} {{ {body} }}"
    )
    result = simplified(model, image(*map(int, shape.split(","))))
    assert operators(result) == expected


def test_channels_last_means_become_pools_too() -> None:
    model = parser.parse_model(
        HEAD + "g (float[2,3,4,5] x) => (float[A,B] y) "
        "{ a = Transpose<perm = [0, 2, 3, 1]>(x) y = ReduceMean<axes = [1, 2], keepdims = 0>(a) }"
    )
    assert operators(simplified(model, image(2, 3, 4, 5))) == ["GlobalAveragePool", "Squeeze"]


# --- Names of dimensions


@pytest.mark.parametrize(
    ("body", "constants", "expected"),
    [
        ("s = Shape(x) z = ConstantOfShape(s) y = Concat<axis = 1>(x, z)", "", ["batch", 6]),
        ("s = Shape(x) n = Gather<axis = 0>(s, k) t = Concat<axis = 0>(n, r) y = Expand(o, t)",
         "<int64[1] k = {0}, int64[1] r = {7}, float o = {1}>", ["batch", 7]),
        ("s = Shape(x) t = Mul(s, d) y = Expand(o, t)", "<int64[2] d = {2, 1}, float o = {1}>", [None, 3]),
        ("y = Compress<axis = 0>(x, c)", "<bool[1] c = {1}>", [None, 3]),
    ],
)  # fmt: skip
def test_open_axes_of_outputs(body: str, constants: str, expected: list[int | str | None]) -> None:
    model = parser.parse_model(f"{HEAD} g (float[batch,3] x) => (float y) {constants} {{ {body} }}")
    output = model.graph.output[0].type.tensor_type
    for axis in range(2):
        output.shape.dim.add()
        if isinstance(expected[axis], int):
            output.shape.dim[axis].dim_value = expected[axis]
    result = simplified(model, image(1, 3))
    sizes = [dim.dim_value or dim.dim_param or None for dim in result.graph.output[0].type.tensor_type.shape.dim]
    assert sizes == expected
