"""Files by pattern, in an order that depends on their names alone.

`*`, `?` and `[…]` match within one name, `**` any number of folders; names are compared with their case. Names that
begin with a dot are matched only by a part that does, too. `**` does not go through links to folders, which may lead in
circles; a link to a file stands for the file. Folders are passed over, anything that is neither a folder nor a plain
file is refused.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
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


def matching(folder: Path, pattern: str) -> list[tuple[str, Path]]:
    """Each file as (its path below the pattern's fixed folder, its path), by the UTF-8 bytes of the first.

    Raises DataError when there is none, or for one that is no plain file or has a name that is not UTF-8; OSError for a
    folder that cannot be read.
    """
    top, parts = split(folder, pattern)
    try:
        found = dict(find(folder, pattern))
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"no file matches {pattern}: there is no folder {top}", "check the path") from None
    if not found:
        raise DataError(f"no file matches {pattern}", _there(top) if len(parts) == 1 else "check the pattern")
    return sorted(found.items(), key=lambda item: item[0].encode())


def find(folder: Path, pattern: str) -> Iterator[tuple[str, Path]]:
    """What `matching` sorts, as it is found; a file may come twice. Raises the same errors, but for finding none."""
    top, parts = split(folder, pattern)
    if parts[-1] == "**":
        parts = (*parts, "*")
    waiting: list[tuple[Path, str, int]] = [(top, "", 0)]
    seen = set(waiting)
    while waiting:
        parent, prefix, number = waiting.pop()
        part, last = parts[number], number == len(parts) - 1
        more = [(parent, prefix, number + 1)] if part == "**" else []
        with os.scandir(parent) as entries:
            for entry in entries:
                if not _matches(entry.name, part):
                    continue
                name = _name(parent, prefix, entry.name)
                if part == "**":
                    if entry.is_dir(follow_symlinks=False):
                        more.append((parent / entry.name, f"{name}/", number))
                elif entry.is_dir():
                    if not last:
                        more.append((parent / entry.name, f"{name}/", number + 1))
                elif not entry.is_file():
                    raise DataError(f"{entry.path} is no plain file", "put a copy of the file there")
                elif last:
                    yield name, parent / entry.name
        waiting += [each for each in more if each not in seen]
        seen.update(more)


def _matches(name: str, part: str) -> bool:
    if name.startswith(".") and not part.startswith("."):
        return False
    return part == "**" or (re.fullmatch(translate(part), name) is not None)


def _name(parent: Path, prefix: str, name: str) -> str:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise DataError(f"{parent} holds {os.fsencode(name)!r}, which is no UTF-8 name", "rename it") from None
    return prefix + name


def _there(folder: Path) -> str:
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries)
    if not names:
        return f"{folder} is empty"
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{folder} holds {', '.join(names[:_SHOWN])}{more}"
