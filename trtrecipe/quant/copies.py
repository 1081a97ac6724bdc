"""Operators whose outputs hold values of their inputs, and the tensors that share a scale because of them.

Q/DQ commute with such an operator where the scales on both sides are equal. TensorRT moves a QuantizeLinear backward
past one only if its outputs' scales are equal, and requantizes between different ones (NVIDIA's developer guide,
explicit quantization, "Q/DQ propagation"; NVIDIA/Model-Optimizer 0.46.0, modelopt/onnx/quantization/graph_utils.py,
get_concat_eliminated_tensors, which shares scales over Concat).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from onnx import NodeProto

from trtrecipe.graphs.edit import attribute
from trtrecipe.graphs.values import array_of
from trtrecipe.quant.overview import Overview

_FIRST = frozenset(
    [
        "DepthToSpace",
        "Dropout",
        "Expand",
        "Flatten",
        "Gather",
        "GlobalMaxPool",
        "Identity",
        "MaxPool",
        "Reshape",
        "Slice",
        "SpaceToDepth",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    ]
)
"""Those that take the values of their first input."""


def sources(graph: Overview, index: int) -> Sequence[str]:
    """The FP32 inputs whose values the node's outputs hold; none where it computes anything."""
    node = graph.nodes[index]
    operator = graph.operator(index)
    if operator == "Concat":
        found = list(node.input)
    elif (
        operator in _FIRST
        or (operator == "Resize" and _is_nearest(node))
        or (operator == "Pad" and _pads_zeros(graph, node))
    ):
        found = list(node.input[:1])
    else:
        found = []
    return [name for name in found if graph.is_float(name)]


def targets(graph: Overview, index: int) -> Sequence[str]:
    """The outputs that hold the values of `sources`."""
    outputs = [name for name in graph.nodes[index].output if name]
    return outputs if graph.operator(index) == "Split" else outputs[:1]


def shared(graph: Overview, tensors: Iterable[str]) -> tuple[tuple[str, ...], ...]:
    """The groups, of two or more of `tensors`, that copies join; constants among a Concat's inputs join nothing."""
    parents: dict[str, str] = {}

    def root(name: str) -> str:
        while parents.get(name, name) != name:
            parents[name] = parents.get(parents[name], parents[name])
            name = parents[name]
        return name

    for index in range(len(graph.nodes)):
        joined = [name for name in sources(graph, index) if name not in graph.constants]
        for name in (*joined[1:], *(targets(graph, index) if joined else ())):
            parents[root(name)] = root(joined[0])
    groups: dict[str, list[str]] = {}
    for name in dict.fromkeys(tensors):
        groups.setdefault(root(name), []).append(name)
    return tuple(tuple(group) for group in groups.values() if len(group) > 1)


def origin(graph: Overview, tensor: str) -> int | None:
    """The node that computed the tensor's values, seen through copies of one tensor; None for a graph input."""
    while tensor in graph.makers:
        index = graph.makers[tensor]
        held = sources(graph, index)
        if len(held) != 1:
            return index
        tensor = held[0]
    return None


def _is_nearest(node: NodeProto) -> bool:
    mode = attribute(node, "mode", b"nearest")
    return bool(mode == b"nearest" and attribute(node, "coordinate_transformation_mode") != b"tf_crop_and_resize")


def _pads_zeros(graph: Overview, node: NodeProto) -> bool:
    """Whether a Pad brings in nothing but values of its input and 0, which every symmetric scale holds exactly."""
    if attribute(node, "mode", b"constant") != b"constant" or len(node.input) < 3 or not node.input[2]:
        return True
    value = graph.constants.get(node.input[2])
    return value is not None and not array_of(value).any()
