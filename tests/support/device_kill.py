"""Ends processes that have a part in a build on a test device: device_kill.py FOLDER SIGNAL WHAT...

client  the OpenSSH clients that ask it something     agent   what answers them there
runner  the process that outlives the connection      trtexec
server  its SSH server                                link    that server's process for each connection
boot    nothing is ended: the notes of processes are those of an earlier boot
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
from pathlib import Path


def main(folder: Path, number: int, kinds: list[str]) -> None:
    """End processes of those kinds, in that order."""
    for kind in kinds:
        if kind == "boot":
            for path in _states(folder):
                text = path.read_text()
                path.write_text(re.sub("[0-9a-f-]{36} ", "00000000-0000-0000-0000-000000000000 ", text))
            continue
        for pid in _find(folder, kind):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def _states(folder: Path) -> list[Path]:
    return list((folder / "cache/trtrecipe/device-v1/jobs").glob("*/state.json"))


def _noted(folder: Path, name: str) -> list[int]:
    found = []
    for path in _states(folder):
        with contextlib.suppress(ValueError, KeyError, OSError):
            found.append(int(json.loads(path.read_text())[name]))
    return found


def _find(folder: Path, kind: str) -> list[int]:
    if kind in ("runner", "trtexec"):
        return _noted(folder, kind)
    server = int((folder / "server.pid").read_text())
    if kind == "server":
        return [server]
    runners = _noted(folder, "runner")
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        pid = int(process.name)
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue
        is_agent = str(folder / "bin/python3").encode() in words[:4] and pid not in runners
        is_client = words[0].endswith(b"ssh") and str(folder.parent / "ssh_config").encode() in words
        is_client = is_client and f"test-{folder.name}".encode() in words
        if {"agent": is_agent, "client": is_client, "link": parent == server}[kind]:
            found.append(pid)
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]), signal.Signals[f"SIG{sys.argv[2]}"], sys.argv[3:])
