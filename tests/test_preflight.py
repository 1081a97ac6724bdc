"""Preflight: every rule finds the form that it is about, only where it holds, and says what to do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, parser

from trtrecipe.errors import StepError
from trtrecipe.graphs.canonical import canonical
from trtrecipe.graphs.opset import Obstacle
from trtrecipe.preflight import findings
from trtrecipe.preflight.checks import CHECKS
from trtrecipe.preflight.findings import Finding, inspect
from trtrecipe.targets.catalog import load_catalog
from trtrecipe.targets.parser import Parser
from trtrecipe.targets.parser import parser as parser_of

TABLES = {dialect.tensorrt: dialect.operators_from for dialect in load_catalog().dialects.values() if dialect.tensorrt}
IMAGE = "float[1,3,8,8] x"


def release(name: str) -> Parser:
    table = TABLES[name]
    assert table is not None
    return parser_of(name, table)


def graph(
    body: str, given: str = IMAGE, made: str = "float[A,B,C,D] y", constants: str = "", opset: int = 13
) -> ModelProto:
    return parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : {opset}]> g ({given}) => ({made}) {constants} {{ {body} }}'
    )


def forms(model: ModelProto, name: str, notes: bool = False) -> list[str]:
    return [f"{each.operator}: {each.form}" for each in inspect(model, release(name)) if each.note == notes]


W2 = "<float[3,3,3,3] w = {" + ",".join(["1"] * 81) + "}>"
CASES: dict[str, tuple[ModelProto, str, str | None, str]] = {
    # rule: (graph, a release that refuses, one that takes it, the form)
    "convolution-rank": (
        graph("y = Conv(x, w)", "float[1,1,2,2,2,2] x", "float[A,B,C,D,E,F] y", "<float[1,1,1,1,1,1] w = {2}>"),
        "8.6",
        None,
        "Conv: its input has 6 axes",
    ),
    "convolution-weights": (
        graph("v = Neg(w) y = Conv(x, v)", IMAGE + ", float[3,3,3,3] w"),
        "8.2",
        "8.5",
        "Conv: W is computed",
    ),
    "deconvolution-weights": (
        graph("y = ConvTranspose(x, w)", IMAGE + ", float[3,3,3,3] w"),
        "8.4",
        "8.5",
        "ConvTranspose: W is computed",
    ),
    "convolution-bias": (
        graph("y = Conv(x, w, b)", IMAGE + ", float[3] b", constants=W2),
        "8.2",
        "8.4",
        "Conv: B is computed",
    ),
    "deconvolution-bias": (
        graph("y = ConvTranspose(x, w, b)", IMAGE + ", float[3] b", constants=W2),
        "8.4",
        "8.5",
        "ConvTranspose: B is computed",
    ),
    "deconvolution-3d-padding": (
        graph(
            "y = ConvTranspose<pads = [0, 0, 0, 1, 0, 0]>(x, w)",
            "float[1,1,4,4,4] x",
            "float[A,B,C,D,E] y",
            "<float[1,1,2,1,1] w = {1, 2}>",
        ),
        "8.2",
        "8.4",
        "ConvTranspose: pads is [0, 0, 0, 1, 0, 0]",
    ),
    "pooling-rank": (
        graph("y = MaxPool<kernel_shape = [1, 1, 1, 1]>(x)", "float[1,1,2,2,2,2] x", "float[A,B,C,D,E,F] y"),
        "10.3",
        None,
        "MaxPool: its input has 6 axes",
    ),
    "pooling-dilation": (
        graph("y = MaxPool<kernel_shape = [2, 2], dilations = [2, 1]>(x)"),
        "8.6",
        None,
        "MaxPool: dilations is [2, 1]",
    ),
    "pooling-indices": (
        graph("y, i = MaxPool<kernel_shape = [2, 2]>(x)", made="float[A,B,C,D] y, int64[E,F,G,H] i"),
        "10.16",
        None,
        "MaxPool: it has 2 outputs",
    ),
    "average-padding": (
        graph("y = AveragePool<kernel_shape = [3, 3], pads = [0, 0, 2, 0]>(x)"),
        "8.4",
        "8.5",
        "AveragePool: pads is [0, 0, 2, 0]",
    ),
    "clip-limits": (graph("y = Clip(x, m)", IMAGE + ", float m"), "8.0", "8.2", "Clip: min is computed"),
    "cumsum-axis": (graph("y = CumSum(x, a)", IMAGE + ", int32 a"), "8.6", "10.13", "CumSum: axis is computed"),
    "einsum-ellipsis": (
        graph('y = Einsum<equation = "...ij->...ji">(x)'),
        "8.6",
        "10.3",
        "Einsum: its equation is ...ij->...ji",
    ),
    "einsum-inputs": (
        graph(
            'y = Einsum<equation = "abcd,d,d->abc">(x, v, v)',
            made="float[A,B,C] y",
            constants="<float[8] v = {1,1,1,1,1,1,1,1}>",
        ),
        "8.2",
        "10.3",
        "Einsum: its equation is abcd,d,d->abc",
    ),
    "einsum-diagonal": (
        graph('y = Einsum<equation = "abcc->abc">(x)', made="float[A,B,C] y"),
        "10.3",
        "10.13",
        "Einsum: its equation is abcc->abc",
    ),
    "einsum-broadcast": (
        graph(
            'y = Einsum<equation = "abcd,bd->abc">(x, v)',
            made="float[A,B,C] y",
            constants="<float[1,8] v = {1,1,1,1,1,1,1,1}>",
        ),
        "8.6",
        "10.16",
        "Einsum: its equation is abcd,bd->abc",
    ),
    "eyelike-static": (
        graph("y = EyeLike(x)", "float[n,3] x", "float[A,B] y"),
        "10.3",
        None,
        "EyeLike: its input has open axes",
    ),
    "gather-negative": (
        graph("y = Gather(x, i)", constants="<int64[2] i = {0, -2}>"),
        "8.0",
        "8.2",
        "Gather: indices has -2",
    ),
    "gather-elements-static": (
        graph("y = GatherElements(x, i)", "float[n,3] x, int64[n,3] i", "float[A,B] y"),
        "8.0",
        "8.2",
        "GatherElements: its input has open axes",
    ),
    "gather-bool": (
        graph("b = Greater(x, x) g = Gather(b, i) y = Cast<to = 1>(g)", constants="<int64[1] i = {0}>"),
        "8.4",
        "8.5",
        "Gather: its input is bool",
    ),
    "where-bool": (
        graph("b = Greater(x, x) g = Where(b, b, b) y = Cast<to = 1>(g)"),
        "8.2",
        "8.5",
        "Where: its input is bool",
    ),
    "tile-bool": (
        graph("b = Greater(x, x) g = Tile(b, r) y = Cast<to = 1>(g)", constants="<int64[4] r = {1, 1, 1, 2}>"),
        "8.0",
        "8.2",
        "Tile: its input is bool",
    ),
    "equal-bool": (
        graph("b = Greater(x, x) g = Equal(b, b) y = Cast<to = 1>(g)"),
        "8.4",
        "8.5",
        "Equal: its input is bool",
    ),
    "pow-integers": (graph("y = Pow(n, n)", "int32[2] n", "int32[A] y"), "10.3", "10.13", "Pow: its input is int32"),
    "matrix-integers": (
        graph("y = MatMul(n, n)", "int32[2,2] n", "int32[A,B] y"),
        "8.6",
        None,
        "MatMul: its input is int32",
    ),
    "extremum-integers": (
        graph("y = ArgMax(n)", "int32[2,2] n", "int64[A,B] y"),
        "8.5",
        "8.6",
        "ArgMax: its input is int32",
    ),
    "prelu-integers": (
        graph("y = PRelu(n, s)", "int32[2,2] n", "int32[A,B] y", "<int32[1] s = {2}>"),
        "10.3",
        None,
        "PRelu: its input is int32",
    ),
    "activation-integers": (
        graph("y = Relu(n)", "int32[2,2] n", "int32[A,B] y", opset=14),
        "8.6",
        None,
        "Relu: its input is int32",
    ),
    "activation-32-bit": (
        graph("y = Relu(n)", "int32[2,2] n", "int32[A,B] y", opset=14),
        "10.16",
        None,
        "Relu: its input is int32",
    ),
    "resize-integers": (
        graph('y = Resize<mode = "nearest">(n, , s)', "int32[2,2] n", "int32[A,B] y", "<float[2] s = {1, 2}>"),
        "10.16",
        None,
        "Resize: its input is int32",
    ),
    "topk-integers": (
        graph("y, i = TopK(n, k)", "int32[2,2] n", "int32[A,B] y, int64[C,D] i", "<int64[1] k = {1}>"),
        "8.5",
        "8.6",
        "TopK: its input is int32",
    ),
    "grid-sample-rank": (
        graph("y = GridSample(x, g)", "float[1,1,2,2,2] x, float[1,2,2,2,3] g", "float[A,B,C,D,E] y", opset=20),
        "10.16",
        None,
        "GridSample: its input has 5 axes",
    ),
    "if-ranks": (
        graph(
            "y = If(c) <then_branch = t () => (float[2] a) { a = Neg(v) }, "
            "else_branch = e () => (float b) { b = Neg(s) }>",
            "bool c",
            "float y",
            "<float[2] v = {1, 2}, float s = {1}>",
        ),
        "10.3",
        "8.6",
        "If: its branches give 1 and 0 axes",
    ),
    "if-shapes": (
        graph(
            "y = If(c) <then_branch = t () => (float[2] a) { a = Neg(v) }, "
            "else_branch = e () => (float[3] b) { b = Neg(s) }>",
            "bool c",
            "float[A] y",
            "<float[2] v = {1, 2}, float[3] s = {1, 2, 3}>",
        ),
        "8.2",
        "10.3",
        "If: its branches give [2] and [3]",
    ),
    "if-names": (
        graph(
            "y = If(c) <then_branch = t () => (float[2] a) { a = Neg(v) }, "
            "else_branch = e () => (float[2] a) { a = Abs(v) }>",
            "bool c",
            "float[A] y",
            "<float[2] v = {1, 2}>",
        ),
        "8.6",
        None,
        "If: both branches call an output a",
    ),
    "instance-normalization-constants": (
        graph("y = InstanceNormalization(x, s, b)", IMAGE + ", float[3] s", constants="<float[3] b = {1, 2, 3}>"),
        "8.5",
        "8.6",
        "InstanceNormalization: scale is computed",
    ),
    "instance-normalization-rank": (
        graph(
            "y = InstanceNormalization(x, s, s)",
            "float[1,3,2,2,2,2] x",
            "float[A,B,C,D,E,F] y",
            "<float[3] s = {1, 2, 3}>",
        ),
        "8.2",
        "8.6",
        "InstanceNormalization: its input has 6 axes",
    ),
    "layer-normalization-outputs": (
        graph(
            "y, m = LayerNormalization(x, s)",
            made="float[A,B,C,D] y, float[E,F,G,H] m",
            constants="<float[8] s = {1,1,1,1,1,1,1,1}>",
            opset=17,
        ),
        "8.6",
        None,
        "LayerNormalization: it has 2 outputs",
    ),
    "loop-scan-length": (
        graph(
            "f, y = Loop(n, c, v) <body = b (int64 i, bool k, float[2] u) => (bool l, float[2] w, float[2] z) "
            "{ l = Identity(k) w = Neg(u) z = Abs(u) }>",
            "int64 n, bool c, float[2] v",
            "float[A] f, float[B,C] y",
        ),
        "10.3",
        "8.6",
        "Loop: it collects an output of each round, and the number of rounds is computed",
    ),
    "loop-shapes": (
        graph(
            "y = Loop(n, c, v) <body = b (int64 i, bool k, float[U] u) => (bool l, float[W] w) "
            "{ l = Identity(k) w = Concat<axis = 0>(v, v) }>",
            "bool c, float[2] v",
            "float[A] y",
            "<int64 n = {1}>",
        ),
        "8.2",
        None,
        "Loop: it carries [2] in and [4] on",
    ),
    "lp-norm": (
        graph("y = LpPool<kernel_shape = [2, 2], p = 3>(x)"),
        "8.2",
        None,
        "LpPool: p is 3",
    ),
    "group-normalization-rank": (
        graph("y = InstanceNormalization(x, s, s)", "float[1,3] x", "float[A,B] y", "<float[3] s = {1, 2, 3}>"),
        "8.6",
        None,
        "InstanceNormalization: its input has 2 axes",
    ),
    "nms-constants": (
        graph("y = NonMaxSuppression(b, s, m)", "float[1,4,4] b, float[1,1,4] s, int64 m", "int64[A,B] y"),
        "8.4",
        "8.5",
        "NonMaxSuppression: max_output_boxes_per_class is computed",
    ),
    "onehot-depth": (
        graph("y = OneHot(i, d, v)", "int64[2] i, int64 d", "float[A,B] y", "<float[2] v = {0, 1}>"),
        "10.3",
        None,
        "OneHot: depth is computed",
    ),
    "pad-8.0": (
        graph("y = Pad(x, p)", constants="<int64[8] p = {0, 1, 0, 0, 0, 0, 0, 0}>"),
        "8.0",
        "8.2",
        "Pad: it pads axes [1]",
    ),
    "pad-constant-8.0": (graph("y = Pad(x, p)", IMAGE + ", int64[8] p"), "8.0", "8.2", "Pad: pads is computed"),
    "pad-wrap": (
        graph('y = Pad<mode = "wrap">(x, p)', constants="<int64[8] p = {0,0,1,1,0,0,1,1}>", opset=19),
        "8.6",
        "10.3",
        "Pad: mode is wrap",
    ),
    "pad-axes": (
        graph("y = Pad(x, p, , a)", IMAGE + ", int64[1] a", constants="<int64[2] p = {1, 1}>", opset=18),
        "10.3",
        "10.13",
        "Pad: axes is computed",
    ),
    "range-floats": (
        graph("y = Range(a, b, c)", "float a", "float[A] y", "<float b = {9}, float c = {1}>"),
        "8.2",
        "8.4",
        "Range: its floating-point limits are computed",
    ),
    "reduce-axes": (graph("y = ReduceSum(x, a)", IMAGE + ", int64[1] a"), "10.16", None, "ReduceSum: axes is computed"),
    "resize-coordinates": (
        graph(
            'y = Resize<coordinate_transformation_mode = "tf_crop_and_resize">(x, r, s)',
            constants="<float[8] r = {0,0,0,0,1,1,1,1}, float[4] s = {1, 1, 2, 2}>",
        ),
        "8.6",
        None,
        "Resize: coordinate_transformation_mode is tf_crop_and_resize",
    ),
    "resize-cubic": (
        graph('y = Resize<mode = "cubic">(x, , s)', constants="<float[4] s = {1, 1, 2, 2}>"),
        "8.4",
        "8.5",
        "Resize: mode is cubic",
    ),
    "resize-nearest": (
        graph(
            'y = Resize<coordinate_transformation_mode = "tf_half_pixel_for_nn", nearest_mode = "floor">(x, , s)',
            constants="<float[4] s = {1, 1, 2, 2}>",
        ),
        "8.6",
        None,
        "Resize: nearest_mode is floor with tf_half_pixel_for_nn",
    ),
    "resize-scales": (graph("y = Resize(x, , s)", IMAGE + ", float[4] s"), "8.2", "8.4", "Resize: scales is computed"),
    "resize-linear-axes": (
        graph('y = Resize<mode = "linear">(x, , s)', constants="<float[4] s = {2, 1, 2, 2}>"),
        "10.3",
        None,
        "Resize: it resizes axis 0 of 4 in mode linear",
    ),
    "resize-cubic-axes": (
        graph('y = Resize<mode = "cubic">(x, , , s)', constants="<int64[4] s = {1, 6, 16, 16}>"),
        "8.6",
        None,
        "Resize: it resizes axis 1 of 4 in mode cubic",
    ),
    "resize-antialias": (
        graph('y = Resize<antialias = 1, mode = "linear">(x, , s)', constants="<float[4] s = {1, 1, 2, 2}>", opset=18),
        "10.16",
        None,
        "Resize: antialias is 1",
    ),
    "resize-aspect": (
        graph(
            'y = Resize<keep_aspect_ratio_policy = "not_larger", axes = [2, 3]>(x, , , s)',
            constants="<int64[2] s = {16, 16}>",
            opset=18,
        ),
        "10.3",
        None,
        "Resize: keep_aspect_ratio_policy is not_larger",
    ),
    "reverse-static": (
        graph("y = ReverseSequence(x, l)", "float[n,3] x, int64[3] l", "float[A,B] y"),
        "8.5",
        "8.6",
        "ReverseSequence: its input has open axes",
    ),
    "scatter-nd-reduction": (
        graph(
            'y = ScatterND<reduction = "add">(x, i, u)',
            "float[4] x, float[1] u",
            "float[A] y",
            "<int64[1,1] i = {1}>",
            16,
        ),
        "10.16",
        None,
        "ScatterND: reduction is add",
    ),
    "scatter-elements-reduction": (
        graph(
            'y = ScatterElements<reduction = "add">(x, i, u)',
            "float[4] x, float[1] u",
            "float[A] y",
            "<int64[1] i = {1}>",
            16,
        ),
        "8.6",
        "10.3",
        "ScatterElements: reduction is add",
    ),
    "slice-axes": (
        graph("y = Slice(x, s, e, a)", IMAGE + ", int64[1] a", constants="<int64[1] s = {0}, int64[1] e = {1}>"),
        "8.6",
        "10.3",
        "Slice: axes is computed",
    ),
    "split-sizes": (
        graph("y, z = Split<axis = 1>(x, s)", IMAGE + ", int64[2] s", "float[A,B,C,D] y, float[E,F,G,H] z"),
        "8.0",
        "8.2",
        "Split: split is computed",
    ),
    "squeeze-axes": (
        graph("y = Squeeze(x, a)", "float[1,3] x, int64[1] a", "float[A] y"),
        "10.16",
        None,
        "Squeeze: axes is computed",
    ),
    "squeeze-open": (
        graph("y = Squeeze(x)", "float[n,1] x", "float[A] y"),
        "8.6",
        None,
        "Squeeze: it names no axes, and its input is open",
    ),
    "topk-constant": (
        graph("y, i = TopK(x, k)", "float[4] x, int64[1] k", "float[A] y, int64[B] i"),
        "8.5",
        "8.6",
        "TopK: K is computed",
    ),
    "topk-limit": (
        graph("y, i = TopK(x, k)", "float[5000] x", "float[A] y, int64[B] i", "<int64[1] k = {3841}>"),
        "10.16",
        None,
        "TopK: K is 3841",
    ),
    "topk-sorted": (
        graph("y, i = TopK<sorted = 0>(x, k)", "float[50] x", "float[A] y, int64[B] i", "<int64[1] k = {3}>"),
        "10.3",
        "8.6",
        "TopK: sorted is 0",
    ),
    "trilu-rank": (graph("y = Trilu(x)", opset=14), "8.5", "8.6", "Trilu: its input has 4 axes"),
    "hardmax-axis": (
        graph("y = Hardmax(x)", "float[2,n] x", "float[A,B] y"),
        "10.3",
        None,
        "Hardmax: its axis -1 is open",
    ),
    "deform-rank": (
        graph(
            "y = DeformConv(x, w, o)",
            "float[1,1,2,2,2] x, float[1,3,2,2,2] o",
            "float[A,B,C,D,E] y",
            "<float[1,1,1,1,1] w = {1}>",
            19,
        ),
        "10.3",
        None,
        "DeformConv: its input has 5 axes",
    ),
    "deform-padding": (
        graph(
            "y = DeformConv<pads = [1, 0, 0, 0]>(x, w, o)",
            "float[1,1,2,2] x, float[1,2,3,2] o",
            "float[A,B,C,D] y",
            "<float[1,1,1,1] w = {1}>",
            19,
        ),
        "10.3",
        None,
        "DeformConv: pads is [1, 0, 0, 0]",
    ),
    "stft-constants": (
        graph("y = STFT(x, s, w)", "float[1,16,1] x, int64 s", "float[A,B,C,D] y", "<float[4] w = {1, 1, 1, 1}>", 17),
        "10.16",
        None,
        "STFT: frame_step is computed",
    ),
}


@pytest.mark.parametrize("rule", CASES)
def test_a_rule_finds_its_form(rule: str) -> None:
    model, refusing, taking, form = CASES[rule]
    found = forms(model, refusing)
    assert [each for each in found if each == form] == ([form] if form else [])
    if form:
        finding = next(each for each in inspect(model, release(refusing)) if f"{each.operator}: {each.form}" == form)
        rules = {each.rule: each for each in release(refusing).rules}
        assert finding.takes == rules[rule].takes
        assert finding.since == rules[rule].until
    if taking is not None:
        assert form not in forms(model, taking)


def recurrent(operator: str, gates: int, **attributes: Any) -> ModelProto:
    directions = 2 if attributes.get("direction") == "bidirectional" else 1
    values = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [5, 1, 2]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["a", "b", "c", "d"]),
    ]
    weights = [
        helper.make_tensor(
            name, TensorProto.FLOAT, [directions, gates * 3, size], np.ones(directions * gates * 3 * size)
        )
        for name, size in (("w", 2), ("r", 3))
    ]
    node = helper.make_node(operator, ["x", "w", "r"], ["y"], hidden_size=3, **attributes)
    made = helper.make_graph([node], "g", values[:1], values[1:], weights)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)


@pytest.mark.parametrize(
    ("operator", "gates", "attributes", "form"),
    [
        ("LSTM", 4,
         {"direction": "bidirectional", "activations": ["Sigmoid", "Tanh", "Tanh", "Sigmoid", "Tanh", "Relu"]},
         "activations is ['Sigmoid', 'Tanh', 'Tanh', 'Sigmoid', 'Tanh', 'Relu']"),
        ("GRU", 3, {"direction": "bidirectional", "activations": ["Sigmoid", "Tanh", "sigmoid", "tanh"]}, None),
        ("RNN", 1, {"direction": "bidirectional", "activations": ["Tanh", "Relu"]}, "activations is ['Tanh', 'Relu']"),
        ("RNN", 1, {"activations": ["Relu"]}, None),
        ("LSTM", 4, {"input_forget": 1}, "input_forget is 1"),
        ("GRU", 3, {"layout": 1}, "layout is 1"),
    ],
)  # fmt: skip
def test_recurrent_layers(operator: str, gates: int, attributes: dict[str, Any], form: str | None) -> None:
    for name in TABLES:
        expected = [f"{operator}: {form}"] if form else []
        assert forms(recurrent(operator, gates, **attributes), name) == expected


def test_every_rule_has_a_check_and_a_case() -> None:
    rules = {rule.rule: rule for name in TABLES for rule in release(name).rules}
    assert {rule.check for rule in rules.values()} == set(CHECKS)
    told = {"recurrent-directions", "lstm-coupled", "recurrent-layout"}
    noted = {rule.rule for rule in rules.values() if rule.verdict == "note"}
    newer = {name for name in rules if name.startswith(("attention-", "tensor-scatter-"))}
    assert set(rules) - set(CASES) - told - noted - newer == {"constant-kinds"}
    assert set(CASES) <= set(rules)


def test_weights_behind_a_pair_are_constants() -> None:
    body = "d = DequantizeLinear<axis = 0>(q, s, z) y = Conv(x, d)"
    constants = "<int8[1,3,1,1] q = {1, 2, 3}, float[1] s = {0.5}, int8[1] z = {0}>"
    assert forms(graph(body, constants=constants), "8.2") == []
    assert forms(graph("b = Neg(w) d = QuantizeLinear(b, s, z) e = DequantizeLinear(d, s, z) y = Conv(x, e)",
                       IMAGE + ", float[1,3,1,1] w", constants="<float s = {0.5}, int8 z = {0}>"), "8.2") == [
        "Conv: W is computed"]  # fmt: skip


# --- Element types


@pytest.mark.parametrize(
    ("given", "body", "made", "refused", "taken"),
    [
        ("uint8[2] x", "y = Cast<to = 1>(x)", "float[A] y", "8.4", "8.5"),
        ("uint8[2] x", "i = Identity(x) y = Cast<to = 1>(i)", "float[A] y", "8.5", None),
        ("int16[2] x", "y = Cast<to = 1>(x)", "float[A] y", "10.16", None),
        ("string[2] x", "y = Cast<to = 1>(x)", "float[A] y", "10.16", None),
        ("bfloat16[2] x", "y = Cast<to = 1>(x)", "float[A] y", "8.6", "10.3"),
        ("int64[2] x", "y = Cast<to = 1>(x)", "float[A] y", "", "8.0"),
        ("double[2] x", "y = Cast<to = 1>(x)", "float[A] y", "", "10.16"),
        ("float[2] x", "i = Cast<to = 4>(x) y = Cast<to = 1>(i)", "float[A] y", "10.16", None),
    ],
)
def test_element_types(given: str, body: str, made: str, refused: str, taken: str | None) -> None:
    model = graph(body, given, made)
    kind = given.partition("[")[0] if "Cast<to = 4>" not in body else "uint16"
    if refused:
        found = inspect(model, release(refused))
        assert found and {each.form for each in found} == {f"is {kind}"}
        assert all("float32" in str(each.takes) and each.do for each in found)
    if taken:
        assert forms(model, taken) == []


def test_a_type_that_the_list_leaves_out_is_a_note() -> None:
    model = graph("y = ReduceProd(x)", "int32[2] x", "int32[A] y")
    assert forms(model, "8.2") == []
    assert forms(model, "8.2", notes=True) == [
        "ReduceProd: computes on INT32, where the published list for TensorRT 8.2 has FP32, FP16"
    ]
    assert inspect(model, release("10.3")) == []


@pytest.mark.parametrize(
    ("body", "refused"),
    [
        ("y = Add(x, c)", True),
        ("y = Slice(x, z, c)", False),  # the end of a slice is cut anyway
        ("y = Slice(c, z, x)", True),
    ],
)
def test_64_bit_constants_that_do_not_fit(body: str, refused: bool) -> None:
    model = graph(body, "int64[1] x", "int64[A] y", "<int64[1] c = {9223372036854775807}, int64[1] z = {0}>")
    assert bool(forms(model, "8.6")) is refused
    assert forms(model, "10.3") == []


# --- What is noted


def test_what_a_person_should_know() -> None:
    model = graph(
        "y = NonMaxSuppression(b, s, m) r = RandomUniformLike<seed = 2.0>(b)",
        "float[1,4,4] b, float[1,1,4] s",
        "int64[A,B] y, float[C,D,E] r",
        "<int64 m = {2}>",
    )
    told = findings.notes(inspect(model, release("8.2")), {})
    assert "NonMaxSuppression: a fixed number of boxes: what is missing is padded: y" in told
    assert "RandomUniformLike: random numbers of its own: the seed does not count: r" in told
    told = findings.notes(inspect(model, release("8.5")), {})
    assert "NonMaxSuppression: outputs whose size is known only when the engine has run: y" in told


# --- The message


def test_one_message_names_everything() -> None:
    model = graph(
        "a = Bernoulli(x) b = Bernoulli(a) c = Shrink(b) k = Shape(c) n = Gather(k, i) "
        "t, u = TopK<axis = 3>(c, n) y = Det(t)",
        made="float[A,B] y",
        constants="<int64[1] i = {3}>",
        opset=15,
    )
    for node, name in zip(
        model.graph.node, ["net/noise/a", "net/noise/b", "s", "k", "n", "net/top/t", "d"], strict=True
    ):
        node.name = name
    layers = {
        "net": ["net/noise/a", "net/top/t"],
        "net/noise": ["net/noise/a", "net/noise/b"],
        "net/top": ["net/top/t"],
    }
    found = inspect(
        model, release("8.2"), [Obstacle("Shape", "k", "start 1 came after opset 13"), Obstacle("Det", "d", "x")]
    )
    with pytest.raises(StepError) as caught:
        findings.require(found, release("8.2"), layers, [])
    assert caught.value.message.splitlines() == [
        "TensorRT 8.2 does not take this model:",
        "  Bernoulli: not supported: net/noise/a (layer net/noise), net/noise/b (layer net/noise)",
        "  Shrink: not supported: s; TensorRT 8.4 takes it",
        "  TopK: K is computed: net/top/t (layer net/top); TensorRT 8.2 takes a K that is a constant; "
        "TensorRT 8.6 takes it; make it a constant of the model",
        "  Det: not supported: d",
        "  Shape: start 1 came after opset 13: k; export the model at opset 13 (model.opset)",
    ]
    assert caught.value.hint == "change these layers in the model, or leave this target out"


def test_many_nodes_and_many_forms_make_a_short_message() -> None:
    body = "".join(f"t{i + 1} = Shrink(t{i}) " for i in range(50)).replace("t0)", "x)").replace("t50 ", "y ")
    with pytest.raises(StepError, match="Shrink: not supported: t1, t2, t3 and 47 more") as caught:
        findings.require(inspect(graph(body), release("8.2")), release("8.2"), {}, [])
    assert len(caught.value.message.splitlines()) == 2
    many = [Finding(f"Op{number}", "not supported", ("n",)) for number in range(30)]
    with pytest.raises(StepError, match="and 22 more"):
        findings.require(many, release("8.2"), {}, [])


def test_an_assumed_list_is_called_that() -> None:
    found = inspect(graph("y = Det(x)", "float[2,2] x", "float y"), release("10.3"))
    assert [each.form for each in found] == [
        "not supported by TensorRT 10.1, the nearest release with a published list"
    ]
    assert forms(graph("y = Relu(x)"), "10.3") == []


def test_a_pass_that_is_turned_off_is_named() -> None:
    found = inspect(graph("y = Reciprocal(x)"), release("8.2"))
    with pytest.raises(
        StepError, match=r"the pass write-out-operators, which model\.without_passes turns off, writes it"
    ):
        findings.require(found, release("8.2"), {}, ["write-out-operators"])


def test_operators_inside_bodies_count() -> None:
    model = graph(
        "y = If(c) <then_branch = t () => (float[1] a) { a = Shrink(x) }, "
        "else_branch = e () => (float[1] b) { b = Neg(x) }>",
        "float[1] x, bool c",
        "float[1] y",
    )
    assert forms(model, "8.2") == ["Shrink: not supported"]


def test_operators_of_other_domains() -> None:
    model = graph("y = Relu(x)")
    model.graph.node[0].domain = "com.acme"
    model.opset_import.add(domain="com.acme", version=1)
    found = inspect(model, release("8.2"))
    assert [(each.operator, each.form) for each in found] == [("com.acme.Relu", "no operator of ONNX")]


# --- A real parser, that of TensorRT for RTX, which takes the newest operators


def refused_by_rtx(model: ModelProto) -> bool:
    trt = pytest.importorskip("tensorrt_rtx")
    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    return not trt.OnnxParser(network, logger).parse(canonical(model).SerializeToString())


OBSERVED = [
    "activation-32-bit",
    "convolution-rank",
    "eyelike-static",
    "group-normalization-rank",
    "layer-normalization-outputs",
    "lp-norm",
    "matrix-integers",
    "pooling-dilation",
    "pooling-indices",
    "pooling-rank",
    "prelu-integers",
    "reduce-axes",
    "resize-antialias",
    "resize-aspect",
    "resize-coordinates",
    "resize-integers",
    "resize-linear-axes",
    "resize-nearest",
    "scatter-nd-reduction",
    "squeeze-axes",
]


@pytest.mark.parametrize("rule", OBSERVED)
def test_a_rule_that_was_never_lifted_holds_for_a_real_parser(rule: str) -> None:
    assert all(each.until is None for name in TABLES for each in release(name).rules if each.rule == rule)
    assert refused_by_rtx(CASES[rule][0])


LIFTED = [
    "average-padding",
    "clip-limits",
    "convolution-bias",
    "convolution-weights",
    "cumsum-axis",
    "deconvolution-3d-padding",
    "deconvolution-weights",
    "einsum-diagonal",
    "einsum-ellipsis",
    "einsum-inputs",
    "equal-bool",
    "gather-bool",
    "gather-elements-static",
    "gather-negative",
    "instance-normalization-constants",
    "nms-constants",
    "pad-8.0",
    "pad-axes",
    "pad-constant-8.0",
    "pad-wrap",
    "pow-integers",
    "resize-cubic",
    "reverse-static",
    "slice-axes",
    "split-sizes",
    "tile-bool",
    "topk-constant",
    "topk-integers",
    "trilu-rank",
    "where-bool",
]


@pytest.mark.parametrize("rule", LIFTED)
def test_a_rule_that_was_lifted_does_not(rule: str) -> None:
    assert any(each.until for name in TABLES for each in release(name).rules if each.rule == rule)
    assert not refused_by_rtx(CASES[rule][0])
