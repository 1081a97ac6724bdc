"""Models that carry Q/DQ: from the forms that tools write to TensorRT's, with the values that the model had."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper, parser

from trtrecipe.errors import StepError
from trtrecipe.graphs import carried_pairs
from trtrecipe.graphs.carried import constants, is_pair_node
from trtrecipe.graphs.carried_grid import Grid
from trtrecipe.graphs.carried_signs import Signs
from trtrecipe.graphs.edit import attribute
from trtrecipe.graphs.passes import simplify
from trtrecipe.quant.carried import carried_thresholds, carries_quantization
from trtrecipe.quant.forms import quantization
from trtrecipe.steps import calibrate, convert, export, lower, prepare, quantize

RANDOM = np.random.default_rng(11)
X = RANDOM.standard_normal((6, 3, 8, 8)).astype(np.float32)


def run(model: ModelProto, feeds: dict[str, Any]) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


def parsed(text: str, opset: int = 13, **values: Any) -> ModelProto:
    model = parser.parse_model(f'<ir_version: {7 if opset < 19 else 10}, opset_import: ["" : {opset}]> {text}')
    for name, value in values.items():
        tensor = value if isinstance(value, TensorProto) else numpy_helper.from_array(np.asarray(value), name)
        model.graph.initializer.append(tensor)
    return model


def exported(model: ModelProto | Path, folder: Path, **params: Any) -> ModelProto:
    folder.mkdir(exist_ok=True)
    source = model if isinstance(model, Path) else folder / "source"
    if isinstance(model, ModelProto):
        source.write_bytes(model.SerializeToString())
    export.run(export.Params(format="onnx", **params), {"model": source}, folder)
    return onnx.load(folder / "model.onnx")


def prepared(model: ModelProto, folder: Path) -> tuple[ModelProto, list[str]]:
    """The prepared model, once it is shown to be explicit, complete ONNX and left alone by a second round."""
    folder.mkdir(exist_ok=True)
    (folder / "in.onnx").write_bytes(model.SerializeToString())
    measured = prepare.run(prepare.Params(), {"onnx": folder / "in.onnx"}, folder)
    result = onnx.load(folder / "model.onnx")
    first = (folder / "model.onnx").read_bytes()
    again = prepare.run(prepare.Params(), {"onnx": folder / "model.onnx"}, folder)
    assert (folder / "model.onnx").read_bytes() == first
    assert not [note for note in again.get("notes", []) if note.startswith("changed")]
    onnx.checker.check_model(result, full_check=True)
    assert_explicit(result)
    return result, list(measured.get("notes", []))


def assert_explicit(model: ModelProto) -> None:
    """INT8 around 0, FP32 constant scales, FP32 in front of every QuantizeLinear, nothing between the two halves."""
    held = constants(model)
    makers = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if not is_pair_node(node):
            continue
        scale, zero = held[node.input[1]], held[node.input[2]]
        assert scale.data_type == TensorProto.FLOAT
        assert zero.data_type == TensorProto.INT8 and not numpy_helper.to_array(zero).any()
        if node.op_type == "DequantizeLinear":
            assert makers[node.input[0]].op_type == "QuantizeLinear"
        elif node.input[0] in held:
            assert held[node.input[0]].data_type == TensorProto.FLOAT
        else:
            assert len(scale.dims) == 0
    assert quantization(model).forms.keys() <= {"int8", "per-channel-weights"}


def operators(model: ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def scales(model: ModelProto) -> dict[str, Any]:
    """Tensor in front of a pair → its scale."""
    held = constants(model)
    return {
        node.input[0]: numpy_helper.to_array(held[node.input[1]])
        for node in model.graph.node
        if node.op_type == "QuantizeLinear"
    }


# --- What ONNX Runtime's own tool writes


def float_model(path: Path) -> Path:
    """Conv, ReLU, a residual branch with a depthwise Conv, ReLU6, pooling, MatMul with a bias beside it, Gemm."""
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["c1"], "conv1", pads=[1] * 4),
        node("Relu", ["c1"], ["r1"], "relu1"),
        node("Conv", ["r1", "w2", "b2"], ["c2"], "conv2", pads=[1] * 4),
        node("Conv", ["r1", "w3"], ["c3"], "depthwise", pads=[1] * 4, group=4),
        node("Add", ["c2", "c3"], ["s"], "sum"),
        node("Clip", ["s", "zero", "six"], ["r2"], "relu6"),
        node("MaxPool", ["r2"], ["m"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        node("GlobalAveragePool", ["m"], ["p"], "average"),
        node("Flatten", ["p"], ["f"], "flatten"),
        node("MatMul", ["f", "k"], ["h"], "matmul"),
        node("Add", ["h", "hb"], ["hh"], "bias"),
        node("Gemm", ["hh", "g", "gb"], ["y"], "gemm", transB=1),
    ]
    shapes = {"w1": (4, 3, 3, 3), "b1": (4,), "w2": (4, 4, 3, 3), "b2": (4,), "w3": (4, 1, 3, 3), "k": (4, 6)}
    shapes |= {"hb": (6,), "g": (5, 6), "gb": (5,)}
    values = {name: RANDOM.standard_normal(shape) / np.sqrt(np.prod(shape[1:])) for name, shape in shapes.items()}
    values |= {"zero": np.array(0), "six": np.array(6)}
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [info("y", TensorProto.FLOAT, ["n", 5])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in values.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return float_model(tmp_path_factory.mktemp("float") / "float.onnx")


def statically_quantized(source: Path, folder: Path, activation: str, weight: str, **options: Any) -> ModelProto:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        feeds = iter([{"x": X}])

        def get_next(self) -> Any:
            return next(self.feeds, None)

    per_channel = options.pop("per_channel", False)
    logging.disable(logging.WARNING)  # it asks for a preprocessing that it can do without
    try:
        quantize_static(
            source,
            folder / "quantized.onnx",
            Reader(),
            quant_format=options.pop("quant_format", QuantFormat.QDQ),
            activation_type=getattr(QuantType, activation),
            weight_type=getattr(QuantType, weight),
            per_channel=per_channel,
            extra_options=options,
        )
    finally:
        logging.disable(logging.NOTSET)
    return onnx.load(folder / "quantized.onnx")


PARAMS: dict[str, Any] = {"inputs": {"x": {"shape": ["n", 3, 8, 8]}}, "dims": ["n"]}


@pytest.mark.parametrize(
    ("activation", "options"),
    [
        ("QInt8", {}),
        ("QInt8", {"per_channel": True}),
        ("QUInt8", {"per_channel": True}),  # around 128
        ("QInt8", {"per_channel": True, "AddQDQPairToWeight": True}),
        ("QInt8", {"UseQDQContribOps": True}),
    ],
)
def test_symmetric_models_keep_every_value(
    source: Path, tmp_path: Path, activation: str, options: dict[str, Any]
) -> None:
    given = statically_quantized(source, tmp_path, activation, "QInt8", ActivationSymmetric=True, **options)
    before = exported(given, tmp_path / "exported", **PARAMS)
    after, notes = prepared(before, tmp_path / "prepared")
    np.testing.assert_array_equal(run(after, {"x": X})[0], run(before, {"x": X})[0])
    assert notes[0].startswith(
        "the model carries its own quantization: pairs on 13 activations and on 5 weight tensors"
    )
    assert not [note for note in notes if note.startswith("changed")]
    by_name = {node.name: node for node in after.graph.node}
    makers = {name: node for node in after.graph.node for name in node.output}
    for name in ("conv1", "conv2", "depthwise", "matmul", "gemm"):
        assert [makers[each].op_type for each in by_name[name].input[:2]] == ["DequantizeLinear"] * 2
        assert all(each in constants(after) for each in by_name[name].input[2:])  # biases are floats
    weights = [
        node for node in after.graph.node if node.op_type == "QuantizeLinear" and node.input[0] in constants(after)
    ]
    assert len(weights) == 5
    # Each weight is an integer times its scale: what it was, in front of the pair.
    for node in weights:
        axis = attribute(node, "axis")
        scale = scales(after)[node.input[0]]
        value = numpy_helper.to_array(constants(after)[node.input[0]])
        if options.get("AddQDQPairToWeight"):
            continue  # weights were floats and still are
        steps = value / (scale if axis is None else np.moveaxis(scale.reshape(-1, *[1] * (value.ndim - 1)), 0, axis))
        np.testing.assert_allclose(steps, np.rint(steps), atol=1e-4)


@pytest.mark.parametrize(("activation", "weight"), [("QUInt8", "QInt8"), ("QUInt8", "QUInt8"), ("QInt8", "QInt8")])
def test_asymmetric_models_change_as_documented(source: Path, tmp_path: Path, activation: str, weight: str) -> None:
    given = statically_quantized(source, tmp_path, activation, weight)
    before = exported(given, tmp_path / "exported", **PARAMS)
    after, notes = prepared(before, tmp_path / "prepared")
    changed = [note for note in notes if note.startswith("changed")]
    assert "ranges that are not symmetric" in changed[0] and "2.01 times as wide" in changed[0]
    assert "no longer saturate" in changed[1]

    pairs = {pair.source: pair for pair in carried_pairs.read(simplify(before)) if not pair.constant}
    found = scales(after)
    for name, pair in pairs.items():
        low, high = (float(bound) for bound in pair.grid.bounds())
        tensor = next(each for each in (f"{name}/Relu", name) if each in found)
        np.testing.assert_allclose(found[tensor] * 127, max(-low, high), rtol=1e-6)

    # The tool has taken out ReLU and ReLU6: the ends of the ranges did their work, and a Relu does it now.
    assert "Relu" not in operators(before) and "Clip" not in operators(before)
    assert {"r1/Relu", "r2/Relu"} <= {node.name for node in after.graph.node}
    reference = run(onnx.load(source), {"x": X})[0]
    quantized, result = run(before, {"x": X})[0], run(after, {"x": X})[0]
    steps = max(float(np.max(pair.grid.symmetric())) for pair in pairs.values())
    assert 0 < np.abs(result - quantized).max() < 4 * steps
    assert np.abs(result - reference).max() < 6 * steps


def test_a_model_of_operators_on_integers_is_refused(source: Path, tmp_path: Path) -> None:
    from onnxruntime.quantization import QuantFormat

    given = statically_quantized(source, tmp_path, "QInt8", "QInt8", quant_format=QuantFormat.QOperator)
    onnx_only = ModelProto()
    onnx_only.CopyFrom(given)
    with pytest.raises(StepError, match=r"com\.microsoft\.QLinear"):  # some of them are its own
        exported(given, tmp_path / "exported", **PARAMS)
    text = "g (float[2] x) => (int32[2] y) { q, s, z = DynamicQuantizeLinear(x) y = MatMulInteger(q, w, z) }"
    with pytest.raises(StepError, match="DynamicQuantizeLinear q s z\n  MatMulInteger y") as caught:
        exported(parsed(text, w=np.ones((2, 2), np.int8)), tmp_path / "exported")
    assert "quant_format=QDQ" in (caught.value.hint or "")


def test_the_whole_way_to_an_engine(source: Path, tmp_path: Path) -> None:
    given = statically_quantized(source, tmp_path, "QInt8", "QInt8", per_channel=True, ActivationSymmetric=True)
    exported(given, tmp_path / "e", **PARAMS)
    model, _ = prepared(onnx.load(tmp_path / "e" / "model.onnx"), tmp_path / "p")
    expected = scales(model)
    for name in ("s", "l", "q", "c"):
        (tmp_path / name).mkdir()
    onnx_of = {name: tmp_path / name / "model.onnx" for name in ("p", "l", "q", "c")}
    measured = calibrate.run(calibrate.Params("entropy", source="model"), {"onnx": onnx_of["p"]}, tmp_path / "s")
    assert "calibration skipped" in measured["notes"][0]
    layers = tmp_path / "e" / "layers.json"
    lower.run(lower.Params("x", 13, "int8", fallback="fp16"), {"onnx": onnx_of["p"], "layers": layers}, tmp_path / "l")
    inputs = {"scales": tmp_path / "s" / "scales.json", "keep": tmp_path / "l" / "keep.json"}
    measured = quantize.run(quantize.Params(), {"onnx": onnx_of["l"], **inputs}, tmp_path / "q")
    assert measured["notes"] == []
    assert onnx_of["q"].read_bytes() == onnx_of["l"].read_bytes()
    convert.run(convert.Params("fp16"), {"onnx": onnx_of["q"], **inputs}, tmp_path / "c")
    half = onnx.load(onnx_of["c"])
    held = constants(half)
    for node in half.graph.node:
        if node.op_type == "QuantizeLinear":  # FP32 still, as opset 13 has no other
            assert held[node.input[1]].data_type == TensorProto.FLOAT
            if node.input[0] in held:
                assert held[node.input[0]].data_type == TensorProto.FLOAT
    assert sorted(map(np.sum, scales(half).values())) == sorted(map(np.sum, expected.values()))
    np.testing.assert_allclose(run(half, {"x": X})[0], run(model, {"x": X})[0], atol=0.05)
    pytest.importorskip("tensorrt_rtx", reason="the rtx extra is not installed")
    from trtrecipe.engines import tensorrt_build

    tensorrt_build.build_for_rtx(half, tmp_path / "engine", {"n": {"min": 1, "opt": 2, "max": 4}}, None)
    assert (tmp_path / "engine").stat().st_size > 0


# --- Single forms

CONV = "g (float[6,3,8,8] x) => (float[A,B,C,D] y) "
WEIGHTS = RANDOM.integers(-128, 128, (4, 3, 3, 3)).astype(np.int8)
PER_CHANNEL = np.array([0.01, 0.02, 0.03, 0.04], np.float32)


def kept(model: ModelProto, folder: Path, feeds: dict[str, Any] | None = None) -> tuple[ModelProto, list[str]]:
    """The prepared model, once it is shown to compute exactly the same."""
    result, notes = prepared(model, folder)
    for before, after in zip(run(model, feeds or {"x": X}), run(result, feeds or {"x": X}), strict=True):
        np.testing.assert_array_equal(after, before)
    return result, notes


def test_integer_weights_become_floats_in_front_of_a_pair(tmp_path: Path) -> None:
    text = CONV + "{ wd = DequantizeLinear<axis = 0>(w, s, z) y = Conv(x, wd) }"
    model = parsed(text, w=WEIGHTS, s=PER_CHANNEL, z=np.zeros(4, np.int8))
    result, notes = kept(model, tmp_path)
    assert operators(result) == ["QuantizeLinear", "DequantizeLinear", "Conv"]
    assert "0 activations and on 1 weight tensor" in notes[0]
    name = result.graph.node[0].input[0]
    value = numpy_helper.to_array(constants(result)[name])
    np.testing.assert_array_equal(np.rint(value / PER_CHANNEL.reshape(4, 1, 1, 1)).astype(np.int8), WEIGHTS)
    assert not carried_thresholds(result)


def test_no_pass_folds_quantized_weights(tmp_path: Path) -> None:
    """Batch normalization and arithmetic behind a Conv would otherwise go into its weights."""
    text = CONV + (
        "{ wq = QuantizeLinear(w, s, z) wd = DequantizeLinear(wq, s, z) c = Conv(x, wd) "
        "n = BatchNormalization(c, one, one, one, one) y = Mul(n, two) }"
    )
    values = {"w": WEIGHTS.astype(np.float32), "s": np.float32(1.5), "z": np.int8(0), "two": np.float32(2)}
    result, _ = kept(parsed(text, **values, one=np.ones(4, np.float32)), tmp_path)
    assert operators(result)[:3] == ["QuantizeLinear", "DequantizeLinear", "Conv"]
    np.testing.assert_array_equal(numpy_helper.to_array(constants(result)["w"]), values["w"])
    assert scales(result)["w"] == np.float32(1.5)


@pytest.mark.parametrize(
    ("movers", "axis"),
    [
        ("t = Transpose<perm = [3, 2, 0, 1]>(wd) y = Conv(x, t)", 0),
        ("i = Identity(wd) t = Transpose<perm = [3, 2, 0, 1]>(i) y = Conv(x, t)", 0),
        ("r = Reshape(wd, flat) p = Reshape(r, back) t = Transpose<perm = [3, 2, 0, 1]>(p) y = Conv(x, t)", 0),
    ],
)
@pytest.mark.parametrize("integers", [True, False])
def test_what_moves_weights_is_done_before_they_are_quantized(
    tmp_path: Path, movers: str, axis: int, integers: bool
) -> None:
    """Weights in TensorFlow's layout: channels last."""
    weights = np.ascontiguousarray(WEIGHTS.transpose(2, 3, 1, 0))
    half = "wd = DequantizeLinear<axis = 3>(q, s, z) "
    text = CONV + "{ " + ("" if integers else "q = QuantizeLinear<axis = 3>(w, s, z) ") + half + movers + " }"
    floats = weights.astype(np.float32) * PER_CHANNEL
    given = {"q": weights} if integers else {"w": floats}
    shapes = {"flat": np.array([9, 3, 4]), "back": np.array([3, 3, 3, 4])}
    model = parsed(text, **given, **shapes, s=PER_CHANNEL, z=np.zeros(4, np.int8))
    result, _ = kept(model, tmp_path)
    assert operators(result) == ["QuantizeLinear", "DequantizeLinear", "Conv"]
    assert attribute(result.graph.node[0], "axis") == axis
    np.testing.assert_array_equal(next(iter(scales(result).values())), PER_CHANNEL)


def test_a_reshape_that_spreads_channels_leaves_floats(tmp_path: Path) -> None:
    text = CONV + "{ wd = DequantizeLinear<axis = 0>(w, s, z) r = Reshape(wd, to) y = Conv(x, r) }"
    values = {"w": WEIGHTS.reshape(2, 54), "s": np.array([0.1, 0.2], np.float32), "z": np.zeros(2, np.int8)}
    result, notes = kept(parsed(text, **values, to=np.array([4, 3, 3, 3])), tmp_path)
    assert operators(result) == ["Conv"]
    assert "became the floats they stood for" in notes[1]


def test_weights_that_others_read_too(tmp_path: Path) -> None:
    text = "g (float[6,3,8,8] x) => (float[A,B,C,D] y, float[4,3,3,3] k) " + (
        "{ wd = DequantizeLinear(w, s) y = Conv(x, wd) k = Relu(wd) }"
    )
    result, _ = kept(parsed(text, w=WEIGHTS, s=np.float32(0.1)), tmp_path)
    assert sorted(operators(result)) == ["Conv", "DequantizeLinear", "QuantizeLinear", "Relu"]


def test_biases_and_other_constants_are_floats(tmp_path: Path) -> None:
    text = "g (float[4] x) => (float[4] y, float[2,4] e) " + (
        "{ b = DequantizeLinear<axis = 0>(bias, bs) y = Add(x, b) t = DequantizeLinear(table, ts, tz) "
        "e = Gather(t, at) }"
    )
    values = {"bias": np.array([1 << 20, -5, 0, 7], np.int32), "bs": np.array([1e-6, 1, 2, 3], np.float32)}
    table = RANDOM.integers(0, 255, (9, 4)).astype(np.uint8)
    model = parsed(text, **values, table=table, ts=np.float32(0.3), tz=np.uint8(77), at=np.array([3, 1]))
    result, notes = kept(model, tmp_path, {"x": np.ones(4, np.float32)})
    assert not carries_quantization(result)
    assert "2 constants" in notes[1]


def test_pairs_as_pytorch_writes_them(tmp_path: Path) -> None:
    """Zero points through Cast, and a Clip of the integers for the range of 7 bits."""
    text = CONV + (
        "{ z = Cast<to = 2>(zi) q = QuantizeLinear(x, s, z) c = Clip(q, zero, top) d = DequantizeLinear(c, s, z) "
        "y = Conv(d, w) }"
    )
    values = {"zi": np.int64(0), "s": np.float32(0.02), "zero": np.uint8(0), "top": np.uint8(127)}
    result, notes = kept(parsed(text, **values, w=WEIGHTS.astype(np.float32)), tmp_path)
    assert operators(result) == ["Relu", "QuantizeLinear", "DequantizeLinear", "Conv"]
    assert carried_thresholds(result) == {"x/Relu": float(np.float32(0.02) * np.float32(127))}
    assert not [note for note in notes if note.startswith("changed")]


@pytest.mark.parametrize(
    ("zero", "low", "high", "front"),
    [(0, -64, 63, ["Clip"]), (0, -127, 127, []), (0, 10, 90, ["Clip"]), (0, -128, -1, ["Clip"]), (0, 0, 127, ["Relu"])],
)
def test_integers_that_are_clipped(tmp_path: Path, zero: int, low: int, high: int, front: list[str]) -> None:
    text = CONV + "{ q = QuantizeLinear(x, s, z) c = Clip(q, low, high) y = DequantizeLinear(c, s, z) }"
    values = {"s": np.float32(0.02), "z": np.int8(zero), "low": np.int8(low), "high": np.int8(high)}
    model = parsed(text, **values)
    if low == -127:  # the one more level that INT8 has is not taken away: it needs an operator of its own
        result, _ = prepared(model, tmp_path)
        difference = np.abs(run(model, {"x": X})[0] - run(result, {"x": X})[0])
        assert 0 < difference.max() <= np.float32(0.02) * 1.0001
    else:
        result, _ = kept(model, tmp_path)
    assert operators(result) == [*front, "QuantizeLinear", "DequantizeLinear"]
    assert next(iter(scales(result).values())) == np.float32(0.02)


def test_no_relu_where_nothing_is_negative(tmp_path: Path) -> None:
    text = (
        CONV + "{ r = Relu(x) m = MaxPool<kernel_shape = [2, 2]>(r) q = QuantizeLinear(m, s, z) "
        "y = DequantizeLinear(q, s, z) }"
    )
    model = parsed(text, s=np.float32(0.02), z=np.uint8(0))
    result, notes = prepared(model, tmp_path)
    assert operators(result) == ["Relu", "MaxPool", "QuantizeLinear", "DequantizeLinear"]
    assert carried_thresholds(result) == {"m": pytest.approx(0.02 * 255)}
    assert len(notes) == 2  # the change of the range, and nothing on ends that are open now


@pytest.mark.parametrize(
    ("makes", "never"),
    [
        ("t = Sigmoid(x)", True),
        ("t = Neg(x)", False),
        ("a = Relu(x) b = Exp(x) t = Concat<axis = 1>(a, b)", True),
        ("a = Relu(x) b = Neg(a) t = Add(a, b)", False),
        ("a = Clip(x, low) t = Transpose<perm = [0, 2, 1, 3]>(a)", True),
        ("a = Clip(x, below) t = Flatten(a)", False),
        ("a = Abs(x) t = Mul(a, low)", True),
        ("t = Identity(x)", False),
    ],
)
def test_signs(makes: str, never: bool) -> None:
    model = parsed(CONV + "{ " + makes + " y = Tanh(t) }", low=np.float32(0.5), below=np.float32(-0.5))
    assert Signs(model, []).never_negative("t") is never


def test_a_pair_after_a_pair(tmp_path: Path) -> None:
    text = CONV + (
        "{ a = QuantizeLinear(x, s, z) b = DequantizeLinear(a, s, z) c = QuantizeLinear(b, s2, z) "
        "y = DequantizeLinear(c, s2, z) }"
    )
    values = {"s": np.float32(0.02), "z": np.int8(0)}
    same, _ = kept(parsed(text, **values, s2=np.float32(0.02)), tmp_path / "same")
    assert operators(same) == ["QuantizeLinear", "DequantizeLinear"]
    other, _ = kept(parsed(text, **values, s2=np.float32(0.03)), tmp_path / "other")
    assert operators(other) == ["QuantizeLinear", "DequantizeLinear"] * 2
    assert carried_thresholds(other) == {"x": pytest.approx(2.54), "b": pytest.approx(3.81)}


def test_integers_that_are_moved(tmp_path: Path) -> None:
    """As tf2onnx leaves them, to have more operators between DequantizeLinear and QuantizeLinear."""
    text = CONV + (
        "{ a = QuantizeLinear(x, s, z) b = Transpose<perm = [0, 1, 3, 2]>(a) c = QuantizeLinear(x, s, z) "
        "d = Concat<axis = 1>(b, c) m = MaxPool<kernel_shape = [2, 2]>(d) y = DequantizeLinear(m, s, z) }"
    )
    result, _ = kept(parsed(text, s=np.float32(0.02), z=np.int8(0)), tmp_path)
    order = operators(result)
    assert [kind for kind in order if kind not in ("QuantizeLinear", "DequantizeLinear")] == [
        "Transpose",
        "Concat",
        "MaxPool",
    ]
    asymmetric = parsed(text, s=np.float32(0.02), z=np.uint8(120))
    result, notes = prepared(asymmetric, tmp_path / "asymmetric")
    assert notes[1].startswith("changed") and np.unique(list(carried_thresholds(result).values())) == pytest.approx(
        [0.02 * 135]
    )


def test_shared_and_unused_pairs(tmp_path: Path) -> None:
    text = "g (float[6,3,8,8] x) => (float[A,B,C,D] y, float[E,F,G,H] v) " + (
        "{ a = QuantizeLinear(x, s, z) b = DequantizeLinear(a, s, z) b2 = DequantizeLinear(a, s, z) "
        "a2 = QuantizeLinear(x, s, z) b3 = DequantizeLinear(a2, s, z) unused = QuantizeLinear(b, s, z) "
        "y = Conv(b, w) t = Add(b2, b3) v = Relu(t) }"
    )
    model = parsed(text, s=np.float32(0.02), z=np.int8(0), w=WEIGHTS.astype(np.float32))
    result, _ = kept(model, tmp_path)
    assert sorted(operators(result)) == ["Add", "Conv", "DequantizeLinear", "QuantizeLinear", "Relu"]


def test_half_precision_around_the_pairs(tmp_path: Path) -> None:
    text = "g (float16[6,3,8,8] x) => (float16[A,B,C,D] y) " + (
        "{ a = QuantizeLinear(x, s, z) b = DequantizeLinear(a, s, z) wq = QuantizeLinear(w, t, z) "
        "wd = DequantizeLinear(wq, t, z) y = Conv(b, wd) }"
    )
    values = {"s": np.float16(0.02), "t": np.float16(0.01), "w": (WEIGHTS * 0.01).astype(np.float16), "z": np.int8(0)}
    result, _ = kept(parsed(text, 19, **values), tmp_path, {"x": X.astype(np.float16)})
    assert operators(result).count("Cast") == 3


def test_a_dead_channel_needs_no_scale(tmp_path: Path) -> None:
    """Scales beyond FP16, which nothing but zeros goes with."""
    text = CONV + "{ wq = QuantizeLinear<axis = 0>(w, s, z) wd = DequantizeLinear<axis = 0>(wq, s, z) y = Conv(x, wd) }"
    weights = WEIGHTS.astype(np.float32)
    weights[2] = 1e-9
    given = np.array([1, 1, 2.0**100, 1], np.float32)
    result, _ = kept(parsed(text, w=weights, s=given, z=np.zeros(4, np.int8)), tmp_path)
    assert next(iter(scales(result).values())).tolist() == [1, 1, 1, 1]


PAIR = "q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z)"
INT8: dict[str, Any] = {"s": np.float32(0.1), "z": np.int8(0)}


@pytest.mark.parametrize(
    ("body", "opset", "values", "match"),
    [
        (PAIR, 21, {"s": np.float32(0.1), "z": np.int16(0)}, "QuantizeLinear q makes INT16; TensorRT takes INT8"),
        (PAIR, 21, {"s": np.float32(0.1), "z": helper.make_tensor("z", TensorProto.INT4, [], [0])}, "makes INT4"),
        (PAIR, 19, {"s": np.float32(0.1), "z": helper.make_tensor("z", TensorProto.FLOAT8E4M3FN, [], [0])}, "FLOAT8"),
        ("q = QuantizeLinear<axis = 1, block_size = 4>(x, s, z) "
         "y = DequantizeLinear<axis = 1, block_size = 4>(q, s, z)", 21,
         {"s": np.ones((8, 2), np.float32), "z": np.zeros((8, 2), np.int8)}, "has scales per block"),
        ("m = ReduceMax<keepdims = 0>(x) q = QuantizeLinear(x, m, z) y = DequantizeLinear(q, m, z)", 13, INT8,
         "QuantizeLinear q has a scale that is computed"),
        ("q = QuantizeLinear(x, s, z) r = Abs(q) y = DequantizeLinear(r, s, z)", 13, INT8,
         "q feeds Abs r.*\n.*DequantizeLinear y reads integers that come from Abs r"),
        ("q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, t, z)", 13, {**INT8, "t": np.float32(0.2)},
         "have different scales or zero points"),
        ("q = QuantizeLinear<axis = 1>(x, s, z) y = DequantizeLinear<axis = 1>(q, s, z)", 13,
         {"s": np.ones(8, np.float32), "z": np.zeros(8, np.int8)}, "a scale per channel on a tensor that"),
        (PAIR, 13, {"s": np.float32(0), "z": np.int8(0)}, "a scale that is not a positive number"),
        (PAIR, 13, {"s": np.float32(np.nan), "z": np.int8(0)}, "a scale that is not a positive number"),
        (PAIR + " v = Relu(y)", 13, {**INT8, "output": "q"}, "QuantizeLinear q makes a graph output"),
        ("y = If(c) <then_branch = t () => (float[8,8] a) { q = QuantizeLinear(x, s, z) a = DequantizeLinear(q, s, z) }"
         ", else_branch = e () => (float[8,8] b) { b = Neg(x) }>", 13, INT8, "is inside the body of another node"),
    ],
)  # fmt: skip
def test_what_has_no_form_in_tensorrt(
    tmp_path: Path, body: str, opset: int, values: dict[str, Any], match: str
) -> None:
    given = dict(values)
    output = given.pop("output", None)
    condition = ", bool c" if "If(c)" in body else ""
    integers = f", int8[8,8] {output}" if output else ""
    model = parsed(f"g (float[8,8] x{condition}) => (float[8,8] y{integers}) {{ {body} }}", opset, **given)
    (tmp_path / "in.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(StepError, match=match) as caught:
        prepare.run(prepare.Params(), {"onnx": tmp_path / "in.onnx"}, tmp_path)
    assert "give the float model" in (caught.value.hint or "")
    assert not (tmp_path / "model.onnx").exists()


def test_integers_as_the_models_input(tmp_path: Path) -> None:
    model = parsed("g (uint8[4] x) => (float[4] y) { y = DequantizeLinear(x, s) }", s=np.float32(0.1))
    (tmp_path / "in.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(StepError, match="DequantizeLinear y reads integers from the graph's input x"):
        prepare.run(prepare.Params(), {"onnx": tmp_path / "in.onnx"}, tmp_path)


def test_sixteen_bits_in_onnx_runtimes_domain(tmp_path: Path) -> None:
    model = parsed(f"g (float[8] x) => (float[8] y) {{ {PAIR} }}", 17, s=np.float32(0.1), z=np.uint16(3))
    for node in model.graph.node:
        node.domain = "com.microsoft"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    with pytest.raises(StepError, match="something else than 8 bits: q, y"):
        exported(model, tmp_path)


# --- Arithmetic


@given(
    st.floats(2.0**-20, 1024, width=32),
    st.sampled_from([(-128, 127), (0, 255), (-127, 127), (1, 255), (0, 127)]),
    st.data(),
)
@settings(max_examples=200, deadline=None)
def test_the_symmetric_grid(scale: float, ends: tuple[int, int], data: st.DataObject) -> None:
    low, high = ends
    zero = data.draw(st.integers(low, high))
    grid = Grid(np.float32(scale), np.int64(zero), low, high)
    integers = np.arange(low, high + 1)
    values = grid.dequantize(integers)
    np.testing.assert_array_equal(grid.quantize(values), integers)  # the round trip of weights
    new = Grid(grid.symmetric(), np.int64(0), -128, 127)
    again = new.dequantize(new.quantize(values))
    if grid.fits():
        assert new.scale == grid.scale
        np.testing.assert_array_equal(again, values)
    else:
        least, most = grid.bounds()
        np.testing.assert_allclose(new.scale * 127, max(-least, most), rtol=1e-6)
        assert new.scale <= grid.scale * 255 / 127 * 1.000001
        assert np.abs(again - values).max() <= new.scale * 0.5001


def test_quantizing_is_what_onnx_runtime_does() -> None:
    model = parsed("g (float[4000] x) => (float[4000] y) { " + PAIR + " }", s=np.float32(0.0123), z=np.uint8(93))
    x = (RANDOM.standard_normal(4000) * 2).astype(np.float32)
    x[:200] = (np.arange(200) - 100 + 0.5) * np.float32(0.0123)
    grid = Grid(np.float32(0.0123), np.int64(93), 0, 255)
    np.testing.assert_array_equal(run(model, {"x": x})[0], grid.dequantize(grid.quantize(x)))


def test_thresholds_need_a_prepared_model() -> None:
    text = "g (float[8,8] x) => (float[8,8] y) { m = ReduceMax<keepdims = 0>(x) " + PAIR.replace("s,", "m,") + " }"
    with pytest.raises(StepError, match="the scale of QuantizeLinear q is no single constant"):
        carried_thresholds(parsed(text, z=np.int8(0)))
