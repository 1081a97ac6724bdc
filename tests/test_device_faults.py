"""Faults at every stage of a build on a device: a clear error or the right engine, never a wrong or partial one.

The table is that of `support.device_faults`. All of it is tried with TRTRECIPE_DROP_POINTS set, a part otherwise.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper
from support.device_faults import AGAIN, ENGINE, ERROR, FAULTS, PAGE, STAGES, WAITS, Fault, Outcome, page
from support.sshd import XAVIER_NX, Lab, TestDevice, lab

from trtrecipe.device import jobs, ssh
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
POINTS = int(os.environ.get("TRTRECIPE_DROP_POINTS", "0"))
OPERATIONS = {"probe": "probe", "inputs": "stage", "sending": "receive", "building": "run", "fetching": "send"}
"""Stage → the request that it is."""
ALL = [(name, stage) for name, fault in FAULTS.items() for stage in fault.at]
TRIED = [(name, stage) for name, stage in ALL if POINTS or FAULTS[name].at[stage].quick]


def key_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


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


@pytest.fixture(scope="module")
def target(bench: Lab) -> dict[str, Any]:
    """The device as a build is given it."""
    device = bench.devices[0]
    with Session(device.host) as session:
        found = fingerprint(session.ask({"op": "probe"}))
    assert found is not None
    address = Device(device.name, device.kind.profile, device.host).address
    return {"name": device.name, "address": address, "seconds": 30, "fingerprint": asdict(found)}


@pytest.fixture
def device(bench: Lab, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestDevice]:
    """The device, empty and in order; and so again afterwards."""
    monkeypatch.setattr(jobs, "PAUSES", (0.01, 0.02, 0.03))
    found = bench.devices[0]
    empty(found)
    yield found
    put_right(found)


def empty(device: TestDevice) -> None:
    device.clear()
    Path(f"{device.trtexec}.calls.jsonl").unlink(missing_ok=True)


def put_right(device: TestDevice) -> None:
    """Undo every fault, and nothing of what the device has done."""
    for path in (device.folder / "faults.json", Path(f"{device.trtexec}.faults.json"), device.folder / "clock"):
        path.unlink(missing_ok=True)
    for path in (device.folder / "home").iterdir():
        path.unlink()
    lock = device.folder / "device.lock"
    if lock.is_symlink():
        lock.unlink()
    elif lock.is_dir():
        lock.rmdir()
    with contextlib.suppress(OSError):
        if (device.cache / "cas").is_file():
            (device.cache / "cas").unlink()
    device.put_right()


def made(
    target: dict[str, Any], key: str, model: Path, out: Path, size: int | None = None, said: list[str] | None = None
) -> Any:
    heard = said if said is not None else []
    return build(target, key_of(key), replace(SPEC, workspace=size), {"model.onnx": model}, out, heard.append)


def is_right(engine: Path, model: Path) -> None:
    """The surrogate's engine carries what it was made of."""
    head, _, body = engine.read_bytes().partition(b"SURROGATE ENGINE\n")
    assert head == b""
    meaning, _, carried = body.split(b"\n", 2)
    assert carried == model.read_bytes()
    assert json.loads(meaning)["--fp16"] is True


def inject(device: TestDevice, fault: Fault, stage: str) -> None:
    """Have it happen at the stage."""
    for name, text in fault.home.items():
        (device.folder / "home" / name).write_text(text)
    if fault.trtexec:
        device.trtexec_fault(**fault.trtexec)
    words = device.words(fault.sh)
    if stage == "building" and fault.sh:
        once = device.words(f"test -e {{here}}/once || {{{{ touch {{here}}/once; {fault.sh}; }}}}")
        device.trtexec_fault(seconds=0.2, do=once)
    elif stage == "waiting":
        pass  # see `waits_for_the_device`
    elif stage == "sending" and fault.sh:
        device.fault(do_in={"op": "receive", "at": SIZE // 2, "sh": words})
    elif fault.sh:
        device.fault(do={"op": OPERATIONS[stage], "sh": words})
    for kind, more in fault.link.items():
        at = {"sending": SIZE // 2, "fetching": SIZE // 2}.get(stage, 20)
        if kind == "drop" and "times" in more:
            at = 0  # in the middle it would get on each time
        name = f"{kind}_in" if stage == "sending" else kind
        device.fault(**{name: {"op": OPERATIONS[stage], "at": at, **more}})


@contextlib.contextmanager
def waits_for_the_device(device: TestDevice, words: str) -> Iterator[None]:
    """The device's lock is held by another until a job waits for it and the words were run."""
    import fcntl

    def run() -> None:
        deadline = time.monotonic() + 20
        while not list((device.cache / "jobs").glob("*/progress.json")) and time.monotonic() < deadline:
            time.sleep(0.02)
        subprocess.run(["/bin/sh", "-c", words], check=True)
        time.sleep(0.1)
        os.close(held)

    held = os.open(device.folder / "device.lock", os.O_RDONLY | os.O_CREAT, 0o444)
    fcntl.flock(held, fcntl.LOCK_EX)
    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join()


@pytest.mark.parametrize(("name", "stage"), TRIED)
def test_a_fault_at_a_stage(
    device: TestDevice, target: dict[str, Any], model: Path, tmp_path: Path, name: str, stage: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    fault, outcome, engine, said = FAULTS[name], FAULTS[name].at[stage], tmp_path / "out.engine", list[str]()
    if fault.disk:
        device.cache_on_a_disk()
        monkeypatch.setattr(jobs, "SPARE", 2 * MIB)
    if fault.silence is not None:
        monkeypatch.setattr(ssh, "SILENCE", fault.silence)
    used = target | ({"seconds": 2} if "hang" in fault.trtexec else {})
    if fault.python:
        program = tmp_path / "python3"
        program.write_text(f"#!/bin/sh\n{fault.python}\n")
        program.chmod(0o755)
        used = used | {"address": target["address"] | {"python": str(program)}}
    inject(device, fault, stage)
    waiting = waits_for_the_device(device, device.words(fault.sh)) if stage == "waiting" else contextlib.nullcontext()
    error: StepError | None = None
    with waiting:
        try:
            made(used, name, model, engine, 64 * MIB, said)
        except StepError as raised:
            error = raised
    judge(outcome, error, engine, model)
    if error is not None:
        put_right(device)
        made(target, name, model, engine, 64 * MIB)
        is_right(engine, model)
    assert len(device.calls()) == outcome.builds, said
    left = device.folder / "faults.json"
    once = [kind for kind, more in fault.link.items() if "times" not in more and stage != "building"]
    assert not once or json.loads(left.read_text()) == {}, "the fault did not happen"


def judge(outcome: Outcome, error: StepError | None, engine: Path, model: Path) -> None:
    """Whether it came as the table says."""
    result = ENGINE if error is None else WAITS if isinstance(error, Unreachable) else ERROR
    assert result == (ENGINE if outcome.result == AGAIN else outcome.result), error
    if error is None:
        is_right(engine, model)
        return
    assert not engine.exists()
    assert outcome.says in f"{error.message}; {error.hint}"
    assert "nx" in error.message
    assert error.hint


def test_the_table_is_whole_and_the_page_is_made_of_it() -> None:
    assert {stage for _, stage in ALL} == set(STAGES)
    text = PAGE.read_text()
    assert page(text) == text, "run: python tests/support/device_faults.py"


DROPS: dict[str, dict[str, Any]] = {
    "before an input is sent": {"drop_in": {"op": "receive", "at": 0}},
    "twice in the middle of an input": {"drop_in": {"op": "receive", "at": 100_000, "times": 2}},
    "when an input has arrived": {"drop": {"op": "receive", "at": 0}},
    "thrice during the build": {"drop": {"op": "run", "at": 20, "times": 3}},
    "at the engine's last byte": {"drop": {"op": "send", "at": SIZE}},
}


@pytest.mark.parametrize("when", DROPS if POINTS else list(DROPS)[1:3])
def test_a_connection_that_breaks(
    device: TestDevice, target: dict[str, Any], model: Path, tmp_path: Path, when: str
) -> None:
    device.trtexec_fault(seconds=0.2)
    device.fault(**DROPS[when])
    made(target, when, model, tmp_path / "out.engine")
    is_right(tmp_path / "out.engine", model)
    assert len(device.calls("start")) == len(device.calls("end")) == 1
    assert json.loads((device.folder / "faults.json").read_text()) == {}, "the fault did not happen"


def test_a_connection_that_breaks_whenever_something_is_sent(
    device: TestDevice, target: dict[str, Any], model: Path, tmp_path: Path
) -> None:
    device.fault(drop_in={"op": "receive", "at": 0, "times": 99})
    before = len(device.requests())
    with pytest.raises(Unreachable, match="the connection broke"):
        made(target, "sent", model, tmp_path / "out.engine")
    assert 3 <= device.requests()[before:].count("receive") <= 6


def test_a_build_that_runs_out_of_memory_is_tried_with_less(
    device: TestDevice, target: dict[str, Any], model: Path, tmp_path: Path
) -> None:
    device.trtexec_fault(memory=600 * MIB)
    measured = made(target, "ladder", model, tmp_path / "out.engine")
    is_right(tmp_path / "out.engine", model)
    # MemTotal is 6.8 GiB, taken for 7; three quarters of it are free, of which at most a half is asked for.
    tried = [entry["workspace"] // MIB for entry in measured["attempts"]]
    assert tried == [1792, 896, 448]
    assert measured["workspace"] == 448 * MIB
    assert "ran out of memory with a workspace of 1792 MiB, 896 MiB" in measured["notes"][0]


def test_a_full_disk_is_said_before_anything_is_sent(
    device: TestDevice, target: dict[str, Any], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "SPARE", 1 << 60)
    with pytest.raises(StepError, match=r"needs .* bytes and has") as caught:
        made(target, "full", model, tmp_path / "out.engine")
    assert "free space" in (caught.value.hint or "")
    assert "receive" not in device.requests()[-2:]


def test_an_input_that_changes_while_it_is_sent(
    device: TestDevice, target: dict[str, Any], model: Path, tmp_path: Path
) -> None:
    changing = tmp_path / "changing.onnx"
    changing.write_bytes(model.read_bytes())
    words = f"printf x | dd of={changing} bs=1 seek={SIZE - 10} conv=notrunc 2>/dev/null"
    device.fault(do={"op": "stage", "sh": words})
    with pytest.raises(StepError, match=r"changing\.onnx was changed while it was sent"):
        made(target, "changing", changing, tmp_path / "out.engine")


def test_two_hosts_that_build_the_same_build_it_once(
    device: TestDevice, target: dict[str, Any], model: Path, tmp_path: Path
) -> None:
    """Stores know nothing of each other; the device does. The model goes there slowly, so both want to send it."""
    device.fault(slow_in={"op": "receive", "seconds": 0.1})
    device.trtexec_fault(seconds=0.3)
    engines = [tmp_path / f"{number}.engine" for number in range(2)]
    threads = [threading.Thread(target=made, args=(target, "two", model, engine)) for engine in engines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for engine in engines:
        is_right(engine, model)
    assert engines[0].read_bytes() == engines[1].read_bytes()
    assert len(device.calls()) == 1


@pytest.mark.skipif(not POINTS, reason="long: run with TRTRECIPE_DROP_POINTS=30")
def test_a_build_dropped_at_many_points_is_one_build(
    device: TestDevice, target: dict[str, Any], model: Path, tmp_path: Path
) -> None:
    for point in range(POINTS):
        Path(f"{device.trtexec}.calls.jsonl").unlink(missing_ok=True)
        device.trtexec_fault(seconds=0.6)
        device.fault(drop={"op": "run", "at": point * 400 // POINTS})
        engine = tmp_path / f"{point}.engine"
        made(target, f"point {point}", model, engine)
        is_right(engine, model)
        assert len(device.calls()) == 1, point
