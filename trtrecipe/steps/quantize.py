"""Float graph and scales → INT8 graph with Q/DQ pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VERSION = 2
OUTPUTS = {"onnx": "model.onnx"}
NUMERIC = False  # divisions of float32 and nothing else: the same everywhere


@dataclass(frozen=True)
class Params:
    """No parameters."""


def tools(params: Params) -> tuple[str, ...]:
    """The distributions that the graph's bytes depend on."""
    return ("onnx", "numpy")


def run(params: Params, inputs: Mapping[str, Path], out: Path) -> Mapping[str, Any]:
    """With "onnx" (lowered), "scales" and, where layers are kept in higher precision, "keep" → the quantized graph.

    Notes say what stays in floating point. A graph that carries Q/DQ already passes through as it is.
    """
    from trtrecipe.graphs import files, keep
    from trtrecipe.quant import scales
    from trtrecipe.quant.carried import carries_quantization
    from trtrecipe.quant.qdq import insert_qdq

    model = files.load(inputs["onnx"])
    notes: list[str] = []
    if not carries_quantization(model):
        kept = keep.load(inputs["keep"]) if "keep" in inputs else {}
        model, notes = insert_qdq(model, scales.load(inputs["scales"]).thresholds, kept)
    files.save(model, out / OUTPUTS["onnx"])
    return {"notes": notes}
