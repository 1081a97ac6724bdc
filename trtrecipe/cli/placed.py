"""Engines in a folder of results, by the manifests beside them."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtrecipe.cli.render import short_path

SCHEMA = "trtrecipe/manifest/v1"
_LARGEST = 64 << 20
_DEPTH = ("*.yaml", "*/*.yaml", "*/*/*.yaml", "*.yml", "*/*.yml", "*/*/*.yml")
"""Where a recipe is looked for."""
_LARGEST_RECIPE = 1 << 20


@dataclass(frozen=True)
class PlacedEngine:
    """An engine that a manifest names: `sha256` as it was built, which the file may no longer have."""

    path: Path
    sha256: str
    manifest: dict[str, Any]

    @property
    def target(self) -> str:
        return str(self.manifest["target"])

    @property
    def recipe(self) -> str:
        return str(self.manifest["recipe"])


def beside(file: Path) -> PlacedEngine | None:
    """The file as the manifest in its folder has it; None where no readable manifest calls it an engine."""
    found = read(file.parent / "manifest.json")
    return found if found is not None and found.path.name == file.name else None


def read(manifest: Path) -> PlacedEngine | None:
    """The engine of a manifest; None where the file is no manifest, is damaged, or names no engine."""
    try:
        if not manifest.is_file() or manifest.stat().st_size > _LARGEST:
            return None
        found = json.loads(manifest.read_bytes())
        if found["schema"] != SCHEMA:
            return None
        entry = found["artifacts"]["engine"]
        if any(not isinstance(found[key], str) for key in ("target", "recipe", "profile")):
            return None
        return PlacedEngine(manifest.parent / Path(entry["file"]).name, str(entry["sha256"]), found)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def under(output: Path) -> Iterator[PlacedEngine]:
    """All engines of a folder as `build --output` fills it, by recipe and target."""
    for manifest in sorted(output.glob("*/*/manifest.json")):
        engine = read(manifest)
        if engine is not None:
            yield engine


def rebuild(engine: PlacedEngine, output: Path) -> str:
    """The command that builds an engine again, to be run in the current folder; RECIPE where its file is not found."""
    recipe = find_recipe(engine.recipe)
    words = ["trtrecipe", "build", short_path(recipe) if recipe is not None else "RECIPE", "--target", engine.target]
    if output != Path("dist"):
        words += ["--output", short_path(output)]
    return shlex.join(words)


def find_recipe(name: str) -> Path | None:
    """The recipe of that name in the current folder or up to two below it; None where there is none, or several."""
    line = re.compile(rb"^name:[ \t]*[\"']?" + re.escape(name.encode()) + rb"[\"']?[ \t]*(#.*)?\r?$", re.MULTILINE)
    found = []
    for pattern in _DEPTH:
        for path in Path().glob(pattern):
            if path.is_file() and path.stat().st_size <= _LARGEST_RECIPE:
                text = path.read_bytes()
                if b"trtrecipe/v1" in text and line.search(text):
                    found.append(path)
    return found[0] if len(found) == 1 else None
