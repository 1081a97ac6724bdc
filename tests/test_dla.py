"""DLA: what recipes may ask of it, what a build tells of it, and the errors that it ends with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.projects import Project, host_part_of, make_project
from support.sshd import XAVIER_NX, Lab, lab
from test_fleet import build, write_inventory

from trtrecipe.device.agent import PARTS_KEPT, Log
from trtrecipe.device.build import _in_words
from trtrecipe.errors import InputError
from trtrecipe.plan.devices import Need
from trtrecipe.plan.machine import this_machine
from trtrecipe.plan.pipeline import build_graph
from trtrecipe.recipe.load import load
from trtrecipe.recipe.rules import resolve_targets, target_findings
from trtrecipe.run.fleet import Fleet
from trtrecipe.targets.buildspec import Dla
from trtrecipe.targets.catalog import load_catalog
from trtrecipe.targets.devices import Device, dla_cores
from trtrecipe.targets.spec import Target

NX = "jetson-xavier-nx@5.1.4"
ONE = {"batch": {"min": 4, "opt": 4, "max": 4}}
DLA: dict[str, Any] = {
    "model": {"source": "model.onnx", "dims": ONE},
    "precision": {"mode": "int8", "fallback": "fp16"},
    "build": {"dla": {"core": 0}},
    "evaluation": {"data": {"npz": "data.npz", "arrays": {"image": "test", "label": "label"}}, "samples": 4},
    "targets": [NX],
}


def targets(folder: Path, changes: dict[str, Any]) -> list[Target]:
    loaded = load(make_project(folder, DLA | changes).recipe, also=target_findings)
    found, problems = resolve_targets(loaded, load_catalog())
    assert problems == []
    return found


def refused(folder: Path, changes: dict[str, Any]) -> str:
    project = make_project(folder, DLA | changes)
    with pytest.raises(InputError) as caught:
        load(project.recipe, also=target_findings)
    [problem] = caught.value.problems
    assert problem.line is not None
    return f"{problem.message} | {problem.hint}"


def test_int8_for_dla_is_implicit_without_being_asked(tmp_path: Path) -> None:
    [nx] = targets(tmp_path, {})
    assert (nx.dla, nx.mode, nx.quantization) == (Dla(0, True), "int8", "implicit")
    assert any("no accuracy can be predicted" in note for note in nx.notes)
    [strict] = targets(tmp_path, {"build": {"dla": {"core": 1, "gpu_fallback": False}}})
    assert strict.dla == Dla(1, False)


def test_where_there_is_no_dla_the_recipes_does_not_apply(tmp_path: Path) -> None:
    found = targets(tmp_path, {"targets": [NX, "host", "rtx", "jetson-orin-nano@6.2", "jetson-orin-nx@7.2"]})
    assert [target.dla is not None for target in found] == [True, False, False, False, False]
    for target in found[1:]:
        assert target.quantization == "explicit"
        assert any(note.startswith(f"build.dla does not apply to {target.profile.id}: ") for note in target.notes)
    [gpu] = targets(tmp_path, {"targets": [{"profile": NX, "build": {}}]})
    assert (gpu.dla, gpu.quantization) == (None, "explicit")
    assert gpu.notes == ()


@pytest.mark.parametrize(
    ("profile", "why"),
    [
        ("host", "it has no DLA"),
        ("jetson-tx2@4.6.4", "it has no DLA"),
        ("jetson-orin-nano@6.2", "it has no DLA"),
        ("jetson-orin-nx@7.2", "trt-10.16 offers no DLA"),
        ("jetson-agx-orin@7.2", "trt-10.16 offers no DLA"),
    ],
)
def test_a_target_that_asks_for_a_dla_it_lacks(tmp_path: Path, profile: str, why: str) -> None:
    target = {"profile": profile, "build": {"dla": {"core": 0}}, "precision": {"mode": "fp16"}}
    assert f"cannot be built for DLA: {why} | remove it" in refused(tmp_path, {"targets": [target]})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"build": {"dla": {"core": 2}}}, "has no DLA core 2 | it has cores 0 to 1"),
        ({"precision": {"mode": "fp32"}}, "DLA computes fp16 and int8, not fp32"),
        ({"precision": {"mode": "int8", "quantization": "explicit"}}, "it takes INT8 by calibration table"),
        ({"precision": {"mode": "int8", "keep": [{"layers": "conv"}]}}, "cannot have precision.keep"),
        ({"calibration": {"model": True}}, "calibration.model keeps the Q/DQ nodes"),
        ({"model": {"source": "model.onnx", "dims": {"batch": {"min": 1, "opt": 4, "max": 8}}}}, "one size for"),
        ({"build": {"dla": {}}}, "lacks the key core | add core: 0"),
        ({"build": {"dla": {"core": -1}}}, "at least 0"),
        ({"build": {"dla": {"core": 0, "fallback": True}}}, "unknown key 'fallback'"),
    ],
)
def test_what_dla_does_not_take(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    assert words in refused(tmp_path, changes)


def test_of_several_modes_those_that_dla_computes(tmp_path: Path) -> None:
    [nx] = targets(tmp_path, {"precision": {"mode": ["fp32", "fp16"]}})
    assert (nx.mode, nx.rivals) == ("fp16", ())
    assert "fp32 is no candidate: DLA does not compute it" in nx.notes


def test_a_variant_that_lacks_the_core_is_noted(tmp_path: Path) -> None:
    [orin] = targets(tmp_path, {"targets": ["jetson-orin-nx@6.2"], "build": {"dla": {"core": 1}}})
    assert any("jetson-orin-nx-8gb lacks it" in note for note in orin.notes)
    profile, _ = load_catalog().look_up("jetson-orin-nx")
    shown = [(7_500_000, 1), (15_650_000, 2), (1_000_000, None)]
    assert [(kib, dla_cores(profile, kib << 10)) for kib, _ in shown] == shown


def placement(folder: Path, lines: list[str]) -> Log:
    log = Log(str(folder / "build.log"), set())
    for line in lines:
        log.add(f"[03/31/2022-14:34:54] {line}")
    log.close()
    return log


@pytest.mark.parametrize("severity", ["I", "V"])  # TensorRT 10 says it with --verbose alone
def test_where_layers_run_is_read_from_the_log(tmp_path: Path, severity: str) -> None:
    log = placement(
        tmp_path,
        [
            f"[{severity}] [TRT] ---------- Layers Running on DLA ----------",
            f"[{severity}] [TRT] [DlaLayer] {{ForeignNode[Relu_10...Conv_11]}}",
            f"[{severity}] [TRT] ---------- Layers Running on GPU ----------",
            f"[{severity}] [TRT] [GpuLayer] SHUFFLE: Reshape_2 + (Unnamed Layer* 7) [Shuffle]",
            f"[{severity}] [TRT] [GpuLayer] PWN(PWN(Sigmoid_1), Mul_2)",
        ],
    )
    assert log.placement == {
        "dla": {"count": 1, "names": ["{ForeignNode[Relu_10...Conv_11]}"]},
        "gpu": {
            "count": 2,
            "names": ["SHUFFLE: Reshape_2 + (Unnamed Layer* 7) [Shuffle]", "PWN(PWN(Sigmoid_1), Mul_2)"],
        },
    }


def test_names_of_where_layers_run_are_bounded(tmp_path: Path) -> None:
    log = placement(tmp_path, [f"[V] [TRT] [GpuLayer] CAST: {number}" for number in range(PARTS_KEPT + 7)])
    assert log.placement["gpu"]["count"] == PARTS_KEPT + 7
    assert len(log.placement["gpu"]["names"]) == PARTS_KEPT


@pytest.mark.parametrize(
    ("line", "layer"),
    [
        (
            "Assertion allowGPUFallback failed. Layer '644' is not supported on DLA but GPU fallback is not enabled.)",
            "644",
        ),
        ("Default DLA is enabled but layer leaky_1 is not supported on DLA, falling back to GPU.", None),
    ],
)
def test_the_layer_that_dla_refuses(tmp_path: Path, line: str, layer: str | None) -> None:
    assert placement(tmp_path, [f"[E] {line}"]).not_on_dla == layer


@pytest.mark.parametrize(
    ("on_dla", "on_gpu", "left_out", "words"),
    [
        (["a", "b"], ["c"], 0, "DLA core 0: 1 of 3 parts of the engine run on the GPU: c"),
        (["a"], [], 0, "all 1 parts of the engine run on it"),
        ([], ["c"], 0, "nothing runs on it"),
        ([], [], 0, "does not say which layers run on it"),
        (["a"], [str(number) for number in range(12)], 3, "12 of 16 parts of the engine run on the GPU: 0, 1"),
    ],
)
def test_placement_in_words(on_dla: list[str], on_gpu: list[str], left_out: int, words: str) -> None:
    told = {"core": 0, "gpu_fallback": True, "on_dla": on_dla, "on_gpu": on_gpu, "left_out": left_out}
    assert words in _in_words(told)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Lab]:
    with lab(tmp_path / "lab") as made:
        yield made


@pytest.fixture(scope="module")
def host_part(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return host_part_of(DLA, tmp_path_factory.mktemp("host-part"))


@pytest.fixture
def project(tmp_path: Path, host_part: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    shutil.copytree(host_part, tmp_path / "store")
    monkeypatch.setenv("TRTRECIPE_STORE", str(tmp_path / "store"))
    return make_project(tmp_path / "project", DLA)


def test_an_engine_for_dla_says_what_runs_where(
    project: Project, bench: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    device = bench.add("nx", XAVIER_NX)
    write_inventory(project.folder, [device])
    built = build(project, capsys)
    calls = [call["argv"] for call in device.calls()]
    [argv] = [argv for argv in calls if any(flag.startswith("--onnx=") for flag in argv)]
    assert {"--useDLACore=0", "--allowGPUFallback", "--int8", "--fp16", "--calib=calibration.table"} <= set(argv)
    # Whatever runs the engine there runs it on the same core.
    assert all("--useDLACore=0" in argv for argv in calls)
    placed = {
        "core": 0, "gpu_fallback": True, "left_out": 0,
        "on_dla": ["{ForeignNode[conv...relu]}", "{ForeignNode[gemm]}"],
        "on_gpu": ["GLOBALAVERAGEPOOL: pool", "FLATTEN: flatten"],
    }  # fmt: skip
    target = built[NX][""]
    manifest = json.loads(Path(target["artifacts"]["manifest"]["path"]).read_text())
    assert target["dla"] == manifest["dla"] == placed
    words = "DLA core 0: 2 of 4 parts of the engine run on the GPU: GLOBALAVERAGEPOOL: pool, FLATTEN: flatten"
    assert words in target["notes"]


def test_without_fallback_the_layer_that_cannot_run_is_named(
    project: Project, bench: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    device = bench.add("nx", XAVIER_NX)
    write_inventory(project.folder, [device])
    project.change_recipe(lambda recipe: recipe["build"]["dla"].update(gpu_fallback=False))
    failed = build(project, capsys, expected=1)[NX]["compile"]
    assert "DLA does not take 'pool', and GPU fallback is off" in failed["error"]
    assert "gpu_fallback: true" in failed["hint"]
    assert len(device.calls()) == 1


def test_a_device_without_the_core_is_passed_over(tmp_path: Path) -> None:
    def look(device: Device) -> dict[str, Any]:
        total = (7_500_000 if device.name == "small" else 15_650_000) << 10
        return {
            "model": "Orin NX", "l4t": "36.4.3", "cuda": "12.6.68", "tensorrt": "10.3.0",
            "memory": {"total": total}, "trtexec": {"path": "/x", "sha256": "0" * 64},
        }  # fmt: skip

    devices = [Device(name, "jetson-orin-nx", f"{name}.lab") for name in ("small", "large")]
    need = Need("jetson-orin-nx", "10.3", 1)
    alone = Fleet(devices[:1], tmp_path / "alone", 0, look)
    alone.settle([need])
    assert alone.assigned(need).problem == "small has 1 DLA cores, so no core 1"
    both = Fleet(devices, tmp_path / "both", 0, look)
    both.settle([need])
    assert both.assigned(need).device == devices[1]
    assert both.assigned(replace(need, dla_core=0)).device == devices[0]


def test_another_core_is_another_engine(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    def params() -> dict[str, Any]:
        loaded = load(project.recipe)
        found, _ = resolve_targets(loaded, load_catalog())
        steps = build_graph([(loaded, found)], this_machine()).steps.values()
        return {step.kind: step.params for step in steps}

    first = params()
    assert first["compile"]["dla"] == {"core": 0, "gpu_fallback": True}
    project.change_recipe(lambda recipe: recipe["build"]["dla"].update(core=1))
    second = params()
    assert (second["compile"]["dla"]["core"], second["benchmark"]["dla_core"]) == (1, 1)
    assert second["verify"]["device"]["dla_core"] == 1
    assert first["calibrate"] == second["calibrate"]
