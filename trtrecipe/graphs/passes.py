"""Simplification: small rewrites, each of which leaves what the graph computes as it is."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from onnx import ModelProto, NodeProto, TensorProto, defs

from trtrecipe.graphs.canonical import canonical
from trtrecipe.graphs.dimensions import name_dimensions
from trtrecipe.graphs.edit import all_graphs, attribute, remove_nodes, replace_uses, reset, subgraphs, uses
from trtrecipe.graphs.files import opset
from trtrecipe.graphs.fold_constants import RANDOM, fold_constants
from trtrecipe.graphs.fold_convolutions import fold_affine, fold_batch_normalizations
from trtrecipe.graphs.pooling import pool_means
from trtrecipe.graphs.shapes import infer
from trtrecipe.graphs.states import drop_zero_states
from trtrecipe.graphs.symbolic import fold_shapes
from trtrecipe.graphs.transposes import merge_transposes, move_transposes
from trtrecipe.graphs.values import array_of


@dataclass(frozen=True)
class Pass:
    """`apply` changes the model in place and says whether it did; `does` completes "the pass ...".

    `name` is the one by which a recipe turns the pass off.
    """

    name: str
    does: str
    apply: Callable[[ModelProto], bool]


def simplify(model: ModelProto, without: Collection[str] = ()) -> ModelProto:
    """What `simplified` gives, without the names."""
    return simplified(model, without)[0]


def simplified(model: ModelProto, without: Collection[str] = ()) -> tuple[ModelProto, list[str]]:
    """The model after all passes, repeated until none finds anything, in canonical form; and those that did.

    Names that survive stay. `without`: names of passes that are left out.
    """
    result = canonical(model)
    applied: dict[str, None] = {}
    while changed := [each.name for each in PASSES if each.name not in without and each.apply(result)]:
        applied.update(dict.fromkeys(changed))
        result = canonical(result)  # drops what is no longer used, so that the passes count readers rightly
    return result, [each.name for each in PASSES if each.name in applied]


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
    return mode is not None and not array_of(mode).any()


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


def drop_unused_outputs(model: ModelProto) -> bool:
    """Leave out, in place, last outputs that nobody reads and the operator may leave out; whether there were any.

    Parsers refuse some for being there: the indices of a MaxPool, the mean of a LayerNormalization.
    """
    changed = False
    for graph in all_graphs(model.graph):
        read = {value.name for value in graph.output}.union(*(uses(node) for node in graph.node))
        for node in graph.node:
            if node.domain or len(node.output) < 2 or node.output[-1] in read:
                continue
            optional = _optional_outputs(node, opset(model))
            while len(node.output) > 1 and node.output[-1] not in read and len(node.output) - 1 in optional:
                del node.output[-1]
                changed = True
    return changed


def _optional_outputs(node: NodeProto, version: int) -> set[int]:
    formals = defs.get_schema(node.op_type, version, "").outputs
    return {
        index for index, formal in enumerate(formals) if formal.option == defs.OpSchema.FormalParameterOption.Optional
    }


PASSES: tuple[Pass, ...] = (
    Pass(
        "identities",
        "removes Identity, Dropout, Casts to the same type, Transposes that move nothing",
        drop_identities,
    ),
    Pass("unused-outputs", "leaves out optional outputs that nobody reads", drop_unused_outputs),
    Pass("merge-transposes", "makes one Transpose of two in a row", merge_transposes),
    Pass("move-transposes", "moves Transposes through what works on any layout, where fewer are left", move_transposes),
    Pass("duplicates", "makes one node of several that compute the same", merge_duplicates),
    Pass("constants", "computes now what follows from constants alone", fold_constants),
    Pass("shapes", "computes now what follows from shapes that are known", fold_shapes),
    Pass("batch-normalizations", "puts a BatchNormalization into the convolution before it", fold_batch_normalizations),
    Pass("affine", "puts scales and shifts by constants into the convolution before them", fold_affine),
    Pass("zero-states", "leaves out initial states of recurrent layers that are zeros", drop_zero_states),
    Pass("mean-to-pool", "makes a ReduceMean over all image axes a GlobalAveragePool", pool_means),
    Pass(
        "dimensions",
        "names open axes of outputs that have the size of a named axis of an input",
        name_dimensions,
    ),
)
"""In the order in which they run."""
