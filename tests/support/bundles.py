"""A device that nobody reaches: an unpacked bundle, run there by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.sshd import Kind, TestDevice

_RUN = """
import json, sys
sys.path.insert(0, sys.argv[1])
import build
sys.exit(build.main(sys.argv[3:], json.loads(sys.argv[2])))
"""


@dataclass
class Carried:
    """An unpacked bundle on a device."""

    folder: Path
    device: TestDevice
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def archive(self) -> Path:
        return self.folder / "result.tar.gz"

    def start(self, *arguments: str, python: str = sys.executable) -> subprocess.Popen[str]:
        """`python3 build.py`, told where the device's files are."""
        given = {"root": str(self.device.root), "lock": str(self.device.folder / "device.lock")}
        command = [python, "-B", "-c", _RUN, str(self.folder), json.dumps(given), *arguments]
        environment = {**os.environ, **self.environment}
        return subprocess.Popen(
            command, stdin=-3, stdout=-1, stderr=-1, text=True, cwd="/", env=environment, start_new_session=True
        )

    def run(self, *arguments: str, expected: int = 0, python: str = sys.executable) -> str:
        """All that it says."""
        child = self.start(*arguments, python=python)
        out, err = child.communicate(timeout=60)
        assert child.returncode == expected, out + err
        return out + err

    def list(self) -> dict[str, Any]:
        """result.json."""
        found: dict[str, Any] = json.loads((self.folder / "result/result.json").read_bytes())
        return found


def device(folder: Path, kind: Kind) -> TestDevice:
    """A device without a server."""
    folder.mkdir(parents=True)
    made = TestDevice("unreached", kind, folder, "")
    made.show()
    return made


def carry(bundle: Path, folder: Path, to: TestDevice) -> Carried:
    """Unpack it there."""
    folder.mkdir(parents=True)
    with tarfile.open(bundle) as archive:
        archive.extractall(folder)  # ours, just made; Pythons before 3.11.4 know no filters
    [top] = folder.iterdir()
    return Carried(top, to)
