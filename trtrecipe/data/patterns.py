"""Files by pattern, in an order that depends on their names alone.

`*`, `?` and `[…]` match within one name, `**` any number of folders; names are compared with their case. Names that
begin with a dot are matched only by a part that does, too. `**` does not go through links to folders, which may lead in
circles; a link to a file stands for the file. Folders are passed over, anything that is neither a folder nor a plain
file is refused.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from fnmatch import translate
from pathlib import Path, PurePosixPath

from trtrecipe.data.errors import DataError

_MAGIC = re.compile(r"[*?[]")
_SHOWN = 3


def split(folder: Path, pattern: str) -> tuple[Path, tuple[str, ...]]:
    """The folder that the pattern names outright, and the parts that are matched below it: at least the last one."""
    parts = PurePosixPath(pattern).parts
    fixed = next((number for number, part in enumerate(parts) if _MAGIC.search(part)), len(parts))
    fixed = min(fixed, len(parts) - 1)
    return folder.joinpath(*parts[:fixed]), parts[fixed:]


def matching(folder: Path, pattern: str) -> tuple[Path, list[str]]:
    """The pattern's fixed folder, and the paths below it of the files that match, by their UTF-8 bytes.

    Raises DataError when there is none, or for one that is no plain file or has a name that is not UTF-8; OSError for a
    folder that cannot be read.
    """
    top, parts = split(folder, pattern)
    try:
        found = _found(top, (*parts, "*") if parts[-1] == "**" else parts)
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"no file matches {pattern}: there is no folder {top}", "check the path") from None
    if not found:
        raise DataError(f"no file matches {pattern}", _there(top) if len(parts) == 1 else "check the pattern")
    try:
        return top, sorted(found, key=str.encode)
    except UnicodeEncodeError as error:
        name = os.fsencode(str(error.object))
        raise DataError(f"{top} holds {name!r}, which is no UTF-8 name", "rename it") from None


def _found(top: Path, parts: Sequence[str]) -> set[str]:
    match = [None if part == "**" else re.compile(translate(part)).match for part in parts]
    hidden = [part.startswith(".") for part in parts]
    found: set[str] = set()
    waiting = [("", 0)]
    seen = set(waiting)
    while waiting:
        prefix, number = waiting.pop()
        fits, last = match[number], number == len(parts) - 1
        more = [(prefix, number + 1)] if fits is None else []
        with os.scandir(top / prefix) as entries:
            for entry in entries:
                name = entry.name
                if (name[0] == "." and not hidden[number]) or (fits is not None and not fits(name)):
                    continue
                if fits is None:
                    if entry.is_dir(follow_symlinks=False):
                        more.append((f"{prefix}{name}/", number))
                elif entry.is_dir():
                    if not last:
                        more.append((f"{prefix}{name}/", number + 1))
                elif not entry.is_file():
                    raise DataError(f"{entry.path} is no plain file", "put a copy of the file there")
                elif last:
                    found.add(prefix + name)
        waiting += [each for each in more if each not in seen]
        seen.update(more)
    return found


def _there(folder: Path) -> str:
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries)
    if not names:
        return f"{folder} is empty"
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{folder} holds {', '.join(names[:_SHOWN])}{more}"
