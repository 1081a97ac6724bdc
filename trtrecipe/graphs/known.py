"""What is known of a graph's tensors before it runs: element types, shapes, constants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, NodeProto, TensorProto

from trtrecipe.graphs.edit import all_graphs, all_nodes
from trtrecipe.graphs.files import opset
from trtrecipe.graphs.shapes import infer
from trtrecipe.graphs.values import array_of

Shape = tuple[int | str | None, ...]
"""Sizes; the name of a dimension, or None, where an axis is open."""


@dataclass(frozen=True)
class Known:
    """Of the graph and the graphs inside it. Tensor → element type, shape, constant, the node that makes it.

    `opset` is that of the default domain, `inputs` and `outputs` are the interface's names.
    """

    opset: int
    types: Mapping[str, int]
    shapes: Mapping[str, Shape]
    constants: Mapping[str, TensorProto]
    producers: Mapping[str, NodeProto]
    inputs: frozenset[str]
    outputs: frozenset[str]

    def input(self, node: NodeProto, formal: str) -> str:
        """The name of what the node reads as `formal` ("axes"); "" where it reads none, or the operator has none."""
        formals = _formals(node.op_type, self.opset)
        position = formals.index(formal) if formal in formals else len(node.input)
        return node.input[position] if position < len(node.input) else ""

    def value(self, name: str) -> npt.NDArray[Any] | None:
        """The constant of that name, or None."""
        tensor = self.constants.get(name)
        return None if tensor is None else np.asarray(array_of(tensor))


def known(model: ModelProto) -> Known:
    """Everything that inference finds. Raises StepError where operators, types and shapes contradict each other."""
    types: dict[str, int] = {}
    shapes: dict[str, Shape] = {}
    for graph in all_graphs(infer(model).graph):
        for value in (*graph.input, *graph.value_info, *graph.output):
            tensor = value.type.tensor_type
            if tensor.elem_type:
                types[value.name] = tensor.elem_type
            if tensor.HasField("shape"):
                shapes[value.name] = tuple(_size(dim) for dim in tensor.shape.dim)
    constants = {tensor.name: tensor for graph in all_graphs(model.graph) for tensor in graph.initializer}
    for tensor in constants.values():
        types[tensor.name] = tensor.data_type
        shapes[tensor.name] = tuple(tensor.dims)
    return Known(
        opset=opset(model),
        types=types,
        shapes=shapes,
        constants=constants,
        producers={name: node for node in all_nodes(model.graph) for name in node.output if name},
        inputs=frozenset(value.name for value in model.graph.input),
        outputs=frozenset(value.name for value in model.graph.output),
    )


def _size(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    return dim.dim_value if dim.WhichOneof("value") == "dim_value" else dim.dim_param or None


def _formals(operator: str, version: int) -> list[str]:
    try:
        return [formal.name for formal in onnx.defs.get_schema(operator, version, "").inputs]
    except onnx.defs.SchemaError:
        return []
