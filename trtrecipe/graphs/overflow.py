"""Which nodes FP16 has no room for, judged by the ranges that their tensors had in calibration.

FP16 holds ±65504, below 2^-14 (6.1e-5) with fewer and fewer bits, and nothing below 2^-25. Calibration saw some samples
and others go further, so that half of the range is left to them: LIMIT.

Tensors are judged by what was observed. Values that exist only inside an operator are bounded from what was observed:

| operator | inside | bound |
|---|---|---|
| ReduceMean, GlobalAveragePool, AveragePool | the sum | largest output times number of values averaged |
| Conv, ConvTranspose, Gemm | the sum without its bias | largest output + largest bias |
| ReduceL2, LpPool, GlobalLpPool | the sum of squares | largest output squared |
| ReduceLogSum, ReduceLogSumExp | the sum | e to the largest output |
| LpNormalization | the sum of powers | largest input to the power p, times the length of its axis |

The bounds are those of the sum that results; a sum of both signs may go beyond it on the way. TensorRT's ONNX parser
writes most of these as element-wise layers and a reduction, whose results have the type of the tensors
(onnx/onnx-tensorrt, release/10.1-GA, onnxOpImporters.cpp), and leaves LayerNormalization to a layer that computes in
FP32 (setComputePrecision there). Softmax is taken to subtract its largest input first: its input and output count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from trtrecipe.graphs.edit import attribute
from trtrecipe.graphs.values import array_of

LARGEST = float(np.finfo(np.float16).max)
NORMAL = float(np.finfo(np.float16).tiny)
LIMIT = LARGEST / 2
_VANISHES = float(np.finfo(np.float16).smallest_subnormal) / 2
"""What is not larger than this becomes 0."""
_NOT_ZERO = {"Div": 1, "Reciprocal": 0, "Log": 0, "Sqrt": 0}
"""Operator → the input that must not become 0. Sqrt, as what it makes is mostly divided by."""

Range = tuple[float, float]


@dataclass(frozen=True)
class Observed:
    """What nodes are judged by.

    `ranges`: tensor → least and largest value seen; `shapes`: tensor → sizes, None where open; `constants`: by name;
    `fragile`: tensors that were never 0, would be in FP16, and that something divides by or takes the logarithm of.
    """

    ranges: Mapping[str, Range]
    shapes: Mapping[str, list[int | None]]
    constants: Mapping[str, TensorProto]
    fragile: frozenset[str]

    @classmethod
    def of(cls, model: ModelProto, ranges: Mapping[str, Range]) -> Observed:
        """For the nodes of the main graph. `model` has its types inferred; `ranges` are the float graph's.

        A tensor behind a Q/DQ pair has the range of the one before it, as far as the scale lets it through:
        [-128 s, 127 s].
        """
        graph = model.graph
        overridable = {value.name for value in graph.input}
        constants = {tensor.name: tensor for tensor in graph.initializer if tensor.name not in overridable}
        ranges = _with_pairs(graph, ranges, constants)
        fragile = {
            node.input[index]
            for node in graph.node
            if (index := _NOT_ZERO.get(node.op_type)) is not None and _vanishes(node.input[index], ranges, constants)
        }
        return cls(ranges, _shapes(graph), constants, frozenset(fragile))


def reason(node: NodeProto, observed: Observed, inputs: Collection[int], outputs: Collection[int]) -> str | None:
    """Why the node cannot be FP16 in these inputs and outputs, or None."""
    slots = [("output", node.output[index]) for index in sorted(outputs)]
    slots += [("input", node.input[index]) for index in sorted(inputs)]
    for kind, name in slots:
        if name in observed.ranges and (why := _unfit(observed.ranges[name])):
            return f"its {kind} {name} {why}"
    inner = _INSIDE[node.op_type](node, observed) if node.op_type in _INSIDE else None
    if inner is not None and inner > LIMIT:
        return f"inside it values reach {inner:.3g} by the ranges seen in calibration, {_ROOM}"
    divisor = _NOT_ZERO.get(node.op_type)
    for kind, name in slots:
        if name in observed.fragile and (kind == "output" or name == node.input[divisor or 0]):
            return f"its {kind} {name} is never 0, but so small that FP16 would make it 0, and it is divided by"
    return None


def _with_pairs(
    graph: GraphProto, ranges: Mapping[str, Range], constants: Mapping[str, TensorProto]
) -> dict[str, Range]:
    found = dict(ranges)
    makers = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        quantize = makers.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if quantize is None or quantize.op_type != "QuantizeLinear" or quantize.input[0] not in found:
            continue
        low, high = found[quantize.input[0]]
        scale = constants.get(node.input[1])
        if scale is not None:
            step = float(np.max(array_of(scale)))
            low, high = (min(max(value, -128 * step), 127 * step) for value in (low, high))
        found.setdefault(node.output[0], (low, high))
    return found


def _shapes(graph: GraphProto) -> dict[str, list[int | None]]:
    return {
        value.name: [dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.value_info, *graph.input, *graph.output)
        if value.type.tensor_type.HasField("shape")
    }


def _vanishes(name: str, ranges: Mapping[str, Range], constants: Mapping[str, TensorProto]) -> bool:
    """Whether the tensor is nowhere 0, but would be in FP16."""
    if name in constants and constants[name].data_type == TensorProto.FLOAT:
        values = np.abs(array_of(constants[name]))
        return bool(values.size and 0 < values.min() <= _VANISHES)
    low, high = ranges.get(name, (0.0, 0.0))
    return 0 < (low if low > 0 else -high) <= _VANISHES


_ROOM = f"and FP16 is trusted to {LIMIT:.0f}, half of its largest value"


def _unfit(seen: Range) -> str | None:
    low, high = seen
    reach = max(abs(low), abs(high))
    if not reach <= LIMIT:
        return f"ranged from {low:.3g} to {high:.3g} in calibration, {_ROOM}"
    if 0 < reach < NORMAL:
        return f"reached only {reach:.3g} in calibration, below FP16's normal range ({NORMAL:.2g})"
    return None


# Inside operators. Each gives the largest |value| there may be, or None where nothing is known.

_Bound = Callable[[NodeProto, Observed], "float | None"]


def _reach(observed: Observed, name: str) -> float | None:
    low_high = observed.ranges.get(name)
    return None if low_high is None else max(map(abs, low_high))


def _averaged(node: NodeProto, observed: Observed) -> float | None:
    reach, count = _reach(observed, node.output[0]), _count(node, observed)
    return None if reach is None or count is None else reach * count


def _count(node: NodeProto, observed: Observed) -> int | None:
    """How many values one output of the node averages."""
    if node.op_type == "AveragePool":
        return int(math.prod(attribute(node, "kernel_shape")))
    shape = observed.shapes.get(node.input[0])
    if shape is None:
        return None
    axes = list(range(2, len(shape))) if node.op_type == "GlobalAveragePool" else _axes(node, observed, len(shape))
    sizes = None if axes is None else [shape[axis] for axis in axes]
    if sizes is None or None in sizes:
        return None
    return math.prod(size for size in sizes if size is not None)


def _axes(node: NodeProto, observed: Observed, rank: int) -> list[int] | None:
    axes = attribute(node, "axes")
    if len(node.input) > 1 and node.input[1]:
        tensor = observed.constants.get(node.input[1])
        if tensor is None:
            return None
        axes = array_of(tensor).tolist()
    if not axes:
        return [] if attribute(node, "noop_with_empty_axes", 0) else list(range(rank))
    return [axis % rank for axis in axes]


def _without_bias(node: NodeProto, observed: Observed) -> float | None:
    reach = _reach(observed, node.output[0])
    bias = observed.constants.get(node.input[2]) if len(node.input) > 2 else None
    if reach is None or bias is None:
        return reach
    return reach + float(np.max(np.abs(array_of(bias)), initial=0.0))


def _squared(node: NodeProto, observed: Observed) -> float | None:
    reach = _reach(observed, node.output[0])
    return None if reach is None else _power(reach, attribute(node, "p", 2))


def _exponential(node: NodeProto, observed: Observed) -> float | None:
    seen = observed.ranges.get(node.output[0])
    return None if seen is None else math.inf if seen[1] > math.log(LARGEST) else math.exp(seen[1])


def _norm(node: NodeProto, observed: Observed) -> float | None:
    reach, shape = _reach(observed, node.input[0]), observed.shapes.get(node.input[0])
    if reach is None or shape is None:
        return None
    length = shape[attribute(node, "axis", -1)]
    return None if length is None else _power(reach, attribute(node, "p", 2)) * length


def _power(value: float, exponent: int) -> float:
    try:
        return float(value**exponent)
    except OverflowError:
        return math.inf


_INSIDE: Mapping[str, _Bound] = {
    "ReduceMean": _averaged,
    "GlobalAveragePool": _averaged,
    "AveragePool": _averaged,
    "Conv": _without_bias,
    "ConvTranspose": _without_bias,
    "Gemm": _without_bias,
    "ReduceL2": _squared,
    "LpPool": _squared,
    "GlobalLpPool": _squared,
    "ReduceLogSum": _exponential,
    "ReduceLogSumExp": _exponential,
    "LpNormalization": _norm,
}
