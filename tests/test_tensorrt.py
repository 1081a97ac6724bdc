"""TensorRT's builder process and engines, on surrogates: what is said to it, not what it would make of it."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from support.tensorrt_surrogate import HEADER, HostMemory, Network, install

from trtrecipe.engines import open_engine, tensorrt_build, tensorrt_run
from trtrecipe.errors import StepError
from trtrecipe.graphs import files, keep
from trtrecipe.steps import benchmark, compile, verify
from trtrecipe.targets.buildspec import MIB, BuildSpec

DIMS = {"batch": {"min": 1, "opt": 4, "max": 8}}
NETWORK = Network([("relu", ["FLOAT"])], inputs={"x": [-1, 3]}, outputs={"y": [-1, 3]})


def net() -> onnx.ModelProto:
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("Relu", ["x"], ["r"], "relu"), helper.make_node("Abs", ["r"], ["y"], "abs")]
    graph = helper.make_graph(
        nodes, "graph", [value("x", TensorProto.FLOAT, ["batch", 3])], [value("y", TensorProto.FLOAT, ["batch", 3])]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


class Installed:
    """Puts a surrogate where `import tensorrt` finds it, here and in the builder's process."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.patch = folder, patch

    def __call__(self, release: str, **changes: Any) -> Path:
        install(self.folder, release, dataclasses.replace(NETWORK, **changes))
        self.patch.syspath_prepend(str(self.folder))
        self.patch.delitem(sys.modules, "tensorrt", raising=False)
        return self.folder

    def cuda(self, devices: int = 1) -> HostMemory:
        memory = HostMemory(devices)
        package = ModuleType("cuda.bindings")
        package.__dict__["runtime"] = memory
        for name, module in {"cuda": ModuleType("cuda"), "cuda.bindings": package}.items():
            self.patch.setitem(sys.modules, name, module)
        return memory


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installed:
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # restored afterwards, whatever is imported in between
    return Installed(tmp_path / "site", monkeypatch)


def spec(engine: Path, **changes: Any) -> BuildSpec:
    return dataclasses.replace(BuildSpec("model.onnx", str(engine), None, "fp16"), **changes)


@pytest.mark.parametrize("release", ["8.5", "8.6", "10.3", "10.16"])
def test_the_builder_runs_in_a_process_of_its_own(installed: Installed, tmp_path: Path, release: str) -> None:
    installed(release)
    notes = tensorrt_build.build("tensorrt", net(), spec(tmp_path / "e", layers={"relu": "fp32", "abs": "fp32"}))
    assert (tmp_path / "e").read_bytes() == b"SURROGATE " + release.encode()
    assert len(notes) == 1 and "no layer called abs" in notes[0]


def test_a_model_with_its_weights_beside_it_is_read_where_it_lies(installed: Installed, tmp_path: Path) -> None:
    installed("10.3")
    onnx.save(net(), tmp_path / "model.onnx")
    assert tensorrt_build.build("tensorrt", net(), spec(tmp_path / "e"), tmp_path / "model.onnx") == []
    (tmp_path / "model.onnx").unlink()
    with pytest.raises(StepError, match="ended with status 1"):
        tensorrt_build.build("tensorrt", net(), spec(tmp_path / "e"), tmp_path / "model.onnx")


@pytest.mark.parametrize(("release", "name"), [("8.5", None), ("10.3", "abs")])
def test_nodes_that_the_parser_refuses_are_named(
    installed: Installed, tmp_path: Path, release: str, name: str | None
) -> None:
    error = {"node": 1, "name": name, "operator": "Abs", "text": "no Abs here"}
    installed(release, errors=[error])
    with pytest.raises(StepError, match=r"cannot read the graph: node abs \(Abs\): no Abs here"):
        tensorrt_build.build("tensorrt", net(), spec(tmp_path / "e"))
    assert not (tmp_path / "e").exists()


def test_what_the_installed_release_cannot(installed: Installed, tmp_path: Path) -> None:
    installed("8.2")
    with pytest.raises(StepError, match=r"TensorRT 8\.2: the first that it can is 8\.5") as caught:
        tensorrt_build.build("tensorrt", net(), spec(tmp_path / "e"))
    assert "trtexec" in (caught.value.hint or "")
    with pytest.raises(StepError, match=r"TensorRT 8\.2: the first that it can is 8\.5"):
        open_engine("tensorrt", tmp_path / "e")


def test_a_machine_without_a_driver(installed: Installed, tmp_path: Path) -> None:
    installed("10.3", driver=False)
    with pytest.raises(StepError, match=r"TensorRT 10\.3\.0\.1 cannot start: CUDA initialization failure"):
        tensorrt_build.build("tensorrt", net(), spec(tmp_path / "e"))


def test_a_build_that_runs_out_of_memory_is_tried_with_less(installed: Installed, tmp_path: Path) -> None:
    installed("10.3", most_workspace=100 * MIB)
    notes = tensorrt_build.build("tensorrt", net(), spec(tmp_path / "e", workspace=256 * MIB))
    assert [note.partition(" MiB")[0].rpartition(" ")[2] for note in notes] == ["256", "128"]
    installed("10.3", most_workspace=MIB)
    with pytest.raises(StepError, match="out of memory") as caught:
        tensorrt_build.build("tensorrt", net(), spec(tmp_path / "e2", workspace=100 * MIB))
    assert "free memory of the GPU" in (caught.value.hint or "")


@pytest.mark.parametrize("unscaled", [["not in the table"], ["x"]])
def test_a_table_is_made_out_to_the_installed_release(
    installed: Installed, tmp_path: Path, unscaled: list[str]
) -> None:
    installed("10.3", unscaled=unscaled)
    files.save(net(), tmp_path / "model.onnx")
    (tmp_path / "table").write_text(HEADER % 8502 + "\nx: 3c008912\n")
    (tmp_path / "keep.json").write_bytes(keep.dump({"relu": "fp32"}))
    inputs = {"onnx": tmp_path / "model.onnx", "table": tmp_path / "table", "keep": tmp_path / "keep.json"}
    params = compile.Params("tensorrt", DIMS, mode="int8", strongly_typed=False)
    if unscaled == ["x"]:
        with pytest.raises(StepError, match="finds no scale of x, which the calibration table has"):
            compile.run(params, inputs, tmp_path)
        return
    assert compile.run(params, inputs, tmp_path)["notes"] == []
    assert (tmp_path / "model.engine").read_bytes() == b"SURROGATE 10.3"


@pytest.mark.parametrize("release", ["8.5", "10.3", "11.0", "11.4"])
def test_engines_run_by_the_names_of_their_tensors(installed: Installed, tmp_path: Path, release: str) -> None:
    installed(release)
    memory = installed.cuda()
    (tmp_path / "e").write_bytes(b"SURROGATE " + release.encode())
    assert tensorrt_run.unavailable("tensorrt") is None
    with open_engine("tensorrt", tmp_path / "e") as engine:
        for batch in (2, 5, 3):
            found = engine.run({"x": np.ones((batch, 3), np.float64)})
            assert found["y"].shape == (batch, 3) and found["y"].dtype == np.float32
        with pytest.raises(StepError, match=r"refuses shape \[1, 4\] for input x: it takes \[1, 3\] to \[8, 3\]"):
            engine.run({"x": np.ones((1, 4), np.float32)})
        conditions = engine.conditions()
    assert (conditions["runtime"], conditions["version"]) == ("tensorrt", f"{release}.0.1")
    assert conditions["device"] == "Surrogate GPU (compute capability 8.9)"
    assert not memory.held and not memory.streams


def test_an_engine_of_another_release(installed: Installed, tmp_path: Path) -> None:
    installed("10.3")
    installed.cuda()
    (tmp_path / "e").write_bytes(b"SURROGATE 10.16")
    with pytest.raises(StepError, match=r"cannot load the engine on Surrogate GPU .* not compatible with this version"):
        open_engine("tensorrt", tmp_path / "e")


def test_what_is_missing_is_said(installed: Installed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StepError, match="TensorRT is not installed") as caught:
        tensorrt_build.build("tensorrt", net(), spec(tmp_path / "e"))
    assert "pip install 'trtrecipe[cuda]'" in (caught.value.hint or "")
    installed("10.3")
    installed.cuda(devices=0)
    assert tensorrt_run.unavailable("tensorrt") == "this machine has no NVIDIA GPU"
    installed.cuda(devices=-1)
    assert tensorrt_run.unavailable("tensorrt") == "cudaGetDeviceCount failed: Failed to dlopen libcuda.so.1"
    monkeypatch.setitem(sys.modules, "cuda", None)
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(StepError, match="needs CUDA's Python bindings") as caught:
        open_engine("tensorrt", tmp_path / "e")
    assert "pip install 'trtrecipe[cuda]'" in (caught.value.hint or "")


def test_steps_know_the_distribution_that_they_depend_on() -> None:
    assert "tensorrt" in compile.tools(compile.Params("tensorrt"))
    assert "tensorrt" in verify.tools(verify.Params("tensorrt", "engine"))
    assert benchmark.tools(benchmark.Params("tensorrt")) == ("tensorrt",)
