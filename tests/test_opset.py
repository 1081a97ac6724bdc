"""Older operator sets: what is the same is kept, what is not is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.version_converter
import onnxruntime
import pytest
from onnx import ModelProto, parser
from onnx.reference import ReferenceEvaluator

from trtrecipe.errors import StepError
from trtrecipe.graphs.canonical import canonical
from trtrecipe.graphs.files import opset
from trtrecipe.graphs.opset import lower_opset, to_opset
from trtrecipe.steps import export, fetch

TURNS = ", ".join(f"0.{at}" for at in range(10, 28))
X = np.random.default_rng(3).standard_normal((1, 4, 6, 6)).astype(np.float32)


def build(version: int, body: str, constants: str = "", output: str = "float[A,B,C,D] y") -> ModelProto:
    """x float32 [1,4,6,6] → `body`, at opset `version`."""
    return parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : {version}]> g (float[1,4,6,6] x) => ({output}) {constants} {{ {body} }}'
    )


def run(model: ModelProto, feeds: dict[str, Any] | None = None) -> list[Any]:
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, {"x": X} if feeds is None else feeds))


@pytest.mark.parametrize(
    ("version", "body", "constants"),
    [
        (17, "a = Relu(x) y = Add(a, x)", ""),
        (18, "y = ReduceMean<keepdims = 1>(x, axes)", "<int64[2] axes = {2, 3}>"),
        (18, "y = ReduceMax(x)", ""),
        (18, "a, b = Split<axis = 1, num_outputs = 2>(x) y = Sub(b, a)", ""),
        (14, "y = Reshape<allowzero = 0>(x, to)", "<int64[4] to = {0, 2, 2, -1}>"),
        (19, "y = AveragePool<kernel_shape = [2, 2], dilations = [1, 1]>(x)", ""),
        (19, "y = AveragePool<kernel_shape = [2, 2]>(x)", ""),
        (19, "a = Cast<to = 6, saturate = 1>(x) y = Cast<to = 1>(a)", ""),
        (19, 'y = Resize<mode = "nearest", antialias = 0>(x, , scales)', "<float[4] scales = {1.0, 1.0, 2.0, 2.0}>"),
        (18, "y = Pad(x, pads)", "<int64[8] pads = {0, 0, 1, 1, 0, 0, 1, 1}>"),
        (17, "s = Shape<start = 0>(x) y = Reshape(x, s)", ""),
        (15, "y = BatchNormalization(x, v, v, v, v)", "<float[4] v = {1.0, 2.0, 3.0, 4.0}>"),
        (21, "a = Transpose<perm = [0, 2, 3, 1]>(x) f = Flatten(a) y = Reshape(f, to)", "<int64[4] to = {1, 4, 6, 6}>"),
    ],
)
def test_the_same_graph_one_opset_lower(version: int, body: str, constants: str) -> None:
    model = build(version, body, constants)
    lowered = to_opset(model, 13)
    assert [(entry.domain, entry.version) for entry in lowered.opset_import] == [("", 13)]
    assert lowered.ir_version == 7
    for before, after in zip(run(model), run(lowered), strict=True):
        np.testing.assert_allclose(before, after, rtol=1e-5, atol=1e-6)  # ONNX Runtime has a kernel per opset
    assert [node.output[0] for node in lowered.graph.node] == [node.output[0] for node in model.graph.node]


@pytest.mark.parametrize(
    ("version", "target", "body", "constants", "reason"),
    [
        (17, 13, "y = LayerNormalization(x, s)", "<float[6] s = {1,1,1,1,1,1}>", "operator came with opset 17"),
        (18, 17, 'y = Resize<mode = "linear", antialias = 1>(x, , z)', "<float[4] z = {1,1,1,1}>", "antialias 1 came"),
        (19, 18, 'y = Pad<mode = "wrap">(x, p)', "<int64[8] p = {0,0,1,1,0,0,1,1}>", "mode wrap came with opset 19"),
        (
            18,
            13,
            "a = Shape<start = 3, end = 4>(x) d = Sub(a, t) y = Pad(x, p, v, d)",
            "<int64[2] p = {1,1}, float v = {0}, int64[1] t = {3}>",
            "Pad y: it has 4 inputs",
        ),
        (19, 13, "y = AveragePool<kernel_shape = [2, 2], dilations = [2, 2]>(x)", "", r"dilations \[2, 2\] came after"),
        (18, 13, "a, b, c = Split<axis = 2, num_outputs = 3>(x) y = Concat<axis = 1>(a, b, c)", "", None),
        (
            18,
            13,
            "a, b, c, d, e = Split<axis = 3, num_outputs = 5>(x) y = Neg(a)",
            "",
            "num_outputs 5 came after opset 13",
        ),
        (14, 13, "y = Reshape<allowzero = 1>(x, t)", "<int64[4] t = {1,2,2,36}>", "allowzero 1 came after opset 13"),
    ],
)
def test_what_an_older_opset_lacks(version: int, target: int, body: str, constants: str, reason: str | None) -> None:
    model = build(version, body, constants)
    if reason is None:
        np.testing.assert_array_equal(run(model)[0], run(to_opset(model, target))[0])
        return
    with pytest.raises(StepError, match=reason) as caught:
        to_opset(model, target)
    assert f"opset {version}, this target takes {target} at most" in caught.value.message
    assert "model.opset" in (caught.value.hint or "")


def test_a_default_that_means_something_new() -> None:
    """Before opset 16 RoiAlign took pixels to start at half: its default then and now differ in meaning."""
    body = (
        "y = RoiAlign{}(x, rois, which)",
        "<float[1,4] rois = {0,0,4,4}, int64[1] which = {0}>",
    )
    with pytest.raises(StepError, match="coordinate_transformation_mode half_pixel came after opset 13"):
        to_opset(build(16, body[0].format(""), body[1]), 13)
    former = build(16, body[0].format('<coordinate_transformation_mode = "output_half_pixel">'), body[1])
    np.testing.assert_array_equal(run(former)[0], run(to_opset(former, 13))[0])


def test_types_that_came_later() -> None:
    model = build(16, "a = Cast<to = 16>(x) b = Where(c, a, a) y = Cast<to = 1>(b)", "<bool c = {1}>")
    with pytest.raises(StepError, match="Where b: opset 13 does not take bfloat16 for X"):
        to_opset(model, 13)


def test_every_node_in_the_way_is_listed_up_to_a_limit() -> None:
    body = "".join(f"t{i + 1} = HardSwish(t{i}) " for i in range(20)).replace("t0", "x").replace("t20 ", "y ")
    with pytest.raises(StepError) as caught:
        to_opset(build(14, body), 13)
    assert caught.value.message.count("HardSwish") == 8
    assert caught.value.message.endswith("and 12 more")


def test_bodies_are_written_in_the_older_opset_too() -> None:
    text = (
        '<ir_version: 8, opset_import: ["" : 18]> g (float[1,4,6,6] x, bool c) => (float[A,B,C,D] y) '
        "<int64[1] axes = {{1}}> {{ y = If(c) <then_branch = t () => (float[A,B,C,D] a) {{ a = ReduceMean(x, axes) }}, "
        "else_branch = e () => (float[A,B,C,D] b) {{ b = {}(x) }}> }}"
    )
    lowered = to_opset(parser.parse_model(text.format("Neg")), 13)
    onnx.checker.check_model(lowered, full_check=True)
    with pytest.raises(StepError, match="Mish b: the operator came with opset 18"):
        to_opset(parser.parse_model(text.format("Mish")), 13)


def test_a_graph_that_is_low_enough_is_left_alone() -> None:
    model = build(13, "y = Relu(x)")
    assert to_opset(model, 17) is model


@pytest.mark.parametrize(
    ("version", "body", "constants"),
    [
        (15, "s = Shape<start = 1>(x) z = Expand(one, s) y = Add(x, z)", "<float[1] one = {1}>"),
        (
            17,
            "s = Shape<start = -3, end = -1>(x) t = Concat<axis = 0>(b, s, d) y = Reshape(x, t)",
            "<int64[1] b = {-1}, int64[1] d = {6}>",
        ),
        (17, "f = Shape(x) c = CastLike(f, x) y = Mul(x, c)", ""),
        (18, "y = Pad(x, p, v, a)", "<int64[4] p = {1,0,2,3}, float v = {0.5}, int64[2] a = {3, -2}>"),
        (18, "y = Pad(x, p, , a)", "<int64[2] p = {1,2}, int64[1] a = {3}>"),
        (18, "a, b, c, d = Split<axis = 3, num_outputs = 4>(x) y = Concat<axis = 3>(b, a, c)", ""),
    ],
)
def test_what_is_written_otherwise(version: int, body: str, constants: str) -> None:
    if "Split" in body:
        constants, body = "", body.replace("x)", "w)", 1)
        body = "w = Concat<axis = 3>(x, x) v = Slice(w, z, n, m) " + body.replace("(w)", "(v)")
        constants = "<int64[1] z = {0}, int64[1] n = {7}, int64[1] m = {3}>"
    if "CastLike" in body:
        body = body.replace("Mul(x, c)", "Mul(x, q)").replace("y =", "q = Reshape(c, to) y =")
        constants = "<int64[4] to = {1, 4, 1, 1}>"
    model = build(version, body, constants)
    lowered = to_opset(model, 13)
    assert opset(lowered) == 13
    for before, after in zip(run(model), run(lowered), strict=True):
        np.testing.assert_array_equal(before, after)
    assert {node.output[0] for node in model.graph.node} - {node.output[0] for node in lowered.graph.node} <= {"f"}


@pytest.mark.parametrize("mode", [None, "linear", "cubic", "nearest"])
def test_modes_of_grid_sample_had_other_names(mode: str | None) -> None:
    """While it took images alone; of volumes opset 16 knows nothing."""
    body = f'y = GridSample{"" if mode is None else f"""<mode = "{mode}">"""}(x, grid)'
    points = np.random.default_rng(5).uniform(-1.1, 1.1, 24)
    model = build(20, body, f"<float[1,4,3,2] grid = {{{', '.join(map(str, points))}}}>")
    lowered = to_opset(model, 16)
    assert opset(lowered) == 16
    np.testing.assert_array_equal(run(model)[0], run(lowered)[0])
    if mode in (None, "linear"):
        volume = parser.parse_model(
            '<ir_version: 8, opset_import: ["" : 20]> '
            f"g (float[1,1,2,2,2] x, float[1,2,2,2,3] grid) => (float[1,1,2,2,2] y) {{ {body} }}"
        )
        with pytest.raises(StepError, match="mode linear came with opset 20"):
            to_opset(volume, 16)


def _reference(model: ModelProto) -> Any:
    outputs: Any = ReferenceEvaluator(model).run(None, {"x": X})
    return outputs[0]


@pytest.mark.parametrize(
    ("version", "body", "constants"),
    [
        (23, "y = RMSNormalization(x, s)", "<float[6] s = {1, 2, 3, 4, 5, 6}>"),
        (23, "y = Attention<is_causal = 1>(x, x, x)", ""),
        (23, "y = RotaryEmbedding(x, t, t)", f"<float[1,6,3] t = {{{TURNS}}}>"),
        (24, "y = Swish<alpha = 1.5>(x)", ""),
    ],
)
def test_operators_that_onnx_defines_by_others(version: int, body: str, constants: str) -> None:
    """Where the older opset has no form for what is behind them, the operator itself is what is named."""
    model = build(version, body, constants)
    lowered = to_opset(model, 21)
    assert opset(lowered) == 21 and lowered.graph.output[0].name == "y"
    np.testing.assert_allclose(run(lowered)[0], _reference(model), atol=1e-5)
    if "Attention" in body:
        with pytest.raises(StepError, match="Attention y: the operator came with opset 23"):
            to_opset(model, 13)


def test_an_obstacle_leaves_the_graph_as_it_is() -> None:
    model = build(18, "a = Mish(x) s = Shape<start = 1>(a) z = Expand(one, s) y = Add(a, z)", "<float[1] one = {1}>")
    before = model.SerializeToString(deterministic=True)
    result, obstacles = lower_opset(model, 13)
    assert result is model and model.SerializeToString(deterministic=True) == before
    assert [(each.operator, each.node) for each in obstacles] == [("Mish", "a")]


@pytest.fixture(scope="module")
def transformer(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelProto:
    """The recipe's transformer as tf2onnx writes it at opset 17."""
    folder = tmp_path_factory.mktemp("transformer")
    source = repository / "recipes" / "transformer" / "model"
    (folder / "fetched").mkdir()
    fetch.run(fetch.Params("saved_model"), {"source": source}, folder / "fetched")
    inputs = {"model": folder / "fetched" / fetch.OUTPUTS["model"]}
    export.run(export.Params("saved_model", dims=[], opset=17), inputs, folder)
    return onnx.load(folder / "model.onnx")


@pytest.mark.parametrize("version", [17, 19, 21])
def test_a_graph_that_tensorflow_made(version: int, transformer: ModelProto) -> None:
    model = canonical(onnx.version_converter.convert_version(transformer, version))
    lowered = to_opset(model, 13)
    assert opset(lowered) == 13
    value = model.graph.input[0].type.tensor_type
    shape = [dim.dim_value or 1 for dim in value.shape.dim]
    feeds = {model.graph.input[0].name: np.random.default_rng(5).standard_normal(shape).astype(np.float32)}
    for before, after in zip(run(model, feeds), run(lowered, feeds), strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-6)
    made = {name for node in model.graph.node for name in node.output}
    assert made <= {name for node in lowered.graph.node for name in node.output}
