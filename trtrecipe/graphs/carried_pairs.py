"""The Q/DQ pairs of a graph as its tool wrote them, or one message on all that have no form in TensorRT."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto

from trtrecipe.errors import StepError
from trtrecipe.graphs.carried import DEQUANTIZE, QUANTIZE, carries, constants, is_pair_node
from trtrecipe.graphs.carried_grid import Array, Grid
from trtrecipe.graphs.edit import all_nodes, attribute, consumers
from trtrecipe.graphs.sound import listed
from trtrecipe.graphs.values import array_of

_BYTES: Mapping[int, tuple[int, int]] = {TensorProto.INT8: (-128, 127), TensorProto.UINT8: (0, 255)}
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)
_HINT = (
    "quantize it again with 8 bits, constant scales and QuantizeLinear/DequantizeLinear around float operators "
    "(ONNX Runtime: quant_format=QDQ), or give the float model and let trtrecipe quantize it"
)


@dataclass(frozen=True)
class Pair:
    """One quantized tensor. Node positions are those in graph.node.

    `source` is in front of it: a float tensor, or, where `quantize` is None, the constant `integers` (int64; those
    of an INT32 constant too). `clip` restricts the integers in between. `half`: the floats on both sides are FP16.
    """

    source: str
    quantize: int | None
    clip: int | None
    dequantize: tuple[int, ...]
    grid: Grid
    half: bool
    constant: bool
    integers: Array | None = None


class _Refused(Exception):
    """Why one node is no part of a pair."""


@dataclass(frozen=True)
class _Graph:
    model: ModelProto
    constants: Mapping[str, TensorProto]
    producers: Mapping[str, int]
    readers: Mapping[str, list[NodeProto]]


def read(model: ModelProto) -> list[Pair]:
    """The pairs of the main graph, in order of their first node. Nothing is changed.

    Raises StepError that names every node at fault: other integers than INT8 and UINT8, blocks, scales that are
    computed, integers that go through other operators, pairs in bodies.
    """
    nodes = model.graph.node
    graph = _Graph(
        model,
        constants(model),
        {name: index for index, node in enumerate(nodes) for name in node.output},
        consumers(model.graph),
    )
    problems: list[str] = []
    outer = {id(node) for node in nodes}
    if carries(model):
        inner = [node for node in all_nodes(model.graph) if id(node) not in outer and is_pair_node(node)]
        problems += [f"{_label(node)} is inside the body of another node" for node in inner]
    pairs = []
    for index, node in enumerate(nodes):
        if not is_pair_node(node):
            continue
        try:
            if node.op_type == QUANTIZE:
                pairs.append(_pair(graph, index))
            elif node.input[0] in graph.constants:
                pairs.append(_stored(graph, index))
            else:
                _require_origin(graph, node)
        except _Refused as reason:
            problems.append(f"{_label(node)} {reason}")
    if problems:
        raise StepError(
            "TensorRT's form of quantization cannot express these nodes:\n" + listed(problems),
            hint=_HINT,
        )
    return pairs


def _pair(graph: _Graph, index: int) -> Pair:
    """The pair that the QuantizeLinear at `index` opens."""
    node = graph.model.graph.node[index]
    low, high = _range(node, _integer_type(graph, node))
    if node.output[0] in {value.name for value in graph.model.graph.output}:
        raise _Refused("makes a graph output; the outputs must be floats")
    clips, ends = _ends(graph, node)
    clip = None
    if clips:
        clip = clips[0]
        low, high = _clipped(graph, graph.model.graph.node[clip], low, high)
    grid = _grid(graph, node, low, high)
    for end in ends:
        other = _grid(graph, graph.model.graph.node[end], low, high)
        if not (
            np.array_equal(other.scale, grid.scale)
            and np.array_equal(other.zero, grid.zero)
            and other.axis == grid.axis
        ):
            raise _Refused(f"and {_label(graph.model.graph.node[end])} have different scales or zero points")
    constant = node.input[0] in graph.constants
    return Pair(node.input[0], index, clip, tuple(ends), grid, _is_half(graph, node), constant)


def _ends(graph: _Graph, node: NodeProto) -> tuple[list[int], list[int]]:
    """Positions of the Clip behind a QuantizeLinear, if any, and of the DequantizeLinear nodes that end the pair."""
    readers = graph.readers.get(node.output[0], [])
    clips: list[int] = []
    if len(readers) == 1 and readers[0].op_type == "Clip" and not readers[0].domain:
        clips = [graph.producers[readers[0].output[0]]]
        readers = graph.readers.get(readers[0].output[0], [])
    for reader in readers:
        if reader.op_type != DEQUANTIZE or not is_pair_node(reader) or reader.input[1] in (node.output[0],):
            raise _Refused(f"feeds {_label(reader)}, which takes the integers as they are")
    return clips, [graph.producers[reader.output[0]] for reader in readers]


def _stored(graph: _Graph, index: int) -> Pair:
    """A DequantizeLinear of constant integers."""
    node = graph.model.graph.node[index]
    tensor = graph.constants[node.input[0]]
    if tensor.data_type == TensorProto.INT32:  # biases; the range is that of the type and never used
        low, high = -(1 << 31), (1 << 31) - 1
    else:
        low, high = _range(node, tensor.data_type)
    integers = array_of(tensor).astype(np.int64)
    grid = _grid(graph, node, low, high)
    return Pair(node.input[0], None, None, (index,), grid, _is_half(graph, node), True, integers)


def _require_origin(graph: _Graph, node: NodeProto) -> None:
    """Refuse a DequantizeLinear that neither a QuantizeLinear nor a constant stands behind."""
    position = graph.producers.get(node.input[0])
    if position is None:
        raise _Refused(f"reads integers from the graph's input {node.input[0]}; the inputs must be floats")
    maker = graph.model.graph.node[position]
    if maker.op_type == "Clip" and graph.producers.get(maker.input[0]) is not None:
        maker = graph.model.graph.node[graph.producers[maker.input[0]]]
    if maker.op_type != QUANTIZE:
        raise _Refused(f"reads integers that come from {_label(maker)}")


def _integer_type(graph: _Graph, node: NodeProto) -> int:
    if len(node.input) > 2 and node.input[2]:
        zero = graph.constants.get(node.input[2])
        if zero is None:
            raise _Refused("has a zero point that is computed")
        return int(zero.data_type)
    return int(attribute(node, "output_dtype", 0) or TensorProto.UINT8)


def _range(node: NodeProto, kind: int) -> tuple[int, int]:
    if kind not in _BYTES:
        raise _Refused(f"makes {TensorProto.DataType.Name(kind)}; TensorRT takes INT8 here")
    return _BYTES[kind]


def _clipped(graph: _Graph, clip: NodeProto, low: int, high: int) -> tuple[int, int]:
    """The range that is left behind a Clip of integers."""
    for position, name in enumerate(clip.input):
        if position == 0 or not name:
            continue
        if name not in graph.constants:
            raise _Refused(f"feeds {_label(clip)}, whose bounds are computed")
        bound = int(array_of(graph.constants[name]).reshape(()))
        low, high = (max(low, bound), high) if position == 1 else (low, min(high, bound))
    return low, high


def _grid(graph: _Graph, node: NodeProto, low: int, high: int) -> Grid:
    if attribute(node, "block_size", 0):
        raise _Refused("has scales per block")
    tensor = graph.constants.get(node.input[1])
    if tensor is None:
        raise _Refused("has a scale that is computed")
    if tensor.data_type not in _FLOATS:
        raise _Refused(f"has a scale in {TensorProto.DataType.Name(tensor.data_type)}")
    scale = array_of(tensor).astype(np.float32)
    if scale.ndim > 1:
        raise _Refused("has scales per block")
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        raise _Refused("has a scale that is not a positive number")
    zero = np.zeros(scale.shape, np.int64)
    if len(node.input) > 2 and node.input[2]:
        if node.input[2] not in graph.constants:
            raise _Refused("has a zero point that is computed")
        zero = array_of(graph.constants[node.input[2]]).astype(np.int64)
    if scale.size == 1 and zero.size == 1:
        return Grid(scale.reshape(()), zero.reshape(()), low, high)
    return Grid(scale, np.broadcast_to(zero, scale.shape), low, high, _axis(graph, node, scale.size))


def _axis(graph: _Graph, node: NodeProto, channels: int) -> int:
    """The axis that scales per channel follow, counted from the front."""
    source = node.input[0]
    while source not in graph.constants:
        maker = graph.producers.get(source)
        if maker is None or graph.model.graph.node[maker].op_type not in (QUANTIZE, "Clip"):
            raise _Refused(
                "has a scale per channel on a tensor that is no constant; TensorRT takes one per tensor there"
            )
        source = graph.model.graph.node[maker].input[0]
    dims = graph.constants[source].dims
    axis = int(attribute(node, "axis", 1))
    if not -len(dims) <= axis < len(dims) or dims[axis] != channels:
        raise _Refused(f"has {channels} scales, and its tensor {source} of shape {list(dims)} has none for axis {axis}")
    return axis % len(dims)


def _is_half(graph: _Graph, node: NodeProto) -> bool:
    return bool(graph.constants[node.input[1]].data_type == TensorProto.FLOAT16)


def _label(node: NodeProto) -> str:
    return f"{node.op_type} {node.name or node.output[0]}"


def positions(pairs: list[Pair]) -> Iterator[int]:
    """Of every node that belongs to one of the pairs."""
    for pair in pairs:
        yield from (index for index in (pair.quantize, pair.clip) if index is not None)
        yield from pair.dequantize
