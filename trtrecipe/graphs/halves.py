"""Writing FP16 into a graph once it is settled which inputs and outputs of its nodes have it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from trtrecipe.graphs.edit import all_graphs, reset
from trtrecipe.graphs.names import Unique
from trtrecipe.graphs.values import array_of

_FLOAT, _HALF = TensorProto.FLOAT, TensorProto.FLOAT16
_FREE = ("Cast", "ConstantOfShape")
"""Operators whose output type is an attribute that can be rewritten at no cost."""
_MOVES = frozenset(
    [
        "Concat",
        "DepthToSpace",
        "Flatten",
        "Identity",
        "Reshape",
        "Slice",
        "SpaceToDepth",
        "Split",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    ]
)
"""Operators that only move values about: FP16 gains them nothing that a Cast would not take."""

Slots = frozenset[int]


@dataclass(frozen=True)
class Plan:
    """Which inputs and outputs of one node are FP16, by position."""

    inputs: Slots = frozenset()
    outputs: Slots = frozenset()


@dataclass(frozen=True)
class Tensors:
    """What is known of a graph's tensors. `types`: tensor → element type, 0 for what is no tensor."""

    types: Mapping[str, int]
    constants: Mapping[str, TensorProto]  # FLOAT only
    fixed: frozenset[str]  # those that must be FP32 under their own name: outputs, and what subgraphs read


def write_halves(graph: onnx.GraphProto, tensors: Tensors, plans: Sequence[Plan]) -> None:
    """Make of each node of `graph`, in place, what its plan says, with Casts where FP16 and FP32 meet.

    Tensors keep their names; the second form of tensor t is called t/float16 or t/float32. Nodes that only move values
    between FP32 nodes stay FP32 where that saves Casts.
    """
    _Rewriter(graph, tensors, _with_idle_moves(graph, tensors, plans)).run()


def _with_idle_moves(graph: onnx.GraphProto, tensors: Tensors, plans: Sequence[Plan]) -> list[Plan]:
    """The plans, in which groups of connected moves that stand among FP32 nodes stay FP32 themselves.

    A group does where that takes fewer Casts, or as many and spares values the way to FP16 and back.
    """
    result = list(plans)
    makers = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    readers: dict[str, list[tuple[int, bool]]] = {}  # tensor → its readers, and whether they take it in FP16
    for index, node in enumerate(graph.node):
        for position, name in enumerate(node.input):
            readers.setdefault(name, []).append((index, position in plans[index].inputs))
    moving = {index for index, node in enumerate(graph.node) if node.op_type in _MOVES and plans[index].outputs}
    for group in _groups(graph, moving, makers):
        inputs = {graph.node[index].input[position] for index in group for position in plans[index].inputs}
        outputs = {name for index in group for name in graph.node[index].output if name}
        sources = inputs - outputs - tensors.constants.keys()
        half_sources = {
            name
            for name in sources
            if name in makers and list(graph.node[makers[name]].output).index(name) in plans[makers[name]].outputs
        }
        outside = [(name, half) for name in outputs for index, half in readers.get(name, ()) if index not in group]
        single_read = {name for name, half in outside if not half} | (outputs & tensors.fixed)
        half_read = {name for name, half in outside if half}
        as_half = len(sources - half_sources) + len(single_read)
        as_single = len(half_sources) + len(half_read)
        if as_single < as_half or (as_single == as_half and sources - half_sources and single_read):
            for index in group:
                result[index] = Plan()
    return result


def _groups(graph: onnx.GraphProto, members: set[int], makers: Mapping[str, int]) -> list[set[int]]:
    """The nodes with these positions in groups: those that read one another's outputs are together."""
    group_of: dict[int, set[int]] = {}
    for index in sorted(members):
        group = group_of[index] = {index}
        for name in graph.node[index].input:
            other = group_of.get(makers.get(name, -1))
            if other is not None and other is not group:
                group |= other
                group_of.update(dict.fromkeys(other, group))
        group_of[index] = group
    return list({id(group): group for group in group_of.values()}.values())


class _Rewriter:
    """Gives every tensor the forms its readers need, each under one name."""

    def __init__(self, graph: onnx.GraphProto, tensors: Tensors, plans: Sequence[Plan]) -> None:
        self.graph, self.tensors = graph, tensors
        self.names = Unique(_names(graph))
        self.half_name: dict[str, str] = {}
        self.single_name: dict[str, str] = {}
        self.half_read: set[str] = set()
        self.single_read: set[str] = set(tensors.fixed)
        for node, plan in zip(graph.node, plans, strict=True):
            for index, name in enumerate(node.input):
                (self.half_read if index in plan.inputs else self.single_read).add(name)
        self.plans = [self._cheapest(node, plan) for node, plan in zip(graph.node, plans, strict=True)]

    def _cheapest(self, node: onnx.NodeProto, plan: Plan) -> Plan:
        if node.op_type in _FREE and (node.output[0] in self.single_read or node.output[0] not in self.half_read):
            return Plan(plan.inputs, frozenset())
        return plan

    def run(self) -> None:
        for tensor in list(self.graph.initializer):
            if tensor.name in self.tensors.constants:
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
        values = array_of(tensor).astype(np.float16)
        if name in self.single_read:
            self.half_name[name] = self.names.claim(f"{name}/float16")
            self.graph.initializer.append(numpy_helper.from_array(values, self.half_name[name]))
        else:
            self.half_name[name] = name
            tensor.CopyFrom(numpy_helper.from_array(values, name))

    def _forms(self, name: str, half: bool) -> list[onnx.NodeProto]:
        """Name the forms of a tensor that is produced in FP16 or FP32; the Cast that makes the other one, if any."""
        if self.tensors.types.get(name) != _FLOAT:
            return []
        if not half:
            if name not in self.half_read:
                return []
            self.half_name[name] = self.names.claim(f"{name}/float16")
            return [self._cast(name, self.half_name[name], _HALF)]
        if name in self.tensors.fixed:
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

    def _rewrite(self, node: onnx.NodeProto, plan: Plan) -> None:
        source = self.tensors.types.get(node.input[0]) if node.input else None
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
                attribute.t.CopyFrom(numpy_helper.from_array(array_of(attribute.t).astype(np.float16)))
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
