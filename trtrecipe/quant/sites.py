"""Where a graph is quantized: the one place that decides which tensors get a Q/DQ pair.

docs/quantization.md lists the rules and where each of them comes from.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import onnx
from onnx import NodeProto, TensorProto

from trtrecipe.errors import StepError
from trtrecipe.graphs.carried import INTEGER_OPERATORS, PAIR
from trtrecipe.quant import beside, copies, small
from trtrecipe.quant.overview import Overview, label, overview

OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_CARRIES = frozenset([*PAIR, *INTEGER_OPERATORS])
_SHOWN = 3


@dataclass(frozen=True)
class Site:
    """One input of a node that is read through a pair, with the constant weights beside it where the node has some.

    `axis` is the weights' output-channel axis; None means one scale for all of them. A product of two activations is
    two sites. `exact`: the largest absolute value that the tensor can take, where its operator says so; it replaces
    the calibrated threshold.
    """

    index: int  # of the node in graph.node
    node: str
    activation: str
    weight: str | None = None
    axis: int | None = None
    slot: int = 0  # the activation's place among the node's inputs; the weights are the other one of the first two
    exact: float | None = None

    @property
    def weight_slot(self) -> int:
        """The weights' place among the node's inputs."""
        return 1 - self.slot


@dataclass(frozen=True)
class Sites:
    """What is quantized, in the order of the graph's nodes, and sentences on the nodes that are not, one per reason.

    `groups`: the activations, by two or more, that share one scale.
    """

    sites: tuple[Site, ...]
    skipped: tuple[str, ...]
    groups: tuple[tuple[str, ...], ...] = ()


def find_sites(model: onnx.ModelProto, keep: Collection[str] = ()) -> Sites:
    """The inputs of the main graph's nodes that get a pair, except for those of the nodes named in `keep`.

    Keeping a node only takes pairs away, so scales found for the whole graph serve it with any `keep`.

    Conv counts channels on axis 0, ConvTranspose on axis 1, Gemm on the columns of B' (transB decides), MatMul on the
    last axis. A grouped ConvTranspose has its output channels spread over two axes, which no per-axis scale can follow,
    a MatMul by a vector has one output, and weights on the left would need a scale per row: all get a single scale.
    Raises StepError when nothing is quantizable or all of it is kept, or when the graph carries quantization already.
    """
    _refuse_quantized(model.graph)
    graph = overview(model)
    products, skipped = _products(graph)
    if not products:
        kinds = ", ".join(sorted({node.op_type for node in graph.nodes})) or "nothing"
        raise StepError(
            f"nothing in this graph can be quantized: no {', '.join(OPERATORS)} on FP32 values "
            f"({'; '.join(skipped) or f'it holds {kinds}'})",
            "use precision.mode fp16 or fp32",
        )
    present = {site.index for site in products}
    convs = {index for index in present if graph.operator(index) == "Conv"}
    sites = [site for site in products if graph.nodes[site.index].name not in keep]
    if not sites:
        raise StepError(
            "every layer that can be quantized is kept in higher precision",
            "keep fewer layers under precision.keep, or use precision.mode fp16 or fp32",
        )
    left = {site.index for site in sites}
    for residual in beside.residuals(graph, convs):
        if residual.conv in left and graph.nodes[residual.index].name not in keep:
            sites.append(_site(graph, residual.index, residual.slot))
    for index in beside.pools(graph, [site.activation for site in sites], keep):
        sites.append(_site(graph, index, 0))
    sites.sort(key=lambda site: (site.index, site.slot))
    return Sites(tuple(sites), tuple(skipped), copies.shared(graph, [site.activation for site in sites]))


def _products(graph: Overview) -> tuple[list[Site], list[str]]:
    """The sites of every Conv, ConvTranspose, Gemm and MatMul worth it, and sentences on the others.

    Where all of them are too small to be worth it, all are taken: INT8 was asked for, and it works.
    """
    found: list[Site] = []
    skipped: list[tuple[str, str]] = []
    for index in range(len(graph.nodes)):
        if graph.operator(index) in OPERATORS:
            taken = _product(graph, index)
            if isinstance(taken, str):
                skipped.append((label(graph.nodes[index]), taken))
            else:
                found += taken
    tiny = {site.index: why for site in found if (why := small.reason(graph, site.index))}
    large = [site for site in found if site.index not in tiny]
    if not large:
        return found, _sentences(skipped)
    return large, _sentences(
        [*skipped, *((f"{label(graph.nodes[at])} ({has})", wanted) for at, (has, wanted) in tiny.items())]
    )


def _sentences(skipped: Iterable[tuple[str, str]]) -> list[str]:
    """Nodes and why each of them is not quantized → a sentence for every reason."""
    nodes: dict[str, list[str]] = {}
    for node, why in skipped:
        nodes.setdefault(why, []).append(node)
    return [
        f"{', '.join(named[:_SHOWN])}"
        f"{f' and {len(named) - _SHOWN} more' if len(named) > _SHOWN else ''}"
        f" {'is' if len(named) == 1 else 'are'} not quantized: {why}"
        for why, named in nodes.items()
    ]


def _product(graph: Overview, index: int) -> list[Site] | str:
    """The node's sites, or why it has none; none without a reason for a product of constants."""
    node = graph.nodes[index]
    slots = [slot for slot, name in enumerate(node.input[:2]) if name not in graph.constants]
    for slot, name in enumerate(node.input[:2]):
        if not graph.is_float(name):
            kind = TensorProto.DataType.Name(graph.types[name])
            return f"the {'inputs' if slot in slots else 'weights'} are {kind}, not FLOAT"
    if graph.operator(index).startswith("Conv") and slots == [0, 1]:
        return "the weights are computed"
    if len(slots) != 1:
        return [_site(graph, index, slot) for slot in slots]
    (slot,) = slots
    weight = node.input[1 - slot]
    axis = _channel_axis(node, len(graph.constants[weight].dims)) if slot == 0 else None
    return [Site(index, label(node), node.input[slot], weight, axis, slot, _exact(graph, node.input[slot]))]


def _site(graph: Overview, index: int, slot: int) -> Site:
    node = graph.nodes[index]
    return Site(index, label(node), node.input[slot], slot=slot, exact=_exact(graph, node.input[slot]))


def _exact(graph: Overview, tensor: str) -> float | None:
    """Softmax gives 0 to 1 whatever it is given, and its few large values are the ones that matter."""
    maker = copies.origin(graph, tensor)
    return 1.0 if maker is not None and graph.operator(maker) == "Softmax" else None


def _channel_axis(node: NodeProto, rank: int) -> int | None:
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1 if attributes.get("group", 1) == 1 else None
    if node.op_type == "Gemm":
        return 0 if attributes.get("transB", 0) else 1
    return rank - 1 if rank > 1 else None


def _refuse_quantized(graph: onnx.GraphProto) -> None:
    for node in graph.node:
        if node.op_type in _CARRIES:
            raise StepError(
                f"the model is already quantized: it contains {label(node)}",
                "write calibration: {model: true} to use its scales, or start from the float model",
            )
