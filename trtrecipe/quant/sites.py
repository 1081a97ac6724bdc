"""Where a graph is quantized: the nodes, their activation and weight tensors, the weights' channel axis."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from trtrecipe.errors import StepError

OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_CARRIES = frozenset(
    [
        "QuantizeLinear",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "QLinearConv",
        "QLinearMatMul",
        "ConvInteger",
        "MatMulInteger",
    ]
)


@dataclass(frozen=True)
class Site:
    """One node that is quantized. `axis` is the weights' output-channel axis; None means one scale for all of them."""

    index: int  # of the node in graph.node
    node: str
    activation: str
    weight: str
    axis: int | None


@dataclass(frozen=True)
class Sites:
    """The nodes that are quantized, in graph order, and a sentence for each that could not be."""

    sites: tuple[Site, ...]
    skipped: tuple[str, ...]


def find_sites(model: onnx.ModelProto) -> Sites:
    """The quantizable nodes of the main graph: those of OPERATORS whose second input is a constant FP32 tensor.

    Conv counts channels on axis 0, ConvTranspose on axis 1, Gemm on the columns of B' (transB decides), MatMul on the
    last axis. A grouped ConvTranspose has its output channels spread over two axes, which no per-axis scale can follow,
    and a MatMul by a vector has one output: both get a single scale. Raises StepError when nothing is quantizable, or
    when the graph carries quantization already.
    """
    _refuse_quantized(model.graph)
    weights = constants(model)
    sites, skipped = [], []
    for index, node in enumerate(model.graph.node):
        if node.op_type not in OPERATORS or node.domain not in ("", "ai.onnx") or len(node.input) < 2:
            continue
        weight = weights.get(node.input[1])
        if weight is None or node.input[0] in weights:
            continue
        if weight.data_type != TensorProto.FLOAT:
            kind = TensorProto.DataType.Name(weight.data_type)
            skipped.append(f"{label(node)} is not quantized: its weights are {kind}, not FLOAT")
            continue
        sites.append(Site(index, label(node), node.input[0], node.input[1], _channel_axis(node, len(weight.dims))))
    if not sites:
        kinds = ", ".join(sorted({node.op_type for node in model.graph.node})) or "nothing"
        raise StepError(
            f"nothing in this graph can be quantized: no {', '.join(OPERATORS)} with constant FP32 weights "
            f"({'; '.join(skipped) or f'it holds {kinds}'})",
            "use precision.mode fp16 or fp32",
        )
    return Sites(tuple(sites), tuple(skipped))


def constants(model: onnx.ModelProto) -> dict[str, TensorProto]:
    """Name → tensor of everything constant in the main graph: initializers that no input overrides, Constant nodes."""
    overridable = {value.name for value in model.graph.input}
    found = {tensor.name: tensor for tensor in model.graph.initializer if tensor.name not in overridable}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
            value = next((attribute.t for attribute in node.attribute if attribute.name == "value"), None)
            if value is not None:
                found[node.output[0]] = value
    return found


def weight_array(model: onnx.ModelProto, name: str) -> np.ndarray:
    """The FP32 values of the constant called `name`. Raises KeyError."""
    return numpy_helper.to_array(constants(model)[name])


def label(node: onnx.NodeProto) -> str:
    """What a person calls the node: its name, else what it computes."""
    return f"{node.op_type} {node.name or '→ ' + (node.output[0] if node.output else '?')}"


def _channel_axis(node: onnx.NodeProto, rank: int) -> int | None:
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1 if attributes.get("group", 1) == 1 else None
    if node.op_type == "Gemm":
        return 0 if attributes.get("transB", 0) else 1
    return rank - 1 if rank > 1 else None


def _refuse_quantized(graph: onnx.GraphProto) -> None:
    for node in graph.node:
        if node.op_type in _CARRIES:
            raise StepError(
                f"the model is already quantized: it contains {label(node)}",
                "build it with precision.mode fp32 or fp16, or start from the float model",
            )
