"""The files a recipe names: missing, misspelled, of the wrong kind."""

# ruff: noqa: E501  (the tables read best with one case a line)

from __future__ import annotations

import os
from pathlib import Path

import pytest

from trtrecipe.errors import Problem
from trtrecipe.recipe.files import check_files, named_files
from trtrecipe.recipe.load import Loaded, load

RECIPE = """\
schema: trtrecipe/v1
name: a
model: {source: models/net.onnx}
precision: {mode: fp32}
calibration:
  data: {npz: data.npz, arrays: {image: x}}
evaluation:
  data: {npy: {image: x.npy, label: y.npy}}
targets: [host]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder in which everything that RECIPE names is there."""
    (tmp_path / "models").mkdir()
    for name in ("models/net.onnx", "data.npz", "x.npy", "y.npy"):
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def _loaded(folder: Path, text: str = RECIPE) -> Loaded:
    (folder / "r.yaml").write_text(text)
    return load(folder / "r.yaml")


def _problems(folder: Path, text: str = RECIPE) -> list[Problem]:
    return check_files(_loaded(folder, text))


def test_all_there(folder: Path) -> None:
    assert _problems(folder) == []
    assert [name for _, name in named_files(_loaded(folder))] == ["models/net.onnx", "data.npz", "x.npy", "y.npy"]


def test_every_missing_file_at_its_place(folder: Path) -> None:
    for name in ("models/net.onnx", "data.npz", "x.npy"):
        (folder / name).unlink()
    found = _problems(folder)
    assert [(p.line, p.column, p.message) for p in found] == [
        (3, 17, "model.source: 'models/net.onnx' does not exist"),
        (6, 15, "calibration.data.npz: 'data.npz' does not exist"),
        (8, 23, "evaluation.data.npy.image: 'x.npy' does not exist"),
    ]
    assert {p.file for p in found} == {str(folder / "r.yaml")}


@pytest.mark.parametrize(
    ("source", "hint"),
    [
        ("models/nett.onnx", "did you mean models/net.onnx?"),
        ("model/net.onnx", "did you mean models?"),
        ("./models/Net.ONNX", "did you mean models/net.onnx?"),
        ("sub/../modles", "there is no sub in the folder of the recipe; paths are relative to the recipe"),
        ("zzz", "there is no zzz in the folder of the recipe; paths are relative to the recipe"),
        ("models/zzz", "there is no zzz in models; paths are relative to the recipe"),
        ("data.npz/x", "data.npz is not a folder"),
        ("https://example.org/net.onnx", "URLs are not supported; download it and name the file"),
        ("~/net.onnx", "~ stands for nothing here; write the path out"),
    ],
)
def test_hints(folder: Path, source: str, hint: str) -> None:
    [problem] = _problems(folder, RECIPE.replace("models/net.onnx", source))
    assert problem.message == f"model.source: '{source}' does not exist"
    assert problem.hint == hint


NPZ = "{npz: data.npz, arrays: {image: x}}"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("{images: 'pictures/*.png', labels: y.npy}", []),
        ("{images: '*.png'}", []),  # whether any file matches is found while planning
        ("{images: x.npy}", []),
        ("{images: 'picturs/*.png'}", [("calibration.data.images: 'picturs' does not exist", "did you mean pictures?")]),
        ("{images: pictures}", [("calibration.data.images: 'pictures' is a folder: a file is needed here", None)]),
        ("{images: 'x.npy/*.png'}", [("calibration.data.images: 'x.npy' is a file: a folder is needed here", None)]),
        ("{raw: {image: 'pictures/**/*.bin'}, labels: l.txt}", [("calibration.data.labels: 'l.txt' does not exist", "there is no l.txt in the folder of the recipe; paths are relative to the recipe")]),
        ("{raw: {image: 'q/**/*.bin'}}", [("calibration.data.raw.image: 'q' does not exist", "there is no q in the folder of the recipe; paths are relative to the recipe")]),
        ("{tfrecord: 'q/[ab].tfrecord', features: {image: x}}", [("calibration.data.tfrecord: 'q' does not exist", "there is no q in the folder of the recipe; paths are relative to the recipe")]),
        ("{csv: z.npy, columns: {image: x}}", [("calibration.data.csv: 'z.npy' does not exist", "did you mean y.npy?")]),
    ],
)  # fmt: skip
def test_files_of_every_form(folder: Path, data: str, expected: list[tuple[str, str | None]]) -> None:
    (folder / "pictures").mkdir()
    assert [(problem.message, problem.hint) for problem in _problems(folder, RECIPE.replace(NPZ, data))] == expected


def test_hints_for_absolute_paths(folder: Path) -> None:
    [problem] = _problems(folder, RECIPE.replace("models/net.onnx", f"{folder}/models/nett.onnx"))
    assert problem.hint == f"did you mean {folder}/models/net.onnx?"


def test_an_absolute_path_is_taken_as_it_is(folder: Path) -> None:
    assert _problems(folder, RECIPE.replace("data.npz", str(folder / "x.npy"))) == []


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("npz: data.npz", "npz: models", "calibration.data.npz: 'models' is a folder: a file is needed here"),
        ("source: models/net.onnx", "source: models, format: onnx", "model.source: 'models' is a folder: a file is needed here"),
        ("source: models/net.onnx", "source: x.npy, format: saved_model", "model.source: 'x.npy' is a file: a folder is needed here"),
        ("source: models/net.onnx", "source: pipe", "model.source: 'pipe' is neither a file nor a folder: a file or folder is needed here"),
        ("source: models/net.onnx", "source: loop", "model.source: 'loop' cannot be read: Too many levels of symbolic links"),
    ],
)  # fmt: skip
def test_wrong_kinds(folder: Path, old: str, new: str, message: str) -> None:
    os.mkfifo(folder / "pipe")
    (folder / "loop").symlink_to("loop")
    assert [problem.message for problem in _problems(folder, RECIPE.replace(old, new))] == [message]


def test_a_folder_or_a_file_will_do_when_the_format_is_not_given(folder: Path) -> None:
    assert _problems(folder, RECIPE.replace("models/net.onnx", "models")) == []


def test_a_name_longer_than_any_system_takes(folder: Path) -> None:
    [problem] = _problems(folder, RECIPE.replace("data.npz", "x" * 5000))
    assert "cannot be read: File name too long" in problem.message
    assert len(problem.message) < 200


def test_no_permission(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "data.npz")  # file modes do not stop root
    assert [problem.message for problem in _problems(folder)] == ["calibration.data.npz: 'data.npz' may not be read"]
