"""What a model file is, told from its content."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from support.projects import make_project

from trtrecipe.cli.app import run
from trtrecipe.errors import StepError
from trtrecipe.formats import LARGEST_PROTOBUF, FormatError, model_format
from trtrecipe.steps import fetch

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"
SAVED = b"\x08\x01\x12\x80\x01" + b"\x0a\x7e" + bytes(126)
NODE = b"\x0a\x14\x0a\x05input\x12\x0bPlaceholder"


def _zip(*names: str) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name in names:
            archive.writestr(name, b"{}")
    return data.getvalue()


def _npy() -> bytes:
    data = io.BytesIO()
    np.save(data, np.ones(3))
    return data.getvalue()


@pytest.mark.parametrize(
    ("content", "format"),
    [
        (onnx.helper.make_model(onnx.GraphProto(name="g")).SerializeToString(), "onnx"),
        (onnx.ModelProto(opset_import=[onnx.helper.make_opsetid("", 13)]).SerializeToString(), "onnx"),
        (b"\x08\x08\x12\x07pytorch\x1a\x031.0", "onnx"),
        (NODE, "frozen_graph"),
        (b"\x0a\x90\x01\x0a\x80\x01" + b"n" * 128 + b"\x12\x05Const", "frozen_graph"),
        (b"\x0a\x3c\x0a\x36" + b"<" * 54 + b"\x12\x02If", "frozen_graph"),  # 60 is "<", and 10 a line's end
        (b"\x89HDF\r\n\x1a\n" + bytes(80), "h5"),
        (_zip("metadata.json", "config.json", "model.weights.h5"), "keras"),
        (b"\x1c\x00\x00\x00TFL3" + bytes(40), "tflite"),
    ],
)
def test_files(content: bytes, format: str, tmp_path: Path) -> None:
    path = tmp_path / "model.of-some-kind"
    path.write_bytes(content)
    assert model_format(path) == model_format(path, format) == format
    for other in ("saved_model", "keras", "h5", "frozen_graph", "tflite", "onnx"):
        if other != format:
            with pytest.raises(FormatError, match=f"and model.format says {other}") as caught:
                model_format(path, other)
            assert caught.value.hint == f"write format: {format}, or leave it out" and caught.value.contradicts


REFUSED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "FILE is empty | it may not have been copied whole"),
    "Git LFS": (LFS, "FILE is a Git LFS pointer, not the model | run: git lfs pull"),
    "pickle": (
        pickle.dumps({"weights": [1.0]}),
        "FILE is a Python pickle, which runs code when it is read, so it never is | "
        "save the model with its framework's own function, and give that",
    ),
    "PyTorch": (
        _zip("archive/data.pkl", "archive/data/0"),
        "FILE is an archive around a Python pickle, which runs code when it is read, so it never is | "
        "PyTorch: export it with torch.onnx.export",
    ),
    "cut short": (
        _zip("config.json")[:40],
        "FILE begins like a Keras file and is cut short or damaged: File is not a zip file | "
        "compare its size with the original's",
    ),
    "zipped SavedModel": (
        _zip("m/saved_model.pb"), "FILE is an archive with a SavedModel in it | unpack it and name the folder",
    ),
    "npz": (_zip("x.npy"), "FILE is a file of NumPy arrays (npz) | name the model's file"),
    "other archive": (
        _zip("readme"), "FILE is an archive without config.json, so it is no Keras file | save the model again",
    ),
    "array": (_npy(), "FILE is a NumPy array | name the model's file"),
    "gzip": (b"\x1f\x8b\x08" + bytes(20), "FILE is a gzip file | unpack it first"),
    "web page": (
        b"\n  <!DOCTYPE html>",
        "FILE is a web page or XML, as some servers send instead of a file | download the model again",
    ),
    "text graph": (
        b'node {\n  name: "x"\n}',
        "FILE is a TensorFlow graph written as text | write it in binary form: graph_def.SerializeToString()",
    ),
    "saved_model.pb alone": (SAVED, "FILE is a SavedModel's graph alone | name its folder, which holds the values too"),
    "noise": (
        bytes(range(255, 200, -1)),
        "FILE is no model of a form that is known: SavedModel, Keras, HDF5, GraphDef, TFLite, ONNX | "
        "check model.source; the file may be damaged or cut short",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_model(case: str, tmp_path: Path) -> None:
    content, expected = REFUSED[case]
    (tmp_path / "m").write_bytes(content)
    with pytest.raises(FormatError) as caught:
        model_format(tmp_path / "m")
    assert f"{caught.value.message} | {caught.value.hint}".replace(str(tmp_path / "m"), "FILE") == expected


def test_what_cannot_be_told_is_what_the_recipe_says(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(bytes(range(255, 200, -1)))
    assert model_format(tmp_path / "m", "onnx") == "onnx"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (
            ["1/saved_model.pb"],
            "is a folder without saved_model.pb, so it is no SavedModel | a folder inside it is one: 1",
        ),
        (
            ["x"],
            "is a folder without saved_model.pb, so it is no SavedModel | name the folder that holds saved_model.pb",
        ),
        (["saved_model.pbtxt"], "is a SavedModel written as text (saved_model.pbtxt) | save it in binary form"),
        (
            ["model.ckpt.meta", "checkpoint"],
            "is a checkpoint of TensorFlow: it holds values and says no inputs | export a SavedModel from it",
        ),
    ],
)
def test_folders_that_are_no_saved_model(names: list[str], expected: str, tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(FormatError) as caught:
        model_format(tmp_path)
    assert f"{caught.value.message} | {caught.value.hint}" == f"{tmp_path} {expected}"


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (b"\x08\x08\x3a\xf0\xff\xff\xff\x0b", "m"),  # ModelProto.graph of 3 GiB
        (NODE, "m"),
        (SAVED, "folder/saved_model.pb"),
    ],
)
def test_a_protobuf_of_three_gib_is_not_even_copied(start: bytes, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as file:
        file.write(start)
        file.truncate(3 << 30)  # takes no room
    source = path if name == "m" else path.parent
    with pytest.raises(FormatError) as caught:
        model_format(source)
    assert caught.value.message == (
        f"{path} has 3,221,225,472 bytes, and no reader of protobuf takes more than {LARGEST_PROTOBUF:,}"
    )
    (tmp_path / "out").mkdir()
    format = "saved_model" if name != "m" else "onnx" if start[0] == 8 else "frozen_graph"
    with pytest.raises(StepError, match="no reader of protobuf"):
        fetch.run(fetch.Params(format), {"source": source}, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def _declares(format: str) -> Callable[[dict[str, dict[str, str]]], None]:
    return lambda value: value["model"].update(format=format)


def test_a_contradiction_is_shown_where_the_recipe_says_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRTRECIPE_STORE", str(tmp_path / "store"))
    project = make_project(tmp_path / "p")
    project.change_recipe(_declares("keras"))
    assert run(["plan", str(project.recipe)]) == 2
    line = next(number for number, text in enumerate(project.recipe.read_text().splitlines(), 1) if "format:" in text)
    shown = " ".join(capsys.readouterr().err.split())
    assert f"recipe.yaml:{line}:" in shown
    assert "model.onnx is an ONNX model, and model.format says keras" in shown
