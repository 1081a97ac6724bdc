"""TFLite's operators that move entries, or compute with shapes.

Each function adds the nodes of one operator. What an operator computes: tensorflow/lite/kernels at v2.21.0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import TensorProto

from trtrecipe.graphs.flatbuffer import Damaged
from trtrecipe.graphs.tflite_builder import WHERE, Builder, Refused
from trtrecipe.graphs.tflite_file import Operator
from trtrecipe.graphs.tflite_math import Convert

_LAST, _BEFORE_FIRST = (1 << 63) - 1, -(1 << 63)


def _keeps_first(build: Builder, numbers: Sequence[int]) -> bool:
    """Whether an operator on these should work with channels first."""
    moving = [number for number in numbers if not build.is_constant(number)]
    return any(map(build.is_first, moving)) and all(build.rank(number) == 4 for number in numbers)


def _axis(axis: int, rank: int) -> int:
    if not -rank <= axis < rank:
        raise Damaged(f"axis {axis} of {rank}")
    return axis % rank


def reshape(build: Builder, operator: Operator) -> None:
    """To a shape that is given, computed, or that the file knows but for one size."""
    source, result = operator.inputs[0], operator.outputs[0]
    shape = build.given(operator, 1)
    expected = build.tensor(result).shape
    if shape is not None and build.rank(shape) == 1 and not build.is_constant(shape):
        build.flattened[result] = source
        known = len(expected) > 0 and expected.count(-1) <= 1 and 0 not in expected
        target = build.integers("shape", expected) if known else build.integer(shape)
    elif shape is not None and build.rank(shape) == 1:
        target = build.integers("shape", build.numbers(shape, "shape"))
    else:
        new = list(operator.options["new_shape"])
        target = build.integers("shape", [] if new == [0] else new)
    build.store(result, build.node("Reshape", [build.plain(source), target]), same=source)


def transpose(build: Builder, operator: Operator) -> None:
    """Axes in another order."""
    source, rank = operator.inputs[0], build.rank(operator.inputs[0])
    order = build.numbers(operator.inputs[1], "order of axes")
    if sorted(order) != list(range(rank)):
        raise Damaged(f"{operator.name} puts {rank} axes in the order {order}")
    first = _keeps_first(build, [source])
    order = [WHERE[axis] for axis in order] if first else order
    name = build.first(source) if first else build.plain(source)
    moved = build.node("Identity", [name]) if order == sorted(order) else build.node("Transpose", [name], perm=order)
    build.store(operator.outputs[0], moved, same=source)


def squeeze(build: Builder, operator: Operator) -> None:
    """Without axes of one entry."""
    source, rank = operator.inputs[0], build.rank(operator.inputs[0])
    axes = [_axis(axis, rank) for axis in operator.options["squeeze_dims"]]
    axes = axes or [axis for axis, size in enumerate(build.tensor(source).shape) if size == 1]
    result = build.node("Squeeze", [build.plain(source), build.integers("axes", sorted(set(axes)))])
    build.store(operator.outputs[0], result, same=source)


def expand_dims(build: Builder, operator: Operator) -> None:
    """With one more axis."""
    source = operator.inputs[0]
    axes = build.integers("axes", build.numbers(operator.inputs[1], "axis"))
    build.store(operator.outputs[0], build.node("Unsqueeze", [build.plain(source), axes]), same=source)


def concatenation(build: Builder, operator: Operator) -> None:
    """One after the other along an axis."""
    first = _keeps_first(build, operator.inputs)
    axis = _axis(operator.options["axis"], build.rank(operator.outputs[0]))
    names = [build.first(number) if first else build.plain(number) for number in operator.inputs]
    result = build.node("Concat", names, axis=WHERE[axis] if first else axis)
    fused = operator.options["fused_activation_function"]
    # All inputs have the scale of the output, or are rounded to it.
    alike = all(build.equal_grids(number, operator.outputs[0]) for number in operator.inputs)
    build.store(operator.outputs[0], result, first, fused, operator.inputs[0] if alike and not fused else None)


def pack(build: Builder, operator: Operator) -> None:
    """One after the other along a new axis."""
    axis = _axis(operator.options["axis"], build.rank(operator.outputs[0]))
    names = [
        build.node("Unsqueeze", [build.plain(number), build.integers("axes", [axis])]) for number in operator.inputs
    ]
    alike = all(build.equal_grids(number, operator.outputs[0]) for number in operator.inputs)
    result = build.node("Concat", names, axis=axis)
    build.store(operator.outputs[0], result, same=operator.inputs[0] if alike else None)


def unpack(build: Builder, operator: Operator) -> None:
    """The entries along an axis, apart."""
    source = operator.inputs[0]
    axis = _axis(operator.options["axis"], build.rank(source))
    parts = build.split("Split", [build.plain(source)], len(operator.outputs), axis=axis)
    for number, part in zip(operator.outputs, parts, strict=True):
        build.store(number, build.node("Squeeze", [part, build.integers("axes", [axis])]), same=source)


def split(build: Builder, operator: Operator) -> None:
    """SPLIT (axis, tensor) in equal parts, SPLIT_V (tensor, sizes, axis) in given ones."""
    equal = operator.name == "SPLIT"
    source, at = (operator.inputs[1], operator.inputs[0]) if equal else (operator.inputs[0], operator.inputs[2])
    (axis,) = build.numbers(at, "axis")
    axis = _axis(axis, build.rank(source))
    first = _keeps_first(build, [source])
    inputs = [build.first(source) if first else build.plain(source)]
    if not equal:
        sizes = build.numbers(operator.inputs[1], "sizes")
        total = build.tensor(source).shape[axis]
        if -1 in sizes:
            if total < 0:
                raise Refused("one of its sizes is open")
            sizes[sizes.index(-1)] = total - sum(size for size in sizes if size > 0)
        inputs.append(build.integers("split", sizes))
    parts = build.split("Split", inputs, len(operator.outputs), axis=WHERE[axis] if first else axis)
    for number, part in zip(operator.outputs, parts, strict=True):
        build.store(number, part, first, same=source)


def slice_(build: Builder, operator: Operator) -> None:
    """A part of every axis, from a place and of a size."""
    source = operator.inputs[0]
    begins, sizes = build.numbers(operator.inputs[1], "begin"), build.numbers(operator.inputs[2], "size")
    ends = [_LAST if size == -1 else begin + size for begin, size in zip(begins, sizes, strict=True)]
    parts = [(axis, begin, end, 1) for axis, (begin, end) in enumerate(zip(begins, ends, strict=True))]
    _store_part(build, operator, source, parts, [], [])


def strided_slice(build: Builder, operator: Operator) -> None:
    """A part of every axis as NumPy writes it, with the masks that stand for what its syntax leaves out."""
    source, rank = operator.inputs[0], build.rank(operator.inputs[0])
    words = ("begin", "end", "steps")
    begins, ends, steps = (
        build.numbers(number, word) for number, word in zip(operator.inputs[1:4], words, strict=True)
    )
    options = operator.options
    masks = [options[f"{word}_mask"] for word in ("begin", "end", "ellipsis", "new_axis", "shrink_axis")]
    if 0 in steps or not len(begins) == len(ends) == len(steps):
        raise Damaged(f"{operator.name} goes from {begins} to {ends} in steps of {steps}")
    marks = [[bool(mask >> position & 1) for mask in masks] for position in range(len(begins))]
    taken = sum(not (ellipsis or new) for _, _, ellipsis, new, _ in marks)
    parts, gone, added = [], [], []
    axis, place = 0, 0  # in the input, in the result
    for (open_begin, open_end, ellipsis, new, shrink), begin, end, step in zip(marks, begins, ends, steps, strict=True):
        if ellipsis:
            axis, place = axis + rank - taken, place + rank - taken
            continue
        if new:
            added.append(place)
            place += 1
            continue
        if shrink:
            parts.append((axis, begin, begin + 1 if begin != -1 else _LAST, 1))
            gone.append(axis)
        else:
            end = begin + end if options["offset"] else end
            start = (0 if step > 0 else _LAST) if open_begin else begin
            parts.append((axis, start, (_LAST if step > 0 else _BEFORE_FIRST) if open_end else end, step))
            place += 1
        axis += 1
    if axis > rank:
        raise Damaged(f"{operator.name} takes a part of {axis} axes, and there are {rank}")
    _store_part(build, operator, source, parts, gone, added)


def _store_part(
    build: Builder,
    operator: Operator,
    source: int,
    parts: Sequence[tuple[int, int, int, int]],
    gone: Sequence[int],
    added: Sequence[int],
) -> None:
    """Slice by (axis, begin, end, step), drop the axes `gone` of the input, add the axes `added` of the result."""
    parts = [part for part in parts if part[1:] != (0, _LAST, 1)]
    first = _keeps_first(build, [source]) and not gone and not added
    name = build.first(source) if first else build.plain(source)
    if parts:
        axes, begins, ends, steps = (list(column) for column in zip(*parts, strict=True))
        columns = {"starts": begins, "ends": ends, "axes": [WHERE[a] for a in axes] if first else axes, "steps": steps}
        name = build.node("Slice", [name, *(build.integers(what, values) for what, values in columns.items())])
    for kind, those in (("Squeeze", gone), ("Unsqueeze", added)):
        if those:
            name = build.node(kind, [name, build.integers("axes", those)])
    if not (parts or gone or added):
        name = build.node("Identity", [name])
    build.store(operator.outputs[0], name, first, same=source)


def pad(build: Builder, operator: Operator) -> None:
    """PAD with zeros, PADV2 with a value, MIRROR_PAD with what is there."""
    source, rank = operator.inputs[0], build.rank(operator.inputs[0])
    widths = build.constant(operator.inputs[1], "padding")
    if widths.shape != (rank, 2) or widths.dtype.kind not in "iu" or widths.min(initial=0) < 0:
        raise Damaged(f"{operator.name} pads {rank} axes by {widths.tolist()}")
    first = _keeps_first(build, [source])
    order = [WHERE.index(axis) for axis in range(rank)] if first else list(range(rank))
    pads = build.integers("pads", [int(widths[axis, end]) for end in (0, 1) for axis in order])
    inputs = [build.first(source) if first else build.plain(source), pads]
    attributes: dict[str, Any] = {"mode": "constant"}
    if operator.name == "MIRROR_PAD":
        if operator.options["mode"] != 0:
            raise Refused("it repeats the edge itself (SYMMETRIC)")
        attributes["mode"] = "reflect"
    elif operator.name == "PADV2":
        inputs.append(build.initializer(f"{build.base}/value", build.constant(operator.inputs[2]).reshape(())))
    build.store(operator.outputs[0], build.node("Pad", inputs, **attributes), first, same=source)


def blocks(kind: str) -> Convert:
    """Channels to pixels or back."""

    def convert(build: Builder, operator: Operator) -> None:
        source, size = operator.inputs[0], operator.options["block_size"]
        if size < 1:
            raise Damaged(f"{operator.name} has blocks of {size}")
        build.store(operator.outputs[0], build.node(kind, [build.first(source)], blocksize=size), True, same=source)

    return convert


def space_to_batch(build: Builder, operator: Operator) -> None:
    """Blocks of space become entries of the batch: how dilated convolutions are written."""
    source = operator.inputs[0]
    block, widths = build.numbers(operator.inputs[1], "block"), build.constant(operator.inputs[2], "padding")
    shape = build.tensor(source).shape
    count = len(block)
    if min(block, default=0) < 1 or widths.shape != (count, 2) or len(shape) < count + 1:
        raise Damaged(f"{operator.name} makes blocks of {block} from {list(shape)}")
    if min(shape[1:]) < 0:
        raise Refused("its sizes are open")
    rest = shape[1 + count :]
    sizes = [size + int(low) + int(high) for size, (low, high) in zip(shape[1:], widths, strict=False)]
    if any(size % step for size, step in zip(sizes, block, strict=True)):
        raise Damaged(f"{operator.name} makes blocks of {block} from {sizes}")
    around = [0, *widths[:, 0], *(0 for _ in rest), 0, *widths[:, 1], *(0 for _ in rest)]
    name = build.node("Pad", [build.plain(source), build.integers("pads", [int(each) for each in around])])
    apart = [part for size, step in zip(sizes, block, strict=True) for part in (size // step, step)]
    name = build.node("Reshape", [name, build.integers("apart", [-1, *apart, *rest])])
    inner = [2 + 2 * axis for axis in range(count)]
    outer = [1 + 2 * axis for axis in range(count)]
    tail = [1 + 2 * count + axis for axis in range(len(rest))]
    name = build.node("Transpose", [name], perm=[*inner, 0, *outer, *tail])
    target = [-1, *(size // step for size, step in zip(sizes, block, strict=True)), *rest]
    result = build.node("Reshape", [name, build.integers("shape", target)])
    build.store(operator.outputs[0], result, same=source)


def batch_to_space(build: Builder, operator: Operator) -> None:
    """What space_to_batch does, undone."""
    source = operator.inputs[0]
    block, widths = build.numbers(operator.inputs[1], "block"), build.constant(operator.inputs[2], "crops")
    shape = build.tensor(source).shape
    count = len(block)
    if min(block, default=0) < 1 or widths.shape != (count, 2) or len(shape) < count + 1:
        raise Damaged(f"{operator.name} joins blocks of {block} in {list(shape)}")
    if min(shape[1:]) < 0:
        raise Refused("its sizes are open")
    rest = shape[1 + count :]
    name = build.node("Reshape", [build.plain(source), build.integers("apart", [*block, -1, *shape[1:]])])
    pairs = [each for axis in range(count) for each in (count + 1 + axis, axis)]
    tail = [2 * count + 1 + axis for axis in range(len(rest))]
    name = build.node("Transpose", [name], perm=[count, *pairs, *tail])
    sizes = [size * step for size, step in zip(shape[1:], block, strict=False)]
    name = build.node("Reshape", [name, build.integers("shape", [-1, *sizes, *rest])])
    if widths.any():
        begins = [int(low) for low in widths[:, 0]]
        ends = [size - int(high) for size, high in zip(sizes, widths[:, 1], strict=True)]
        axes = build.integers("axes", list(range(1, 1 + count)))
        name = build.node("Slice", [name, build.integers("starts", begins), build.integers("ends", ends), axes])
    build.store(operator.outputs[0], name, same=source)


def gather(build: Builder, operator: Operator) -> None:
    """Entries along an axis, by their indices."""
    if operator.options["batch_dims"]:
        raise Refused("it has batch_dims, for which ONNX has no form")
    source, indices = operator.inputs
    axis = _axis(operator.options["axis"], max(build.rank(source), 1))
    build.note_stored(source)
    result = build.node("Gather", [build.plain(source), build.plain(indices)], axis=axis)
    build.store(operator.outputs[0], result, same=source)


def embedding(build: Builder, operator: Operator) -> None:
    """EMBEDDING_LOOKUP: rows by their indices."""
    indices, source = operator.inputs
    build.note_stored(source)
    result = build.node("Gather", [build.plain(source), build.plain(indices)], axis=0)
    build.store(operator.outputs[0], result, same=source)


def gather_nd(build: Builder, operator: Operator) -> None:
    """Entries or slices, by vectors of indices."""
    source, indices = operator.inputs
    build.store(operator.outputs[0], build.node("GatherND", [build.plain(source), build.integer(indices)]), same=source)


def one_hot(build: Builder, operator: Operator) -> None:
    """One of `depth` entries on, the others off."""
    indices, depth, on, off = operator.inputs
    size = build.initializer(f"{build.base}/depth", np.array(build.numbers(depth, "depth")[0], np.int64))
    values = np.array([build.constant(off).reshape(()), build.constant(on).reshape(())])
    inputs = [build.integer(indices), size, build.initializer(f"{build.base}/values", values)]
    build.store(operator.outputs[0], build.node("OneHot", inputs, axis=operator.options["axis"]))


def by_shape(kind: str) -> Convert:
    """TILE by repeats, BROADCAST_TO a shape."""

    def convert(build: Builder, operator: Operator) -> None:
        source, shape = operator.inputs
        result = build.node(kind, [build.plain(source), build.integer(shape)])
        build.store(operator.outputs[0], result, same=source)

    return convert


def fill(build: Builder, operator: Operator) -> None:
    """One value in a shape."""
    shape, value = operator.inputs
    build.store(operator.outputs[0], build.node("Expand", [build.plain(value), build.integer(shape)]))


def range_(build: Builder, operator: Operator) -> None:
    """Numbers from, to, in steps."""
    build.store(operator.outputs[0], build.node("Range", [build.plain(number) for number in operator.inputs]))


def shape_of(build: Builder, operator: Operator) -> None:
    """The sizes of the axes."""
    result = build.node("Shape", [build.plain(operator.inputs[0])])
    if build.tensor(operator.outputs[0]).kind == "INT32":
        result = build.node("Cast", [result], to=TensorProto.INT32)
    build.store(operator.outputs[0], result)


def reverse(build: Builder, operator: Operator) -> None:
    """Axes from behind."""
    source, rank = operator.inputs[0], build.rank(operator.inputs[0])
    axes = [_axis(axis, rank) for axis in build.numbers(operator.inputs[1], "axes")]
    _store_part(build, operator, source, [(axis, _LAST, _BEFORE_FIRST, -1) for axis in axes], [], [])


CONVERSIONS: Mapping[str, Convert] = {
    "BATCH_TO_SPACE_ND": batch_to_space,
    "BROADCAST_TO": by_shape("Expand"),
    "CONCATENATION": concatenation,
    "DEPTH_TO_SPACE": blocks("DepthToSpace"),
    "EMBEDDING_LOOKUP": embedding,
    "EXPAND_DIMS": expand_dims,
    "FILL": fill,
    "GATHER": gather,
    "GATHER_ND": gather_nd,
    "MIRROR_PAD": pad,
    "ONE_HOT": one_hot,
    "PACK": pack,
    "PAD": pad,
    "PADV2": pad,
    "RANGE": range_,
    "RESHAPE": reshape,
    "REVERSE_V2": reverse,
    "SHAPE": shape_of,
    "SLICE": slice_,
    "SPACE_TO_BATCH_ND": space_to_batch,
    "SPACE_TO_DEPTH": blocks("SpaceToDepth"),
    "SPLIT": split,
    "SPLIT_V": split,
    "SQUEEZE": squeeze,
    "STRIDED_SLICE": strided_slice,
    "TILE": by_shape("Tile"),
    "TRANSPOSE": transpose,
    "UNPACK": unpack,
}
"""Operator → its conversion."""
