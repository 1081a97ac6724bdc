"""Scales that a model brings along, read off its Q/DQ pairs."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto

from trtrecipe.errors import StepError
from trtrecipe.graphs.carried import QUANTIZE, carries, constants, is_pair_node
from trtrecipe.graphs.values import array_of
from trtrecipe.quant.scales import LIMIT


def carries_quantization(model: ModelProto) -> bool:
    """Whether the model has Q/DQ pairs of its own, so that nothing is left to calibrate or to place."""
    return carries(model)


def carried_thresholds(model: ModelProto) -> dict[str, float]:
    """Activation tensor in front of a pair → the float32 value 127 * scale, in graph order. Weights are left out.

    `model` is prepared: per-tensor symmetric INT8 on activations. A tensor in front of several pairs gets the largest.
    Raises StepError, naming the node, where the scale is no single constant.
    """
    held = constants(model)
    found: dict[str, float] = {}
    for node in model.graph.node:
        if node.op_type != QUANTIZE or not is_pair_node(node) or node.input[0] in held:
            continue
        scale = held.get(node.input[1])
        if scale is None or int(np.prod(scale.dims)) != 1:
            raise StepError(
                f"the scale of {node.op_type} {node.name or node.output[0]} is no single constant",
                "prepare the model first: it brings Q/DQ into the form that TensorRT takes",
            )
        threshold = float(np.float32(LIMIT) * array_of(scale).astype(np.float32).reshape(()))
        found[node.input[0]] = max(threshold, found.get(node.input[0], 0.0))
    return found
