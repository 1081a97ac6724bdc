"""FakeQuant of TensorFlow: the exported graph computes what TensorFlow computes, prepare makes it symmetric."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, numpy_helper

from trtrecipe.errors import StepError
from trtrecipe.graphs.carried import constants
from trtrecipe.graphs.fake_quant import nudge
from trtrecipe.quant.carried import carried_thresholds
from trtrecipe.quant.forms import quantization
from trtrecipe.steps import export, fetch, prepare

RANDOM = np.random.default_rng(21)


def run(model: ModelProto, feeds: dict[str, Any]) -> dict[str, Any]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip([value.name for value in session.get_outputs()], session.run(None, feeds), strict=True))


def exported(source: Path, out: Path, **params: Any) -> ModelProto:
    out.mkdir()
    fetch.run(fetch.Params(format="saved_model"), {"source": source}, out)
    export.run(export.Params(format="saved_model", **params), {"model": out / "model"}, out)
    return onnx.load(out / "model.onnx")


def prepared(folder: Path) -> tuple[ModelProto, list[str]]:
    """The model that `exported` left in `folder`, prepared."""
    (folder / "prepared").mkdir()
    measured = prepare.run(prepare.Params(), {"onnx": folder / "model.onnx"}, folder / "prepared")
    model = onnx.load(folder / "prepared" / "model.onnx")
    assert quantization(model).forms.keys() <= {"int8", "per-channel-weights"}
    return model, list(measured["notes"])


def saved(folder: Path, function: Any, *specs: Any, **variables: Any) -> Path:
    import tensorflow as tf

    module = tf.Module()
    module.variables_of_model = {name: tf.Variable(value, name=name) for name, value in variables.items()}
    module.serve = tf.function(lambda *inputs: function(tf, module.variables_of_model, *inputs), input_signature=specs)
    tf.saved_model.save(module, str(folder), signatures={"serving_default": module.serve})
    return folder


RANGES = [
    (-2.9, 3.1, False),
    (-1.0, 1.0, True),
    (0.0, 6.0, False),
    (0.0, 2.5, True),
    (-4.0, 0.0, False),
    (-0.013, 7.7, True),
    (-1.7, 1.71, False),
    (-3.0, 2.0, True),
    (0.3, 5.0, False),  # moved so that 0 is inside, as TensorFlow does
    (-5.0, -0.2, True),
]


def test_every_range_is_exact(tmp_path: Path) -> None:
    import tensorflow as tf

    def serve(tf: Any, variables: Any, x: Any) -> dict[str, Any]:
        by_variables, by_arguments = (
            tf.quantization.fake_quant_with_min_max_vars,
            tf.quantization.fake_quant_with_min_max_args,
        )
        results = {}
        for index, (least, most, narrow) in enumerate(RANGES):
            low, high = variables[f"low{index}"], variables[f"high{index}"]
            results[f"vars{index}"] = by_variables(x, low, high, narrow_range=narrow)
            if least <= 0 <= most:
                results[f"args{index}"] = by_arguments(x, least, most, narrow_range=narrow)
        return results

    bounds = {f"low{i}": np.float32(low) for i, (low, _, _) in enumerate(RANGES)}
    bounds |= {f"high{i}": np.float32(high) for i, (_, high, _) in enumerate(RANGES)}
    source = saved(tmp_path / "m", serve, tf.TensorSpec([3000], name="x"), **bounds)
    model = exported(source, tmp_path / "out")
    x = (RANDOM.standard_normal(3000) * 4).astype(np.float32)
    x[:2] = -1e30, 1e30
    results = run(model, {"x": x})
    expected = tf.saved_model.load(str(source)).signatures["serving_default"](x=tf.constant(x))
    assert results.keys() == expected.keys() and len(results) == 2 * len(RANGES) - 2
    for name, value in expected.items():
        np.testing.assert_array_equal(results[name], value.numpy(), err_msg=name)
    assert {node.op_type for node in model.graph.node} == {"QuantizeLinear", "Clip", "DequantizeLinear"}


def test_nudging_is_done_in_single_precision() -> None:
    """Against the kernel's own words in Python, over many ranges."""
    low = -RANDOM.uniform(0, 9, 4000).astype(np.float32)
    high = RANDOM.uniform(1e-3, 9, 4000).astype(np.float32)
    for narrow in (False, True):
        scale, zero = nudge(low, high, narrow)
        least = np.float32(narrow)
        for index in range(len(low)):
            step = (high[index] - low[index]) / (np.float32(255) - least)
            exact = least - low[index] / step
            expected = int(np.floor(float(exact) + 0.5)) if exact > least else int(least)
            assert (scale[index], zero[index]) == (step, min(expected, 255))


def network(folder: Path) -> tuple[Path, Any]:
    """Convs per channel, depthwise and pointwise, ReLU6, residual, pooling, MatMul: ranges as training leaves them."""
    import tensorflow as tf

    def weights(*shape: int) -> Any:
        return (RANDOM.standard_normal(shape) / np.sqrt(np.prod(shape[:-1]))).astype(np.float32)

    kernel = weights(3, 3, 3, 8)
    kernel[..., 5] = 0  # a channel that training left unused
    reach = np.abs(kernel).max(axis=(0, 1, 2))
    variables = {"kernel": kernel, "low": -reach, "high": reach, "bias": weights(8), "depth": weights(3, 3, 8, 1)}
    variables |= {"point": weights(1, 1, 8, 8), "dense": weights(8, 5), "dense_bias": weights(5)}
    variables |= {"sum_low": np.float32(-2.3), "sum_high": np.float32(4.7)}

    def serve(tf: Any, v: Any, x: Any) -> dict[str, Any]:
        q = tf.quantization
        x = q.fake_quant_with_min_max_args(x, -2.9, 3.1, name="image")
        w = q.fake_quant_with_min_max_vars_per_channel(v["kernel"], v["low"], v["high"], narrow_range=True)
        y = tf.nn.relu6(tf.nn.bias_add(tf.nn.conv2d(x, w, 1, "SAME", name="stem"), v["bias"]))
        y = q.fake_quant_with_min_max_args(y, 0.0, 6.0, name="stem_range")
        w = q.fake_quant_with_min_max_args(v["depth"], -0.9, 0.9, narrow_range=True)
        z = tf.nn.depthwise_conv2d(y, w, [1, 1, 1, 1], "SAME")
        z = q.fake_quant_with_min_max_args(z, -2.0, 3.0)
        w = q.fake_quant_with_min_max_args(v["point"], -1.1, 1.2)
        z = tf.nn.conv2d(z, w, 1, "SAME") + y
        z = q.fake_quant_with_min_max_vars(z, v["sum_low"], v["sum_high"])
        z = tf.reduce_mean(tf.nn.relu(z), [1, 2])
        z = q.fake_quant_with_min_max_args(z, 0.0, 2.0)
        w = q.fake_quant_with_min_max_args(v["dense"], -1.0, 1.0, narrow_range=True)
        return {"logits": tf.matmul(z, w) + v["dense_bias"]}

    source = saved(folder / "m", serve, tf.TensorSpec([None, 8, 8, 3], name="x"), **variables)
    return source, tf.saved_model.load(str(source)).signatures["serving_default"]


def test_a_trained_network(tmp_path: Path) -> None:
    import tensorflow as tf

    source, signature = network(tmp_path)
    params = {"inputs": {"x": {"shape": ["n", 8, 8, 3]}}, "dims": ["n"]}
    model = exported(source, tmp_path / "out", **params)
    x = RANDOM.standard_normal((16, 8, 8, 3)).astype(np.float32)
    expected = signature(x=tf.constant(x))["logits"].numpy()
    assert expected.std() > 0.1
    np.testing.assert_allclose(run(model, {"x": x})["logits"], expected, atol=1e-5)

    result, notes = prepared(tmp_path / "out")
    assert "pairs on 5 activations and on 4 weight tensors" in notes[0]
    assert notes[1].startswith("changed: 6 tensors") and "steps are 2.01 times as wide" in notes[1]
    assert np.abs(run(result, {"x": x})["logits"] - expected).max() < 0.1

    held, makers = constants(result), {name: node for node in result.graph.node for name in node.output}
    found = {}
    for node in result.graph.node:
        if node.op_type in ("Conv", "MatMul"):
            pair = makers[makers[node.input[1]].input[0]]
            assert pair.op_type == "QuantizeLinear" and pair.input[0] in held  # right in front of the operator
            found[node.name] = numpy_helper.to_array(held[pair.input[1]])
    by_shape = sorted(found.values(), key=np.size)
    assert [np.size(scale) for scale in by_shape] == [1, 1, 1, 8]
    assert sorted(float(scale) for scale in by_shape[:3]) == pytest.approx([0.9 / 127, 1 / 127, 1.2 / 127], rel=0.01)
    assert by_shape[3][5] == 1 and (np.delete(by_shape[3], 5) < 0.1).all()
    thresholds = carried_thresholds(result)
    assert sorted(thresholds.values()) == pytest.approx([2.0, 3.0, 3.1, 4.7, 6.0], rel=0.01)

    again = exported(source, tmp_path / "again", **params)
    assert again.SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)


def test_a_keras_layer_with_ranges_of_its_own(tmp_path: Path) -> None:
    import keras
    import tensorflow as tf

    class Quantized(keras.layers.Layer):  # type: ignore[misc]
        """What quantization-aware training puts behind a layer."""

        def build(self, shape: Any) -> None:
            self.least = self.add_weight(shape=(), initializer=keras.initializers.Constant(-1.2), name="min")
            self.most = self.add_weight(shape=(), initializer=keras.initializers.Constant(2.4), name="max")

        def call(self, x: Any) -> Any:
            return tf.quantization.fake_quant_with_min_max_vars(x, self.least, self.most)

    keras.utils.set_random_seed(4)
    inputs = keras.Input((6,), name="x")
    model = keras.Model(inputs, keras.layers.Dense(3)(Quantized()(keras.layers.Dense(5)(inputs))))
    model.export(str(tmp_path / "m"), verbose=False)
    result = exported(tmp_path / "m", tmp_path / "out", inputs={"x": {"shape": ["n", 6]}}, dims=["n"])
    x = RANDOM.standard_normal((20, 6)).astype(np.float32)
    np.testing.assert_allclose(next(iter(run(result, {"x": x}).values())), model(x).numpy(), atol=1e-5)
    assert "QuantizeLinear" in {node.op_type for node in result.graph.node}


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda q, x: q.fake_quant_with_min_max_args(x, -1, 1, num_bits=4, name="fq"), "num_bits is 4"),
        (lambda q, x: q.fake_quant_with_min_max_vars(x, -1.0, x[0], name="fq"), "its range is computed"),
        (lambda q, x: q.fake_quant_with_min_max_vars(x, 0.0, 0.0, name="fq"), "0 to 0; it was never trained"),
        (lambda q, x: q.fake_quant_with_min_max_vars(x, 2.0, 1.0, name="fq"), "2 to 1; it was never trained"),
        (lambda q, x: q.fake_quant_with_min_max_vars(x, -1.0, float("inf"), name="fq"), "-1 to inf; it was never"),
    ],
)
def test_what_no_eight_bits_express(tmp_path: Path, make: Any, match: str) -> None:
    import tensorflow as tf

    source = saved(tmp_path / "m", lambda tf, v, x: {"y": make(tf.quantization, x)}, tf.TensorSpec([4], name="x"))
    with pytest.raises(StepError, match=rf"FakeQuantWithMinMax\w+ fq: .*{match}") as caught:
        exported(source, tmp_path / "out")
    assert "num_bits=8" in (caught.value.hint or "")


def test_channels_of_an_activation_have_no_form_in_tensorrt(tmp_path: Path) -> None:
    import tensorflow as tf

    def serve(tf: Any, variables: Any, x: Any) -> dict[str, Any]:
        per_channel = tf.quantization.fake_quant_with_min_max_vars_per_channel
        return {"y": per_channel(x, variables["low"], variables["high"], narrow_range=True)}

    bounds = {"low": np.array([-1, -2, 0], np.float32), "high": np.array([1, 2, 0], np.float32)}
    source = saved(tmp_path / "m", serve, tf.TensorSpec([2, 3], name="x"), **bounds)
    model = exported(source, tmp_path / "out")
    x = RANDOM.standard_normal((2, 3)).astype(np.float32)
    expected = tf.saved_model.load(str(source)).signatures["serving_default"](x=tf.constant(x))["y"].numpy()
    np.testing.assert_array_equal(run(model, {"x": x})["y"], expected)
    with pytest.raises(StepError, match="a scale per channel on a tensor that is no constant"):
        prepared(tmp_path / "out")
