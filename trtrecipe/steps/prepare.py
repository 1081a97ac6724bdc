"""prepare: the exported graph, folded and simplified in ways that suit every target, with Q/DQ in TensorRT's form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VERSION = 1
OUTPUTS = {"onnx": "model.onnx"}
NUMERIC = True  # ONNX Runtime computes the constants that are folded


@dataclass(frozen=True)
class Params:
    """No parameters: what is right for one target only belongs to `lower`."""


def tools(params: Params) -> tuple[str, ...]:
    """What rewrites the graph and computes its constants."""
    return ("numpy", "onnx", "onnxruntime")


def run(params: Params, inputs: Mapping[str, Path], out: Path) -> Mapping[str, Any]:
    """Write the simplified "onnx" to `out/model.onnx`; measurements: nodes before and after, and notes.

    Quantization that the model carries ends in TensorRT's explicit form. Raises StepError where it has none.
    """
    from trtrecipe.graphs import files, sound
    from trtrecipe.graphs.carried_form import normalise
    from trtrecipe.graphs.passes import simplify

    model = files.load(inputs["onnx"])
    result, notes = normalise(simplify(model))
    sound.check(result)
    files.save(result, out / OUTPUTS["onnx"])
    measured = {"nodes": len(result.graph.node), "nodes_before": len(model.graph.node)}
    return {**measured, "notes": notes} if notes else measured
