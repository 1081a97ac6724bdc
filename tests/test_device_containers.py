"""TensorRT in a container of the device, reached by a prefix of the inventory: `exec: [docker, exec, -i, NAME]`."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper
from support.sshd import XAVIER_NX, Lab, TestDevice, lab

from trtrecipe.device import jobs
from trtrecipe.device.build import build
from trtrecipe.device.link import connect
from trtrecipe.errors import StepError, Unreachable
from trtrecipe.targets.buildspec import BuildSpec, Shapes
from trtrecipe.targets.devices import Device, fingerprint

SPEC = BuildSpec("model.onnx", "model.engine", 64 << 20, "fp16", shapes={"x": Shapes((1, 4), (8, 4), (32, 4))})
KEY = "ab" * 32


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    monkeypatch.setattr(jobs, "PAUSES", (0.01, 0.02, 0.03))
    with lab(tmp_path / "lab") as made:
        yield made


@pytest.fixture
def inside(bench: Lab) -> TestDevice:
    """The container; the device around it has no TensorRT."""
    around = bench.add("nx", XAVIER_NX)
    around.trtexec.unlink()
    (around.root / "var/lib/dpkg/status").write_text("")
    return bench.contain(around, "trt", XAVIER_NX)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"], "relu")], "g", value[:1], value[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def address(inside: TestDevice, *prefix: str) -> dict[str, Any]:
    words = prefix or ("docker", "exec", "-i", inside.name)
    return Device("nx", inside.kind.profile, inside.host, exec=words).address


def target(inside: TestDevice) -> dict[str, Any]:
    with connect(address(inside)) as link:
        found = fingerprint(link.ask({"op": "probe"}))
    assert found is not None
    return {"name": "nx", "address": address(inside), "seconds": 30, "fingerprint": asdict(found)}


def made(on: dict[str, Any], model: Path, engine: Path) -> None:
    build(on, KEY, SPEC, {"model.onnx": model}, engine, [].append)
    assert engine.read_bytes().endswith(model.read_bytes())


def end_all(inside: TestDevice) -> None:
    """Stop the container: everything in it is killed."""
    (inside.folder / "running").unlink()
    for path in inside.cache.glob("jobs/*/state.json"):
        state = json.loads(path.read_text())
        os.kill(state["runner"], signal.SIGKILL)
        os.killpg(state["trtexec"], signal.SIGKILL)


def test_what_the_container_shows_counts_and_all_of_it_happens_inside(
    inside: TestDevice, model: Path, tmp_path: Path
) -> None:
    around = inside.folder.parent.parent
    with connect(Device("nx", "jetson-xavier-nx", inside.host).address) as link:
        assert fingerprint(link.ask({"op": "probe"})) is None
    made(target(inside), model, tmp_path / "e")
    assert len(inside.calls("end")) == 1
    assert list(inside.cache.glob("cas/*"))
    assert not list((around / "cache").rglob("cas/*"))


@pytest.mark.parametrize("at", [0, 40])
def test_a_build_inside_outlives_the_connection(inside: TestDevice, model: Path, tmp_path: Path, at: int) -> None:
    on = target(inside)
    inside.trtexec_fault(seconds=0.5)
    inside.fault(drop={"op": "run", "at": at})
    made(on, model, tmp_path / "e")
    assert json.loads((inside.folder / "faults.json").read_text()) == {}
    assert len(inside.calls()) == len(inside.calls("end")) == 1


def test_a_container_that_is_stopped_while_it_builds(inside: TestDevice, model: Path, tmp_path: Path) -> None:
    import threading

    on = target(inside)
    inside.trtexec_fault(hang=True)

    def stop() -> None:
        deadline = time.monotonic() + 60
        while not inside.calls("hang") and time.monotonic() < deadline:
            time.sleep(0.05)
        end_all(inside)

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(StepError):
        made(on, model, tmp_path / "e")
    thread.join()
    with pytest.raises(Unreachable, match="container trt is not running"):
        made(on, model, tmp_path / "e")
    assert not (tmp_path / "e").exists()
    inside.trtexec_fault()
    (inside.folder / "running").touch()
    made(on, model, tmp_path / "e")


@pytest.mark.parametrize(
    ("prefix", "said"),
    [
        (("docker", "exec", "-i", "other"), "No such container: other"),
        (("docker", "exec", "-it", "trt"), "is all that this one knows"),
        (("podman", "exec", "-i", "trt"), "podman"),
    ],
)
def test_a_prefix_that_does_not_work_is_said(inside: TestDevice, prefix: tuple[str, ...], said: str) -> None:
    with pytest.raises(Unreachable, match=said), connect(address(inside, *prefix)) as link:
        link.ask({"op": "probe"})
