"""The committed recipes that INT8 finds hard, through the steps of a build: what their comments say of them holds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml

from trtrecipe.graphs import keep
from trtrecipe.steps import (
    calibrate,
    compile,
    convert,
    export,
    fetch,
    lower,
    prepare,
    quantize,
    reference,
    search,
    verify,
)


@dataclass(frozen=True)
class Prepared:
    """A recipe as it was before anything was quantized. `judging`: the parameters of steps that judge outputs."""

    folder: Path
    lowered: dict[str, Path]  # "onnx", "scales", "keep"
    judged: dict[str, Path]  # "reference", "data.*"
    judging: dict[str, Any]
    gates: dict[str, Any]
    accuracy: float
    searches: bool

    def run(self, step: ModuleType, name: str, given: dict[str, Path], /, **params: Any) -> tuple[Path, dict[str, Any]]:
        return run(step, self.folder / name, given, **params)

    def drop(self, figures: dict[str, Any]) -> float:
        return float(self.accuracy - figures["accuracy"])


def run(step: ModuleType, out: Path, given: dict[str, Path], /, **params: Any) -> tuple[Path, dict[str, Any]]:
    """The folder with the step's outputs, and what it measured."""
    out.mkdir(parents=True)
    return out, dict(step.run(step.Params(**params), given, out))


@pytest.fixture(scope="module")
def recipe(request: pytest.FixtureRequest, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    pytest.importorskip("tensorflow", reason="the tensorflow extra is not installed")
    name = request.param
    path, folder = repository / "recipes" / name, tmp_path_factory.mktemp(name)
    recipe = yaml.safe_load((path / f"{name}.yaml").read_text())
    source = path / recipe["model"]["source"]
    kind = "keras" if source.suffix == ".keras" else "saved_model"
    inputs = {name: {"shape": spec["shape"], "dtype": None} for name, spec in recipe["model"]["inputs"].items()}
    fetched, _ = run(fetch, folder / "fetch", {"source": source}, format=kind)
    model = {"model": fetched / fetch.OUTPUTS["model"]}
    exported, _ = run(export, folder / "export", model, format=kind, inputs=inputs, dims=["batch"])
    prepared, _ = run(prepare, folder / "prepare", {"onnx": exported / "model.onnx"})
    data = {}
    for block in ("calibration", "evaluation"):
        arrays = recipe[block]["data"]["arrays"]
        for role, array in arrays.items():
            data[block, role] = folder / f"{array}.npy"
            np.save(data[block, role], np.load(path / recipe[block]["data"]["npz"])[array])
    calibration = {f"data.{role}": file for (block, role), file in data.items() if block == "calibration"}
    evaluation = {f"data.{role}": file for (block, role), file in data.items() if block == "evaluation"}
    judging = {"preprocess": recipe["preprocess"], "metric": recipe["evaluation"]["metric"]}
    exact, measured = run(reference, folder / "reference", {"onnx": exported / "model.onnx", **evaluation}, **judging)
    scales, _ = run(
        calibrate,
        folder / "calibrate",
        {"onnx": prepared / "model.onnx", **calibration},
        method=recipe["calibration"]["method"],
        preprocess=recipe["preprocess"],
    )
    layers = {"onnx": prepared / "model.onnx", "layers": exported / "layers.json"}
    lowered, _ = run(lower, folder / "lower", layers, dialect="ort", opset_max=21, mode="int8", fallback="fp16")
    return Prepared(
        folder,
        {
            "onnx": lowered / "model.onnx",
            "keep": lowered / "keep.json",
            "scales": scales / "scales.json",
        },
        {"reference": exact / "outputs.npz", **evaluation},
        judging,
        recipe["gates"],
        measured["accuracy"],
        recipe["precision"].get("search", False),
    )


def int8(recipe: Prepared, target: str, kept: Path) -> dict[str, Any]:
    """The figures of what is built for `target`: the graph with FP16 baked in for rtx, the engine for host."""
    name = f"{target}-{kept.parent.name}"
    inputs = {**recipe.lowered, "keep": kept}
    graph = recipe.run(quantize, f"quantize-{name}", inputs)[0] / "model.onnx"
    if target == "rtx":
        graph = recipe.run(convert, f"convert-{name}", {**inputs, "onnx": graph}, precision="fp16")[0] / "model.onnx"
    built = {"onnx": graph, **recipe.judged}
    if target == "host":
        compiled, _ = recipe.run(compile, f"compile-{name}", {"onnx": graph}, builder="onnxruntime")
        built["engine"] = compiled / compile.OUTPUTS["engine"]
    evaluates = "engine" if target == "host" else "graph"
    params = {**recipe.judging, "runtime": "onnxruntime", "evaluates": evaluates}
    return recipe.run(verify, f"verify-{name}", built, **params)[1]


@pytest.mark.parametrize("target", ["host", "rtx"])
@pytest.mark.parametrize("recipe", ["residual", "transformer"], indirect=True)
def test_int8_is_within_a_point_of_fp32(recipe: Prepared, target: str) -> None:
    assert not recipe.searches
    assert 0.95 <= recipe.accuracy < 0.99  # hard enough to lose something
    assert recipe.drop(int8(recipe, target, recipe.lowered["keep"])) <= recipe.gates["accuracy"]["max_drop"] == 0.01


@pytest.mark.parametrize("recipe", ["outlier"], indirect=True)
@pytest.mark.parametrize(
    ("target", "runtime", "fallback"), [("host", "onnxruntime", "fp32"), ("rtx", "tensorrt-rtx", "fp16")]
)
def test_search_finds_the_layer_that_breaks_the_network(
    recipe: Prepared, target: str, runtime: str, fallback: str
) -> None:
    assert recipe.searches
    limit = recipe.gates["accuracy"]["max_drop"]
    broken = int8(recipe, target, recipe.lowered["keep"])
    assert recipe.drop(broken) > 10 * limit
    inputs = {**recipe.lowered, **recipe.judged}
    params = {**recipe.judging, "gates": recipe.gates, "fallback": fallback, "runtime": runtime}
    found, measured = recipe.run(search, f"search-{target}", inputs, **params)
    assert measured["kept"] == ["expand/convolution"]
    assert keep.load(found / "keep.json") == {"expand/convolution": fallback}
    assert measured["ranking"][0]["node"] == "expand/convolution"
    mended = int8(recipe, target, found / "keep.json")
    assert recipe.drop(mended) <= limit
    # What the search promised is what verify measures on what is built.
    assert mended.items() >= {name: measured["figures"][name] for name in ("accuracy", "agreement", "cosine")}.items()
