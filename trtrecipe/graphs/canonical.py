"""One form for one graph: what differs only in order, counters or bookkeeping becomes the same bytes.

tf2onnx numbers what it creates with a counter and lists constants in no fixed order, so its output differs between two
runs. Here the order comes from the structure alone: nodes as a walk from the outputs meets them, constants as the
nodes need them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from trtrecipe.errors import StepError
from trtrecipe.graphs import values
from trtrecipe.graphs.edit import (
    DEFAULT_DOMAINS,
    all_graphs,
    all_nodes,
    all_tensors,
    captured,
    consumers,
    replace_uses,
    reset,
    subgraphs,
    uses,
)
from trtrecipe.graphs.files import opset
from trtrecipe.graphs.identities import level_identities
from trtrecipe.graphs.names import LayerNames, Unique, is_added, is_generated

GRAPH_NAME = "model"
_DIGESTED = 4096  # bytes of a constant beyond which its digest stands for it while equal ones are looked for


def canonical(model: ModelProto, rename: bool = False) -> ModelProto:
    """The model in canonical form; `model` itself stays as it is.

    Dead nodes and constants go, equal constants become one, Constant nodes become initializers. With `rename`
    (exports from TensorFlow) Identity nodes go too, and names inside are derived from the layers'; without, given names
    stay and only missing or repeated node names are filled in. Raises StepError for a graph with a cycle.
    """
    if rename:
        return renamed(model).model
    result = ModelProto()
    result.CopyFrom(model)
    _strip(result)
    _arrange(result.graph)
    name_nodes(result.graph)
    _stamp(result)
    return result


@dataclass(frozen=True)
class Renamed:
    """`constants`: node of the main graph → the names that the constants had which it alone reads.

    `layers`: how names were restored.
    """

    model: ModelProto
    constants: Mapping[str, tuple[str, ...]]
    layers: LayerNames


def renamed(model: ModelProto) -> Renamed:
    """`canonical` with `rename`, and what the former names tell."""
    result = ModelProto()
    result.CopyFrom(model)
    _strip(result)
    level_identities(result)
    _arrange(result.graph)
    own = _own_constants(result.graph)
    renamer = _Renamer(result)
    renamer.run()
    constants = {node.name: names for node, names in zip(result.graph.node, own, strict=True)}
    _stamp(result)
    return Renamed(result, constants, renamer.layers)


def _own_constants(graph: GraphProto) -> list[tuple[str, ...]]:
    """For each node the constants that it alone reads."""
    readers = consumers(graph)
    constants = {tensor.name for tensor in graph.initializer}
    return [tuple(name for name in node.input if name in constants and len(readers[name]) == 1) for node in graph.node]


def _strip(model: ModelProto) -> None:
    """Remove what says nothing about the computation."""
    for field in ("producer_name", "producer_version", "domain", "model_version", "doc_string", "metadata_props"):
        model.ClearField(field)
    del model.training_info[:]
    for graph in all_graphs(model.graph):
        for field in ("doc_string", "value_info", "quantization_annotation", "metadata_props"):
            _clear(graph, field)
        constant = {tensor.name for tensor in graph.initializer}
        reset(graph.input, [value for value in graph.input if value.name not in constant])
        for value in (*graph.input, *graph.output):
            for field in ("doc_string", "metadata_props"):
                _clear(value, field)
        for node in graph.node:
            _strip_node(node)
        _lift_constants(graph)
    for tensor in all_tensors(model.graph):
        _plain(tensor)


def _strip_node(node: NodeProto) -> None:
    for field in ("doc_string", "metadata_props"):
        _clear(node, field)
    if node.domain in DEFAULT_DOMAINS:
        node.ClearField("domain")
    reset(node.attribute, sorted(node.attribute, key=lambda attribute: attribute.name))
    for attribute in node.attribute:
        attribute.ClearField("doc_string")
        for tensor in (*((attribute.t,) if attribute.type == AttributeProto.TENSOR else ()), *attribute.tensors):
            tensor.ClearField("name")
    for names in (node.input, node.output):
        while names and not names[-1]:
            names.pop()


def _clear(message: onnx.GraphProto | NodeProto | onnx.ValueInfoProto, field: str) -> None:
    if field in message.DESCRIPTOR.fields_by_name:  # metadata_props came with onnx 1.16
        message.ClearField(field)


def _plain(tensor: TensorProto) -> None:
    """The same tensor with its values as raw little-endian bytes (strings excepted) and no remarks."""
    name, dims = tensor.name, list(tensor.dims)
    outside = values.is_outside(tensor)
    if outside:
        values.put(tensor, values.place(tensor))  # and nothing else
    elif tensor.data_type != TensorProto.STRING and not tensor.HasField("raw_data"):
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)))
    fields = ("doc_string", "metadata_props", *(() if outside else ("data_location", "external_data")))
    for field in fields:
        if field in tensor.DESCRIPTOR.fields_by_name:
            tensor.ClearField(field)
    reset(tensor.dims, dims)
    tensor.name = name
    if not name:
        tensor.ClearField("name")


_CONSTANT_KINDS = {"value_float", "value_floats", "value_int", "value_ints"}


def _lift_constants(graph: GraphProto) -> None:
    """Constant nodes become initializers, except those of strings and sparse tensors."""
    kept = []
    for node in graph.node:
        tensor = _constant(node) if node.op_type == "Constant" and not node.domain else None
        if tensor is None:
            kept.append(node)
        else:
            tensor.name = node.output[0]
            graph.initializer.append(tensor)
    if len(kept) < len(graph.node):
        reset(graph.node, kept)


def _constant(node: NodeProto) -> TensorProto | None:
    if len(node.attribute) != 1:
        return None
    attribute = node.attribute[0]
    if attribute.name == "value":
        tensor = TensorProto()
        tensor.CopyFrom(attribute.t)
        return tensor
    if attribute.name not in _CONSTANT_KINDS:
        return None
    value = helper.get_attribute_value(attribute)
    kind = TensorProto.FLOAT if "float" in attribute.name else TensorProto.INT64
    many = attribute.name.endswith("s")
    return helper.make_tensor("", kind, [len(value)] if many else [], list(value) if many else [value])


def _arrange(graph: GraphProto) -> None:
    """Order nodes and initializers by structure, merge equal initializers, drop what no output needs."""
    for node in graph.node:
        for name, inner in subgraphs(node):
            _arrange(inner)
            inner.name = name
    reset(graph.node, [graph.node[index] for index in _order(graph)])
    _merge(graph)


def _order(graph: GraphProto) -> list[int]:
    """Positions of the nodes that the outputs need, each after what it reads, as a depth-first walk meets them."""
    producer = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    done: dict[int, bool] = {}  # False while the walk is inside the node
    order: list[int] = []
    for value in graph.output:
        stack = _enter(graph, value.name, producer, done)
        while stack:
            index, names = stack[-1]
            for name in names:
                further = _enter(graph, name, producer, done)
                if further:
                    stack.extend(further)
                    break
            else:
                stack.pop()
                done[index] = True
                order.append(index)
    return order


def _enter(
    graph: GraphProto, name: str, producer: dict[str, int], done: dict[int, bool]
) -> list[tuple[int, Iterator[str]]]:
    index = producer.get(name)
    if index is None or done.get(index):
        return []
    if index in done:
        raise StepError(f"the graph has a cycle through {name}", hint="export the model again")
    done[index] = False
    return [(index, iter(uses(graph.node[index])))]


def _merge(graph: GraphProto) -> None:
    """Keep the initializers that are used, in order of first use; of equal ones the first."""
    held = {tensor.name: tensor for tensor in graph.initializer}
    outputs = [value.name for value in graph.output if value.name in held]
    first: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    kept: dict[str, None] = {}
    merged: dict[str, str] = {}
    for node in graph.node:
        for name in uses(node):
            if name not in held or name in kept or name in merged:
                continue
            if name in outputs:  # its name is part of the interface
                kept[name] = None
                continue
            known = first.setdefault(_content(held[name]), name)
            if known == name:
                kept[name] = None
            else:
                merged[name] = known
    kept.update(dict.fromkeys(outputs))
    replace_uses(graph, merged)
    reset(graph.initializer, [held[name] for name in kept])


def _content(tensor: TensorProto) -> tuple[int, tuple[int, ...], bytes]:
    if values.is_outside(tensor):
        data: bytes | memoryview = values.content(tensor)
    else:
        data = tensor.raw_data if tensor.HasField("raw_data") else b"\0".join(tensor.string_data)
    digest = hashlib.sha256(data).digest() if len(data) > _DIGESTED else bytes(data)
    return tensor.data_type, tuple(tensor.dims), digest


def name_nodes(graph: GraphProto) -> None:
    """Fill in missing node names and change repeated ones, in place, in the bodies too."""
    unique = Unique()
    for node in all_nodes(graph):
        node.name = unique.claim(node.name or next((name for name in node.output if name), node.op_type))


class _Renamer:
    """New names for every node and tensor except graph inputs and outputs."""

    def __init__(self, model: ModelProto) -> None:
        self._graph = model.graph
        self._opset = opset(model)
        interface = {value.name for value in (*model.graph.input, *model.graph.output)}
        self.layers = LayerNames(node.name for node in model.graph.node)
        self._nodes = Unique()
        self._tensors = Unique(interface)
        self._fixed = {name: name for name in interface}

    def run(self) -> None:
        """Rename in place."""
        self._graph.name = GRAPH_NAME
        self._rename(self._graph, dict(self._fixed), None)

    def _rename(self, graph: GraphProto, names: dict[str, str], owner: str | None) -> None:
        """`names`: present → new, of what the graph can see; extended with its own.

        In a body, `owner` says whose: names there vary between two runs of tf2onnx and are no layers', so they are made
        from the owner and the operator.
        """
        readers = consumers(graph)
        constants = {tensor.name: tensor for tensor in graph.initializer}
        anchors: dict[str, str] = {}  # tensor → the nearest node before it whose name means something
        for node in graph.node:
            wanted, anchor = self._node_name(node, constants, readers, anchors, names)
            node.name = self._nodes.claim(f"{owner}/{node.op_type}" if owner else wanted)
            for position, name in enumerate(node.input):
                if name in constants and name not in names:
                    names[name] = self._tensors.claim(f"{node.name}/{_formal(node, position, self._opset)}")
            for name in captured_by(node):
                if name in constants and name not in names:
                    names[name] = self._tensors.claim(f"{node.name}/constant")
            for position, name in enumerate(node.output):
                if name:
                    anchors[name] = anchor or node.name
                    if name not in names:
                        names[name] = self._tensors.claim(f"{node.name}:{position}" if position else node.name)
            for attribute, inner in subgraphs(node):
                self._rename_inner(inner, f"{node.name}/{attribute}", dict(names))
            reset(node.input, [names.get(name, name) for name in node.input])
            reset(node.output, [names.get(name, name) for name in node.output])
        for value in (*graph.input, *graph.output, *graph.initializer):
            value.name = names.get(value.name, value.name)

    def _rename_inner(self, graph: GraphProto, owner: str, names: dict[str, str]) -> None:
        for position, value in enumerate(graph.input):
            names[value.name] = self._tensors.claim(f"{owner}/input_{position}")
        for value in (*graph.input, *graph.output):
            for dim in value.type.tensor_type.shape.dim if value.type.HasField("tensor_type") else ():
                if dim.WhichOneof("value") == "dim_param":  # numbered by tf2onnx, of use to nobody
                    dim.ClearField("dim_param")
        for tensor in graph.initializer:  # one that no node reads is an output of the body
            if tensor.name in {value.name for value in graph.output} and tensor.name not in consumers(graph):
                names[tensor.name] = self._tensors.claim(f"{owner}/constant")
        self._rename(graph, names, owner)

    def _node_name(
        self,
        node: NodeProto,
        constants: dict[str, TensorProto],
        readers: dict[str, list[NodeProto]],
        anchors: dict[str, str],
        names: dict[str, str],
    ) -> tuple[str, str | None]:
        """The wanted name, and the name it leans on where tf2onnx gave the node none."""
        if not is_generated(node.name):
            name = self.layers.name(node.name)
            return (f"{name}/{node.op_type}" if is_added(node.name) else name), None
        # A constant that only this node reads tells the layer: tf2onnx names the Conv it fuses `Conv__66`, its weights
        # by the layer still.
        for name in node.input:
            if name in constants and len(readers[name]) == 1 and "/" in name and not is_generated(name):
                scope = self.layers.name(name).rpartition("/")[0]
                if scope:
                    return scope, None
        for name in node.input:
            if name and name not in constants:
                anchor = anchors.get(name) or names.get(name, name)
                return f"{anchor}/{node.op_type}", anchor
        return node.op_type, None


def captured_by(node: NodeProto) -> list[str]:
    """Names that the graphs in the node take from outside it."""
    return [name for _, inner in subgraphs(node) for name in captured(inner)]


def _formal(node: NodeProto, position: int, version: int) -> str:
    """What the operator calls its input at `position`: W, B, shape; numbered where it takes any number of them."""
    if not onnx.defs.has(node.op_type, node.domain):
        return f"input_{position}"
    try:
        formals = onnx.defs.get_schema(node.op_type, version if not node.domain else 1 << 20, node.domain).inputs
    except onnx.defs.SchemaError:
        return f"input_{position}"
    if position < len(formals) - 1 or (
        position < len(formals) and formals[position].option != onnx.defs.OpSchema.FormalParameterOption.Variadic
    ):
        return str(formals[position].name)
    return f"{formals[-1].name}_{position}" if formals else f"input_{position}"


def _stamp(model: ModelProto) -> None:
    """Only the operator sets in use, sorted, and the oldest file format that has them."""
    version = opset(model)
    used = {node.domain for node in all_nodes(model.graph)} | {""}
    other = {entry.domain: entry.version for entry in model.opset_import if entry.domain not in DEFAULT_DOMAINS}
    versions = {"": version} | {domain: other[domain] for domain in sorted(used & other.keys())}
    reset(model.opset_import, [helper.make_opsetid(domain, number) for domain, number in versions.items()])
    model.graph.name = GRAPH_NAME
    model.ir_version = max(4, helper.find_min_ir_version_for(list(model.opset_import), ignore_unknown=True))
