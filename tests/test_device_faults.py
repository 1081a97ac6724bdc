"""Faults at every stage of a build on a device: a clear error or the right engine, never a wrong or partial one."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper
from support.sshd import XAVIER_NX, Lab, TestDevice, lab

from trtrecipe.device import jobs
from trtrecipe.device.build import build
from trtrecipe.device.ssh import Session
from trtrecipe.errors import StepError, Unreachable
from trtrecipe.targets.buildspec import MIB, BuildSpec, Shapes
from trtrecipe.targets.devices import Device, fingerprint

SPEC = BuildSpec(
    "model.onnx", "model.engine", None, "fp16", shapes={"x": Shapes((1, 4), (8, 4), (32, 4))},
    timing_cache="timing.cache", verbose=True,
)  # fmt: skip
SIZE = 300_000


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with lab(tmp_path_factory.mktemp("lab")) as made:
        made.add("nx", XAVIER_NX)
        yield made


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graph of some size, so that a transfer has a middle."""
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"], "relu")], "g", value[:1], value[1:])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    made.doc_string = "padding " * (SIZE // 8)
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    onnx.save(made, path)
    return path


@pytest.fixture
def device(bench: Lab, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestDevice]:
    monkeypatch.setattr(jobs, "PAUSES", (0.01, 0.02, 0.03))
    found = bench.devices[0]
    for path in (
        found.folder / "faults.json",
        Path(f"{found.trtexec}.faults.json"),
        Path(f"{found.trtexec}.calls.jsonl"),
    ):
        path.unlink(missing_ok=True)
    yield found


def resource(device: TestDevice, **more: Any) -> dict[str, Any]:
    with Session(device.host) as session:
        probe = session.ask({"op": "probe"})
    found = fingerprint(probe)
    assert found is not None
    address = Device(device.name, device.kind.profile, device.host).address
    return {"name": device.name, "address": address, "seconds": 30, "fingerprint": asdict(found), **more}


def made(device: TestDevice, model: Path, key: str, out: Path, size: int | None = None, **more: Any) -> Any:
    return build_here(resource(device, **more), hashlib.sha256(key.encode()).hexdigest(), model, out, size)


def build_here(target: dict[str, Any], key: str, model: Path, out: Path, size: int | None = None) -> Any:
    return build(target, key, replace(SPEC, workspace=size), {"model.onnx": model}, out, [].append)


def is_right(engine: Path, model: Path) -> None:
    """The surrogate's engine carries what it was made of."""
    head, _, body = engine.read_bytes().partition(b"SURROGATE ENGINE\n")
    assert head == b""
    meaning, _, carried = body.split(b"\n", 2)
    assert carried == model.read_bytes()
    assert json.loads(meaning)["--fp16"] is True


# Where it breaks → the fault. A test id is the stage.
DROPS: dict[str, dict[str, Any]] = {
    "before the inputs are asked for": {"drop": {"op": "stage", "at": 0}},
    "in the answer which inputs are there": {"drop": {"op": "stage", "at": 30}},
    "before an input is sent": {"drop_in": {"op": "receive", "at": 0}},
    "in the middle of an input": {"drop_in": {"op": "receive", "at": 150_000}},
    "twice in the middle of an input": {"drop_in": {"op": "receive", "at": 100_000, "times": 2}},
    "when an input has arrived": {"drop": {"op": "receive", "at": 0}},
    "before the build": {"drop": {"op": "run", "at": 0}},
    "at the build's first word": {"drop": {"op": "run", "at": 10}},
    "at the build's result": {"drop": {"op": "run", "at": 400}},
    "thrice during the build": {"drop": {"op": "run", "at": 20, "times": 3}},
    "before the engine": {"drop": {"op": "send", "at": 0}},
    "in the middle of the engine": {"drop": {"op": "send", "at": 150_000}},
    "at the engine's last byte": {"drop": {"op": "send", "at": SIZE}},
    "while tidying up": {"drop": {"op": "gc", "at": 0}},
}


@pytest.mark.parametrize("stage", DROPS)
def test_a_connection_that_breaks(device: TestDevice, model: Path, tmp_path: Path, stage: str) -> None:
    device.trtexec_fault(seconds=0.3)
    target = resource(device)
    engine = tmp_path / "out.engine"
    for stored in (device.cache / "cas").glob("*"):
        stored.unlink()
    device.fault(**DROPS[stage])
    build_here(target, hashlib.sha256(stage.encode()).hexdigest(), model, engine)
    is_right(engine, model)
    assert len(device.calls("start")) == len(device.calls("end")) == 1
    assert json.loads((device.folder / "faults.json").read_text()) == {}, "the fault did not happen"


CORRUPTIONS: dict[str, dict[str, Any]] = {
    "an input, once": {"flip_in": {"op": "receive", "at": 1000}},
    "the engine, once": {"flip": {"op": "send", "at": 5000}},
}


@pytest.mark.parametrize("what", CORRUPTIONS)
def test_what_arrives_damaged_is_sent_again(device: TestDevice, model: Path, tmp_path: Path, what: str) -> None:
    target = resource(device)
    for stored in (device.cache / "cas").glob("*"):
        stored.unlink()
    device.fault(**CORRUPTIONS[what])
    build_here(target, hashlib.sha256(what.encode()).hexdigest(), model, tmp_path / "out.engine")
    is_right(tmp_path / "out.engine", model)
    assert len(device.calls("end")) == 1


@pytest.mark.parametrize(
    ("what", "fault", "match"),
    [
        ("input", {"flip_in": {"op": "receive", "at": 1000, "times": 99}}, "what arrived as .* is something else"),
        ("engine", {"flip": {"op": "send", "at": 5000, "times": 99}}, "is damaged whenever it arrives"),
    ],
)
def test_what_always_arrives_damaged_is_an_error(
    device: TestDevice, model: Path, tmp_path: Path, what: str, fault: dict[str, Any], match: str
) -> None:
    target = resource(device)
    for stored in (device.cache / "cas").glob("*"):
        stored.unlink()
    device.fault(**fault)
    engine = tmp_path / "out.engine"
    with pytest.raises(StepError, match=match):
        build_here(target, hashlib.sha256(f"always {what}".encode()).hexdigest(), model, engine)
    assert not engine.exists()


# What trtexec does → what a person is told.
FAILURES: dict[str, tuple[dict[str, Any], str]] = {
    "runs out of memory with any workspace": ({"memory": 1}, r"ran out of memory with every workspace .* 32 MiB"),
    "is killed for memory with any workspace": ({"out_of_memory_killer": 1}, "ran out of memory with every workspace"),
    "never ends": ({"hang": True}, "it took longer than 1"),
    "dies by a signal": ({"signal": int(signal.SIGSEGV)}, "ended by signal 11"),
    "refuses the graph": ({"fail": "[TRT] no importer for op: Foo"}, "no importer for op: Foo"),
    "writes half an engine": ({"full_disk": True}, "Saving engine to file failed"),
    "says it succeeded and wrote nothing": ({"silent_disk": True}, "wrote no engine"),
    "is of another release": ({"banner": 8401}, "trtexec is of TensorRT 8401, not 8.5.2"),
}


@pytest.mark.parametrize("what", FAILURES)
def test_a_trtexec_that_fails(device: TestDevice, model: Path, tmp_path: Path, what: str) -> None:
    fault, match = FAILURES[what]
    device.trtexec_fault(**fault)
    engine = tmp_path / "out.engine"
    with pytest.raises(StepError, match=match) as caught:
        made(device, model, what, engine, 64 * MIB, seconds=1 if "hang" in fault else 30)
    assert not isinstance(caught.value, Unreachable)
    assert device.name in caught.value.message
    assert caught.value.hint
    assert not engine.exists()
    # What was told is not told again: the same request builds.
    device.trtexec_fault()
    made(device, model, what, engine)
    is_right(engine, model)


def test_a_build_that_runs_out_of_memory_is_tried_with_less(device: TestDevice, model: Path, tmp_path: Path) -> None:
    device.trtexec_fault(memory=600 * MIB)
    measured = made(device, model, "ladder", tmp_path / "out.engine")
    is_right(tmp_path / "out.engine", model)
    # MemTotal is 6.8 GiB, taken for 7; three quarters of it are free, of which at most a half is asked for.
    tried = [entry["workspace"] // MIB for entry in measured["attempts"]]
    assert tried == [1792, 896, 448]
    assert measured["workspace"] == 448 * MIB
    assert "ran out of memory with a workspace of 1792 MiB, 896 MiB" in measured["notes"][0]


def test_a_full_disk_is_said_before_anything_is_sent(
    device: TestDevice, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "SPARE", 1 << 60)
    with pytest.raises(StepError, match=r"needs .* bytes and has") as caught:
        made(device, model, "full", tmp_path / "out.engine")
    assert "free space" in (caught.value.hint or "")
    assert "receive" not in device.requests()[-2:]


def test_a_device_that_goes_away_is_waited_for(device: TestDevice, model: Path, tmp_path: Path) -> None:
    target = resource(device)
    device.fault(drop={"op": "run", "at": 0, "times": 99})
    with pytest.raises(Unreachable):
        build_here(target, "ab" * 32, model, tmp_path / "out.engine")
    device.fault()
    build_here(target, "ab" * 32, model, tmp_path / "out.engine")
    is_right(tmp_path / "out.engine", model)


def test_a_connection_that_breaks_whenever_something_is_sent(device: TestDevice, model: Path, tmp_path: Path) -> None:
    target = resource(device)
    for stored in (device.cache / "cas").glob("*"):
        stored.unlink()
    device.fault(drop_in={"op": "receive", "at": 0, "times": 99})
    with pytest.raises(Unreachable, match="the connection broke"):
        build_here(target, "ef" * 32, model, tmp_path / "out.engine")
    assert 3 <= device.requests()[-20:].count("receive") <= 6


def test_another_jetpack_since_the_plan_is_an_error(device: TestDevice, model: Path, tmp_path: Path) -> None:
    target = resource(device)
    device.show(l4t="35.6.1", jetpack="5.1.5")
    try:
        with pytest.raises(StepError, match=r"no longer what it was .*l4t 35.6.0 -> 35.6.1"):
            build_here(target, "cd" * 32, model, tmp_path / "out.engine")
    finally:
        device.show()
    assert device.calls() == []


@pytest.mark.skipif("TRTRECIPE_DROP_POINTS" not in os.environ, reason="long: run with TRTRECIPE_DROP_POINTS=30")
def test_a_build_dropped_at_many_points_is_one_build(device: TestDevice, model: Path, tmp_path: Path) -> None:
    points = int(os.environ["TRTRECIPE_DROP_POINTS"])
    for point in range(points):
        Path(f"{device.trtexec}.calls.jsonl").unlink(missing_ok=True)
        device.trtexec_fault(seconds=0.6)
        target = resource(device)
        device.fault(drop={"op": "run", "at": point * 400 // points})
        engine = tmp_path / f"{point}.engine"
        build_here(target, hashlib.sha256(f"point {point}".encode()).hexdigest(), model, engine)
        is_right(engine, model)
        assert len(device.calls()) == 1, point
