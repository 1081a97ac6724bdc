"""A recipe file in, a validated recipe out, or every problem in it at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from trtrecipe.errors import InputError, Problem
from trtrecipe.recipe.checks import check
from trtrecipe.recipe.document import MAX_PROBLEMS, Document, read
from trtrecipe.recipe.findings import Finding
from trtrecipe.recipe.model import Recipe


@dataclass(frozen=True)
class Loaded:
    """A valid recipe and where each of its values stands."""

    path: Path
    recipe: Recipe
    document: Document

    def problem(self, loc: Iterable[Any], message: str, hint: str | None = None) -> Problem:
        """A problem at the value at `loc`, for rules that need more than the recipe."""
        return _problem(self.document, Finding(tuple(loc), message, hint))

    def file(self, name: str) -> Path:
        """The file or folder that the recipe calls `name`: relative to the recipe, unless absolute."""
        return self.path.parent / name


def load(path: Path, also: Callable[[Any], Iterable[Finding]] | None = None) -> Loaded:
    """The recipe in `path`. Raises InputError with all problems, in the order of the file.

    `also` adds rules of the caller's to the same pass. It is given the recipe as plain data, which may be malformed.
    """
    document = read(path)
    findings = _first(check(document.value))
    if also is not None:
        findings += _first(also(document.value))
    try:
        recipe = Recipe.model_validate(document.value)
    except ValidationError as error:
        from trtrecipe.recipe.messages import explain

        findings += _first(explain(error, document))
        raise _error(document, findings) from None
    if findings:
        raise _error(document, findings)
    return Loaded(path, recipe, document)


def _problem(document: Document, finding: Finding) -> Problem:
    line, column = (document.locate_key if finding.at_key else document.locate)(finding.loc)
    return Problem(finding.message, document.file, line, column, finding.hint)


def _error(document: Document, findings: Iterable[Finding]) -> InputError:
    problems = sorted(
        {_problem(document, finding): None for finding in findings},
        key=lambda p: (p.line or 0, p.column or 0, p.message),
    )
    if len(problems) > MAX_PROBLEMS:
        last = problems[MAX_PROBLEMS - 1]
        more = "there are more problems than these"
        problems[MAX_PROBLEMS:] = [Problem(more, last.file, last.line, last.column, "mend those above first")]
    return InputError(problems)


def _first(findings: Iterable[Finding]) -> list[Finding]:
    """No more than are shown, and one: finding near matches takes its time."""
    return list(islice(findings, MAX_PROBLEMS + 1))
