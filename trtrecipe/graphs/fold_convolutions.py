"""Scales and shifts behind a convolution become part of its weights and bias."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from trtrecipe.graphs.edit import attribute, consumers, remove_nodes, tensor_names
from trtrecipe.graphs.names import Unique
from trtrecipe.graphs.values import array_of

Array = npt.NDArray[Any]

_CONVOLUTIONS = ("Conv", "ConvTranspose")
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)


@dataclass(frozen=True)
class _Affine:
    """y = x * scale + shift, one float64 entry per channel each."""

    scale: Array
    shift: Array


def fold_batch_normalizations(model: ModelProto) -> bool:
    """Fold BatchNormalization that directly follows Conv or ConvTranspose, in place; whether there was any."""
    return _fold(model, {"BatchNormalization": _normalization})


def fold_affine(model: ModelProto) -> bool:
    """Fold Mul, Add, Sub and Div by a constant per channel that directly follow Conv or ConvTranspose, in place.

    Whether there was any. Convolutions may be grouped or depthwise; the constant may be a scalar or have any shape that
    broadcasts along channels alone.
    """
    return _fold(model, dict.fromkeys(("Mul", "Add", "Sub", "Div"), _arithmetic))


def _fold(model: ModelProto, rules: Mapping[str, Any]) -> bool:
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    readers = consumers(graph)
    outputs = {value.name for value in graph.output}
    producers = {name: node for node in graph.node for name in node.output}
    unique = Unique(tensor_names(graph))
    folded = []
    for index, node in enumerate(graph.node):
        rule = rules.get(node.op_type)
        if rule is None or node.domain:
            continue
        for position, name in enumerate(node.input):
            conv = producers.get(name)
            if conv is None or conv.op_type not in _CONVOLUTIONS or conv.domain:
                continue
            if len(readers[name]) != 1 or name in outputs or not _constant_weights(conv, constants):
                continue
            affine = rule(node, position, _channels(conv, constants), conv, constants)
            if affine is None or not _absorb(model, conv, affine, constants, readers, unique):
                continue
            conv.output[0] = node.output[0]
            producers[node.output[0]] = conv
            folded.append(index)
            break
    remove_nodes(graph, folded)
    return bool(folded)


def _constant_weights(conv: NodeProto, constants: Mapping[str, TensorProto]) -> bool:
    named = [name for name in conv.input[1:] if name]
    return all(name in constants for name in named) and constants[conv.input[1]].data_type in _FLOATS


def _channels(conv: NodeProto, constants: Mapping[str, TensorProto]) -> int:
    dims = constants[conv.input[1]].dims
    return int(dims[0] if conv.op_type == "Conv" else dims[1] * attribute(conv, "group", 1))


def _normalization(
    node: NodeProto, position: int, channels: int, conv: NodeProto, constants: Mapping[str, TensorProto]
) -> _Affine | None:
    if position != 0 or any(name not in constants for name in node.input[1:]) or any(node.output[1:]):
        return None
    if attribute(node, "training_mode", 0):
        return None
    gamma, beta, mean, variance = (_wide(constants[name]) for name in node.input[1:5])
    scale = gamma / np.sqrt(variance + attribute(node, "epsilon", 1e-5))
    return _Affine(scale, beta - mean * scale)


def _arithmetic(
    node: NodeProto, position: int, channels: int, conv: NodeProto, constants: Mapping[str, TensorProto]
) -> _Affine | None:
    other = constants.get(node.input[1 - position])
    if other is None or other.data_type != constants[conv.input[1]].data_type:
        return None
    value = _per_channel(_wide(other), channels, len(constants[conv.input[1]].dims))
    if value is None:
        return None
    one, zero = np.ones(channels), np.zeros(channels)
    if node.op_type == "Mul":
        return _Affine(value, zero)
    if node.op_type == "Add":
        return _Affine(one, value)
    if node.op_type == "Sub":
        return _Affine(one, -value) if position == 0 else _Affine(-one, value)
    if position != 0 or not value.all():  # a constant divided by the convolution is no affine function of it
        return None
    return _Affine(1 / value, zero)


def _per_channel(value: Array, channels: int, rank: int) -> Array | None:
    """One entry per channel, from a constant that broadcasts along axis 1 of `rank` axes alone; else None."""
    if value.ndim > rank:  # the result would have more axes than the convolution
        return None
    if value.size == 1:
        return np.full(channels, value.reshape(()))
    padded = value.reshape((1,) * (rank - value.ndim) + value.shape)
    if padded.shape != tuple(channels if axis == 1 else 1 for axis in range(rank)):
        return None
    return padded.reshape(channels)


def _wide(tensor: TensorProto) -> Array:
    return array_of(tensor).astype(np.float64)


def _absorb(
    model: ModelProto,
    conv: NodeProto,
    affine: _Affine,
    constants: dict[str, TensorProto],
    readers: Mapping[str, list[NodeProto]],
    unique: Unique,
) -> bool:
    """Put the affine function into weights and bias; False, with nothing changed, where they would overflow."""
    weight = constants[conv.input[1]]
    dtype = array_of(weight).dtype
    has_bias = len(conv.input) > 2 and conv.input[2] != ""
    bias = _wide(constants[conv.input[2]]) if has_bias else np.zeros(len(affine.scale))
    with np.errstate(over="ignore"):
        new_weight = _scaled(_wide(weight), affine.scale, conv).astype(dtype)
        new_bias = (bias * affine.scale + affine.shift).astype(dtype)
    if not (np.isfinite(new_weight).all() and np.isfinite(new_bias).all()):
        return False
    _set(model, conv, 1, new_weight, constants, readers, unique)
    if has_bias or new_bias.any():
        _set(model, conv, 2, new_bias, constants, readers, unique)
    return True


def _scaled(weight: Array, scale: Array, conv: NodeProto) -> Array:
    tail = (1,) * (weight.ndim - 2)
    if conv.op_type == "Conv":  # [channels, inputs / groups, ...]
        return weight * scale.reshape(-1, 1, *tail)
    groups = attribute(conv, "group", 1)  # [inputs, channels / groups, ...], the inputs group by group
    grouped = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    return (grouped * scale.reshape(groups, 1, -1, *tail)).reshape(weight.shape)


def _set(
    model: ModelProto,
    conv: NodeProto,
    position: int,
    value: Array,
    constants: dict[str, TensorProto],
    readers: Mapping[str, list[NodeProto]],
    unique: Unique,
) -> None:
    """Give the convolution its own constant there, under the present name if nobody else reads it."""
    while len(conv.input) <= position:
        conv.input.append("")
    present = conv.input[position]
    if present and len(readers.get(present, ())) <= 1 and present not in {value.name for value in model.graph.output}:
        constants[present].CopyFrom(numpy_helper.from_array(value, present))
        return
    formal = "W" if position == 1 else "B"
    name = unique.claim(f"{conv.name or conv.output[0]}/{formal}")
    constants[name] = model.graph.initializer.add()
    constants[name].CopyFrom(numpy_helper.from_array(value, name))
    conv.input[position] = name
