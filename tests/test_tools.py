"""Versions of installed packages."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

from trtrecipe.plan import tools


def test_versions_are_those_of_the_package_metadata() -> None:
    for name in ("onnx", "onnxruntime", "numpy", "PyYAML", "pydantic_core", "typing-extensions", "trtrecipe"):
        assert tools.version(name) == metadata.version(name)
    assert tools.version("no-such-package") is None


def test_the_first_on_the_path_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder, version in (("first", "2.0+local"), ("second", "1.0")):
        (tmp_path / folder / f"Some_Package-{version}.dist-info").mkdir(parents=True)
        monkeypatch.syspath_prepend(tmp_path / "second")
    monkeypatch.syspath_prepend(tmp_path / "first")
    tools._installed.cache_clear()
    try:
        assert tools.version("some.package") == "2.0+local"
    finally:
        tools._installed.cache_clear()
        tools.version.cache_clear()


def test_hints_name_the_extra() -> None:
    assert tools.install_hint("tf2onnx") == "run: pip install 'trtrecipe[tensorflow]'"
    assert tools.install_hint("onnx") == "run: pip install onnx"
