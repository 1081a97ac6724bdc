"""The errors a person may see, each with its exit code (DESIGN: one door, in `cli.app`)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a file, or with the command line when `file` is None.

    `line` and `column` count from 1.
    """

    message: str
    file: str | None = None
    line: int | None = None
    column: int | None = None
    hint: str | None = None

    def where(self) -> str:
        """`file:line:column`, as far as it is known."""
        return ":".join(str(part) for part in (self.file, self.line, self.column) if part is not None)


class TrtrecipeError(Exception):
    """Base of every error that is printed as a message; anything else is a defect of ours."""

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class InputError(TrtrecipeError):
    """The recipe, the inventory or the command line is wrong; nothing was run."""

    exit_code = 2

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(f"{p.where()}: {p.message}" if p.where() else p.message for p in self.problems))

    @classmethod
    def of(cls, message: str, hint: str | None = None) -> InputError:
        """An error of the command line itself, without a place in a file."""
        return cls([Problem(message, hint=hint)])


class StepError(TrtrecipeError):
    """A step could not do its work. Raised by `steps`, with what went wrong and what to try."""

    exit_code = 1


class Unreachable(StepError):
    """A device cannot be had now. What needs it waits: nothing is wrong with it, and a later build goes on there."""


class StoreError(TrtrecipeError):
    """The store cannot be used (not writable, full)."""

    exit_code = 1
