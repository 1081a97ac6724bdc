"""Initial states of recurrent layers: zeros are what they start with anyway."""

from __future__ import annotations

from collections.abc import Mapping

from onnx import ModelProto, NodeProto, TensorProto

from trtrecipe.graphs.edit import all_graphs, attribute
from trtrecipe.graphs.values import array_of

_STATES = {"GRU": (5,), "LSTM": (5, 6), "RNN": (5,)}
"""Operator → positions of its initial states."""

_KEEPS_ZEROS = frozenset(
    ["Cast", "Expand", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Tile", "Transpose", "Unsqueeze"]
)
"""Operators that give zeros for zeros as their first input."""


def drop_zero_states(model: ModelProto) -> bool:
    """Leave out, in place, initial states that are zeros, however the graph makes them; whether there were any.

    Exporters make them of the input's shape, which is all that is computed about shapes in many recurrent models.
    """
    makers = {name: node for graph in all_graphs(model.graph) for node in graph.node for name in node.output}
    constants = {tensor.name: tensor for graph in all_graphs(model.graph) for tensor in graph.initializer}
    changed = False
    for graph in all_graphs(model.graph):
        for node in graph.node:
            for position in _STATES.get(node.op_type, ()) if not node.domain else ():
                if position < len(node.input) and _zeros(node.input[position], makers, constants):
                    node.input[position] = ""
                    changed = True
            while node.op_type in _STATES and not node.input[-1]:
                del node.input[-1]
    return changed


def _zeros(name: str, makers: Mapping[str, NodeProto], constants: Mapping[str, TensorProto]) -> bool:
    """Whether the tensor holds nothing but zeros, as far as the graph tells."""
    pending, found = [name], False
    while pending:
        current = pending.pop()
        if current in constants:
            found = True
            if array_of(constants[current]).any():
                return False
            continue
        node = makers.get(current)
        if node is None or node.domain:
            return False
        if node.op_type == "ConstantOfShape":
            value = attribute(node, "value")
            found = True
            if value is not None and array_of(value).any():
                return False
        elif node.op_type in _KEEPS_ZEROS:
            pending.append(node.input[0])
        elif node.op_type == "Concat":
            pending.extend(node.input)
        else:
            return False
    return found
