"""Operators that a release lacks, written with operators that it has. Each form computes the same function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from trtrecipe.graphs.edit import all_graphs, all_nodes, attribute, reset, tensor_names
from trtrecipe.graphs.known import Known, known
from trtrecipe.graphs.names import Unique
from trtrecipe.targets.parser import Parser

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
_LARGEST_DEPTH = 1 << 16
"""Classes of a OneHot up to which their numbers are written into the graph."""


@dataclass
class _Writer:
    """The nodes that take the place of `node`, and the constants that they need. The last keeps the node's name."""

    node: NodeProto
    known: Known
    unique: Unique
    nodes: list[NodeProto] = field(default_factory=list)
    constants: list[TensorProto] = field(default_factory=list)

    def add(self, operator: str, inputs: Sequence[str], **attributes: Any) -> str:
        """The output of a new node."""
        name = self.unique.claim(f"{self.node.name or self.node.output[0]}/{operator}")
        self.nodes.append(helper.make_node(operator, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, value: Any, kind: int, what: str) -> str:
        """The name of a new constant of that element type."""
        name = self.unique.claim(f"{self.node.name or self.node.output[0]}/{what}")
        array = np.asarray(value, helper.tensor_dtype_to_np_dtype(kind))
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def reduce_mean(self, name: str, axes: list[int]) -> str:
        """The mean along the axes, which stay: with axes as an input from opset 18 on, before as an attribute."""
        if self.known.opset < 18:
            return self.add("ReduceMean", [name], axes=axes, keepdims=1)
        return self.add("ReduceMean", [name, self.constant(axes, TensorProto.INT64, "axes")], keepdims=1)

    def end(self) -> list[NodeProto]:
        """The nodes, the last making what the node made."""
        last = self.nodes[-1]
        last.name = self.node.name
        reset(last.output, [self.node.output[0]])
        return self.nodes


def write_out(model: ModelProto, parser: Parser, opset_max: int) -> list[str]:
    """Rewrite in place what the release, or the opset that its graphs are written in, lacks; a sentence per operator.

    A node whose type or shape is not known well enough stays.
    """
    lacking = {
        node.op_type
        for node in all_nodes(model.graph)
        if not node.domain and node.op_type in FORMS and _lacks(node.op_type, parser, opset_max)
    }
    if not lacking:
        return []
    facts, unique = known(model), Unique(tensor_names(model.graph) | {node.name for node in all_nodes(model.graph)})
    counts: dict[str, int] = {}
    constants: list[TensorProto] = []
    for graph in reversed(list(all_graphs(model.graph))):  # an outer graph's nodes are copied, with their bodies
        _rewrite(graph, lacking, facts, unique, counts, constants)
    model.graph.initializer.extend(constants)
    return [
        f"{operator} is not among what TensorRT {parser.release} takes: {count} written with other operators"
        for operator, count in counts.items()
    ]


def _lacks(operator: str, parser: Parser, opset_max: int) -> bool:
    return not parser.supported.get(operator, False) or not onnx.defs.has(operator, opset_max, "")


def _rewrite(
    graph: GraphProto,
    lacking: set[str],
    facts: Known,
    unique: Unique,
    counts: dict[str, int],
    constants: list[TensorProto],
) -> None:
    nodes: list[NodeProto] = []
    for node in graph.node:
        writer = _Writer(node, facts, unique)
        if node.domain or node.op_type not in lacking or not FORMS[node.op_type](writer):
            nodes.append(node)
            continue
        nodes.extend(writer.end())
        constants.extend(writer.constants)
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    reset(graph.node, nodes)


def _kind(writer: _Writer, position: int = 0) -> int:
    return writer.known.types.get(writer.node.input[position], TensorProto.UNDEFINED)


def _reciprocal(writer: _Writer) -> bool:
    """1 / x."""
    kind = _kind(writer)
    if kind not in _FLOATS:
        return False
    writer.add("Div", [writer.constant(1, kind, "one"), writer.node.input[0]])
    return True


def _xor(writer: _Writer) -> bool:
    """One of both, and not both: releases without Xor compare no booleans with Equal either."""
    both = writer.add("Not", [writer.add("And", writer.node.input)])
    writer.add("And", [writer.add("Or", writer.node.input), both])
    return True


def _hard_swish(writer: _Writer) -> bool:
    """x * max(0, min(1, x / 6 + 0.5)), as ONNX defines it."""
    gate = writer.add("HardSigmoid", [writer.node.input[0]], alpha=1 / 6, beta=0.5)
    writer.add("Mul", [writer.node.input[0], gate])
    return True


def _mish(writer: _Writer) -> bool:
    """x * tanh(softplus(x))."""
    x = writer.node.input[0]
    writer.add("Mul", [x, writer.add("Tanh", [writer.add("Softplus", [x])])])
    return True


def _swish(writer: _Writer) -> bool:
    """x * sigmoid(alpha * x)."""
    kind, x, alpha = _kind(writer), writer.node.input[0], attribute(writer.node, "alpha", 1.0)
    if kind not in _FLOATS:
        return False
    scaled = x if alpha == 1 else writer.add("Mul", [x, writer.constant(alpha, kind, "alpha")])
    writer.add("Mul", [x, writer.add("Sigmoid", [scaled])])
    return True


def _cast_like(writer: _Writer) -> bool:
    """Cast to the type of the second input."""
    kind = _kind(writer, 1)
    if kind == TensorProto.UNDEFINED:
        return False
    writer.add("Cast", [writer.node.input[0]], to=kind)
    return True


def _gelu(writer: _Writer) -> bool:
    """x / 2 * (1 + erf(x / sqrt(2))), or its approximation with tanh."""
    kind, x = _kind(writer), writer.node.input[0]
    if kind not in _FLOATS:
        return False

    def number(value: float, what: str) -> str:
        return writer.constant(value, kind, what)

    if attribute(writer.node, "approximate", b"none") == b"tanh":
        cube = writer.add("Mul", [writer.add("Mul", [x, x]), x])
        inner = writer.add("Add", [x, writer.add("Mul", [cube, number(0.044715, "cubic")])])
        gate = writer.add("Tanh", [writer.add("Mul", [inner, number(np.sqrt(2 / np.pi), "slope")])])
    else:
        gate = writer.add("Erf", [writer.add("Mul", [x, number(np.sqrt(0.5), "slope")])])
    half = writer.add("Mul", [x, number(0.5, "half")])
    writer.add("Mul", [half, writer.add("Add", [gate, number(1, "one")])])
    return True


def _layer_normalization(writer: _Writer) -> bool:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias, over the last axes."""
    node, kind = writer.node, _kind(writer)
    shape = writer.known.shapes.get(node.input[0])
    if kind not in (TensorProto.FLOAT, TensorProto.DOUBLE) or shape is None or any(node.output[1:]):
        return False
    first = attribute(node, "axis", -1) % len(shape)
    axes = list(range(first, len(shape)))
    x = node.input[0]
    centred = writer.add("Sub", [x, writer.reduce_mean(x, axes)])
    variance = writer.reduce_mean(writer.add("Mul", [centred, centred]), axes)
    epsilon = writer.constant(attribute(node, "epsilon", 1e-5), kind, "epsilon")
    deviation = writer.add("Sqrt", [writer.add("Add", [variance, epsilon])])
    scaled = writer.add("Mul", [writer.add("Div", [centred, deviation]), node.input[1]])
    if len(node.input) > 2 and node.input[2]:
        writer.add("Add", [scaled, node.input[2]])
    return True


def _one_hot(writer: _Writer) -> bool:
    """Where(indices == 0, 1, …, depth - 1, on, off); negative indices count from the end."""
    node, facts = writer.node, writer.known
    depth, values = facts.value(node.input[1]), facts.value(node.input[2])
    shape = facts.shapes.get(node.input[0])
    if depth is None or values is None or shape is None or depth.size != 1 or depth.item() > _LARGEST_DEPTH:
        return False
    count, axis = int(depth.item()), attribute(node, "axis", -1) % (len(shape) + 1)
    wide = writer.add("Cast", [node.input[0]], to=TensorProto.INT32)
    size = writer.constant(count, TensorProto.INT32, "depth")
    negative = writer.add("Less", [wide, writer.constant(0, TensorProto.INT32, "zero")])
    counted = writer.add("Where", [negative, writer.add("Add", [wide, size]), wide])
    column = writer.add("Unsqueeze", [counted, writer.constant([axis], TensorProto.INT64, "axis")])
    classes = np.arange(count).reshape([count if each == axis else 1 for each in range(len(shape) + 1)])
    equal = writer.add("Equal", [column, writer.constant(classes, TensorProto.INT32, "classes")])
    kind = facts.types.get(node.input[2], TensorProto.UNDEFINED)
    off, on = (writer.constant(value, kind, what) for value, what in zip(values, ("off", "on"), strict=True))
    writer.add("Where", [equal, on, off])
    return True


FORMS: Mapping[str, Callable[[_Writer], bool]] = {
    "CastLike": _cast_like,
    "Gelu": _gelu,
    "HardSwish": _hard_swish,
    "LayerNormalization": _layer_normalization,
    "Mish": _mish,
    "OneHot": _one_hot,
    "Reciprocal": _reciprocal,
    "Swish": _swish,
    "Xor": _xor,
}
"""Operator → writes it with others; False, with nothing written, where it cannot tell enough of the node."""
