"""A graph in FP16 as a GPU computes it, for ONNX Runtime on a CPU that has no FP16 arithmetic."""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

from trtrecipe.graphs.edit import all_graphs, reset
from trtrecipe.graphs.light import inferred
from trtrecipe.graphs.names import Unique


def rounded(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` in which ONNX Runtime, unoptimized, rounds every FP16 tensor of the main graph to FP16.

    Left alone it computes FP16 operators in FP32 and drops the Casts between them, so neither rounding nor overflow
    shows. A Cast stays when an operator with an FP16 kernel of its own stands behind it: Identity has one, and two of
    them are needed, because a single FP16 operator between FP32 ones is moved to FP32 too.
    """
    copy = inferred(model)
    graph = copy.graph
    halves = {
        value.name
        for value in (*graph.value_info, *graph.output)
        if value.type.tensor_type.elem_type == TensorProto.FLOAT16
    }
    unique = Unique(name for each in all_graphs(graph) for name in _names(each))
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        nodes.append(node)
        for index, name in enumerate(node.output):
            if name in halves:
                exact, between = unique.claim(f"{name}/exact"), unique.claim(f"{name}/between")
                node.output[index] = exact
                nodes.append(helper.make_node("Identity", [exact], [between], name=between))
                nodes.append(helper.make_node("Identity", [between], [name], name=unique.claim(f"{name}/rounded")))
    reset(graph.node, nodes)
    return copy


def _names(graph: onnx.GraphProto) -> list[str]:
    values = [value.name for value in (*graph.input, *graph.initializer, *graph.output)]
    return values + [name for node in graph.node for name in (node.name, *node.output)]
