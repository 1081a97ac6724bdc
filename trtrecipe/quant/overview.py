"""What placement needs to know of a graph: constants, types, shapes, who makes and who reads each tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper

from trtrecipe.graphs.edit import DEFAULT_DOMAINS, uses
from trtrecipe.graphs.values import array_of

Shape = tuple[int | None, ...]
_SHAPE_ARITHMETIC = 1024
"""Constants up to this many values may decide shapes; the contents of larger ones are not copied to infer them."""


@dataclass(frozen=True)
class Overview:
    """The main graph. Nodes are named by their position in it."""

    nodes: Sequence[NodeProto]
    constants: Mapping[str, TensorProto]
    makers: Mapping[str, int]
    readers: Mapping[str, tuple[int, ...]]  # once per read, what bodies of control-flow nodes capture included
    outputs: frozenset[str]
    types: Mapping[str, int]
    shapes: Mapping[str, Shape]  # of the tensors whose rank is known; None where an axis is open

    def operator(self, index: int) -> str:
        """The node's operator, "" for one that is not ONNX's own."""
        node = self.nodes[index]
        return node.op_type if node.domain in DEFAULT_DOMAINS else ""

    def is_float(self, tensor: str) -> bool:
        """Whether the tensor holds FP32, as far as is known."""
        return self.types.get(tensor, TensorProto.FLOAT) == TensorProto.FLOAT


def overview(model: ModelProto) -> Overview:
    """Look at `model`; shapes are inferred where value_info lacks some."""
    graph = model.graph
    readers: dict[str, list[int]] = {}
    for index, node in enumerate(graph.node):
        for name in uses(node):
            if name:
                readers.setdefault(name, []).append(index)
    known = constants(model)
    types = {name: tensor.data_type for name, tensor in known.items()}
    shapes: dict[str, Shape] = {name: tuple(tensor.dims) for name, tensor in known.items()}
    for value in _values(model):
        kind = value.type.tensor_type
        types[value.name] = kind.elem_type
        if kind.HasField("shape"):
            shapes[value.name] = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim)
    return Overview(
        graph.node,
        known,
        {name: index for index, node in enumerate(graph.node) for name in node.output if name},
        {name: tuple(indices) for name, indices in readers.items()},
        frozenset(value.name for value in graph.output),
        types,
        shapes,
    )


def constants(model: ModelProto) -> dict[str, TensorProto]:
    """Name → tensor of everything constant in the main graph: initializers that no input overrides, Constant nodes."""
    overridable = {value.name for value in model.graph.input}
    found = {tensor.name: tensor for tensor in model.graph.initializer if tensor.name not in overridable}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.domain in DEFAULT_DOMAINS:
            value = next((attribute.t for attribute in node.attribute if attribute.name == "value"), None)
            if value is not None:
                found[node.output[0]] = value
    return found


def weight_array(model: ModelProto, name: str) -> npt.NDArray[np.float32]:
    """The FP32 values of the constant called `name`. Raises KeyError."""
    return array_of(constants(model)[name])


def label(node: NodeProto) -> str:
    """What a person calls the node: its name, else what it computes."""
    return f"{node.op_type} {node.name or '→ ' + (node.output[0] if node.output else '?')}"


def _values(model: ModelProto) -> Sequence[onnx.ValueInfoProto]:
    graph = model.graph
    declared = [*graph.input, *graph.value_info, *graph.output]
    names = {value.name for value in declared}
    if all(name in names for node in graph.node for name in node.output if name):
        return declared
    slim = ModelProto(ir_version=model.ir_version)
    slim.opset_import.extend(model.opset_import)
    slim.functions.extend(model.functions)
    slim.graph.node.extend(graph.node)
    slim.graph.input.extend(graph.input)
    slim.graph.output.extend(graph.output)
    slim.graph.value_info.extend(graph.value_info)
    for tensor in graph.initializer:
        if np.prod(tensor.dims) <= _SHAPE_ARITHMETIC:
            slim.graph.initializer.append(tensor)
        elif tensor.name not in names:
            slim.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    inferred = onnx.shape_inference.infer_shapes(slim, data_prop=True).graph
    return [*declared, *inferred.value_info, *inferred.output]
