"""Means over images become pooling, for which every release has INT8."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from trtrecipe.graphs.edit import attribute, reset, tensor_names
from trtrecipe.graphs.known import Known, known
from trtrecipe.graphs.names import Unique

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
_IMAGE_RANKS = (4, 5)
"""Of 3 axes the last is as well the features of a sequence, whose mean is no pooling."""


def pool_means(model: ModelProto) -> bool:
    """Make GlobalAveragePool of ReduceMean over exactly the axes behind batch and channels, in place; whether any was.

    Axes that do not stay are dropped by a Squeeze behind it.
    """
    if all(node.op_type != "ReduceMean" or node.domain for node in model.graph.node):
        return False
    facts, unique = known(model), Unique(tensor_names(model.graph) | {node.name for node in model.graph.node})
    nodes: list[NodeProto] = []
    changed = False
    for node in model.graph.node:
        axes = _image_axes(node, facts)
        nodes.extend([node] if axes is None else _pooled(model, node, axes, unique))
        changed = changed or axes is not None
    reset(model.graph.node, nodes)
    return changed


def _image_axes(node: NodeProto, facts: Known) -> list[int] | None:
    """All axes of the mean's input behind the second, if the mean is over these; else None."""
    if node.op_type != "ReduceMean" or node.domain or facts.types.get(node.input[0]) not in _FLOATS:
        return None
    shape = facts.shapes.get(node.input[0])
    axes = reduced_axes(node, facts)
    if shape is None or len(shape) not in _IMAGE_RANKS or axes is None:
        return None
    image = list(range(2, len(shape)))
    return image if sorted(axis % len(shape) for axis in axes) == image else None


def reduced_axes(node: NodeProto, facts: Known) -> list[int] | None:
    """The axes that a Reduce operator names, as it names them; None where it names none or they are computed."""
    given = attribute(node, "axes")
    if given is None and len(node.input) > 1 and node.input[1]:
        value = facts.value(node.input[1])
        given = None if value is None else value.tolist()
    return list(given) if given else None


def _pooled(model: ModelProto, node: NodeProto, axes: list[int], unique: Unique) -> list[NodeProto]:
    keeps = bool(attribute(node, "keepdims", 1))
    result = node.output[0] if keeps else unique.claim(f"{node.name or node.output[0]}/GlobalAveragePool")
    pool = helper.make_node("GlobalAveragePool", [node.input[0]], [result], name=node.name)
    if keeps:
        return [pool]
    named = unique.claim(f"{node.name or node.output[0]}/axes")
    model.graph.initializer.append(numpy_helper.from_array(np.array(axes, np.int64), named))
    squeeze = unique.claim(f"{node.name or node.output[0]}/Squeeze")
    return [pool, helper.make_node("Squeeze", [result, named], [node.output[0]], name=squeeze)]
