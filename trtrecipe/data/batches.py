"""Samples → checked feeds: what every step that runs a graph is given."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trtrecipe.data import preprocess as preprocessing
from trtrecipe.data.preprocess import Array, Operations
from trtrecipe.errors import StepError
from trtrecipe.graphs.interface import Interface, TensorSpec

LABEL = "label"
BATCH = 16
"""Samples that run at once where the model leaves the number open; constant, so that results do not depend on it."""
_ROLE = "data."
_PIECE = 1 << 20  # values that are checked at once


@dataclass(frozen=True)
class Samples:
    """Raw samples of every model input, memory-mapped, samples along the first axis; `label` where there is one."""

    arrays: Mapping[str, Array]
    label: Array | None
    count: int


@dataclass(frozen=True)
class Batch:
    """Feeds (input name → array of the model's dtype) of `size` samples: `count` real ones, then the last repeated."""

    feeds: Mapping[str, Array]
    size: int
    count: int


def load(inputs: Mapping[str, Path], interface: Interface, preprocess: Mapping[str, Operations]) -> Samples:
    """The samples among a step's inputs (roles "data.NAME"), checked against the model.

    Raises StepError for arrays that are missing, unknown, of another shape or dtype, of unequal length, empty, or that
    hold NaN or infinity; for `preprocess` that does not fit.
    """
    preprocessing.check(interface, preprocess)
    arrays = {role.removeprefix(_ROLE): _open(path, role) for role, path in inputs.items() if role.startswith(_ROLE)}
    names = {spec.name for spec in interface.inputs}
    label = arrays.pop(LABEL) if LABEL in arrays and LABEL not in names else None
    _check_names(arrays, interface)
    for spec in interface.inputs:
        _check_array(spec, arrays[spec.name], bool(preprocess.get(spec.name)))
    _check_shared_dims(arrays, interface)
    counts = {name: len(array) for name, array in arrays.items()} | ({} if label is None else {LABEL: len(label)})
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name} has {count}" for name, count in sorted(counts.items()))
        raise StepError(f"the arrays differ in their number of samples: {listed}", "give one entry per sample in each")
    count = next(iter(counts.values()), 0)
    if count == 0:
        raise StepError("the data has no samples", "give at least one")
    for name, array in arrays.items():
        _check_finite(f"array of input {name}", array)
    if label is not None:
        _check_label(label)
    return Samples(arrays, label, count)


def batches(
    samples: Samples,
    interface: Interface,
    preprocess: Mapping[str, Operations],
    size: int = BATCH,
    span: tuple[int, int] | None = None,
) -> Iterator[Batch]:
    """The samples in order, or those from `span`'s first to before its last, preprocessed, as batches of equal size.

    The size is the model's first axis where that is fixed, else `size`. Raises StepError when preprocessing overflows.
    """
    size = batch_size(interface, size)
    first, last = span or (0, samples.count)
    for start in range(first, last, size):
        stop = min(start + size, last)
        indices = np.minimum(np.arange(start, start + size), stop - 1)
        feeds = {}
        for spec in interface.inputs:
            raw = np.asarray(samples.arrays[spec.name][start:stop])
            feed = preprocessing.apply(raw, spec, preprocess.get(spec.name) or ())
            _check_finite(f"input {spec.name}, as {spec.dtype} after preprocessing,", feed, start)
            feeds[spec.name] = np.ascontiguousarray(feed[indices - start])
            _forget(samples.arrays[spec.name])
        yield Batch(feeds, size, stop - start)


def batch_size(interface: Interface, size: int = BATCH) -> int:
    """Samples per run: the inputs' fixed first axis, else `size`. Raises StepError when inputs disagree or lack it."""
    fixed = {}
    for spec in interface.inputs:
        if not spec.shape:
            raise StepError(f"input {spec} has no axes", "samples run along the first axis: give it one")
        if isinstance(spec.shape[0], int):
            fixed[spec.name] = spec.shape[0]
    if len(set(fixed.values())) > 1:
        listed = ", ".join(f"{name} takes {axis}" for name, axis in fixed.items())
        raise StepError(f"the inputs differ in their first axis: {listed}", "samples run along the first axis of each")
    return next(iter(fixed.values()), size)


def _open(path: Path, role: str) -> Array:
    try:
        array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        # An array without samples cannot be mapped.
        try:
            array = np.load(path, allow_pickle=False)
        except (ValueError, EOFError):
            raise StepError(f"{role} is no readable .npy file: {error}", "write it again with numpy.save") from None
    if array.ndim == 0:
        raise StepError(f"{role} is a single value", "samples run along the first axis: give an array of them")
    return array


def _check_names(arrays: Mapping[str, Array], interface: Interface) -> None:
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


def _check_array(spec: TensorSpec, array: Array, preprocessed: bool) -> None:
    if array.dtype.kind not in "biuf":
        raise StepError(f"the array of input {spec.name} is {array.dtype}, not numbers", "convert it to numbers")
    expected, got = spec.shape[1:], array.shape[1:]
    if len(expected) != len(got) or any(isinstance(e, int) and e != g for e, g in zip(expected, got, strict=True)):
        raise StepError(
            f"a sample of input {spec.name} has shape [{_axes(got)}], and the model takes [{_axes(expected)}]",
            f"the array has shape [{_axes(array.shape)}]; its first axis counts samples",
        )
    if preprocessed:
        return
    if not np.can_cast(array.dtype, spec.dtype, "same_kind"):
        raise StepError(
            f"the array of input {spec.name} is {array.dtype}, and the model takes {spec.dtype}",
            f"convert the array to {spec.dtype}",
        )
    if np.dtype(spec.dtype).kind in "iu":
        _check_range(spec, array)


def _check_range(spec: TensorSpec, array: Array) -> None:
    limits = np.iinfo(spec.dtype)
    for start, piece in _pieces(array):
        outside = ((piece < limits.min) | (piece > limits.max)).reshape(len(piece), -1).any(axis=1)
        if outside.any():
            raise StepError(
                f"sample {start + int(outside.argmax())} of input {spec.name} has a value outside {spec.dtype}",
                f"values must be between {limits.min} and {limits.max}",
            )


def _check_shared_dims(arrays: Mapping[str, Array], interface: Interface) -> None:
    seen: dict[str, tuple[str, int]] = {}
    for spec in interface.inputs:
        for dim, axis in zip(spec.shape[1:], arrays[spec.name].shape[1:], strict=True):
            if isinstance(dim, str) and dim != "?":
                other, size = seen.setdefault(dim, (spec.name, axis))
                if size != axis:
                    raise StepError(
                        f"dimension {dim} is {size} in the samples of input {other} and {axis} in those of {spec.name}",
                        "a dimension has one size in all inputs",
                    )


def _check_finite(what: str, array: Array, first: int = 0) -> None:
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


def _check_label(label: Array) -> None:
    if label.dtype.kind not in "biuf":
        raise StepError(f"the label array is {label.dtype}, not numbers", "give class indices or target values")
    _check_finite("the label array", label)


def _pieces(array: Array) -> Iterator[tuple[int, Array]]:
    """Runs of samples in order, small enough to bound memory, each with the index of its first."""
    step = max(1, _PIECE // max(1, int(np.prod(array.shape[1:], dtype=np.int64))))
    for start in range(0, len(array), step):
        yield start, np.asarray(array[start : start + step])
        _forget(array)


def _forget(array: Array) -> None:
    """Give back the memory that the pages read so far of a memory-mapped file take; reading them again is possible.

    Without this a process grows by all the samples it has seen.
    """
    mapping = getattr(array, "_mmap", None)
    if mapping is not None and hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
        mapping.madvise(mmap.MADV_DONTNEED)


def _axes(shape: tuple[int | str, ...]) -> str:
    return ", ".join(map(str, shape))
