"""Identity nodes in one form: none inside a graph, and before outputs only where there is no other way."""

from __future__ import annotations

from onnx import GraphProto, ModelProto, NodeProto, helper

from trtrecipe.graphs.edit import all_graphs, replace_uses, reset, tensor_names
from trtrecipe.graphs.names import Unique


def level_identities(model: ModelProto) -> None:
    """Bypass every Identity, in bodies too, in place; tf2onnx leaves them in places that vary from run to run.

    Where several outputs are one tensor, the first is made by the node itself and the others by an Identity each; so is
    an output of a body that comes from outside it or from a constant.
    """
    for graph in all_graphs(model.graph):
        _level(graph, graph is model.graph)


def _level(graph: GraphProto, outermost: bool) -> None:
    passed = {node.output[0]: node.input[0] for node in graph.node if _is_identity(node)}
    sources = {name: _source(name, passed) for name in passed}
    reset(graph.node, [node for node in graph.node if not _is_identity(node)])
    replace_uses(graph, sources)
    produced = {name for node in graph.node for name in node.output}
    direct = produced if outermost else produced | {value.name for value in graph.input}
    made: dict[str, str] = {}  # tensor → the output that it is from now on
    copies: dict[str, str] = {}
    unique = Unique(tensor_names(graph))
    for value in graph.output:
        source = sources.get(value.name, value.name)
        if source not in direct or source in made:
            if not outermost:  # the name is nobody's interface, and may be the first's
                value.name = unique.claim(value.name)
            copies[value.name] = source
            continue
        if source not in produced:  # a body may give back its input under the input's name
            made[source] = value.name = source
        else:
            made[source] = value.name
    for node in graph.node:
        reset(node.output, [made.get(name, name) for name in node.output])
    replace_uses(graph, made)
    for name, source in copies.items():
        graph.node.append(helper.make_node("Identity", [made.get(source, source)], [name]))


def _is_identity(node: NodeProto) -> bool:
    return node.op_type == "Identity" and not node.domain


def _source(name: str, passed: dict[str, str]) -> str:
    while name in passed:
        name = passed[name]
    return name
