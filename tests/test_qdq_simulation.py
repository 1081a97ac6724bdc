"""What ONNX Runtime computes of our Q/DQ graphs is what a NumPy simulation of them computes."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper
from support import simulation
from support.nets import Net, nets, thresholds

from trtrecipe.quant.qdq import insert_qdq
from trtrecipe.quant.scales import fake_quantize

RELAXED = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)


def everything(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every tensor, as ONNX Runtime computes it with its optimizations off."""
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    names = [name for node in model.graph.node for name in node.output]
    del shown.graph.output[:]
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(shown.SerializeToString(), options)
    return dict(zip(names, session.run(names, feeds), strict=True))


def x_of(model: onnx.ModelProto, seed: int) -> np.ndarray:
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def assert_each_node_agrees(model: onnx.ModelProto, x: np.ndarray) -> None:
    """Each node on ONNX Runtime's own inputs: a step of difference would otherwise hide what comes after it."""
    theirs = everything(model, {"x": x})
    ours = simulation.run(model, {"x": x}, theirs)
    for node in model.graph.node:
        for name in node.output:
            if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                np.testing.assert_array_equal(ours[name], theirs[name], name)
            else:
                size = float(np.abs(theirs[name]).max(initial=0))
                np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=3e-6 * size, err_msg=name)


@RELAXED
@given(nets(), st.integers(0, 2**16))
def test_each_node_of_drawn_nets_agrees_to_float_rounding(model: onnx.ModelProto, seed: int) -> None:
    quantized, _ = insert_qdq(model, thresholds(model, seed))
    assert_each_node_agrees(quantized, x_of(model, seed))


@RELAXED
@given(nets(grid=True), st.integers(0, 2**16))
def test_whole_drawn_nets_agree_bit_for_bit_where_nothing_is_rounded(model: onnx.ModelProto, seed: int) -> None:
    """Powers of two as scales make every product and sum exact, so only the steps of Q/DQ themselves are left."""
    quantized, _ = insert_qdq(model, thresholds(model, seed, powers=True))
    x = x_of(model, seed)
    ours, theirs = simulation.run(quantized, {"x": x}), everything(quantized, {"x": x})
    for name, values in theirs.items():
        np.testing.assert_array_equal(ours[name], values, name)


def transformer() -> onnx.ModelProto:
    net = Net(seed=3)
    places = net.transpose(net.flat(net.relu(net.conv("x"))), 0, 2, 1)
    net.matmul(net.add(net.attention(places), places), 32)
    return net.model()


def every_operator() -> onnx.ModelProto:
    """What Hypothesis does not draw: ConvTranspose, Gemm, Split, products with weights on the left."""
    net = Net(seed=4)
    x = net.relu(net.conv("x", 32))
    sizes = net.constant("sizes", np.int64([16, 16]))
    net.nodes.append(helper.make_node("Split", [x, sizes], ["left", "right"], "split", axis=1))
    net.shapes |= {"left": (2, 16, 8, 8), "right": (2, 16, 8, 8)}
    net.conv("right", 16, 1)
    weights = net.weights("up/w", (16, 16, 2, 2), 1)
    net.add_node("ConvTranspose", ["left", weights], (2, 16, 16, 16), strides=[2, 2])
    flat = net.flat("left")
    net.add_node("MatMul", [net.weights("mixed/w", (24, 16)), flat], (2, 24, 64))
    pooled = net.add_node("GlobalAveragePool", ["right"], (2, 16, 1, 1))
    rows = net.add_node("Flatten", [pooled], (2, 16))
    net.add_node(
        "Gemm",
        [rows, net.weights("gemm/w", (24, 16)), net.constant("gemm/b", np.ones(24, np.float32))],
        (2, 24),
        transB=1,
    )
    return net.model()


@pytest.mark.parametrize("make", [transformer, every_operator])
def test_each_node_of_made_nets_agrees(make: object) -> None:
    assert callable(make)
    model = make()
    quantized, _ = insert_qdq(model, thresholds(model, 5))
    assert_each_node_agrees(quantized, x_of(model, 5))


@pytest.mark.parametrize("opset", [13, 17, 19, 21, 23])
def test_the_same_scales_compute_the_same_at_every_opset(opset: int) -> None:
    def outputs(version: int) -> np.ndarray:
        net = Net(seed=6)
        net.head(net.relu(net.add(net.conv(net.relu(net.conv("x"))), "x")))
        model = net.model(opset=version)
        return everything(insert_qdq(model, thresholds(model, 6))[0], {"x": x_of(model, 6)})["matmul1"]

    np.testing.assert_array_equal(outputs(opset), outputs(13))


def test_the_simulation_rounds_half_to_even_and_saturates() -> None:
    x = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 127.5, 300, -300], np.float32)
    scale, zero = np.array(1, np.float32), np.array(0, np.int8)
    steps = simulation.quantize(x, scale, zero)
    assert steps.tolist() == [0, 2, 2, 0, -2, 127, 127, -128]
    np.testing.assert_array_equal(simulation.dequantize(steps, scale, zero), fake_quantize(x, scale))
