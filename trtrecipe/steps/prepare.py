"""prepare: the exported graph, folded and simplified in ways that suit every target, with Q/DQ in TensorRT's form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

VERSION = 2
OUTPUTS = {"onnx": "model.onnx"}
NUMERIC = True  # ONNX Runtime computes the constants that are folded
PASSES = (
    "identities",
    "unused-outputs",
    "merge-transposes",
    "move-transposes",
    "duplicates",
    "constants",
    "shapes",
    "batch-normalizations",
    "affine",
    "mean-to-pool",
    "dimensions",
)
"""Names of `graphs.passes.PASSES`, which planning does not import."""


@dataclass(frozen=True)
class Params:
    """`without_passes`: those of PASSES that are turned off. What is right for one target only belongs to `lower`."""

    without_passes: list[str] = field(default_factory=list)


def tools(params: Params) -> tuple[str, ...]:
    """What rewrites the graph and computes its constants."""
    return ("numpy", "onnx", "onnxruntime")


def run(params: Params, inputs: Mapping[str, Path], out: Path) -> Mapping[str, Any]:
    """Write the simplified "onnx" to `out/model.onnx`; measurements: nodes before and after, passes, and notes.

    Quantization that the model carries ends in TensorRT's explicit form. Raises StepError where it has none.
    """
    from trtrecipe.graphs import files, sound
    from trtrecipe.graphs.carried_form import normalise
    from trtrecipe.graphs.passes import simplified

    model = files.load(inputs["onnx"])
    simple, passes = simplified(model, params.without_passes)
    result, notes = normalise(simple, params.without_passes)
    sound.check(result)
    files.save(result, out / OUTPUTS["onnx"])
    if passes:
        notes = [*notes, f"passes that changed the graph (model.without_passes turns them off): {', '.join(passes)}"]
    measured = {"nodes": len(result.graph.node), "nodes_before": len(model.graph.node)}
    return {**measured, "notes": notes} if notes else measured
