"""What the conversions of TFLite operators are written with: tensors by number, in either layout, as floats.

TFLite has channels last, ONNX's convolutions have them first. A tensor of four axes therefore has up to two views: as
the file has it, and with channels first. Operators ask for the view they need and store the one they make; a Transpose
comes to be only where somebody asks for the other one. Inside the graph every quantized tensor is what its integers
stand for, behind a Q/DQ pair with the file's own scale and zero point.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from trtrecipe.graphs import tflite_schema as schema
from trtrecipe.graphs.flatbuffer import Damaged
from trtrecipe.graphs.names import Unique
from trtrecipe.graphs.tflite_file import ABSENT, Array, Graph, Operator, Quantization, Tensor

TO_FIRST = (0, 3, 1, 2)
"""Transpose's perm from channels last to channels first."""
TO_LAST = (0, 2, 3, 1)
"""And back."""
WHERE = (0, 2, 3, 1)
"""The axes of channels last, where each is when channels come first."""

INTEGERS = {"INT8": (np.int8, -128, 127), "UINT8": (np.uint8, 0, 255)}
"""Types of quantized activations that have a form as Q/DQ."""


class Refused(Exception):
    """Why one operator has no form in ONNX."""


@dataclass
class Builder:
    """Nodes and constants made so far of one graph.

    `base`: the name of the operator that is being converted. `hybrid`: weights stored as integers that became floats.
    `flattened`: results of Reshapes to computed shapes → what was reshaped.
    """

    graph: Graph
    names: Unique
    base: str = ""
    nodes: list[NodeProto] = field(default_factory=list)
    initializers: list[TensorProto] = field(default_factory=list)
    notes: dict[str, None] = field(default_factory=dict)
    hybrid: dict[str, None] = field(default_factory=dict)
    flattened: dict[int, int] = field(default_factory=dict)
    _plain: dict[int, str] = field(default_factory=dict)
    _first: dict[int, str] = field(default_factory=dict)
    _primary: set[int] = field(default_factory=set)
    _exact: dict[int, str] = field(default_factory=dict)  # of tensors with a pair: what is in front of it
    _constants: dict[int, Array] = field(default_factory=dict)
    _written: dict[int, str] = field(default_factory=dict)

    # What the file says

    def tensor(self, number: int) -> Tensor:
        """The tensor with that number."""
        return self.graph.tensors[number]

    def rank(self, number: int) -> int:
        """The number of axes, as the file has it."""
        return len(self.tensor(number).shape)

    def given(self, operator: Operator, position: int) -> int | None:
        """The number of the operator's input at `position`, None where it has none."""
        if position >= len(operator.inputs) or operator.inputs[position] == ABSENT:
            return None
        return operator.inputs[position]

    def is_constant(self, number: int) -> bool:
        """Whether the tensor's values are in the file."""
        return number in self._constants or (number not in self._plain and number not in self._first)

    def constant(self, number: int, what: str = "") -> Array:
        """A constant's values; of a quantized or FP16 one the floats. Raises Refused where it is no constant."""
        if number in self._constants:
            return self._constants[number]
        if not self.is_constant(number):
            raise Refused(f"its {what or self.tensor(number).name} is computed while the model runs")
        tensor = self.tensor(number)
        values = tensor.values()
        if tensor.quantization is not None and values.dtype.kind in "iu":
            values = _scaled(tensor).dequantize(values)
        elif values.dtype in (np.float16, np.float64):
            values = values.astype(np.float32)
        self._constants[number] = values
        return values

    def note_stored(self, number: int) -> None:
        """Note that a constant is stored in 8 bits and becomes floats, if that is so."""
        if self.is_constant(number) and self.grid(number) is not None:
            self.hybrid[self.tensor(number).name] = None

    def numbers(self, number: int, what: str) -> list[int]:
        """A constant of whole numbers as a flat list."""
        values = self.constant(number, what)
        if values.dtype.kind not in "iu":
            raise Damaged(f"{what} of {self.base} is {self.tensor(number).kind}")
        return [int(each) for each in values.reshape(-1)]

    def is_quantized(self, number: int) -> bool:
        """Whether the tensor is computed in 8 bits."""
        return not self.is_constant(number) and self.grid(number) is not None

    def grid(self, number: int) -> Quantization | None:
        """The scale of a tensor of 8 bits, None where it has none or another type."""
        tensor = self.tensor(number)
        return _scaled(tensor) if tensor.quantization is not None and tensor.kind in INTEGERS else None

    # Tensors as ONNX has them

    def plain(self, number: int) -> str:
        """The tensor's name in the layout of the file."""
        if self.is_constant(number):
            if number not in self._written:
                self._written[number] = self.initializer(f"{self.base}/constant", self.constant(number))
            return self._written[number]
        if number not in self._plain:
            self._plain[number] = self._turned(number, self._first[number], TO_LAST)
        return self._plain[number]

    def first(self, number: int) -> str:
        """The name of a tensor of four axes with channels first."""
        if self.is_constant(number):
            return self.initializer(f"{self.base}/constant", self.constant(number).transpose(TO_FIRST))
        if number not in self._first:
            self._first[number] = self._turned(number, self._plain[number], TO_FIRST)
        return self._first[number]

    def _turned(self, number: int, name: str, perm: Sequence[int]) -> str:
        """The other view of a tensor. A pair is moved behind the Transpose: TensorRT wants it where it is read."""
        grid = self.grid(number)
        if number not in self._exact or grid is None:
            return self.node("Transpose", [name], perm=perm)
        turned = self.node("Transpose", [self._exact[number]], perm=perm)
        return self.pair(turned, self.tensor(number).kind, grid)

    def is_first(self, number: int) -> bool:
        """Whether the tensor came to be with channels first."""
        return number in self._primary

    def integer(self, number: int) -> str:
        """The name of a tensor of whole numbers as INT64, which ONNX takes for shapes, indices and the like."""
        if self.is_constant(number):
            return self.initializer(f"{self.base}/constant", np.array(self.constant(number), np.int64))
        if self.tensor(number).kind == "INT64":
            return self.plain(number)
        return self.node("Cast", [self.plain(number)], to=TensorProto.INT64)

    def alias(self, source: int, result: int) -> None:
        """Let `result` be the same values as `source`."""
        if self.is_constant(source):
            self._constants[result] = self.constant(source)
            self._plain[result] = self.plain(source)
            return
        for views in (self._plain, self._first):
            if source in views:
                views[result] = views[source]
        if source in self._primary:
            self._primary.add(result)

    def weights(self, number: int, arrange: Callable[[Array], Array], axis: int, quantized: bool) -> str:
        """The name of constant weights after `arrange`, which puts the axis of scales per channel at `axis`.

        `quantized`: what they meet is computed in 8 bits; they are integers with a DequantizeLinear then. Else
        integers become floats, as with weights that are only stored in 8 bits.
        """
        tensor = self.tensor(number)
        name = f"{self.base}/weights"
        if not (quantized and self.is_constant(number) and self.grid(number) is not None):
            self.note_stored(number)
            values = arrange(self.constant(number, "weights"))
            return self.initializer(name, values)
        scaled = _scaled(tensor)
        kind = INTEGERS[tensor.kind][0]
        integers = self.initializer(name, arrange(tensor.values()))
        per_channel = scaled.scale.size > 1
        shape = (-1,) if per_channel else ()
        scale = self.initializer(f"{name}/scale", scaled.scale.reshape(shape))
        zero = self.initializer(f"{name}/zero_point", scaled.zero.astype(kind).reshape(shape))
        attributes = {"axis": axis} if per_channel else {}
        return self.node("DequantizeLinear", [integers, scale, zero], f"{name}/DequantizeLinear", **attributes)

    def together(self, numbers: Sequence[int]) -> tuple[list[str], bool]:
        """Names of tensors that are broadcast to each other, and whether channels come first in all of them."""
        moving = [number for number in numbers if not self.is_constant(number)]
        first = any(map(self.is_first, moving)) and all(self.rank(number) == 4 for number in moving)
        first = first and all(self.rank(number) <= 4 for number in numbers)
        return [self._broadcast(number) if first else self.plain(number) for number in numbers], first

    def _broadcast(self, number: int) -> str:
        if not self.is_constant(number) or not self.rank(number):
            return self.first(number) if self.rank(number) else self.plain(number)
        values = self.constant(number)
        full = values.reshape((1,) * (4 - values.ndim) + values.shape)
        return self.initializer(f"{self.base}/constant", full.transpose(TO_FIRST))

    # Making nodes

    def initializer(self, wanted: str, values: Array) -> str:
        """A constant of the graph; its name."""
        name = self.names.claim(wanted)
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(values).reshape(values.shape), name))
        return name

    def node(self, kind: str, inputs: Sequence[str], wanted: str = "", **attributes: Any) -> str:
        """Add a node with one output; the output's name, which is the node's too."""
        return self.split(kind, inputs, 1, wanted, **attributes)[0]

    def split(self, kind: str, inputs: Sequence[str], outputs: int, wanted: str = "", **attributes: Any) -> list[str]:
        """Add a node with several outputs; their names."""
        name = self.names.claim(wanted or f"{self.base}/{kind}")
        results = [name, *(self.names.claim(f"{name}:{position}") for position in range(1, outputs))]
        self.nodes.append(helper.make_node(kind, list(inputs), results, name=name, **attributes))
        return results

    def floats(self, what: str, value: float) -> str:
        """A float32 scalar constant."""
        return self.initializer(f"{self.base}/{what}", np.array(value, np.float32))

    def integers(self, what: str, values: Sequence[int]) -> str:
        """An INT64 vector constant."""
        return self.initializer(f"{self.base}/{what}", np.array(values, np.int64))

    def store(self, number: int, name: str, first: bool = False, fused: int = 0, same: int | None = None) -> None:
        """`name` is tensor `number`, after the activation `fused` and the rounding to its integers.

        `same`: the operator only moves entries of this tensor; where both have one scale nothing is rounded.
        """
        tensor = self.tensor(number)
        if tensor.kind not in schema.ONNX:
            raise Refused(f"it makes {tensor.kind}; floats, 8 bit integers, INT32, INT64 and BOOL are supported")
        name = self.activate(name, fused)
        grid = self.grid(number)
        if grid is not None and not (same is not None and self.equal_grids(same, number)):
            self._exact[number] = name
            name = self.pair(name, tensor.kind, grid)
        (self._first if first else self._plain)[number] = name
        if first:
            self._primary.add(number)

    def activate(self, name: str, fused: int) -> str:
        """The tensor after a fused activation (ActivationFunctionType)."""
        if fused == 1:
            return self.node("Relu", [name])
        if fused in (2, 3):
            low, high = (-1.0, 1.0) if fused == 2 else (0.0, 6.0)
            return self.clip(name, low, high)
        if fused == 4:
            return self.node("Tanh", [name])
        if fused:
            raise Refused(f"its fused activation has the number {fused}, for which ONNX has no form")
        return name

    def clip(self, name: str, low: float, high: float) -> str:
        """The tensor between two bounds."""
        return self.node("Clip", [name, self.floats("min", low), self.floats("max", high)])

    def pair(self, name: str, kind: str, grid: Quantization) -> str:
        """The tensor behind QuantizeLinear and DequantizeLinear of a scale per tensor."""
        if grid.scale.size > 1:
            raise Refused("it has a scale per channel on a tensor that is no constant")
        inputs = [
            self.initializer(f"{self.base}/scale", grid.scale.reshape(())),
            self.initializer(f"{self.base}/zero_point", grid.zero.astype(INTEGERS[kind][0]).reshape(())),
        ]
        return self.node("DequantizeLinear", [self.node("QuantizeLinear", [name, *inputs]), *inputs])

    def equal_grids(self, one: int, other: int) -> bool:
        """Whether two tensors of 8 bits can hold the same floats."""
        first, second = self.grid(one), self.grid(other)
        if first is None or second is None:
            return False
        ends = [
            (quantization.scale.tolist(), (INTEGERS[self.tensor(number).kind][1] - quantization.zero).tolist())
            for number, quantization in ((one, first), (other, second))
        ]
        return ends[0] == ends[1]


def _scaled(tensor: Tensor) -> Quantization:
    """The tensor's scales. Raises Damaged where they cannot be those of its type."""
    found = tensor.quantization
    if found is None:
        raise Damaged(f"{tensor.name} has no scale")
    if not (found.scale > 0).all():
        raise Damaged(f"{tensor.name} has a scale of 0")
    if tensor.kind in INTEGERS:
        _, low, high = INTEGERS[tensor.kind]
        if not ((found.zero >= low) & (found.zero <= high)).all():
            raise Damaged(f"{tensor.name} has a zero point that is no {tensor.kind}")
    return found
