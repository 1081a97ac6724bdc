"""lower: what a dialect accepts comes out, what it does not is named before anything expensive runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import parser

from trtrecipe.errors import StepError
from trtrecipe.graphs import keep, layers
from trtrecipe.graphs.canonical import canonical
from trtrecipe.steps import lower
from trtrecipe.targets.catalog import load_catalog

HEAD = '<ir_version: 8, opset_import: ["" : 17]> '
PLAIN = HEAD + "g (float[N,3] x) => (float[N,3] y) { a = Relu(x) y = Sigmoid(a) }"


def _lower(text: str, folder: Path, **params: object) -> onnx.ModelProto:
    (folder / "in.onnx").write_bytes(parser.parse_model(text).SerializeToString())
    _run_step(folder, **params)
    return onnx.load(folder / "model.onnx")


def _run_step(folder: Path, found: Mapping[str, list[str]] = MappingProxyType({}), **params: object) -> list[str]:
    """Lower in.onnx, with these layers of the source model; the notes."""
    (folder / "layers.json").write_bytes(layers.dump(found))
    values = {"dialect": "ort", "opset_max": 21, "mode": "fp32", **params}
    inputs = {"onnx": folder / "in.onnx", "layers": folder / "layers.json"}
    return list(lower.run(lower.Params(**values), inputs, folder).get("notes", []))  # type: ignore[arg-type]


def _run(model: onnx.ModelProto, feeds: dict[str, Any]) -> list[Any]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


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


def test_reciprocal_where_only_division_is_listed(tmp_path: Path) -> None:
    text = HEAD.replace("17", "13") + (
        "g (float[N,2] x, double[1] d, bool c) => (float[N,2] y, double[1] e, float[N,2] z) { y = Reciprocal(x) "
        "e = Reciprocal(d) z = If(c) <then_branch = t () => (float[N,2] a) { r = Reciprocal(x) a = Reciprocal(r) }, "
        "else_branch = f () => (float[N,2] b) { r = Cast<to = 11>(x) s = Reciprocal(r) b = Cast<to = 1>(s) }> }"
    )
    (tmp_path / "in.onnx").write_bytes(parser.parse_model(text).SerializeToString())
    notes = _run_step(tmp_path, dialect="trt-8.2", opset_max=13, operators_from="8.2")
    assert notes == ["Reciprocal is not in the target's list of operators: 5 written as Div"]
    model = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    x, d = np.array([[0.3, -7.0]], np.float32), np.array([3.0])
    for condition in (True, False):
        feeds = {"x": x, "d": d, "c": np.array(condition)}
        for lowered, given in zip(_run(model, feeds), _run(parser.parse_model(text), feeds), strict=True):
            np.testing.assert_allclose(lowered, given, rtol=1e-7)
    assert "Reciprocal" in [n.op_type for n in _lower(text, tmp_path, operators_from="8.5").graph.node]


def test_an_opset_that_the_target_lacks(tmp_path: Path) -> None:
    text = HEAD + "g (float[2,3] x) => (float[2,3] y) <float[3] s = {1, 1, 1}> { y = LayerNormalization(x, s) }"
    with pytest.raises(StepError, match="LayerNormalization y: the operator came with opset 17"):
        _lower(text, tmp_path, dialect="trt-8.2", opset_max=13)
    assert _lower(text, tmp_path, dialect="trt-8.5", opset_max=17).graph.node[0].op_type == "LayerNormalization"


def test_what_onnx_runtime_cannot_load_goes_no_further(tmp_path: Path) -> None:
    with pytest.raises(StepError, match="ONNX Runtime cannot load the graph"):
        _lower(HEAD + "g (bfloat16[2] x) => (bfloat16[2] y) { y = Erf(x) }", tmp_path)
    assert not (tmp_path / "model.onnx").exists()


# --- What stays in a higher precision

NAMED = HEAD + "g (float[N,3] x) => (float[N,3] y) { a = Relu(x) b = Sigmoid(a) y = Softmax(b) }"
CARRIES = HEAD + (
    "g (float[3] x) => (float[3] y) <float s = {0.5}, int8 z = {0}> "
    "{ q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) y = Relu(d) }"
)


def _kept(folder: Path, text: str = NAMED, **params: object) -> tuple[dict[str, str], list[str]]:
    (folder / "in.onnx").write_bytes(canonical(parser.parse_model(text)).SerializeToString())
    notes = _run_step(folder, {"start": ["a"], "gone": []}, **params)
    return keep.load(folder / "keep.json"), notes


def test_nothing_is_kept_unless_the_recipe_says_so(tmp_path: Path) -> None:
    assert _kept(tmp_path) == ({}, [])


@pytest.mark.parametrize(
    ("mode", "fallback", "precision"),
    [("int8", "fp16", "fp16"), ("int8", None, "fp32"), ("int8", "fp32", "fp32"), ("fp16", None, "fp32")],
)
def test_kept_in_the_precision_that_the_mode_leaves(
    mode: str, fallback: str | None, precision: str, tmp_path: Path
) -> None:
    entries = [{"layers": "start", "operators": None, "between": None, "precision": None}]
    kept, notes = _kept(tmp_path, mode=mode, fallback=fallback, keep=entries)
    assert kept == {"a": precision}
    assert notes == [f"precision.keep: 1 node stays {precision.upper()}: a"]


def test_the_notes_name_the_nodes_of_each_precision(tmp_path: Path) -> None:
    entries = [{"operators": ["Softmax"], "precision": "fp32"}, {"between": ["a", "b"]}]
    kept, notes = _kept(tmp_path, mode="int8", fallback="fp16", keep=entries)
    assert kept == {"a": "fp16", "b": "fp16", "y": "fp32"}
    assert notes == ["precision.keep: 2 nodes stay FP16: a, b", "precision.keep: 1 node stays FP32: y"]


def test_names_are_those_of_the_lowered_graph(tmp_path: Path) -> None:
    text = HEAD.replace("17", "13") + "g (float[N] x) => (float[N] y) { a = Relu(x) y = Reciprocal(a) }"
    target = {"dialect": "trt-8.2", "opset_max": 13, "operators_from": "8.2"}
    kept, _ = _kept(tmp_path, text, keep=[{"operators": ["Div"]}], mode="fp16", **target)
    assert kept == {"y": "fp32"}


@pytest.mark.parametrize(
    ("entry", "match"),
    [
        ({"layers": "strat"}, "matches no layer and no node"),
        ({"layers": "gone"}, "nothing of it is left in the graph"),
        ({"operators": ["Softplus"]}, "no node of the graph is a Softplus"),
        ({"between": ["y", "a"]}, "no path leads from y to a"),
    ],
)
def test_an_entry_that_matches_nothing(entry: dict[str, Any], match: str, tmp_path: Path) -> None:
    with pytest.raises(StepError, match=match):
        _kept(tmp_path, mode="fp16", keep=[entry])
    assert not (tmp_path / "model.onnx").exists() and not (tmp_path / "keep.json").exists()


def test_a_model_with_its_own_quantization(tmp_path: Path) -> None:
    assert _kept(tmp_path, CARRIES, mode="int8") == ({}, [])
    for mode in ("fp32", "fp16"):
        with pytest.raises(StepError, match=f"is quantized already .* precision.mode is {mode}"):
            _kept(tmp_path, CARRIES, mode=mode)
    with pytest.raises(StepError, match=r"precision\.keep has no effect on a model that is quantized already"):
        _kept(tmp_path, CARRIES, mode="int8", keep=[{"operators": ["Relu"]}])
