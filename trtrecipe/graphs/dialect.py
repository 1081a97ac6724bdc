"""Repairs for dialects: what a target's list of operators lacks, said with operators that it has."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import ModelProto, helper, numpy_helper

from trtrecipe.graphs.edit import all_graphs, all_nodes, reset, tensor_names
from trtrecipe.graphs.names import Unique
from trtrecipe.graphs.shapes import infer


def fit_operators(model: ModelProto, supported: Mapping[str, bool]) -> list[str]:
    """Rewrite in place the operators that `supported` lacks and for which there is another form; a note on each kind.

    Reciprocal(x) becomes Div(1, x), which is the same number.
    """
    if supported.get("Reciprocal", False) or not supported.get("Div", False):
        return []
    if all(node.op_type != "Reciprocal" or node.domain for node in all_nodes(model.graph)):
        return []
    count = _divide(model)
    return [f"Reciprocal is not in the target's list of operators: {count} written as Div"] if count else []


def _divide(model: ModelProto) -> int:
    """Write each Reciprocal as Div in place; how many. One whose type cannot be inferred stays."""
    unique = Unique(tensor_names(model.graph))
    ones: dict[int, str] = {}
    count = 0
    for graph, inferred in zip(all_graphs(model.graph), all_graphs(infer(model).graph), strict=True):
        types = {v.name: v.type.tensor_type.elem_type for v in (*inferred.value_info, *inferred.output)}
        for node in graph.node:
            kind = types.get(node.output[0], 0)
            if node.op_type != "Reciprocal" or node.domain or not kind:
                continue
            if kind not in ones:
                ones[kind] = unique.claim("one")
                one = np.ones((), helper.tensor_dtype_to_np_dtype(kind))
                model.graph.initializer.append(numpy_helper.from_array(one, ones[kind]))
            node.op_type = "Div"
            reset(node.input, [ones[kind], node.input[0]])
            count += 1
    return count
