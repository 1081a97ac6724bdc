"""Profile cuda: TensorRT releases instead of JetPack's, built where trtrecipe runs, or pending with the reason."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from support import tensorrt_surrogate
from support.projects import Project, make_project
from support.tensorrt_surrogate import Network

from trtrecipe.cli.app import run as command
from trtrecipe.cli.recipes import load_all
from trtrecipe.errors import InputError
from trtrecipe.plan import resolve, tools
from trtrecipe.plan.graph import Graph, Step
from trtrecipe.plan.machine import Gpu, Machine
from trtrecipe.plan.pipeline import build_graph
from trtrecipe.plan.resolve import Resolver
from trtrecipe.plan.sources import ModelSource, Problem
from trtrecipe.run.scheduler import _measures
from trtrecipe.store.store import Missing
from trtrecipe.targets.catalog import load_catalog
from trtrecipe.targets.python_api import NEWEST

GPU = Gpu("NVIDIA L4", "8.9", "12.8")
MACHINE = Machine("x86-64-v3", "a CPU x 2", GPU)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return make_project(tmp_path / "project", {"targets": ["cuda@10.3"]})


@pytest.fixture(autouse=True)
def _nothing_remembered() -> Iterator[None]:
    """Versions are looked up once per process."""
    yield
    tools.version.cache_clear()
    tools._installed.cache_clear()


def install(folder: Path, name: str, patch: pytest.MonkeyPatch) -> None:
    """A distribution, as far as its metadata go."""
    (folder / f"{name}.dist-info").mkdir(parents=True, exist_ok=True)
    patch.syspath_prepend(str(folder))
    tools.version.cache_clear()
    tools._installed.cache_clear()


def graph_of(project: Project, machine: Machine, installed: str | None) -> Graph:
    with mock.patch("trtrecipe.plan.pipeline.version", lambda tool: installed if tool == "tensorrt" else "1.0"):
        return build_graph(load_all([project.recipe]), machine)


@pytest.mark.parametrize(
    ("gpu", "installed", "lacks"),
    [
        (None, "10.3.0.26", "this one has no GPU that the driver shows"),
        (GPU, None, "this one has no tensorrt package"),
        (GPU, "10.16.1.11", "this one has TensorRT 10.16.1.11"),
        (GPU, "10.3.0.26", None),
    ],
)
def test_what_this_machine_lacks_is_said(
    project: Project, gpu: Gpu | None, installed: str | None, lacks: str | None
) -> None:
    steps = graph_of(project, replace(MACHINE, gpu=gpu), installed).steps
    said = None if lacks is None else f"needs a machine with an NVIDIA GPU and TensorRT 10.3; {lacks}"
    for kind in ("compile", "verify", "benchmark"):
        assert steps[f"small:{kind}@cuda@10.3"].pending == said
    assert steps["small:quantize@trt-10.3"].pending is None


def test_what_the_steps_are_told(project: Project) -> None:
    entries: list[Any] = ["cuda@10.3", "cuda@11.0"]
    entries.append({"profile": "cuda@8.5", "name": "table", "precision": {"mode": "int8", "quantization": "implicit"}})
    project.change_recipe(lambda recipe: recipe.update(targets=entries))
    steps = graph_of(project, MACHINE, "10.3.0.26").steps
    weak, strong, table = (steps[f"small:compile@{name}"] for name in ("cuda@10.3", "cuda@11.0", "table"))
    assert {step.params["builder"] for step in (weak, strong, table)} == {"tensorrt"}
    assert (weak.params["strongly_typed"], strong.params["strongly_typed"]) == (False, True)
    assert "keep" in weak.inputs and "keep" not in strong.inputs and "table" in table.inputs
    assert steps["small:table@table"].params == {"tensorrt": "8.5.0"}
    assert steps["small:verify@cuda@10.3"].params["evaluates"] == "engine"
    assert steps["small:benchmark@cuda@10.3"].params["runtime"] == "tensorrt"


def test_a_build_that_takes_times_has_the_machine_to_itself(project: Project) -> None:
    project.change_recipe(lambda recipe: recipe.update(targets=["host", "cuda@10.3"]))
    steps = graph_of(project, MACHINE, "10.3.0.26").steps
    alone = {step.name for step in steps.values() if _measures(step)}
    assert alone == {"compile@cuda@10.3", "benchmark@cuda@10.3", "benchmark@host"}


def test_the_release_is_that_of_the_installed_package(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.change_recipe(lambda recipe: recipe.update(targets=["cuda"]))
    with pytest.raises(InputError) as caught:
        load_all([project.recipe])
    [problem] = caught.value.problems
    assert problem.message == "cuda needs a TensorRT release"
    assert "such as cuda@11.4, or install the tensorrt package; releases: 8.5, 8.6, 10.0," in (problem.hint or "")
    install(tmp_path / "site", "tensorrt_cu12_bindings-10.3.0.26", monkeypatch)
    [(_, [target])] = load_all([project.recipe])
    assert target.id == "cuda" and target.release is not None and target.release.jetpack == "10.3"
    assert target.dialect.id == "trt-10.3"
    install(tmp_path / "later", "tensorrt-11.7.0.1", monkeypatch)
    [(_, [target])] = load_all([project.recipe])
    assert target.dialect.id == "trt-11.4"
    install(tmp_path / "far", "tensorrt-13.0.0.1", monkeypatch)
    with pytest.raises(InputError, match=r"unknown TensorRT release '13\.0' for cuda"):
        load_all([project.recipe])


def test_releases_are_those_whose_api_is_known() -> None:
    profile, _ = load_catalog().look_up("cuda")
    newest: dict[int, str] = {}
    for release in profile.releases:
        newest[int(release.jetpack.split(".")[0])] = release.jetpack
    assert list(newest.values()) == [each for each in NEWEST["tensorrt"] if not each.startswith("9.")]


class EmptyStore:
    def lookup(self, key: str) -> Missing:
        return Missing("none")


def test_the_key_of_an_engine_holds_the_gpu_and_the_exact_version(project: Project) -> None:
    source = ModelSource(Path("model.onnx"), Problem(""))
    step = graph_of(project, MACHINE, "10.3.0.26").steps["small:compile@cuda@10.3"]
    step = Step(step.id, step.kind, step.params, {"onnx": source})
    documents = []
    for gpu, version in (
        (GPU, "10.3.0.26"),
        (GPU, "10.3.0.30"),
        (replace(GPU, name="NVIDIA L40"), "10.3.0.26"),
        (replace(GPU, driver="12.9"), "10.3.0.26"),
    ):
        with mock.patch.object(resolve, "version", lambda tool, version=version: version):
            resolver = Resolver(EmptyStore(), {source: "0" * 64}, replace(MACHINE, gpu=gpu), {})  # type: ignore[arg-type]
            found = resolver.resolve(step, {})
        assert found.key_document is not None
        documents.append(found)
    assert len({each.key for each in documents}) == 4
    document = documents[0].key_document
    assert document is not None and document["tools"] == {"tensorrt": "10.3.0.26", "onnx": "10.3.0.26"}
    assert document["gpu"] == {"name": "NVIDIA L4", "compute_capability": "8.9", "driver": "12.8"}


def test_a_build_without_a_gpu_ends_with_what_it_waits_for(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    nothing = replace(MACHINE, gpu=None)
    with mock.patch("trtrecipe.plan.machine.this_machine", lambda: nothing):
        assert command(["build", str(project.recipe), "--json"]) == 5
    [target] = json.loads(capsys.readouterr().out)["targets"]
    assert target["status"] == "pending"
    assert {"onnx", "scales", "manifest"} <= set(target["artifacts"]) and "engine" not in target["artifacts"]
    waiting = [step for step in target["steps"] if step["kind"] == "compile"]
    assert waiting[0]["status"] == "pending" and "NVIDIA GPU and TensorRT 10.3" in waiting[0]["reason"]


def test_a_build_with_a_gpu_ends_with_an_engine_for_it(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The way through all steps, on surrogates of TensorRT and CUDA: their figures say nothing."""
    site = tmp_path / "site"
    network = Network([("conv", ["FLOAT"])], inputs={"image": [-1, 1, 6, 6]}, outputs={"logits": [-1, 16]})
    tensorrt_surrogate.install(site, "10.3", network)
    tensorrt_surrogate.install_cuda(site)
    install(site, "tensorrt-10.3.0.1", monkeypatch)
    monkeypatch.setenv("PYTHONPATH", str(site))
    monkeypatch.chdir(tmp_path)
    with mock.patch("trtrecipe.plan.machine.this_machine", lambda: MACHINE):
        assert command(["build", str(project.recipe), "--json"]) == 0
    [target] = json.loads(capsys.readouterr().out)["targets"]
    assert {step["kind"]: step["status"] for step in target["steps"]}["compile"] == "ran"
    assert Path(target["artifacts"]["engine"]["path"]).read_bytes() == b"SURROGATE 10.3"
    manifest = json.loads(Path(target["artifacts"]["manifest"]["path"]).read_text())
    assert manifest["device"] == {"name": "NVIDIA L4", "compute_capability": "8.9", "driver": "12.8"}
    assert manifest["tools"]["tensorrt"] == "10.3.0.1"


def test_the_profile_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["devices", "show", "cuda"]) == 0
    shown = capsys.readouterr().out
    assert "10.12" in shown and "trt-11.4" in shown
    assert command(["devices", "show", "cuda@11.2", "--json"]) == 0
    [release] = json.loads(capsys.readouterr().out)["releases"]
    assert release["jetpack"] == "11.2" and release["accepts"]["assumed"] is True
