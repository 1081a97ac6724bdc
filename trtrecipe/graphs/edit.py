"""Small verbs on ONNX graphs that passes and canonical form are written with."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import onnx
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto

DEFAULT_DOMAINS = ("", "ai.onnx")


def subgraphs(node: NodeProto) -> Iterator[tuple[str, GraphProto]]:
    """(attribute name, graph) of each graph that the node carries."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.name, attribute.g
        for graph in attribute.graphs:
            yield attribute.name, graph


def all_graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """The graph and every graph inside it, outer ones first."""
    pending = [graph]
    while pending:
        current = pending.pop()
        yield current
        for node in current.node:
            pending.extend(inner for _, inner in subgraphs(node))


def all_nodes(graph: GraphProto) -> Iterator[NodeProto]:
    """Every node of the graph and of the graphs inside it."""
    for each in all_graphs(graph):
        yield from each.node


def all_tensors(graph: GraphProto) -> Iterator[TensorProto]:
    """Every constant: initializers and tensors in attributes, also of the graphs inside."""
    for each in all_graphs(graph):
        yield from each.initializer
        for node in each.node:
            for attribute in node.attribute:
                if attribute.type == AttributeProto.TENSOR:
                    yield attribute.t
                yield from attribute.tensors


def tensor_names(graph: GraphProto) -> set[str]:
    """Every name that a tensor has, also in the graphs inside."""
    found = {value.name for each in all_graphs(graph) for value in (*each.input, *each.initializer)}
    found.update(name for node in all_nodes(graph) for name in (*node.input, *node.output))
    return found


def attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    """The value of the node's attribute, or `default`."""
    for each in node.attribute:
        if each.name == name:
            return onnx.helper.get_attribute_value(each)
    return default


def captured(graph: GraphProto) -> list[str]:
    """Names that the graph (the body of an If, Loop or Scan) takes from outside, in order of first use."""
    own = {value.name for value in graph.input} | {value.name for value in graph.initializer}
    own.update(name for node in graph.node for name in node.output)
    names: dict[str, None] = {}
    for node in graph.node:
        names.update(dict.fromkeys(name for name in uses(node) if name and name not in own))
    names.update(dict.fromkeys(value.name for value in graph.output if value.name not in own))
    return list(names)


def uses(node: NodeProto) -> list[str]:
    """Names that the node reads: its inputs, then what the graphs in it capture. Absent inputs are ""."""
    names = list(node.input)
    for _, inner in subgraphs(node):
        names.extend(captured(inner))
    return names


def consumers(graph: GraphProto) -> dict[str, list[NodeProto]]:
    """Tensor name → nodes that read it, once per read, captures included. Graph outputs do not count."""
    found: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in uses(node):
            if name:
                found.setdefault(name, []).append(node)
    return found


def replace_uses(graph: GraphProto, names: Mapping[str, str]) -> None:
    """Make every node, also inside bodies, read `names[x]` where it read x. Graph outputs keep their names."""
    for node in all_nodes(graph):
        for index, name in enumerate(node.input):
            if name in names:
                node.input[index] = names[name]
    for inner in all_graphs(graph):
        if inner is not graph:
            for value in inner.output:
                value.name = names.get(value.name, value.name)


def remove_nodes(graph: GraphProto, gone: Collection[int]) -> None:
    """Remove the nodes with these positions."""
    for index in sorted(gone, reverse=True):
        del graph.node[index]


def reset(field: Any, items: Iterable[Any]) -> None:
    """Make a repeated protobuf field hold exactly `items`."""
    held = list(items)
    del field[:]
    field.extend(held)
