"""Builds on devices: real SSH servers, the agent, a strict trtexec surrogate."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.projects import Project, make_project
from support.sshd import ORIN_NX, TX2, XAVIER_NX, Lab, TestDevice, lab

from trtrecipe.cli.app import run

TARGETS = [
    "jetson-xavier-nx@5.1.4",
    {"profile": "jetson-tx2@4.6.4", "precision": {"mode": "fp16"}},
    "jetson-orin-nx@6.2",
]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Lab]:
    with lab(tmp_path / "lab") as made:
        yield made


def write_inventory(folder: Path, devices: list[TestDevice], **more: Any) -> None:
    entries = {device.name: {"profile": device.kind.profile, "ssh": device.host, **more} for device in devices}
    text = yaml.safe_dump({"schema": "trtrecipe/inventory/v1", "devices": entries}, sort_keys=False)
    (folder / "devices.yaml").write_text(text)


def build(project: Project, capsys: pytest.CaptureFixture[str], expected: int = 5) -> dict[str, dict[str, Any]]:
    """Target → kind → step."""
    capsys.readouterr()
    code = run(["build", str(project.recipe), "--json", "--output", str(project.folder / "dist")])
    out, err = capsys.readouterr()
    assert code == expected, out + err
    return {
        target["target"]: {step["kind"]: step for step in target["steps"]} | {"": target}
        for target in json.loads(out)["targets"]
    }


def test_three_devices_three_engines(tmp_path: Path, bench: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    devices = [bench.add("nx", XAVIER_NX), bench.add("tx2", TX2), bench.add("orin", ORIN_NX)]
    project = make_project(tmp_path / "project", {"targets": TARGETS})
    write_inventory(project.folder, devices)
    first = build(project, capsys)
    assert {name: steps["compile"]["status"] for name, steps in first.items()} == dict.fromkeys(first, "ran"), first
    engines = {steps[""]["artifacts"]["engine"]["sha256"] for steps in first.values()}
    assert len(engines) == 3
    for device in devices:
        assert len(device.calls("end")) == 1
    requests = [device.requests() for device in devices]
    calls = bench.client_calls()
    again = build(project, capsys)
    assert {steps["compile"]["status"] for steps in again.values()} == {"hit"}
    assert [device.requests() for device in devices] == requests
    assert bench.client_calls() == calls
