"""Samples → scales: the threshold of every activation that quantize will put a pair on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

VERSION = 2
OUTPUTS = {"scales": "scales.json"}
NUMERIC = True


@dataclass(frozen=True)
class Params:
    """`method`: minmax, percentile, entropy or mse."""

    method: str
    preprocess: dict[str, list[Any]] = field(default_factory=dict)


def tools(params: Params) -> tuple[str, ...]:
    """The distributions that values depend on."""
    return ("onnx", "onnxruntime", "numpy")


MEMORY = 512 << 20
"""Bytes that observing may take beside the model, when nothing else is said."""


def run(params: Params, inputs: Mapping[str, Path], out: Path, *, memory: int = MEMORY) -> Mapping[str, Any]:
    """With "onnx" (prepared), "data.*" → scales.json; measures samples, tensors, passes.

    `memory`: bytes that observing may take beside the model. It is a limit and not a parameter: the result is the same.
    """
    from trtrecipe.data import batches
    from trtrecipe.graphs import files
    from trtrecipe.graphs.interface import interface
    from trtrecipe.quant import scales
    from trtrecipe.quant.calibrate import BATCH, observe
    from trtrecipe.quant.methods import METHODS

    model = files.load(inputs["onnx"])
    graph = interface(model)
    samples = batches.load(inputs, graph, params.preprocess)
    observed = observe(model, lambda: batches.batches(samples, graph, params.preprocess, BATCH), memory)
    thresholds = {name: METHODS[params.method](histogram) for name, histogram in observed.histograms.items()}
    ranges = {name: (histogram.min, histogram.max) for name, histogram in observed.histograms.items()}
    document = scales.dump(scales.Scales(params.method, samples.count, thresholds, ranges))
    (out / OUTPUTS["scales"]).write_bytes(document)
    return {
        "samples": samples.count,
        "tensors": len(thresholds),
        "passes": observed.passes,
        "notes": list(observed.notes),
    }
