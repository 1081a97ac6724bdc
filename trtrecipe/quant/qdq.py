"""Scales → a graph with QuantizeLinear and DequantizeLinear pairs (symmetric INT8)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from trtrecipe.errors import StepError
from trtrecipe.graphs.edit import reset
from trtrecipe.graphs.files import opset
from trtrecipe.graphs.light import light
from trtrecipe.graphs.names import Unique
from trtrecipe.graphs.values import array_of
from trtrecipe.quant.overview import constants
from trtrecipe.quant.scales import Float32, scale_of, weight_scales
from trtrecipe.quant.sites import Site, Sites, find_sites

OLDEST_OPSET = 13
"""The first whose QuantizeLinear takes one scale per channel."""


def insert_qdq(
    model: onnx.ModelProto, thresholds: Mapping[str, float], keep: Collection[str] = ()
) -> tuple[onnx.ModelProto, list[str]]:
    """A copy of `model` with a pair at every site (quant.sites), and notes. Nodes named in `keep` get none.

    One pair serves all sites of a tensor; weights stay FP32 in front of their pair; zero points are 0; the operators'
    newer attributes keep their defaults, so the nodes are the same at every opset from 13 on. Nothing else changes: no
    pair on biases, readers that are no sites read what they did, every tensor of the float graph keeps its name. Raises
    StepError naming the tensor and node at fault.
    """
    if opset(model) < OLDEST_OPSET:
        raise StepError(
            f"the graph is written in opset {opset(model)}; per-channel scales need {OLDEST_OPSET} or later",
            f"set model.opset to {OLDEST_OPSET} or export the model again",
        )
    found = find_sites(model, keep)
    settled = settle(found, thresholds)
    quantized = onnx.ModelProto()
    quantized.CopyFrom(model)
    pairs = _Pairs(quantized)
    before: dict[int, list[onnx.NodeProto]] = {}
    zeros: dict[str, str] = {}
    for site in found.sites:
        node = quantized.graph.node[site.index]
        added = before.setdefault(site.index, [])
        if settled[site.activation] == 0:
            note = f"tensor {site.activation}, the input of {site.node}, was 0 in every calibration sample"
            zeros.setdefault(site.activation, f"{note}; its scale is 1")
        node.input[site.slot] = pairs.add(site.activation, scale_of(settled[site.activation]), None, added)
        if site.weight is not None:
            scales = _weight_scales(pairs.weights[site.weight], site.weight, site)
            node.input[site.weight_slot] = pairs.add(site.weight, scales, site.axis, added)
    nodes = [new for index, node in enumerate(quantized.graph.node) for new in (*before.get(index, ()), node)]
    reset(quantized.graph.node, nodes)
    onnx.checker.check_model(light(quantized)[0], full_check=True)
    return quantized, [*found.skipped, *zeros.values()]


def settle(found: Sites, thresholds: Mapping[str, float]) -> dict[str, float]:
    """Activation → the threshold that its scale is made of: calibrated, or exact; the largest of those that share one.

    Raises StepError naming the tensor and the node where `thresholds` lacks one.
    """
    settled = {}
    for site in found.sites:
        if site.activation not in thresholds:
            raise StepError(
                f"the scales have no entry for tensor {site.activation}, the input of {site.node}",
                "calibrate the same graph that is quantized",
            )
        settled[site.activation] = thresholds[site.activation] if site.exact is None else site.exact
    for group in found.groups:
        settled.update(dict.fromkeys(group, max(settled[name] for name in group)))
    return settled


class _Pairs:
    """Makes each (tensor, axis) pair once, under names that the graph does not use."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._graph = model.graph
        graph = model.graph
        present = {value.name for value in (*graph.input, *graph.initializer, *graph.value_info, *graph.output)}
        self._names = Unique(present.union(*((node.name, *node.output) for node in graph.node)))
        self._made: dict[tuple[str, int | None], str] = {}
        self.weights = {name: array_of(tensor) for name, tensor in constants(model).items()}

    def add(self, tensor: str, scales: Float32, axis: int | None, nodes: list[onnx.NodeProto]) -> str:
        """Append the pair to `nodes` unless it exists; the name of the dequantized tensor."""
        if (tensor, axis) in self._made:
            return self._made[tensor, axis]
        scale, zero, quantized, dequantized = (
            self._names.claim(f"{tensor}/{part}") for part in ("scale", "zero_point", "quantized", "dequantized")
        )
        self._graph.initializer.append(numpy_helper.from_array(scales, scale))
        self._graph.initializer.append(numpy_helper.from_array(np.zeros(scales.shape, np.int8), zero))
        attributes: dict[str, Any] = {} if axis is None else {"axis": axis}
        for operator, source, result in (
            ("QuantizeLinear", tensor, quantized),
            ("DequantizeLinear", quantized, dequantized),
        ):
            nodes.append(helper.make_node(operator, [source, scale, zero], [result], name=result, **attributes))
        self._made[tensor, axis] = dequantized
        return dequantized


def _weight_scales(weights: Float32, name: str, site: Site) -> Float32:
    if not np.isfinite(weights).all():
        raise StepError(
            f"the weights {name} of {site.node} contain NaN or infinity, which INT8 cannot hold",
            "repair the model; training probably diverged",
        )
    return weight_scales(weights, site.axis)
