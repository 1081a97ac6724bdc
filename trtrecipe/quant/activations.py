"""The FP32 activations of a graph: their names, who makes them, and how large they are in one run."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import onnx

from trtrecipe.quant import observed
from trtrecipe.quant.overview import constants, label

Axes = Sequence[int | str | None]
"""Sizes, names of dimensions, or None for what is not known."""


@dataclass(frozen=True)
class Activation:
    """A tensor; `maker` is what a person calls the node that gives it, or "the model's input"; `size` in bytes."""

    name: str
    maker: str
    size: int


def activations(model: onnx.ModelProto, feeds: observed.Feeds) -> dict[str, Activation]:
    """Every FP32 tensor of the main graph that is no constant, inputs first, then in the order of nodes.

    Sizes follow from the shapes of `feeds`; where shapes do not tell them, the graph runs once.
    """
    makers = _makers(model)
    told, dims = _shapes(model, makers), _dims(model, feeds)
    sizes = {name: size for name, shape in told.items() if (size := _size(shape, dims)) is not None}
    sizes |= observed.sizes(model, [name for name in told if name not in sizes], feeds)
    return {name: Activation(name, makers[name], 4 * sizes[name]) for name in told}


def names(model: onnx.ModelProto) -> list[str]:
    """The same tensors by name."""
    return list(_shapes(model, _makers(model)))


def _makers(model: onnx.ModelProto) -> dict[str, str]:
    fixed = constants(model)
    initial = {tensor.name for tensor in model.graph.initializer}
    makers = {value.name: "the model's input" for value in model.graph.input if value.name not in initial}
    for node in model.graph.node:
        if node.op_type == "Constant":
            continue
        makers |= {name: label(node) for name in node.output if name and name not in fixed}
    return makers


def _shapes(model: onnx.ModelProto, tensors: Collection[str]) -> dict[str, Axes]:
    """FP32 tensor → its axes, as the graph tells them; of what it does not, ONNX Runtime infers them."""
    graph = model.graph
    told = {
        value.name: value.type.tensor_type
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.elem_type and value.type.tensor_type.HasField("shape")
    }
    found: dict[str, Axes] = {
        name: [dim.dim_param or (dim.dim_value if dim.HasField("dim_value") else None) for dim in kind.shape.dim]
        for name, kind in told.items()
        if kind.elem_type == onnx.TensorProto.FLOAT
    }
    # Only then, as one session more takes as much memory as the model again.
    if rest := [name for name in tensors if name not in told]:
        with observed.observing(model, rest) as engine:
            found |= {name: shape for name, kind, shape in engine.outputs() if kind == "tensor(float)"}
    return {name: found[name] for name in tensors if name in found}


def _dims(model: onnx.ModelProto, feeds: observed.Feeds) -> dict[str, int]:
    """The sizes that the feeds give to the dimensions that the inputs name."""
    found: dict[str, int] = {}
    for value in model.graph.input:
        if value.name in feeds:
            shape = value.type.tensor_type.shape.dim
            found |= {dim.dim_param: size for dim, size in zip(shape, feeds[value.name].shape, strict=True)}
    found.pop("", None)
    return found


def _size(shape: Axes, dims: Mapping[str, int]) -> int | None:
    """The number of values; None where an axis is neither a number nor a dimension of the inputs."""
    axes = [axis if isinstance(axis, int) else dims.get(axis or "") for axis in shape]
    known = [axis for axis in axes if axis is not None]
    return math.prod(known) if len(known) == len(axes) else None
