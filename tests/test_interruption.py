"""Builds that are stopped, killed, doubled, or meet a disk that does not take what they write."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.projects import Project, make_project

COMMAND = [sys.executable, "-m", "trtrecipe"]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.setenv("TRTRECIPE_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    return make_project(tmp_path / "project")


def start(project: Project, *options: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*COMMAND, "build", str(project.recipe), "--json", *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def finish(build: subprocess.Popen[bytes]) -> tuple[int, Any, str]:
    out, err = build.communicate(timeout=120)
    return build.returncode, json.loads(out) if out else None, err.decode()


def wait_for(build: subprocess.Popen[bytes], text: bytes) -> None:
    assert build.stderr is not None
    for line in build.stderr:
        if text in line:
            return
    raise AssertionError(f"the build never said {text!r}")


def workers_of(store: Path) -> list[int]:
    """Processes whose working folder is the store: workers."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").resolve() == store.resolve():
                found.append(int(process.name))
        except OSError:
            continue
    return found


def gone(store: Path) -> bool:
    for _ in range(100):
        if not workers_of(store):
            return True
        time.sleep(0.05)
    return False


def ran(document: Any) -> set[str]:
    return {step["kind"] for target in document["targets"] for step in target["steps"] if step["status"] == "ran"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_builds_keep_what_finished(number: signal.Signals, project: Project, tmp_path: Path) -> None:
    build = start(project)
    wait_for(build, b"prepare: running")
    build.send_signal(number)
    code, document, err = finish(build)
    assert code == 130
    assert document["errors"] == [{"message": "interrupted; what finished is kept"}]
    assert err.endswith("error: interrupted; what finished is kept\n") and "Traceback" not in err
    assert gone(tmp_path / "store")
    code, document, _ = finish(start(project))
    assert code == 0
    assert not {"fetch", "export"} & ran(document) and {"compile", "verify"} <= ran(document)


@pytest.mark.parametrize("moment", [b"fetch: running", b"calibrate: running", b"compile@host: running"])
def test_killed_builds_leave_a_store_that_works(moment: bytes, project: Project, tmp_path: Path) -> None:
    build = start(project)
    wait_for(build, moment)
    build.kill()
    finish(build)
    assert gone(tmp_path / "store"), "workers outlived their build"
    code, document, _ = finish(start(project))
    assert code == 0
    code, document, _ = finish(start(project))
    assert code == 0 and ran(document) == set()


def test_a_killed_worker_is_a_failed_step(project: Project, tmp_path: Path) -> None:
    build = start(project)
    wait_for(build, b"calibrate: running")
    for process in workers_of(tmp_path / "store"):
        if b"trtrecipe.run.worker" in Path(f"/proc/{process}/cmdline").read_bytes():
            os.kill(process, signal.SIGKILL)
    code, document, _ = finish(build)
    assert code == 1
    failed = [step for step in document["targets"][0]["steps"] if step["status"] == "failed"]
    assert failed and failed[0]["error"] == "its process was ended by SIGKILL" and "memory" in failed[0]["hint"]
    assert finish(start(project))[0] == 0


def test_two_builds_at_once_do_each_step_once(project: Project, tmp_path: Path) -> None:
    outputs = ["-o", "one"], ["-o", "two"]
    builds = [start(project, *options) for options in outputs]
    results = [finish(build) for build in builds]
    assert [code for code, _, _ in results] == [0, 0]
    kinds = [[s["kind"] for t in doc["targets"] for s in t["steps"] if s["status"] == "ran"] for _, doc, _ in results]
    together = sorted(kinds[0] + kinds[1])
    assert together == sorted(set(together)), "a step ran twice"
    assert len(together) == len(results[0][1]["targets"][0]["steps"])
    engines = [(tmp_path / name / "small" / "host" / "model.engine").read_bytes() for name in ("one", "two")]
    assert engines[0] == engines[1]


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_store(project: Project, tiny_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tiny_disk / "filler").write_bytes(bytes(40_000))
    monkeypatch.setenv("TRTRECIPE_STORE", str(tiny_disk / "store"))
    code, document, err = finish(start(project))
    assert code == 1 and "Traceback" not in err
    errors = [step["error"] for step in document["targets"][0]["steps"] if step["status"] == "failed"]
    assert errors and all("no space left" in error.lower() for error in errors)
    (tiny_disk / "filler").unlink()
    subprocess.run(["mount", "-o", "remount,size=4m", str(tiny_disk)], check=True)
    assert finish(start(project))[0] == 0


def test_a_full_output_folder_keeps_what_was_there(project: Project, tiny_disk: Path) -> None:
    output = tiny_disk / "dist"
    assert finish(start(project, "-o", str(output)))[0] == 0
    folder = output / "small" / "host"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    room = os.statvfs(tiny_disk)
    (tiny_disk / "filler").write_bytes(bytes(room.f_bavail * room.f_bsize))
    project.change_weight()
    code, document, err = finish(start(project, "-o", str(output)))
    assert code == 1 and "Traceback" not in err
    [target] = document["targets"]
    assert target["status"] == "failed" and "no space left in the output folder" in target["error"]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (tiny_disk / "filler").unlink()
    code, document, _ = finish(start(project, "-o", str(output)))
    assert code == 0 and ran(document) == set(), "the work itself was not lost"


def test_an_output_folder_that_cannot_be_written(project: Project, tiny_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(tiny_disk)], check=True)
    code, document, _ = finish(start(project, "-o", str(tiny_disk / "dist")))
    assert code == 2
    assert "cannot be written to" in document["errors"][0]["message"]
    assert not (Path(os.environ["TRTRECIPE_STORE"]) / "v1" / "records").is_dir() or not list(
        (Path(os.environ["TRTRECIPE_STORE"]) / "v1" / "records").rglob("*.json")
    ), "an hour of work was spent before the folder was looked at"


def test_a_store_that_cannot_be_written(project: Project, tiny_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRTRECIPE_STORE", str(tiny_disk / "store"))
    subprocess.run(["mount", "-o", "remount,ro", str(tiny_disk)], check=True)
    code, document, err = finish(start(project))
    assert code == 1 and "Traceback" not in err
    assert (
        "the store" in document["errors"][0]["message"] and "cannot be written to" in document["errors"][0]["message"]
    )
