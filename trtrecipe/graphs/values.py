"""The values of constants, wherever they lie: in the graph, or in a file that the tensor names.

A model that is larger than a protobuf message keeps its large tensors in the file that it was read from, and they are
mapped into memory only where a value is looked at: passes move and copy the graph alone.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, TensorProto, helper, numpy_helper

from trtrecipe.external_data import BITS
from trtrecipe.graphs.edit import all_tensors


class Place(NamedTuple):
    """`size` bytes from `start` on, of the file at the absolute path `file`."""

    file: str
    start: int
    size: int


def array_of(tensor: TensorProto) -> npt.NDArray[Any]:
    """The values, as `onnx.numpy_helper.to_array` gives them; mapped from the file where they lie in one."""
    if not is_outside(tensor):
        return np.asarray(numpy_helper.to_array(tensor))
    found = place(tensor)
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
    if dtype.kind in "biufc":
        return np.asarray(np.memmap(found.file, dtype.newbyteorder("<"), "r", found.start, tuple(tensor.dims)))
    return np.asarray(numpy_helper.to_array(inline(tensor)))


def is_outside(tensor: TensorProto) -> bool:
    """Whether the values lie in a file."""
    return bool(tensor.data_location == TensorProto.EXTERNAL)


def place(tensor: TensorProto) -> Place:
    """Where the values of a tensor lie that are not in it."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    return Place(entries["location"], int(entries.get("offset", 0)), int(entries.get("length", size(tensor))))


def put(tensor: TensorProto, found: Place) -> None:
    """Say, in place, that the values lie there, and hold none."""
    for field in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data", "external_data"):
        tensor.ClearField(field)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", found.file), ("offset", found.start), ("length", found.size)):
        tensor.external_data.add(key=key, value=str(value))


def inline(tensor: TensorProto) -> TensorProto:
    """The tensor with its values in it: itself, or a copy."""
    if not is_outside(tensor):
        return tensor
    result = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    result.raw_data = content(tensor).tobytes()
    return result


def content(tensor: TensorProto) -> memoryview:
    """The values as they are written in a file. Not for strings."""
    if not is_outside(tensor):
        if tensor.HasField("raw_data"):
            return memoryview(tensor.raw_data)
        return memoryview(numpy_helper.from_array(numpy_helper.to_array(tensor)).raw_data)
    found = place(tensor)
    with Path(found.file).open("rb") as file:
        skip = found.start % mmap.ALLOCATIONGRANULARITY
        whole = mmap.mmap(file.fileno(), found.size + skip, access=mmap.ACCESS_READ, offset=found.start - skip)
    return memoryview(whole)[skip:]


def size(tensor: TensorProto) -> int:
    """Bytes of the values. Those of strings are none: they never lie outside the graph."""
    bits: int = math.prod(tensor.dims) * BITS.get(tensor.data_type, 0)
    return -(-bits // 8)


def outside(model: ModelProto) -> Iterator[TensorProto]:
    """The tensors whose values lie in files."""
    return (tensor for tensor in all_tensors(model.graph) if is_outside(tensor))
