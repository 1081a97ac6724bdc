"""Samples that are decoded one at a time, when they are read: from a container of files, or from TFRecords."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from trtrecipe.data import container, decode, records
from trtrecipe.data.decode import Described
from trtrecipe.data.preprocess import Array
from trtrecipe.errors import StepError
from trtrecipe.graphs.interface import TensorSpec


@dataclass(frozen=True)
class Encoded:
    """`count` samples. By index: `read` gives one, without a batch axis; `describe` its shape and dtype, at less cost;
    `name` what to call it; `is_turned` whether it is an image whose EXIF orientation was ignored."""

    count: int
    read: Callable[[int], Array]
    describe: Callable[[int], Described]
    name: Callable[[int], str]
    is_turned: Callable[[int], bool]

    def __len__(self) -> int:
        return self.count


def from_container(path: Path, spec: TensorSpec) -> Encoded:
    """The files in a container, for the input `spec`. Reading raises StepError that names the file."""
    files = container.open_container(path)
    names = container.read_names(path)

    def name(index: int) -> str:
        return names[index] if names else f"sample {index}"

    def read(index: int) -> Array:
        data = files.read(index)
        if files.form == "images":
            return decode.image(data, name(index))
        return (decode.raw if files.form == "raw" else decode.content)(data, spec, name(index))

    def describe(index: int) -> Described:
        if files.form == "raw":
            return decode.raw_shape(files.sizes[index], spec, name(index))
        data = files.read(index)
        if files.form == "images":
            return decode.image_shape(data, name(index))
        return decode.content_shape(data, spec, name(index))

    def is_turned(index: int) -> bool:
        return files.form != "raw" and decode.is_turned(files.read(index), spec, name(index))

    return Encoded(len(files.sizes), read, describe, name, is_turned)


class Records:
    """The records of a TFRecord file that `data.records` wrote, read by TensorFlow. In order they are read once."""

    def __init__(self, path: Path) -> None:
        header = records.read_head(path)
        self.count: int = header["count"]
        self.features: Mapping[str, str] = header["features"]
        self._path = path
        self._names = container.read_names(path)
        self._tf = _tensorflow()
        self._iterator: Iterator[bytes] = iter(())
        self._next = -1
        self._last: tuple[int, Any] = (-1, None)

    def name(self, index: int) -> str:
        """What the record is called."""
        return self._names[index] if self._names else f"record {index}"

    def values(self, index: int, feature: str) -> Array | bytes:
        """A feature of a record: float32 or int64 values along one axis, or bytes. Raises StepError."""
        example = self._example(index)
        if feature not in example:
            listed = ", ".join(sorted(example)) or "none"
            raise StepError(
                f"{self.name(index)} has no feature {feature}; it has {listed}", "check data.features in the recipe"
            )
        kind = example[feature].WhichOneof("kind")
        if kind is None:
            raise StepError(f"feature {feature} of {self.name(index)} is empty", "write a value in every record")
        values = getattr(example[feature], kind).value
        if kind != "bytes_list":
            return np.asarray(values, np.float32 if kind == "float_list" else np.int64)
        if len(values) != 1:
            raise StepError(
                f"feature {feature} of {self.name(index)} holds {len(values)} byte strings; one is expected",
                "write one encoded image, or one string of raw values, in each record",
            )
        return bytes(values[0])

    def _example(self, index: int) -> Any:
        if self._last[0] != index:
            if self._next != index:
                # The first record says what the file is.
                self._iterator = iter(
                    self._tf.data.TFRecordDataset(str(self._path)).skip(1 + index).as_numpy_iterator()
                )
                self._next = index
            try:
                [data] = islice(self._iterator, 1)
                example = self._tf.train.Example.FromString(data)
            except (ValueError, self._tf.errors.OpError, _decode_error()) as error:
                said = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
                raise StepError(
                    f"{self.name(index)} cannot be read as a tf.train.Example: {said}", "write the file again"
                ) from None
            self._next += 1
            self._last = index, example.features.feature
        return self._last[1]


def from_records(found: Records, spec: TensorSpec) -> Encoded:
    """A feature of all records as the input `spec`: numbers, or bytes by their content. Reading raises StepError."""
    feature = found.features[spec.name]

    def read(index: int) -> Array:
        values = found.values(index, feature)
        if isinstance(values, bytes):
            return decode.content(values, spec, _called(found, index, feature))
        return values.reshape(_shape(values.size, spec, _called(found, index, feature)))

    def describe(index: int) -> Described:
        values = found.values(index, feature)
        if isinstance(values, bytes):
            return decode.content_shape(values, spec, _called(found, index, feature))
        return _shape(values.size, spec, _called(found, index, feature)), values.dtype.name

    def is_turned(index: int) -> bool:
        values = found.values(index, feature)
        return isinstance(values, bytes) and decode.is_turned(values, spec, _called(found, index, feature))

    return Encoded(found.count, read, describe, found.name, is_turned)


def labels_of(found: Records, name: str) -> Array:
    """The feature of all records as labels: one value each, or as many in each. Raises StepError."""
    feature = found.features[name]
    values: list[Array] = []
    for index in range(found.count):
        value = found.values(index, feature)
        if isinstance(value, bytes):
            raise StepError(
                f"feature {feature} of {found.name(index)} is bytes, not numbers",
                "a label is an int64 or float feature: class indices or target values",
            )
        if values and value.size != values[0].size:
            raise StepError(
                f"feature {feature} has {value.size} values in {found.name(index)} and {values[0].size} before",
                "a label has as many values in every record",
            )
        values.append(value)
    array = np.stack(values)
    return array[:, 0] if array.shape[1] == 1 else array


def _shape(count: int, spec: TensorSpec, name: str) -> tuple[int, ...]:
    """The shape of so many numbers as a sample of the input."""
    known = int(np.prod([axis for axis in spec.shape[1:] if isinstance(axis, int)], dtype=np.int64))
    still_open = sum(not isinstance(axis, int) for axis in spec.shape[1:])
    if still_open > 1 or count % known or (not still_open and count != known) or not count:
        raise StepError(
            f"{name} holds {count} values, which make no sample of input {spec}",
            "write the values of a sample in C order; at most one axis may be open",
        )
    return tuple(axis if isinstance(axis, int) else count // known for axis in spec.shape[1:])


def _called(found: Records, index: int, feature: str) -> str:
    return f"feature {feature} of {found.name(index)}"


def _tensorflow() -> Any:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        import tensorflow as tf
    except ImportError as error:
        raise StepError(
            f"TFRecords are read by TensorFlow, which cannot be loaded: {error}",
            "run: pip install 'trtrecipe[tensorflow]'",
        ) from None
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    # Not by the environment: an engine of the same process may be run by the GPU.
    tf.config.set_visible_devices([], "GPU")
    return tf


def _decode_error() -> type[Exception]:
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    error: type[Exception] = DecodeError
    return error
