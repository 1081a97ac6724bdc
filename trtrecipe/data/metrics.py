"""Task metrics, and how close outputs are to the reference's. Everything is computed in float64.

| name | value | label |
|---|---|---|
| top1, top5 | share of samples whose label is the highest output, or among the five highest | class index per sample |
| mse | mean of (output - label)² over all samples and elements | array of the output's shape |
| cosine | mean over samples of the cosine between output and label, both flattened | array of the output's shape |
| snr | 10 log10(Σ label² / Σ (output - label)²) in dB over everything, at most 200 | array of the output's shape |

A label with its values along one axis, or one value a sample, is taken in the order of the output's elements.
Among equal outputs the lower index ranks first. The cosine of two zero vectors is 1, of a zero and another vector 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from trtrecipe.data.preprocess import Array
from trtrecipe.errors import StepError

CLASSIFIERS: Mapping[str, int] = {"top1": 1, "top5": 5}
"""Metric → how many of the highest outputs count."""
MAX_SNR = 200.0


@dataclass(frozen=True)
class Closeness:
    """Outputs against the reference. Fields are None where no output is of a kind they apply to.

    `cosine`: over samples the mean, of all floating-point outputs the least. `cosine_worst`: the least of any sample.
    `max_abs_error`: the largest of any element. `equal`: share of equal elements of integer and boolean outputs, least.
    """

    cosine: float | None
    cosine_worst: float | None
    max_abs_error: float | None
    equal: float | None

    def measurements(self) -> dict[str, float]:
        """The fields that apply."""
        return {name: value for name, value in vars(self).items() if value is not None}


def evaluate(metric: str, output: Array, label: Array, name: str) -> float:
    """The metric of `output` (samples first, called `name`) given `label`. Raises StepError when they do not fit."""
    if metric in CLASSIFIERS:
        scores = class_scores(output, name, metric)
        indices = _class_indices(label, scores.shape[1], name)
        return float((_highest(scores, CLASSIFIERS[metric]) == indices[:, None]).any(axis=1).mean())
    return _regression(metric, output, label, name)


def agreement(output: Array, reference: Array, name: str) -> float:
    """Share of samples whose highest output has the same index in both. Raises StepError for what is no class score."""
    ours, theirs = (class_scores(values, name, "agreement").argmax(axis=1) for values in (output, reference))
    return float((ours == theirs).mean())


def closeness(outputs: Mapping[str, Array], reference: Mapping[str, Array]) -> Closeness:
    """Compare outputs that passed `check_comparable`. Elements that are not finite in the reference are left out."""
    means, worsts, errors, equals = [], [], [], []
    for name, theirs in reference.items():
        ours = outputs[name]
        if theirs.dtype.kind != "f":
            equals.append(float((ours == theirs).mean()) if theirs.size else 1.0)
            continue
        finite = np.isfinite(theirs)
        a, b = (np.where(finite, values, 0).astype(np.float64) for values in (ours, theirs))
        cosines = _cosines(a, b)
        means.append(float(cosines.mean()))
        worsts.append(float(cosines.min()))
        errors.append(float(np.abs(a - b).max(initial=0.0)))
    return Closeness(
        min(means, default=None), min(worsts, default=None), max(errors, default=None), min(equals, default=None)
    )


def check_comparable(outputs: Mapping[str, Array], reference: Mapping[str, Array]) -> None:
    """Raise StepError when an output is missing, has another shape, or is not finite where the reference is."""
    for name, theirs in reference.items():
        ours = outputs.get(name)
        if ours is None:
            raise StepError(f"the engine has no output {name}; it has {', '.join(outputs)}", "build it again")
        if ours.shape != theirs.shape:
            raise StepError(
                f"output {name} has shape {list(ours.shape)} over all samples, the FP32 reference {list(theirs.shape)}",
                "an output whose first axis does not count samples can only be compared with a fixed batch",
            )
        if theirs.dtype.kind != "f" or not ours.size:
            continue
        broken = (~np.isfinite(ours) & np.isfinite(theirs)).reshape(len(ours), -1).any(axis=1)
        if broken.any():
            kind = "NaN" if np.isnan(ours[broken]).any() else "infinite"
            raise StepError(
                f"output {name} is {kind} in {int(broken.sum())} of {len(ours)} samples (the first is sample "
                f"{int(broken.argmax())}) where the FP32 reference is finite",
                "a value left the range of the lower precision: give calibration data, by which nodes that FP16 has no "
                "room for stay FP32, or name them under precision.keep; precision.mode fp32 shows whether that is it",
            )


def class_scores(output: Array, name: str, metric: str) -> Array:
    """`output` as [samples, classes] in float64, axes of size 1 dropped. Raises StepError when it is something else."""
    scores = output.reshape(len(output), *(axis for axis in output.shape[1:] if axis != 1))
    if scores.ndim != 2:
        raise StepError(
            f"{metric} needs one score per class and sample, and output {name} has shape {list(output.shape)}",
            "name another output under evaluation.output, or choose another metric",
        )
    # NaN ranks lowest: it is no evidence for a class.
    return np.nan_to_num(scores.astype(np.float64), nan=-np.inf, posinf=np.inf, neginf=-np.inf)


def _highest(scores: Array, count: int) -> Array:
    return np.argsort(-scores, axis=1, kind="stable")[:, :count]


def _class_indices(label: Array, classes: int, name: str) -> Array:
    indices = label.reshape(len(label), -1)
    if indices.shape[1] != 1 or indices.dtype.kind not in "iu":
        what = "class probabilities or one-hot vectors" if indices.shape[1] == classes else "something else"
        raise StepError(
            f"the label is {label.dtype} of shape {list(label.shape)}, {what}; top1 and top5 need one class index each",
            f"give an integer array of shape [{len(label)}], with numpy.argmax(label, axis=1) for one-hot vectors",
        )
    indices = indices[:, 0]
    outside = (indices < 0) | (indices >= classes)
    if outside.any():
        sample = int(outside.argmax())
        raise StepError(
            f"the label of sample {sample} is {int(indices[sample])}, and output {name} has classes 0 to {classes - 1}",
            "check the order of classes, and that counting starts at 0",
        )
    return indices


def _regression(metric: str, output: Array, label: Array, name: str) -> float:
    if label.ndim <= 2 and label.size == output.size:
        label = label.reshape(output.shape)  # lists and records give a sample's values along one axis
    if label.shape != output.shape:
        raise StepError(
            f"{metric} compares output {name} of shape {list(output.shape)} with labels of shape {list(label.shape)}",
            "give targets of the output's shape",
        )
    ours, target = output.astype(np.float64), label.astype(np.float64)
    if metric == "cosine":
        return float(_cosines(ours, target).mean())
    error = float(np.square(ours - target).mean())
    if metric == "mse":
        return error
    signal = float(np.square(target).mean())
    if signal == 0:
        raise StepError("snr is not defined: every target value is 0", "use the metric mse")
    return min(MAX_SNR, 10 * float(np.log10(signal / error))) if error else MAX_SNR


def _cosines(a: Array, b: Array) -> np.ndarray[Any, np.dtype[np.float64]]:
    a, b = (values.reshape(len(values), -1) for values in (a, b))
    # Scaled to 1 first: squares of very large or small values must not leave float64's range.
    a, b = (values / np.maximum(np.abs(values).max(axis=1, initial=0.0, keepdims=True), 1e-300) for values in (a, b))
    lengths = np.sqrt(np.square(a).sum(axis=1)), np.sqrt(np.square(b).sum(axis=1))
    product = lengths[0] * lengths[1]
    cosines = np.divide((a * b).sum(axis=1), product, out=np.zeros(len(a)), where=product > 0)
    cosines[(lengths[0] == 0) & (lengths[1] == 0)] = 1.0
    clipped: np.ndarray[Any, np.dtype[np.float64]] = np.clip(cosines, -1.0, 1.0)
    return clipped
