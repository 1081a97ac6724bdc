"""Samples → checked feeds: what every step that runs a graph is given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from trtrecipe.data import preprocess as preprocessing
from trtrecipe.data.container import is_container
from trtrecipe.data.encoded import Encoded, Records, from_container, from_records, labels_of
from trtrecipe.data.fit import (
    LABEL,
    array_shape,
    check_finite,
    check_label,
    check_names,
    check_range,
    check_shared_dims,
    encoded_shape,
    forget,
    raw_of,
)
from trtrecipe.data.preprocess import Array, Operations
from trtrecipe.data.records import is_records
from trtrecipe.data.sources import ALL_INPUTS
from trtrecipe.errors import StepError
from trtrecipe.graphs.interface import Interface, TensorSpec

BATCH = 16
"""Samples that run at once where the model leaves the number open; constant, so that results do not depend on it."""
_ROLE = "data."


@dataclass(frozen=True)
class Samples:
    """Raw samples of every model input: memory-mapped arrays, samples along the first axis, or files still encoded.

    `label` where there is one, as an array. Of each input, `shapes` has the shape of a sample after preprocessing, and
    `raw` {"dtype", "shape"} before, where samples have that in common; None stands for a size that varies.
    """

    arrays: Mapping[str, Array | Encoded]
    label: Array | None
    count: int
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    raw: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def name(self, index: int) -> str:
        """What to call a sample: its file or record, else its number after selection, from 0."""
        names = (array.name(index) for array in self.arrays.values() if isinstance(array, Encoded))
        return next(names, f"sample {index} (samples counted from 0, after selection)")


@dataclass(frozen=True)
class Batch:
    """Feeds (input name → array of the model's dtype) of `size` samples: `count` real ones, then the last repeated."""

    feeds: Mapping[str, Array]
    size: int
    count: int


def load(inputs: Mapping[str, Path], interface: Interface, preprocess: Mapping[str, Operations]) -> Samples:
    """The samples among a step's inputs (roles "data.NAME" and `sources.ALL_INPUTS`), checked against the model.

    Raises StepError for samples that are missing, unknown, of another shape or dtype, of unequal number, none, for
    arrays that hold NaN or infinity, for files whose header shows that they do not fit, and for `preprocess` that does
    not fit. What files hold is decoded only when it is read.
    """
    preprocessing.check(interface, preprocess)
    arrays, label = _open_all(inputs, interface)
    check_names(arrays, interface)
    shapes, raw = {}, {}
    for spec in interface.inputs:
        data, operations = arrays[spec.name], preprocess.get(spec.name) or ()
        if isinstance(data, Encoded):
            shapes[spec.name], common = encoded_shape(spec, data, operations)
        else:
            shapes[spec.name], common = array_shape(spec, data, operations), raw_of(data)
        if common is not None:
            raw[spec.name] = common
    check_shared_dims(shapes, interface)
    counts = {name: len(array) for name, array in arrays.items()} | ({} if label is None else {LABEL: len(label)})
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name} has {count}" for name, count in sorted(counts.items()))
        raise StepError(f"the arrays differ in their number of samples: {listed}", "give one entry per sample in each")
    count = next(iter(counts.values()), 0)
    if count == 0:
        raise StepError("the data has no samples", "give at least one")
    for name, array in arrays.items():
        if not isinstance(array, Encoded):
            check_finite(f"array of input {name}", array)
    if label is not None:
        check_label(label)
    return Samples(arrays, label, count, shapes, raw)


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
            feed = _feed(samples, spec, preprocess.get(spec.name) or (), start, stop)
            feeds[spec.name] = np.ascontiguousarray(feed[indices - start])
        yield Batch(feeds, size, stop - start)


def raw_sample(samples: Samples, spec: TensorSpec, index: int) -> Array:
    """A sample of an input before preprocessing, without a batch axis. Raises StepError for a file that is damaged."""
    data = samples.arrays[spec.name]
    if not isinstance(data, Encoded):
        sample = np.array(data[index])
        forget(data)
        return sample
    read = data.read(index)
    if read.dtype.kind == "f" and not np.isfinite(read).all():
        kind = "NaN" if np.isnan(read).any() else "an infinite value"
        raise StepError(f"{data.name(index)} holds {kind}", "remove or repair the sample")
    return read


def _feed(samples: Samples, spec: TensorSpec, operations: Operations, start: int, stop: int) -> Array:
    data = samples.arrays[spec.name]
    if not isinstance(data, Encoded):
        feed = preprocessing.apply(np.asarray(data[start:stop]), spec, operations)
        check_finite(f"input {spec.name}, as {spec.dtype} after preprocessing,", feed, start)
        forget(data)
        return feed
    feed = np.empty((stop - start, *samples.shapes[spec.name]), spec.dtype)
    for index in range(start, stop):
        raw = raw_sample(samples, spec, index)[None]
        if not operations and np.dtype(spec.dtype).kind in "iu":
            check_range(spec, raw, index)
        feed[index - start] = preprocessing.apply(raw, spec, operations)[0]
        if not np.isfinite(feed[index - start]).all():
            raise StepError(
                f"{data.name(index)} becomes infinite in preprocessing for input {spec.name}, as {spec.dtype}",
                "check scale, mean and std",
            )
    return feed


def batch_size(interface: Interface, size: int = BATCH) -> int:
    """Samples per run: the inputs' fixed first axis, else `size`. Raises StepError when inputs disagree or lack it."""
    fixed = {}
    for spec in interface.inputs:
        if not spec.shape:
            raise StepError(
                f"input {spec} has no axes, and samples run along the first axis of each input",
                "export the model with that value as a constant, or with an axis for it",
            )
        if isinstance(spec.shape[0], int):
            fixed[spec.name] = spec.shape[0]
    if len(set(fixed.values())) > 1:
        listed = ", ".join(f"{name} takes {axis}" for name, axis in fixed.items())
        raise StepError(f"the inputs differ in their first axis: {listed}", "samples run along the first axis of each")
    return next(iter(fixed.values()), size)


def _open_all(inputs: Mapping[str, Path], interface: Interface) -> tuple[dict[str, Array | Encoded], Array | None]:
    """The samples by input, and the labels."""
    specs = {spec.name: spec for spec in interface.inputs}
    arrays: dict[str, Array | Encoded] = {}
    label = None
    for role, path in inputs.items():
        name = role.removeprefix(_ROLE)
        if not role.startswith(_ROLE):
            continue
        if is_container(path):
            if role == ALL_INPUTS:
                name = _only_input(interface)
            if name in specs:
                arrays[name] = from_container(path, specs[name])
            else:
                hint = "labels of raw files are given as labels: FILE; " if name == LABEL else ""
                raise StepError(
                    f"the data names input {name}, which the model lacks",
                    f"{hint}the model's inputs: {', '.join(specs)}",
                )
        elif is_records(path):
            records = Records(path)
            label = labels_of(records, LABEL) if LABEL in records.features and LABEL not in specs else label
            unknown = [name for name in records.features if name not in specs and name != LABEL]
            if unknown:
                raise StepError(
                    f"data.features names input {', '.join(unknown)}, which the model lacks",
                    f"the model's inputs: {', '.join(specs)}; beside them only {LABEL} may be given",
                )
            arrays |= {name: from_records(records, specs[name]) for name in records.features if name in specs}
        elif name == LABEL and LABEL not in specs:
            label = _open(path, role)
        else:
            arrays[name] = _open(path, role)
    return arrays, label


def _only_input(interface: Interface) -> str:
    names = [spec.name for spec in interface.inputs]
    if len(names) != 1:
        raise StepError(
            f"data.images feeds the only input of a model, and this one has {len(names)}: {', '.join(names)}",
            "name the files of each input: data: {csv: FILE, columns: {INPUT: COLUMN}}, or {raw: {INPUT: GLOB}}",
        )
    return names[0]


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
