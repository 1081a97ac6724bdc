"""doctor --device: what of a device is unfit, and which engines it can no longer load."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.sshd import ORIN_NX, XAVIER_NX, Lab, TestDevice, lab
from test_fleet import write_inventory
from test_inspect_engine import manifest

from trtrecipe.cli.app import run
from trtrecipe.cli.doctor_device import _checks
from trtrecipe.targets.devices import Device

NX = "jetson-xavier-nx@5.1.4"


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    monkeypatch.setenv("TRTRECIPE_STORE", str(tmp_path / "store"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    with lab(tmp_path / "lab") as made:
        yield made


def doctor(capsys: pytest.CaptureFixture[str], name: str, *more: str, expected: int) -> list[dict[str, Any]]:
    capsys.readouterr()
    code = run(["doctor", "--device", name, "--json", *more])
    out, err = capsys.readouterr()
    assert code == expected, out + err
    document = json.loads(out)
    assert document["schema"] == "trtrecipe/doctor-device/v1"
    return document["devices"]  # type: ignore[no-any-return]


def placed(device: TestDevice, capsys: pytest.CaptureFixture[str], target: str, folder: Path = Path("dist")) -> None:
    """An engine that is in a folder of results as if that device had built it."""
    capsys.readouterr()
    assert run(["devices", "probe", device.name, "--json"]) == 0
    probed = json.loads(capsys.readouterr().out)
    engine = folder / "digits" / target / "model.engine"
    engine.parent.mkdir(parents=True)
    engine.write_bytes(b"an engine")
    manifest(engine, target=target, profile=device.kind.profile, device=probed["fingerprint"])


def test_engines_after_a_jetpack_upgrade(bench: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    device = bench.add("nx", XAVIER_NX)
    write_inventory(Path(), [device])
    placed(device, capsys, NX)
    recipe = Path("recipes/digits.yaml")
    recipe.parent.mkdir()
    recipe.write_text(f"schema: trtrecipe/v1\nname: digits\ntargets: [{NX}]\n")
    [found] = doctor(capsys, "nx", expected=0)
    assert found["reached"] is True
    assert [engine["status"] for engine in found["engines"]] == ["loads"]

    device.show(l4t="35.6.1", jetpack="5.1.5")
    [found] = doctor(capsys, "nx", expected=1)
    [engine] = found["engines"]
    assert (engine["status"], engine["changed"]) == ("stale", ["l4t 35.6.0 -> 35.6.1"])
    assert engine["rebuild"] == f"trtrecipe build recipes/digits.yaml --target {NX}"
    assert "first" not in engine
    assert run(["doctor", "--device", "all"]) == 1
    assert engine["rebuild"] in capsys.readouterr().out

    # Another TensorRT: the target names a release that the device no longer has.
    device.show(l4t="35.1.0", jetpack="5.0.2", tensorrt="8.4.1")
    [found] = doctor(capsys, "nx", expected=1)
    [engine] = found["engines"]
    assert "tensorrt 8.5.2 -> 8.4.1" in engine["changed"]
    assert engine["first"].startswith("name jetson-xavier-nx@5.0.2 in the recipe")


def test_engines_of_another_device_of_the_profile(bench: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    one, other, orin = bench.add("one", XAVIER_NX), bench.add("other", XAVIER_NX), bench.add("orin", ORIN_NX)
    write_inventory(Path(), [one, other, orin])
    placed(one, capsys, NX, Path("out"))
    other.show(cuda="11.4.999")
    found = {each["device"]: each for each in doctor(capsys, "all", "--output", "out", expected=0)}
    assert [engine["status"] for engine in found["one"]["engines"]] == ["loads"]
    [engine] = found["other"]["engines"]
    assert (engine["status"], engine["loads_on"]) == ("elsewhere", ["one"])
    assert found["orin"]["engines"] == []
    one.show(cuda="11.4.998")
    found = {each["device"]: each for each in doctor(capsys, "all", "--output", "out", expected=1)}
    # There is no recipe of that name here.
    assert found["one"]["engines"][0]["rebuild"] == f"trtrecipe build RECIPE --target {NX} --output out"


def test_a_device_that_is_away_is_judged_as_it_was(bench: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    device, never = bench.add("nx", XAVIER_NX), bench.add("never", XAVIER_NX)
    write_inventory(Path(), [device, never])
    placed(device, capsys, NX)
    device.stop()
    never.stop()
    found = doctor(capsys, "all", expected=5)
    assert [each["reached"] for each in found] == [False, False]
    assert "at" in found[0]
    assert found[0]["engines"][0]["status"] == "loads"
    assert "at" not in found[1]
    assert found[1]["engines"][0]["status"] == "unknown"
    assert "refuses the connection" in found[1]["checks"][0]["found"]


def test_a_device_that_cannot_build(bench: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    device = bench.add("nx", XAVIER_NX)
    write_inventory(Path(), [device])
    device.trtexec.unlink()
    [found] = doctor(capsys, "nx", expected=1)
    checks = {check["check"]: check for check in found["checks"]}
    assert checks["tensorrt"]["status"] == "bad"
    assert "no trtexec was found" in checks["tensorrt"]["hint"]


def test_a_name_that_no_device_has(bench: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--device", "nx"]) == 2
    assert "devices.yaml" in capsys.readouterr().err
    write_inventory(Path(), [bench.add("nx", XAVIER_NX)])
    assert run(["doctor", "--device", "nxx"]) == 2
    assert "did you mean nx?" in capsys.readouterr().err


PROBE: dict[str, Any] = {
    "model": "NVIDIA Jetson Orin Nano", "compatible": [], "l4t": "36.4.3", "jetpack": None, "tensorrt": "10.3.0",
    "cuda": "12.6.68", "memory": {"total": 3 << 30, "available": 2 << 30, "swap_total": 2 << 30, "swap_free": 0},
    "disk": {"free": 8 << 30}, "power_mode": {"id": 0, "name": "MAXN_SUPER"},
    "clocks": {"gpu": {"cur": 10, "min": 10, "max": 10}}, "trtexec": {"path": "/x", "sha256": "0" * 64},
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "check", "status"),
    [
        ({}, "memory", "ok"),
        ({}, "power mode", "ok"),
        ({}, "clocks", "ok"),
        ({"memory": PROBE["memory"] | {"swap_total": 0}}, "memory", "bad"),
        ({"memory": PROBE["memory"] | {"swap_total": 0, "total": 14 << 30}}, "memory", "ok"),
        ({"disk": {"free": 1 << 20}}, "disk", "bad"),
        ({"power_mode": {"id": 2, "name": "15W"}}, "power mode", "info"),
        ({"power_mode": {"id": 2, "name": None}}, "power mode", "info"),
        ({"clocks": {"gpu": {"cur": 10, "min": 5, "max": 10}}}, "clocks", "info"),
        ({"tensorrt": None}, "tensorrt", "bad"),
        ({"l4t": "1.2"}, "profile", "info"),
    ],
)
def test_what_is_checked(changes: dict[str, Any], check: str, status: str) -> None:
    found = {each["check"]: each["status"] for each in _checks(Device("n", "jetson-orin-nano"), PROBE | changes)}
    assert found[check] == status
