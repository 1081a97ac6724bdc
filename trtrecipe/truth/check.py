"""The exported graph, run by ONNX Runtime, against its source on drawn inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto

from trtrecipe.data.preprocess import Array
from trtrecipe.engines.ort import OrtEngine
from trtrecipe.errors import StepError
from trtrecipe.graphs.edit import all_nodes
from trtrecipe.graphs.interface import TensorSpec, interface
from trtrecipe.truth import indices, samples
from trtrecipe.truth.difference import Difference
from trtrecipe.truth.samples import Trial
from trtrecipe.truth.source import Run, Source

TOLERANCE = 1e-3
"""Largest error of an output, as a part of the largest magnitude in it, unless the recipe says another. Two runtimes
that sum FP32 in different orders differ by 1e-5 and less on deep networks; what is wrong differs by a tenth and
more."""
HALF_TOLERANCE = 1e-2
"""The same for outputs of 16 bits, and of graphs that compute in them: FP16 holds three decimal digits."""
QUANTIZED_TOLERANCE = 2e-2
"""The same for graphs that quantize, five of 255 steps: a value between two of them goes up in one runtime and down in
the other by its last bit, and what follows differs by a step."""

STEPS = 4
"""Steps of an 8 bit output that are allowed in any case. Integer kernels round in places where Q/DQ do not: in
MobileNetV2, MobileNetV3 and EfficientNetB0 (TFLite, random weights) the last layer was off by one step, layers inside
by up to three."""

AMPLIFIED = 4
"""How many times the error may be what the source makes of a change in the last bits of its inputs: rounding happens
in every layer, not in the inputs alone."""

Culprit = Callable[[Mapping[str, Array], float], str | None]
"""Inputs, error allowed → which part of the source is the first to differ in the graph, in words; None where that
cannot be told."""


def check(
    model: ModelProto,
    path: Path,
    specs: Sequence[TensorSpec],
    source: Source,
    sizes: Mapping[str, int],
    tolerance: float | None,
    culprit: Culprit | None = None,
) -> dict[str, Any]:
    """Compare the graph (`model`, in the file `path`) with `source` on what `samples.trials` draws for its inputs
    `specs`.

    Measurements: "against", "tolerance", "batches" (sizes of the open batch axis), "outputs" (output → "max_abs",
    "relative", "cosine"), "notes"; the last alone where nothing could be run. Raises StepError when an output is off by
    more than `tolerance` of its magnitude, naming the first.
    """
    graph = interface(model)
    bounds = indices.bounds(model.graph)
    known = {spec.name for spec in graph.inputs}
    differences = {spec.name: Difference() for spec in graph.outputs}
    allowed = {name: limit(model, name, tolerance) for name in differences}
    batches: list[int | None] = []
    notes = list(source.notes)
    if source.run is None:
        return {"notes": notes}
    with OrtEngine(path, threads=0) as engine:
        for trial in samples.trials(specs, sizes, bounds):
            try:
                expected = source.run(trial.feeds)
            except StepError as error:
                notes.append(
                    f"the export was not checked with {trial}, as the model does not take them: {error.message}"
                )
                continue
            batches.append(trial.batch)
            found = engine.run({name: value for name, value in trial.feeds.items() if name in known})
            for name, difference in differences.items():
                now = _difference(np.asarray(expected[name]), found[name], trial)
                if _is_off(now, allowed[name], source.steps.get(name, 0.0)):
                    rounding = _is_rounding(name, now, allowed[name], trial, source.run, bounds)
                    if tolerance is not None or not rounding:  # what the recipe says counts
                        raise _failure(name, now, allowed[name], trial, source.what, culprit)
                    notes.append(_ROUNDING.format(trial, name, now.words()))
                difference.add(np.asarray(expected[name]), found[name], trial.batch)
    if not batches:
        return {"notes": notes}
    notes += [_FLAT.format(name) for name, difference in differences.items() if difference.is_flat]
    return {
        "against": source.what,
        "tolerance": max(allowed.values()),
        "batches": [batch for batch in batches if batch is not None],
        "outputs": {name: difference.document() for name, difference in differences.items()},
        "notes": notes,
    }


_FLAT = (
    "output {} is the same for all inputs that were drawn to check the export (uniform, normal, large), "
    "so the check says little about it"
)


_ROUNDING = (
    "for {}, output {} {}; the model itself makes as much of a change in the last bits of its inputs: it is rounding"
)


def _difference(expected: Array, found: Array, trial: Trial) -> Difference:
    made = Difference()
    made.add(expected, found, trial.batch)
    return made


def _is_rounding(
    name: str, now: Difference, allowed: float, trial: Trial, run: Run, bounds: Mapping[str, int | None]
) -> bool:
    """Whether what the output is off by comes from rounding that the model amplifies.

    Then it does so in the source too: inputs that differ in their last bits give results as far apart. Inputs far
    larger than the model was made for are amplified most, in front of a softmax. Raises StepError where the source is
    random.
    """
    expected = np.asarray(run(trial.feeds)[name])
    again = _difference(expected, np.asarray(run(trial.feeds)[name]), trial)
    if again.relative > allowed:
        raise StepError(
            f"the model gives different results for the same inputs (output {name}), so no export of it can be checked",
            hint="export it for inference (training=False), or give its random numbers as an input",
        )
    own = _difference(expected, np.asarray(run(samples.nudged(trial, bounds))[name]), trial)
    return now.is_within(own, AMPLIFIED, allowed)


def _is_off(difference: Difference, allowed: float, step: float) -> bool:
    if difference.wrong is not None or difference.differing:
        return difference.relative > allowed
    return difference.relative > allowed and difference.max_abs > STEPS * step


def limit(model: ModelProto, output: str, tolerance: float | None) -> float:
    """The error allowed of an output: what the recipe says, else what its type can hold."""
    if tolerance is not None:
        return tolerance
    halves = {"float16", "bfloat16"}
    inside = {tensor.data_type for tensor in model.graph.initializer}
    if any(node.op_type == "QuantizeLinear" for node in all_nodes(model.graph)):
        return QUANTIZED_TOLERANCE
    half = interface(model).output(output).dtype in halves or inside & {TensorProto.FLOAT16, TensorProto.BFLOAT16}
    return HALF_TOLERANCE if half else TOLERANCE


def _failure(
    name: str, difference: Difference, allowed: float, trial: Trial, what: str, culprit: Culprit | None
) -> StepError:
    where = culprit(trial.feeds, allowed) if culprit is not None else None
    at = f"; {where}" if where else ""
    return StepError(
        f"the exported graph does not compute what {what}: for {trial}, output {name} {difference.words()} "
        f"(allowed: {allowed:g}){at}",
        hint="the export is not to be trusted; where the difference is known and wanted, set model.tolerance",
    )
