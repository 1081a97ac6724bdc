"""Whole builds from images and TFRecords."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.projects import CLASSES, Project, make_project

from trtrecipe.cli.app import run
from trtrecipe.data.sampling import Sampling, select

RANDOM = np.random.default_rng(8)
PICTURES = RANDOM.integers(0, 256, (24, 9, 8, 3), np.uint8)
CLASS_OF = [index % CLASSES for index in range(len(PICTURES))]
OPERATIONS = [{"resize": [6, 6]}, {"colour": "gray"}, {"layout": "nchw"}, {"scale": 0.00390625}]
USED = select(len(PICTURES), Sampling(16, 2))


def _folder_of_images(folder: Path) -> None:
    (folder / "images").mkdir(parents=True)
    lines = []
    for number, picture in enumerate(PICTURES):
        Image.fromarray(picture).save(folder / "images" / f"{number:02}.png")
        lines.append(f"{number:02}.png,{CLASS_OF[number]}\n")
    (folder / "labels.txt").write_text("".join(lines))
    (folder / "list.csv").write_text("picture,class\n" + "".join(f"images/{line}" for line in lines))


def _records(folder: Path) -> None:
    import tensorflow as tf

    with tf.io.TFRecordWriter(str(folder / "all.tfrecord")) as writer:
        for number in range(len(PICTURES)):
            data = tf.train.BytesList(value=[(folder / "images" / f"{number:02}.png").read_bytes()])
            label = tf.train.Int64List(value=[CLASS_OF[number]])
            feature = {"png": tf.train.Feature(bytes_list=data), "class": tf.train.Feature(int64_list=label)}
            writer.write(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())


def _project(folder: Path, calibration: Any, evaluation: Any, mode: str = "fp32") -> Project:
    return make_project(
        folder,
        {
            "precision": {"mode": mode},
            "preprocess": {"image": OPERATIONS},
            "calibration": {"data": calibration, "samples": 16, "seed": 2} if calibration else None,
            "evaluation": {"data": evaluation, "samples": 16, "seed": 2, "metric": "top1"},
        },
    )


def _build(project: Project, output: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert run(["build", str(project.recipe), "--output", str(output), "--json"]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document["targets"][0]


def _status(target: dict[str, Any]) -> dict[str, str]:
    return {step["kind"]: step["status"] for step in target["steps"]}


def test_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _folder_of_images(tmp_path)
    calibration = {"images": "images/*.png"}
    project = _project(tmp_path, calibration, {"images": "images/*.png", "labels": "labels.txt"}, "int8")
    first = _build(project, tmp_path / "dist", capsys)
    assert first["status"] == "built"
    assert first["metrics"]["samples"] == 16
    folder = tmp_path / "dist" / "small" / "host"
    contract = json.loads((folder / "preprocessing.json").read_text())["inputs"]["image"]
    assert contract["raw"] == {"dtype": "uint8", "shape": [9, 8, 3]}
    assert [next(iter(operation)) for operation in contract["operations"]] == [
        "resize", "colour", "layout", "cast", "scale",
    ]  # fmt: skip
    assert "pillow" in json.loads((folder / "manifest.json").read_text())["tools"]

    # The same picture, written in another way: what a key is made of is the file.
    unused = next(number for number in range(len(PICTURES)) if number not in USED)
    Image.fromarray(PICTURES[unused]).save(tmp_path / "images" / f"{unused:02}.png", compress_level=0)
    assert set(_status(_build(project, tmp_path / "dist", capsys)).values()) == {"hit"}
    used = tmp_path / "images" / f"{USED[3]:02}.png"
    Image.fromarray(PICTURES[USED[3]]).save(used, compress_level=0)
    again = _status(_build(project, tmp_path / "dist", capsys))
    assert again["reference"] == again["calibrate"] == "ran"
    assert again["quantize"] == again["compile"] == "hit"  # as the pixels are the same, so are the scales
    assert run(["explain", str(project.recipe), "reference"]) == 0
    assert "the samples changed" in capsys.readouterr().out


def test_tfrecords_give_what_images_give(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _folder_of_images(tmp_path)
    _records(tmp_path)
    forms = [
        {"images": "images/*.png", "labels": "labels.txt"},
        {"tfrecord": "*.tfrecord", "features": {"image": "png", "label": "class"}},
    ]
    found = []
    for form in forms:
        target = _build(_project(tmp_path, None, form), tmp_path / "dist", capsys)
        [outputs] = [step["outputs"] for step in target["steps"] if step["kind"] == "reference"]
        found.append((outputs, target["metrics"]["reference_accuracy"]))
        steps = {step["kind"]: step["status"] for step in target["steps"]}
        assert steps["compile"] == ("ran" if form is forms[0] else "hit")
    assert found[0] == found[1]
    tools = json.loads((tmp_path / "dist" / "small" / "host" / "manifest.json").read_text())["tools"]
    assert "pillow" in tools and "tensorflow" in tools


@pytest.mark.parametrize(
    ("evaluation", "words"),
    [
        ({"images": "images/*.jpg", "labels": "labels.txt"}, "no file matches images/*.jpg"),
        ({"images": "images/*.png", "labels": "recipe.yaml"}, "recipe.yaml:1: "),
        ({"tfrecord": "labels.txt", "features": {"image": "x", "label": "y"}}, "is no TFRecord file"),
        ({"csv": "list.csv", "columns": {"image": "pictures", "label": "class"}}, "no column pictures"),
    ],
)
def test_data_that_cannot_be_used_is_an_error_at_its_place(
    evaluation: Any, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _folder_of_images(tmp_path)
    project = _project(tmp_path, None, evaluation)
    assert run(["plan", str(project.recipe), "--json"]) == 2
    [error] = json.loads(capsys.readouterr().out)["errors"]
    assert words in error["message"]
    line = project.recipe.read_text().splitlines()[error["line"] - 1]
    assert any(str(value) in line for value in evaluation.values() if isinstance(value, str)) or "pictures" in line


def test_planning_needs_neither_pillow_nor_tensorflow(tmp_path: Path) -> None:
    import subprocess
    import sys

    _folder_of_images(tmp_path)
    _records(tmp_path)
    form = {"tfrecord": "*.tfrecord", "features": {"image": "png", "label": "class"}}
    project = _project(tmp_path, {"images": "images/*.png"}, form, "int8")
    program = (
        "import sys; from trtrecipe.cli.app import run; code = run(['plan', sys.argv[1]]); "
        "print([name for name in ('numpy', 'PIL', 'tensorflow', 'onnx') if name in sys.modules]); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", program, project.recipe], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
