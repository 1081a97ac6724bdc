"""Text and JSON for people and programs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trtrecipe.errors import Problem

KEY_PREFIX = 12


def print_json(document: Any) -> None:
    """One document on standard output."""
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def error_document(problems: Iterable[Problem]) -> dict[str, Any]:
    """The document of `trtrecipe/error/v1`."""
    fields = ("file", "line", "column", "message", "hint")
    return {
        "schema": "trtrecipe/error/v1",
        "errors": [
            {name: value for name in fields if (value := getattr(problem, name)) is not None} for problem in problems
        ],
    }


def problem_lines(problem: Problem) -> list[str]:
    """`file:line:column: error: message`, and the hint below it."""
    where = problem.where()
    lines = [f"{where}: error: {problem.message}" if where else f"error: {problem.message}"]
    if problem.hint:
        lines.append(f"  hint: {problem.hint}")
    return lines


def said_once(remarks: Iterable[tuple[str, str]], everyone: Sequence[str]) -> Iterator[str]:
    """Pairs of whom something is said and what → a line for each thing said, with all of whom it is said."""
    said: dict[str, dict[str, None]] = {}
    for label, text in remarks:
        said.setdefault(text, {})[label] = None
    for text, labels in said.items():
        yield f"{'all' if list(labels) == [*everyone] and len(labels) > 1 else ', '.join(labels)}: {text}"


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns aligned to the left, two spaces apart, never wrapped; columns without any entry are left out."""
    kept = [list(row) for row in rows]
    used = [index for index in range(len(headers)) if any(row[index] for row in kept)]
    lines = [[headers[index] for index in used], *([row[index] for index in used] for row in kept)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(used))]
    padded = (zip(line, widths, strict=True) for line in lines)
    return "\n".join("  ".join(cell.ljust(width) for cell, width in line).rstrip() for line in padded)


def size(count: int) -> str:
    """Bytes for a person: 812 B, 43.1 KiB, 1.2 GiB."""
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def short_path(path: Path) -> str:
    """Relative to the working directory where it lies below it."""
    try:
        return os.path.relpath(path) if path.absolute().is_relative_to(Path.cwd()) else str(path)
    except OSError:
        return str(path)


def present(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is None: figures that were not measured are absent, not null."""
    return {name: value for name, value in fields.items() if value is not None}
