"""init writes recipes that are valid as they stand; inspect shows models of every format, and manifests."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest
import yaml
from onnx import TensorProto, helper
from support import tflite
from support.projects import make_project

from trtrecipe.cli.app import run

Capture = pytest.CaptureFixture[str]


def _json(capsys: Capture, *arguments: object) -> tuple[int, Any]:
    capsys.readouterr()
    code = run([*map(str, arguments), "--json"])
    return code, json.loads(capsys.readouterr().out)


def _graph(path: Path, operator: str = "Relu", opset: int = 13) -> None:
    nodes = [helper.make_node(operator, ["sequence"], ["y"], name="only")]
    inputs = [helper.make_tensor_value_info("sequence", TensorProto.FLOAT, [None, None, 4])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, None, 4])]
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)


def test_the_recipe_builds_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.chdir(tmp_path)
    make_project(tmp_path / "p")
    code, document = _json(capsys, "init", "p/model.onnx", "-o", "p/made.yaml")
    assert code == 0
    assert document == {"schema": "trtrecipe/init/v1", "recipe": "p/made.yaml", "name": "model", "format": "onnx"}
    text = (tmp_path / "p/made.yaml").read_text()
    recipe = yaml.safe_load(text)
    assert recipe["model"]["source"] == "model.onnx"
    assert recipe["model"]["inputs"] == {"image": {"shape": ["batch", 1, 6, 6]}}
    assert recipe["model"]["dims"] == {"batch": {"min": 1, "opt": 1, "max": 8}}
    assert "# - jetson-xavier-nx@" in text and "gives logits" in text
    assert "tflite" not in text  # which no tool makes of ONNX
    assert run(["build", "p/made.yaml", "--target", "host"]) == 0


def test_open_axes_get_names_and_ranges_to_look_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    _graph(tmp_path / "my model.onnx")
    assert run(["init", "my model.onnx"]) == 0
    recipe = yaml.safe_load((tmp_path / "my-model.yaml").read_text())
    assert recipe["name"] == "my-model" and recipe["model"]["source"] == "my model.onnx"
    assert recipe["model"]["inputs"]["sequence"]["shape"] == ["batch", "sequence_1", 4]
    assert list(recipe["model"]["dims"]) == ["batch", "sequence_1"]
    assert run(["validate", "my-model.yaml"]) == 0


def test_what_a_device_lacks_stands_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _graph(tmp_path / "m.onnx", "Reciprocal")
    assert run(["init", "m.onnx"]) == 0
    lines = (tmp_path / "m.yaml").read_text().splitlines()
    assert any(line.startswith("  # - jetson-tx2@") and "has no Reciprocal" in line for line in lines)


def test_an_existing_recipe_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.chdir(tmp_path)
    _graph(tmp_path / "m.onnx")
    (tmp_path / "m.yaml").write_text("mine")
    code, document = _json(capsys, "init", "m.onnx")
    assert code == 2 and document["errors"][0]["message"] == "m.yaml exists already"
    assert (tmp_path / "m.yaml").read_text() == "mine"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"", "empty"),
        (b"\x93NUMPY\x01\x00", "NumPy array"),
        (b"PK\x05\x06" + bytes(18), "m.bin"),
    ],
)
def test_what_is_no_model(tmp_path: Path, capsys: Capture, content: bytes, message: str) -> None:
    (tmp_path / "m.bin").write_bytes(content)
    code, document = _json(capsys, "init", tmp_path / "m.bin")
    [error] = document["errors"]
    assert code == 2 and message in f"{error['message']} {error.get('file')}"
    assert not list(tmp_path.glob("*.yaml"))


def test_an_input_that_holds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """A recipe cannot say a size of 0; a build of a recipe that says no shape refuses it as well."""
    monkeypatch.chdir(tmp_path)
    onnx.save(
        onnx.parser.parse_model(
            '<ir_version: 8, opset_import: ["" : 17]> g (float[N,0,4] x) => (float[N,0,4] y) { y = Relu(x) }'
        ),
        "m.onnx",
    )
    said = "axis 1 of input x has the size 0 in the model, so the input is empty: x: float32 [N, 0, 4]"
    code, document = _json(capsys, "init", "m.onnx")
    assert code == 2 and [error["message"] for error in document["errors"]] == [said]
    assert not Path("m.yaml").exists()
    recipe = "schema: trtrecipe/v1\nname: m\nmodel: {source: m.onnx}\nprecision: {mode: fp32}\ntargets: [host]\n"
    Path("m.yaml").write_text(recipe)
    assert run(["build", "m.yaml"]) == 1
    assert said in capsys.readouterr().err


def test_a_missing_model(tmp_path: Path, capsys: Capture) -> None:
    code, document = _json(capsys, "init", tmp_path / "no.onnx")
    assert code == 2 and "No such file" in document["errors"][0]["message"]


def test_a_saved_model(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    if importlib.util.find_spec("tensorflow") is None:  # importing it here would print what the command keeps quiet
        pytest.skip("needs the extra tensorflow")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(repository / "recipes" / "digits" / "model", tmp_path / "model")
    assert run(["init", "model"]) == 0
    recipe = yaml.safe_load((tmp_path / "model.yaml").read_text())
    assert recipe["model"]["signature"] == "serving_default"
    assert recipe["model"]["inputs"] == {"image": {"shape": ["batch", 8, 8, 1]}}
    text = (tmp_path / "model.yaml").read_text()
    assert "  # - tflite   # a TFLite file of the same model, run by LiteRT\n" in text
    (tmp_path / "model.yaml").write_text(text.replace("# - tflite ", "- tflite "))
    assert run(["validate", "model.yaml"]) == 0
    captured = capfd.readouterr()
    assert captured.err == ""
    assert run(["inspect", "model", "--json"]) == 0
    shown = json.loads(capfd.readouterr().out)
    assert shown["kind"] == "saved_model" and shown["bytes"] > 10_000
    [signature] = shown["signatures"]
    assert signature["tags"] == ["serve"]
    assert signature["inputs"] == [{"name": "image", "dtype": "float32", "shape": ["?", 8, 8, 1]}]
    assert shown["operators"]["Conv2D"] > 0


def test_a_tflite_file_is_a_target_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(tflite.fixture("attention"), tmp_path / "m.tflite")
    assert run(["init", "m.tflite"]) == 0
    said = "  # - tflite   # the file as it is, run by LiteRT; takes the precision that the file has\n"
    assert said in (tmp_path / "m.yaml").read_text()


def test_a_keras_file_is_read_without_keras(repository: Path, capsys: Capture) -> None:
    path = repository / "recipes" / "residual" / "model.keras"
    code, shown = _json(capsys, "inspect", path)
    assert code == 0 and shown["kind"] == "keras" and shown["written_by"].startswith("Keras 3")
    assert shown["signatures"][0]["inputs"][0]["shape"][0] == "?"
    assert shown["operators"]["DepthwiseConv2D"] > 0
    assert run(["inspect", str(path)]) == 0
    assert "DepthwiseConv2D" in capsys.readouterr().out


def test_a_manifest(built: Path, tmp_path: Path, capsys: Capture) -> None:
    folder = tmp_path / "host"
    shutil.copytree(built / "dist" / "small" / "host", folder)
    code, shown = _json(capsys, "inspect", folder / "manifest.json")
    assert code == 0 and shown["kind"] == "manifest" and set(shown["files"].values()) == {"as built"}
    (folder / "model.engine").write_bytes(b"other")
    (folder / "scales.json").unlink()
    _, shown = _json(capsys, "inspect", folder / "manifest.json")
    assert shown["files"] | {"engine": "altered", "scales": "missing"} == shown["files"]
    (folder / "manifest.json").write_text('{"schema": "trtrecipe/manifest/v1", "artifacts": {}}')
    code, shown = _json(capsys, "inspect", folder / "manifest.json")
    assert code == 2 and "damaged" in shown["errors"][0]["message"]
