"""Rules that join several places of one recipe.

They read plain data and pass over what is malformed, so that they report in the same pass as the model's own errors.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

from trtrecipe.recipe.findings import Finding, dotted, nearest, short
from trtrecipe.recipe.model import NAME

LABEL = "label"
CLASSIFYING = ("top1", "top5")
_RANGES = {"top1": (0, 1), "top5": (0, 1), "cosine": (-1, 1), "mse": (0, float("inf"))}
_NAMED = {"arrays": "ARRAY", "npy": "FILE", "columns": "COLUMN", "features": "FEATURE"}
"""Mappings of data from input to something, and what that is."""
_FORMATS = {".onnx": "onnx", ".keras": "keras", ".h5": "h5", ".hdf5": "h5", ".tflite": "tflite"}
_SINGLE = ("onnx", "keras", "h5", "tflite", "frozen_graph")
"""Formats that have neither signatures nor tags to choose from, but for TFLite, which has signatures."""


def check(recipe: Any) -> Iterator[Finding]:
    """Everything wrong between the blocks of `recipe`, plain data as read from YAML."""
    for rule in (
        _dims,
        _interface,
        _calibration,
        _judged,
        _gates,
        _labels,
        _inputs,
        _layouts,
        _target_ids,
        _signature,
    ):
        yield from rule(recipe)


def _at(value: Any, *loc: Any) -> Any:
    for item in loc:
        value = value.get(item) if isinstance(value, dict) else None
    return value


def _items(value: Any, *loc: Any) -> list[tuple[Any, Any]]:
    found = _at(value, *loc)
    if isinstance(found, list):
        return list(enumerate(found))
    return list(found.items()) if isinstance(found, dict) else []


def _dims(recipe: Any) -> Iterator[Finding]:
    named = [
        (("model", "inputs", name, "shape", axis), entry)
        for name, _ in _items(recipe, "model", "inputs")
        for axis, entry in _items(recipe, "model", "inputs", name, "shape")
        if isinstance(entry, str) and re.match(NAME, entry)
    ]
    known = _at(recipe, "model", "dims") or {}
    for loc, name in named:
        if isinstance(known, dict) and name not in known:
            meant = nearest(name, known)
            hint = f"did you mean {meant}?" if meant else "add its range there, as in {min: 1, opt: 8, max: 32}"
            yield Finding(loc, f"{dotted(loc)} names the dimension '{name}', which model.dims lacks", hint)
    used = {name for _, name in named if _at(known, name) is not None}
    for index, target in _items(recipe, "targets"):
        own = _at(target, "model", "dims")
        for name in sorted(used.difference(own)) if isinstance(own, dict) else ():
            here = ("targets", index, "model", "dims")
            message = f"{dotted(here)} replaces model.dims as a whole and lacks the dimension '{name}'"
            yield Finding(here, message, f"add the range of {name}", at_key=True)


def _interface(recipe: Any) -> Iterator[Finding]:
    """Names that the model has and the engine has not, or the other way round; layouts without four axes."""
    for name, spec in _items(recipe, "model", "inputs"):
        shape = _at(spec, "shape")
        if _at(spec, "layout") in ("nchw", "nhwc") and isinstance(shape, list) and len(shape) != 4:
            loc = ("model", "inputs", name, "layout")
            yield Finding(loc, f"{dotted(loc)} is for four axes, and the shape beside it has {len(shape)}", "remove it")
    outputs = [name for _, name in _items(recipe, "model", "outputs") if isinstance(name, str)]
    first: dict[str, Any] = {}
    for index, name in enumerate(outputs):
        if first.setdefault(name, index) != index:
            yield Finding(("model", "outputs", index), f"model.outputs names {short(name)} twice", "remove one")
    rename = {
        old: new for old, new in _items(recipe, "model", "rename") if isinstance(old, str) and isinstance(new, str)
    }
    taken: dict[str, str] = {}
    for old, new in rename.items():
        if taken.setdefault(new, old) != old:
            message = f"model.rename calls both {short(taken[new])} and {short(old)} {short(new)}"
            yield Finding(("model", "rename", old), message, "give one of them another name")
    news = set(rename.values())
    for loc, name in _named_inputs(recipe):
        if name in rename and name not in news:
            yield Finding(
                loc,
                f"{dotted(loc[:-1])} names {short(name)}, which model.rename calls {short(rename[name])}",
                f"write {short(rename[name])}: the model's own names are for model.outputs and model.rename alone",
                at_key=True,
            )
    yield from _judged_output(recipe, [rename.get(name, name) for name in outputs], rename)


def _judged_output(recipe: Any, outputs: list[str], rename: dict[str, str]) -> Iterator[Finding]:
    loc = ("evaluation", "output")
    judged = _at(recipe, *loc)
    # A frozen graph's tensors may be written with :0, and are called without.
    if not isinstance(judged, str) or judged in outputs or f"{judged}:0" in outputs:
        return
    if judged in rename and judged not in rename.values():
        message = f"evaluation.output names {short(judged)}, which model.rename calls {short(rename[judged])}"
        yield Finding(loc, message, f"write {short(rename[judged])}")
    elif outputs:
        meant = nearest(judged, outputs)
        hint = f"did you mean {short(meant)}?" if meant else f"the outputs are {short(', '.join(outputs))}"
        yield Finding(loc, f"evaluation.output is {short(judged)}, which is none of model.outputs", hint)


def _named_inputs(recipe: Any) -> Iterator[tuple[tuple[Any, ...], str]]:
    """Where the recipe has a key that is an input's name, apart from model.rename."""
    places: list[tuple[Any, ...]] = [("model", "inputs"), ("preprocess",)]
    places += [(block, "data", form) for block in ("calibration", "evaluation") for form in (*_NAMED, "raw")]
    for place in places:
        if isinstance(_at(recipe, *place), dict):
            for name, _ in _items(recipe, *place):
                if isinstance(name, str) and name != LABEL:
                    yield (*place, name), name


def _precisions(recipe: Any) -> list[tuple[tuple[Any, ...], Any, Any]]:
    """Each precision block that some target goes by: its place, the block, and the gates of one such target."""
    targets = _items(recipe, "targets")
    own = [(index, target) for index, target in targets if _at(target, "precision") is not None]
    shared = [target for _, target in targets if _at(target, "precision") is None]
    blocks: list[tuple[tuple[Any, ...], Any, Any]] = [
        (("targets", index, "precision"), _at(target, "precision"), _at(target, "gates") or _at(recipe, "gates"))
        for index, target in own
    ]
    gates = [_at(target, "gates") or _at(recipe, "gates") for target in shared or ([] if targets else [None])]
    # Of the targets that share a block, the one with the least to be judged by.
    for least in sorted(gates, key=_judging)[:1]:
        blocks.insert(0, (("precision",), _at(recipe, "precision"), least))
    return blocks


def _modes(precision: Any) -> list[Any]:
    mode = _at(precision, "mode")
    return mode if isinstance(mode, list) else [mode]


def _judging(gates: Any) -> int:
    """How many gates there are on how good the outputs are."""
    return sum(_at(gates, gate) is not None for gate in ("accuracy", "agreement", "cosine"))


def _calibration(recipe: Any) -> Iterator[Finding]:
    if _at(recipe, "calibration") is not None:
        return
    for loc, precision, _ in _precisions(recipe):
        if "int8" in _modes(precision) and _at(precision, "quantization") != "dynamic":
            hint = (
                "add calibration: {data: {npz: FILE, arrays: {INPUT: ARRAY}}}, or calibration: {model: true} for a "
                "model that carries its own scales"
            )
            here = (*loc, "mode")
            yield Finding(here, f"{dotted(here)} is int8, and the recipe has no calibration data", hint)


def _judged(recipe: Any) -> Iterator[Finding]:
    """A choice between INT8 graphs needs something to judge them by."""
    for loc, precision, gates in _precisions(recipe):
        several = "int8" in _modes(precision) and len(_modes(precision)) > 1
        search = _at(precision, "search") is True
        if (several or search) and not _judging(gates):
            here = (*loc, "search" if search else "mode")
            message = (
                f"{dotted(here)} needs a gate that says whether INT8 is good enough: accuracy, agreement or cosine"
            )
            yield Finding(here, message, "add gates: {accuracy: {max_drop: 0.01}}", at_key=search)
        if _at(recipe, "calibration", "model") is True:
            for key in ("keep", "search"):
                if _at(precision, key):
                    message = (
                        f"{dotted((*loc, key))} does not go with calibration.model: the model's own scales are kept"
                    )
                    yield Finding((*loc, key), message, f"remove {key}, or calibrate with data", at_key=True)


def _gates(recipe: Any) -> Iterator[Finding]:
    metric = _at(recipe, "evaluation", "metric")
    places: list[tuple[tuple[Any, ...], Any]] = [(("gates",), _at(recipe, "gates"))]
    places += [(("targets", index, "gates"), _at(target, "gates")) for index, target in _items(recipe, "targets")]
    for loc, gates in places:
        accuracy, agreement = (*loc, "accuracy"), (*loc, "agreement")
        if _at(gates, "accuracy") is not None and metric is None:
            hint = "add evaluation: {data: …, metric: top1}"
            yield Finding(accuracy, f"{dotted(accuracy)} needs evaluation.metric, and there is none", hint, at_key=True)
        if _at(gates, "agreement") is not None and metric not in CLASSIFYING:
            message = f"{dotted(agreement)} is measured with evaluation.metric top1 or top5 only"
            yield Finding(agreement, message, "set evaluation.metric, or use the gate cosine", at_key=True)
        yield from _accuracy_range((*loc, "accuracy", "min"), _at(gates, "accuracy", "min"), metric)
        yield from _accuracy_range((*loc, "accuracy", "max_drop"), _at(gates, "accuracy", "max_drop"), metric)


def _accuracy_range(loc: tuple[Any, ...], limit: Any, metric: Any) -> Iterator[Finding]:
    low, high = _RANGES.get(metric, (None, None)) if isinstance(metric, str) else (None, None)
    if low is None or high is None or isinstance(limit, bool) or not isinstance(limit, int | float):
        return
    if loc[-1] == "max_drop":
        low, high = 0, high - low
    if not low <= limit <= high:
        share = metric in CLASSIFYING and 1 < limit <= 100
        hint = f"write {limit / 100:g} for {limit:g} %" if share else None
        ends = f"at least {low}" if high == float("inf") else f"between {low} and {high}"
        yield Finding(loc, f"{dotted(loc)} is {limit:g}: with the metric {metric} it must be {ends}", hint)


def _labels(recipe: Any) -> Iterator[Finding]:
    metric = _at(recipe, "evaluation", "metric")
    if not isinstance(metric, str):
        return
    for form, what in _NAMED.items():
        names = _at(recipe, "evaluation", "data", form)
        if isinstance(names, dict) and LABEL not in names:
            hint = f"add {LABEL}: {what} to evaluation.data.{form}"
            message = f"evaluation.metric is {metric}, and evaluation.data names no {LABEL}"
            yield Finding(("evaluation", "metric"), message, hint)
    data = _at(recipe, "evaluation", "data")
    if any(_at(data, form) is not None for form in ("images", "raw")) and _at(data, "labels") is None:
        message = f"evaluation.metric is {metric}, and evaluation.data has no labels"
        yield Finding(("evaluation", "metric"), message, "add labels: FILE to evaluation.data")


def _inputs(recipe: Any) -> Iterator[Finding]:
    for block in ("calibration", "evaluation"):
        for form in _NAMED:
            if [name for name, _ in _items(recipe, block, "data", form)] == [LABEL]:
                loc = (block, "data", form)
                yield Finding(loc, f"{dotted(loc)} names no input of the model", "add INPUT: …", at_key=True)
    if _at(recipe, "preprocess", LABEL) is not None:
        yield Finding(
            ("preprocess", LABEL),
            "preprocess.label: labels are not preprocessed",
            "name an input of the model",
            at_key=True,
        )


def _layouts(recipe: Any) -> Iterator[Finding]:
    images = any(_at(recipe, block, "data", "images") is not None for block in ("calibration", "evaluation"))
    asked = [name for name, spec in _items(recipe, "model", "inputs") if images and _at(spec, "layout") is not None]
    for name in dict.fromkeys([*(name for name, _ in _items(recipe, "preprocess")), *asked]):
        now = "nhwc" if images else None
        for index, operation in _items(recipe, "preprocess", name):
            layout = _at(operation, "layout")
            if layout is None:
                continue
            loc = ("preprocess", name, index, "layout")
            if layout == now:
                yield Finding(loc, f"{dotted(loc)}: values are {now} already", "remove this operation")
            now = layout
        taken = _at(recipe, "model", "inputs", name, "layout")
        if taken in ("nchw", "nhwc") and now in ("nchw", "nhwc") and now != taken:
            loc = ("model", "inputs", name, "layout")
            message = f"{dotted(loc)} is {taken}, and the values that preprocess.{short(name)} ends with are {now}"
            yield Finding(loc, message, f"end preprocess.{short(name)} with {{layout: {taken}}}")


def _target_ids(recipe: Any) -> Iterator[Finding]:
    first: dict[str, int] = {}
    for index, target in _items(recipe, "targets"):
        name = target if isinstance(target, str) else _at(target, "name") or _at(target, "profile")
        if isinstance(name, str) and first.setdefault(name, index) != index:
            message = f"targets[{index}] has the same id as targets[{first[name]}]: '{name}'"
            yield Finding(("targets", index), message, "give one of them a name of its own: {profile: …, name: …}")


def _signature(recipe: Any) -> Iterator[Finding]:
    source, form = _at(recipe, "model", "source"), _at(recipe, "model", "format")
    if form is None and isinstance(source, str):
        form = _FORMATS.get(PurePath(source).suffix.lower())
    for key in ("signature", "tags"):
        if key == "signature" and form == "tflite":
            continue
        if _at(recipe, "model", key) is not None and form in _SINGLE:
            loc = ("model", key)
            yield Finding(loc, f"model.{key} is for a saved_model, and this model is {form}", "remove it", at_key=True)
