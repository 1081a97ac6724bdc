"""Quantization that a graph carries itself, in QuantizeLinear and DequantizeLinear nodes: what there is."""

from __future__ import annotations

from onnx import ModelProto, NodeProto, TensorProto

from trtrecipe.errors import StepError
from trtrecipe.graphs.edit import DEFAULT_DOMAINS, all_nodes

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
PAIR = (QUANTIZE, DEQUANTIZE)
INTEGER_OPERATORS = ("DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger")
"""Operators that compute on integers themselves. TensorRT has none of them: its own fusion makes them from pairs."""


_CONTRIB = "com.microsoft"
_BYTES = (TensorProto.INT8, TensorProto.UINT8, TensorProto.INT32)


def adopt(model: ModelProto) -> None:
    """Write ONNX Runtime's own Q/DQ as ONNX's, in place: with 8 bits both compute the same.

    Raises StepError, naming the nodes, where there are other types, which ONNX Runtime has its own operators for.
    """
    nodes = [node for node in all_nodes(model.graph) if node.op_type in PAIR and node.domain == _CONTRIB]
    if not nodes:
        return
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    other = [
        node.name or node.output[0]
        for node in nodes
        if any(name in types and types[name] not in _BYTES for name in node.input[2:3])
    ]
    if other:
        raise StepError(
            f"the model is quantized to something else than 8 bits: {', '.join(other[:3])}"
            + (f" and {len(other) - 3} more nodes" if len(other) > 3 else ""),
            hint="quantize it with 8 bits, or give the float model and let trtrecipe quantize it",
        )
    for node in nodes:
        node.ClearField("domain")


def is_pair_node(node: NodeProto) -> bool:
    """Whether the node is one half of a Q/DQ pair."""
    return node.op_type in PAIR and node.domain in DEFAULT_DOMAINS


def carries(model: ModelProto) -> bool:
    """Whether any node of the model, in bodies too, is one half of a Q/DQ pair."""
    return any(is_pair_node(node) for node in all_nodes(model.graph))


def constants(model: ModelProto) -> dict[str, TensorProto]:
    """Name → initializer of the main graph, without those that an input overrides."""
    overridable = {value.name for value in model.graph.input}
    return {tensor.name: tensor for tensor in model.graph.initializer if tensor.name not in overridable}
