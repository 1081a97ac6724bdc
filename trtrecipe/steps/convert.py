"""Bakes FP16 into the graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VERSION = 3
OUTPUTS = {"onnx": "model.onnx"}
NUMERIC = False  # rounds constants to FP16 and nothing else


@dataclass(frozen=True)
class Params:
    """`precision`: "fp16"."""

    precision: str


def tools(params: Params) -> tuple[str, ...]:
    """ONNX and NumPy write the graph, ONNX Runtime must be able to load it."""
    return ("numpy", "onnx", "onnxruntime")


def run(params: Params, inputs: Mapping[str, Path], out: Path) -> Mapping[str, Any]:
    """Write "onnx" in FP16 wherever its operators allow it; notes on nodes that had to stay FP32.

    "keep": nodes that the recipe keeps FP32. "scales", where there was calibration: the ranges of the float graph's
    tensors, so that nodes which FP16 has no room for stay FP32 too (`graphs.overflow`).
    """
    from trtrecipe.errors import StepError
    from trtrecipe.graphs import files, keep, sound
    from trtrecipe.graphs.float16 import to_float16
    from trtrecipe.quant import scales

    if params.precision != "fp16":
        raise StepError(f"convert cannot make {params.precision}", "it makes fp16")
    kept = keep.load(inputs["keep"]) if "keep" in inputs else {}
    ranges = scales.load(inputs["scales"]).ranges if "scales" in inputs else {}
    converted, notes = to_float16(files.load(inputs["onnx"]), kept, ranges)
    sound.require_loadable(converted)
    files.save(converted, out / OUTPUTS["onnx"])
    return {"notes": notes}
