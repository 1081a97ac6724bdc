"""Float graph and scales → INT8 graph with Q/DQ pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VERSION = 1
OUTPUTS = {"onnx": "model.onnx"}
NUMERIC = False  # divisions of float32 and nothing else: the same everywhere


@dataclass(frozen=True)
class Params:
    """No parameters."""


def tools(params: Params) -> tuple[str, ...]:
    """The distributions that the graph's bytes depend on."""
    return ("onnx", "numpy")


def run(params: Params, inputs: Mapping[str, Path], out: Path) -> Mapping[str, Any]:
    """With "onnx" (lowered), "scales" → the quantized graph; notes on what stays in floating point."""
    from trtrecipe.graphs import files
    from trtrecipe.quant import scales
    from trtrecipe.quant.qdq import insert_qdq

    quantized, notes = insert_qdq(files.load(inputs["onnx"]), scales.load(inputs["scales"]).thresholds)
    files.save(quantized, out / OUTPUTS["onnx"])
    return {"notes": notes}
