"""FP16 baked into a graph, as a strongly typed builder wants it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from trtrecipe.errors import StepError
from trtrecipe.graphs.canonical import name_nodes
from trtrecipe.graphs.edit import all_graphs, reset, subgraphs, uses
from trtrecipe.graphs.names import Unique

_FLOAT, _HALF = TensorProto.FLOAT, TensorProto.FLOAT16
_NORMAL = float(np.finfo(np.float16).tiny)
_FREE = ("Cast", "ConstantOfShape")
"""Operators whose output type is an attribute that can be rewritten at no cost."""
_KEPT = frozenset(
    [
        "Constant",
        "EyeLike",
        "Bernoulli",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
        "HannWindow",
        "HammingWindow",
        "BlackmanWindow",
    ]
)
"""Operators whose output type no input decides and that gain nothing from FP16: they stay as they are."""

Slots = frozenset[int]


@dataclass(frozen=True)
class _Plan:
    """Which inputs and outputs of one node are FP16, by position."""

    inputs: Slots = frozenset()
    outputs: Slots = frozenset()


@dataclass(frozen=True)
class _Facts:
    """What deciding needs to know. `types`: tensor → element type, 0 for what is no tensor."""

    types: dict[str, int]
    constants: dict[str, TensorProto]  # FLOAT only
    shapes: frozenset[str]  # tensors computed from shapes alone
    fixed: frozenset[str]  # tensors that must be FP32 under their own name: outputs, and what subgraphs read
    opsets: dict[str, int]


def to_float16(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """A copy of `model` that computes in FP16 where the operators' ONNX schemas allow it, and notes on what does not.

    Graph inputs and outputs stay FP32, with a Cast behind or before them. An input or output of an operator whose
    schema at this opset has no float16 stays FP32 between Casts: Q/DQ below opset 19, the scales of Resize. So does a
    node with a subgraph, one of a domain without schemas, one with a constant outside FP16's range, and arithmetic on
    shapes, where FP16 would miscount. Tensors keep their names; the second form of tensor t is called t/float16 or
    t/float32. Every node gets a name of its own. Raises StepError when the type of a tensor cannot be inferred.
    """
    converted = onnx.ModelProto()
    converted.CopyFrom(model)
    _constants_to_initializers(converted.graph)
    facts = _facts(converted)
    notes: list[str] = []
    plans = [_plan(node, facts, notes) for node in converted.graph.node]
    _Rewriter(converted.graph, facts, plans).run()
    name_nodes(converted.graph)
    result = onnx.shape_inference.infer_shapes(converted, check_type=True, strict_mode=True)
    onnx.checker.check_model(result, full_check=True)
    return result, notes


# What is known


def _facts(model: onnx.ModelProto) -> _Facts:
    graph = model.graph
    overridable = {value.name for value in graph.input}
    return _Facts(
        _types(model),
        {t.name: t for t in graph.initializer if t.data_type == _FLOAT and t.name not in overridable},
        _shape_arithmetic(graph),
        frozenset(value.name for value in graph.output) | frozenset(_captured(graph)),
        {"ai.onnx" if not entry.domain else entry.domain: entry.version for entry in model.opset_import},
    )


def _types(model: onnx.ModelProto) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    types = {
        value.name: int(value.type.tensor_type.elem_type)
        for group in (graph.value_info, graph.input, graph.output)
        for value in group
    }
    types.update((tensor.name, tensor.data_type) for tensor in graph.initializer)
    types.update((tensor.values.name, tensor.values.data_type) for tensor in graph.sparse_initializer)
    for node in graph.node:
        for name in node.output:
            if name and name not in types:
                raise StepError(
                    f"the type of tensor {name}, an output of {node.op_type} {node.name}, cannot be inferred",
                    "operators outside the ONNX standard need value_info entries for FP16; use precision.mode fp32",
                )
    return types


def _captured(graph: onnx.GraphProto) -> Iterator[str]:
    """Names of this graph's tensors that the bodies of its control-flow nodes read."""
    for node in graph.node:
        yield from uses(node)[len(node.input) :]


def _shape_arithmetic(graph: onnx.GraphProto) -> frozenset[str]:
    constant = {tensor.name for tensor in graph.initializer} | {""}
    found: set[str] = set()
    for node in graph.node:
        inputs = set(node.input)
        if node.op_type in ("Shape", "Size") or (inputs & found and inputs <= found | constant):
            found.update(node.output)
        elif node.op_type == "Constant":
            constant.update(node.output)
    return frozenset(found)


def _constants_to_initializers(graph: onnx.GraphProto) -> None:
    """Float Constant nodes become initializers, so that constants have one form."""
    kept = []
    for node in graph.node:
        values = {attribute.name: attribute for attribute in node.attribute}
        if node.op_type != "Constant":
            kept.append(node)
        elif "value" in values and values["value"].t.data_type == _FLOAT:
            tensor = TensorProto()
            tensor.CopyFrom(values["value"].t)
            tensor.name = node.output[0]
            graph.initializer.append(tensor)
        elif "value_float" in values or "value_floats" in values:
            value = values["value_float"].f if "value_float" in values else list(values["value_floats"].floats)
            graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), node.output[0]))
        else:
            kept.append(node)
    reset(graph.node, kept)


# Deciding


def _plan(node: onnx.NodeProto, facts: _Facts, notes: list[str]) -> _Plan:
    domain = node.domain or "ai.onnx"
    opset = facts.opsets.get(domain, 0)
    schema_domain = "" if domain == "ai.onnx" else domain
    if (
        node.op_type in _KEPT
        or any(subgraphs(node))
        or any(facts.types.get(name) == 0 for name in (*node.input, *node.output))
        or any(name in facts.shapes for name in node.output)
        or not onnx.defs.has(node.op_type, opset, schema_domain)
    ):
        return _Plan()
    schema = onnx.defs.get_schema(node.op_type, opset, schema_domain)
    # A parameter whose type is written out ("tensor(float)") has no entry here, and so stays as it is.
    halves = {c.type_param_str for c in schema.type_constraints if "tensor(float16)" in c.allowed_type_strs}
    plan = _Plan(
        _half_slots(node.input, [formal.type_str for formal in schema.inputs], halves, facts),
        _half_slots(node.output, [formal.type_str for formal in schema.outputs], halves, facts),
    )
    reason = _unfit(node, plan, facts)
    if reason:
        notes.append(f"{node.op_type} {node.name or node.output[0]} stays FP32: {reason}")
        return _Plan()
    return plan


def _half_slots(slots: Sequence[str], formal: list[str], halves: set[str], facts: _Facts) -> Slots:
    # Beyond the end of the list stand further values of a last, variadic parameter.
    return frozenset(
        index
        for index, name in enumerate(slots)
        if facts.types.get(name) == _FLOAT and formal[min(index, len(formal) - 1)] in halves
    )


def _unfit(node: onnx.NodeProto, plan: _Plan, facts: _Facts) -> str | None:
    for index in sorted(plan.inputs):
        tensor = facts.constants.get(node.input[index])
        if tensor is None:
            continue
        values = numpy_helper.to_array(tensor)
        if _overflows(values):
            return f"its constant {tensor.name} exceeds 65504, the largest FP16 value"
        if index == 1 and node.op_type in ("QuantizeLinear", "DequantizeLinear") and (np.abs(values) < _NORMAL).any():
            return f"its scale {tensor.name} is below the smallest normal FP16 value"
    if node.op_type == "ConstantOfShape" and plan.outputs and _overflows(numpy_helper.to_array(node.attribute[0].t)):
        return "its value exceeds 65504, the largest FP16 value"
    return None


def _overflows(values: npt.NDArray[np.float32]) -> bool:
    with np.errstate(over="ignore"):
        return bool((np.isfinite(values) & ~np.isfinite(values.astype(np.float16))).any())


# Rewriting


class _Rewriter:
    """Gives every tensor the forms its readers need, each under one name."""

    def __init__(self, graph: onnx.GraphProto, facts: _Facts, plans: list[_Plan]) -> None:
        self.graph, self.facts = graph, facts
        self.names = Unique(_names(graph))
        self.half_name: dict[str, str] = {}
        self.single_name: dict[str, str] = {}
        self.half_read: set[str] = set()
        self.single_read: set[str] = set(facts.fixed)
        for node, plan in zip(graph.node, plans, strict=True):
            for index, name in enumerate(node.input):
                (self.half_read if index in plan.inputs else self.single_read).add(name)
        self.plans = [self._cheapest(node, plan) for node, plan in zip(graph.node, plans, strict=True)]

    def _cheapest(self, node: onnx.NodeProto, plan: _Plan) -> _Plan:
        if node.op_type in _FREE and (node.output[0] in self.single_read or node.output[0] not in self.half_read):
            return _Plan(plan.inputs, frozenset())
        return plan

    def run(self) -> None:
        for tensor in list(self.graph.initializer):
            if tensor.name in self.facts.constants:
                self._constant(tensor)
        sources = [value.name for value in self.graph.input]
        sources += [tensor.values.name for tensor in self.graph.sparse_initializer]
        nodes = [cast for name in sources for cast in self._forms(name, half=False)]
        for node, plan in zip(self.graph.node, self.plans, strict=True):
            casts = [
                cast for index, name in enumerate(node.output) for cast in self._forms(name, half=index in plan.outputs)
            ]
            self._rewrite(node, plan)
            nodes += [node, *casts]
        reset(self.graph.node, nodes)
        for value in self.graph.value_info:
            if self.half_name.get(value.name) == value.name:
                value.type.tensor_type.elem_type = _HALF

    def _constant(self, tensor: TensorProto) -> None:
        name = tensor.name
        if name not in self.half_read:
            return
        values = numpy_helper.to_array(tensor).astype(np.float16)
        if name in self.single_read:
            self.half_name[name] = self.names.claim(f"{name}/float16")
            self.graph.initializer.append(numpy_helper.from_array(values, self.half_name[name]))
        else:
            self.half_name[name] = name
            tensor.CopyFrom(numpy_helper.from_array(values, name))

    def _forms(self, name: str, half: bool) -> list[onnx.NodeProto]:
        """Name the forms of a tensor that is produced in FP16 or FP32; the Cast that makes the other one, if any."""
        if self.facts.types.get(name) != _FLOAT:
            return []
        if not half:
            if name not in self.half_read:
                return []
            self.half_name[name] = self.names.claim(f"{name}/float16")
            return [self._cast(name, self.half_name[name], _HALF)]
        if name in self.facts.fixed:
            self.half_name[name], self.single_name[name] = self.names.claim(f"{name}/float16"), name
        else:
            self.half_name[name] = name
            if name not in self.single_read:
                return []
            self.single_name[name] = self.names.claim(f"{name}/float32")
        return [self._cast(self.half_name[name], self.single_name[name], _FLOAT)]

    def _cast(self, source: str, result: str, to: int) -> onnx.NodeProto:
        # Not called after its result: that may keep the name it had, which is often its former maker's too.
        return helper.make_node("Cast", [source], [result], name=self.names.claim(f"{result}/Cast"), to=to)

    def _rewrite(self, node: onnx.NodeProto, plan: _Plan) -> None:
        source = self.facts.types.get(node.input[0]) if node.input else None
        for index, name in enumerate(node.input):
            node.input[index] = self.half_name[name] if index in plan.inputs else self.single_name.get(name, name)
        for index, name in enumerate(node.output):
            if index in plan.outputs:
                node.output[index] = self.half_name[name]
        if not plan.outputs and node.op_type != "Cast":
            return
        for attribute in node.attribute:
            if plan.outputs and attribute.name in ("to", "output_dtype") and attribute.i == _FLOAT:
                attribute.i = _HALF
            if node.op_type == "ConstantOfShape":
                attribute.t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(attribute.t).astype(np.float16)))
        if node.op_type == "Cast" and helper.get_node_attr_value(node, "to") == (_HALF if plan.inputs else source):
            node.op_type = "Identity"
            del node.attribute[:]


def _names(graph: onnx.GraphProto) -> Iterator[str]:
    """Every tensor and node name in the graph and its bodies."""
    for each in all_graphs(graph):
        yield from (value.name for value in (*each.input, *each.initializer, *each.value_info, *each.output))
        yield from (tensor.values.name for tensor in each.sparse_initializer)
        for node in each.node:
            yield from (node.name, *node.output)
