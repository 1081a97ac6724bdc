"""Shape arithmetic: what a graph computes about its own shapes, as far as it is known before running.

Exporters write `reshape(x, [shape(x)[0], 192])` as Shape, Gather, Cast, Slice, Concat, Cast, Reshape. Once the input's
shape is known up to named dimensions, such a chain is a constant: [-1, 192].
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from trtrecipe.graphs.edit import attribute, reset, tensor_names
from trtrecipe.graphs.names import Unique
from trtrecipe.graphs.shapes import infer

Value = npt.NDArray[np.object_]
"""Entries are int, or str: the name of a dimension, made up where the graph has none."""

LARGEST = 64
_INTEGERS = (TensorProto.INT32, TensorProto.INT64)


def fold_shapes(model: ModelProto) -> bool:
    """Replace computed shapes that are known by constants, in place; whether anything changed.

    A Reshape keeps a size of its input's same axis with 0 rather than -1, so that the dimension keeps its name; one
    other size may be unknown and becomes -1.
    """
    changed = False
    while _fold_once(model):
        changed = True
    return changed


def _fold_once(model: ModelProto) -> bool:
    shapes = _shapes(infer(model))
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    values = _values(model, constants, shapes)
    outputs = {value.name for value in model.graph.output}
    unique = Unique(tensor_names(model.graph))
    kept, changed = [], False
    for node in model.graph.node:
        if len(node.output) == 1 and node.output[0] in values and node.output[0] not in outputs:
            array = _numbers(values[node.output[0]], node, shapes)
            if array is not None:
                model.graph.initializer.append(numpy_helper.from_array(array, node.output[0]))
                changed = True
                continue
        if node.op_type == "Reshape" and not node.domain:
            given = _constant(node.input[1], constants)
            target = _target(node, values.get(node.input[1]) if given is None else given, shapes)
            if target is not None and (given is None or target.tolist() != given.tolist()):
                name = unique.claim(f"{node.name or node.output[0]}/shape")
                model.graph.initializer.append(numpy_helper.from_array(target, name))
                node.input[1] = name
                changed = True
        kept.append(node)
    if changed:
        reset(model.graph.node, kept)
    return changed


def _shapes(inferred: ModelProto) -> dict[str, tuple[int, list[int | str]]]:
    """Tensor → (element type, shape), of tensors whose rank is known."""
    found: dict[str, tuple[int, list[int | str]]] = {}
    graph = inferred.graph
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        if tensor.HasField("shape"):
            sizes = [
                dim.dim_value if dim.WhichOneof("value") == "dim_value" else dim.dim_param or f"{value.name}#{axis}"
                for axis, dim in enumerate(tensor.shape.dim)
            ]
            found[value.name] = (tensor.elem_type, sizes)
    return found


def _numbers(value: Value, node: NodeProto, shapes: Mapping[str, tuple[int, list[int | str]]]) -> Any:
    """The value as an integer array of the tensor's type; None if an entry is not known."""
    if not all(isinstance(entry, int) for entry in value.flat):
        return None
    kind = shapes.get(node.output[0], (TensorProto.UNDEFINED, []))[0]
    if kind not in _INTEGERS:
        return None
    return value.astype(np.int64 if kind == TensorProto.INT64 else np.int32)


def _target(
    node: NodeProto,
    target: Value | None,
    shapes: Mapping[str, tuple[int, list[int | str]]],
) -> npt.NDArray[np.int64] | None:
    """The Reshape's target with 0 for sizes that its input has at the same axis and -1 for one other unknown size."""
    source = shapes.get(node.input[0], (0, []))[1]
    if target is None or attribute(node, "allowzero", 0):
        return None
    sizes: list[int] = []
    for axis, entry in enumerate(_without_rest(target.tolist(), source)):
        same = axis < len(source) and source[axis] == entry
        if isinstance(entry, int) and entry <= 0:  # the graph's own -1 or 0: they count as they are
            sizes.append(entry)
        else:
            sizes.append(entry if isinstance(entry, int) else 0 if same else -1)
    return np.array(sizes, np.int64) if sizes.count(-1) <= 1 else None


def _without_rest(target: list[int | str], source: list[int | str]) -> list[int | str]:
    """The target with its -1 replaced by the name of the only unknown size, where that is all that is left for it."""
    named = [entry for entry in source if isinstance(entry, str)]
    if target.count(-1) != 1 or len(named) != 1 or any(isinstance(entry, str) or entry == 0 for entry in target):
        return target
    known = math.prod(entry for entry in target if isinstance(entry, int) and entry != -1)
    if known == 0 or known != math.prod(entry for entry in source if isinstance(entry, int)):
        return target
    return [named[0] if entry == -1 else entry for entry in target]


def _values(
    model: ModelProto, constants: Mapping[str, TensorProto], shapes: Mapping[str, tuple[int, list[int | str]]]
) -> dict[str, Value]:
    """Small integer tensors that nodes compute, as far as they are known."""
    computed: dict[str, Value] = {}
    for node in model.graph.node:
        if node.domain or node.op_type not in _RULES or len(node.output) != 1:
            continue
        if node.op_type in ("Shape", "Size"):
            known = shapes.get(node.input[0])
            arguments = None if known is None else [np.array(known[1], dtype=object)]
        else:
            found = [computed[name] if name in computed else _constant(name, constants) for name in node.input]
            arguments = None if any(entry is None for entry in found) else [e for e in found if e is not None]
        result = None if arguments is None else _RULES[node.op_type](node, arguments)
        if result is not None and result.size <= LARGEST and result.ndim <= 1:
            computed[node.output[0]] = result
    return computed


def _constant(name: str, constants: Mapping[str, TensorProto]) -> Value | None:
    tensor = constants.get(name)
    if tensor is None or tensor.data_type not in _INTEGERS or math.prod(tensor.dims) > LARGEST:
        return None
    return numpy_helper.to_array(tensor).astype(object)


def _shape(node: NodeProto, args: Sequence[Value]) -> Value:
    return args[0][attribute(node, "start", 0) : attribute(node, "end", None)]


def _size(node: NodeProto, args: Sequence[Value]) -> Value | None:
    return _scalar(math.prod(args[0].tolist())) if _all_known(args) else None


def _scalar(number: int) -> Value:
    return np.array(number, dtype=object)


def _all_known(args: Sequence[Value]) -> bool:
    return all(isinstance(entry, int) for arg in args for entry in arg.flat)


def _indices(arg: Value) -> list[int] | None:
    return [int(entry) for entry in arg.flat] if _all_known([arg]) else None


def _cast(node: NodeProto, args: Sequence[Value]) -> Value | None:
    return args[0] if attribute(node, "to") in _INTEGERS else None


def _gather(node: NodeProto, args: Sequence[Value]) -> Value | None:
    indices = _indices(args[1])
    size = len(args[0]) if args[0].ndim else 0
    if indices is None or attribute(node, "axis", 0) not in (0, -1) or any(not -size <= i < size for i in indices):
        return None
    return np.asarray(args[0][np.array(indices, int).reshape(args[1].shape)], dtype=object)


def _slice(node: NodeProto, args: Sequence[Value]) -> Value | None:
    parts = [_indices(arg) for arg in args[1:]]
    if args[0].ndim != 1 or any(part is None or len(part) != 1 for part in parts):
        return None
    start, end, axis, step = [part[0] for part in parts if part] + [0, 1][len(parts) - 2 :]
    if axis not in (0, -1) or step == 0:
        return None
    size = len(args[0])
    if step < 0:
        return None
    return args[0][max(start + size, 0) if start < 0 else start : max(end + size, 0) if end < 0 else end : step]


def _concat(node: NodeProto, args: Sequence[Value]) -> Value | None:
    return np.concatenate(args) if all(arg.ndim == 1 for arg in args) else None


def _reshape(node: NodeProto, args: Sequence[Value]) -> Value | None:
    shape = _indices(args[1])
    return args[0].reshape(shape) if shape in ([], [-1], [args[0].size]) and (shape or args[0].size == 1) else None


def _squeeze(node: NodeProto, args: Sequence[Value]) -> Value | None:
    return args[0].reshape(()) if args[0].shape == (1,) else None


def _unsqueeze(node: NodeProto, args: Sequence[Value]) -> Value | None:
    return args[0].reshape(1) if args[0].ndim == 0 else None


def _add(node: NodeProto, args: Sequence[Value]) -> Value | None:
    return np.asarray(args[0] + args[1], dtype=object) if _all_known(args) else None


def _subtract(node: NodeProto, args: Sequence[Value]) -> Value | None:
    return np.asarray(args[0] - args[1], dtype=object) if _all_known(args) else None


def _multiply(node: NodeProto, args: Sequence[Value]) -> Value | None:
    return np.asarray(args[0] * args[1], dtype=object) if _all_known(args) else None


_RULES = {
    "Shape": _shape,
    "Size": _size,
    "Cast": _cast,
    "Identity": lambda node, args: args[0],
    "Gather": _gather,
    "Slice": _slice,
    "Concat": _concat,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Add": _add,
    "Sub": _subtract,
    "Mul": _multiply,
}
"""Operator → its value for known arguments; None where it cannot be told."""
