"""Operator sets: writing a graph in an older one, and what makes that impossible."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx.inliner
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.defs import OpSchema

from trtrecipe.errors import StepError
from trtrecipe.graphs.canonical import canonical
from trtrecipe.graphs.edit import DEFAULT_DOMAINS, all_graphs, all_nodes, attribute, reset, tensor_names
from trtrecipe.graphs.files import opset
from trtrecipe.graphs.known import Known, known
from trtrecipe.graphs.light import light, make_constant
from trtrecipe.graphs.names import Unique
from trtrecipe.graphs.shapes import infer
from trtrecipe.graphs.sound import listed

_NEWER_VALUES = {
    ("Pad", "mode", b"wrap"): 19,
    ("Resize", "coordinate_transformation_mode", b"half_pixel_symmetric"): 19,
    ("ScatterElements", "reduction", b"max"): 18,
    ("ScatterElements", "reduction", b"min"): 18,
    ("ScatterND", "reduction", b"max"): 18,
    ("ScatterND", "reduction", b"min"): 18,
    ("GridSample", "mode", b"linear"): 20,
    ("GridSample", "mode", b"cubic"): 20,
}
"""(operator, attribute, value) → the opset that brought the value: schemas list attributes, not their values."""

_FORMER_VALUES: Mapping[tuple[str, str], Any] = {
    ("RoiAlign", "coordinate_transformation_mode"): b"output_half_pixel",
}
"""(operator, attribute) → the value that means what was done before the attribute came, where it is not the default."""

_FORMER_MODES = {b"linear": b"bilinear", b"cubic": b"bicubic"}
"""GridSample's modes → what they were called while it took images alone, before opset 20."""

_FUNCTIONS = frozenset(["Attention", "RMSNormalization", "RotaryEmbedding", "Swish"])
"""Operators that are newer than what most runtimes take, and that ONNX itself defines by others."""

_NEW_MEANING = {"GroupNormalization": 21}
"""Operator → the opset that changed what the same node computes."""


@dataclass(frozen=True)
class Obstacle:
    """A node that cannot be written in the older opset, and why."""

    operator: str
    node: str
    reason: str


@dataclass
class _Context:
    """Where the graph goes, what is known of it, and the constants that rewriting adds to the main graph."""

    version: int
    known: Known
    unique: Unique
    constants: list[TensorProto] = field(default_factory=list)

    def constant(self, value: Any, kind: int, wanted: str) -> str:
        """The name of a new constant of that element type."""
        name = self.unique.claim(wanted)
        array = np.asarray(value, helper.tensor_dtype_to_np_dtype(kind))
        self.constants.append(numpy_helper.from_array(array, name))
        return name


def to_opset(model: ModelProto, version: int) -> ModelProto:
    """The model at that version of the default operator set, or as it is where it is there already.

    Raises StepError that names every obstacle of `lower_opset`.
    """
    result, obstacles = lower_opset(model, version)
    if obstacles:
        raise StepError(
            f"the graph is written in opset {opset(model)}, this target takes {version} at most, and these nodes "
            "cannot be rewritten:\n" + listed([f"{each.operator} {each.node}: {each.reason}" for each in obstacles]),
            hint=f"export the model at opset {max(version, 13)} (model.opset in the recipe), or leave this target out",
        )
    return result


def lower_opset(model: ModelProto, version: int) -> tuple[ModelProto, list[Obstacle]]:
    """The model at that version, or as it is where it is there already or something is in the way; what is.

    A node is kept where its operator at the older version has the same inputs, outputs and types, and lacks only
    attributes that change nothing here; a few are written otherwise. Names stay.
    """
    present = opset(model)
    if present <= version:
        return model, []
    written_out = _without_functions(model, version)
    result, obstacles = _lowered(model if written_out is None else written_out, version)
    if obstacles and written_out is not None:  # named by what the model says, and not by what is behind it
        _, obstacles = _lowered(model, version)
    return (model, obstacles) if obstacles else (canonical(result), [])


def _lowered(model: ModelProto, version: int) -> tuple[ModelProto, list[Obstacle]]:
    """A copy of the model at that version, of no use where something is in the way; what is."""
    present = opset(model)
    result = ModelProto()
    result.CopyFrom(model)
    names = tensor_names(result.graph) | {node.name for node in all_nodes(result.graph)}
    context = _Context(version, known(result), Unique(names))
    inner_first = reversed(list(all_graphs(result.graph)))  # what an outer graph is written with is a copy
    obstacles = [each for graph in inner_first for each in _lower(graph, present, context)]
    result.graph.initializer.extend(context.constants)
    for entry in result.opset_import:
        if entry.domain in DEFAULT_DOMAINS:
            entry.version = version
    return result, obstacles


def _without_functions(model: ModelProto, version: int) -> ModelProto | None:
    """A copy in which those of _FUNCTIONS that the older version lacks are written with the operators behind them.

    None where there are none.
    """
    newer = {node.op_type for node in all_nodes(model.graph) if not node.domain} & _FUNCTIONS
    wanted = [("", operator) for operator in sorted(newer) if _came(operator) > version]
    if not wanted:
        return None
    slim, large = light(model)
    slim = infer(slim)
    types = {tensor.name: tensor for graph in all_graphs(slim.graph) for tensor in graph.initializer}
    known = {value.name for value in (*slim.graph.input, *slim.graph.value_info)}
    slim.graph.value_info.extend(  # the inliner asks for the types of all that the operators take
        helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims))
        for name, tensor in types.items()
        if name not in known
    )
    result = onnx.inliner.inline_selected_functions(slim, wanted, inline_schema_functions=True)
    del result.graph.value_info[:]
    make_constant(result, large)
    return result


def _lower(graph: GraphProto, present: int, context: _Context) -> Iterator[Obstacle]:
    nodes: list[NodeProto] = []
    for node in graph.node:
        written = [node] if node.domain else _rewritten(node, context)
        nodes.extend(written)
        for each in written:
            reason = None if each.domain else _lower_node(each, present, context)
            if reason:
                yield Obstacle(node.op_type, node.name or node.output[0], reason)
    reset(graph.node, nodes)


def _lower_node(node: NodeProto, present: int, context: _Context) -> str | None:
    """Fit the node to the older version in place; why that cannot be done, or None."""
    now = onnx.defs.get_schema(node.op_type, present, "")
    then = _schema(node.op_type, context.version)
    if then is None:
        return f"the operator came with opset {_came(node.op_type)}"
    if then.since_version == now.since_version:
        return None
    if _NEW_MEANING.get(node.op_type, 0) > context.version:
        return f"opset {_NEW_MEANING[node.op_type]} changed what it computes"
    _repair(node, then, context)
    return (
        _fit_attributes(node, now, then, context.version)
        or _misfit_count("input", len(node.input), then.min_input, then.max_input, context.version)
        or _misfit_count("output", len(node.output), then.min_output, then.max_output, context.version)
        or _misfit_types(node, then, context)
    )


def _rewritten(node: NodeProto, context: _Context) -> list[NodeProto]:
    """The node, or those that do the same in the older opset where a single one does not."""
    part = attribute(node, "start", 0) != 0 or attribute(node, "end") is not None
    if node.op_type == "Shape" and context.version < 15 and part:
        return _sliced_shape(node, context)
    if node.op_type == "CastLike" and context.version < 15 and context.known.types.get(node.input[1]):
        cast = helper.make_node(
            "Cast", [node.input[0]], list(node.output), name=node.name, to=context.known.types[node.input[1]]
        )
        return [cast]
    return [node]


def _sliced_shape(node: NodeProto, context: _Context) -> list[NodeProto]:
    """Shape from `start` to `end`, which Shape itself can from opset 15 on, by Slice."""
    whole = context.unique.claim(f"{node.name or node.output[0]}/Shape")
    start, end = attribute(node, "start", 0), attribute(node, "end", int(np.iinfo(np.int64).max))
    bounds = [
        context.constant([at], TensorProto.INT64, f"{whole}/{what}") for at, what in ((start, "start"), (end, "end"))
    ]
    return [
        helper.make_node("Shape", [node.input[0]], [whole], name=whole),
        helper.make_node("Slice", [whole, *bounds], list(node.output), name=node.name),
    ]


def _schema(operator: str, version: int) -> OpSchema | None:
    try:
        schema = onnx.defs.get_schema(operator, version, "")
    except onnx.defs.SchemaError:
        return None
    return None if schema.deprecated else schema


def _came(operator: str) -> int:
    history = onnx.defs.get_all_schemas_with_history()
    return min(schema.since_version for schema in history if schema.name == operator and not schema.domain)


def _repair(node: NodeProto, then: OpSchema, context: _Context) -> None:
    """Put into the older form what opset 18 only writes differently."""
    if len(node.input) == 2 and then.max_input == 1 and "axes" in then.attributes:  # ReduceMean and its like
        axes = context.known.value(node.input[1])
        if axes is not None and axes.size:
            node.attribute.append(helper.make_attribute("axes", axes.tolist()))
            del node.input[1]
    if node.op_type == "Split" and attribute(node, "num_outputs") is not None:
        _split_evenly(node, context)
    if node.op_type == "Pad" and len(node.input) > 3:
        _pad_all_axes(node, context)
    if node.op_type == "GridSample" and context.version < 20 and len(context.known.shapes.get(node.input[0], ())) == 4:
        mode = attribute(node, "mode", b"linear")
        _remove(node, "mode")
        node.attribute.append(helper.make_attribute("mode", _FORMER_MODES.get(mode, mode)))


def _split_evenly(node: NodeProto, context: _Context) -> None:
    """Equal parts are what the older form makes; a smaller last one is written out."""
    shape, axis, count = context.known.shapes.get(node.input[0], ()), attribute(node, "axis", 0), len(node.output)
    size = shape[axis] if -len(shape) <= axis < len(shape) else None
    if not isinstance(size, int) or not size:
        return
    part = -(-size // count)
    if size % count and part * (count - 1) < size:
        parts = [part] * (count - 1) + [size - part * (count - 1)]
        name = context.constant(parts, TensorProto.INT64, f"{node.name or node.output[0]}/split")
        reset(node.input, [node.input[0], name])
    elif size % count:
        return
    _remove(node, "num_outputs")


def _pad_all_axes(node: NodeProto, context: _Context) -> None:
    """Padding of the named axes as padding of all."""
    pads, axes = context.known.value(node.input[1]), context.known.value(node.input[3])
    shape = context.known.shapes.get(node.input[0])
    if pads is None or axes is None or shape is None:
        return
    full = np.zeros((2, len(shape)), np.int64)
    full[:, axes % len(shape)] = pads.reshape(2, -1)
    name = context.constant(full.reshape(-1), TensorProto.INT64, f"{node.name or node.output[0]}/pads")
    reset(node.input, [node.input[0], name, *node.input[2:3]])
    while node.input and not node.input[-1]:
        del node.input[-1]


def _remove(node: NodeProto, name: str) -> None:
    kept = [each for each in node.attribute if each.name != name]
    del node.attribute[:]
    node.attribute.extend(kept)


def _fit_attributes(node: NodeProto, now: OpSchema, then: OpSchema, version: int) -> str | None:
    for name, declared in sorted(now.attributes.items()):
        default = _default(declared)
        given = attribute(node, name)
        value = default if given is None else given
        if name in then.attributes:
            since = _NEWER_VALUES.get((node.op_type, name, value), 0) if isinstance(value, bytes) else 0
            if since > version:
                return f"{name} {_shown(value)} came with opset {since}"
            if given is None and _default(then.attributes[name]) != default:
                if default is None:
                    return f"what it does without {name} changed after opset {version}"
                node.attribute.append(declared.default_value)
        elif value != _FORMER_VALUES.get((node.op_type, name), default) and not _all_ones(name, value):
            return f"{name} {_shown(value)} came after opset {version}"
        else:
            _remove(node, name)
    return None


def _default(declared: OpSchema.Attribute) -> Any:
    value = declared.default_value
    return None if value.type == AttributeProto.UNDEFINED else helper.get_attribute_value(value)


def _all_ones(name: str, value: Any) -> bool:
    """Pooling dilated by one is plain pooling."""
    return name == "dilations" and set(value) == {1}


def _shown(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _misfit_count(what: str, count: int, least: int, most: int, version: int) -> str | None:
    if least <= count <= most:
        return None
    return f"it has {count} {what}{'s' if count != 1 else ''}, opset {version} takes {least} to {most}"


def _misfit_types(node: NodeProto, then: OpSchema, context: _Context) -> str | None:
    allowed = {entry.type_param_str: set(entry.allowed_type_strs) for entry in then.type_constraints}
    for names, formals in ((node.input, then.inputs), (node.output, then.outputs)):
        for position, name in enumerate(names):
            kind = context.known.types.get(name, TensorProto.UNDEFINED)
            if not kind:  # absent, or inside a body where inference gives nothing: the full check decides
                continue
            formal = formals[min(position, len(formals) - 1)]
            written = f"tensor({TensorProto.DataType.Name(kind).lower()})"
            if written not in allowed.get(formal.type_str, {formal.type_str}):
                return f"opset {context.version} does not take {written.removeprefix('tensor(')[:-1]} for {formal.name}"
    return None
