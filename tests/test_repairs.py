"""lower's repairs: each says what it did, and what it writes computes the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, parser

from trtrecipe.graphs.interface import interface
from trtrecipe.graphs.opset import to_opset
from trtrecipe.preflight.findings import inspect
from trtrecipe.preflight.repairs import repair
from trtrecipe.targets.parser import Parser
from trtrecipe.targets.parser import parser as parser_of

RANDOM = np.random.default_rng(5)
FLOATS = RANDOM.standard_normal((2, 3, 4)).astype(np.float32)


def release(name: str) -> Parser:
    return parser_of(name, {"10.3": "10.1", "10.13": "10.1"}.get(name, name))


def graph(body: str, given: str, made: str, constants: str = "", opset: int = 13) -> ModelProto:
    return parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : {opset}]> g ({given}) => ({made}) {constants} {{ {body} }}'
    )


def run(model: ModelProto, feeds: dict[str, Any]) -> list[Any]:
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    kinds = {spec.name: spec.dtype for spec in interface(model).inputs}
    return list(session.run(None, {name: np.asarray(value).astype(kinds[name]) for name, value in feeds.items()}))


def repaired(model: ModelProto, name: str, opset_max: int, feeds: dict[str, Any]) -> tuple[ModelProto, list[str]]:
    """The model as the release takes it, once it is shown to compute the same, and the notes."""
    before = model.SerializeToString(deterministic=True)
    result, notes = repair(model, release(name), opset_max, [])
    assert model.SerializeToString(deterministic=True) == before
    assert [each for each in inspect(to_opset(result, opset_max), release(name)) if not each.note] == []
    for expected, got in zip(run(model, feeds), run(result, feeds), strict=True):
        np.testing.assert_allclose(got, expected, rtol=2e-6, atol=2e-6)
    assert [value.name for value in result.graph.output] == [value.name for value in model.graph.output]
    again, more = repair(result, release(name), opset_max, [])
    assert again is result and more == []
    return result, notes


def operators(model: ModelProto) -> set[str]:
    return {node.op_type for node in model.graph.node}


# --- What a release lacks


@pytest.mark.parametrize(
    ("name", "opset_max", "opset", "body", "constants", "operator"),
    [
        ("8.2", 13, 13, "y = Reciprocal(x)", "", "Reciprocal"),
        ("8.2", 13, 14, "y = HardSwish(x)", "", "HardSwish"),
        ("8.2", 13, 17, "y = LayerNormalization(x, s, b)", "<float[4] s = {1, 2, 3, 4}, float[4] b = {4, 3, 2, 1}>",
         "LayerNormalization"),
        ("8.5", 17, 17, "y = LayerNormalization<axis = 1, epsilon = 0.1>(x, s)",
         "<float[3,4] s = {1,2,3,4,1,2,3,4,1,2,3,4}>", "LayerNormalization"),
        ("8.5", 17, 18, "y = LayerNormalization<axis = -2>(x, s)", "<float[4] s = {1, 2, 3, 4}>", "LayerNormalization"),
        ("8.6", 17, 20, "y = Gelu(x)", "", "Gelu"),
        ("8.6", 17, 20, 'y = Gelu<approximate = "tanh">(x)', "", "Gelu"),
        ("8.6", 17, 18, "y = Mish(x)", "", "Mish"),
        ("10.16", 24, 24, "y = Swish<alpha = 1.5>(x)", "", "Swish"),
        ("10.16", 24, 24, "y = Swish(x)", "", "Swish"),
        ("8.2", 13, 13, "a = Greater(x, z) b = Less(x, o) c = Xor(a, b) y = Cast<to = 1>(c)",
         "<float z = {0}, float o = {0.5}>", "Xor"),
    ],
)  # fmt: skip
def test_operators_that_a_release_lacks(
    name: str, opset_max: int, opset: int, body: str, constants: str, operator: str
) -> None:
    model = graph(body, "float[n,3,4] x", "float[A,B,C] y", constants, opset)
    if operator == "Swish":  # newer than ONNX Runtime: its own words
        alpha = 1.5 if "alpha" in body else 1.0
        result, notes = repair(model, release(name), opset_max, [])
        (got,) = run(to_opset(result, 13), {"x": FLOATS})
        np.testing.assert_allclose(got, FLOATS / (1 + np.exp(-alpha * FLOATS)), rtol=1e-5, atol=1e-6)
    else:
        result, notes = repaired(model, name, opset_max, {"x": FLOATS})
    assert operator not in operators(result)
    assert notes == [
        f"write-out-operators: {operator} is not among what TensorRT {name} takes: 1 written with other operators"
    ]
    assert result.graph.node[-1].name == model.graph.node[-1].name or result.graph.node[-1].output[0] == "y"
    unchanged, notes = repair(model, release(name), opset_max, ["write-out-operators"])
    assert unchanged is model and notes == []


@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_one_hot(axis: int) -> None:
    model = graph(
        f"y = OneHot<axis = {axis}>(i, d, v)",
        "int64[2,3] i",
        "float[A,B,C] y",
        "<int64 d = {4}, float[2] v = {-0.5, 2}>",
    )
    repaired(model, "8.2", 13, {"i": [[0, 3, 4], [-1, -4, -5]]})


def test_what_cannot_be_written_out_stays() -> None:
    model = graph("y = OneHot(i, d, v)", "int32[2] i, int32 d", "float[A,B] y", "<float[2] v = {0, 1}>")
    assert repair(model, release("8.2"), 13, []) == (model, [])
    model = graph("y, m = LayerNormalization(x, s)", "float[2,3] x", "float[A,B] y, float[C,D] m",
                  "<float[3] s = {1, 1, 1}>", 17)  # fmt: skip
    assert repair(model, release("8.2"), 13, []) == (model, [])


def test_bodies_are_repaired_too() -> None:
    model = graph(
        "y = If(c) <then_branch = t () => (float[2] a) { r = Reciprocal(x) a = HardSwish(r) }, "
        "else_branch = e () => (float[2] b) { b = Reciprocal(x) }> z = Reciprocal(x)",
        "float[2] x, bool c",
        "float[2] y, float[2] z",
        opset=14,
    )
    for condition in (True, False):
        _, notes = repaired(model, "8.2", 13, {"x": [0.3, -7], "c": condition})
    assert set(notes) == {
        "write-out-operators: Reciprocal is not among what TensorRT 8.2 takes: 3 written with other operators",
        "write-out-operators: HardSwish is not among what TensorRT 8.2 takes: 1 written with other operators",
    }


def test_results_that_promise_no_order() -> None:
    model = graph("y, i = TopK<sorted = 0>(x, k)", "float[6] x", "float[A] y, int64[B] i", "<int64[1] k = {3}>")
    result, notes = repair(model, release("10.3"), 20, [])
    assert notes == ["sort-top-k: TensorRT has sorted results only: 1 TopK sorted"]
    values = np.array([3, 1, 4, 1.5, 9, 2], np.float32)
    best, where = run(result, {"x": values})
    assert best.tolist() == [9, 4, 3] and where.tolist() == [4, 2, 0]
    assert sorted(run(model, {"x": values})[0].tolist()) == [3, 4, 9]


# --- Element types


def test_doubles_become_floats() -> None:
    model = graph(
        "d = Cast<to = 11>(f) a = Mul(x, k) b = Add(a, d) s = Shape(b) z = ConstantOfShape<value = double[1] {2.5}>(s) "
        "c = Add(b, z) y = Cast<to = 1>(c) e = Identity(c) w = If(t) <then_branch = p () => (double[2] q) "
        "{ q = Exp(b) }, else_branch = r () => (double[2] u) { u = Cast<to = 11>(f) }>",
        "double[2] x, float[2] f, bool t",
        "float[A] y, double[B] e, double[C] w",
        "<double k = {3}>",
    )
    feeds = {"x": [0.5, -1.5], "f": [1, 2], "t": True}
    result, notes = repaired(model, "8.2", 13, feeds)
    assert notes == [
        "double-to-float: the model computes in FP64, which TensorRT has not: it becomes FP32; "
        "inputs and outputs that become float32: x, e, w"
    ]
    assert [spec.dtype for spec in (*interface(result).inputs, *interface(result).outputs)] == [
        "float32", "float32", "bool", "float32", "float32", "float32"]  # fmt: skip
    assert "Cast" not in operators(result)
    assert repair(model, release("8.2"), 13, ["double-to-float"]) == (model, [])


def test_numbers_that_no_float_holds_become_its_largest() -> None:
    model = graph(
        "m = Min(x, k) y = Max(m, l)", "double[3] x", "double[A] y", "<double k = {1e300}, double l = {-1e300}>"
    )
    result, _ = repair(model, release("10.3"), 20, [])
    (got,) = run(result, {"x": [1, 2, 3]})
    assert got.dtype == np.float32 and got.tolist() == [1, 2, 3]
    constants = [onnx.numpy_helper.to_array(tensor) for tensor in result.graph.initializer]
    assert all(np.isfinite(value).all() and abs(value) > 3e38 for value in constants)


def test_64_bit_inputs_and_outputs() -> None:
    model = graph(
        "e = Gather(t, i) n = Add(i, i) m = Cast<to = 1>(n) y = Add(e, m) b = ArgMax<axis = 0, keepdims = 0>(y) "
        "w = Mul(b, b)",
        "int64[3] i",
        "float[A] y, int64 b, int64 w",
        "<float[5] t = {5, 4, 3, 2, 1}>",
    )
    result, notes = repaired(model, "8.2", 13, {"i": [4, 0, 2]})
    assert notes == [
        "int64-to-int32: inputs and outputs that become int32, as this TensorRT has no 64-bit integers: i, b, w"
    ]
    assert [spec.dtype for spec in (*interface(result).inputs, *interface(result).outputs)] == [
        "int32", "float32", "int32", "int32"]  # fmt: skip
    readers = {node.op_type: list(node.input) for node in result.graph.node}
    assert readers["Gather"][1] == "i"  # takes 32 bits as well
    assert readers["Add"] != ["i", "i"]
    assert repair(model, release("10.3"), 20, []) == (model, [])
    assert repair(model, release("8.2"), 13, ["int64-to-int32"]) == (model, [])


def test_64_bit_inputs_that_bodies_read() -> None:
    model = graph(
        "y = If(c) <then_branch = t () => (int64[2] a) { a = Add(i, i) }, else_branch = e () => (int64[2] b) "
        "{ b = Identity(i) }>",
        "int64[2] i, bool c",
        "int64[2] y",
    )
    for condition in (True, False):
        repaired(model, "8.4", 17, {"i": [3, -4], "c": condition})


def test_a_model_that_needs_nothing_is_left_alone() -> None:
    model = graph("y = Relu(x)", "float[n,3,4] x", "float[A,B,C] y")
    result, notes = repair(model, release("8.0"), 13, [])
    assert result is model and notes == []
