"""Whether samples are what the model takes: names, shapes, types, values."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from trtrecipe.data import preprocess as preprocessing
from trtrecipe.data.decode import Described
from trtrecipe.data.encoded import Encoded
from trtrecipe.data.preprocess import Array, Operations
from trtrecipe.errors import StepError
from trtrecipe.graphs.interface import Interface, TensorSpec

LABEL = "label"
_PIECE = 1 << 20  # values that are checked at once


def check_names(arrays: Mapping[str, Array | Encoded], interface: Interface) -> None:
    """Raise StepError when an input has no samples, or samples no input."""
    names = [spec.name for spec in interface.inputs]
    missing = [name for name in names if name not in arrays]
    if missing:
        raise StepError(
            f"the data has no array for input {', '.join(missing)}; it has {', '.join(sorted(arrays)) or 'none'}",
            f"the model's inputs: {', '.join(names)}; name an array for each under data",
        )
    unknown = sorted(set(arrays) - set(names))
    if unknown:
        raise StepError(
            f"the data names input {', '.join(unknown)}, which the model lacks",
            f"the model's inputs: {', '.join(names)}; beside them only {LABEL} may be given",
        )


def array_shape(spec: TensorSpec, array: Array, operations: Operations) -> tuple[int, ...]:
    """The shape that the array's samples get in preprocessing. Raises StepError when it does not fit the input."""
    if array.dtype.kind not in "biuf":
        raise StepError(f"the array of input {spec.name} is {array.dtype}, not numbers", "convert it to numbers")
    what = f"a sample of input {spec.name}"
    shape, dtype = preprocessing.result(array.shape[1:], array.dtype.name, operations, what)
    _check_shape(
        spec, what, array.shape[1:], shape, f"the array has shape [{_axes(array.shape)}]; its first axis counts samples"
    )
    if not np.can_cast(dtype, spec.dtype, "same_kind"):
        raise StepError(
            f"the array of input {spec.name} is {array.dtype}, and the model takes {spec.dtype}",
            f"convert the array to {spec.dtype}",
        )
    if not operations and np.dtype(spec.dtype).kind in "iu":
        check_range(spec, array)
    return shape


def encoded_shape(
    spec: TensorSpec, data: Encoded, operations: Operations
) -> tuple[tuple[int, ...], dict[str, Any] | None]:
    """The shape that all samples get in preprocessing, and the dtype and shape they have before, None where it varies.

    Raises StepError when one does not fit the input. What shows only in decoding is found when a sample is read.
    """
    first: tuple[int, ...] | None = None
    known: dict[Described, tuple[int, ...]] = {}
    for index in range(data.count):
        described = data.describe(index)
        if described not in known:
            name = data.name(index)
            shape, dtype = preprocessing.result(*described, operations, name)
            _check_shape(spec, name, described[0], shape, _advice(spec, shape))
            if not np.can_cast(dtype, spec.dtype, "same_kind"):
                raise StepError(
                    f"{name} holds {dtype}, and input {spec.name} takes {spec.dtype}",
                    f"end preprocess.{spec.name} with {{cast: {spec.dtype}}}, or convert the samples",
                )
            known[described] = shape
        first = first or known[described]
        if known[described] != first:
            raise StepError(
                f"{data.name(index)} has shape [{_axes(known[described])}] and {data.name(0)} [{_axes(first)}] when "
                f"input {spec.name} is given them, and samples must be of one shape",
                f"add {{resize: [H, W]}} to preprocess.{spec.name}",
            )
    return first or (), _in_common(known)


def raw_of(array: Array) -> dict[str, Any]:
    """The dtype and shape of an array's samples."""
    return {"dtype": array.dtype.name, "shape": list(array.shape[1:])}


def _in_common(known: Iterable[Described]) -> dict[str, Any] | None:
    """Dtype and shape of samples; nothing where types or numbers of axes differ."""
    shapes, dtypes = {shape for shape, _ in known}, {dtype for _, dtype in known}
    if len(dtypes) != 1 or len({len(shape) for shape in shapes}) != 1:
        return None
    sizes = [axis[0] if len(set(axis)) == 1 else None for axis in zip(*shapes, strict=True)]
    return {"dtype": dtypes.pop(), "shape": sizes}


def _check_shape(spec: TensorSpec, what: str, raw: tuple[int, ...], shape: tuple[int, ...], hint: str | None) -> None:
    expected = spec.shape[1:]
    if len(expected) != len(shape) or any(isinstance(e, int) and e != g for e, g in zip(expected, shape, strict=True)):
        after = f", [{_axes(shape)}] after preprocessing" if raw != shape else ""
        raise StepError(
            f"{what} has shape [{_axes(raw)}]{after}, and the model takes [{_axes(expected)}]",
            hint,
        )


def _advice(spec: TensorSpec, shape: tuple[int, ...]) -> str:
    """What to add to preprocess so that an image fits."""
    expected = spec.shape[1:]
    if len(shape) != 3 or len(expected) != 3:
        return "give samples of the input's shape"
    first = expected[0] in (1, 3) and expected[2] not in (1, 3)
    height, width, channels = (expected[1], expected[2], expected[0]) if first else expected
    missing = []
    if (height, width) != (shape[0], shape[1]) and isinstance(height, int) and isinstance(width, int):
        missing.append(f"{{resize: [{height}, {width}]}}")
    if channels == 1 and shape[2] == 3:
        missing.append("{colour: gray}")
    if first and shape[2] in (1, 3):
        missing.append("{layout: nchw}")
    return f"add {', '.join(missing)} to preprocess.{spec.name}" if missing else "give samples of the input's shape"


def check_range(spec: TensorSpec, array: Array, first: int = 0) -> None:
    """Raise StepError when a value does not fit the input's integer type. `first`: the number of sample 0."""
    limits = np.iinfo(spec.dtype)
    for start, piece in _pieces(array):
        outside = ((piece < limits.min) | (piece > limits.max)).reshape(len(piece), -1).any(axis=1)
        if outside.any():
            raise StepError(
                f"sample {first + start + int(outside.argmax())} of input {spec.name} has a value outside {spec.dtype}",
                f"values must be between {limits.min} and {limits.max}",
            )


def check_shared_dims(shapes: Mapping[str, tuple[int, ...]], interface: Interface) -> None:
    """Raise StepError when a dimension of the model has two sizes. `shapes`: of a sample of each input."""
    seen: dict[str, tuple[str, int]] = {}
    for spec in interface.inputs:
        for dim, axis in zip(spec.shape[1:], shapes[spec.name], strict=True):
            if isinstance(dim, str) and dim != "?":
                other, size = seen.setdefault(dim, (spec.name, axis))
                if size != axis:
                    raise StepError(
                        f"dimension {dim} is {size} in the samples of input {other} and {axis} in those of {spec.name}",
                        "a dimension has one size in all inputs",
                    )


def check_finite(what: str, array: Array, first: int = 0) -> None:
    """Raise StepError, calling the array `what`, for NaN and infinity. `first`: the number of sample 0."""
    if array.dtype.kind != "f":
        return
    for start, piece in _pieces(array):
        bad = ~np.isfinite(piece).reshape(len(piece), -1).all(axis=1)
        if bad.any():
            index = int(bad.argmax())
            kind = "NaN" if np.isnan(piece[index]).any() else "an infinite value"
            raise StepError(
                f"{what} holds {kind} in sample {first + start + index} (samples counted from 0, after selection)",
                "remove or repair the sample",
            )


def check_label(label: Array) -> None:
    """Raise StepError when labels are not finite numbers."""
    if label.dtype.kind not in "biuf":
        raise StepError(f"the label array is {label.dtype}, not numbers", "give class indices or target values")
    check_finite("the label array", label)


def _pieces(array: Array) -> Iterator[tuple[int, Array]]:
    """Runs of samples in order, small enough to bound memory, each with the index of its first."""
    step = max(1, _PIECE // max(1, int(np.prod(array.shape[1:], dtype=np.int64))))
    for start in range(0, len(array), step):
        yield start, np.asarray(array[start : start + step])
        forget(array)


def forget(array: Array) -> None:
    """Give back the memory that the pages read so far of a memory-mapped file take; reading them again is possible.

    Without this a process grows by all the samples it has seen.
    """
    mapping = getattr(array, "_mmap", None)
    if mapping is not None and hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
        mapping.madvise(mmap.MADV_DONTNEED)


def _axes(shape: tuple[int | str, ...]) -> str:
    return ", ".join(map(str, shape))
