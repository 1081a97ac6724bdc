"""move-transposes: the same numbers with fewer Transposes, never more."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, helper, numpy_helper, parser

from trtrecipe.graphs.passes import simplified

HEAD = '<ir_version: 8, opset_import: ["" : 13]> '
LAST, FIRST = "Transpose<perm = [0, 2, 3, 1]>", "Transpose<perm = [0, 3, 1, 2]>"
X = np.random.default_rng(11).standard_normal((2, 3, 4, 5)).astype(np.float32)


def run(model: ModelProto, feeds: dict[str, Any]) -> list[Any]:
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


def moved(model: ModelProto, feeds: dict[str, Any]) -> tuple[int, ModelProto]:
    """How many Transposes are left with the pass, once it is shown to compute the same with no more than without."""
    without, _ = simplified(model, ["move-transposes"])
    result, _ = simplified(model)
    for expected, got in zip(run(model, feeds), run(result, feeds), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    assert [value.name for value in result.graph.output] == [value.name for value in model.graph.output]
    assert count(result) <= count(without)
    again, applied = simplified(result)
    assert "move-transposes" not in applied and count(again) == count(result)
    return count(result), result


def count(model: ModelProto) -> int:
    return sum(node.op_type == "Transpose" for node in model.graph.node)


def graph(body: str, constants: str = "", output: str = "float[A,B,C,D] y", version: int = 13) -> ModelProto:
    head = HEAD.replace("13", str(version))
    return parser.parse_model(f"{head} g (float[2,3,4,5] x) => ({output}) {constants} {{ {body} }}")


BETWEEN = {
    "entry by entry": ("b = Relu(a) c = Clip(b, z, s) d = Sigmoid(c)", "<float z = {0}, float s = {6}>"),
    "two paths": ("b = Relu(a) c = Neg(a) d = Add(b, c)", ""),
    "channels": ("b = Mul(a, s) d = Add(t, b)", "<float[3] s = {1, 2, 3}, float[1,1,1,3] t = {3, 2, 1}>"),
    "rows": ("d = Add(a, s)", "<float[5,1] s = {1, 2, 3, 4, 5}>"),
    "number": ("d = Pow(a, s)", "<float[1] s = {2}>"),
    "concat": ("b = Neg(a) d = Concat<axis = -1>(a, b)", ""),
    "concat a constant": ("b = Slice(a, i, j, j) d = Concat<axis = 2>(b, k)",
                          "<int64[1] i = {0}, int64[1] j = {1}, float[2,1,1,3] k = {0, 1, 2, 3, 4, 5}>"),
    "split": ("b, c = Split<axis = 1>(a) d = Sub(b, c)", ""),
    "slice": ("d = Slice(a, b, e, x0)", "<int64[2] b = {0, 1}, int64[2] e = {2, 9}, int64[2] x0 = {-1, 1}>"),
    "pad": ("d = Pad(a, p)", "<int64[8] p = {0, 1, 2, 0, 0, 3, 0, 1}>"),
    "softmax": ("d = Softmax<axis = 3>(a)", ""),
    "mean that stays": ("b = ReduceMean<axes = [1, 2]>(a) d = Sub(a, b)", ""),
    "sum": ("b = ReduceSum(a, i) d = Div(a, b)", "<int64[1] i = {3}>"),
    "best": ("b = ArgMax<axis = -1>(a) d = Cast<to = 1>(b)", ""),
    "where": ("c = Greater(a, z) d = Where(c, a, z)", "<float z = {0}>"),
    "resize": ('d = Resize<mode = "linear">(a, , f)', "<float[4] f = {1, 2, 2, 1}>"),
    "resize to sizes": ('d = Resize<mode = "nearest">(a, , , f)', "<int64[4] f = {2, 8, 10, 3}>"),
    "slope": ("d = PRelu(a, s)", "<float[1,1,3] s = {0.1, 0.2, 0.3}>"),
}  # fmt: skip


@pytest.mark.parametrize("name", BETWEEN)
def test_between_two_transposes(name: str) -> None:
    body, constants = BETWEEN[name]
    left, _ = moved(graph(f"a = {LAST}(x) {body} y = {FIRST}(d)", constants), {"x": X})
    assert left == 0


@pytest.mark.parametrize(
    ("body", "output", "constants", "left"),
    [
        (f"a = {LAST}(x) b = Relu(a) y = ReduceMax<axes = [1, 2], keepdims = 0>(b)", "float[A,B] y", "", 0),
        (f"a = {LAST}(x) b = ReduceMean<axes = [1, 2]>(a) y = Reshape(b, s)",
         "float[A,B] y", "<int64[2] s = {0, -1}>", 0),
        (f"a = {LAST}(x) b = ReduceSum(a, i) y = Squeeze(b, i)", "float[A,B,C] y", "<int64[1] i = {3}>", 0),
        (f"a = {LAST}(x) y = ReduceMax<axes = [0], keepdims = 0>(a)", "float[A,B,C] y", "", 1),
        (f"a = {LAST}(x) y = Relu(a)", "float[A,B,C,D] y", "", 1),
        (f"a = {LAST}(x) b = Neg(a) y = Reshape(b, s)", "float[A,B] y", "<int64[2] s = {2, -1}>", 1),
        (f"a = {LAST}(x) b = Relu(a) c = {FIRST}(b) d = {LAST}(x) e = Neg(d) f = {FIRST}(e) y = Add(c, f)",
         "float[A,B,C,D] y", "", 0),
        (f"a = {LAST}(x) y = Relu(a) z = {FIRST}(y)", "float[A,B,C,D] y, float[E,F,G,H] z", "", 1),
        (f"a = {LAST}(x) b = Relu(a) c = Neg(a) d = {FIRST}(b) y = Add(d, x) z = Reshape(c, s)",
         "float[A,B,C,D] y, float[E] z", "<int64[1] s = {-1}>", 1),
    ],
)  # fmt: skip
def test_what_is_left(body: str, output: str, constants: str, left: int) -> None:
    assert moved(graph(body, constants, output), {"x": X})[0] == left


def test_axes_given_as_inputs() -> None:
    model = graph(
        f"a = {LAST}(x) b = ReduceMean(a, i) c = Sub(a, b) d = Pad(c, p, , j) y = {FIRST}(d)",
        "<int64[2] i = {1, -2}, int64[4] p = {1, 0, 0, 2}, int64[2] j = {-1, 1}>",
        version=18,
    )
    assert moved(model, {"x": X})[0] == 0


def test_quantized_pairs_move_along() -> None:
    body = f"a = {LAST}(x) q = QuantizeLinear<axis = 3>(a, s, z) d = DequantizeLinear<axis = 3>(q, s, z) y = {FIRST}(d)"
    constants = "<float[3] s = {0.1, 0.2, 0.3}, int8[3] z = {0, 0, 0}>"
    left, result = moved(graph(body, constants), {"x": X})
    assert left == 0
    assert [node.attribute[0].i for node in result.graph.node] == [1, 1]


def test_open_axes_move_too() -> None:
    model = parser.parse_model(
        HEAD + "g (float[n,3,h,w] x) => (float[A,B] y) <int64[2] s = {0, -1}> "
        f"{{ a = {LAST}(x) b = Relu(a) c = ReduceMean<axes = [1, 2]>(b) y = Reshape(c, s) }}"
    )
    assert moved(model, {"x": X})[0] == 0


UNARY = ["Relu", "Neg", "Abs", "Sigmoid"]
BINARY = ["Add", "Mul", "Max", "Sub"]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.data())
def test_random_graphs(data: st.DataObject) -> None:
    """Operators and Transposes in any order, on cubes, so that everything fits everything."""
    nodes, constants = [], []
    held = ["x"]
    for number in range(data.draw(st.integers(2, 14))):
        name = f"t{number}"
        kind = data.draw(
            st.sampled_from(["unary", "binary", "constant", "transpose", "transpose", "axis", "pool", "concat"])
        )
        source = data.draw(st.sampled_from(held[-4:]))
        other = data.draw(st.sampled_from(held))
        if kind == "unary":
            nodes.append(helper.make_node(data.draw(st.sampled_from(UNARY)), [source], [name]))
        elif kind == "binary":
            nodes.append(helper.make_node(data.draw(st.sampled_from(BINARY)), [source, other], [name]))
        elif kind == "constant":
            shape = data.draw(st.sampled_from([(4,), (4, 1), (1, 4, 1, 1), (4, 1, 1, 1), ()]))
            constants.append(
                numpy_helper.from_array(np.random.default_rng(number).random(shape, np.float32), f"c{number}")
            )
            nodes.append(helper.make_node("Mul", [source, f"c{number}"], [name]))
        elif kind == "transpose":
            perm = data.draw(st.sampled_from([[0, 2, 3, 1], [0, 3, 1, 2], [1, 0, 2, 3], [0, 1, 3, 2]]))
            nodes.append(helper.make_node("Transpose", [source], [name], perm=perm))
        elif kind == "axis":
            nodes.append(helper.make_node("Softmax", [source], [name], axis=data.draw(st.integers(-4, 3))))
        elif kind == "pool":  # keeps the order of axes
            nodes.append(helper.make_node("MaxPool", [source], [name], kernel_shape=[3, 3], pads=[1, 1, 1, 1]))
        else:
            axis = data.draw(st.integers(0, 3))
            nodes.append(helper.make_node("Concat", [source, source], [f"{name}c"], axis=axis))
            nodes.append(helper.make_node("Split", [f"{name}c"], [name, f"{name}s"], axis=axis))
        held.append(name)
    outputs = list(dict.fromkeys([held[-1], data.draw(st.sampled_from(held[1:]))]))
    values = [helper.make_tensor_value_info(name, 1, [4] * 4) for name in ["x", *outputs]]
    model = helper.make_model(
        helper.make_graph(nodes, "g", values[:1], values[1:], constants),
        opset_imports=[helper.make_opsetid("", 13)],
        ir_version=8,
    )
    moved(model, {"x": np.random.default_rng(1).standard_normal((4, 4, 4, 4)).astype(np.float32)})
