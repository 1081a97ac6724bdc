"""lower: what a dialect accepts comes out, what it does not is named before anything expensive runs."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import parser

from trtrecipe.errors import StepError
from trtrecipe.steps import lower
from trtrecipe.targets.catalog import load_catalog

HEAD = '<ir_version: 8, opset_import: ["" : 17]> '
PLAIN = HEAD + "g (float[N,3] x) => (float[N,3] y) { a = Relu(x) y = Sigmoid(a) }"


def _lower(text: str, folder: Path, **params: object) -> onnx.ModelProto:
    (folder / "in.onnx").write_bytes(parser.parse_model(text).SerializeToString())
    values = {"dialect": "ort", "opset_max": 21, **params}
    lower.run(lower.Params(**values), {"onnx": folder / "in.onnx"}, folder)  # type: ignore[arg-type]
    return onnx.load(folder / "model.onnx")


@pytest.mark.parametrize("dialect", sorted(load_catalog().dialects))
def test_every_dialect_takes_a_plain_graph(dialect: str, tmp_path: Path) -> None:
    facts = load_catalog().dialects[dialect]
    model = _lower(
        PLAIN,
        tmp_path,
        dialect=dialect,
        opset_max=facts.opset_max,
        operators_from=facts.operators_from,
        assumed=facts.assumed,
    )
    assert model.opset_import[0].version == min(17, facts.opset_max)
    onnx.checker.check_model(model, full_check=True)


def test_operators_that_a_parser_lacks_are_all_named(tmp_path: Path) -> None:
    text = HEAD + (
        "g (float[4] x) => (float[4] y, int64[4] z) { a = Bernoulli(x) b = Bernoulli(a) c = Relu(b) "
        'y = Sigmoid(c) i = Cast<to = 7>(y) z = BitShift<direction = "LEFT">(i, i) }'
    )
    with pytest.raises(StepError) as caught:
        _lower(text, tmp_path, dialect="trt-8.2", opset_max=13, operators_from="8.2")
    assert "TensorRT 8.2 does not support" in caught.value.message
    assert "Bernoulli: a, b" in caught.value.message and "BitShift: z" in caught.value.message
    assert "Relu" not in caught.value.message
    assert not (tmp_path / "model.onnx").exists()


def test_an_assumed_table_is_called_that() -> None:
    model = parser.parse_model(PLAIN)
    lower.check_operators(model, {"Relu": True, "Sigmoid": True}, "TensorRT 8.4", True)
    with pytest.raises(StepError, match=r"TensorRT 8\.4, the nearest release with a published list, does not support"):
        lower.check_operators(model, {"Relu": True, "Sigmoid": False}, "TensorRT 8.4", True)
    with pytest.raises(StepError, match="Sigmoid: y"):
        lower.check_operators(model, {"Relu": True}, "TensorRT 8.4", False)


def test_many_nodes_make_a_short_message() -> None:
    body = "".join(f"t{i + 1} = Neg(t{i}) " for i in range(50)).replace("t0)", "x)").replace("t50 ", "y ")
    model = parser.parse_model(HEAD + "g (float[1] x) => (float[1] y) { " + body + "}")
    with pytest.raises(StepError, match="Neg: t1, t2, t3 and 47 more") as caught:
        lower.check_operators(model, {}, "TensorRT 8.2", False)
    assert len(caught.value.message.splitlines()) == 2


def test_operators_inside_bodies_count() -> None:
    model = parser.parse_model(
        HEAD + "g (float[1] x, bool c) => (float[1] y) { y = If(c) <then_branch = t () => (float[1] a) { a = Erf(x) }, "
        "else_branch = e () => (float[1] b) { b = Neg(x) }> }"
    )
    with pytest.raises(StepError, match="Erf: a"):
        lower.check_operators(model, {"If": True, "Neg": True}, "TensorRT 8.2", False)


def test_an_opset_that_the_target_lacks(tmp_path: Path) -> None:
    text = HEAD + "g (float[2,3] x) => (float[2,3] y) <float[3] s = {1, 1, 1}> { y = LayerNormalization(x, s) }"
    with pytest.raises(StepError, match="LayerNormalization y: the operator came with opset 17"):
        _lower(text, tmp_path, dialect="trt-8.2", opset_max=13)
    assert _lower(text, tmp_path, dialect="trt-8.5", opset_max=17).graph.node[0].op_type == "LayerNormalization"


def test_what_onnx_runtime_cannot_load_goes_no_further(tmp_path: Path) -> None:
    with pytest.raises(StepError, match="ONNX Runtime cannot load the graph"):
        _lower(HEAD + "g (bfloat16[2] x) => (bfloat16[2] y) { y = Erf(x) }", tmp_path)
    assert not (tmp_path / "model.onnx").exists()
