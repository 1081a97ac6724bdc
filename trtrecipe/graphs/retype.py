"""Repairs of element types: what a release would turn into another type itself becomes that type in the graph.

Then ONNX Runtime computes what the engine will, and inputs and outputs are what the engine's are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from trtrecipe.graphs.edit import all_graphs, all_nodes, all_tensors, replace_uses, reset, tensor_names
from trtrecipe.graphs.files import opset
from trtrecipe.graphs.names import Unique
from trtrecipe.graphs.values import array_of

_TYPE_ATTRIBUTES = ("to", "dtype", "stash_type")
"""Attributes that name an element type."""


def doubles_to_floats(model: ModelProto) -> list[str]:
    """Make every FP64 tensor FP32 in place; a sentence where there were any.

    Numbers beyond FP32's range become its largest, as TensorRT's parser has it.
    """
    changed = _become_floats(model, TensorProto.DOUBLE)
    return [] if changed is None else [f"the model computes in FP64, which TensorRT has not: it becomes FP32{changed}"]


def bfloat16_to_floats(model: ModelProto) -> list[str]:
    """Make every tensor of bfloat16 FP32 in place, which holds all its values; a sentence where there were any."""
    changed = _become_floats(model, TensorProto.BFLOAT16)
    what = "the model computes in bfloat16, which ONNX Runtime's CPU kernels and most of TensorRT's releases do not"
    return [] if changed is None else [f"{what}: it becomes FP32{changed}"]


def _become_floats(model: ModelProto, kind: int) -> str | None:
    """Make all that is of that element type FP32 in place; what this does to inputs and outputs, None where there was
    nothing."""
    values = [value for graph in all_graphs(model.graph) for value in (*graph.input, *graph.output)]
    interface = [value.name for value in (*model.graph.input, *model.graph.output) if _is(value, kind)]
    wide = [value for value in values if _is(value, kind)]
    tensors = [tensor for tensor in all_tensors(model.graph) if tensor.data_type == kind]
    named = [each for node in all_nodes(model.graph) for each in node.attribute if _names(each, kind)]
    if not (wide or tensors or named):
        return None
    for value in wide:
        value.type.tensor_type.elem_type = TensorProto.FLOAT
    for tensor in tensors:
        _to_float(tensor)
    for each in named:
        each.i = TensorProto.FLOAT
    for graph in all_graphs(model.graph):
        del graph.value_info[:]
    return f"; inputs and outputs that become float32: {', '.join(interface)}" if interface else ""


def _names(attribute: onnx.AttributeProto, kind: int) -> bool:
    return attribute.name in _TYPE_ATTRIBUTES and attribute.i == kind


def _is(value: onnx.ValueInfoProto, kind: int) -> bool:
    return bool(value.type.tensor_type.elem_type == kind)


def _to_float(tensor: TensorProto) -> None:
    values = array_of(tensor)
    limit = np.finfo(np.float32).max
    finite = np.where(np.isfinite(values), np.clip(values, -limit, limit), values)
    name = tensor.name
    tensor.CopyFrom(numpy_helper.from_array(finite.astype(np.float32), name))
    if not name:
        tensor.ClearField("name")


def narrow_interface(model: ModelProto) -> list[str]:
    """Make INT64 inputs and outputs INT32 in place; a sentence where there were any.

    Before TensorRT 9.0 an engine's inputs and outputs are INT32 where the graph's are INT64. Inside, indices and shapes
    stay what ONNX asks for: a Cast joins them, but where an operator takes INT32 as well.
    """
    graph = model.graph
    constant = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if _is(value, TensorProto.INT64) and value.name not in constant]
    made = {name for node in graph.node for name in node.output}
    outputs = [value for value in graph.output if _is(value, TensorProto.INT64) and value.name in made]
    if not (inputs or outputs):
        return []
    unique = Unique(tensor_names(graph))
    nodes = [_widen(model, value, unique) for value in inputs]
    reset(graph.node, [*(node for node in nodes if node is not None), *graph.node])
    for value in outputs:
        _cut(graph, value, unique)
    for value in (*inputs, *outputs):
        value.type.tensor_type.elem_type = TensorProto.INT32
    for each in all_graphs(graph):
        del each.value_info[:]
    names = ", ".join(value.name for value in (*inputs, *outputs))
    return [f"inputs and outputs that become int32, as this TensorRT has no 64-bit integers: {names}"]


def _widen(model: ModelProto, value: onnx.ValueInfoProto, unique: Unique) -> NodeProto | None:
    """Let what needs 64 bits read a Cast of the input instead; the Cast, if anything does."""
    name = value.name
    wide = unique.claim(f"{name}/Cast")
    replace_uses(model.graph, {name: wide})
    for node in model.graph.node:
        for position, read in enumerate(node.input):
            if read == wide and _takes_int32(node, position, opset(model)):
                node.input[position] = name
    if all(wide not in node.input for node in all_nodes(model.graph)) and all(
        output.name != wide for graph in all_graphs(model.graph) for output in graph.output
    ):
        return None
    return helper.make_node("Cast", [name], [wide], name=wide, to=TensorProto.INT64)


def _takes_int32(node: NodeProto, position: int, version: int) -> bool:
    """Whether the operator takes INT32 there, whatever its other inputs and outputs are."""
    if node.domain:
        return False
    schema = onnx.defs.get_schema(node.op_type, version, "")
    formals = [schema.inputs[min(index, len(schema.inputs) - 1)] for index in range(len(node.input))]
    kind = formals[position].type_str
    shared = [each.type_str for index, each in enumerate(formals) if index != position]
    allowed: dict[str, Any] = {each.type_param_str: each.allowed_type_strs for each in schema.type_constraints}
    free = kind not in (*shared, *(output.type_str for output in schema.outputs))
    return free and "tensor(int32)" in allowed.get(kind, ())


def _cut(graph: GraphProto, value: onnx.ValueInfoProto, unique: Unique) -> None:
    """Put a Cast to INT32 in front of the output; what else reads it goes on reading 64 bits."""
    wide = unique.claim(f"{value.name}/int64")
    for node in graph.node:
        if value.name in node.output:
            node.name = node.name or value.name
            reset(node.output, [wide if name == value.name else name for name in node.output])
    replace_uses(graph, {value.name: wide})
    graph.node.append(
        helper.make_node("Cast", [wide], [value.name], name=unique.claim(value.name), to=TensorProto.INT32)
    )
