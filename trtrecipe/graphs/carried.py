"""Quantization that a graph carries itself, in QuantizeLinear and DequantizeLinear nodes: what there is."""

from __future__ import annotations

from onnx import ModelProto, NodeProto, TensorProto

from trtrecipe.graphs.edit import DEFAULT_DOMAINS, all_nodes

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
PAIR = (QUANTIZE, DEQUANTIZE)
INTEGER_OPERATORS = ("DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger")
"""Operators that compute on integers themselves. TensorRT has none of them: its own fusion makes them from pairs."""


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
