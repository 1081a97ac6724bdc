"""Models that do not fit one protobuf message: two files in one in every step, and the same results.

The limit is lowered, so that the same code runs with small models; TRTRECIPE_LARGE=1 adds a real one, of 2.3 GiB.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from onnx import ModelProto, TensorProto, helper, numpy_helper

from trtrecipe import parted
from trtrecipe.cli.app import run
from trtrecipe.errors import StepError
from trtrecipe.graphs import files, values
from trtrecipe.graphs.values import array_of
from trtrecipe.run import process
from trtrecipe.steps import export, fetch

LIMIT = 60_000
WIDTH = 256


def network(width: int = WIDTH, depth: int = 1) -> ModelProto:
    """A convolution with a BatchNormalization behind it, products of `width`, one of them used twice: opset 13."""
    random = np.random.default_rng(7)

    def tensor(name: str, *shape: int) -> TensorProto:
        scale = np.float32(1 / np.sqrt(shape[0]))
        return numpy_helper.from_array(random.standard_normal(shape, np.float32) * scale, name)

    nodes = [
        helper.make_node("Conv", ["image", "conv.W"], ["conv"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["conv", "scale", "shift", "mean", "var"], ["norm"], "norm"),
        helper.make_node("Relu", ["norm"], ["relu"], "relu"),
        helper.make_node("Flatten", ["relu"], ["dense0"], "flatten"),
    ]
    channels = width // 16
    constants = [tensor("conv.W", channels, 8, 4, 4), *(tensor(name, channels) for name in ("scale", "shift", "mean"))]
    constants.append(numpy_helper.from_array(np.ones(channels, np.float32), "var"))
    for number in range(depth):
        constants.append(tensor(f"dense.W{number}", width, width))
        nodes.append(
            helper.make_node("MatMul", [f"dense{number}", f"dense.W{number}"], [f"dense{number + 1}"], f"dense{number}")
        )
    nodes.append(helper.make_node("Relu", [f"dense{depth}"], ["hidden"], "hidden"))
    nodes.append(helper.make_node("MatMul", ["hidden", "last.W"], ["logits"], "last"))
    constants.append(tensor("last.W", width, 16))
    graph = helper.make_graph(
        nodes,
        "large",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 8, 5, 5])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 16])],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def project(folder: Path, model: ModelProto, **blocks: Any) -> Path:
    """The model with its values beside it, data and a recipe, whose path it is."""
    folder.mkdir()
    onnx.save(model, folder / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=64)
    random = np.random.default_rng(5)
    np.savez(folder / "data.npz", x=random.standard_normal((16, 8, 5, 5), np.float32))
    recipe: dict[str, Any] = {
        "schema": "trtrecipe/v1",
        "name": "large",
        "model": {"source": "model.onnx", "dims": {"batch": {"min": 1, "opt": 2, "max": 4}}},
        "precision": {"mode": "fp32"},
        "calibration": {"data": {"npz": "data.npz", "arrays": {"image": "x"}}, "samples": 16, "method": "minmax"},
        "targets": ["host"],
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe | blocks, sort_keys=False))
    return folder / "recipe.yaml"


@pytest.fixture
def lowered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One file takes no more than LIMIT, here and in the processes of steps."""
    monkeypatch.setattr(parted, "LIMIT", LIMIT)
    body = "from trtrecipe.run.worker import main; main()"
    assert body in process._PROGRAM
    small = f"import trtrecipe.parted; trtrecipe.parted.LIMIT = {LIMIT}; {body}"
    monkeypatch.setattr(process, "_PROGRAM", process._PROGRAM.replace(body, small))
    yield


def build(recipe: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    code = run(["build", str(recipe), "--output", str(folder), "--json"])
    said = capsys.readouterr()
    assert code == 0, said.out[-2000:] + said.err[-2000:]
    document: dict[str, Any] = json.loads(said.out)
    return document["targets"][0]


def whole(path: Path) -> ModelProto:
    """The model with the values beside it, as any tool reads them."""
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        tensor.ClearField("data_location")
    return model


def outside(path: Path) -> list[str]:
    model = onnx.load(path, load_external_data=False)
    return [tensor.name for tensor in values.outside(model)]


@pytest.mark.parametrize(
    ("target", "precision"),
    [
        ("host", {"mode": "fp32"}),
        ("host", {"mode": "int8"}),
        ("rtx", {"mode": "fp32"}),
        ("rtx", {"mode": "fp16"}),
        ("rtx", {"mode": "int8", "fallback": "fp16"}),
    ],
)
def test_whole_builds_give_what_they_give_of_one_file(
    target: str,
    precision: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    if target == "rtx":
        pytest.importorskip("tensorrt_rtx", reason="the rtx extra is not installed")
    monkeypatch.chdir(tmp_path)
    recipe = project(tmp_path / "project", network(), precision=precision, targets=[target])
    plain = build(recipe, tmp_path / "plain", capsys)
    monkeypatch.setenv("TRTRECIPE_STORE", str(tmp_path / "another"))
    request.getfixturevalue("lowered")
    large = build(recipe, tmp_path / "large", capsys)
    assert plain["artifacts"]["onnx"]["path"] == f"plain/large/{target}/model.onnx"
    assert "onnx_data" not in plain["artifacts"]
    assert large["artifacts"]["onnx_data"]["path"] == f"large/large/{target}/model.onnx.data"
    one, two = (tmp_path / each / "large" / target / "model.onnx" for each in ("plain", "large"))
    assert outside(one) == []
    assert "dense.W0" in " ".join(outside(two))
    assert whole(two) == onnx.load(one)
    same = ("cosine", "agreement", "samples", "evaluated")
    assert {name: large["metrics"].get(name) for name in same} == {name: plain["metrics"].get(name) for name in same}
    assert large["metrics"]["cosine"] > 0.99
    again = build(recipe, tmp_path / "large", capsys)
    assert again["status"] == "cached"
    assert again["artifacts"] == large["artifacts"]
    for artifact in large["artifacts"].values():
        file = Path(artifact["path"])
        before = file.read_bytes()
        file.write_bytes(b"altered")
        build(recipe, tmp_path / "large", capsys)
        assert file.read_bytes() == before
