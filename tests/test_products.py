"""Sizes that are products of dimensions, and the shape arithmetic of attention that they fold."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto, parser

from trtrecipe.graphs.passes import simplify
from trtrecipe.graphs.products import Size, names_in, product, quotient

sizes = st.integers(1, 50) | st.sampled_from(["batch", "time", "2*batch", "batch*time"])


@given(st.lists(sizes, max_size=5), st.lists(sizes, max_size=5))
def test_a_quotient_undoes_a_product(first: list[Size], second: list[Size]) -> None:
    whole = product([*first, *second])
    assert whole == product([*second, *first]) == product([product(first), product(second)])
    assert quotient(whole, product(second)) == product(first)


@pytest.mark.parametrize(
    ("whole", "part", "expected"),
    [(12, 5, None), ("6*batch", 4, None), (12, "batch", None), ("batch", "time", None), (0, 3, 0), (3, 0, None)],
)
def test_what_is_no_product(whole: Size, part: Size, expected: Size | None) -> None:
    assert quotient(whole, part) == expected


def test_what_a_size_is_made_of() -> None:
    assert names_in(product([3, "time", "batch"])) == ["batch", "time"]
    assert names_in(7) == [] and product([]) == 1 and product(["batch", 0]) == 0


def graph(body: str, constants: str = "", made: str = "float[A,B,C] y") -> ModelProto:
    return parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 13]> g (float[batch,4,6,8] x) => ({made}) {constants} {{ {body} }}'
    )


def run(model: ModelProto, batch: int) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(
        session.run(None, {"x": np.random.default_rng(batch).standard_normal((batch, 4, 6, 8)).astype(np.float32)})
    )


JOIN = "s = Shape(x) h = Gather(s, bh) n = ReduceProd<axes = [0]>(h) t = Concat<axis = 0>(n, r, l) f = Reshape(x, t)"
JOINED = "int64[2] bh = {0, 1}, int64[1] r = {-1}, int64[1] l = {8}"


@pytest.mark.parametrize(
    ("body", "constants", "made"),
    [
        (f"{JOIN} y = Relu(f)", f"<{JOINED}>", "float[A,B,C] y"),
        (  # heads and batch joined, and taken apart again with what Max says of both
            f"{JOIN} m = Max(h, h) u = Concat<axis = 0>(m, a, l) y = Reshape(f, u)",
            f"<{JOINED}, int64[1] a = {{6}}>",
            "float[A,B,C,D] y",
        ),
        (
            "s = Shape(x) b = Gather(s, zero) n = Mul(b, four) d = Div(n, two) t = Concat<axis = 0>(d, r) "
            "y = Reshape(x, t)",
            "<int64[1] zero = {0}, int64[1] four = {4}, int64[1] two = {2}, int64[1] r = {-1}>",
            "float[A,B] y",
        ),
        (
            "s = Shape(x) n = ReduceProd<keepdims = 0>(s) v = Unsqueeze(n, zero) y = Reshape(x, v)",
            "<int64[1] zero = {0}>",
            "float[A] y",
        ),
        (
            f"{JOIN} g = Relu(f) k = Shape(g) p = Gather(k, zero) q = Div(p, four) t2 = Concat<axis = 0>(q, r) "
            "y = Reshape(g, t2)",
            f"<{JOINED}, int64[1] zero = {{0}}, int64[1] four = {{4}}>",
            "float[A,B] y",
        ),
    ],
)
def test_shapes_of_attention_are_constants(body: str, constants: str, made: str) -> None:
    model = graph(body, constants, made)
    result = simplify(model)
    onnx.checker.check_model(result, full_check=True)
    assert {node.op_type for node in result.graph.node} <= {"Reshape", "Relu"}
    for batch in (1, 3):
        for expected, got in zip(run(model, batch), run(result, batch), strict=True):
            np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    ("body", "constants"),
    [
        ("s = Shape(x) b = Gather(s, zero) d = Div(b, two) t = Concat<axis = 0>(d, r) y = Reshape(x, t)",
         "<int64[1] zero = {0}, int64[1] two = {2}, int64[1] r = {-1}>"),
        ("s = Shape(x) b = Gather(s, zero) d = Max(b, two) t = Concat<axis = 0>(d, r) y = Reshape(x, t)",
         "<int64[1] zero = {0}, int64[1] two = {2}, int64[1] r = {-1}>"),
    ],
)  # fmt: skip
def test_what_depends_on_the_size_itself_stays(body: str, constants: str) -> None:
    model = graph(body, constants, "float[A,B] y")
    result = simplify(model)
    assert "Shape" in {node.op_type for node in result.graph.node}
    for expected, got in zip(run(model, 4), run(result, 4), strict=True):
        np.testing.assert_array_equal(got, expected)
