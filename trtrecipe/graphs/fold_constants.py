"""Constant folding: what a node computes from constants alone is computed now, by ONNX Runtime."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import onnxruntime
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper, shape_inference

from trtrecipe.graphs.carried import is_pair_node
from trtrecipe.graphs.edit import remove_nodes, subgraphs
from trtrecipe.graphs.files import opset
from trtrecipe.graphs.values import inline

LARGEST = 1 << 20
"""Bytes that a constant may have which is larger than what it is computed from."""

_READ_BY_INFERENCE = 1024
"""Entries of a constant whose values, not only its shape, may decide the shape of a result."""

RANDOM = {
    "Bernoulli",
    "Dropout",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
}
"""Operators that give something else each time."""


def fold_constants(model: ModelProto) -> bool:
    """Replace nodes whose inputs are all constant by their results, in place; whether there were any.

    Results that would be large and larger than their inputs (Expand, Tile, Range) stay computed, and so do nodes for
    which ONNX Runtime has no kernel. Graph outputs stay the output of a node. Q/DQ stay too: pairs on weights say that
    the weights are quantized, and with which scales.
    """
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    outputs = {value.name for value in graph.output}
    folded = []
    for index, node in enumerate(graph.node):
        if not _foldable(node, constants, outputs):
            continue
        results = _evaluate(model, node, [inline(constants[name]) for name in dict.fromkeys(node.input) if name])
        if results is None:
            continue
        for tensor in results:
            constants[tensor.name] = tensor
            graph.initializer.append(tensor)
        folded.append(index)
    remove_nodes(graph, folded)
    return bool(folded)


def _foldable(node: NodeProto, constants: Mapping[str, TensorProto], outputs: set[str]) -> bool:
    return (
        not node.domain
        and any(node.input)
        and node.op_type not in RANDOM
        and not is_pair_node(node)
        and not any(subgraphs(node))
        and all(not name or name in constants for name in node.input)
        and not outputs.intersection(node.output)
    )


def _evaluate(model: ModelProto, node: NodeProto, inputs: list[TensorProto]) -> list[TensorProto] | None:
    names = [name for name in node.output if name]
    if not _bounded(model, node, inputs, names):
        return None
    try:
        values = _run(_single(model, node, [], inputs, names), names)
        return [numpy_helper.from_array(value, name) for value, name in zip(values, names, strict=True)]
    except Exception:  # no kernel for this type, or values it refuses: the node stays, whole-graph checks decide
        return None


def _single(
    model: ModelProto, node: NodeProto, inputs: list[ValueInfoProto], constants: list[TensorProto], outputs: list[str]
) -> ModelProto:
    graph = helper.make_graph([node], "one", inputs, [ValueInfoProto(name=name) for name in outputs], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset(model))], ir_version=model.ir_version)


def _bounded(model: ModelProto, node: NodeProto, inputs: list[TensorProto], names: list[str]) -> bool:
    """Whether the results are known to be small enough, before anything is computed."""
    small = [tensor for tensor in inputs if math.prod(tensor.dims) <= _READ_BY_INFERENCE]
    large = [tensor for tensor in inputs if math.prod(tensor.dims) > _READ_BY_INFERENCE]
    given = [helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)) for tensor in large]
    try:
        inferred = shape_inference.infer_shapes(_single(model, node, given, small, names), data_prop=True)
    except shape_inference.InferenceError:
        return False
    limit = max(LARGEST, sum(_size(tensor.data_type, list(tensor.dims)) for tensor in inputs))
    for value in inferred.graph.output:
        tensor = value.type.tensor_type
        if not tensor.HasField("shape") or not all(dim.HasField("dim_value") for dim in tensor.shape.dim):
            return False
        if _size(tensor.elem_type, [dim.dim_value for dim in tensor.shape.dim]) > limit:
            return False
    return True


def _size(kind: int, dims: list[int]) -> int:
    return int(math.prod(dims) * helper.tensor_dtype_to_np_dtype(kind).itemsize)


def _run(model: ModelProto, names: list[str]) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    inferred = shape_inference.infer_shapes(model, data_prop=True)
    session = onnxruntime.InferenceSession(inferred.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(names, {}))
