"""The bytes of a YAML file as text that can be shown, and the parser's complaints in a person's words."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import NoReturn

from yaml import Mark, MarkedYAMLError

from trtrecipe.errors import InputError, Problem

MAX_BYTES = 1 << 20

_BREAK = re.compile(r"\r\n|\r|\n")
FORBIDDEN = frozenset(  # a set, because compiling a pattern of these ranges takes longer than reading a recipe
    chr(code)
    for first, last in (
        (0x00, 0x08), (0x0B, 0x0C), (0x0E, 0x1F), (0x7F, 0x9F),  # control characters
        (0x2028, 0x2029),  # line separators that editors do not count as lines
        (0x202A, 0x202E), (0x2066, 0x2069),  # marks that turn the writing direction
        (0xD800, 0xDFFF), (0xFEFF, 0xFEFF), (0xFFFE, 0xFFFF),  # halves of a pair, byte order marks
    )
    for code in range(first, last + 1)
)  # fmt: skip

Position = tuple[int, int]
"""Line and column, both counted from 1."""


def read_bytes(path: Path) -> bytes:
    """The content of `path`, a regular file of at most MAX_BYTES. Raises InputError."""

    def refuse(message: str, hint: str | None = None) -> NoReturn:
        raise InputError([Problem(message, str(path), hint=hint)])

    try:
        # Without O_NONBLOCK, opening a named pipe that no one writes to would wait for ever.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                refuse("is not a regular file; save the recipe to a file first")
            data = file.read(MAX_BYTES + 1)
    except IsADirectoryError:
        refuse("is a folder; a recipe is a YAML file")
    except FileNotFoundError:
        refuse("there is no such file", "check the path; it is relative to the folder you are in")
    except PermissionError:
        refuse("may not be read", "check the permissions of the file and of its folders")
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
        refuse(f"cannot be read: {getattr(error, 'strerror', None) or error}")
    if len(data) > MAX_BYTES:
        refuse(f"is larger than {MAX_BYTES >> 20} MiB, which no recipe needs", "is this the right file?")
    return data


def decode(data: bytes, file: str) -> str:
    """`data` as text without byte order mark; `file` is what the problem calls it. Raises InputError."""
    if len(data) > MAX_BYTES:
        raise InputError([Problem(f"is larger than {MAX_BYTES >> 20} MiB, which no recipe needs", file)])
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line, column = _at(before := data[: error.start].decode("utf-8"), len(before))
        message = f"byte 0x{data[error.start]:02x} is not UTF-8"
        raise InputError([Problem(message, file, line, column, "save the file as UTF-8")]) from None
    text = text.removeprefix("\ufeff")
    if found := FORBIDDEN.intersection(text):
        index = min(map(text.index, found))
        line, column = _at(text, index)
        message = f"the character U+{ord(text[index]):04X} cannot be seen and has no place in a recipe"
        raise InputError([Problem(message, file, line, column, "remove it")])
    return text


def _at(text: str, index: int) -> Position:
    """The position of character `index` of `text`."""
    starts = [0, *(match.end() for match in _BREAK.finditer(text, 0, index))]
    return len(starts), index - starts[-1] + 1


def complaint(error: MarkedYAMLError, text: str) -> tuple[Position, str, str | None]:
    """Where and what the parser found, in words a person can act on, and a hint."""
    lines = _BREAK.split(text)
    place, opening = _clamp(error.problem_mark or error.context_mark, lines), _clamp(error.context_mark, lines)
    begin = f"line {opening[0]}, column {opening[1]}"
    problem, context = str(error.problem or error.context), str(error.context)
    before = lines[place[0] - 1][: place[1]]
    if "cannot start any token" in problem:
        if "\t" in before:
            return place, "a tab cannot indent YAML", "indent with spaces"
        return place, f"a value cannot start with '{before[-1:]}'", "put it in quotes"
    if "mapping values are not allowed" in problem:
        return place, "a ':' cannot stand here", "check the indentation, and put text that holds ': ' in quotes"
    if "could not find expected ':'" in problem:
        return opening, "there is no ':' after this key", "write key: value, and check the indentation"
    if "end of stream" in problem and "scalar" in context:
        return opening, "the quote opened here is never closed", "close it"
    if "node content" in problem:
        return place, "a value is missing here", "write it; in quotes if it begins with , ] } or :"
    if "expected ','" in problem:
        return place, f"expected ',' or the closing bracket of what opens at {begin}", "close it, or add the comma"
    if "did not find expected key" in problem or "expected <block end>" in problem:
        hint = "align it with the lines above, and check quotes and brackets"
        return place, "this does not fit the block it is in", hint
    if "document start" in problem:
        return place, "the recipe has ended before this line", "align it with the first key of the file"
    if "directive" in problem or "directive" in context:
        return place, f"is not YAML: {problem}", "remove the line that begins with %"
    return place, f"is not YAML: {problem}" + (f" ({context}, from {begin})" if error.context else ""), None


def _clamp(mark: Mark | None, lines: list[str]) -> Position:
    """The position of `mark`, which the parser may put behind the end of the file."""
    if mark is None:
        return 1, 1
    if mark.line >= len(lines):
        return len(lines), len(lines[-1]) + 1
    return mark.line + 1, mark.column + 1
