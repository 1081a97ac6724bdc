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
from trtrecipe.graphs import files, keep, layers
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


def _target(dialect: str) -> dict[str, Any]:
    facts = load_catalog().dialects[dialect]
    return {
        "dialect": dialect,
        "opset_max": facts.opset_max,
        "tensorrt": facts.tensorrt,
        "operators_from": facts.operators_from,
    }


@pytest.mark.parametrize("dialect", [name for name, each in load_catalog().dialects.items() if each.opset_max])
def test_every_dialect_takes_a_plain_graph(dialect: str, tmp_path: Path) -> None:
    model = _lower(PLAIN, tmp_path, **_target(dialect))
    assert model.opset_import[0].version == min(17, load_catalog().dialects[dialect].opset_max)
    onnx.checker.check_model(model, full_check=True)


def test_everything_in_the_way_is_named_at_once(tmp_path: Path) -> None:
    text = HEAD + (
        "g (float[4] x) => (float[4] y, int64[A,B] z) { a = Bernoulli(x) b = Bernoulli(a) c = Relu(b) "
        "y = Sigmoid(c) z = NonZero(y) }"
    )
    with pytest.raises(StepError) as caught:
        _lower(text, tmp_path, **_target("trt-8.2"))
    assert caught.value.message.startswith("TensorRT 8.2 does not take this model:")
    assert "Bernoulli: not supported: a, b" in caught.value.message
    assert "NonZero: not supported: z; TensorRT 8.5 takes it" in caught.value.message
    assert "Relu" not in caught.value.message
    assert not (tmp_path / "model.onnx").exists()


def test_the_layers_of_what_is_in_the_way(tmp_path: Path) -> None:
    model = parser.parse_model(HEAD + "g (float[4] x) => (float[4] y) { y = Bernoulli(x) }")
    model.graph.node[0].name = "net/drop/y"
    (tmp_path / "in.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(StepError, match=r"Bernoulli: not supported: net/drop/y \(layer net/drop\)"):
        _run_step(tmp_path, {"net": ["net/drop/y"], "net/drop": ["net/drop/y"]}, **_target("trt-8.2"))


def test_reciprocal_where_only_division_is_listed(tmp_path: Path) -> None:
    text = HEAD + (
        "g (float[N,2] x, bool c) => (float[N,2] y, float[N,2] z) { y = Reciprocal(x) "
        "z = If(c) <then_branch = t () => (float[N,2] a) { r = Reciprocal(x) a = Reciprocal(r) }, "
        "else_branch = f () => (float[N,2] b) { b = Neg(x) }> }"
    )
    (tmp_path / "in.onnx").write_bytes(parser.parse_model(text).SerializeToString())
    notes = _run_step(tmp_path, **_target("trt-8.2"))
    assert notes == [
        "write-out-operators: Reciprocal is not among what TensorRT 8.2 takes: 3 written with other operators"
    ]
    model = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert model.opset_import[0].version == 13
    x = np.array([[0.3, -7.0]], np.float32)
    for condition in (True, False):
        feeds = {"x": x, "c": np.array(condition)}
        for lowered, given in zip(_run(model, feeds), _run(parser.parse_model(text), feeds), strict=True):
            np.testing.assert_allclose(lowered, given, rtol=1e-7)
    assert "Reciprocal" in [n.op_type for n in _lower(text, tmp_path, **_target("trt-8.5")).graph.node]
    with pytest.raises(StepError, match="Reciprocal: not supported: y"):
        _run_step(tmp_path, **_target("trt-8.2"), without_passes=["write-out-operators"])


def test_an_operator_above_the_opset_is_written_out(tmp_path: Path) -> None:
    text = HEAD + "g (float[2,3] x) => (float[2,3] y) <float[3] s = {1, 1, 1}> { y = LayerNormalization(x, s) }"
    lowered = _lower(text, tmp_path, **_target("trt-8.2"))
    assert "LayerNormalization" not in [node.op_type for node in lowered.graph.node]
    x = np.array([[1, 2, 4], [3, 3, 3]], np.float32)
    np.testing.assert_allclose(_run(lowered, {"x": x})[0], _run(parser.parse_model(text), {"x": x})[0], atol=1e-6)
    kept = _lower(text, tmp_path, **_target("trt-8.6"))
    assert [node.op_type for node in kept.graph.node] == ["LayerNormalization"]


def test_a_type_that_another_tensor_gives(tmp_path: Path) -> None:
    """CastLike came with opset 15, and the parsers of TensorRT 8.4 to 8.6, which take 17, do not have it."""
    text = HEAD + "g (float[2] x, float16[1] k) => (float16[2] y) { y = CastLike(x, k) }"
    lowered = _lower(text, tmp_path, **_target("trt-8.5"))
    assert [node.op_type for node in lowered.graph.node] == ["Cast"]
    assert _run(lowered, {"x": np.ones(2, np.float32), "k": np.ones(1, np.float16)})[0].dtype == np.float16


def test_an_opset_that_a_target_without_a_table_lacks(tmp_path: Path) -> None:
    text = HEAD + "g (float[2,3] x) => (float[2,3] y) <float[3] s = {1, 1, 1}> { y = LayerNormalization(x, s) }"
    with pytest.raises(StepError, match="LayerNormalization y: the operator came with opset 17"):
        _lower(text, tmp_path, opset_max=13)


def test_a_graph_that_needs_nothing_keeps_its_bytes(tmp_path: Path) -> None:
    files.save(canonical(parser.parse_model(PLAIN)), tmp_path / "in.onnx")
    _run_step(tmp_path, **_target("trt-8.5"))
    assert (tmp_path / "model.onnx").read_bytes() == (tmp_path / "in.onnx").read_bytes()


def test_what_onnx_runtime_cannot_load_goes_no_further(tmp_path: Path) -> None:
    with pytest.raises(StepError, match="ONNX Runtime cannot load the graph"):
        _lower(HEAD + "g (bfloat16[2] x) => (bfloat16[2] y) { y = Erf(x) }", tmp_path, opset_max=13)
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
    kept, _ = _kept(tmp_path, text, keep=[{"operators": ["Div"]}], mode="fp16", **_target("trt-8.2"))
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
