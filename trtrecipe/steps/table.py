"""Float graph and scales → the calibration table that TensorRT quantizes it with implicitly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnx import ModelProto

VERSION = 2
OUTPUTS = {"table": "calibration.table"}
NUMERIC = False  # divisions of float32 and nothing else: the same everywhere

_SHOWN = 8


@dataclass(frozen=True)
class Params:
    """`tensorrt`: the exact version that the table is for, such as "8.5.2"; its header names it."""

    tensorrt: str


def tools(params: Params) -> tuple[str, ...]:
    """The distributions that the table's bytes depend on."""
    return ("onnx", "numpy")


def run(params: Params, inputs: Mapping[str, Path], out: Path) -> Mapping[str, Any]:
    """With "onnx" (lowered), "scales" → the table; measures its tensors, notes those without a line or always 0.

    A line for each FP32 activation of the graph that has a range, inputs first, then in the order of nodes. Scales are
    those of the Q/DQ form; those of a table that was given stay as they are. Raises StepError where the scales are not
    of this graph, and for a TensorRT version that takes no table.
    """
    from trtrecipe.errors import StepError
    from trtrecipe.graphs import files
    from trtrecipe.quant import scales, table

    table.version_number(params.tensorrt)  # refused before anything is read
    given = scales.load(inputs["scales"])
    model = files.load(inputs["onnx"])
    every = _activations(model, given.thresholds)
    names = [name for name in every if name in given.thresholds]
    if not names:
        raise StepError("the graph has no FP32 tensors, so there is nothing to quantize", "use precision.mode fp16")
    thresholds = given.thresholds if given.method == "table" else _settled(model, names, given.thresholds)
    values = scales.scale_of([thresholds[name] for name in names]).tolist()
    made = table.Table(params.tensorrt, table.ENTROPY_2, dict(zip(names, values, strict=True)))
    (out / OUTPUTS["table"]).write_bytes(table.dump(made))
    dead = [name for name in names if thresholds[name] == 0]
    notes = [f"tensor {name} was 0 in every calibration sample; its scale is 1" for name in dead]
    return {"tensors": len(names), "notes": [*_missing(every, names), *notes]}


def _settled(model: ModelProto, names: Sequence[str], thresholds: Mapping[str, float]) -> dict[str, float]:
    """The thresholds that Q/DQ get, and those of the tensors that copies join with them the same."""
    from trtrecipe.quant import copies
    from trtrecipe.quant.overview import overview
    from trtrecipe.quant.qdq import settle
    from trtrecipe.quant.sites import find_sites

    settled = settle(find_sites(model), thresholds)
    found = {**thresholds, **settled}
    for group in copies.shared(overview(model), names):
        if paired := [settled[name] for name in group if name in settled]:
            found.update(dict.fromkeys(group, max(paired)))
    return found


def _activations(model: ModelProto, thresholds: Mapping[str, float]) -> list[str]:
    """Names of the main graph's FP32 tensors that are no constants, inputs first, then in the order of nodes.

    A tensor whose type cannot be inferred is one of them when it was calibrated.
    """
    from onnx import TensorProto

    from trtrecipe.graphs.edit import DEFAULT_DOMAINS
    from trtrecipe.graphs.shapes import infer

    graph = infer(model).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output)}
    constant = {tensor.name for tensor in graph.initializer}
    found = [
        value.name
        for value in graph.input
        if value.name not in constant and value.type.tensor_type.elem_type == TensorProto.FLOAT
    ]
    for node in graph.node:
        if node.op_type == "Constant" and node.domain in DEFAULT_DOMAINS:
            continue
        for name in filter(None, node.output):
            kind = types.get(name, TensorProto.FLOAT if name in thresholds else TensorProto.UNDEFINED)
            if kind == TensorProto.FLOAT:
                found.append(name)
    return found


def _missing(every: Sequence[str], names: Sequence[str]) -> list[str]:
    """Of tensors that were not finite in calibration, and of those that came into the graph after it."""
    missing = [name for name in every if name not in set(names)]
    if not missing:
        return []
    more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
    return [
        f"{len(missing)} of the graph's {len(every)} FP32 tensors have no calibrated range and no line in the table, "
        f"so that TensorRT does not quantize the layers around them: {', '.join(missing[:_SHOWN])}{more}"
    ]
