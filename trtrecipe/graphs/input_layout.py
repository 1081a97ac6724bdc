"""Whether an image input has its channels first or last, and a graph that takes it the other way round.

What the graph does with the input tells: a convolution reads channels first, behind a Transpose from channels last too.
In between may be whatever treats all axes alike (scaling, casts, padding).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, helper

from trtrecipe.errors import StepError
from trtrecipe.graphs.cut import drop_dead
from trtrecipe.graphs.edit import attribute, consumers, replace_uses, reset, tensor_names
from trtrecipe.graphs.known import Known, known
from trtrecipe.graphs.layouts import Perm, inverse, moved
from trtrecipe.graphs.names import Unique
from trtrecipe.graphs.transposes import merge_transposes, move_transposes

PERMS: Mapping[tuple[str, str], Perm] = {("nchw", "nhwc"): (0, 2, 3, 1), ("nhwc", "nchw"): (0, 3, 1, 2)}
"""(layout that is given, layout that is wanted) → what Transpose makes the one of the other."""

_STAYS: Perm = (0, 1, 2, 3)
_OF_IMAGES = """
AveragePool BatchNormalization Conv ConvTranspose DepthToSpace GlobalAveragePool GlobalLpPool GlobalMaxPool
GroupNormalization InstanceNormalization LRN LpPool MaxPool QLinearConv RoiAlign SpaceToDepth Upsample
"""
_CHANNELS_FIRST = frozenset(_OF_IMAGES.split())
"""Operators whose first input has channels behind the batch, by ONNX's definition."""


@dataclass(frozen=True)
class Reading:
    """What one reader of a tensor tells: the axis of its channels, or the tensors that its values go on to.

    `passes`: tensor → where its axes come from, as in Transpose.
    """

    reader: str
    channels: int | None = None
    passes: Mapping[str, Perm] | None = None


def decide(tensor: str, readings: Mapping[str, Sequence[Reading]], name: str) -> str:
    """The layout of the input `name`, which is `tensor`: "nchw" or "nhwc". `readings`: tensor → what its readers tell.

    Raises StepError where nothing tells, or two readers contradict each other, with what they are.
    """
    found: dict[str, str] = {}  # layout → who tells
    others: dict[str, None] = {}
    pending: list[tuple[str, Perm]] = [(tensor, _STAYS)]
    seen = set(pending)
    while pending:
        at, perm = pending.pop()
        for reading in readings.get(at, ()):
            if reading.channels is not None:
                layout = {1: "nchw", 3: "nhwc"}.get(perm[reading.channels])
                if layout is not None:
                    found.setdefault(layout, reading.reader)
                    continue
            for passed, own in (reading.passes or {}).items():
                further = (passed, tuple(perm[axis] for axis in own))
                if further not in seen:
                    seen.add(further)
                    pending.append(further)
            if not reading.passes:
                others[reading.reader] = None
    if len(found) == 1:
        return next(iter(found))
    if found:
        why = "; ".join(f"{reader} reads it as {layout}" for layout, reader in sorted(found.items()))
    else:
        readers = ", ".join(list(others)[:4]) or "nothing"
        why = f"no convolution or pooling is reached from it; it goes to {readers}"
    raise StepError(
        f"model.inputs.{name}.layout: the model does not tell whether input {name} is nchw or nhwc: {why}",
        hint="leave layout out; the input then stays as the model has it",
    )


def require_image(name: str, axes: int) -> None:
    """Refuse a layout for an input that has not four axes."""
    if axes != len(_STAYS):
        raise StepError(
            f"model.inputs.{name}.layout is for inputs of four axes, and input {name} has {axes}",
            hint="leave layout out",
        )


def of_graph(model: ModelProto, name: str) -> str:
    """The layout that the graph takes its input `name` in. Raises StepError where that cannot be decided."""
    facts = known(model)
    readers = consumers(model.graph)
    readings = {tensor: [_reading(tensor, node, facts) for node in nodes] for tensor, nodes in readers.items()}
    return decide(name, readings, name)


def _reading(tensor: str, node: NodeProto, facts: Known) -> Reading:
    label = f"{node.op_type} {node.name or node.output[0]}"
    first = not node.domain and node.input[0] == tensor
    if first and node.op_type in _CHANNELS_FIRST:
        return Reading(label, channels=1)
    if first and node.op_type == "Resize" and (axis := _resized_channels(node, tensor, facts)) is not None:
        return Reading(label, channels=axis, passes={node.output[0]: _STAYS})
    if first and node.op_type == "Transpose":
        perm = tuple(attribute(node, "perm", ()))
        return Reading(label, passes={node.output[0]: perm} if len(perm) == len(_STAYS) else None)
    shape = facts.shapes.get(tensor)
    found = moved(node, _STAYS, facts) if shape is not None and len(shape) == len(_STAYS) else None
    if found is None or all(node.input[position] != tensor for position in found.data):
        return Reading(label)
    return Reading(label, passes={name: _STAYS for name, back in zip(node.output, found.results, strict=False) if back})


def _resized_channels(node: NodeProto, tensor: str, facts: Known) -> int | None:
    """The axis that a Resize of images leaves alone, beside the first."""
    shape = facts.shapes.get(tensor, ())
    scales = facts.value(node.input[2]) if len(node.input) > 2 else None
    sizes = facts.value(node.input[3]) if len(node.input) > 3 else None
    if len(shape) != len(_STAYS):
        return None
    if scales is not None and scales.size == len(_STAYS):
        same = [bool(scale == 1) for scale in scales]
    elif sizes is not None and sizes.size == len(_STAYS):
        same = [entry == size for entry, size in zip(shape, sizes.tolist(), strict=True)]
    else:
        return None
    return {(False, False, True): 3, (True, False, False): 1}.get((same[1], same[2], same[3]))


def transpose(model: ModelProto, name: str, perm: Perm) -> None:
    """Make the graph take its input `name` with other axes, in place: Transpose(perm) makes of it what it was.

    Raises StepError for an input that is an output too. `settle` takes the Transpose out again.
    """
    graph = model.graph
    if name in {value.name for value in graph.output}:
        raise StepError(f"input {name} is an output of the model as well", f"leave out model.inputs.{name}.layout")
    inner = Unique(tensor_names(graph)).claim(f"{name}/as_before")
    replace_uses(graph, {name: inner})
    added = helper.make_node("Transpose", [name], [inner], perm=perm)
    reset(graph.node, [added, *graph.node])
    shape = next(value for value in graph.input if value.name == name).type.tensor_type.shape
    dims = list(shape.dim)
    reset(shape.dim, [dims[axis] for axis in inverse(perm)])


def settle(model: ModelProto, asked: Mapping[str, str]) -> list[str]:
    """Take out the Transposes of `transpose` where the graph does without, in place, once all shapes are decided.

    `asked`: input → layout. A sentence for each input that is still transposed behind it.
    """
    while _drop_idle(model) or merge_transposes(model) or move_transposes(model):
        drop_dead(model.graph)
    readers = consumers(model.graph)
    return [
        f"input {name} is {layout} as asked, and the graph has to transpose it first, which takes time in every run"
        for name, layout in asked.items()
        if any(map(_transposes, readers.get(name, ())))
    ]


def _transposes(node: NodeProto) -> bool:
    return node.op_type == "Transpose" and not node.domain


def _drop_idle(model: ModelProto) -> bool:
    """Take out Transposes that move nothing and make no output, in place; whether there were any."""
    graph = model.graph
    outputs = {value.name for value in graph.output}
    replaced: dict[str, str] = {}
    kept = []
    for node in graph.node:
        perm = attribute(node, "perm", ()) if _transposes(node) else ()
        if perm and list(perm) == sorted(perm) and node.output[0] not in outputs:
            replaced[node.output[0]] = replaced.get(node.input[0], node.input[0])
        else:
            kept.append(node)
    reset(graph.node, kept)
    replace_uses(graph, replaced)
    return bool(replaced)


def permuted(shape: Sequence[int | str], perm: Perm | None) -> tuple[int | str, ...]:
    """The shape of what `Transpose(perm)` makes of a tensor of that shape; itself without a Perm."""
    return tuple(shape) if perm is None else tuple(np.array(shape, object)[list(perm)].tolist())
