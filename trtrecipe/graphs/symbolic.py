"""Shape arithmetic: what a graph computes about its own shapes, as far as it is known before running.

Exporters write `reshape(x, [shape(x)[0], 192])` as Shape, Gather, Cast, Slice, Concat, Cast, Reshape. Once the input's
shape is known up to named dimensions, such a chain is a constant: [-1, 192]. Attention is written with more of it:
batch and heads are multiplied, and taken apart again behind the product.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from trtrecipe.graphs.edit import attribute, reset, tensor_names
from trtrecipe.graphs.names import Unique
from trtrecipe.graphs.products import Size, names_in, product, quotient
from trtrecipe.graphs.shapes import infer
from trtrecipe.graphs.values import array_of

Value = npt.NDArray[np.object_]
"""Entries are int, or str: the name of a dimension, made up where the graph has none, or a product of such."""

LARGEST = 64
_INTEGERS = (TensorProto.INT32, TensorProto.INT64)


def fold_shapes(model: ModelProto) -> bool:
    """Replace computed shapes that are known by constants, in place; whether anything changed.

    A Reshape keeps a size of its input's same axis with 0 rather than -1, so that the dimension keeps its name; one
    other size may be unknown and becomes -1.
    """
    changed = False
    while True:
        folded, noted = _fold_once(model)
        changed = changed or folded
        if not (folded or noted):
            return changed


def _fold_once(model: ModelProto) -> tuple[bool, bool]:
    """Whether something was folded, and whether names were written down that may let more be folded."""
    shapes = _shapes(infer(model))
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    values = _values(model, constants, shapes)
    outputs = {value.name for value in model.graph.output}
    unique = Unique(tensor_names(model.graph))
    kept, changed, noted = [], False, False
    for node in model.graph.node:
        if len(node.output) == 1 and node.output[0] in values and node.output[0] not in outputs:
            array = _numbers(values[node.output[0]], node, shapes)
            if array is not None:
                model.graph.initializer.append(numpy_helper.from_array(array, node.output[0]))
                changed = True
                continue
        if node.op_type == "Reshape" and not node.domain:
            given = _constant(node.input[1], constants)
            wanted = values.get(node.input[1]) if given is None else given
            known = _reshaped(node, wanted, shapes)
            target = _target(node, known, given, shapes)
            if target is not None and (given is None or target.tolist() != given.tolist()):
                name = unique.claim(f"{node.name or node.output[0]}/shape")
                model.graph.initializer.append(numpy_helper.from_array(target, name))
                node.input[1] = name
                changed = True
            if known is not None and node.output[0] not in outputs:
                noted = _note(model, node, known, shapes) or noted
        kept.append(node)
    if changed:
        reset(model.graph.node, kept)
    return changed, noted


def _note(
    model: ModelProto, node: NodeProto, known: Sequence[Size], shapes: Mapping[str, tuple[int, list[int | str]]]
) -> bool:
    """Write down the names of a Reshape's axes, which inference loses; whether there were any to write down.

    Only those of the graph's inputs: inference makes up others, and may make up the same once more.
    """
    name = node.output[0]
    own = {dim.dim_param for value in model.graph.input for dim in value.type.tensor_type.shape.dim}
    sizes = [None if entry == -1 or not own.issuperset(names_in(entry)) else entry for entry in known]
    found = shapes.get(name, (0, [""] * len(known)))[1]
    new = [entry for entry, before in zip(sizes, found, strict=False) if isinstance(entry, str) and entry != before]
    if not new or any(value.name == name for value in model.graph.value_info):
        return False
    model.graph.value_info.append(helper.make_tensor_value_info(name, shapes[node.input[0]][0], sizes))
    return True


def _shapes(inferred: ModelProto) -> dict[str, tuple[int, list[int | str]]]:
    """Tensor → (element type, shape), of tensors whose rank is known."""
    found: dict[str, tuple[int, list[int | str]]] = {}
    graph = inferred.graph
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        if tensor.HasField("shape"):
            sizes = [_size_of(dim, f"{value.name}#{axis}") for axis, dim in enumerate(tensor.shape.dim)]
            found[value.name] = (tensor.elem_type, sizes)
    for constant in graph.initializer:  # exporters ask constants for their shape, too
        found.setdefault(constant.name, (constant.data_type, list(constant.dims)))
    return found


def _numbers(value: Value, node: NodeProto, shapes: Mapping[str, tuple[int, list[int | str]]]) -> Any:
    """The value as an integer array of the tensor's type; None if an entry is not known."""
    if not all(isinstance(entry, int) for entry in value.flat):
        return None
    kind = shapes.get(node.output[0], (TensorProto.UNDEFINED, []))[0]
    if kind not in _INTEGERS:
        return None
    return value.astype(np.int64 if kind == TensorProto.INT64 else np.int32)


def _reshaped(
    node: NodeProto, wanted: Value | None, shapes: Mapping[str, tuple[int, list[int | str]]]
) -> list[Size] | None:
    """The shape that the Reshape gives, with -1 for what cannot be told; None where too little is known."""
    source = shapes.get(node.input[0])
    if wanted is None or source is None or attribute(node, "allowzero", 0):
        return None
    sizes: list[Size] = []
    for axis, entry in enumerate(wanted.tolist()):
        if entry == 0 and axis >= len(source[1]):
            return None
        sizes.append(source[1][axis] if entry == 0 else entry)
    if sizes.count(-1) == 1:
        rest = quotient(product(source[1]), product(entry for entry in sizes if entry != -1))
        sizes = [(-1 if rest is None else rest) if entry == -1 else entry for entry in sizes]
    return sizes


def _target(
    node: NodeProto,
    known: Sequence[Size] | None,
    given: Value | None,
    shapes: Mapping[str, tuple[int, list[int | str]]],
) -> npt.NDArray[np.int64] | None:
    """The Reshape's target with 0 for sizes that its input has at the same axis and -1 for one other unknown size.

    Where it is `given`, and no name is kept by a 0, it stays as it is.
    """
    if known is None:
        return None
    source = shapes[node.input[0]][1]
    sizes: list[int] = []
    for axis, entry in enumerate(known):
        same = axis < len(source) and source[axis] == entry
        written = None if given is None else given.tolist()[axis]
        if written is not None and written <= 0 and not (same and isinstance(entry, str)):
            sizes.append(written)
        else:
            sizes.append(entry if isinstance(entry, int) else 0 if same else -1)
    return np.array(sizes, np.int64) if sizes.count(-1) <= 1 else None


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


def _size_of(dim: Any, made_up: str) -> int | str:
    return int(dim.dim_value) if dim.WhichOneof("value") == "dim_value" else str(dim.dim_param) or made_up


def _constant(name: str, constants: Mapping[str, TensorProto]) -> Value | None:
    tensor = constants.get(name)
    if tensor is None or tensor.data_type not in _INTEGERS or math.prod(tensor.dims) > LARGEST:
        return None
    return array_of(tensor).astype(object)


def _shape(node: NodeProto, args: Sequence[Value]) -> Value:
    return args[0][attribute(node, "start", 0) : attribute(node, "end", None)]


def _size(node: NodeProto, args: Sequence[Value]) -> Value | None:
    return _scalar(product(args[0].tolist()))


def _scalar(number: Size) -> Value:
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
    return _entrywise(args, lambda a, b: product((a, b)))


def _divide(node: NodeProto, args: Sequence[Value]) -> Value | None:
    """Sizes divided without a remainder; with one, the sign would matter."""
    return _entrywise(args, quotient)


def _larger(node: NodeProto, args: Sequence[Value]) -> Value | None:
    """Of sizes, which are 1 at least."""
    return _entrywise(args, _larger_of)


def _larger_of(first: Size, second: Size) -> Size | None:
    if isinstance(first, int) and isinstance(second, int):
        return max(first, second)
    if first == second or second == 1:
        return first
    return second if first == 1 else None


def _entrywise(args: Sequence[Value], combine: Callable[[Size, Size], Size | None]) -> Value | None:
    if len(args) != 2:
        return None
    try:
        pairs = np.broadcast(args[0], args[1])
    except ValueError:
        return None
    entries = [combine(first, second) for first, second in pairs]
    if any(entry is None for entry in entries):
        return None
    result = np.empty(len(entries), dtype=object)
    result[:] = entries
    return result.reshape(pairs.shape)


def _reduce_product(node: NodeProto, args: Sequence[Value]) -> Value | None:
    axes = attribute(node, "axes", [0]) if len(args) == 1 else _indices(args[1])
    if args[0].ndim != 1 or axes is None or list(axes) not in ([0], [-1]):
        return None
    whole = product(args[0].tolist())
    return np.array([whole], dtype=object) if attribute(node, "keepdims", 1) else _scalar(whole)


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
    "Div": _divide,
    "Max": _larger,
    "ReduceProd": _reduce_product,
}
"""Operator → its value for known arguments; None where it cannot be told."""
