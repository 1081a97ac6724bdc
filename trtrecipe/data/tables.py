"""Text files that say something of samples: labels of files, and CSV lists of files."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

from trtrecipe.data.errors import LFS_POINTER, DataError, lfs_pointer

Number = int | float

_LIMIT = 256 << 20
_WHOLE = re.compile(r"[+-]?[0-9]{1,30}")


def labels(path: Path, names: Sequence[str]) -> list[Number]:
    """A number for each of the files `names` (POSIX paths), in their order.

    The file has one line for each: its name and a number, apart by a comma or blanks; or all lines are a number alone,
    in the order of the files. A name is the file's path below the pattern's folder, or the last parts of it. Empty
    lines and lines that begin with # are passed over. Raises DataError naming the line, OSError.
    """
    lines = [
        (number, line.strip())
        for number, line in enumerate(_text(path).splitlines(), 1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    if all(re.search(r"[\s,]", line) is None for _, line in lines):
        return _in_order(path, lines, names)
    ending: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        ending.setdefault(name.rpartition("/")[2], []).append(index)
    found: dict[int, tuple[Number, int]] = {}
    for number, line in lines:
        name, value = _named(path, number, line)
        index = _which(path, number, name, names, ending)
        if index in found:
            raise DataError(
                f"{path.name}:{number}: {names[index]} has its label in line {found[index][1]} already", "remove one"
            )
        found[index] = _number(value, f"{path.name}:{number}: the label of {name}"), number
    without = [name for index, name in enumerate(names) if index not in found]
    if without:
        more = f", and {len(without) - 1} more" if len(without) > 1 else ""
        raise DataError(f"{path.name} has no label for {without[0]}{more}", "add a line for each file")
    return [found[index][0] for index in range(len(names))]


def column(path: Path, name: str) -> list[tuple[int, str]]:
    """The entries of a column of a CSV file with commas and a header line, each with its line number.

    Raises DataError, OSError.
    """
    import csv  # costs start-up more than the rest of this module

    found: list[tuple[int, str]] = []
    reader = csv.reader(_text(path).splitlines(keepends=True), strict=True)
    try:
        header = [entry.strip() for entry in next(reader, [])]
        if name not in header:
            raise _no_column(path, name, header)
        if header.count(name) > 1:
            raise DataError(f"{path.name}:1: there are two columns {name}", "rename one", field="array")
        place = header.index(name)
        for row in reader:
            if not row:
                continue
            if len(row) != len(header):
                raise DataError(
                    f"{path.name}:{reader.line_num}: {len(row)} entries, and the header has {len(header)}",
                    "put entries with a comma in quotes",
                )
            if not row[place].strip():
                raise DataError(f"{path.name}:{reader.line_num}: the column {name} is empty", "fill it in")
            found.append((reader.line_num, row[place].strip()))
    except csv.Error as error:
        raise DataError(f"{path.name}:{reader.line_num}: {error}", "write it as comma-separated values") from None
    if not found:
        raise DataError(f"{path.name} has no line below its header", "add one for each sample")
    return found


def numbers(path: Path, entries: Sequence[tuple[int, str]], name: str) -> list[Number]:
    """The entries of a column as numbers. Raises DataError."""
    return [_number(entry, f"{path.name}:{line}: the column {name}") for line, entry in entries]


def _text(path: Path) -> str:
    if path.stat().st_size > _LIMIT:
        raise DataError(f"{path.name} is larger than {_LIMIT >> 20} MiB", "is it the right file?")
    data = path.read_bytes()
    if data.startswith(LFS_POINTER):
        raise lfs_pointer(path.name)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(f"{path.name}:{line}: this is no UTF-8 text", "save the file as UTF-8") from None
    if "\0" in text:
        raise DataError(f"{path.name} is no text: it holds a zero byte", "is it the right file?")
    return text


def _in_order(path: Path, lines: Sequence[tuple[int, str]], names: Sequence[str]) -> list[Number]:
    values = [_number(line, f"{path.name}:{number}: the label") for number, line in lines]
    if len(values) != len(names):
        raise DataError(
            f"{path.name} has {len(values)} labels, and {len(names)} files match",
            "give one number a line for each file in the order of their names, or name the file in each line",
        )
    return values


def _named(path: Path, number: int, line: str) -> tuple[str, str]:
    name, _, value = line.rpartition(",") if "," in line else _at_blank(line)
    name = name.strip().strip('"')
    if not name:
        raise DataError(
            f"{path.name}:{number}: '{line[:60]}' names no file, and other lines do", "write NAME NUMBER in each line"
        )
    return name, value.strip()


def _at_blank(line: str) -> tuple[str, str, str]:
    *name, value = line.rsplit(None, 1)
    return "".join(name), " ", value


def _which(path: Path, number: int, name: str, names: Sequence[str], ending: dict[str, list[int]]) -> int:
    wanted = name.removeprefix("./")
    found = [
        index
        for index in ending.get(wanted.rpartition("/")[2], ())
        if names[index] == wanted or names[index].endswith(f"/{wanted}")
    ]
    exact = [index for index in found if names[index] == wanted]
    if len(exact or found) == 1:
        return (exact or found)[0]
    if found:
        raise DataError(
            f"{path.name}:{number}: {name} may be {names[found[0]]} or {names[found[1]]}",
            "write the path as far as it tells them apart",
        )
    from difflib import get_close_matches

    close = get_close_matches(wanted, names[:1000], 1)
    hint = f"did you mean {close[0]}?" if close else f"the files are {names[0]} …, named as below the pattern's folder"
    raise DataError(f"{path.name}:{number}: no file is called {name[:100]}", hint)


def _number(text: str, what: str) -> Number:
    try:
        value: Number = int(text) if _WHOLE.fullmatch(text) else float(text)
    except ValueError:
        raise DataError(f"{what} is '{text[:60]}', not a number", "give class indices or target values") from None
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        raise DataError(f"{what} is {text[:60]}, more than 64 bits hold", "give class indices or target values")
    if not math.isfinite(value):
        raise DataError(f"{what} is {text[:60]}", "give finite numbers")
    return value


def _no_column(path: Path, name: str, header: Sequence[str]) -> DataError:
    from difflib import get_close_matches

    close = get_close_matches(name, header, 1)
    hint = f"did you mean {close[0]}?" if close else "its first line must name the columns, apart by commas"
    return DataError(f"{path.name} has no column {name}; it has {', '.join(header)[:200] or 'none'}", hint, "array")
