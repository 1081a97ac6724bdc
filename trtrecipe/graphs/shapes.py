"""Input shapes: what the model says, completed by what the recipe says, carried through the graph."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import ModelProto, TensorShapeProto, shape_inference

from trtrecipe.errors import StepError
from trtrecipe.graphs.edit import reset
from trtrecipe.graphs.interface import TensorSpec
from trtrecipe.graphs.light import light, make_constant

Shape = tuple[int | str, ...]
OPEN = "?"


@dataclass(frozen=True)
class Bound:
    """Inputs with every axis decided, and sentences on what was decided without being asked."""

    shapes: Mapping[str, Shape]
    notes: tuple[str, ...]


def bind(specs: Collection[TensorSpec], wanted: Mapping[str, Mapping[str, Any]], dims: Collection[str]) -> Bound:
    """Decide every axis of the model's inputs `specs`.

    `wanted` is the recipe's model.inputs (input → {"shape": [...] | None, "dtype": str | None}), `dims` the names in
    its model.dims. A number in the recipe fixes an axis that the model leaves open, a name makes it a dimension; an
    axis that the model itself names is one if that name is in `dims`. A leading axis that nobody decides becomes 1,
    which is noted. Raises StepError for whatever does not fit, naming the line of the recipe to change.
    """
    listed = "; ".join(map(str, specs))
    for name in wanted:
        if name not in {spec.name for spec in specs}:
            raise StepError(f"the model has no input {name}", hint=f"change model.inputs; its inputs are: {listed}")
    renamed: dict[str, int | str] = {}  # the model's name of a dimension → what it becomes everywhere
    notes: list[str] = []
    shapes: dict[str, list[int | str]] = {}
    for spec in specs:
        asked = wanted.get(spec.name, {})
        _check_dtype(spec, asked.get("dtype"))
        shapes[spec.name] = _decide(spec, asked.get("shape"), dims, renamed)
    for spec in specs:
        shapes[spec.name] = [
            _settle(spec, axis, entry, dims, renamed, notes) for axis, entry in enumerate(shapes[spec.name])
        ]
    used = {entry for shape in shapes.values() for entry in shape}
    if idle := sorted(set(dims) - used):
        raise StepError(
            f"model.dims names {', '.join(idle)}, but no axis of an input carries "
            f"{'that name' if len(idle) == 1 else 'those names'}",
            hint=f"use it in model.inputs.<input>.shape, or remove it; the model's inputs are: {listed}",
        )
    return Bound({name: tuple(shape) for name, shape in shapes.items()}, tuple(notes))


def _check_dtype(spec: TensorSpec, dtype: str | None) -> None:
    if dtype is not None and dtype != spec.dtype:
        raise StepError(
            f"input {spec.name} of the model is {spec.dtype}, the recipe says {dtype}",
            hint=f"write model.inputs.{spec.name}.dtype: {spec.dtype}, or remove it",
        )


def _decide(
    spec: TensorSpec, shape: list[int | str] | None, dims: Collection[str], renamed: dict[str, int | str]
) -> list[int | str]:
    """The shape as model and recipe give it together; what is left open is still open."""
    line = f"model.inputs.{spec.name}.shape"
    if shape is None:
        return list(spec.shape)
    if len(shape) != len(spec.shape):
        raise StepError(f"{line} has {len(shape)} axes, the model's input has {len(spec.shape)}: {spec}")
    result: list[int | str] = []
    for axis, (own, asked) in enumerate(zip(spec.shape, shape, strict=True)):
        if isinstance(own, int):
            if asked != own:
                raise StepError(
                    f"axis {axis} of input {spec.name} is fixed at {own} by the model, {line} says {asked}",
                    hint=f"write {own} there, or export the model with that axis open",
                )
        elif own != OPEN and renamed.setdefault(own, asked) != asked:
            raise StepError(
                f"the model calls several axes {own}, so they are equal, "
                f"but the recipe makes one {renamed[own]} and another {asked} ({line})",
                hint="write the same for both",
            )
        if isinstance(asked, str) and asked not in dims:
            raise StepError(
                f"{line} names the dimension {asked}, which has no range",
                hint=f"add model.dims.{asked}: {{min: ..., opt: ..., max: ...}}",
            )
        result.append(asked)
    return result


def _settle(
    spec: TensorSpec,
    axis: int,
    entry: int | str,
    dims: Collection[str],
    renamed: dict[str, int | str],
    notes: list[str],
) -> int | str:
    entry = renamed.get(entry, entry) if isinstance(entry, str) else entry
    if entry == 0:
        raise StepError(*empty(spec, axis))
    if isinstance(entry, int) or entry in dims:
        return entry
    if axis == 0:
        if entry != OPEN:
            renamed[entry] = 1
        name = "batch" if entry == OPEN else entry
        notes.append(
            f"axis 0 of input {spec.name} is open and the recipe gives it neither a name nor a size: fixed at 1 "
            f"(to keep it open, name it in model.inputs.{spec.name}.shape and add model.dims.{name})"
        )
        return 1
    example = ", ".join(str(size) if isinstance(size, int) else f"<axis {at}>" for at, size in enumerate(spec.shape))
    called = "" if entry == OPEN else f" (the model calls it {entry})"
    raise StepError(
        f"axis {axis} of input {spec.name} is open{called}",
        hint=f"write model.inputs.{spec.name}.shape: [{example}] "
        f"with <axis {axis}> a size, or a name that has a range in model.dims",
    )


def empty(spec: TensorSpec, axis: int) -> tuple[str, str]:
    """What is said of an input that holds no element, and what to do about it."""
    return (
        f"axis {axis} of input {spec.name} has the size 0 in the model, so the input is empty: {spec}",
        "export the model with that axis open, or of the size that it has",
    )


def set_inputs(model: ModelProto, shapes: Mapping[str, Shape]) -> None:
    """Give the graph inputs these shapes in place; a dimension that this renames or fixes, in the outputs too."""
    inputs = {value.name: value.type.tensor_type.shape for value in model.graph.input}
    same = {
        dim.dim_param: entry
        for name, shape in shapes.items()
        for dim, entry in zip(inputs[name].dim, shape, strict=False)
        if dim.dim_param
    }
    for name, shape in shapes.items():
        _write(inputs[name], shape)
    for value in model.graph.output:
        if value.type.tensor_type.HasField("shape"):
            _write(value.type.tensor_type.shape, [same.get(entry, entry) for entry in _read(value) or []])
    del model.graph.value_info[:]  # written for the shapes from before


def set_outputs(model: ModelProto) -> None:
    """Give the graph outputs, in place, the shapes that follow from the inputs'.

    An axis that inference cannot decide keeps the model's own size, and its name if an input has that dimension too.
    Raises StepError where the shapes contradict the graph, or where the number of axes is not known.
    """
    declared = {value.name: _read(value) for value in model.graph.output}
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    found = {value.name: _read(value) for value in infer(model).graph.output}
    names = {entry for value in model.graph.input for entry in _read(value) or [] if isinstance(entry, str)} - {OPEN}
    for value in model.graph.output:
        merged = _merge(found[value.name], declared[value.name], names)
        if merged is None:
            raise StepError(
                f"the number of axes of output {value.name} is not known",
                hint="export the model with a shape for that output, at least its number of axes",
            )
        _write(value.type.tensor_type.shape, merged)


def infer(model: ModelProto) -> ModelProto:
    """A copy with the type and shape of every tensor that follows, in `value_info` and the outputs.

    Large constants are without their values in it (`light`). Raises StepError where operators, types and shapes
    contradict each other.
    """
    slim, large = light(model)
    try:
        try:
            found = shape_inference.infer_shapes(slim, check_type=True, strict_mode=True, data_prop=True)
        except shape_inference.InferenceError:
            # Its arithmetic on shapes takes any small integers for shapes, and fails on those that have several axes
            # ("Invalid rank for Add broadcasting", defs/math/defs.cc at v1.18.0).
            found = shape_inference.infer_shapes(slim, check_type=True, strict_mode=True)
    except (shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError, ValueError) as error:
        raise StepError(
            f"the graph's types or shapes contradict each other: {_first_lines(str(error))}",
            hint="check model.inputs in the recipe against the model",
        ) from error
    make_constant(found, large, values=False)
    return found


def _first_lines(text: str) -> str:
    return " ".join(line.strip() for line in text.strip().splitlines()[:3])


def _read(value: onnx.ValueInfoProto) -> list[int | str] | None:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return [
        dim.dim_value if dim.WhichOneof("value") == "dim_value" else dim.dim_param or OPEN for dim in tensor.shape.dim
    ]


def _merge(
    found: list[int | str] | None, declared: list[int | str] | None, names: Collection[str]
) -> list[int | str] | None:
    if found is None:
        found = declared
    if found is None:
        return None
    if declared is None or len(declared) != len(found):
        declared = [OPEN] * len(found)
    known = (
        (entry for entry in pair if isinstance(entry, int) or entry in names)
        for pair in zip(found, declared, strict=True)
    )
    return [next(entries, OPEN) for entries in known]


def _write(proto: TensorShapeProto, shape: Collection[int | str]) -> None:
    dims = []
    for entry in shape:
        dim = TensorShapeProto.Dimension()
        if isinstance(entry, int):
            dim.dim_value = entry
        elif entry != OPEN:
            dim.dim_param = entry
        dims.append(dim)
    reset(proto.dim, dims)
    proto.SetInParent()
