"""Bakes FP16 into the graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VERSION = 2
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
    """With "onnx" → the graph in FP16 wherever its operators allow it; notes on nodes that had to stay FP32."""
    from trtrecipe.errors import StepError
    from trtrecipe.graphs import files, sound
    from trtrecipe.graphs.float16 import to_float16

    if params.precision != "fp16":
        raise StepError(f"convert cannot make {params.precision}", "it makes fp16")
    converted, notes = to_float16(files.load(inputs["onnx"]))
    sound.require_loadable(converted)
    files.save(converted, out / OUTPUTS["onnx"])
    return {"notes": notes}
