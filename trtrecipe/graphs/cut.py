"""Where a graph ends: at tensors that the recipe names, and without what they do not need."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from onnx import GraphProto, ModelProto, ValueInfoProto

from trtrecipe.errors import StepError
from trtrecipe.graphs.edit import consumers, reset, uses
from trtrecipe.graphs.layers import scopes
from trtrecipe.graphs.names import rename_interface
from trtrecipe.graphs.shapes import infer
from trtrecipe.graphs.sound import LISTED


@dataclass(frozen=True)
class Cut:
    """`inner`: those of the new outputs that were none before. `dropped`: inputs that no output needs any more."""

    model: ModelProto
    inner: tuple[str, ...]
    dropped: tuple[str, ...]


def cut(model: ModelProto, names: Sequence[str]) -> Cut:
    """The graph whose outputs are what `names` says, in that order and called so; `model` stays as it is.

    A name is that of an output, a tensor, a node (its first output) or a layer (the tensor that leaves it), looked for
    in this order. Raises StepError for a name that is none of these, or means several tensors, an input or a constant.
    """
    tensors = {name: _tensor(model, name) for name in names}
    types = _types(model)
    result = ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    before = {value.name for value in graph.output}
    reset(graph.output, [_value(tensor, name, types) for name, tensor in tensors.items()])
    rename_interface(result, {}, tensors)
    needed = drop_dead(graph)
    constant = {tensor.name for tensor in graph.initializer}
    dropped = [value.name for value in graph.input if value.name not in needed | constant]
    reset(graph.input, [value for value in graph.input if value.name not in dropped])
    return Cut(result, tuple(name for name, tensor in tensors.items() if tensor not in before), tuple(dropped))


def drop_dead(graph: GraphProto) -> set[str]:
    """Remove the nodes that no output needs, in place; every tensor that the outputs are computed from."""
    makers = {name: node for node in graph.node for name in node.output if name}
    needed: set[str] = set()
    pending = [value.name for value in graph.output]
    while pending:
        name = pending.pop()
        if name and name not in needed:
            needed.add(name)
            if name in makers:
                pending += uses(makers[name])
    reset(graph.node, [node for node in graph.node if needed.intersection(node.output)])
    return needed


def note_dropped(names: Iterable[str]) -> list[str]:
    """What to say of inputs that went."""
    return [f"input {name} is not needed by model.outputs and is no input of the graph" for name in names]


def leaving(tensors: Mapping[str, str], readers: Mapping[str, Collection[str]], layer: str) -> list[str]:
    """The tensors that leave a layer. `tensors`: name → the node that makes it; `readers`: tensor → its readers."""
    within = {name: node for name, node in tensors.items() if layer in scopes(node)}
    inside = set(within.values())
    return [name for name in within if not readers.get(name) or not inside.issuperset(readers[name])]


def one_of(name: str, found: Sequence[str]) -> str:
    """The only one of the tensors that leave the layer `name`. Raises StepError for several."""
    if len(found) == 1:
        return found[0]
    raise StepError(
        f"model.outputs names the layer {name}, which {len(found) or 'no'} tensors leave",
        hint=f"name {'one of them' if found else 'a layer that computes something'}: {some(found)}",
    )


def unknown(name: str, known: Iterable[str], outputs: Iterable[str]) -> StepError:
    """The error for a name that the graph has not."""
    near = get_close_matches(name, list(dict.fromkeys(known)), n=3)
    meant = f"did you mean {' or '.join(near)}? " if near else ""
    return StepError(
        f"model.outputs names {name}, and the model has no output, tensor, node or layer of that name",
        hint=f"{meant}the model's outputs are: {some(list(outputs))}",
    )


def some(names: Sequence[str]) -> str:
    """The names, the first few where there are many."""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more or "none"


def _tensor(model: ModelProto, name: str) -> str:
    graph = model.graph
    made = {tensor: node.name for node in graph.node for tensor in node.output if tensor}
    outputs = [value.name for value in graph.output]
    if name in made:
        return name
    if name in {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}:
        raise StepError(
            f"model.outputs names {name}, which the graph does not compute: it is an input or a constant",
            hint=f"the model's outputs are: {some(outputs)}",
        )
    named = [node for node in graph.node if node.name == name]
    if named:
        return str(next(tensor for tensor in named[0].output if tensor))
    if any(name in scopes(node.name) for node in graph.node):
        readers = {tensor: {node.name for node in nodes} for tensor, nodes in consumers(graph).items()}
        return one_of(name, leaving(made, readers, name))
    layers = [scope for node in graph.node for scope in scopes(node.name)]
    raise unknown(name, [*outputs, *made, *(node.name for node in graph.node), *layers], outputs)


def _types(model: ModelProto) -> Mapping[str, ValueInfoProto]:
    graph = infer(model).graph
    return {value.name: value for value in (*graph.value_info, *graph.output)}


def _value(tensor: str, name: str, types: Mapping[str, ValueInfoProto]) -> ValueInfoProto:
    if tensor not in types:
        raise StepError(
            f"the type of {name} is not known, so that it cannot be an output", "name another in model.outputs"
        )
    return types[tensor]
