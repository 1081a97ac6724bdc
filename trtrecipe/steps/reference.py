"""FP32 outputs and task metric of the exported graph on the evaluation data, by ONNX Runtime.

Nothing is optimized and one thread computes: the reference is what the file says, bit for bit the same each time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

VERSION = 2
OUTPUTS = {"outputs": "outputs.npz", "preprocessing": "preprocessing.json"}
NUMERIC = True


@dataclass(frozen=True)
class Params:
    """`drawn`: {"samples", "seed", "dims"} when there is no data. `output`: what the metric reads, else the first."""

    preprocess: dict[str, list[Any]] = field(default_factory=dict)
    metric: str | None = None
    output: str | None = None
    drawn: dict[str, Any] | None = None


def tools(params: Params) -> tuple[str, ...]:
    """The distributions that values depend on."""
    return ("onnx", "onnxruntime", "numpy")


def run(params: Params, inputs: Mapping[str, Path], out: Path) -> Mapping[str, Any]:
    """With "onnx", "data.*" → outputs of all samples, preprocessing contract; measures samples, accuracy, notes."""
    from trtrecipe.data import checks, draw, outputs, preprocess
    from trtrecipe.engines.ort import OrtEngine
    from trtrecipe.graphs import files
    from trtrecipe.graphs.interface import interface
    from trtrecipe.steps.evaluation import batches_of, samples_of, score

    graph = interface(files.load(inputs["onnx"]))
    samples = samples_of(params, inputs, graph)
    looked = [] if params.drawn is not None else checks.look(samples, graph, params.preprocess)
    with OrtEngine(inputs["onnx"]) as engine:
        collected, notes = outputs.collect(engine.run, batches_of(params, samples, graph))
    outputs.write_npz(out / OUTPUTS["outputs"], collected)
    if params.drawn is not None:
        looked = [f"no data: results are compared on {samples.count} drawn samples, {draw.DISTRIBUTION}"]
    (out / OUTPUTS["preprocessing"]).write_bytes(preprocess.document(graph, params.preprocess, samples.raw))
    return {"samples": samples.count, **score(params, samples, graph, collected), "notes": [*looked, *notes]}
