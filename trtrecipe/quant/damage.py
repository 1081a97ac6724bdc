"""How much each quantized node harms what the model gives out: a pass over the samples in which the nodes take turns.

In the graph every node that `qdq.insert_qdq` gives pairs to can read its inputs either through them or as they are. A
sample runs once with nothing quantized, then with one node quantized, the next sample with the next node, and so on
round: each node gets between `LEAST` and `MOST` samples, spread evenly over them all, and the number of runs does not
grow with nodes times samples. For every output

    damage = E / (E + S),  E = Σ (quantized - float)²,  S = Σ float²,  sums over the node's samples and all elements

is the share of noise in the output's power: 0 where INT8 changes nothing, 1/2 where the noise is as strong as the
output, close to 1 where nothing of it is left. For outputs that are not floating-point it is the share of elements that
differ. A node's damage is that of the output which it harms most.

One node quantized at a time is the usual sensitivity analysis ("partial quantization" in
https://arxiv.org/abs/2004.09602), at the price of an evaluation for each. The noise that a node adds to its own output
could be had for all at once, but says less: much depends on what follows (https://arxiv.org/abs/2012.08420). On the
recipes residual and transformer, the order by own noise has a rank correlation of 0.5 and 0.3 with the order by a full
evaluation for each node, this one of 0.97 and 0.94.

Memory: the graph, and one run's tensors. Samples run one by one where the model leaves their number open.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from trtrecipe.data.batches import Batch
from trtrecipe.data.preprocess import Array
from trtrecipe.engines.ort import OrtEngine
from trtrecipe.graphs import files, values
from trtrecipe.graphs.edit import reset
from trtrecipe.graphs.names import Unique
from trtrecipe.quant.qdq import insert_qdq

BATCH = 1
"""Samples that run at once where the model leaves the number open."""
LEAST, MOST = 4, 16
"""Runs that a node gets: as many as there are batches for each, within these."""

_NOTHING = -1


@dataclass(frozen=True)
class Damage:
    """A quantized node and its damage (0 to 1, see above)."""

    node: str
    operator: str
    damage: float


def rank(
    model: onnx.ModelProto,
    thresholds: Mapping[str, float],
    keep: Collection[str],
    batch: Callable[[int], Batch],
    count: int,
) -> tuple[Damage, ...]:
    """Every node that is quantized when those in `keep` are not, the most harmful first; equals in the graph's order.

    `batch` gives each of `count` batches by its number. Raises StepError as `insert_qdq` does.
    """
    switched = _switched(model, thresholds, keep)
    names = [value.name for value in switched.model.graph.output]
    sums = np.zeros((len(switched.nodes), len(names), 2))
    runs = len(switched.nodes) * min(MOST, max(LEAST, count // len(switched.nodes)))
    with _engine(switched.model) as engine:
        for index in range(count):
            turns = range(-(-index * runs // count), -(-(index + 1) * runs // count))
            if not turns:
                continue
            feeds = batch(index).feeds
            exact = engine.run({**feeds, switched.choice: np.array(_NOTHING)})
            for turn in turns:
                node = turn % len(switched.nodes)
                values = engine.run({**feeds, switched.choice: np.array(node)})
                sums[node] += [_noise(values[name], exact[name]) for name in names]
    found = [
        Damage(node.name, node.op_type, max(_share(*map(float, sums[index, output])) for output in range(len(names))))
        for index, node in enumerate(switched.nodes)
    ]
    return tuple(sorted(found, key=lambda each: -each.damage))


@dataclass(frozen=True)
class _Switched:
    """`model` quantizes the one of `nodes` whose position the scalar input `choice` gives, INT64."""

    model: onnx.ModelProto
    nodes: Sequence[onnx.NodeProto]
    choice: str


def _switched(model: onnx.ModelProto, thresholds: Mapping[str, float], keep: Collection[str]) -> _Switched:
    quantized, _ = insert_qdq(model, thresholds, keep)
    graph = quantized.graph
    origins = _origins(graph)
    unique = Unique(_names(graph))
    choice = unique.claim("choice")
    nodes: list[onnx.NodeProto] = []
    found: list[onnx.NodeProto] = []
    for node in graph.node:
        slots = [slot for slot, name in enumerate(node.input) if name in origins]
        if slots:
            number, chosen = unique.claim(f"{node.name}/number"), unique.claim(f"{node.name}/chosen")
            graph.initializer.append(numpy_helper.from_array(np.array(len(found)), number))
            nodes.append(helper.make_node("Equal", [choice, number], [chosen], chosen))
            for slot in slots:
                through, read = node.input[slot], unique.claim(f"{node.input[slot]}/read")
                nodes.append(helper.make_node("Where", [chosen, through, origins[through]], [read], read))
                node.input[slot] = read
            found.append(node)
        nodes.append(node)
    reset(graph.node, nodes)
    graph.input.append(helper.make_tensor_value_info(choice, TensorProto.INT64, []))
    return _Switched(quantized, found, choice)


def _origins(graph: onnx.GraphProto) -> dict[str, str]:
    """What a DequantizeLinear gives out → the tensor that its QuantizeLinear reads."""
    quantized = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "QuantizeLinear"}
    return {
        node.output[0]: quantized[node.input[0]]
        for node in graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in quantized
    }


def _noise(values: Array, exact: Array) -> tuple[float, float]:
    """E and S of one run."""
    if values.shape != exact.shape:  # as of what is left after non-maximum suppression
        return float(max(values.size, exact.size)), 0.0
    if exact.dtype.kind != "f":
        same = int((values == exact).sum())
        return float(exact.size - same), float(same)
    finite = np.isfinite(exact)
    ours, theirs = (each[finite].astype(np.float64) for each in (values, exact))
    return float(np.square(ours - theirs).sum()), float(np.square(theirs).sum())


def _share(error: float, power: float) -> float:
    if not np.isfinite(error + power):
        return 1.0
    return error / (error + power) if error else 0.0


def _engine(model: onnx.ModelProto) -> OrtEngine:
    """Through a file, as there would be more copies of the weights in memory otherwise."""
    if any(values.outside(model)):
        return OrtEngine(model)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "damage.onnx"
        files.save(model, path)
        return OrtEngine(path)


def _names(graph: onnx.GraphProto) -> list[str]:
    values = [value.name for value in (*graph.input, *graph.initializer, *graph.output)]
    return values + [name for node in graph.node for name in (node.name, *node.output)]
