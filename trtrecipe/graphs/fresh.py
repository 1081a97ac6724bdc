"""Names that a graph does not use yet."""

from __future__ import annotations

import onnx


def names(graph: onnx.GraphProto) -> set[str]:
    """Every tensor and node name that occurs in `graph` and its subgraphs."""
    groups = (graph.input, graph.output, graph.value_info)
    found = {value.name for group in groups for value in group}
    found.update(tensor.name for tensor in graph.initializer)
    found.update(tensor.values.name for tensor in graph.sparse_initializer)
    for node in graph.node:
        found.update((node.name, *node.input, *node.output))
        for subgraph in subgraphs(node):
            found |= names(subgraph)
    return found


def subgraphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """The bodies of a control-flow node: If's branches, Loop's and Scan's body."""
    found = []
    for attribute in node.attribute:
        if attribute.HasField("g"):
            found.append(attribute.g)
        found.extend(attribute.graphs)
    return found


def unused(name: str, taken: set[str]) -> str:
    """`name`, or `name` with the first number that makes it new; added to `taken`."""
    candidate, number = name, 2
    while candidate in taken:
        candidate, number = f"{name}_{number}", number + 1
    taken.add(candidate)
    return candidate
