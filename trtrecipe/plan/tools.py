"""Versions of the tools that steps use, read from package metadata without importing them."""

from __future__ import annotations

import re
import sys
from functools import cache
from pathlib import Path

EXTRAS = {
    **dict.fromkeys(("tensorflow", "tf2onnx", "tf-keras", "ai-edge-litert"), "tensorflow"),
    "tensorrt-rtx": "rtx",
    "tensorrt": "cuda",
}
"""Distribution → the extra of trtrecipe that installs it; the others come with trtrecipe itself."""

_METADATA = re.compile(r"^(?P<name>[^-]+)-(?P<version>[^-]+)\.dist-info$")


_ALSO_CALLED = {"tensorrt": tuple(f"tensorrt-cu{major}{part}" for major in (13, 12, 11) for part in ("", "-bindings"))}
"""Distribution → others that bring the same module, and of which one alone may be installed."""


@cache
def version(distribution: str) -> str | None:
    """The installed version of a Python distribution; None where it is not installed."""
    for name in (distribution, *_ALSO_CALLED.get(distribution, ())):
        if found := _installed().get(_normal(name)):
            return found
    # Reads every way of installing there is, at 20 ms for its import alone; so only what the names did not tell.
    from importlib import metadata

    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


@cache
def _installed() -> dict[str, str]:
    """Normal name → version, from the names of metadata folders; of two the first on the path, as for imports."""
    found: dict[str, str] = {}
    for folder in sys.path:
        try:
            entries = list(Path(folder or ".").iterdir())
        except OSError:
            continue
        for entry in entries:
            if match := _METADATA.match(entry.name):
                found.setdefault(_normal(match["name"]), match["version"])
    return found


def _normal(name: str) -> str:
    """Names as the packaging standards compare them: case and the kind of separator do not matter."""
    return re.sub(r"[-_.]+", "-", name).lower()


def install_hint(distribution: str) -> str:
    """The command that installs it."""
    extra = EXTRAS.get(distribution)
    return f"run: pip install 'trtrecipe[{extra}]'" if extra else f"run: pip install {distribution}"
