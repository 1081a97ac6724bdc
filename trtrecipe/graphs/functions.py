"""Functions that an ONNX model brings itself: their bodies in the place of calls to them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import onnx.inliner
from onnx import FunctionProto, ModelProto, NodeProto

from trtrecipe import parted
from trtrecipe.errors import StepError
from trtrecipe.graphs.edit import all_nodes, subgraphs

MOST = 1_000_000
"""Nodes that a model may have without its functions; the largest known have some ten thousand."""

_Key = tuple[str, str, str]


def inlined(model: ModelProto) -> ModelProto:
    """The model without functions, or as it is where it has none; a body in another opset is written in the model's.

    Raises StepError for functions that call themselves, and for those that make far more of the graph than the file
    holds: functions that call functions twice each double it at every turn.
    """
    if not model.functions:
        return model
    functions = {_key(each): each for each in model.functions}
    sizes = _sizes(functions)
    nodes, count = _sum(all_nodes(model.graph), sizes)
    if nodes > MOST or count > parted.LIMIT:
        raise StepError(
            f"the model's functions make {nodes:,} nodes and {count:,} bytes of its graph, and {MOST:,} and "
            f"{parted.LIMIT:,} are the most that are taken",
            hint="do not use this file, or export it in parts",
        )
    try:
        return onnx.inliner.inline_local_functions(model, convert_version=True)
    except Exception as error:  # onnx's inliner is C++ and raises several unrelated types, all of them about the model
        raise StepError(
            f"onnx cannot put the model's functions in the place of their calls: {' '.join(str(error).split())[:300]}",
            hint="export the model without functions",
        ) from error


def _key(called: FunctionProto | NodeProto) -> _Key:
    name = called.name if isinstance(called, FunctionProto) else called.op_type
    return called.domain, name, called.overload


def _nodes(function: FunctionProto) -> Iterator[NodeProto]:
    """Every node of the body and of the graphs inside it."""
    for node in function.node:
        yield node
        for _, graph in subgraphs(node):
            yield from all_nodes(graph)


def _sizes(functions: Mapping[_Key, FunctionProto]) -> dict[_Key, tuple[int, int]]:
    """Function → the nodes and bytes of a call to it, once nothing in it is a call. No recursion: calls may be deep."""
    bodies = {key: list(_nodes(function)) for key, function in functions.items()}
    calls = {key: {_key(node) for node in body} & bodies.keys() for key, body in bodies.items()}
    sizes: dict[_Key, tuple[int, int]] = {}
    while ready := [key for key in bodies if key not in sizes and calls[key] <= sizes.keys()]:
        for key in ready:
            sizes[key] = _sum(bodies[key], sizes)
    if left := sorted(str(name) for _, name, _ in bodies.keys() - sizes.keys()):
        raise StepError(
            f"functions of the model call themselves, by one another or at once: {', '.join(left[:3])}",
            hint="write it as a Loop, and export the model again",
        )
    return sizes


def _sum(nodes: Iterator[NodeProto] | Sequence[NodeProto], sizes: Mapping[_Key, tuple[int, int]]) -> tuple[int, int]:
    found = [sizes.get(_key(node)) or (1, node.ByteSize()) for node in nodes]
    return sum(count for count, _ in found), sum(size for _, size in found)
