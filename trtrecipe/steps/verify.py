"""What was built, against the FP32 reference: on the same samples, output by output."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trtrecipe.engines import Engine

VERSION = 1
OUTPUTS: Mapping[str, str] = {}
NUMERIC = True
_RUNTIMES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt-rtx", "litert": "ai-edge-litert"}
"""Runtime of an engine → the distribution it is, where that is not ONNX Runtime."""


@dataclass(frozen=True)
class Params:
    """`evaluates`: "engine" runs it by `runtime`; "graph" runs what it was compiled from by ONNX Runtime.

    In a graph, every FP16 tensor is rounded to FP16, as a GPU would. `device`: where the engine runs on one, the
    "samples" that run there at most, the "seed" that chooses them, and the "dla_core" of the engine.
    """

    runtime: str
    evaluates: str
    preprocess: dict[str, list[Any]] = field(default_factory=dict)
    metric: str | None = None
    output: str | None = None
    drawn: dict[str, Any] | None = None
    dims: dict[str, dict[str, int]] = field(default_factory=dict)
    device: dict[str, Any] | None = None


def tools(params: Params) -> tuple[str, ...]:
    """The distributions that figures depend on; a device's own software is in its fingerprint."""
    if params.device is not None:
        return ("onnx", "numpy")
    runtime = _RUNTIMES.get(params.runtime, "onnxruntime") if params.evaluates == "engine" else "onnxruntime"
    return ("onnx", "numpy", runtime)


def run(
    params: Params,
    inputs: Mapping[str, Path],
    out: Path,
    *,
    device: Mapping[str, Any] | None = None,
    key: str = "",
    say: Callable[[str], None] = print,
) -> Mapping[str, Any]:
    """With "engine", "onnx", "reference", "data.*" → figures; no output.

    Measures samples, evaluated, the figures of `evaluation.compare`, and notes; on a `device` also what
    `on_device.evaluate` does. Raises StepError for outputs that are not finite where the reference is, Unreachable.
    """
    from trtrecipe.data import outputs
    from trtrecipe.graphs import files
    from trtrecipe.graphs.interface import interface
    from trtrecipe.steps.evaluation import batches_of, compare, samples_of

    graph = interface(files.load(inputs["onnx"]))
    reference = outputs.read_npz(inputs["reference"])
    samples = samples_of(params, inputs, graph)
    if params.device is not None:
        from trtrecipe.steps import on_device

        assert device is not None  # the plan gives such a step a device
        return on_device.evaluate(
            params, params.dims, params.device, inputs, graph, samples, reference, device, key, say
        )
    with _open(params, inputs) as engine:
        collected, notes = outputs.collect(engine.run, batches_of(params, samples, graph, _size(params, graph)))
    figures: dict[str, Any] = {"samples": samples.count, "evaluated": params.evaluates}
    figures |= compare(params, samples, graph, collected, reference)
    return {**figures, "notes": notes}


def _open(params: Params, inputs: Mapping[str, Path]) -> Engine:
    if params.evaluates == "engine" and params.runtime in ("tensorrt", "tensorrt-rtx"):
        from trtrecipe.engines.tensorrt_run import TensorRtEngine

        return TensorRtEngine(inputs["engine"], params.runtime.replace("-", "_"))
    if params.evaluates == "engine" and params.runtime == "litert":
        from trtrecipe.engines.tflite import TfliteEngine

        return TfliteEngine(inputs["engine"])
    from trtrecipe.engines.ort import OrtEngine

    if params.evaluates == "engine":
        return OrtEngine(inputs["engine"])
    from trtrecipe.graphs import files
    from trtrecipe.graphs.rounded import rounded

    return OrtEngine(rounded(files.load(inputs["onnx"])))


def _size(params: Params, graph: Any) -> int:
    """The batch: what the engine is tuned for where its range is limited, else the constant one."""
    from trtrecipe.data.batches import BATCH

    if params.evaluates == "graph" or params.runtime in ("onnxruntime", "litert"):
        return BATCH
    named = [spec.shape[0] for spec in graph.inputs if spec.shape and isinstance(spec.shape[0], str)]
    return params.dims[named[0]]["opt"] if named and named[0] in params.dims else BATCH
