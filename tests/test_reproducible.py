"""The same recipe gives the same bytes anywhere, and the digits recipe is as good as it says."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from trtrecipe.digest import sha256_file


def build(repository: Path, folder: Path, hash_seed: str, jobs: str) -> Any:
    """The digits recipe built in a folder, store and working directory of its own."""
    shutil.copytree(repository / "recipes" / "digits", folder / "recipe")
    environment = os.environ | {"TRTRECIPE_STORE": str(folder / "store"), "PYTHONHASHSEED": hash_seed}
    done = subprocess.run(
        [sys.executable, "-m", "trtrecipe", "build", "recipe/digits.yaml", "--json", "-j", jobs],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def two_builds(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, Any]]:
    for distribution in ("tensorflow", "tensorrt-rtx"):
        try:
            metadata.version(distribution)
        except metadata.PackageNotFoundError:
            pytest.skip(f"{distribution} is not installed")
    folders = [tmp_path_factory.mktemp(name) for name in ("first", "a-second-with-a-longer-name")]
    return [
        (folder, build(repository, folder, seed, jobs))
        for folder, seed, jobs in zip(folders, ("0", "4242"), ("1", "2"), strict=True)
    ]


def test_two_builds_agree_byte_for_byte(two_builds: list[tuple[Path, Any]]) -> None:
    digests = []
    for folder, document in two_builds:
        found = {}
        for target in document["targets"]:
            for name, artifact in target["artifacts"].items():
                assert sha256_file(folder / artifact["path"]) == artifact["sha256"]
                if name != "manifest":  # it holds measurements
                    found[target["target"], name] = artifact["sha256"]
        digests.append(found)
    assert digests[0] == digests[1]
    assert len(digests[0]) == 8


def test_keys_do_not_depend_on_folder_store_or_process(two_builds: list[tuple[Path, Any]]) -> None:
    first, second = (
        {(t["target"], s["kind"]): s["key"] for t in document["targets"] for s in t["steps"]}
        for _, document in two_builds
    )
    assert first == second


def test_int8_is_within_a_point_of_fp32(two_builds: list[tuple[Path, Any]]) -> None:
    for target in two_builds[0][1]["targets"]:
        metrics = target["metrics"]
        assert metrics["reference_accuracy"] >= 0.97
        assert metrics["reference_accuracy"] - metrics["accuracy"] <= 0.01
        assert metrics["samples"] == 360


def test_the_report_says_what_was_evaluated(two_builds: list[tuple[Path, Any]]) -> None:
    host, rtx = two_builds[0][1]["targets"]
    assert host["metrics"]["evaluated"] == "engine" and host["metrics"]["latency_ms"]["p50"] > 0
    if rtx["metrics"]["evaluated"] == "graph":
        assert any("no GPU here can execute the engine" in note for note in rtx["notes"])
        assert "latency_ms" not in rtx["metrics"]
