"""Whether the files that a recipe names are there."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from itertools import islice
from pathlib import Path, PurePath
from typing import Any

from trtrecipe.errors import Problem
from trtrecipe.recipe.findings import dotted, nearest, short
from trtrecipe.recipe.load import Loaded
from trtrecipe.recipe.model import CsvData, Data, ImagesData, NpyData, NpzData, RawData, TfrecordData

MAX_LISTED = 1000


def check_files(loaded: Loaded) -> list[Problem]:
    """One problem for each file of the recipe that is missing, unreadable or of the wrong kind, in the file's order."""
    problems = [problem for loc, name in named_files(loaded) if (problem := _check(loaded, loc, name))]
    for loc, pattern in named_patterns(loaded):
        fixed = _fixed(pattern)
        problem = _check(loaded, loc, fixed or ".", "file" if fixed == pattern else "folder")
        problems += [problem] if problem else []
    return sorted(problems, key=lambda p: (p.line or 0, p.column or 0))


def named_files(loaded: Loaded) -> Iterator[tuple[tuple[Any, ...], str]]:
    """Each file or folder that the recipe names: where it stands, and how it is written."""
    recipe = loaded.recipe
    yield ("model", "source"), recipe.model.source
    if recipe.calibration and recipe.calibration.table is not None:
        yield ("calibration", "table"), recipe.calibration.table
    if recipe.calibration and recipe.calibration.data is not None:
        yield from _data_files(("calibration", "data"), recipe.calibration.data)
    if recipe.evaluation:
        yield from _data_files(("evaluation", "data"), recipe.evaluation.data)


def _data_files(loc: tuple[Any, ...], data: Data) -> Iterator[tuple[tuple[Any, ...], str]]:
    if isinstance(data, NpzData):
        yield (*loc, "npz"), data.npz
    elif isinstance(data, NpyData):
        for name, file in data.npy.items():
            yield (*loc, "npy", name), file
    elif isinstance(data, CsvData):
        yield (*loc, "csv"), data.csv
    elif isinstance(data, ImagesData | RawData) and data.labels is not None:
        yield (*loc, "labels"), data.labels


def named_patterns(loaded: Loaded) -> Iterator[tuple[tuple[Any, ...], str]]:
    """Each pattern of files that the recipe gives: where it stands, and how it is written."""
    for block in ("calibration", "evaluation"):
        data: Data | None = getattr(getattr(loaded.recipe, block), "data", None)
        if isinstance(data, ImagesData):
            yield (block, "data", "images"), data.images
        elif isinstance(data, TfrecordData):
            yield (block, "data", "tfrecord"), data.tfrecord
        elif isinstance(data, RawData):
            for name, pattern in data.raw.items():
                yield (block, "data", "raw", name), pattern


def _fixed(pattern: str) -> str:
    """The leading parts of a pattern that are names: all of them, or what is matched below."""
    parts = PurePath(pattern).parts
    length = next((number for number, part in enumerate(parts) if any(sign in part for sign in "*?[")), len(parts))
    return pattern if length == len(parts) else str(PurePath(*parts[:length])) if length else ""


def _check(loaded: Loaded, loc: tuple[Any, ...], name: str, wanted: str = "") -> Problem | None:
    path, said = loaded.file(name), f"{dotted(loc)}: '{short(name)}'"
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return loaded.problem(loc, f"{said} does not exist", _suggestion(loaded, name))
    except OSError as error:
        return loaded.problem(loc, f"{said} cannot be read: {error.strerror}", "check the path and its permissions")
    wanted = wanted or _wanted(loaded, loc)
    if not (stat.S_ISREG(mode) and wanted != "folder") and not (stat.S_ISDIR(mode) and wanted != "file"):
        found = "a folder" if stat.S_ISDIR(mode) else "a file" if stat.S_ISREG(mode) else "neither a file nor a folder"
        return loaded.problem(loc, f"{said} is {found}: a {wanted} is needed here")
    if not os.access(path, os.R_OK | (os.X_OK if stat.S_ISDIR(mode) else 0)):
        return loaded.problem(loc, f"{said} may not be read", "check its permissions")
    return None


def _wanted(loaded: Loaded, loc: tuple[Any, ...]) -> str:
    if loc != ("model", "source"):
        return "file"
    declared = loaded.recipe.model.format
    return "file or folder" if declared is None else "folder" if declared == "saved_model" else "file"


def _suggestion(loaded: Loaded, name: str) -> str:
    if "://" in name:
        return "URLs are not supported; download it and name the file"
    if name.startswith("~"):
        return "~ stands for nothing here; write the path out"
    path = loaded.file(name)
    missing = path
    while not missing.parent.is_dir() and missing.parent != missing:
        missing = missing.parent
    parent = missing.parent
    try:
        entries = [entry.name for entry in islice(os.scandir(parent), MAX_LISTED)]
    except OSError:
        entries = []
    if missing.exists():
        return f"{_shown(missing, loaded)} is not a folder"
    meant = nearest(missing.name, entries)
    if meant:
        written = Path(*Path(name).parts[: len(Path(name).parts) - len(path.parts) + len(missing.parts) - 1]) / meant
        return f"did you mean {written}?"
    where = "the folder of the recipe" if parent == loaded.path.parent else _shown(parent, loaded)
    return f"there is no {short(missing.name)} in {where}; paths are relative to the recipe"


def _shown(path: Path, loaded: Loaded) -> str:
    """As the recipe would write it."""
    folder = loaded.path.parent
    return short(str(path.relative_to(folder) if path.is_relative_to(folder) else path))
