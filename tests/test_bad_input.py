"""What a person gets for input that cannot work: one clear message, the right exit code, nothing lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from support.projects import Project

from trtrecipe.cli.app import run
from trtrecipe.data.sampling import Sampling, select

Edit = Callable[[Project], None]


def recipe(change: Callable[[dict[str, Any]], Any]) -> Edit:
    return lambda project: project.change_recipe(change)


def data(name: str, change: Callable[[Any], Any]) -> Edit:
    """Replace an array of the data by what `change` makes of it."""

    def edit(project: Project) -> None:
        arrays = dict(np.load(project.folder / "data.npz"))
        arrays[name] = change(arrays[name])
        np.savez(project.folder / "data.npz", **arrays)

    return edit


def nan_at(index: int) -> Callable[[Any], Any]:
    def change(array: Any) -> Any:
        array = array.copy()
        array[index, 0, 2, 2] = np.nan
        return array

    return change


def no_saved_model(project: Project) -> None:
    (project.folder / "empty").mkdir()
    project.change_recipe(lambda value: value["model"].update(source="empty"))


def truncated_model(project: Project) -> None:
    path = project.folder / "model.onnx"
    path.write_bytes(path.read_bytes()[:300])


def lfs_pointer(project: Project) -> None:
    (project.folder / "model.onnx").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def open_axis(project: Project) -> None:
    model = onnx.load(project.folder / "model.onnx")
    for value, axis in ((model.graph.input[0], 2), (model.graph.input[0], 3)):
        value.type.tensor_type.shape.dim[axis].ClearField("dim_value")
    onnx.save(model, project.folder / "model.onnx")


def linked_away(project: Project) -> None:
    (project.folder / "model").mkdir()
    (project.folder / "model" / "saved_model.pb").symlink_to("/etc/passwd")
    project.change_recipe(lambda value: value["model"].update(source="model"))


# What is wrong → the edit that makes it so, exit code, words of the message, words of the hint, place in the recipe.
CASES: dict[str, tuple[Edit, int, str, str, str | None]] = {
    "missing model": (
        recipe(lambda r: r["model"].update(source="modle.onnx")),
        2, "'modle.onnx' does not exist", "did you mean model.onnx?", "modle.onnx",
    ),
    "no SavedModel": (no_saved_model, 2, "without saved_model.pb", "name the folder", "empty"),
    "a link in the model": (linked_away, 2, "no plain file", "copy of the file", "model"),
    "truncated model": (truncated_model, 2, "is cut short, or damaged", "compare their sizes", "model.onnx"),
    "Git LFS pointer": (lfs_pointer, 2, "is a Git LFS pointer", "git lfs pull", "model.onnx"),
    "open axis": (open_axis, 1, "export", "model.inputs.image.shape", None),
    "unknown input": (
        recipe(lambda r: r["model"].update(inputs={"imgae": {"dtype": "float32"}})), 1, "imgae", "image", None,
    ),
    "wrong dtype of an input": (
        recipe(lambda r: r["model"].update(inputs={"image": {"dtype": "int32"}})), 1, "int32", "", None,
    ),
    "wrong array name": (
        recipe(lambda r: r["calibration"]["data"].update(arrays={"image": "calbi"})),
        2, "has no array 'calbi'; it has: calib, test, label", "did you mean calib?", "calbi",
    ),
    "data for no input": (
        recipe(lambda r: r["calibration"]["data"].update(arrays={"picture": "calib"})), 1, "picture", "", None,
    ),
    "wrong shape": (data("calib", lambda a: a[:, :, :4]), 1, "4", "", None),
    "no numbers": (data("calib", lambda a: np.array(["a", "b"])), 2, "dtype '<U1'", "convert", "calib"),
    "NaN": (data("calib", nan_at(select(64, Sampling(32, 0))[5])), 1, "sample 5", "", None),
    "too few samples": (
        recipe(lambda r: r["calibration"].update(samples=65)),
        2, "65 samples are asked for and 64 exist", "fewer", "65",
    ),
    "as many labels as samples": (data("label", lambda a: a[:-1]), 1, "31", "", None),
    "no such class": (data("label", lambda a: a + 100), 1, "label", "", None),
    "dimension without a range": (
        recipe(lambda r: r["model"].update(inputs={"image": {"shape": ["n", 1, 6, 6]}})),
        2, "names the dimension 'n', which model.dims lacks", "", "n",
    ),
    "INT8 on a TX2": (
        recipe(lambda r: r.update(targets=["jetson-tx2@4.6.4"])),
        2, "jetson-tx2 does not compute int8", "fp16", "jetson-tx2@4.6.4",
    ),
    "no JetPack": (recipe(lambda r: r.update(targets=["jetson-orin-nx"])), 2, "orin-nx", "6.2", "jetson-orin-nx"),
    "which NX": (recipe(lambda r: r.update(targets=["jetson-nx@5.1.4"])), 2, "jetson-xavier-nx", "", "jetson-nx@5.1.4"),
    "the same target twice": (recipe(lambda r: r.update(targets=["host", "host"])), 2, "same id", "name", "host"),
}  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("case", CASES)
def test_bad_input(
    case: str, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    edit, code, message, hint, place = CASES[case]
    shutil.copytree(built, tmp_path / "all")
    monkeypatch.setenv("TRTRECIPE_STORE", str(tmp_path / "all" / "store"))
    monkeypatch.chdir(tmp_path / "all")
    project = Project(tmp_path / "all" / "project")
    edit(project)
    dist, records = contents(Path("dist")), contents(Path("store/v1/records"))
    capsys.readouterr()
    assert run(["build", str(project.recipe), "--json"]) == code
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    document = json.loads(captured.out)
    if code == 2:
        [error] = document["errors"]
        said, hinted = error["message"], error.get("hint", "")
        line = project.recipe.read_text().splitlines()[error["line"] - 1]
        assert place is not None and line[error["column"] - 1 :].startswith(place)
    else:
        failed = [step for step in document["targets"][0]["steps"] if step["status"] == "failed"]
        assert failed and not any(step["error"].startswith("unexpected") for step in failed)
        said, hinted = f"{failed[0]['kind']}: {failed[0]['error']}", failed[0].get("hint", "")
    assert message in said
    assert hint in f"{said} {hinted}"
    assert contents(Path("dist")) == dist
    assert contents(Path("store/v1/records")).items() >= records.items()


def test_a_signature_that_does_not_exist(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(repository / "recipes" / "digits", tmp_path / "digits")
    path = tmp_path / "digits" / "digits.yaml"
    path.write_text(path.read_text().replace("signature: serving_default", "signature: serve"))
    monkeypatch.chdir(tmp_path)
    assert run(["build", str(path), "--json"]) == 1
    steps = json.loads(capsys.readouterr().out)["targets"][0]["steps"]
    [failed] = [step for step in steps if step["status"] == "failed"]
    assert failed["kind"] == "export" and "serve" in failed["error"]
    assert "serving_default" in failed["error"] + failed.get("hint", "")
    assert not (tmp_path / "dist").exists()
