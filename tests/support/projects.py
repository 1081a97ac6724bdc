"""Small, complete projects for tests of whole builds: a model, its data, a recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from onnx import TensorProto, helper, numpy_helper

CLASSES = 16


@dataclass(frozen=True)
class Project:
    """A folder with `model.onnx`, `data.npz` and `recipe.yaml`."""

    folder: Path

    @property
    def recipe(self) -> Path:
        return self.folder / "recipe.yaml"

    def change_recipe(self, change: Callable[[dict[str, Any]], None]) -> None:
        """Rewrite the recipe after `change` has edited its plain data in place."""
        value = yaml.safe_load(self.recipe.read_text())
        change(value)
        self.recipe.write_text(yaml.safe_dump(value, sort_keys=False))

    def change_data(self, name: str, change: Callable[[Any], None]) -> None:
        """Rewrite the data after `change` has edited the array `name` in place."""
        arrays = dict(np.load(self.folder / "data.npz"))
        change(arrays[name])
        np.savez(self.folder / "data.npz", **arrays)

    def change_weight(self) -> None:
        """Move one weight of the model by a little."""
        model = onnx.load(self.folder / "model.onnx")
        weights = numpy_helper.to_array(model.graph.initializer[0]).copy()
        weights.flat[0] += 0.25
        model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights, model.graph.initializer[0].name))
        onnx.save(model, self.folder / "model.onnx")


def make_project(folder: Path, recipe: Mapping[str, Any] | None = None) -> Project:
    """A classifier of 16 classes over 1x6x6 images, int8 on `host`; `recipe` replaces blocks of the recipe."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(5)
    model = classifier(random)
    onnx.save(model, folder / "model.onnx")
    images = random.normal(size=(96, 1, 6, 6)).astype(np.float32)
    labels = random.integers(0, CLASSES, size=96)
    np.savez(folder / "data.npz", calib=images[:64], test=images[64:], label=labels[64:])
    value: dict[str, Any] = {
        "schema": "trtrecipe/v1",
        "name": "small",
        "model": {"source": "model.onnx", "dims": {"batch": {"min": 1, "opt": 4, "max": 8}}},
        "precision": {"mode": "int8"},
        "calibration": {"data": {"npz": "data.npz", "arrays": {"image": "calib"}}, "samples": 32, "method": "minmax"},
        "evaluation": {"data": {"npz": "data.npz", "arrays": {"image": "test", "label": "label"}}, "metric": "top1"},
        "targets": ["host"],
    }
    value |= recipe or {}
    value = {name: block for name, block in value.items() if block is not None}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(value, sort_keys=False))
    return Project(folder)


def classifier(random: np.random.Generator) -> onnx.ModelProto:
    """Conv, Relu, global pooling and a Gemm, opset 13."""
    weights = {
        "conv.W": random.normal(size=(16, 1, 3, 3)).astype(np.float32),
        "conv.B": random.normal(size=16).astype(np.float32),
        "gemm.W": random.normal(size=(CLASSES, 16)).astype(np.float32),
        "gemm.B": random.normal(size=CLASSES).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["image", "conv.W", "conv.B"], ["conv"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["conv"], ["relu"], name="relu"),
        helper.make_node("GlobalAveragePool", ["relu"], ["pooled"], name="pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], name="flatten"),
        helper.make_node("Gemm", ["flat", "gemm.W", "gemm.B"], ["logits"], name="gemm", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 6, 6])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def host_part_of(recipe: Mapping[str, Any], folder: Path) -> Path:
    """A store with everything in it that a small project with these parts needs no device for, under `folder`."""
    from trtrecipe.cli.app import run

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRTRECIPE_STORE", str(folder / "store"))
        patch.chdir(folder)
        assert run(["build", str(make_project(folder / "project", recipe).recipe)]) == 5
    return folder / "store"
