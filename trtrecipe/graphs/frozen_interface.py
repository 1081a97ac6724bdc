"""What a frozen TensorFlow graph takes and gives, changed before it becomes ONNX: where it ends, layouts, names.

Cut here, a graph may end in operators that have no form in ONNX.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from trtrecipe.errors import StepError
from trtrecipe.graphs import cut, frozen
from trtrecipe.graphs.frozen import END, PLACEHOLDERS, Frozen
from trtrecipe.graphs.input_layout import Reading, decide
from trtrecipe.graphs.layers import NO_LAYER, scopes
from trtrecipe.graphs.layouts import Perm
from trtrecipe.graphs.names import LayerNames, cleaned

_ELEMENTWISE = """
Abs Add AddV2 Cast CheckNumerics ClipByValue Div DivNoNan Exp FakeQuantWithMinMaxArgs FakeQuantWithMinMaxVars
FakeQuantWithMinMaxVarsPerChannel Identity Log Maximum Minimum MirrorPad Mul Neg Pad PadV2 Pow RealDiv Relu Relu6
ReverseV2 Round Rsqrt Sigmoid Softplus Sqrt SquaredDifference Square StopGradient StridedSlice Sub Tanh
"""
_OF_IMAGES = """
AvgPool Conv2D CropAndResize DepthToSpace DepthwiseConv2dNative FusedBatchNorm FusedBatchNormV2 FusedBatchNormV3 MaxPool
ResizeArea ResizeBicubic ResizeBilinear ResizeNearestNeighbor ScaleAndTranslate SpaceToBatchND SpaceToDepth
"""
_PASSES = frozenset(_ELEMENTWISE.split())
"""Operations whose first result has the axes of the operands of full rank."""
_ON_IMAGES = frozenset(_OF_IMAGES.split())
"""Operations whose channels are last unless `data_format` says else."""


@dataclass(frozen=True)
class FrozenCut:
    """`inner`: new outputs that were none before. `dropped`: inputs that no output needs any more."""

    frozen: Frozen
    inner: tuple[str, ...]
    dropped: tuple[str, ...]


def cut_at(given: Frozen, names: Sequence[str]) -> FrozenCut:
    """The graph whose outputs are what `names` says, in that order and called so.

    A name is that of an output, a tensor or operation of TensorFlow (with or without the scopes of function calls), or
    a layer: the tensor that leaves it. Raises StepError as `cut.cut`.
    """
    from tensorflow.python.framework import graph_util

    tensors = {name: _tensor(given, name) for name in names}
    definition = type(given.graph)()
    definition.CopyFrom(given.graph)
    taken = {node.name for node in definition.node}
    numbers = (number for number in range(len(taken) + len(names)) if f"{END}{number}" not in taken)
    marked = {
        name: frozen.mark(definition, tensor, f"{END}{number}")
        for (name, tensor), number in zip(tensors.items(), numbers, strict=False)
    }
    pruned = graph_util.extract_sub_graph(definition, list(marked.values()))
    left = {node.name for node in pruned.node}
    dropped = [name for name, tensor in given.tensors.items() if tensor.partition(":")[0] not in left]
    if len(dropped) == len(given.inputs):
        raise StepError("model.outputs needs no input: it names constants", "name tensors that depend on an input")
    result = Frozen(
        pruned,
        tuple(spec for spec in given.inputs if spec.name not in dropped),
        {name: tensor for name, tensor in given.tensors.items() if name not in dropped},
        {name: f"{end}:0" for name, end in marked.items()},
        {tensor: values for tensor, values in given.weights.items() if tensor.partition(":")[0] in left},
    )
    return FrozenCut(result, tuple(name for name in names if name not in given.outputs), tuple(dropped))


def renamed(given: Frozen, names: Mapping[str, str]) -> Frozen:
    """The graph whose inputs and outputs are called as `names` says: the model's name → the engine's."""
    return replace(
        given,
        inputs=tuple(replace(spec, name=names[spec.name]) for spec in given.inputs),
        tensors={names[name]: tensor for name, tensor in given.tensors.items()},
        outputs={names[name]: tensor for name, tensor in given.outputs.items()},
    )


def layout(given: Frozen, name: str) -> str:
    """The layout that the graph takes its input `name` in, nchw or nhwc. Raises StepError where nothing tells."""
    constants = {node.name: node for node in given.graph.node if node.op == "Const"}
    readings: dict[str, list[Reading]] = {}
    for node in given.graph.node:
        for position, entry in enumerate(node.input):
            if not entry.startswith("^"):
                tensor = entry if ":" in entry else f"{entry}:0"
                readings.setdefault(tensor, []).append(_reading(node, position, constants))
    return decide(given.tensors[name], readings, name)


def _reading(node: Any, position: int, constants: Mapping[str, Any]) -> Reading:
    label = f"{node.op} {cleaned(node.name)}"
    result = f"{node.name}:0"
    stays: Perm = (0, 1, 2, 3)
    if node.op == "Transpose" and position == 0 and node.input[1] in constants:
        from tensorflow.python.framework import tensor_util

        perm = tuple(int(axis) for axis in tensor_util.MakeNdarray(constants[node.input[1]].attr["value"].tensor))
        return Reading(label, passes={result: perm} if len(perm) == len(stays) else None)
    if node.op in _ON_IMAGES and position == 0:
        form = node.attr["data_format"].s if "data_format" in node.attr else b"NHWC"
        return Reading(label, channels={b"NHWC": 3, b"NCHW": 1}.get(form))
    if node.op == "Conv2DBackpropInput" and position == 2:
        return Reading(label, channels=1 if node.attr["data_format"].s == b"NCHW" else 3)
    if node.op in _PASSES:
        return Reading(label, passes={result: stays})
    return Reading(label)


def _tensor(given: Frozen, name: str) -> str:
    """The tensor of TensorFlow's that `name` means."""
    if name in given.outputs:
        return given.outputs[name]
    nodes = {node.name: node for node in given.graph.node}
    plain, _, position = name.partition(":")
    if plain in nodes and (position or "0").isdecimal():
        return _computed(given, name, nodes[plain], int(position or 0))
    computing = [node for node in given.graph.node if node.op not in NO_LAYER]
    restored = LayerNames(node.name for node in computing)
    found = [node for node in computing if plain in (restored.name(node.name), cleaned(node.name))]
    if len(found) == 1 and (position or "0").isdecimal():
        return _computed(given, name, found[0], int(position or 0))
    if found:
        raise StepError(
            f"model.outputs names {name}, which several operations of the model are called",
            hint=f"name one of them in full: {cut.some([node.name for node in found])}",
        )
    if (leaving := layer(given, name)) is not None:
        return leaving
    own = {node.name: restored.name(node.name) for node in computing}
    known = [*given.outputs, *own.values(), *(scope for called in own.values() for scope in scopes(called))]
    raise cut.unknown(name, known, given.outputs)


def layer(given: Frozen, name: str) -> str | None:
    """The tensor that leaves the layer; None where there is no such layer. Raises StepError for several."""
    computing = [node for node in given.graph.node if node.op not in NO_LAYER]
    restored = LayerNames(node.name for node in computing)
    own = {node.name: restored.name(node.name) for node in computing}
    if not any(name in scopes(called) for called in own.values()):
        return None
    return cut.one_of(name, _leaving(given, computing, own, name))


def _computed(given: Frozen, name: str, node: Any, position: int) -> str:
    if node.op in PLACEHOLDERS or node.op == "Const":
        raise StepError(
            f"model.outputs names {name}, which the graph does not compute: it is an input or a constant",
            hint=f"the model's outputs are: {cut.some(list(given.outputs))}",
        )
    if frozen.tensor_type(node, position) is None:
        raise StepError(
            f"model.outputs names {name}, and {node.op} {node.name} has no result {position}",
            hint=f"the model's outputs are: {cut.some(list(given.outputs))}",
        )
    return f"{node.name}:{position}"


def _leaving(given: Frozen, computing: Sequence[Any], own: Mapping[str, str], layer: str) -> list[str]:
    """Tensors that leave the layer and depend on an input."""
    readers: dict[str, set[str]] = {}
    following: dict[str, list[str]] = {}
    for node in given.graph.node:
        for entry in node.input:
            if not entry.startswith("^"):
                readers.setdefault(entry if ":" in entry else f"{entry}:0", set()).add(own.get(node.name, node.name))
                following.setdefault(entry.partition(":")[0], []).append(node.name)
    depends: set[str] = set()
    pending = [tensor.partition(":")[0] for tensor in given.tensors.values()]
    while pending:
        name = pending.pop()
        if name not in depends:
            depends.add(name)
            pending += following.get(name, ())
    made = {
        tensor: own[node.name]
        for node in computing
        if node.name in depends
        for position in range(_results(node))
        if (tensor := f"{node.name}:{position}") in readers
    }
    return cut.leaving(made, readers, layer)


def _results(node: Any) -> int:
    count = 0
    while frozen.tensor_type(node, count) is not None:
        count += 1
    return count
