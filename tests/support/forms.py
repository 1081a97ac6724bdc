"""A graph for every form of quantization that `quant.forms` tells apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

node = helper.make_node
FLOAT, INT8 = TensorProto.FLOAT, TensorProto.INT8
ONES = np.ones((3, 2, 1, 1))


def constant(name: str, values: Any, kind: int = FLOAT) -> TensorProto:
    held = np.asarray(values)
    return helper.make_tensor(name, kind, held.shape, held.ravel().tolist())


def graph(
    nodes: Sequence[NodeProto], constants: Sequence[TensorProto], *, opset: int = 13, x: int = FLOAT, y: int = FLOAT
) -> onnx.ModelProto:
    """x of [1, 2, 4, 4] → y."""
    inputs = [helper.make_tensor_value_info("x", x, [1, 2, 4, 4])]
    made = helper.make_graph(nodes, "graph", inputs, [helper.make_tensor_value_info("y", y, None)], constants)
    domains = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(made, opset_imports=domains, ir_version=8 if opset < 19 else 10)


def pair(source: str, result: str, scale: str = "s", zero: str | None = "z", **attributes: Any) -> list[NodeProto]:
    rest = [scale] if zero is None else [scale, zero]
    quantized = f"{result}_q"
    return [
        node("QuantizeLinear", [source, *rest], [quantized], quantized, **attributes),
        node("DequantizeLinear", [quantized, *rest], [result], result, **attributes),
    ]


S, Z = constant("s", 0.1), constant("z", 0, INT8)


def on_input(
    zero: Any = 0, kind: int = INT8, scale: TensorProto = S, opset: int = 13, **attributes: Any
) -> onnx.ModelProto:
    return graph(pair("x", "y", **attributes), [scale, constant("z", zero, kind)], opset=opset)


def on_weights(scales: Sequence[float], *, opset: int = 13, **attributes: Any) -> onnx.ModelProto:
    """A Conv whose input and weights are read through pairs."""
    nodes = [*pair("x", "xd"), *pair("w", "wd", "ws", "wz", **attributes), node("Conv", ["xd", "wd"], ["y"], "conv")]
    held = [S, Z, constant("w", ONES), constant("ws", scales), constant("wz", np.zeros(len(scales)), INT8)]
    return graph(nodes, held, opset=opset)


def _computed_weights() -> onnx.ModelProto:
    model = on_weights([0.1] * 3, axis=0)
    model.graph.initializer.append(constant("w0", ONES))
    for tensor in model.graph.initializer:
        if tensor.name == "w":
            model.graph.initializer.remove(tensor)
    model.graph.node.insert(0, node("Identity", ["w0"], ["w"], "copy"))
    return model


def _stored_weights() -> onnx.ModelProto:
    nodes = [*pair("x", "xd"), node("DequantizeLinear", ["w", "s", "z"], ["wd"], "wd")]
    return graph([*nodes, node("Conv", ["xd", "wd"], ["y"], "conv")], [S, Z, constant("w", ONES, INT8)])


def _bias(operator: str) -> onnx.ModelProto:
    if operator == "Gemm":
        nodes = [node("Reshape", ["x", "shape"], ["f"]), *pair("b", "bd"), node("Gemm", ["f", "w", "bd"], ["y"])]
        held = [constant("shape", [1, 32], TensorProto.INT64), constant("w", np.ones((32, 3)))]
    else:
        nodes = [*pair("b", "bd"), node("Conv", ["x", "w", "bd"], ["y"], "conv")]
        held = [constant("w", ONES)]
    return graph(nodes, [S, Z, *held, constant("b", [1, 2, 3])])


def _int32_bias() -> onnx.ModelProto:
    nodes = [node("DequantizeLinear", ["b", "s"], ["bd"], "bd"), node("Conv", ["x", "w", "bd"], ["y"], "conv")]
    return graph(nodes, [S, constant("w", ONES), constant("b", [1, 2, 3], TensorProto.INT32)])


def _scale_of_input() -> onnx.ModelProto:
    return graph([node("ReduceMax", ["x"], ["s"], "most", keepdims=0), *pair("x", "y")], [Z])


def _zero_of_input() -> onnx.ModelProto:
    nodes = [
        node("ReduceMin", ["x"], ["least"], keepdims=0),
        node("Cast", ["least"], ["whole"], to=TensorProto.INT32),
        node("Cast", ["whole"], ["z"], to=INT8),
        *pair("x", "y"),
    ]
    return graph(nodes, [S])


def _dynamic() -> onnx.ModelProto:
    nodes = [node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"], "dynamic")]
    return graph([*nodes, node("DequantizeLinear", ["q", "s", "z"], ["y"], "y")], [])


def _integer() -> onnx.ModelProto:
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["xq"], "xq"),
        node("QLinearConv", ["xq", "s", "z", "w", "s", "z", "s", "z"], ["q"], "conv"),
        node("DequantizeLinear", ["q", "s", "z"], ["y"], "y"),
    ]
    return graph(nodes, [S, Z, constant("w", ONES, INT8)])


def _other_domain() -> onnx.ModelProto:
    model = graph(pair("x", "y"), [S, Z])
    for half in model.graph.node:
        half.domain = "com.microsoft"
    return model


def _in_body() -> onnx.ModelProto:
    bodies = [
        helper.make_graph(pair("x", result), result, [], [helper.make_tensor_value_info(result, FLOAT, None)])
        for result in ("yes", "no")
    ]
    nodes = [node("If", ["c"], ["y"], "if", then_branch=bodies[0], else_branch=bodies[1])]
    return graph(nodes, [S, Z, constant("c", True, TensorProto.BOOL)])


def _elsewhere() -> onnx.ModelProto:
    model = on_input()
    tensor = model.graph.initializer[0]
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")
    return model


def _unknown() -> onnx.ModelProto:
    nodes = [node("Foreign", ["x"], ["q"], "foreign", domain="com.microsoft")]
    return graph([*nodes, node("DequantizeLinear", ["q", "s"], ["y"], "y")], [S])


HALF = numpy_helper.from_array(np.float16(0.1), "s")

GRAPHS: dict[str, Callable[[], onnx.ModelProto]] = {
    "int8": on_input,
    "per-channel-weights": lambda: on_weights([0.1, 0.2, 0.3], axis=0),
    "zero-point": lambda: on_input(3),
    "zero-point-left-out": lambda: graph([node("DequantizeLinear", ["x", "s"], ["y"], "y")], [S], x=INT8),
    "zero-point-computed": _zero_of_input,
    "uint8": lambda: on_input(0, TensorProto.UINT8),
    "int16": lambda: on_input(0, TensorProto.INT16, opset=21),
    "int32": _int32_bias,
    "int4": lambda: on_input(0, TensorProto.INT4, opset=21),
    "fp8": lambda: on_input(0, TensorProto.FLOAT8E4M3FN, opset=19),
    "fp4": lambda: on_input(0, TensorProto.FLOAT4E2M1, opset=23),
    "other-type": lambda: on_input(0, TensorProto.FLOAT8E5M2, opset=19),
    "unknown-type": _unknown,
    "scale-fp16": lambda: graph(
        [node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16), *pair("h", "y")],
        [HALF, Z],
        opset=19,
        y=TensorProto.FLOAT16,
    ),
    "scale-other": lambda: on_input(scale=constant("s", 0.1, TensorProto.DOUBLE)),
    "scale-computed": _scale_of_input,
    "scale-not-positive": lambda: on_input(scale=constant("s", 0.0)),
    "scale-count": lambda: on_weights([0.1, 0.2], axis=0),
    "blocked": lambda: on_weights_in_blocks(),
    "per-channel-activation": lambda: on_input([0, 0], scale=constant("s", [0.1, 0.2]), axis=1),
    "per-channel-computed": _computed_weights,
    "per-channel-before-13": lambda: on_weights([0.1, 0.2, 0.3], opset=12, axis=0),
    "axis-left-out": lambda: on_weights([0.1, 0.2]),
    "axis-other": lambda: on_weights([0.1, 0.2], axis=1),
    "int8-weights": _stored_weights,
    "quantize-alone": lambda: graph([node("QuantizeLinear", ["x", "s", "z"], ["y"], "y")], [S, Z], y=INT8),
    "dequantize-alone": lambda: graph([node("DequantizeLinear", ["x", "s", "z"], ["y"], "y")], [S, Z], x=INT8),
    "bias": lambda: _bias("Conv"),
    "bias-gemm": lambda: _bias("Gemm"),
    "integer-operators": _integer,
    "dynamic": _dynamic,
    "other-domain": _other_domain,
    "in-body": _in_body,
    "not-in-file": _elsewhere,
}
"""Form → a graph that has it."""


def on_weights_in_blocks() -> onnx.ModelProto:
    model = on_weights([0.1], opset=21, axis=1, block_size=1)
    for tensor in list(model.graph.initializer):
        if tensor.name in ("ws", "wz"):
            model.graph.initializer.remove(tensor)
    model.graph.initializer.extend([constant("ws", 0.1 * ONES), constant("wz", 0 * ONES, INT8)])
    return model
