"""A TFLite file read into plain values, without TensorFlow: graphs, tensors, operators, signatures.

Nothing in the file is trusted: every reference is checked here, so that whoever uses the values need not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trtrecipe.errors import StepError
from trtrecipe.graphs import tflite_schema as schema
from trtrecipe.graphs.flatbuffer import Buffer, Damaged, Table

Array = npt.NDArray[Any]

IDENTIFIER = b"TFL3"
"""At byte 4 of every file."""

ABSENT = -1
"""In the inputs of an operator: this optional one is not given."""

_AXES = 8
"""Most axes of a tensor."""
_ENTRIES = 1 << 28
"""Most entries of a tensor that is computed: a gigabyte of floats."""
_LFS = b"version https://git-lfs.github.com/spec/"


@dataclass(frozen=True)
class Quantization:
    """Integers stand for (integer - zero) * scale.

    `scale` (float32) and `zero` (int64) have one entry, or one per index of the tensor's `axis`.
    """

    scale: Array
    zero: Array
    axis: int

    def dequantize(self, integers: Array) -> Array:
        """The floats (float32) that the integers stand for, rounded once."""
        shape = [-1 if axis == self.axis else 1 for axis in range(integers.ndim)] if self.scale.size > 1 else [1]
        if self.scale.size == 1 and not integers.ndim:
            shape = []
        steps = integers.astype(np.int64) - self.zero.reshape(shape)
        floats: Array = (steps * self.scale.astype(np.float64).reshape(shape)).astype(np.float32)
        return floats


@dataclass(frozen=True)
class Tensor:
    """`kind`: one of tflite_schema.KINDS. `shape`: -1 for an open axis. `data`: a constant's bytes."""

    name: str
    kind: str
    shape: tuple[int, ...]
    data: memoryview | None
    quantization: Quantization | None

    def values(self) -> Array:
        """The constant as it is stored. Raises Damaged where bytes and shape do not fit, or the type is not read."""
        if self.kind not in schema.NUMPY:
            raise Damaged(f"the constant {self.name} is {self.kind}, which is not supported")
        kind = np.dtype(schema.NUMPY[self.kind])
        data = b"" if self.data is None else self.data
        if min(self.shape, default=0) < 0 or math.prod(self.shape) * kind.itemsize != len(data):
            raise Damaged(f"the constant {self.name} of shape {list(self.shape)} has {len(data)} bytes")
        return np.frombuffer(data, kind.newbyteorder("<")).astype(kind, copy=False).reshape(self.shape)


@dataclass(frozen=True)
class Operator:
    """`name`: one of tflite_schema.OPERATORS, or a custom operator's own. Inputs and outputs are tensors' numbers."""

    name: str
    custom: bool
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Graph:
    """One subgraph; its inputs and outputs are tensors' numbers."""

    tensors: tuple[Tensor, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    operators: tuple[Operator, ...]


@dataclass(frozen=True)
class Signature:
    """Names (name → number of the tensor) of what subgraph `graph` takes and gives."""

    key: str
    graph: int
    inputs: Mapping[str, int]
    outputs: Mapping[str, int]


@dataclass(frozen=True)
class Model:
    """A whole file."""

    graphs: tuple[Graph, ...]
    signatures: tuple[Signature, ...]


def read(path: Path) -> Model:
    """The model in the file. Raises StepError for anything that is no TFLite file, or a damaged one."""
    data = path.read_bytes()
    if data.startswith(_LFS):
        raise StepError(
            "the model file is a Git LFS pointer, not the model itself", hint="run git lfs pull in its repository"
        )
    if data[4:8] != IDENTIFIER:
        raise StepError(
            f"the model file is no TFLite model: it has no {IDENTIFIER.decode()} at byte 4",
            hint="check model.source and model.format",
        )
    try:
        return _model(data)
    except Damaged as error:
        raise damaged(error) from None


def damaged(error: Damaged) -> StepError:
    """The error for a file whose parts contradict each other."""
    return StepError(
        f"the TFLite file is damaged, or cut short: {error}", hint="compare it with the original, or convert it again"
    )


def _model(data: bytes) -> Model:
    root = Buffer(data).root()
    version = root.integer(0, "I")
    if version != 3:
        raise Damaged(f"it says that it is written in version {version} of the format, and there is only version 3")
    codes = [_code(table) for table in root.tables(1)]
    buffers = [_content(table, data) for table in root.tables(4)]
    graphs = tuple(_graph(table, codes, buffers) for table in root.tables(2))
    if not graphs:
        raise Damaged("it holds no graph")
    for remark in root.tables(6):  # of no use here, but other readers unpack them, and what they hold is bounded so too
        remark.text(0)
    return Model(graphs, tuple(_signatures(root.tables(7), graphs)))


def _code(table: Table) -> tuple[str, bool]:
    """Name of an operator, and whether it is a custom one."""
    code = table.integer(0, "b")
    if code == schema.LARGE_CODES:
        code = table.integer(3, "i")
    code, custom = max(code, table.integer(3, "i")), table.text(1)
    if code == schema.CUSTOM:
        return custom or "a custom operator without a name", True
    if not 0 <= code < len(schema.OPERATORS):
        return f"operator {code}", True  # of a newer release, or of none: refused where it is used
    return schema.OPERATORS[code], False


def _content(table: Table, data: bytes) -> memoryview | None:
    """The bytes of a buffer; beyond 2 GiB they stand behind the FlatBuffer."""
    start, size = table.integer(1, "Q"), table.integer(2, "Q")
    if start > 1:
        if start + size > len(data):
            raise Damaged(f"a buffer of {size} bytes at byte {start} goes beyond the end of the file")
        return table.buffer.data[start : start + size]
    return table.bytes(0) or None


def _graph(table: Table, codes: list[tuple[str, bool]], buffers: list[memoryview | None]) -> Graph:
    tensors = tuple(_tensor(each, buffers) for each in table.tables(0))
    inputs, outputs = table.numbers(1, "i") or (), table.numbers(2, "i") or ()
    _require(inputs, len(tensors), "the graph")
    _require(outputs, len(tensors), "the graph")
    operators = tuple(_operator(each, codes, len(tensors)) for each in table.tables(3))
    made: set[int] = set(inputs)
    if len(made) < len(inputs):
        raise Damaged("the graph has one tensor as two of its inputs")
    for operator in operators:
        if not made.isdisjoint(operator.outputs) or len(set(operator.outputs)) < len(operator.outputs):
            raise Damaged(f"a tensor is made twice, the second time by {operator.name}")
        made.update(operator.outputs)
    return Graph(tensors, inputs, outputs, operators)


def _tensor(table: Table, buffers: list[memoryview | None]) -> Tensor:
    name = table.text(3)
    kind, buffer = table.integer(1, "b"), table.integer(2, "I")
    if not 0 <= kind < len(schema.KINDS):
        raise Damaged(f"the tensor {name} has the unknown type {kind}")
    if buffer >= max(len(buffers), 1):
        raise Damaged(f"the tensor {name} is in buffer {buffer} of {len(buffers)}")
    fixed, signature = table.numbers(0, "i") or (), table.numbers(7, "i")
    shape = fixed if signature is None or len(signature) != len(fixed) else signature
    if len(shape) > _AXES or min(shape, default=0) < -1:
        raise Damaged(f"the tensor {name} has the shape {list(shape[: _AXES + 1])}")
    if table.table(6) is not None:
        raise Damaged(f"the tensor {name} is sparse, which is not supported")
    data = buffers[buffer] if buffers else None
    if data is None and math.prod(abs(size) for size in shape) > _ENTRIES:
        raise Damaged(f"the tensor {name} has the shape {list(shape)}, more than {_ENTRIES} entries")
    details = table.table(4)
    quantization = None if details is None else _quantization(details, name, shape)
    return Tensor(name, schema.KINDS[kind], shape, data, quantization)


def _quantization(table: Table, name: str, shape: tuple[int, ...]) -> Quantization | None:
    """None where there is only the range that the converter saw."""
    span = table.span(2, 4)
    if span is None or not span[1]:
        return None
    start, count = span
    scale = np.frombuffer(table.buffer.data, "<f4", count, start).astype(np.float32, copy=False)
    zeros = table.span(3, 8)
    zero = np.zeros(count, np.int64)
    if zeros is not None and zeros[1]:
        zero = np.frombuffer(table.buffer.data, "<i8", zeros[1], zeros[0]).astype(np.int64, copy=False)
    axis = table.integer(6, "i")
    if zero.size not in (1, count) or (count > 1 and not (0 <= axis < len(shape) and shape[axis] == count)):
        raise Damaged(f"{count} scales and {zero.size} zero points for {name} of shape {list(shape)}")
    if not (np.isfinite(scale).all() and (scale >= 0).all()):
        raise Damaged(f"{name} has a scale that is no positive number")
    return Quantization(scale, np.broadcast_to(zero, scale.shape), axis)


def _operator(table: Table, codes: list[tuple[str, bool]], tensors: int) -> Operator:
    index = table.integer(0, "I")
    if index >= len(codes):
        raise Damaged(f"an operator is of kind {index} of {len(codes)}")
    name, custom = codes[index]
    inputs, outputs = table.numbers(1, "i") or (), table.numbers(2, "i") or ()
    _require([each for each in inputs if each != ABSENT], tensors, name)
    _require(outputs, tensors, name)
    return Operator(name, custom, inputs, outputs, _options(table, name))


def _options(table: Table, name: str) -> Mapping[str, Any]:
    union, fields = schema.OPTIONS.get(name, (0, {}))
    given = table.integer(3, "B")
    options = table.table(4) if given else None
    if fields and options is not None and given != union:
        raise Damaged(f"{name} has the options of another operator (number {given})")
    found: dict[str, Any] = {}
    for field, (slot, kind, default) in fields.items():
        if kind.endswith("*"):
            found[field] = (options.numbers(slot, kind[0]) if options else None) or ()
        elif kind == "f":
            found[field] = float(options.number(slot, kind, default)) if options else default
        else:
            found[field] = options.integer(slot, kind, int(default)) if options else int(default)
    return found


def _signatures(tables: Iterable[Table], graphs: tuple[Graph, ...]) -> Iterator[Signature]:
    for table in tables:
        key, index = table.text(2), table.integer(4, "I")
        if index >= len(graphs):
            raise Damaged(f"signature {key} is of graph {index} of {len(graphs)}")
        named: list[dict[str, int]] = []
        for slot in (0, 1):
            entries = [(entry.text(0), entry.integer(1, "I")) for entry in table.tables(slot)]
            _require([number for _, number in entries], len(graphs[index].tensors), f"signature {key}")
            named.append(dict(entries))
            if len(named[-1]) < len(entries) or "" in named[-1]:
                raise Damaged(f"signature {key} gives two tensors the same name, or none")
        yield Signature(key, index, *named)


def _require(numbers: Iterable[int], count: int, what: str) -> None:
    for number in numbers:
        if not 0 <= number < count:
            raise Damaged(f"{what} refers to tensor {number} of {count}")
