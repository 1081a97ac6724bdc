"""Operators that only move entries, inside a pair or behind weights: put where TensorRT has a form for them.

On weights they come before the pair: TensorRT wants the pair right in front of the operator, and constant folding needs
the constant right in front of the mover. Between the two halves of a pair, where tf2onnx puts them, they move floats.
"""

from __future__ import annotations

from collections.abc import Mapping

from onnx import ModelProto, NodeProto, TensorProto, helper

from trtrecipe.graphs.carried import DEQUANTIZE, QUANTIZE, constants, is_pair_node
from trtrecipe.graphs.edit import attribute, reset, tensor_names
from trtrecipe.graphs.names import Unique
from trtrecipe.graphs.shapes import infer

_MOVERS = ("Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")


_INTEGER_MOVERS = frozenset(
    [*_MOVERS, "Concat", "DepthToSpace", "Expand", "Gather", "MaxPool", "Slice", "SpaceToDepth"]
)
"""What gives the same, done before or after DequantizeLinear with a single scale."""


def move_to_floats(model: ModelProto) -> bool:
    """Let movers of integers in front of a DequantizeLinear move floats, in place; whether there were any.

    They stand between two pairs then, both with the scale of the DequantizeLinear: each value is what it was. One mover
    in front of each per call.
    """
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    held = {tensor.name: tensor for tensor in graph.initializer}
    names = Unique(tensor_names(graph) | {node.name for node in graph.node})
    nodes: list[NodeProto] = []
    changed = False
    for node in graph.node:
        mover = makers.get(node.input[0]) if node.op_type == DEQUANTIZE and is_pair_node(node) else None
        scale = held.get(node.input[1]) if mover is not None else None
        moves = mover is not None and mover.op_type in _INTEGER_MOVERS and not mover.domain and len(mover.output) == 1
        if mover is not None and moves and scale is not None and _product(list(scale.dims)) == 1 < len(node.input) - 1:
            nodes.extend(_as_floats(node, mover, names))
            changed = True
        else:
            nodes.append(node)
    reset(graph.node, nodes)
    return changed


def _as_floats(end: NodeProto, mover: NodeProto, names: Unique) -> list[NodeProto]:
    """DequantizeLinear of what the mover reads, the mover, and a pair that ends in `end`."""
    parameters, result = list(end.input[1:]), end.output[0]
    data = len(mover.input) if mover.op_type == "Concat" else 1
    opened = []
    for name in mover.input[:data]:
        floats = names.claim(f"{name}/dequantized")
        opened.append(helper.make_node(DEQUANTIZE, [name, *parameters], [floats], name=floats))
    moved, integers = names.claim(f"{result}/{mover.op_type}"), names.claim(f"{result}/quantized")
    inputs = [*(node.output[0] for node in opened), *mover.input[data:]]
    middle = helper.make_node(mover.op_type, inputs, [moved], name=mover.name)
    middle.attribute.extend(mover.attribute)
    return [
        *opened,
        middle,
        helper.make_node(QUANTIZE, [moved, *parameters], [integers], name=integers),
        helper.make_node(DEQUANTIZE, [integers, *parameters], [result], name=end.name),
    ]


def move_to_weights(model: ModelProto) -> bool:
    """Do what moves the entries of dequantized constants to the constants themselves, in place; whether there was any.

    One mover per constant and call: the next stands directly behind the pair then.
    """
    graph = model.graph
    held = constants(model)
    producers = {name: node for node in graph.node for name in node.output}
    if not any(is_pair_node(node) for node in graph.node):
        return False
    dims = _dims(model)
    names = Unique(tensor_names(graph) | {node.name for node in graph.node})
    nodes: list[NodeProto] = []
    changed = False
    for node in graph.node:
        chain = _chain(node, producers, held)
        moved = _moved(node, chain, dims, names) if chain else None
        nodes.extend(moved or [node])
        changed = changed or moved is not None
    reset(graph.node, nodes)
    return changed


def _dims(model: ModelProto) -> dict[str, list[int]]:
    """Tensor → sizes of its axes, of those tensors where all are known."""
    inferred = infer(model).graph
    found = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    for value in (*inferred.value_info, *inferred.output):
        shape = value.type.tensor_type.shape.dim
        if all(dim.HasField("dim_value") for dim in shape):
            found[value.name] = [dim.dim_value for dim in shape]
    return found


def _chain(
    node: NodeProto, producers: Mapping[str, NodeProto], held: Mapping[str, TensorProto]
) -> list[NodeProto] | None:
    """The pair's nodes between a constant and the mover `node`, first one first; None where that is not what it is."""
    if node.op_type not in _MOVERS or node.domain or any(name and name not in held for name in node.input[1:]):
        return None
    chain: list[NodeProto] = []
    name = node.input[0]
    for kind in (DEQUANTIZE, "Clip", QUANTIZE):
        maker = producers.get(name)
        if maker is not None and maker.op_type == kind and not maker.domain:
            chain.insert(0, maker)
            name = maker.input[0]
        elif kind == DEQUANTIZE:
            return None
    return chain if name in held else None


def _moved(
    mover: NodeProto, chain: list[NodeProto], dims: Mapping[str, list[int]], names: Unique
) -> list[NodeProto] | None:
    """The mover on the constant, then copies of the pair, the last of which makes the mover's result.

    None where scales per channel would no longer follow an axis. The copies are called like the pair, which the
    canonical form drops, or renames them where the pair has other readers.
    """
    source = chain[0].input[0]
    axis: int | None = None
    per_channel = any(len(dims.get(node.input[1], [])) == 1 and dims[node.input[1]] != [1] for node in chain[-1:])
    if per_channel:
        axis = _new_axis(mover, int(attribute(chain[-1], "axis", 1)), dims[source], dims.get(mover.output[0]))
        if axis is None:
            return None
    current = names.claim(f"{source}/{mover.op_type}")
    moved = [helper.make_node(mover.op_type, [source, *mover.input[1:]], [current], name=current)]
    moved[0].attribute.extend(mover.attribute)
    for position, node in enumerate(chain):
        last = position == len(chain) - 1
        result = mover.output[0] if last else names.claim(f"{node.output[0]}/{mover.op_type}")
        copy = helper.make_node(node.op_type, [current, *node.input[1:]], [result], name=node.name)
        copy.attribute.extend(each for each in node.attribute if each.name != "axis")
        if axis is not None and is_pair_node(node):
            copy.attribute.append(helper.make_attribute("axis", axis))
        moved.append(copy)
        current = result
    return moved


def _new_axis(mover: NodeProto, axis: int, before: list[int], after: list[int] | None) -> int | None:
    """Where the entries along `axis` of a row-major tensor lie afterwards; None where no axis is theirs alone."""
    axis %= len(before)
    if mover.op_type == "Transpose":
        order = list(attribute(mover, "perm", range(len(before))[::-1]))
        return order.index(axis)
    if after is None:
        return None
    outside = _product(before[:axis])
    for position, size in enumerate(after):
        if size == before[axis] and _product(after[:position]) == outside:
            return position
    return None


def _product(sizes: list[int]) -> int:
    result = 1
    for size in sizes:
        result *= size
    return result
