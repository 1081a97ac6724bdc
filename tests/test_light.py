"""Graphs without the values of their weights: what is found of them is what is found of the whole."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, numpy_helper, parser, shape_inference

from trtrecipe.errors import StepError
from trtrecipe.graphs import sound
from trtrecipe.graphs.light import SMALL, inferred, light, make_constant
from trtrecipe.graphs.shapes import infer

TEXT = (
    '<ir_version: 8, opset_import: ["" : 13]> g (float[N,64] x, bool flag) => (float[A,B] y)'
    "<int64[2] to = {-1, 32}, float[2] small = {1, 2}> {"
    "  m = MatMul(x, w) r = Reshape(m, to) y = If<then_branch = t () => (float[A,B] a) { a = Add(r, b) },"
    "  else_branch = e () => (float[A,B] c) { c = Relu(r) }>(flag) }"
)


def _model() -> ModelProto:
    model = parser.parse_model(TEXT)
    rng = np.random.default_rng(1)
    model.graph.initializer.append(numpy_helper.from_array(rng.standard_normal((64, 64), np.float32), "w"))
    model.graph.initializer.append(numpy_helper.from_array(rng.standard_normal((64, 32), np.float32), "b"))
    model.graph.doc_string = "kept"
    model.metadata_props.add(key="a", value="b")
    return model


def test_only_large_constants_are_left_out_and_come_back() -> None:
    model = _model()
    slim, large = light(model)
    assert [tensor.name for tensor in large] == ["w", "b"]
    assert slim.ByteSize() < SMALL * 4 < model.ByteSize()
    assert [value.name for value in slim.graph.input] == ["x", "flag", "w", "b"]
    make_constant(slim, large)
    assert slim == model


def test_a_weight_that_is_listed_as_input_is_one_once() -> None:
    model = _model()
    model.graph.input.append(onnx.helper.make_tensor_value_info("w", TensorProto.FLOAT, [64, 64]))
    slim, _ = light(model)
    assert [value.name for value in slim.graph.input] == ["x", "flag", "w", "b"]
    onnx.checker.check_model(slim, full_check=True)


def test_inference_finds_the_same() -> None:
    model = _model()
    found = infer(model).graph
    expected = shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True).graph
    assert list(found.value_info) == list(expected.value_info)
    assert list(found.output) == list(expected.output) and list(found.input) == list(expected.input)
    assert [tensor.name for tensor in found.initializer] == [tensor.name for tensor in expected.initializer]
    assert model == _model()


def test_checks_find_the_same() -> None:
    sound.check(_model())
    sound.require_loadable(_model())
    cut_short = _model()
    cut_short.graph.initializer[-1].raw_data = cut_short.graph.initializer[-1].raw_data[:-4]
    with pytest.raises(StepError, match="not valid ONNX"):
        sound.check(cut_short)
    wrong = _model()
    wrong.graph.initializer[-1].dims[:] = [32, 64]
    with pytest.raises(StepError, match="not valid ONNX"):
        sound.check(wrong)


def test_inference_without_values_leaves_the_bytes_that_inference_with_them_does() -> None:
    model = _model()
    whole = shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    found = inferred(model, check_type=True, strict_mode=True)
    assert found.SerializeToString(deterministic=True) == whole.SerializeToString(deterministic=True)
