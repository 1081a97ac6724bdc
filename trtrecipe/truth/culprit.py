"""Where a graph first differs from the TensorFlow graph it was made from, by the values that its layers pass on.

A layer is a scope of operation names, as in `graphs.layers`. What a layer passes on is looked for among all values of
its nodes, without regard to the order of elements: tf2onnx moves axes about. A layer that merges into another (batch
normalization) leaves no such value and is passed over, as the layers after it are right again: the first layer is named
that differs itself and after which nothing is right.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto

from trtrecipe.data.preprocess import Array
from trtrecipe.engines.ort import OrtEngine
from trtrecipe.graphs.canonical import Renamed
from trtrecipe.graphs.frozen import Frozen
from trtrecipe.graphs.layers import Layers, scopes
from trtrecipe.graphs.names import LayerNames
from trtrecipe.truth import tensorflow_source

_AT_ONCE = 16
"""Layers whose values are held at one time."""
_LARGEST = 1 << 31
"""Bytes: graphs beyond are not searched, as they cannot be handed to ONNX Runtime with other outputs."""
_FLOATS = (1, 2)  # DT_FLOAT and DT_DOUBLE in TensorFlow's types.proto


@dataclass
class _Layer:
    """`passes`: tensors of TensorFlow that other layers read, by name; `follows`: those layers."""

    passes: dict[str, None] = field(default_factory=dict)
    follows: set[str] = field(default_factory=set)


def first(
    frozen: Frozen,
    exported: Renamed,
    layers: Layers,
    feeds: Mapping[str, Array],
    tolerance: float,
    taken: Mapping[str, Array] | None = None,
) -> str | None:
    """The first layer whose values differ, in words; None where none can be named.

    `feeds` are what the frozen graph takes, `taken` what the exported one does where its inputs' layouts are others.
    """
    model = exported.model
    if model.ByteSize() >= _LARGEST:
        return None
    known = {value.name for value in model.graph.input}
    given = {name: value for name, value in (taken or feeds).items() if name in known}
    if _agrees(frozen, model, feeds, given, tolerance):
        return "the graph with its values, as it was read from the model before the conversion, differs already"
    order = _layers(frozen, exported.layers)
    right: dict[str, bool] = {}
    names = [name for name in order if order[name].passes and layers.get(name)]
    for start in range(0, len(names), _AT_ONCE):
        right |= _compare(frozen, model, order, layers, names[start : start + _AT_ONCE], feeds, given, tolerance)
    wrong = next((name for name in order if right.get(name) is False and not _right_again(name, order, right)), None)
    return None if wrong is None else f"the first layer whose values differ is {wrong}"


def _agrees(
    frozen: Frozen, model: ModelProto, feeds: Mapping[str, Array], given: Mapping[str, Array], tolerance: float
) -> bool:
    """Whether the graph computes what the frozen one does."""
    expected = tensorflow_source.intermediate(frozen, feeds, list(frozen.outputs.values()))
    with OrtEngine(_with_outputs(model, [])) as engine:
        found = engine.run(given)
    return all(
        expected[tensor].shape == found[name].shape
        and _alike(np.asarray(expected[tensor], np.float32), np.asarray(found[name], np.float32), tolerance)
        for name, tensor in frozen.outputs.items()
    )


def _layers(frozen: Frozen, names: LayerNames) -> dict[str, _Layer]:
    """Layers in the order in which they can be computed, as far as they depend on the inputs."""
    owner = {node.name: "".join(scopes(names.name(node.name))[-1:]) for node in frozen.graph.node}
    kinds = {node.name: node.attr["T"].type if "T" in node.attr else 0 for node in frozen.graph.node}
    found: dict[str, _Layer] = {}
    computed = {tensor.partition(":")[0] for tensor in frozen.tensors.values()}
    for node in _sorted(frozen):
        sources = {entry: entry.partition(":")[0] for entry in node.input if not entry.startswith("^")}
        if computed.isdisjoint(sources.values()):
            continue
        computed.add(node.name)
        own = owner[node.name]
        found[own] = found.pop(own, _Layer())  # in the order of their last nodes
        for entry, source in sources.items():
            before = owner[source]
            if source not in computed or before not in found or before == own or kinds[source] not in _FLOATS:
                continue
            found[before].passes[entry if ":" in entry else f"{entry}:0"] = None
            found[before].follows.add(own)
    return found


def _right_again(name: str, order: Mapping[str, _Layer], right: Mapping[str, bool]) -> bool:
    """Whether a layer somewhere after this one is right."""
    waiting, seen = list(order[name].follows), {name}
    while waiting:
        after = waiting.pop()
        if after not in seen:
            if right.get(after):
                return True
            seen.add(after)
            waiting += order[after].follows
    return False


def _sorted(frozen: Frozen) -> list[Any]:
    """The nodes that the outputs need, each after what it reads."""
    nodes = {node.name: node for node in frozen.graph.node}
    done: dict[str, None] = {}
    for start in (tensor.partition(":")[0] for tensor in frozen.outputs.values()):
        stack = [start]
        while stack:
            name = stack[-1]
            waiting = [
                source
                for entry in nodes[name].input
                if (source := entry.removeprefix("^").partition(":")[0]) in nodes and source not in done
            ]
            if name in done or not waiting:
                done[stack.pop()] = None
            else:
                stack += waiting
    return [nodes[name] for name in done]


def _compare(
    frozen: Frozen,
    model: ModelProto,
    order: Mapping[str, _Layer],
    layers: Layers,
    names: list[str],
    feeds: Mapping[str, Array],
    given: Mapping[str, Array],
    tolerance: float,
) -> dict[str, bool]:
    """Layer → whether all that it passes on is found among the values of its nodes; nothing where sizes do not fit."""
    wanted = list(dict.fromkeys(tensor for name in names for tensor in order[name].passes))
    nodes = {node for name in names for node in layers[name]}
    tensors = {node.name: [name for name in node.output if name] for node in model.graph.node if node.name in nodes}
    expected = {name: _plain(value) for name, value in tensorflow_source.intermediate(frozen, feeds, wanted).items()}
    with OrtEngine(_with_outputs(model, [name for held in tensors.values() for name in held])) as engine:
        found = {name: _plain(value) for name, value in engine.run(given).items() if value.dtype == np.float32}
    verdicts = {}
    for name in names:
        own = [found[tensor] for node in layers[name] for tensor in tensors.get(node, ()) if tensor in found]
        judged = [
            any(_alike(expected[tensor], value, tolerance) for value in own)
            for tensor in order[name].passes
            if any(value.size == expected[tensor].size for value in own)
        ]
        if judged:
            verdicts[name] = all(judged)
    return verdicts


def _with_outputs(model: ModelProto, names: list[str]) -> ModelProto:
    present = {value.name for value in model.graph.output}
    changed = ModelProto()
    changed.CopyFrom(model)
    for name in names:
        if name not in present:
            changed.graph.output.add(name=name)  # ONNX Runtime finds its type
    return changed


def _plain(value: Array) -> npt.NDArray[np.float32]:
    return np.sort(np.asarray(value, np.float32), axis=None)


def _alike(expected: npt.NDArray[np.float32], found: npt.NDArray[np.float32], tolerance: float) -> bool:
    if expected.size != found.size:
        return False
    size = float(np.abs(expected).max(initial=0)) or 1.0
    return bool(np.allclose(found, expected, rtol=0, atol=tolerance * size, equal_nan=True))
