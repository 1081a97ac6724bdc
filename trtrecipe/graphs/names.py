"""Names: from what TensorFlow and tf2onnx made of them back to the model's own, and always unique."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import onnx
from onnx import ModelProto

from trtrecipe.graphs.edit import all_graphs, reset, tensor_names

_CALL = re.compile(r"^(?:Stateful)?PartitionedCall(?:_\d+)?$")
_COUNTER = re.compile(r"__\d+(?=[/:]|$)")
_GENERATED = re.compile(r"^[A-Za-z0-9_.]*?__\d+(?::\d+)?$")
_ADDED = re.compile(r"__\d+(?::\d+)?$")
_TRACE = re.compile(r"(?<=.)_1$")


def is_generated(name: str) -> bool:
    """Whether tf2onnx made the name up (`Conv__66`): it then holds nothing but a counter."""
    return not name or _GENERATED.match(name) is not None


def cleaned(name: str) -> str:
    """The name without function-call scopes, tf2onnx's counters and TensorFlow's `:0`."""
    name = _COUNTER.sub("", re.sub(r":\d+$", "", name))
    return "/".join(part for part in name.split("/") if part and not _CALL.match(part))


def is_added(name: str) -> bool:
    """Whether tf2onnx added the node beside the one it is named after (`flatten/Reshape__51`)."""
    return _ADDED.search(name) is not None


class LayerNames:
    """Scopes as the source model names them.

    A scope that all nodes share (the model's own name) is dropped. Keras runs a model twice while exporting it, and
    TensorFlow marks the scopes of the second run with `_1`: where every scope of one parent has it, it goes. Both are
    decided on all node names of a model at once, so that distinct scopes stay distinct.
    """

    def __init__(self, nodes: Iterable[str]) -> None:
        paths = [cleaned(name).split("/") for name in nodes if not is_generated(name)]
        children: dict[tuple[str, ...], set[str]] = {}
        for path in paths:
            for depth, part in enumerate(path[:-1]):
                children.setdefault(tuple(path[:depth]), set()).add(part)
        self._marked = {parent for parent, parts in children.items() if all(map(_TRACE.search, parts))}
        shared = len({path[0] for path in paths}) == 1 and all(len(path) > 1 for path in paths)
        self._common = paths[0][0] if shared else None

    def name(self, source: str) -> str:
        """The restored name of a node or constant that tf2onnx did not make up."""
        path = cleaned(source).split("/")
        parts = [
            _TRACE.sub("", part) if depth < len(path) - 1 and tuple(path[:depth]) in self._marked else part
            for depth, part in enumerate(path)
        ]
        return "/".join(parts[1:] if len(parts) > 1 and path[0] == self._common else parts)


class Unique:
    """Hands out names, each once: the wanted one, else with the first free number."""

    def __init__(self, reserved: Iterable[str] = ()) -> None:
        self._used = set(reserved)
        self._next: dict[str, int] = {}

    def claim(self, wanted: str) -> str:
        """`wanted`, `wanted_1`, `wanted_2`, ..."""
        name = wanted
        while name in self._used:
            number = self._next[wanted] = self._next.get(wanted, 0) + 1
            name = f"{wanted}_{number}"
        self._used.add(name)
        return name


def rename_interface(model: ModelProto, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> None:
    """Give graph inputs (present name → wanted name) and outputs (wanted name → present name) their names.

    The order of `outputs` becomes the graph's. A tensor that is an output twice, or an input too, gets an Identity;
    one inside that holds a wanted name is renamed out of the way.
    """
    graph = model.graph
    produced = {name for node in graph.node for name in node.output}
    present = tensor_names(graph)
    moves, copies = dict(inputs), {}
    for wanted, source in outputs.items():
        if source in produced and source not in moves:
            moves[source] = wanted
        else:
            copies[wanted] = source
    wanted_names = set(inputs.values()) | set(outputs)
    unique = Unique(wanted_names | present)
    moves.update({name: unique.claim(name) for name in sorted((wanted_names & present) - set(moves))})
    types = {value.name: value.type for value in (*graph.input, *graph.output)}
    values = [onnx.helper.make_value_info(wanted, types[source]) for wanted, source in outputs.items()]
    _rename_tensors(model, moves)
    for wanted, source in copies.items():
        graph.node.append(onnx.helper.make_node("Identity", [moves.get(source, source)], [wanted], name=wanted))
    reset(graph.output, values)


def _rename_tensors(model: ModelProto, names: Mapping[str, str]) -> None:
    for graph in all_graphs(model.graph):
        for value in (*graph.input, *graph.output, *graph.initializer, *graph.value_info):
            value.name = names.get(value.name, value.name)
        for node in graph.node:
            for field in (node.input, node.output):
                for index, name in enumerate(field):
                    if name in names:
                        field[index] = names[name]
