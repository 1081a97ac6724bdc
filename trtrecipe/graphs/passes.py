"""Simplification: small rewrites, each of which leaves what the graph computes as it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from trtrecipe.graphs.canonical import canonical
from trtrecipe.graphs.edit import attribute, remove_nodes, replace_uses, reset, subgraphs
from trtrecipe.graphs.fold_constants import RANDOM, fold_constants
from trtrecipe.graphs.fold_convolutions import fold_affine, fold_batch_normalizations
from trtrecipe.graphs.shapes import infer
from trtrecipe.graphs.symbolic import fold_shapes

Pass = Callable[[ModelProto], bool]
"""Changes the model in place; says whether it did."""


def simplify(model: ModelProto) -> ModelProto:
    """The model after all passes, repeated until none finds anything, in canonical form. Names that survive stay."""
    result = canonical(model)
    while _apply_all(result):
        result = canonical(result)  # drops what is no longer used, so that the passes count readers rightly
    return result


def _apply_all(model: ModelProto) -> bool:
    changed = False
    for apply in PASSES:
        changed = apply(model) or changed
    return changed


def drop_identities(model: ModelProto) -> bool:
    """Remove nodes that pass their input on: Identity, Dropout, Cast to the same type, Transpose that moves nothing."""
    graph = model.graph
    types = _types(model)
    constants = {tensor.name: tensor for tensor in graph.initializer}
    outputs = {value.name for value in graph.output}
    replaced: dict[str, str] = {}
    gone = []
    for index, node in enumerate(graph.node):
        if _passes_on(node, types, constants):
            source, name = node.input[0], node.output[0]
            if name not in outputs:
                replaced[name] = replaced.get(source, source)
                gone.append(index)
    remove_nodes(graph, gone)
    replace_uses(graph, replaced)
    return _drop_before_outputs(model, types) or bool(gone)


def _drop_before_outputs(model: ModelProto, types: dict[str, int]) -> bool:
    """The same for nodes that make a graph output: the node before takes over the output's name."""
    graph = model.graph
    outputs = {value.name for value in graph.output}
    producers = {name: node for node in graph.node for name in node.output}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    gone: list[int] = []
    renamed: dict[str, str] = {}
    for index, node in enumerate(graph.node):
        name = node.output[0]
        if name not in outputs or not _passes_on(node, types, constants):
            continue
        source = node.input[0]
        if source in producers and source not in outputs and source not in renamed:
            renamed[source] = name
            gone.append(index)
    for source, name in renamed.items():
        maker = producers[source]
        reset(maker.output, [name if each == source else each for each in maker.output])
    remove_nodes(graph, gone)
    replace_uses(graph, renamed)
    return bool(gone)


def _types(model: ModelProto) -> dict[str, int]:
    graph = infer(model).graph
    values = (*graph.input, *graph.value_info, *graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    types.update({tensor.name: tensor.data_type for tensor in graph.initializer})
    return types


def _passes_on(node: NodeProto, types: dict[str, int], constants: Mapping[str, TensorProto]) -> bool:
    if node.domain:
        return False
    if node.op_type == "Identity":
        return True
    if node.op_type == "Cast":
        return bool(types.get(node.input[0], 0) == attribute(node, "to"))
    if node.op_type == "Transpose":
        perm = attribute(node, "perm")
        return perm is not None and list(perm) == sorted(perm)
    if node.op_type == "Dropout" and not any(node.output[1:]):
        return _infers(node, constants)
    return False


def _infers(node: NodeProto, constants: Mapping[str, TensorProto]) -> bool:
    """Whether the Dropout is known not to drop anything."""
    if len(node.input) < 3 or not node.input[2]:
        return True
    mode = constants.get(node.input[2])
    return mode is not None and not numpy_helper.to_array(mode).any()


def merge_transposes(model: ModelProto) -> bool:
    """Make one Transpose of two in a row, in place; whether there were any. The first stays if others read it."""
    graph = model.graph
    producers = {name: node for node in graph.node for name in node.output}
    changed = False
    for node in graph.node:
        if node.op_type != "Transpose" or node.domain:
            continue
        first = producers.get(node.input[0])
        if first is None or first.op_type != "Transpose" or first.domain:
            continue
        inner, outer = attribute(first, "perm"), attribute(node, "perm")
        if inner is None or outer is None:
            continue
        node.input[0] = first.input[0]
        reset(node.attribute, [helper.make_attribute("perm", [inner[axis] for axis in outer])])
        changed = True
    return changed


def merge_duplicates(model: ModelProto) -> bool:
    """Make one node of several that compute the same of the same, in place; whether there were any.

    The first stays. Nodes with bodies, of random numbers, and those that make a graph output are left alone.
    """
    graph = model.graph
    outputs = {value.name for value in graph.output}
    first: dict[tuple[object, ...], NodeProto] = {}
    replaced: dict[str, str] = {}
    gone = []
    for index, node in enumerate(graph.node):
        if any(subgraphs(node)) or node.op_type in RANDOM or outputs.intersection(node.output):
            continue
        inputs = tuple(replaced.get(name, name) for name in node.input)
        attributes = tuple(each.SerializeToString(deterministic=True) for each in node.attribute)
        present = tuple(bool(name) for name in node.output)
        kept = first.setdefault((node.op_type, node.domain, inputs, attributes, present), node)
        if kept is not node:
            replaced.update(zip(node.output, kept.output, strict=True))
            gone.append(index)
    remove_nodes(graph, gone)
    replaced.pop("", None)
    replace_uses(graph, replaced)
    return bool(gone)


PASSES: tuple[Pass, ...] = (
    drop_identities,
    merge_transposes,
    merge_duplicates,
    fold_constants,
    fold_shapes,
    fold_batch_normalizations,
    fold_affine,
)
"""In the order in which they run."""
