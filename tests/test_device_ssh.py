"""The way to a device, over a real SSH server: what a user's settings decide, and what is said when it is no way."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.sshd import TX2, XAVIER_NX, Lab, lab

from trtrecipe.device import ssh
from trtrecipe.device.link import Dropped, Refusal
from trtrecipe.device.ssh import Session
from trtrecipe.errors import Unreachable


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with lab(tmp_path_factory.mktemp("lab")) as made:
        made.add("nx", XAVIER_NX)
        made.add("tx2", TX2)
        yield made


@pytest.fixture
def bench(shared: Lab) -> Iterator[Lab]:
    """The lab; its settings are put back."""
    kept = {path: path.read_text() for path in (shared.config, shared.known_hosts)}
    yield shared
    for path, text in kept.items():
        path.write_text(text)


def probe(host: str, **more: str) -> dict[str, object]:
    with Session(host, **more) as session:  # type: ignore[arg-type]
        return session.ask({"op": "probe"})


def change(bench: Lab, pattern: str, to: str) -> None:
    """Change the settings of the first host."""
    text, count = re.subn(pattern, to, bench.config.read_text(), count=1)
    assert count == 1
    bench.config.write_text(text)


def test_a_probe_tells_what_the_device_is(bench: Lab) -> None:
    device = bench.devices[0]
    found = probe(device.host)
    assert (found["l4t"], found["jetpack"], found["tensorrt"], found["cuda"]) == (
        "35.6.0",
        "5.1.4",
        "8.5.2",
        "11.4.315",
    )
    assert found["model"] == XAVIER_NX.model
    assert found["trtexec"]["path"] == str(device.trtexec)  # type: ignore[index]


def test_requests_share_a_connection_that_ends_with_the_session(bench: Lab) -> None:
    device = bench.devices[0]
    log = device.folder / "sshd.log"
    before = log.read_text().count("Accepted publickey")
    with Session(device.host) as session:
        for _ in range(3):
            session.ask({"op": "probe"})
        folder = Path(str(session._folder))
        assert (folder / "c").is_socket()
    assert log.read_text().count("Accepted publickey") == before + 1
    assert not folder.exists()


def test_what_a_killed_command_left_is_removed_when_it_is_old(bench: Lab) -> None:
    left, recent = (Path(tempfile.mkdtemp(prefix="trtrecipe-ssh-", dir="/tmp")) for _ in range(2))
    try:
        os.utime(left, (0, 0))
        probe(bench.devices[0].host)
        assert not left.exists()
        assert recent.exists()
    finally:
        recent.rmdir()


def test_a_connection_that_the_user_shares_is_used_and_left_open(bench: Lab, tmp_path: Path) -> None:
    device = bench.devices[0]
    change(
        bench,
        "  IdentitiesOnly",
        f"  ControlMaster auto\n  ControlPersist 30\n  ControlPath {tmp_path}/user\n  IdentitiesOnly",
    )
    probe(device.host)
    check = ["ssh", "-O", "check", device.host]
    try:
        assert subprocess.run(check, capture_output=True).returncode == 0
    finally:
        subprocess.run(["ssh", "-O", "exit", device.host], capture_output=True)


def test_an_unknown_host_key_is_refused_whatever_the_user_has_set(bench: Lab) -> None:
    host = bench.devices[0].host
    bench.known_hosts.write_text("")
    with pytest.raises(Unreachable, match="host key is not known here") as caught:
        probe(host)
    assert host in (caught.value.hint or "")
    change(bench, "  IdentitiesOnly", "  StrictHostKeyChecking no\n  IdentitiesOnly")
    with pytest.raises(Unreachable, match="host key is not known here"):
        probe(host)
    assert bench.known_hosts.read_text() == ""


def test_a_user_who_accepts_new_host_keys_has_them_accepted(bench: Lab) -> None:
    bench.known_hosts.write_text("")
    change(bench, "  IdentitiesOnly", "  StrictHostKeyChecking accept-new\n  IdentitiesOnly")
    assert probe(bench.devices[0].host)["l4t"] == "35.6.0"


def test_a_changed_host_key_is_said_to_be_one(bench: Lab) -> None:
    other = " ".join((bench.folder / "user_key.pub").read_text().split()[:2])
    bench.known_hosts.write_text(re.sub("ssh-ed25519 .*", other, bench.known_hosts.read_text()))
    with pytest.raises(Unreachable, match="host key is not the one in known_hosts"):
        probe(bench.devices[0].host)


def test_a_key_that_is_refused(bench: Lab) -> None:
    change(bench, "IdentityFile .*", f"IdentityFile {bench.folder}/host_key")
    with pytest.raises(Unreachable, match="refuses to log in without a password") as caught:
        probe(bench.devices[0].host)
    assert "ssh-copy-id" in (caught.value.hint or "")


def test_a_host_that_is_none() -> None:
    with pytest.raises(Unreachable, match=r"no host of that name|there is no way|does not answer"):
        probe("no-such-device.invalid")


def test_a_device_that_is_switched_off(bench: Lab) -> None:
    device = bench.devices[1]
    device.stop()
    try:
        with pytest.raises(Unreachable, match="it refuses the connection"):
            probe(device.host)
    finally:
        device.start()


def test_settings_that_ssh_does_not_understand(bench: Lab) -> None:
    change(bench, "  IdentitiesOnly", "  NoSuchOption yes\n  IdentitiesOnly")
    with pytest.raises(Unreachable, match="configuration of the ssh client is wrong"):
        probe(bench.devices[0].host)


def test_a_python_that_is_not_there(bench: Lab) -> None:
    with pytest.raises(Unreachable, match=r"python3\.99 does not start there") as caught:
        probe(bench.devices[0].host, python="python3.99")
    assert "inventory" in (caught.value.hint or "")


def test_words_for_the_remote_shell_are_quoted(bench: Lab, tmp_path: Path) -> None:
    evil = tmp_path / "evil"
    for python in (f"python3; touch {evil}; #", f"$(touch {evil})", f"`touch {evil}`", f"x\ntouch {evil}"):
        with pytest.raises(Unreachable):
            probe(bench.devices[0].host, python=python)
    assert not evil.exists()


def test_a_prefix_stands_before_every_command(bench: Lab) -> None:
    device = bench.devices[0]
    with Session(device.host, ("env", "PREFIXED=a b")) as session:
        assert session.ask({"op": "probe"})["l4t"] == "35.6.0"
    with pytest.raises(Unreachable), Session(device.host, ("false",)) as session:
        session.ask({"op": "probe"})


def test_a_start_file_that_prints_does_no_harm(bench: Lab) -> None:
    device = bench.devices[0]
    start = device.folder / "home/.bashrc"
    start.write_text("echo 'Welcome to the lab'; echo '{}'; echo '[1]'\n")
    try:
        assert probe(device.host)["l4t"] == "35.6.0"
    finally:
        start.unlink()


@pytest.mark.parametrize("at", [0, 1, 40])
def test_a_connection_that_breaks_is_told_from_one_that_cannot_be_made(bench: Lab, at: int) -> None:
    device = bench.devices[0]
    device.fault(drop={"op": "probe", "at": at})
    with pytest.raises(Dropped, match="the connection broke"), Session(device.host) as session:
        session.ask({"op": "probe"})


def test_a_request_that_the_agent_refuses(bench: Lab) -> None:
    with Session(bench.devices[0].host) as session, pytest.raises(Refusal, match="operations: ") as caught:
        session.ask({"op": "format-the-disk"})
    assert caught.value.reason == "request"


def test_a_device_that_falls_silent_is_given_up(bench: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ssh, "SILENCE", 0.3)
    slow = tmp_path / "slow"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    with pytest.raises(Dropped, match="has said nothing for"):
        probe(bench.devices[0].host, python=str(slow))


def test_without_a_client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unreachable, match="OpenSSH client does not start"):
        probe("anywhere")


SHOWN: dict[str, Any] = {
    "event": "result", "model": "m", "l4t": "35.6.0", "cuda": None, "tensorrt": "8.5.2", "compatible": [],
    "jetpack": None, "memory": {"total": 1 << 33}, "disk": {"free": 1}, "power_mode": None, "clocks": {},
    "temperatures": {}, "trtexec": {"path": "/t", "size": 1, "sha256": "a" * 64}, "python": "3.8.10",
}  # fmt: skip
DONE: dict[str, Any] = {
    "event": "result", "ok": True, "outputs": {"engine": {"sha256": "b" * 64, "size": 3}}, "seconds": 1.0, "waited": 0,
    "attempts": [{"workspace": None, "outcome": "built", "seconds": 1}], "layers": 0, "collected": False,
    "timing_cache": None, "shown": {"memory": {"total": 1}},
}  # fmt: skip
ASKED: dict[str, dict[str, Any]] = {"probe": {}, "run": {"outputs": {"engine": "e"}}, "send": {}, "stage": {}}


def answering(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> Session:
    """A way to a device of which this is what comes back."""
    client = folder / "ssh"
    client.write_text(f'#!/bin/sh\ncase " $* " in *" -G "*|*" -O "*) exit 0 ;; esac\n{script}\n')
    client.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return Session("robot")


@pytest.mark.parametrize(
    ("op", "answer", "said"),
    [
        ("probe", {"event": "result"}, "compatible, memory, disk, clocks"),
        ("probe", {"event": "error"}, "reason, message"),
        ("probe", SHOWN | {"memory": {"total": "9"}}, "memory.total"),
        ("probe", SHOWN | {"memory": {"total": 10**400}}, "memory.total"),
        ("probe", SHOWN | {"temperatures": {"cpu": float("nan")}}, "temperatures.cpu"),
        ("probe", SHOWN | {"tensorrt": "8.x"}, "tensorrt"),
        ("probe", SHOWN | {"trtexec": {"path": "/t", "size": 1, "sha256": "../../x"}}, "trtexec"),
        ("probe", SHOWN | {"clocks": [1]}, "clocks"),
        ("stage", {"event": "result", "missing": [{"sha256": "../x", "size": 1, "offset": 0}]}, "missing.0.sha256"),
        ("send", {"event": "result", "size": True, "offset": 0}, "size"),
        ("run", DONE | {"ok": 1}, "ok"),
        ("run", DONE | {"outputs": {}}, "outputs"),
        ("run", DONE | {"outputs": {"engine": {"sha256": "b", "size": 3}}}, "outputs.engine.sha256"),
        ("run", DONE | {"attempts": []}, "attempts"),
        ("run", DONE | {"shown": {}}, "shown.memory"),
        ("run", {"event": "result", "ok": False, "reason": "memory", "message": "m", "attempts": 7}, "attempts"),
    ],
)
def test_an_answer_that_is_none_of_the_agents_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, op: str, answer: dict[str, object], said: str
) -> None:
    (tmp_path / "answer").write_text(json.dumps(answer) + "\n")
    with (
        answering(monkeypatch, tmp_path, f"exec cat {tmp_path}/answer") as session,
        pytest.raises(Refusal, match=f"robot answers {op} as no agent does: {re.escape(said)}$") as caught,
    ):
        session.ask({"op": op, **ASKED[op]})
    assert "ssh robot python3 --version" in (caught.value.hint or "")


@pytest.mark.parametrize("op", ["probe", "run"])
def test_answers_are_taken_and_hold_nothing_for_the_terminal(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, op: str
) -> None:
    whole = {"probe": SHOWN, "run": DONE}[op] | {"python": "3\x1b[31m.8"}
    words = [{"event": "progress", "doing": doing, "attempt": 1} for doing in ("a\x07", ["b"])] + [whole]
    (tmp_path / "answer").write_text("".join(json.dumps(each) + "\n" for each in words))
    heard: list[dict[str, object]] = []
    with answering(monkeypatch, tmp_path, f"exec cat {tmp_path}/answer") as session:
        assert session.ask({"op": op, **ASKED[op]}, hear=heard.append) == whole | {"python": "3 [31m.8"}
    assert [event["doing"] for event in heard] == ["a "]


@pytest.mark.parametrize(
    "script",
    [
        "exec cat /dev/zero",
        "exec yes",
        "exec yes >&2",
        'exec yes \'{"event": "progress", "doing": "x", "attempt": 1}\'',
        "cat {answer}; exec cat /dev/zero",
    ],
)
def test_a_device_that_talks_without_end_is_given_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str
) -> None:
    for name in ("LONGEST_LINE", "MOST_WORDS", "MOST_SAID"):
        monkeypatch.setattr(ssh, name, 1 << 17)
    (tmp_path / "answer").write_text(json.dumps(SHOWN) + "\n")
    with (
        answering(monkeypatch, tmp_path, script.replace("{answer}", f"{tmp_path}/answer")) as session,
        pytest.raises(Refusal, match="robot says without end"),
    ):
        session.ask({"op": "probe"})


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"event":"result","a":' + "[" * 100_000, '{"event":"result","a":1' + "1" * 9000 + "}"],
)
def test_an_answer_that_json_does_not_hold_is_no_answer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str
) -> None:
    (tmp_path / "answer").write_text(text + "\n")
    with (
        answering(monkeypatch, tmp_path, f"exec cat {tmp_path}/answer") as session,
        pytest.raises(Unreachable, match="the agent does not run there"),
    ):
        session.ask({"op": "probe"})
