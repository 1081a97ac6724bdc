"""FP16 baked into a graph, as a strongly typed builder wants it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, numpy_helper

from trtrecipe.errors import StepError
from trtrecipe.graphs import overflow
from trtrecipe.graphs.canonical import name_nodes
from trtrecipe.graphs.edit import reset, subgraphs, uses
from trtrecipe.graphs.halves import Plan, Slots, Tensors, write_halves
from trtrecipe.graphs.light import inferred, light
from trtrecipe.graphs.overflow import NORMAL, Observed, Range
from trtrecipe.graphs.shapes import infer
from trtrecipe.graphs.sound import LISTED
from trtrecipe.graphs.values import array_of

_FLOAT = TensorProto.FLOAT
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


@dataclass(frozen=True)
class _Facts:
    """What deciding needs to know."""

    tensors: Tensors
    shapes: frozenset[str]  # tensors computed from shapes alone
    opsets: dict[str, int]
    observed: Observed


def to_float16(
    model: onnx.ModelProto,
    keep: Mapping[str, str] = MappingProxyType({}),
    ranges: Mapping[str, tuple[float, float]] | None = None,
) -> tuple[onnx.ModelProto, list[str]]:
    """A copy of `model` that computes in FP16 where that is allowed and safe, and notes on what does not.

    Graph inputs and outputs stay FP32, with a Cast behind or before them. An input or output of an operator whose
    schema at this opset has no float16 stays FP32 between Casts: Q/DQ below opset 19, the scales of Resize. So does a
    node with a subgraph, one of a domain without schemas, one with a constant outside FP16's range, and arithmetic on
    shapes, where FP16 would miscount; a node that `keep` (node name → precision) keeps in fp32; and one that FP16 has
    no room for by the `ranges` of the float graph's tensors (tensor → least and largest value), as `graphs.overflow`
    says. A node that only moves values between FP32 nodes stays FP32 where that saves Casts.

    Tensors keep their names; the second form of tensor t is called t/float16 or t/float32. Every node gets a name of
    its own. Raises StepError when the type of a tensor cannot be inferred, and when `keep` names what is not there.
    """
    converted = onnx.ModelProto()
    converted.CopyFrom(model)
    _constants_to_initializers(converted.graph)
    if unknown := sorted(keep.keys() - {node.name for node in converted.graph.node}):
        raise StepError(f"the graph has no node {unknown[0]}, which is to stay FP32", "build again")
    facts = _facts(converted, ranges or {})
    notes: list[str] = []
    blocked: list[str] = []
    plans = [
        Plan() if keep.get(node.name) == "fp32" else _plan(node, facts, notes, blocked) for node in converted.graph.node
    ]
    write_halves(converted.graph, facts.tensors, plans)
    name_nodes(converted.graph)
    result = inferred(converted, check_type=True, strict_mode=True)
    onnx.checker.check_model(light(result)[0], full_check=True)
    if len(blocked) > LISTED:
        blocked[LISTED:] = [f"{len(blocked) - LISTED} more nodes stay FP32 for the ranges seen in calibration"]
    return result, notes + blocked


# What is known


def _facts(model: onnx.ModelProto, ranges: Mapping[str, Range]) -> _Facts:
    inferred = infer(model)
    graph = model.graph
    overridable = {value.name for value in graph.input}
    return _Facts(
        Tensors(
            _types(inferred.graph),
            {t.name: t for t in graph.initializer if t.data_type == _FLOAT and t.name not in overridable},
            frozenset(value.name for value in graph.output) | frozenset(_captured(graph)),
        ),
        _shape_arithmetic(graph),
        {"ai.onnx" if not entry.domain else entry.domain: entry.version for entry in model.opset_import},
        Observed.of(inferred, ranges),
    )


def _types(graph: onnx.GraphProto) -> dict[str, int]:
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


def _plan(node: onnx.NodeProto, facts: _Facts, notes: list[str], blocked: list[str]) -> Plan:
    """What of the node is FP16. Why it is not goes to `notes`, or to `blocked` where it is for what was observed."""
    domain = node.domain or "ai.onnx"
    opset = facts.opsets.get(domain, 0)
    schema_domain = "" if domain == "ai.onnx" else domain
    if (
        node.op_type in _KEPT
        or any(subgraphs(node))
        or any(facts.tensors.types.get(name) == 0 for name in (*node.input, *node.output))
        or any(name in facts.shapes for name in node.output)
        or not onnx.defs.has(node.op_type, opset, schema_domain)
    ):
        return Plan()
    schema = onnx.defs.get_schema(node.op_type, opset, schema_domain)
    # A parameter whose type is written out ("tensor(float)") has no entry here, and so stays as it is.
    halves = {c.type_param_str for c in schema.type_constraints if "tensor(float16)" in c.allowed_type_strs}
    plan = Plan(
        _half_slots(node.input, [formal.type_str for formal in schema.inputs], halves, facts),
        _half_slots(node.output, [formal.type_str for formal in schema.outputs], halves, facts),
    )
    label = f"{node.op_type} {node.name or node.output[0]} stays FP32"
    if reason := _unfit(node, plan, facts):
        notes.append(f"{label}: {reason}")
        return Plan()
    if reason := overflow.reason(node, facts.observed, plan.inputs, plan.outputs):
        blocked.append(f"{label}: {reason}")
        return Plan()
    return plan


def _half_slots(slots: Sequence[str], formal: list[str], halves: set[str], facts: _Facts) -> Slots:
    # Beyond the end of the list stand further values of a last, variadic parameter.
    return frozenset(
        index
        for index, name in enumerate(slots)
        if facts.tensors.types.get(name) == _FLOAT and formal[min(index, len(formal) - 1)] in halves
    )


def _unfit(node: onnx.NodeProto, plan: Plan, facts: _Facts) -> str | None:
    for index in sorted(plan.inputs):
        tensor = facts.tensors.constants.get(node.input[index])
        if tensor is None:
            continue
        values = array_of(tensor)
        if _overflows(values):
            return f"its constant {tensor.name} exceeds 65504, the largest FP16 value"
        if index == 1 and node.op_type in ("QuantizeLinear", "DequantizeLinear") and (np.abs(values) < NORMAL).any():
            return f"its scale {tensor.name} is below the smallest normal FP16 value"
    if node.op_type == "ConstantOfShape" and plan.outputs and _overflows(array_of(node.attribute[0].t)):
        return "its value exceeds 65504, the largest FP16 value"
    return None


def _overflows(values: npt.NDArray[np.float32]) -> bool:
    with np.errstate(over="ignore"):
        return bool((np.isfinite(values) & ~np.isfinite(values.astype(np.float16))).any())
