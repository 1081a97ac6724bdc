"""Operator sets: writing a graph in an older one, and what makes that impossible."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.defs import OpSchema

from trtrecipe.errors import StepError
from trtrecipe.graphs.canonical import canonical
from trtrecipe.graphs.edit import DEFAULT_DOMAINS, all_graphs, attribute
from trtrecipe.graphs.files import opset
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

_NEW_MEANING = {"GroupNormalization": 21}
"""Operator → the opset that changed what the same node computes."""


@dataclass(frozen=True)
class _Context:
    """What is known of the graph: tensor → element type, tensor → shape (None where open), tensor → constant."""

    version: int
    types: Mapping[str, int]
    shapes: Mapping[str, list[int | None]]
    constants: Mapping[str, TensorProto]


def to_opset(model: ModelProto, version: int) -> ModelProto:
    """The model at that version of the default operator set, or as it is where it is there already.

    A node is kept where its operator at the older version has the same inputs, outputs and types, and lacks only
    attributes that change nothing here. Names stay. Raises StepError that names every obstacle.
    """
    present = opset(model)
    if present <= version:
        return model
    result = ModelProto()
    result.CopyFrom(model)
    context = _context(result, version)
    obstacles = [line for graph in all_graphs(result.graph) for line in _lower(graph, present, context)]
    if obstacles:
        raise StepError(
            f"the graph is written in opset {present}, this target takes {version} at most, and these nodes cannot be "
            "rewritten:\n" + listed(obstacles),
            hint=f"export the model at opset {max(version, 13)} (model.opset in the recipe), or leave this target out",
        )
    for entry in result.opset_import:
        if entry.domain in DEFAULT_DOMAINS:
            entry.version = version
    return canonical(result)


def _context(model: ModelProto, version: int) -> _Context:
    inferred = infer(model).graph
    types, shapes = {}, {}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        tensor = value.type.tensor_type
        types[value.name] = tensor.elem_type
        if tensor.HasField("shape"):
            shapes[value.name] = [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]
    constants = {tensor.name: tensor for graph in all_graphs(model.graph) for tensor in graph.initializer}
    types.update({name: tensor.data_type for name, tensor in constants.items()})
    return _Context(version, types, shapes, constants)


def _lower(graph: GraphProto, present: int, context: _Context) -> Iterator[str]:
    for node in graph.node:
        if not node.domain:
            reason = _lower_node(node, present, context)
            if reason:
                yield f"{node.op_type} {node.name or node.output[0]}: {reason}"


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
        axes = context.constants.get(node.input[1])
        if axes is not None and numpy_helper.to_array(axes).size:
            node.attribute.append(helper.make_attribute("axes", numpy_helper.to_array(axes).tolist()))
            del node.input[1]
    if node.op_type == "Split" and attribute(node, "num_outputs") is not None:
        shape, axis = context.shapes.get(node.input[0], []), attribute(node, "axis", 0)
        size = shape[axis] if -len(shape) <= axis < len(shape) else None
        if size and size % len(node.output) == 0:  # equal parts are what the older form makes
            _remove(node, "num_outputs")


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
            kind = context.types.get(name, TensorProto.UNDEFINED)
            if not kind:  # absent, or inside a body where inference gives nothing: the full check decides
                continue
            formal = formals[min(position, len(formals) - 1)]
            written = f"tensor({TensorProto.DataType.Name(kind).lower()})"
            if written not in allowed.get(formal.type_str, {formal.type_str}):
                return f"opset {context.version} does not take {written.removeprefix('tensor(')[:-1]} for {formal.name}"
    return None
