"""Interpreters of the versions that JetPacks ship, where this machine has them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest


def interpreter(version: str) -> str:
    """One of that version ("3.6"): from PATH, else as pyenv keeps it. Skips the test where there is none."""
    kept = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    found = [shutil.which(f"python{version}"), *map(str, sorted(kept.glob(f"{version}.*/bin/python3"), reverse=True))]
    for path in found:
        # A name in PATH may be a shim, which starts nothing where its version is not chosen.
        if path and subprocess.run([path, "-c", ""], capture_output=True, check=False).returncode == 0:
            return path
    pytest.skip(f"this machine has no Python {version}")
