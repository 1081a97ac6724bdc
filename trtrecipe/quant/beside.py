"""Pairs that stand beside the quantized layers: on residual branches and in front of average pooling.

A Conv, the Add behind it and the activation behind that become one INT8 kernel where the Add's other input comes from
a pair; without one the kernel writes floating point (NVIDIA/TensorRT issue 1992). A pair on the Conv's own side would
part the two. NVIDIA/TensorRT release/8.6, tools/tensorflow-quantization/tensorflow_quantization/custom_qdq_cases.py,
ResidualConnectionQDQCase: every input of the Add but one that a Conv makes; and NVIDIA/Model-Optimizer 0.46.0,
modelopt/onnx/quantization/graph_utils.py, build_non_residual_input_map: of two, the one at the end of the longer path.

AveragePool computes, so Q/DQ do not commute with it, but it is quantizable itself: between a DequantizeLinear and a
QuantizeLinear it becomes an INT8 kernel (NVIDIA's developer guide, explicit quantization).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from trtrecipe.quant import copies
from trtrecipe.quant.overview import Overview

_POOLS = ("AveragePool", "GlobalAveragePool")


@dataclass(frozen=True)
class Residual:
    """An Add whose input `slot` gets a pair, so that it fuses with the Conv that makes the other one."""

    index: int
    slot: int
    conv: int


def residuals(graph: Overview, convs: Collection[int]) -> list[Residual]:
    """The Adds that one of `convs` (positions of quantized Conv nodes) can be fused with, in graph order."""
    depths = _depths(graph)
    found = []
    for index, node in enumerate(graph.nodes):
        if graph.operator(index) != "Add" or not _alike(graph, node.input[0], node.input[1]):
            continue
        makers = [graph.makers.get(name) for name in node.input]
        fusible = [
            (depths[maker], slot, maker)
            for slot, (name, maker) in enumerate(zip(node.input, makers, strict=True))
            if maker in convs and maker is not None and len(graph.readers[name]) == 1 and name not in graph.outputs
        ]
        if fusible:
            _, slot, conv = max(fusible)
            found.append(Residual(index, 1 - slot, conv))
    return found


def pools(graph: Overview, paired: Iterable[str], keep: Collection[str]) -> list[int]:
    """The average pools, but for those named in `keep`, whose output reaches a tensor with a pair through copies alone.

    `paired` are the tensors with a pair; what stands before one of the pools found is one of them too.
    """
    wanted = set(paired)
    found = []
    for index in reversed(range(len(graph.nodes))):
        outputs = copies.targets(graph, index)
        held = copies.sources(graph, index)
        if graph.operator(index) in _POOLS and outputs[0] in wanted and graph.nodes[index].name not in keep:
            found.append(index)
            held = graph.nodes[index].input[:1]
        if any(name in wanted for name in outputs):
            wanted.update(held)
    return found[::-1]


def _alike(graph: Overview, left: str, right: str) -> bool:
    """Whether a sum of the two is a residual one: of FP32 activations of one shape, as far as that is known."""
    if left in graph.constants or right in graph.constants:
        return False
    if not graph.is_float(left) or not graph.is_float(right):
        return False
    shapes = graph.shapes.get(left), graph.shapes.get(right)
    if shapes[0] is None or shapes[1] is None:
        return True
    pairs = zip(shapes[0], shapes[1], strict=False)
    return len(shapes[0]) == len(shapes[1]) and all(a == b or a is None or b is None for a, b in pairs)


def _depths(graph: Overview) -> list[int]:
    """Node → how many nodes the longest path to it from an input has."""
    depths: list[int] = []
    for node in graph.nodes:
        behind = [
            depths[graph.makers[name]] for name in node.input if graph.makers.get(name, len(depths)) < len(depths)
        ]
        depths.append(1 + max(behind, default=0))
    return depths
