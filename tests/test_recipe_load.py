"""Recipes that load, and for each mistake: where it is, what is said, what is advised."""

# ruff: noqa: E501  (the table of mistakes reads best with one mistake a line)

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from trtrecipe.errors import InputError
from trtrecipe.recipe import model
from trtrecipe.recipe.document import MAX_PROBLEMS
from trtrecipe.recipe.findings import Finding
from trtrecipe.recipe.load import Loaded, load
from trtrecipe.recipe.messages import EXAMPLES

RECIPE = """\
schema: trtrecipe/v1
name: digits
model:
  source: model
  format: saved_model
  signature: serving_default
  inputs:
    image: {shape: [batch, 8, 8, 1], dtype: float32}
  dims:
    batch: {min: 1, opt: 8, max: 32}
precision:
  mode: int8
  fallback: fp16
preprocess:
  image: [{scale: 0.0625}]
calibration:
  data: {npz: data.npz, arrays: {image: x_train}}
  samples: 512
  seed: 7
  method: entropy
evaluation:
  data: {npz: data.npz, arrays: {image: x_test, label: y_test}}
  metric: top1
gates:
  accuracy: {max_drop: 0.01}
targets:
  - host
  - rtx
  - profile: jetson-tx2@4.6.4
    name: tx2-fp16
    precision: {mode: fp16}
build: {workspace: 1GiB}
"""
SMALL = "schema: trtrecipe/v1\nname: a\nmodel: {source: m.onnx}\nprecision: {mode: fp32}\ntargets: [host]\n"
NAME_RULE = "must begin with a letter or digit and hold only letters, digits, '.', '_' and '-', at most 64 in all"


def _load(folder: Path, text: str) -> Loaded:
    (folder / "r.yaml").write_text(text, "utf-8")
    return load(folder / "r.yaml")


def _problems(folder: Path, text: str) -> list[tuple[str, str, str | None]]:
    with pytest.raises(InputError) as caught:
        _load(folder, text)
    assert {p.file for p in caught.value.problems} == {str(folder / "r.yaml")}
    return [(f"{p.line}:{p.column}", p.message, p.hint) for p in caught.value.problems]


def _changed(old: str, new: str) -> str:
    assert old in RECIPE
    return RECIPE.replace(old, new, 1)


def test_a_recipe_becomes_typed_frozen_values(tmp_path: Path) -> None:
    loaded = _load(tmp_path, RECIPE)
    recipe = loaded.recipe
    assert recipe.schema_ == "trtrecipe/v1"
    assert recipe.model.inputs["image"].shape == ["batch", 8, 8, 1]
    assert recipe.model.dims["batch"].opt == 8
    assert recipe.preprocess["image"] == [model.Scale(scale=0.0625)]
    assert isinstance(recipe.calibration, model.Calibration)
    assert recipe.calibration.data == model.NpzData(npz="data.npz", arrays={"image": "x_train"})
    assert recipe.targets[:2] == ["host", "rtx"]
    assert isinstance(recipe.targets[2], model.TargetEntry)
    assert recipe.build.workspace == 1 << 30
    with pytest.raises(dataclasses.FrozenInstanceError):
        loaded.recipe = recipe  # type: ignore[misc]


def test_what_is_left_out_has_its_default(tmp_path: Path) -> None:
    recipe = _load(tmp_path, SMALL).recipe
    assert recipe.model.format is None
    assert (recipe.model.inputs, recipe.model.dims, recipe.preprocess) == ({}, {}, {})
    assert (recipe.calibration, recipe.evaluation, recipe.gates) == (None, None, None)
    assert recipe.precision.fallback == "fp32"
    assert recipe.build.workspace is None


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("metric: top1", "metric: top5"),
        ("data: {npz: data.npz, arrays: {image: x_train}}", "data: {npy: {image: x.npy}}"),
        ("image: [{scale: 0.0625}]", "image: [{scale: 1}, {normalize: {mean: [0, 0.5], std: [1, 2]}}]"),
        ("image: [{scale: 0.0625}]", "'0': []"),
        ("    image: {shape", "    0: {shape"),
        ("workspace: 1GiB", "workspace: 1073741824"),
        ("workspace: 1GiB", "workspace: 512 MiB"),
        ("name: digits", "name: no"),
        ("- host", "- '{profile}'"),
        ("samples: 512", "samples:"),
        ("accuracy: {max_drop: 0.01}", "{agreement: 1, cosine: 0.9, latency_ms: {p50: 1}, size: 10MiB}"),
        ("precision: {mode: fp16}", "model: {dims: {batch: {min: 2, opt: 2, max: 2}}}"),
    ],
)
def test_accepted(tmp_path: Path, old: str, new: str) -> None:
    assert _load(tmp_path, _changed(old, new)).recipe


@pytest.mark.parametrize(
    ("old", "new", "place", "message", "hint"),
    [
        # keys
        ("source: model", "sorce: model", "4:3", "unknown key 'sorce' in model", "did you mean source?"),
        ("mode: int8", "Mode: int8", "12:3", "unknown key 'Mode' in precision", "did you mean mode?"),
        ("targets:", "target:", "26:1", "unknown key 'target' in the recipe", "did you mean targets?"),
        ("name: tx2", "nam: tx2", "30:5", "unknown key 'nam' in targets[2]", "did you mean name?"),
        ("opt: 8", "opt: 8, typ: 1", "10:29", "unknown key 'typ' in model.dims.batch", "the keys here are min, opt and max"),
        ("dtype:", "type:", "8:38", "unknown key 'type' in model.inputs.image", "did you mean dtype?"),
        ("arrays: {image: x_t", "aray: 1, arrays: {image: x_t", "17:25", "unknown key 'aray' in calibration.data", "did you mean arrays?"),
        ("{mode: fp16}", "{mode: fp16, dla: 1}", "31:29", "unknown key 'dla' in targets[2].precision", "the keys here are mode, fallback, quantization, keep and search"),
        ("workspace: 1GiB", "threads: 1", "32:9", "unknown key 'threads' in build", "the keys here are workspace and dla"),
        ("schema: trtrecipe/v1\n", "", "1:1", "the recipe lacks the key schema", "add schema: trtrecipe/v1"),
        ("  mode: int8\n", "", "11:1", "precision lacks the key mode", "add mode: fp16"),
        ("min: 1, ", "", "10:5", "model.dims.batch lacks the key min", "add min: 1"),
        (", arrays: {image: x_train}", "", "17:3", "calibration.data lacks the key arrays", "add arrays: {INPUT: ARRAY}"),
        ("- profile: jetson-tx2@4.6.4\n    name", "- name", "29:5", "targets[2] lacks the key profile", "add profile: host"),
        ("    batch: {", "    b: {min: 1, opt: 1, max: 1}\n    'a b': {}\n    batch: {", "11:5", f"the key 'a b' in model.dims {NAME_RULE}", None),
        ("  image: [", "  '': [", "15:3", "the key '' in preprocess must not be empty", None),
        # choices
        ("  source: model", "  source: model\n  without_passes: [shape]", "5:20", "model.without_passes[0] is 'shape': it must be affine, batch-normalizations, constants, dimensions, double-to-float, duplicates, identities, int64-to-int32, mean-to-pool, merge-transposes, move-transposes, shapes, sort-top-k, unused-outputs, write-out-operators or zero-states", "did you mean shapes?"),
        ("/v1", "/v2", "1:9", "schema is 'trtrecipe/v2': it must be trtrecipe/v1", "did you mean trtrecipe/v1?"),
        ("mode: int8", "mode: int9", "12:9", "precision.mode is 'int9': it must be fp32, fp16 or int8", "did you mean int8?"),
        ("mode: int8", "mode: FP16\n  x: 1", "12:9", "precision.mode is 'FP16': it must be fp32, fp16 or int8", "did you mean fp16?"),
        ("mode: int8", "mode: {int8: 1}", "12:9", "precision.mode must be fp32, fp16 or int8, or a list of them", None),
        ("mode: int8", "mode: []", "12:9", "precision.mode is empty: it must hold at least one item", None),
        ("mode: int8", "mode: [int8, int9]", "12:16", "precision.mode[1] is 'int9': it must be fp32, fp16 or int8", "did you mean int8?"),
        ("mode: int8", "mode: [int8, int8]", "12:3", "precision must not name a mode twice", None),
        ("mode: int8", "mode:", "12:8", "precision.mode is empty: it must be fp32, fp16 or int8, or a list of them", None),
        ("mode: int8", "mode: 8", "12:9", "precision.mode is 8: it must be fp32, fp16 or int8, or a list of them", None),
        ("mode: int8", "mode: int8\n  keep: [{layer: x}]", "13:10", "precision.keep[0] must have one of the keys layers, operators and between", "did you mean layers?"),
        ("fallback: fp16", "keep: [{layers: x, precision: fp16}]", "12:3", "precision cannot keep layers in fp16: the fallback is fp32", None),
        ("{mode: fp16}", "{mode: fp16, keep: [{layers: x, precision: fp16}]}", "31:16", "targets[2].precision cannot keep layers in fp16: the mode is fp16 anyway", None),
        ("{mode: fp16}", "{mode: fp32, keep: [{layers: x}]}", "31:16", "targets[2].precision may have keep only with mode fp16 or int8: nothing is higher than fp32", None),
        ("mode: int8", "mode: int8\n  search: 1", "13:11", "precision.search is 1: it must be true or false", None),
        ("data: {npz: data.npz, arrays: {image: x_train}}\n  samples", "model: false\n  samples", "17:10", "calibration.model is false: it must be true", None),
        ("data: {npz: data.npz, arrays: {image: x_train}}\n  samples", "table: r.yaml\n  samples", "17:3", "calibration may have samples only with data: with table no sample is run", None),
        ("{mode: fp16}", "{mode: fp16, search: true}", "31:16", "targets[2].precision may have search only with mode int8, and the mode is fp16", None),
        ("mode: int8", "mode: int8\n  search: true\n  quantization: implicit", "12:3", "precision cannot have search with implicit quantization: TensorRT chooses its layers", None),
        # types
        ("name: digits", "name: 5.10", "2:7", "name is 5.10: it must be text", 'put it in quotes: "5.10"'),
        ("name: digits", "name: true", "2:7", "name is true: it must be text", 'put it in quotes: "true"'),
        ("name: digits", "name: {a: 1}", "2:7", "name is a mapping: it must be text", None),
        ("name: digits", "name:", "2:6", "name is empty: it must be text", None),
        ("name: digits", "name: a b", "2:7", f"name is 'a b': it {NAME_RULE}", None),
        ("name: digits", "name: 1:30", "2:7", f"name is '1:30': it {NAME_RULE}", None),
        ("source: model", "source: ''", "4:11", "model.source is '': it must not be empty", None),
        ("samples: 512", "samples: 1e3", "18:12", "calibration.samples is 1e3: it must be a whole number", "write 1000"),
        ("samples: 512", "samples: '512'", "18:12", "calibration.samples is '512': it must be a whole number", "remove the quotes"),
        ("samples: 512", "samples: yes", "18:12", "calibration.samples is 'yes': it must be a whole number", None),
        ("samples: 512", "samples: true", "18:12", "calibration.samples is true: it must be a whole number", None),
        ("samples: 512", "samples: 0", "18:12", "calibration.samples is 0: it must be at least 1", None),
        ("seed: 7", "seed: 9223372036854775808", "19:9", "calibration.seed is 9223372036854775808: it must be less than 9223372036854775808", None),
        ("scale: 0.0625", "scale: '2'", "15:19", "preprocess.image[0].scale is '2': it must be a number", "remove the quotes"),
        ("scale: 0.0625", "scale: .nan", "15:19", "preprocess.image[0].scale is .nan: it must be a finite number", None),
        ("scale: 0.0625", "scale: 1e31", "15:19", "preprocess.image[0].scale is 1e31: it must be at most 1e+30", None),
        ("scale: 0.0625", "scale: 0", "15:11", "preprocess.image[0] must have a scale other than 0", None),
        ("[batch, 8, 8, 1]", "batch", "8:20", "model.inputs.image.shape is 'batch': it must be a list", "write [batch]"),
        ("  image: [{scale: 0.0625}]", "  image: {scale: 1}", "15:10", "preprocess.image is a mapping: it must be a list", "write it as [a, b, c], or one '- item' a line"),
        ("{workspace: 1GiB}", "fast", "32:8", "build is 'fast': it must be a mapping", "it takes the keys workspace and dla"),
        ("{mode: fp16}", "fp16", "31:16", "targets[2].precision is 'fp16': it must be a mapping", "it takes the keys mode, fallback, quantization, keep and search"),
        ("{npz: data.npz, arrays: {image: x_train}}", "{npy: {}}", "17:15", "calibration.data.npy must hold at least one item", None),
        # blocks
        ("min: 1, opt: 8", "min: 9, opt: 8", "10:12", "model.dims.batch must have min <= opt <= max, not 9, 8 and 32", None),
        ("{mode: fp16}", "{mode: fp16, fallback: fp16}", "31:16", "targets[2].precision may have fallback only with mode int8, and the mode is fp16", None),
        ("{max_drop: 0.01}", "{}", "25:13", "gates.accuracy must have max_drop, min or both", None),
        ("accuracy: {max_drop: 0.01}", "latency_ms: {}", "25:15", "gates.latency_ms must have p50, p90 or p99", None),
        ("{scale: 0.0625}", "{normalize: {mean: [1], std: [1, 2]}}", "15:23", "preprocess.image[0].normalize must have as many entries in std as in mean, not 2 and 1", None),
        ("1GiB", "1GB", "32:20", "build.workspace is '1GB': it must be a whole number and its unit: B, KiB, MiB or GiB, as in 512MiB", None),
        ("1GiB", "1.5", "32:20", "build.workspace is 1.5: it must be a whole number and its unit, as in 512MiB", None),
        ("1GiB", "0", "32:20", "build.workspace is 0: it must be between 1B and 1048576GiB", None),
        # one of several forms
        ("8, 8, 1", "8, 8.0, 1", "8:31", "model.inputs.image.shape[2] is 8.0: it must be a whole number, or the name of a dimension in model.dims", None),
        ("8, 8, 1", "8, null, 1", "8:31", "model.inputs.image.shape[2] is null: it must be a whole number, or the name of a dimension in model.dims", None),
        ("8, 8, 1", "8, -1, 1", "8:31", "model.inputs.image.shape[2] is -1: it must be at least 1", None),
        ("{scale: 0.0625}", "{scal: 1}", "15:11", "preprocess.image[0] must have one of the keys scale, normalize, resize, crop, colour, layout and cast", "did you mean scale?"),
        ("{scale: 0.0625}", "{rotate: 90}", "15:11", "preprocess.image[0] must have one of the keys scale, normalize, resize, crop, colour, layout and cast", None),
        ("{scale: 0.0625}", "{scale: 1, normalize: {}}", "15:11", "preprocess.image[0] must have only one of the keys scale, normalize, resize, crop, colour, layout and cast", None),
        ("{scale: 0.0625}", "scale", "15:11", "preprocess.image[0] is 'scale': it must be a mapping with the key scale, normalize, resize, crop, colour, layout or cast", None),
        ("{npz: data.npz, arrays: {image: x_train}}", "data.npz", "17:9", "calibration.data is 'data.npz': it must be a mapping with the key npz, npy, images, raw, tfrecord or csv", None),
        ("{scale: 0.0625}", "{resize: [8]}", "15:20", "preprocess.image[0].resize is a list: it must hold at least 2 items", None),
        ("{scale: 0.0625}", "{crop: [8, 8, 3]}", "15:18", "preprocess.image[0].crop is a list: it must hold at most 2 items", None),
        ("{scale: 0.0625}", "{resize: [8, 0]}", "15:24", "preprocess.image[0].resize[1] is 0: it must be at least 1", None),
        ("{scale: 0.0625}", "{resize: {size: [8, 8], filter: cubic}}", "15:43", "preprocess.image[0].resize.filter is 'cubic': it must be nearest, box, bilinear, hamming, bicubic or lanczos", "did you mean bicubic?"),
        ("{scale: 0.0625}", "{resize: {filter: box}}", "15:20", "preprocess.image[0].resize must have either size or short_side", None),
        ("{scale: 0.0625}", "{layout: nchw}, {layout: nchw}", "15:36", "preprocess.image[1].layout: values are nchw already", "remove this operation"),
        ("{npz: data.npz, arrays: {image: x_train}}", "{csv: x.csv, columns: {label: y}}", "17:22", "calibration.data.columns names no input of the model", "add INPUT: …"),
        ("{npz: data.npz, arrays: {image: x_train}}", "{tfrecord: x}", "17:3", "calibration.data lacks the key features", "add features: {INPUT: FEATURE}"),
        ("{npz: data.npz, arrays: {image: x_test, label: y_test}}", "{images: x/*.png}", "23:11", "evaluation.metric is top1, and evaluation.data has no labels", "add labels: FILE to evaluation.data"),
        ("{npz: data.npz, arrays: {image: x_test, label: y_test}}", "{csv: x.csv, columns: {image: x}}", "23:11", "evaluation.metric is top1, and evaluation.data names no label", "add label: COLUMN to evaluation.data.columns"),
        ("{npz: data.npz, arrays: {image: x_train}}", "{nzp: data.npz}", "17:9", "calibration.data must have one of the keys npz, npy, images, raw, tfrecord and csv", "did you mean npz?"),
        ("- host", "- 3", "27:5", "targets[0] is 3: it must be a profile, as in jetson-xavier-nx@5.1.4, or a mapping that names one", None),
        ("- host", "- ''", "27:5", "targets[0] is '': it must not be empty", None),
        # between blocks
        ("[batch, 8", "[btch, 8", "8:21", "model.inputs.image.shape[0] names the dimension 'btch', which model.dims lacks", "did you mean batch?"),
        ("[batch, 8", "[batch, width", "8:28", "model.inputs.image.shape[1] names the dimension 'width', which model.dims lacks", "add its range there, as in {min: 1, opt: 8, max: 32}"),
        ("precision: {mode: fp16}", "model: {dims: {other: {min: 1, opt: 1, max: 1}}}", "31:13", "targets[2].model.dims replaces model.dims as a whole and lacks the dimension 'batch'", "add the range of batch"),
        ("- rtx", "- host", "28:5", "targets[1] has the same id as targets[0]: 'host'", "give one of them a name of its own: {profile: …, name: …}"),
        ("name: tx2-fp16", "name: rtx", "29:5", "targets[2] has the same id as targets[1]: 'rtx'", "give one of them a name of its own: {profile: …, name: …}"),
        ("  metric: top1\n", "", "24:3", "gates.accuracy needs evaluation.metric, and there is none", "add evaluation: {data: …, metric: top1}"),
        (", label: y_test", "", "23:11", "evaluation.metric is top1, and evaluation.data names no label", "add label: ARRAY to evaluation.data.arrays"),
        ("{npz: data.npz, arrays: {image: x_test, label: y_test}}", "{npy: {image: x.npy}}", "23:11", "evaluation.metric is top1, and evaluation.data names no label", "add label: FILE to evaluation.data.npy"),
        ("{npz: data.npz, arrays: {image: x_test, label: y_test}}", "{npy: {label: x.npy}}", "22:10", "evaluation.data.npy names no input of the model", "add INPUT: …"),
        ("  image: [{scale", "  label: [{scale", "15:3", "preprocess.label: labels are not preprocessed", "name an input of the model"),
        ("max_drop: 0.01", "min: 97", "25:19", "gates.accuracy.min is 97: with the metric top1 it must be between 0 and 1", "write 0.97 for 97 %"),
        ("max_drop: 0.01", "max_drop: 1.5", "25:24", "gates.accuracy.max_drop is 1.5: with the metric top1 it must be between 0 and 1", "write 0.015 for 1.5 %"),
        ("precision: {mode: fp16}", "gates: {accuracy: {min: -1}}", "31:29", "targets[2].gates.accuracy.min is -1: with the metric top1 it must be between 0 and 1", None),
        ("metric: top1\ngates:\n", "metric: mse\ngates:\n  agreement: 0.9\n", "25:3", "gates.agreement is measured with evaluation.metric top1 or top5 only", "set evaluation.metric, or use the gate cosine"),
        ("format: saved_model", "format: onnx", "6:3", "model.signature is for a saved_model, and this model is onnx", "remove it"),
        ("dtype: float32", "layout: chw", "8:46", "model.inputs.image.layout is 'chw': it must be nchw or nhwc", "did you mean nchw?"),
        ("[batch, 8, 8, 1], dtype: float32", "[batch, 8], layout: nchw", "8:40", "model.inputs.image.layout is for four axes, and the shape beside it has 2", "remove it"),
        ("  inputs:\n", "  outputs: []\n  inputs:\n", "7:12", "model.outputs is empty: it must hold at least one item", None),
        ("  inputs:\n", "  outputs: [a, a]\n  inputs:\n", "7:16", "model.outputs names a twice", "remove one"),
        ("  inputs:\n", "  rename: {a: 'b:0'}\n  inputs:\n", "7:15", f"model.rename.a is 'b:0': it {NAME_RULE}", None),
        ("  inputs:\n", "  rename: {a: b, c: b}\n  inputs:\n", "7:21", "model.rename calls both a and c b", "give one of them another name"),
        ("  inputs:\n", "  rename: {image: x}\n  inputs:\n", "9:5", "model.inputs names image, which model.rename calls x", "write x: the model's own names are for model.outputs and model.rename alone"),
        ("  inputs:\n", "  rename: {image: x}\n  inputs:\n", "18:34", "calibration.data.arrays names image, which model.rename calls x", "write x: the model's own names are for model.outputs and model.rename alone"),
        ("source: model\n  format: saved_model", "source: m.KERAS", "5:3", "model.signature is for a saved_model, and this model is keras", "remove it"),
    ],
)  # fmt: skip
def test_refused(tmp_path: Path, old: str, new: str, place: str, message: str, hint: str | None) -> None:
    found = _problems(tmp_path, _changed(old, new))
    assert (place, message, hint) in found
    assert all(re.search(r"\S", text) and len(text) < 400 for _, text, _ in found)


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("logits", None),
        ("boxes", None),
        ("box", ("evaluation.output is box, which is none of model.outputs", "did you mean boxes?")),
        ("other", ("evaluation.output is other, which is none of model.outputs", "the outputs are logits, boxes")),
        ("raw/boxes", ("evaluation.output names raw/boxes, which model.rename calls boxes", "write boxes")),
    ],
)
def test_the_output_that_is_judged_is_one_that_is_left(tmp_path: Path, output: str, said: Any) -> None:
    ends = "  outputs: [logits, raw/boxes]\n  rename: {raw/boxes: boxes}\n  inputs:\n"
    text = RECIPE.replace("  inputs:\n", ends).replace("  metric: top1\n", f"  metric: top1\n  output: {output}\n")
    if said is None:
        assert _load(tmp_path, text)
    else:
        assert [found[1:] for found in _problems(tmp_path, text)] == [said]


@pytest.mark.parametrize(
    ("operations", "said"),
    [
        ("[]", "nhwc"),
        ("[{resize: [8, 8]}]", "nhwc"),
        ("[{resize: [8, 8]}, {layout: nchw}]", None),
        ("[{layout: nchw}, {layout: nhwc}]", "nhwc"),
    ],
)
def test_images_have_to_end_as_the_engine_takes_them(tmp_path: Path, operations: str, said: str | None) -> None:
    text = SMALL.replace("m.onnx}", "m.onnx, inputs: {image: {layout: nchw}}}")
    text += f"preprocess: {{image: {operations}}}\nevaluation: {{data: {{images: x/*.png}}}}\n"
    if said is None:
        assert _load(tmp_path, text)
        return
    assert _problems(tmp_path, text) == [
        (
            "3:50",
            f"model.inputs.image.layout is nchw, and the values that preprocess.image ends with are {said}",
            "end preprocess.image with {layout: nchw}",
        )
    ]


@pytest.mark.parametrize(
    ("precision", "targets", "places"),
    [
        ("int8", "[host, rtx]", ["precision.mode"]),
        ("int8", "[host, {profile: rtx, precision: {mode: int8}}]", ["precision.mode", "targets[1].precision.mode"]),
        ("int8", "[{profile: host, precision: {mode: fp16}}]", []),
        ("fp16", "[host, {profile: rtx, precision: {mode: int8}}]", ["targets[1].precision.mode"]),
        ("fp16", "[host]", []),
    ],
)
def test_int8_needs_calibration_where_it_is_used(
    tmp_path: Path, precision: str, targets: str, places: list[str]
) -> None:
    text = SMALL.replace("fp32", precision).replace("[host]", targets)
    found = [] if not places else [message for _, message, _ in _problems(tmp_path, text)]
    assert found == [f"{place} is int8, and the recipe has no calibration data" for place in places]
    assert _load(tmp_path, text + "calibration: {data: {npy: {image: x.npy}}}\n")


def test_every_problem_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = (
        RECIPE.replace("mode: int8", "mode: int9")
        .replace("[batch, 8", "[btch, 8")
        .replace("samples: 512", "samples: many")
        .replace("- rtx", "- host")
        .replace("workspace", "wrkspace")
        .replace("name: digits\n", "")
    )
    found = _problems(tmp_path, text)
    assert [place for place, _, _ in found] == ["1:1", "7:21", "11:9", "17:12", "27:5", "31:9"]


def test_a_misspelled_key_is_one_problem_not_two(tmp_path: Path) -> None:
    assert len(_problems(tmp_path, _changed("source: model", "sorce: model"))) == 1
    assert len(_problems(tmp_path, _changed("mode: int8", "moed: int8"))) == 1


def test_a_union_gives_one_problem_not_one_per_form(tmp_path: Path) -> None:
    for old, new in [("[batch, 8", "[[8], 8"), ("{scale: 0.0625}", "[]"), ("- host", "- []")]:
        assert len(_problems(tmp_path, _changed(old, new))) == 1


def test_a_problem_inside_an_alias_is_told_for_each_use_where_it_is_written(tmp_path: Path) -> None:
    text = SMALL.replace("[host]", "[{profile: host, precision: &p {mode: int9}}, {profile: rtx, precision: *p}]")
    found = _problems(tmp_path, text)
    assert [place for place, _, _ in found] == ["5:48", "5:48"]
    assert [message.split(":")[0] for _, message, _ in found] == [
        f"targets[{index}].precision.mode is 'int9'" for index in (0, 1)
    ]


def test_the_list_of_problems_ends(tmp_path: Path) -> None:
    found = _problems(tmp_path, SMALL + "".join(f"key{i}: 1\n" for i in range(5000)))
    assert len(found) == MAX_PROBLEMS + 1
    assert found[-1][1] == "there are more problems than these"


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such file") as caught:
        load(tmp_path / "r.yaml")
    assert caught.value.exit_code == 2


def test_the_callers_rules_report_in_the_same_pass(tmp_path: Path) -> None:
    def also(recipe: Any) -> Iterator[Finding]:
        yield Finding(("targets", 0), f"no {recipe['targets'][0]} here", "buy one")

    (tmp_path / "r.yaml").write_text(SMALL.replace("fp32", "fp64"))
    with pytest.raises(InputError) as caught:
        load(tmp_path / "r.yaml", also)
    assert [problem.message for problem in caught.value.problems] == [
        "precision.mode is 'fp64': it must be fp32, fp16 or int8",
        "no host here",
    ]
    assert (caught.value.problems[1].line, caught.value.problems[1].column) == (5, 11)


def test_a_loaded_recipe_places_later_problems_and_files(tmp_path: Path) -> None:
    loaded = _load(tmp_path, RECIPE)
    problem = loaded.problem(("model", "inputs", "image", "shape", 0), "is wrong", "mend it")
    assert problem.where() == f"{tmp_path / 'r.yaml'}:8:21"
    assert (problem.message, problem.hint) == ("is wrong", "mend it")
    assert loaded.file("data.npz") == tmp_path / "data.npz"
    assert loaded.file("/data/x.npz") == Path("/data/x.npz")


def test_every_required_key_has_an_example() -> None:
    models = [kind for kind in vars(model).values() if isinstance(kind, type) and issubclass(kind, BaseModel)]
    required = {
        field.alias or name for kind in models for name, field in kind.model_fields.items() if field.is_required()
    }
    assert required <= EXAMPLES.keys()
    assert len(required) > 10
