"""What a graph takes and gives: names, types and shapes of its inputs and outputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import onnx
from onnx import TensorProto

from trtrecipe.errors import StepError

DTYPES: dict[int, str] = {
    TensorProto.FLOAT: "float32",
    TensorProto.FLOAT16: "float16",
    TensorProto.DOUBLE: "float64",
    TensorProto.BFLOAT16: "bfloat16",
    TensorProto.INT8: "int8",
    TensorProto.INT16: "int16",
    TensorProto.INT32: "int32",
    TensorProto.INT64: "int64",
    TensorProto.UINT8: "uint8",
    TensorProto.UINT16: "uint16",
    TensorProto.UINT32: "uint32",
    TensorProto.UINT64: "uint64",
    TensorProto.BOOL: "bool",
    TensorProto.STRING: "string",
}
"""ONNX element type → NumPy's name for it."""


@dataclass(frozen=True)
class TensorSpec:
    """One input or output. `shape` has one entry per axis: a size, a dimension's name, or "?" for an open axis."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype} [{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Interface:
    """Inputs (without initializers) and outputs in the graph's order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def input(self, name: str) -> TensorSpec:
        """The input called `name`. Raises KeyError."""
        return {spec.name: spec for spec in self.inputs}[name]

    def output(self, name: str) -> TensorSpec:
        """The output called `name`. Raises KeyError."""
        return {spec.name: spec for spec in self.outputs}[name]


def interface(model: onnx.ModelProto) -> Interface:
    """Inputs and outputs of the model's graph. Raises StepError for sequences, maps and tensors of unknown rank."""
    constant = {initializer.name for initializer in model.graph.initializer}
    return Interface(
        tuple(_spec(value, "input") for value in model.graph.input if value.name not in constant),
        tuple(_spec(value, "output") for value in model.graph.output),
    )


def new_names(inputs: Sequence[str], outputs: Sequence[str], rename: Mapping[str, str]) -> dict[str, str]:
    """Every input and output by the model's name → its name in the engine, where `rename` says another.

    Raises StepError for a name in `rename` that is neither, and where two would be called the same.
    """
    known = [*inputs, *outputs]
    for name in rename:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            meant = f"did you mean {near[0]}? " if near else ""
            raise StepError(
                f"model.rename names {name}, which is no input and no output of the model",
                hint=f"{meant}inputs: {', '.join(inputs)}; outputs: {', '.join(outputs)}",
            )
        if name in inputs and name in outputs:
            raise StepError(
                f"model.rename names {name}, which is an input and an output of the model at once",
                hint="leave it, or export the model with two names",
            )
    found = {name: rename.get(name, name) for name in known}
    if twice := _repeated(found[name] for name in dict.fromkeys(known)):
        olds = [name for name in found if found[name] == twice]
        raise StepError(
            f"model.rename would call two tensors {twice}: {' and '.join(olds)}", hint="give one of them another name"
        )
    return found


def _repeated(names: Iterable[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def _spec(value: onnx.ValueInfoProto, role: str) -> TensorSpec:
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        what = (kind or "value without a type").removesuffix("_type")
        raise StepError(f"{role} {value.name} is of the kind {what}; only tensors are supported")
    tensor = value.type.tensor_type
    if tensor.elem_type not in DTYPES:
        names = {number: name.lower() for name, number in TensorProto.DataType.items()}
        kind = names.get(tensor.elem_type, str(tensor.elem_type))
        raise StepError(
            f"{role} {value.name} has an element type that is not supported: {kind}",
            hint=f"Cast it inside the model; what inputs and outputs may be: {', '.join(DTYPES.values())}",
        )
    if not tensor.HasField("shape"):
        raise StepError(
            f"the number of axes of {role} {value.name} is not known",
            hint="export the model with a shape for it, at least its number of axes",
        )
    return TensorSpec(value.name, DTYPES[tensor.elem_type], tuple(_axis(dim) for dim in tensor.shape.dim))


def _axis(dim: onnx.TensorShapeProto.Dimension) -> int | str:
    kind = dim.WhichOneof("value")
    if kind == "dim_value" and dim.dim_value >= 0:
        return int(dim.dim_value)
    return (dim.dim_param if kind == "dim_param" else "") or "?"
