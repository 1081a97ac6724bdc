"""Builds on devices: real SSH servers, the agent, a strict trtexec surrogate."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.projects import Project, host_part_of, make_project
from support.sshd import ORIN_NX, TX2, XAVIER_NX, Lab, TestDevice, lab

from trtrecipe.cli.app import run

NX = "jetson-xavier-nx@5.1.4"
TX2_FP16 = {"profile": "jetson-tx2@4.6.4", "precision": {"mode": "fp16"}}
NX_INT8: dict[str, Any] = {
    "targets": [NX],
    "precision": {"mode": "int8", "fallback": "fp16"},
    "evaluation": {
        "data": {"npz": "data.npz", "arrays": {"image": "test", "label": "label"}},
        "metric": "top1",
        "device_samples": 8,
    },
}
FLEET = [NX, TX2_FP16, "jetson-orin-nx@6.2"]
Targets = dict[str, dict[str, dict[str, Any]]]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Lab]:
    with lab(tmp_path / "lab") as made:
        yield made


@pytest.fixture(scope="module")
def host_part(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return host_part_of(NX_INT8, tmp_path_factory.mktemp("host-part"))


@pytest.fixture
def project(tmp_path: Path, host_part: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """NX, with what needs no device built."""
    shutil.copytree(host_part, tmp_path / "store")
    monkeypatch.setenv("TRTRECIPE_STORE", str(tmp_path / "store"))
    return make_project(tmp_path / "project", NX_INT8)


def write_inventory(folder: Path, devices: list[TestDevice], **more: Any) -> None:
    entries = {device.name: {"profile": device.kind.profile, "ssh": device.host, **more} for device in devices}
    text = yaml.safe_dump({"schema": "trtrecipe/inventory/v1", "devices": entries}, sort_keys=False)
    (folder / "devices.yaml").write_text(text)


def build(project: Project, capsys: pytest.CaptureFixture[str], expected: int | None = None) -> Targets:
    """Target → kind → step; "" → the target itself. The exit code is `expected`, else what the statuses come to."""
    capsys.readouterr()
    code = run(["build", str(project.recipe), "--json", "--output", str(project.folder / "dist")])
    out, err = capsys.readouterr()
    pending = any(target["status"] == "pending" for target in json.loads(out)["targets"])
    wanted = (5 if pending else 0) if expected is None else expected
    assert code == wanted, err
    return {
        target["target"]: {step["kind"]: step for step in target["steps"]} | {"": target}
        for target in json.loads(out)["targets"]
    }


def environment() -> dict[str, str]:
    """With which a new process imports what this one does."""
    import trtrecipe

    return {**os.environ, "PYTHONPATH": str(Path(trtrecipe.__file__).parents[1])}


def statuses(targets: Targets, kind: str = "compile") -> list[str]:
    return [steps[kind]["status"] for steps in targets.values()]


def test_three_devices_three_engines(
    tmp_path: Path, bench: Lab, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = [bench.add("nx", XAVIER_NX), bench.add("tx2", TX2), bench.add("orin", ORIN_NX)]
    project = make_project(tmp_path / "project", NX_INT8 | {"targets": FLEET})
    write_inventory(project.folder, devices)
    first = build(project, capsys)
    for kind in ("compile", "verify", "benchmark"):
        assert statuses(first, kind) == ["ran"] * 3
    assert [steps[""]["status"] for steps in first.values()] == ["built"] * 3
    for kind in ("export", "prepare", "reference", "calibrate"):
        assert len({steps[kind]["key"] for steps in first.values() if kind in steps}) == 1
    for device, steps in zip(devices, first.values(), strict=True):
        assert len(device.builds("end")) == 1
        engine = Path(steps[""]["artifacts"]["engine"]["path"]).read_bytes()
        graph = Path(steps[""]["artifacts"]["onnx"]["path"]).read_bytes()
        assert engine.endswith(graph)  # the surrogate's engine holds what it was made of
    assert len({steps[""]["artifacts"]["engine"]["sha256"] for steps in first.values()}) == 3
    flags = [{flag.partition("=")[0] for flag in device.builds()[0]["argv"]} for device in devices]
    assert {"--int8", "--fp16", "--memPoolSize", "--buildOnly"} <= flags[0]
    assert {"--fp16", "--workspace", "--buildOnly"} <= flags[1]
    assert "--int8" not in flags[1]
    assert {"--int8", "--fp16", "--memPoolSize", "--skipInference"} <= flags[2]

    # Nothing changed: no connection at all while the last look is recent, and one question each when it is not.
    requests, calls = [device.requests() for device in devices], bench.client_calls()
    assert statuses(build(project, capsys)) == ["hit"] * 3
    assert bench.client_calls() == calls
    monkeypatch.setenv("TRTRECIPE_PROBE_AGE", "0")
    assert statuses(build(project, capsys)) == ["hit"] * 3
    assert [device.requests() for device in devices] == [[*before, "probe"] for before in requests]

    # Another JetPack on one device is another fingerprint: that target alone is built again.
    devices[0].show(l4t="35.6.1", jetpack="5.1.5")
    again = build(project, capsys)
    assert statuses(again) == ["ran", "hit", "hit"]
    assert "device.l4t: 35.6.0 -> 35.6.1" in again[NX]["compile"]["reason"]
    assert [len(device.builds("end")) for device in devices] == [2, 1, 1]
    manifest = json.loads(Path(again[NX][""]["artifacts"]["manifest"]["path"]).read_text())
    assert manifest["device"]["l4t"] == "35.6.1"
    assert manifest["device"]["tensorrt"] == "8.5.2"
    assert "nx" not in json.dumps(manifest["device"]).lower().replace("xavier nx", "")


def test_what_runs_is_run_by_what_the_device_shows_now(
    project: Project, bench: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    """A look that is recent enough to serve by is not recent enough to build by."""
    device = bench.add("nx", XAVIER_NX)
    write_inventory(project.folder, [device])
    assert run(["devices", "probe", "nx"]) == 2  # the inventory is not here
    build(project, capsys)
    device.show(l4t="35.6.1", jetpack="5.1.5")
    project.change_recipe(lambda recipe: recipe.update(build={"workspace": "512MiB"}))
    built = build(project, capsys)
    assert statuses(built) == ["ran"]
    assert "l4t" in built[NX]["compile"]["reason"]


def test_a_device_that_is_away_serves_what_it_built(
    project: Project, bench: Lab, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    device = bench.add("nx", XAVIER_NX)
    write_inventory(project.folder, [device])
    build(project, capsys)
    device.stop()
    monkeypatch.setenv("TRTRECIPE_PROBE_AGE", "0")
    served = build(project, capsys)
    assert statuses(served) == ["hit"]
    assert "engine" in served[NX][""]["artifacts"]
    project.change_recipe(lambda recipe: recipe.update(build={"workspace": "512MiB"}))
    waits = build(project, capsys)
    assert statuses(waits) == ["pending"]
    reason = waits[NX]["compile"]["reason"]
    assert "it refuses the connection" in reason
    assert "last seen 2" in reason
    assert "TensorRT 8.5.2, L4T 35.6.0" in reason
    device.start()
    assert statuses(build(project, capsys)) == ["ran"]


def test_a_device_that_was_never_seen_and_cannot_be(
    project: Project, bench: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    device = bench.add("nx", XAVIER_NX)
    device.stop()
    write_inventory(project.folder, [device])
    built = build(project, capsys)
    assert statuses(built) == ["pending"]
    assert "nx cannot be used now" in built[NX]["compile"]["reason"]


def test_without_an_inventory_the_reason_says_so(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    built = build(project, capsys)
    assert statuses(built) == ["pending"]
    assert "devices.yaml" in built[NX]["compile"]["reason"]


def test_a_device_of_another_tensorrt_is_not_built_on(
    project: Project, bench: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    device = bench.add("nx", XAVIER_NX)
    device.show(l4t="35.1.0", jetpack="5.0.2", tensorrt="8.4.1")
    write_inventory(project.folder, [device])
    built = build(project, capsys)
    assert statuses(built) == ["pending"]
    assert "shows TensorRT 8.4.1" in built[NX]["compile"]["reason"]
    assert device.builds() == []
    # Another device of the profile that does fit is found.
    other = bench.add("nx-2", XAVIER_NX)
    write_inventory(project.folder, [device, other])
    assert statuses(build(project, capsys)) == ["ran"]
    assert (device.builds(), len(other.builds("end"))) == ([], 1)


def test_one_job_at_a_time_on_a_device(tmp_path: Path, bench: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    device = bench.add("nx", XAVIER_NX)
    device.trtexec_fault(seconds=0.3)
    targets = [{"profile": NX, "name": name, "precision": {"mode": name}} for name in ("fp16", "fp32")]
    project = make_project(tmp_path / "project", {"targets": targets, "precision": {"mode": "fp16"}})
    write_inventory(project.folder, [device])
    assert statuses(build(project, capsys)) == ["ran", "ran"]
    assert len(device.builds("end")) == 2
    times = sorted((call["time"], call["event"]) for event in ("start", "end") for call in device.calls(event))
    assert [event for _, event in times] == ["start", "end"] * (len(times) // 2)
    operations = [operation for operation in device.requests() if operation != "probe"]
    assert operations[:4] == ["stage", "receive", "run", "send"]


def test_implicit_quantization_gives_trtexec_the_table(
    project: Project, bench: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    device = bench.add("nx", XAVIER_NX)
    write_inventory(project.folder, [device])
    project.change_recipe(lambda recipe: recipe["precision"].update(quantization="implicit"))
    assert statuses(build(project, capsys)) == ["ran"]
    assert "--calib=calibration.table" in device.builds()[0]["argv"]


def test_kept_layers_become_layer_precisions(project: Project, bench: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    device = bench.add("nx", XAVIER_NX)
    write_inventory(project.folder, [device])
    project.change_recipe(lambda recipe: recipe["precision"].update(keep=[{"layers": "gemm", "precision": "fp32"}]))
    assert statuses(build(project, capsys)) == ["ran"]
    [argv] = [call["argv"] for call in device.builds()]
    assert [flag for flag in argv if "layerPrecisions" in flag] == ["--layerPrecisions=gemm:fp32"]
    assert "--precisionConstraints=obey" in argv


def test_a_build_whose_command_was_killed_is_taken_up_by_the_next(
    project: Project, bench: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    device = bench.add("nx", XAVIER_NX)
    write_inventory(project.folder, [device])
    device.trtexec_fault(seconds=2)
    command = [sys.executable, "-m", "trtrecipe", "build", str(project.recipe)]
    killed = subprocess.Popen(command, cwd=project.folder, stdout=-3, stderr=-3, env=environment())
    deadline = time.monotonic() + 60
    while not device.builds() and time.monotonic() < deadline:
        time.sleep(0.05)
    killed.kill()
    killed.wait()
    assert len(device.calls()) == 1
    assert statuses(build(project, capsys)) == ["ran"]
    assert (len(device.builds("start")), len(device.builds("end"))) == (1, 1)


def wait_until_it_builds(device: TestDevice) -> None:
    deadline = time.monotonic() + 120
    while not device.builds() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert device.builds()


def test_who_interrupts_a_build_is_told_that_the_device_goes_on_and_may_end_it(
    project: Project, bench: Lab, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    device = bench.add("nx", XAVIER_NX)
    write_inventory(project.folder, [device])
    monkeypatch.chdir(project.folder)
    device.trtexec_fault(hang=True)
    command = [sys.executable, "-m", "trtrecipe", "build", str(project.recipe)]
    stopped = subprocess.Popen(command, stdout=-3, stderr=subprocess.PIPE, env=environment())
    wait_until_it_builds(device)
    stopped.send_signal(signal.SIGINT)
    said = stopped.communicate(timeout=60)[1].decode()
    assert stopped.returncode == 130
    assert "what was begun on nx goes on there" in said and "`trtrecipe devices cancel nx`" in said
    assert run(["devices", "cancel", "nx", "--json"]) == 0
    [ended] = json.loads(capsys.readouterr().out)["cancelled"]
    assert set(ended) == {"key", "seconds"}
    assert run(["devices", "cancel", "nx"]) == 0
    assert "nothing of yours runs there" in capsys.readouterr().out
    device.trtexec_fault()
    assert statuses(build(project, capsys)) == ["ran"]


POINTS = int(os.environ.get("TRTRECIPE_DROP_POINTS", "0"))


@pytest.mark.skipif(not POINTS, reason="long: run with TRTRECIPE_DROP_POINTS=30")
def test_a_command_killed_at_many_points_builds_once(
    project: Project, bench: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    """From its start to the end of what it does, by turns: Ctrl-C, SIGTERM, SIGKILL. Then again, to the end."""
    device = bench.add("nx", XAVIER_NX)
    write_inventory(project.folder, [device])
    device.trtexec_fault(seconds=1)
    command = [sys.executable, "-m", "trtrecipe", "build", str(project.recipe)]
    kept = project.folder.parent / "kept"
    shutil.copytree(project.folder.parent / "store", kept)
    began = time.monotonic()
    assert subprocess.run(command, cwd=project.folder, capture_output=True, env=environment()).returncode in (0, 5)
    whole = time.monotonic() - began
    stages = []
    for point in range(POINTS):
        shutil.rmtree(project.folder.parent / "store")
        shutil.copytree(kept, project.folder.parent / "store")
        device.clear()
        Path(f"{device.trtexec}.calls.jsonl").unlink(missing_ok=True)
        number = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)[point % 3]
        killed = subprocess.Popen(command, cwd=project.folder, stdout=-3, stderr=-3, env=environment())
        before = len(device.requests())
        with contextlib.suppress(subprocess.TimeoutExpired):
            killed.wait(whole * (point + 1) / (POINTS + 1))
        killed.send_signal(number)
        assert killed.wait(60) in (130, -9, 0, -number)  # by its own hand, once Python has started
        stages.append((device.requests()[before:] or ["nothing"])[-1])
        built = build(project, capsys)
        assert statuses(built) in (["ran"], ["hit"]), point
        assert (len(device.builds("start")), len(device.builds("end"))) == (1, 1), point
    assert {"nothing", "run"} <= set(stages), stages


def test_devices_may_be_chosen_by_name_or_label(
    project: Project, bench: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    devices = [bench.add("nx", XAVIER_NX), bench.add("nx-2", XAVIER_NX)]
    entries = {
        device.name: {"profile": device.kind.profile, "ssh": device.host, "labels": [f"shelf-{number}"]}
        for number, device in enumerate(devices)
    }
    inventory = yaml.safe_dump({"schema": "trtrecipe/inventory/v1", "devices": entries}, sort_keys=False)
    (project.folder / "devices.yaml").write_text(inventory)
    command = ["build", str(project.recipe), "--json", "--output", str(project.folder / "dist")]
    assert run([*command, "--device", "label=shelf-1"]) == 0
    assert (devices[0].requests(), len(devices[1].builds("end"))) == ([], 1)
    capsys.readouterr()
    assert run(["plan", str(project.recipe), "--json", "-d", "nx-2"]) == 0
    assert json.loads(capsys.readouterr().out)["targets"]
    assert run([*command, "--device", "label=shelf-2"]) == 2
    assert "did you mean label=shelf-" in capsys.readouterr().err
    # A choice without a device that fits is said to be one.
    tx2 = bench.add("tx2", TX2)
    entries["tx2"] = {"profile": "jetson-tx2", "ssh": tx2.host}
    inventory = yaml.safe_dump({"schema": "trtrecipe/inventory/v1", "devices": entries}, sort_keys=False)
    (project.folder / "devices.yaml").write_text(inventory)
    # What others made stays where it was placed, and nobody asks them.
    calls, placed = devices[1].requests(), sorted((project.folder / "dist").rglob("model.engine"))
    assert placed
    assert run([*command, "-d", "tx2"]) == 0
    assert (devices[1].requests(), sorted((project.folder / "dist").rglob("model.engine"))) == (calls, placed)
    project.change_recipe(lambda recipe: recipe.update(build={"workspace": "512MiB"}))
    assert run([*command, "-d", "tx2"]) == 5
    assert "needs a jetson-xavier-nx, and --device tx2 is none" in capsys.readouterr().out
    assert run(["build", str(project.recipe), "-d", "nx-3"]) == 2


def test_a_build_that_fails_on_the_device_has_failed(
    project: Project, bench: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    device = bench.add("nx", XAVIER_NX)
    write_inventory(project.folder, [device], seconds=1)
    device.trtexec_fault(hang=True)
    failed = build(project, capsys, expected=1)[NX]["compile"]
    assert failed["status"] == "failed"
    assert "took longer than 1" in failed["error"]
    assert "seconds" in failed["hint"]


def test_a_profile_without_a_release_is_what_its_device_shows(
    project: Project, bench: Lab, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    device = bench.add("nx", XAVIER_NX)
    write_inventory(project.folder, [device])
    project.change_recipe(lambda recipe: recipe.update(targets=["jetson-xavier-nx"]))
    assert run(["validate", str(project.recipe)]) == 2
    assert "jetson-xavier-nx needs a JetPack release" in capsys.readouterr().err
    monkeypatch.chdir(project.folder)
    assert run(["devices", "probe", "nx"]) == 0
    assert run(["validate", str(project.recipe)]) == 0
    assert statuses(build(project, capsys)) == ["ran"]


def test_devices_are_probed_shown_and_listed(
    tmp_path: Path, bench: Lab, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    device = bench.add("nx", XAVIER_NX)
    write_inventory(tmp_path, [device], labels=["shelf-2"])
    monkeypatch.chdir(tmp_path)
    assert run(["devices", "show", "nx", "--json"]) == 0
    assert "probe" not in json.loads(capsys.readouterr().out)
    assert run(["devices", "probe", "nx", "--json"]) == 0
    probed = json.loads(capsys.readouterr().out)
    assert probed["schema"] == "trtrecipe/probe/v1"
    assert probed["jetpack"] == "5.1.4"
    assert probed["differences"] == probed["problems"] == []
    assert set(probed["fingerprint"]) == {"model", "memory", "l4t", "cuda", "tensorrt", "trtexec"}
    assert probed["fingerprint"]["memory"] == 7 << 30
    assert run(["devices", "show", "nx", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == probed
    assert run(["devices", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["inventory"] == [probed]
    assert run(["devices", "list"]) == 0
    assert "shelf-2" in capsys.readouterr().out
    device.show(l4t="35.6.9", memory=30_000_000, compatible="nvidia,p3701-0000\0nvidia,tegra234\0", cuda="12.6.1")
    assert run(["devices", "probe", "nx"]) == 0
    said = capsys.readouterr().out
    for difference in ("p3701-0000", "its memory is 28.6 GiB", "L4T 35.6.9 belongs to no JetPack release"):
        assert difference in said
    assert run(["devices", "probe", "nxx"]) == 2
    assert "did you mean nx?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("precision", "refused"),
    [
        ({"mode": "fp16", "keep": [{"layers": "gemm"}]}, True),
        ({"mode": "int8", "fallback": "fp16", "keep": [{"layers": "gemm"}]}, False),
        ({"mode": "int8", "fallback": "fp16", "keep": [{"layers": "gemm", "precision": "fp32"}]}, True),
        ({"mode": "int8", "fallback": "fp32", "keep": [{"layers": "gemm", "precision": "fp32"}]}, False),
    ],
)
def test_a_release_without_layer_precisions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], precision: dict[str, Any], refused: bool
) -> None:
    for jetpack, expected in (("4.6.4", 2 if refused else 0), ("5.1.4", 0)):
        targets = [f"jetson-xavier-nx@{jetpack}"]
        project = make_project(tmp_path / jetpack, {"precision": precision, "targets": targets})
        assert run(["validate", str(project.recipe)]) == expected
        said = capsys.readouterr().err
        assert ("TensorRT 8.4 is the first that can" in said) == (expected == 2)
