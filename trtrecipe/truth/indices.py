"""Which inputs of a graph are indices into tables, and how long those tables are."""

from __future__ import annotations

from collections.abc import Mapping

from onnx import GraphProto, NodeProto, TensorProto

from trtrecipe.graphs.edit import attribute, subgraphs, uses
from trtrecipe.graphs.values import array_of

_PASSES_ON = {
    "Cast", "Concat", "Expand", "Flatten", "Identity", "Pad", "Reshape", "Slice", "Split", "Squeeze", "Tile",
    "Transpose", "Unsqueeze", "Where",
}  # fmt: skip
"""Operators whose outputs hold values of their inputs: an index stays one on its way through them."""
_INDEXED = {"Gather": 1, "GatherElements": 1, "GatherND": 1, "OneHot": 0, "ScatterElements": 1, "ScatterND": 1}
"""Operator → which of its inputs are indices."""


def bounds(graph: GraphProto) -> Mapping[str, int | None]:
    """Input → the length of the shortest table that its values are indices into.

    None for an input that something computed from it is an index: what is valid is then not known. Inputs that lead to
    no index are absent. Bodies of loops and branches are not followed, but what they read counts as computed.
    """
    own = {value.name: value.name for value in graph.input}
    taken: dict[str, set[str]] = {name: {name} for name in own}  # tensor → inputs whose values it holds
    computed: dict[str, set[str]] = {}  # tensor → inputs that it depends on in another way
    sizes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    found: dict[str, int | None] = {}
    for node in graph.node:
        position = _INDEXED.get(node.op_type)
        if position is not None and position < len(node.input):
            name = node.input[position]
            length = _length(node, sizes, constants)
            for given in taken.get(name, ()):
                found[given] = _shorter(found, given, length)
            for given in computed.get(name, ()):
                found[given] = None
        _follow(node, taken, computed)
    return found


def _follow(node: NodeProto, taken: dict[str, set[str]], computed: dict[str, set[str]]) -> None:
    """Note what the outputs of the node hold and depend on."""
    if node.op_type in ("Shape", "Size"):
        return
    read = [name for name in uses(node) if name]
    holds = set().union(*(taken.get(name, ()) for name in read))
    depends = set().union(*(computed.get(name, ()) for name in read))
    if node.op_type not in _PASSES_ON or any(True for _ in subgraphs(node)):
        holds, depends = set(), holds | depends
    if node.op_type == "Where":  # indices below zero are counted from the end that way: where(i < 0, i + length, i)
        depends -= holds
    for name in node.output:
        if holds:
            taken[name] = holds
        if depends:
            computed[name] = depends


def _length(node: NodeProto, sizes: Mapping[str, list[int]], constants: Mapping[str, TensorProto]) -> int | None:
    """How many entries the node's indices choose from; None where the graph does not say."""
    if node.op_type == "OneHot":
        depth = constants.get(node.input[1])
        return None if depth is None else int(array_of(depth).reshape(-1)[0])
    dims = sizes.get(node.input[0])
    if node.op_type not in ("Gather", "GatherElements") or not dims:
        return None
    return int(dims[attribute(node, "axis", 0)])


def _shorter(found: Mapping[str, int | None], name: str, length: int | None) -> int | None:
    if name in found and (found[name] is None or length is None):
        return None
    known = found.get(name)
    return length if known is None or (length is not None and length < known) else known
