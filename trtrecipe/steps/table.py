"""Float graph and scales → the calibration table that TensorRT quantizes it with implicitly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VERSION = 1
OUTPUTS = {"table": "calibration.table"}
NUMERIC = False  # divisions of float32 and nothing else: the same everywhere


@dataclass(frozen=True)
class Params:
    """`tensorrt`: the exact version that the table is for, such as "8.5.2"; its header names it."""

    tensorrt: str


def tools(params: Params) -> tuple[str, ...]:
    """The distributions that the table's bytes depend on."""
    return ("onnx", "numpy")


def run(params: Params, inputs: Mapping[str, Path], out: Path) -> Mapping[str, Any]:
    """With "onnx" (lowered), "scales" → the table; measures its tensors, notes those that were always 0.

    A line for each FP32 activation of the graph, inputs first, then in the order of nodes. Raises StepError listing the
    activations that the scales lack, and for a TensorRT version that takes no table.
    """
    from trtrecipe.graphs import files
    from trtrecipe.quant import scales, table

    table.version_number(params.tensorrt)  # refused before anything is read
    thresholds = scales.load(inputs["scales"]).thresholds
    names = _activations(files.load(inputs["onnx"]), thresholds)
    _require(names, thresholds)
    values = scales.scale_of([thresholds[name] for name in names]).tolist()
    made = table.Table(params.tensorrt, table.ENTROPY_2, dict(zip(names, values, strict=True)))
    (out / OUTPUTS["table"]).write_bytes(table.dump(made))
    dead = [name for name in names if thresholds[name] == 0]
    notes = [f"tensor {name} was 0 in every calibration sample; its scale is 1" for name in dead]
    return {"tensors": len(names), "notes": notes}


def _activations(model: Any, thresholds: Mapping[str, float]) -> list[str]:
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


def _require(names: list[str], thresholds: Mapping[str, float]) -> None:
    from trtrecipe.errors import StepError
    from trtrecipe.graphs.sound import listed

    if missing := [name for name in names if name not in thresholds]:
        raise StepError(
            f"{len(missing)} of the graph's {len(names)} FP32 tensors have no calibrated range, so that TensorRT could "
            "not quantize the layers around them:\n" + listed(missing),
            "calibrate the same graph that the table is for; scales from a table must be of this network",
        )
    if not names:
        raise StepError("the graph has no FP32 tensors, so there is nothing to quantize", "use precision.mode fp16")
