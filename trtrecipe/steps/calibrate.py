"""Samples → scales: the threshold of every activation that quantize will put a pair on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

VERSION = 1
OUTPUTS = {"scales": "scales.json"}
NUMERIC = True


@dataclass(frozen=True)
class Params:
    """`method`: minmax, percentile or entropy."""

    method: str
    preprocess: dict[str, list[Any]] = field(default_factory=dict)


def tools(params: Params) -> tuple[str, ...]:
    """The distributions that values depend on."""
    return ("onnx", "onnxruntime", "numpy")


def run(params: Params, inputs: Mapping[str, Path], out: Path) -> Mapping[str, Any]:
    """With "onnx" (prepared), "data.*" → scales.json; measures samples and tensors."""
    from trtrecipe.data import batches
    from trtrecipe.graphs import files
    from trtrecipe.graphs.interface import interface
    from trtrecipe.quant import scales
    from trtrecipe.quant.calibrate import thresholds

    model = files.load(inputs["onnx"])
    graph = interface(model)
    samples = batches.load(inputs, graph, params.preprocess)
    found, notes = thresholds(model, params.method, lambda: batches.batches(samples, graph, params.preprocess))
    document = scales.dump(scales.Scales(params.method, samples.count, found))
    (out / OUTPUTS["scales"]).write_bytes(document)
    return {"samples": samples.count, "tensors": len(found), "notes": notes}
