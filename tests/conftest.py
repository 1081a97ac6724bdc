"""Fixtures shared by all tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.projects import make_project

from trtrecipe.cli.app import run


@pytest.fixture(autouse=True)
def _no_test_touches_the_users_store(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRTRECIPE_STORE", str(tmp_path_factory.mktemp("store")))


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout."""
    return Path(__file__).parents[1]


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small project, the store of its first build and its results, for tests to copy."""
    folder = tmp_path_factory.mktemp("built")
    project = make_project(folder / "project")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRTRECIPE_STORE", str(folder / "store"))
        patch.chdir(folder)
        assert run(["build", str(project.recipe)]) == 0
    return folder
