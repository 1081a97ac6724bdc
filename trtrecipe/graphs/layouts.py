"""How an operator is written when its tensors come with their axes in another order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import NodeProto

from trtrecipe.graphs.edit import attribute
from trtrecipe.graphs.known import Known, Shape
from trtrecipe.graphs.pooling import reduced_axes

Perm = tuple[int, ...]
"""As in Transpose: axis i of the outer order is axis perm[i] of the inner one."""

CHANNELS_LAST = ((0, 2, 3, 1), (0, 2, 3, 4, 1))

_UNARY_NAMES = """
Abs Acos Acosh Asin Asinh Atan Atanh Cast Ceil Celu Clip Cos Cosh Elu Erf Exp Floor Gelu HardSigmoid HardSwish
Identity IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus
Softsign Sqrt Swish Tan Tanh ThresholdedRelu
"""
_BROADCAST_NAMES = """
Add And Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min Mod Mul Or PRelu Pow Sub Sum Where Xor
"""
_REDUCE_NAMES = """
ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
ReduceSumSquare
"""
_UNARY, _BROADCAST, _REDUCE = (frozenset(names.split()) for names in (_UNARY_NAMES, _BROADCAST_NAMES, _REDUCE_NAMES))


@dataclass
class Moved:
    """A node on inner tensors.

    `data`: input positions that take the inner tensor; `constants`: position → a constant of its own; `attributes`:
    those that change. `results`: for each output the Perm that leads back to what the node gave, () where nothing needs
    to.
    """

    data: Sequence[int]
    results: Sequence[Perm]
    constants: dict[int, npt.NDArray[Any]] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)


def moved(node: NodeProto, perm: Perm, facts: Known) -> Moved | None:
    """The node with its data in the order before Transpose(perm); None where it depends on the order, or too little
    is known of it.
    """
    if node.domain or not node.input:
        return None
    if node.op_type in _UNARY:
        return _same_rank(node, perm, facts, Moved([0], [perm]))
    if node.op_type in _BROADCAST:
        return _broadcast(node, perm, facts)
    if node.op_type in _REDUCE:
        return _same_rank(node, perm, facts, _reduce(node, perm, facts))
    rule = _RULES.get(node.op_type)
    return None if rule is None else _same_rank(node, perm, facts, rule(node, perm, facts))


def inverse(perm: Sequence[int]) -> Perm:
    """What undoes the Perm."""
    return tuple(int(each) for each in np.argsort(perm))


def inner_constant(value: npt.NDArray[Any], perm: Perm) -> npt.NDArray[Any]:
    """A constant that broadcasts against outer tensors, as it broadcasts against inner ones."""
    if value.size == 1:
        return value
    return np.ascontiguousarray(value.reshape((1,) * (len(perm) - value.ndim) + value.shape).transpose(inverse(perm)))


def _same_rank(node: NodeProto, perm: Perm, facts: Known, found: Moved | None) -> Moved | None:
    if found is None:
        return None
    shapes = [facts.shapes.get(node.input[position]) for position in found.data]
    return found if all(shape is not None and len(shape) == len(perm) for shape in shapes) else None


def _broadcast(node: NodeProto, perm: Perm, facts: Known) -> Moved | None:
    """Tensors of full rank are moved, constants rearranged; single numbers are left alone."""
    result = Moved([], [perm])
    data = []
    for position, name in enumerate(node.input):
        shape = facts.shapes.get(name)
        value = facts.value(name)
        if shape is None or len(shape) > len(perm):
            return None
        if value is not None:
            if value.size > 1:
                result.constants[position] = inner_constant(value, perm)
        elif len(shape) == len(perm):
            data.append(position)
        elif shape:
            return None
    result.data = data
    return result if data else None


def _axis(name: str, default: int) -> Callable[[NodeProto, Perm, Known], Moved]:
    def rule(node: NodeProto, perm: Perm, facts: Known) -> Moved:
        axis = attribute(node, name, default) % len(perm)
        return Moved([0], [perm] * len(node.output), attributes={name: perm[axis]})

    return rule


def _concat(node: NodeProto, perm: Perm, facts: Known) -> Moved:
    data = [position for position, name in enumerate(node.input) if name not in facts.constants]
    constants = {
        position: np.asarray(value).transpose(inverse(perm))
        for position, name in enumerate(node.input)
        if (value := facts.value(name)) is not None and value.ndim == len(perm)
    }
    axis = perm[attribute(node, "axis") % len(perm)]
    return Moved(data, [perm], constants, {"axis": axis})


def _reduce(node: NodeProto, perm: Perm, facts: Known) -> Moved | None:
    axes = reduced_axes(node, facts)
    if axes is None:
        return None
    gone = sorted(axis % len(perm) for axis in axes)
    result = Moved([0], [perm if attribute(node, "keepdims", 1) else _without(perm, gone)])
    return _with_axes(result, node, sorted(perm[axis] for axis in gone))


def _with_axes(result: Moved, node: NodeProto, axes: list[int]) -> Moved:
    if len(node.input) > 1 and node.input[1]:
        result.constants[1] = np.array(axes, np.int64)
    else:
        result.attributes["axes"] = axes
    return result


def _without(perm: Perm, gone: Sequence[int]) -> Perm:
    """The Perm of what is left when outer axes go; () where nothing is out of order then."""
    left = [axis for position, axis in enumerate(perm) if position not in gone]
    rest = tuple(sorted(left).index(axis) for axis in left)
    return () if rest == tuple(range(len(rest))) else rest


def _extremum(node: NodeProto, perm: Perm, facts: Known) -> Moved:
    axis = attribute(node, "axis", 0) % len(perm)
    back = perm if attribute(node, "keepdims", 1) else _without(perm, [axis])
    return Moved([0], [back], attributes={"axis": perm[axis]})


def _squeeze(node: NodeProto, perm: Perm, facts: Known) -> Moved | None:
    axes = facts.value(node.input[1]) if len(node.input) > 1 else None
    if axes is None:
        return None
    gone = sorted(int(axis) % len(perm) for axis in axes)
    return Moved([0], [_without(perm, gone)], {1: np.array(sorted(perm[axis] for axis in gone), np.int64)})


def _slice(node: NodeProto, perm: Perm, facts: Known) -> Moved | None:
    if len(node.input) < 4 or not node.input[3]:
        return None
    axes = facts.value(node.input[3])
    if axes is None:
        return None
    return Moved([0], [perm], {3: np.array([perm[int(axis) % len(perm)] for axis in axes], axes.dtype)})


def _pad(node: NodeProto, perm: Perm, facts: Known) -> Moved | None:
    if len(node.input) > 3 and node.input[3]:
        axes = facts.value(node.input[3])
        return None if axes is None else Moved([0], [perm], {3: np.array([perm[int(a) % len(perm)] for a in axes])})
    pads = facts.value(node.input[1])
    if pads is None or pads.size != 2 * len(perm):
        return None
    return Moved([0], [perm], {1: pads.reshape(2, -1)[:, inverse(perm)].reshape(-1)})


def _resize(node: NodeProto, perm: Perm, facts: Known) -> Moved | None:
    """Only into channels-first, which every release resizes."""
    if perm not in CHANNELS_LAST or attribute(node, "axes") is not None or any(node.input[1:2]):
        return None
    constants = {}
    for position, name in enumerate(node.input[2:], 2):
        if name:
            value = facts.value(name)
            if value is None or (value.size and value.size != len(perm)):
                return None
            if value.size:
                constants[position] = value[list(inverse(perm))]
    return Moved([0], [perm], constants)


def _reshape(node: NodeProto, perm: Perm, facts: Known) -> Moved | None:
    """A Reshape that comes out the same, as the Perm moves nothing but axes of size 1."""
    shape, target = facts.shapes.get(node.input[0]), facts.value(node.input[1])
    if shape is None or target is None or len(shape) != len(perm) or attribute(node, "allowzero", 0):
        return None
    real = [axis for size, axis in zip(shape, perm, strict=True) if size != 1]
    if real != sorted(real):
        return None
    sizes = _without_copies([int(size) for size in target], shape, perm)
    return None if sizes is None else Moved([0], [()], {1: np.array(sizes, np.int64)})


def _without_copies(target: list[int], outer: Shape, perm: Perm) -> list[int] | None:
    """The target with each 0, which copies a size of the outer input, right for the inner one."""
    inner = [outer[axis] for axis in inverse(perm)]
    sizes = []
    for axis, size in enumerate(target):
        if size == 0 and outer[axis] != inner[axis]:
            copied = outer[axis]
            size = copied if isinstance(copied, int) else -1
        sizes.append(size)
    return sizes if sizes.count(-1) <= 1 else None


def _quantized(node: NodeProto, perm: Perm, facts: Known) -> Moved:
    scales = facts.shapes.get(node.input[1])
    if scales is not None and all(size == 1 for size in scales):
        return Moved([0], [perm])
    axis = attribute(node, "axis", 1) % len(perm)
    return Moved([0], [perm], attributes={"axis": perm[axis]})


_RULES: Mapping[str, Callable[[NodeProto, Perm, Known], Moved | None]] = {
    "ArgMax": _extremum,
    "ArgMin": _extremum,
    "Concat": _concat,
    "DequantizeLinear": _quantized,
    "Hardmax": _axis("axis", -1),
    "LogSoftmax": _axis("axis", -1),
    "Pad": _pad,
    "QuantizeLinear": _quantized,
    "Reshape": _reshape,
    "Resize": _resize,
    "Slice": _slice,
    "Softmax": _axis("axis", -1),
    "Split": _axis("axis", 0),
    "Squeeze": _squeeze,
}
"""Operator → how it is moved; those that work on each entry, or reduce, are above."""
