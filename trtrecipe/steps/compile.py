"""ONNX → engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

VERSION = 1
OUTPUTS = {"engine": "model.engine"}
NUMERIC = True
_TOOLS = {"onnxruntime": ("onnxruntime",), "tensorrt-rtx": ("tensorrt-rtx", "onnx")}


@dataclass(frozen=True)
class Params:
    """`dims`: name → {"min", "opt", "max"}. `workspace`: bytes that tactics may use; tensorrt-rtx only, as are dims."""

    builder: str
    dims: dict[str, dict[str, int]] = field(default_factory=dict)
    workspace: int | None = None


def tools(params: Params) -> tuple[str, ...]:
    """The distributions that the engine's bytes depend on."""
    return _TOOLS.get(params.builder, ())


def run(params: Params, inputs: Mapping[str, Path], out: Path) -> Mapping[str, Any]:
    """With "onnx" → the engine. Measures its size in bytes, and notes."""
    engine, notes = out / OUTPUTS["engine"], list[str]()
    if params.builder == "onnxruntime":
        from trtrecipe.engines import ort

        ort.build(inputs["onnx"], engine)
    elif params.builder == "tensorrt-rtx":
        from trtrecipe.engines import rtx_build
        from trtrecipe.graphs import files

        notes = rtx_build.build(files.load(inputs["onnx"]), engine, params.dims, params.workspace)
    else:
        from trtrecipe.errors import StepError

        raise StepError(f"no engine builder is called {params.builder}", f"builders: {', '.join(_TOOLS)}")
    return {"size": engine.stat().st_size, "notes": notes}
