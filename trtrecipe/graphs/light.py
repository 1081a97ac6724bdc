"""A graph without the values of its weights: what checks and inference need, which read all of it again and again."""

from __future__ import annotations

import math
from typing import Any

from onnx import ModelProto, TensorProto, helper, shape_inference

from trtrecipe import parted

SMALL = parted.SMALL
"""Elements up to which a constant keeps its values: those that shapes are computed from are far smaller."""


def light(model: ModelProto) -> tuple[ModelProto, list[TensorProto]]:
    """The model with its large constants (initializers of the main graph) as inputs, and those constants."""
    result = without(model)
    inputs = {value.name for value in model.graph.input}
    large = []
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) <= SMALL or tensor.data_type == TensorProto.STRING:
            result.graph.initializer.append(tensor)
            continue
        large.append(tensor)
        if tensor.name not in inputs:  # before IR version 4 it is one as well
            result.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    return result, large


def without(model: ModelProto) -> ModelProto:
    """The model without the constants of its main graph."""
    result = ModelProto()
    _fill(result, model, "graph")
    _fill(result.graph, model.graph, "initializer")
    result.graph.SetInParent()
    return result


def inferred(model: ModelProto, **options: bool) -> ModelProto:
    """`model` with what `onnx.shape_inference.infer_shapes` finds, which is not given the values of large constants."""
    result = shape_inference.infer_shapes(light(model)[0], **options)
    for field in ("input", "initializer"):
        result.graph.ClearField(field)
        getattr(result.graph, field).extend(getattr(model.graph, field))
    return result


def make_constant(model: ModelProto, tensors: list[TensorProto], values: bool = True) -> None:
    """Undo `light` in place: inputs that are `tensors` become constants again. Without `values`, with none in them."""
    names = {tensor.name for tensor in tensors}
    kept = [value for value in model.graph.input if value.name not in names]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    for tensor in tensors:
        if values:
            model.graph.initializer.append(tensor)
        else:
            model.graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)


def _fill(target: Any, source: Any, without: str) -> None:
    """Copy all fields of a message but one."""
    for field, value in source.ListFields():
        if field.name == without:
            continue
        if isinstance(value, int | float | str | bytes):
            setattr(target, field.name, value)
        elif hasattr(value, "CopyFrom"):
            getattr(target, field.name).CopyFrom(value)
        else:
            getattr(target, field.name).extend(value)
