"""Versions of the tools that steps use, read from package metadata without importing them."""

from __future__ import annotations

from functools import cache
from importlib import metadata

EXTRAS = {"tensorflow": "tensorflow", "tf2onnx": "tensorflow", "tensorrt-rtx": "rtx"}
"""Distribution → the extra of trtrecipe that installs it; the others come with trtrecipe itself."""


@cache
def version(distribution: str) -> str | None:
    """The installed version of a Python distribution; None where it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def install_hint(distribution: str) -> str:
    """The command that installs it."""
    extra = EXTRAS.get(distribution)
    return f"run: pip install 'trtrecipe[{extra}]'" if extra else f"run: pip install {distribution}"
