"""Named dimensions: which open axes of the outputs always have the size of a named axis of an input."""

from __future__ import annotations

from collections.abc import Mapping

from onnx import ModelProto, shape_inference

from trtrecipe.graphs.light import light
from trtrecipe.graphs.shapes import OPEN, set_inputs

_SIZES = ((11, 13, 17, 19, 23, 29), (59, 61, 67, 71, 73, 79))
"""Two sizes for each dimension, that no others give by sums or products likely to occur."""


def name_dimensions(model: ModelProto) -> bool:
    """Name, in place, axes of outputs that shape inference leaves open; whether there were any.

    Inference loses a name where a shape is computed on the way. With numbers in its place it comes through: an axis
    that has the size of the dimension for two different sizes has its name.
    """
    open_axes = {
        (value.name, axis)
        for value in model.graph.output
        for axis, dim in enumerate(value.type.tensor_type.shape.dim)
        if dim.WhichOneof("value") is None
    }
    names = _names(model)
    if not open_axes or not 0 < len(names) <= len(_SIZES[0]):
        return False
    trials = [dict(zip(names, sizes, strict=False)) for sizes in _SIZES]
    results = [_sizes(model, trial) for trial in trials]
    changed = False
    for value in model.graph.output:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            found = [result.get((value.name, axis)) for result in results]
            name = next((name for name in names if [trial[name] for trial in trials] == found), None)
            if (value.name, axis) in open_axes and name is not None:
                dim.dim_param = name
                changed = True
    return changed


def _names(model: ModelProto) -> list[str]:
    constant = {tensor.name for tensor in model.graph.initializer}
    return list(
        dict.fromkeys(
            dim.dim_param
            for value in model.graph.input
            if value.name not in constant
            for dim in value.type.tensor_type.shape.dim
            if dim.dim_param
        )
    )


def _sizes(model: ModelProto, trial: Mapping[str, int]) -> dict[tuple[str, int], int]:
    """Output and axis → its size, where inference tells it for dimensions of these sizes."""
    copy = ModelProto()
    copy.CopyFrom(model)
    constant = {tensor.name for tensor in model.graph.initializer}
    shapes = {
        value.name: tuple(
            dim.dim_value if dim.HasField("dim_value") else trial.get(dim.dim_param, OPEN)
            for dim in value.type.tensor_type.shape.dim
        )
        for value in copy.graph.input
        if value.name not in constant
    }
    set_inputs(copy, shapes)
    for value in copy.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        inferred = shape_inference.infer_shapes(light(copy)[0], data_prop=True)
    except shape_inference.InferenceError:
        return {}
    return {
        (value.name, axis): dim.dim_value
        for value in inferred.graph.output
        for axis, dim in enumerate(value.type.tensor_type.shape.dim)
        if dim.WhichOneof("value") == "dim_value"
    }
