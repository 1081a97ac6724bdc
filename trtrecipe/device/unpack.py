"""The result folder or archive that a bundle's build.py wrote. It comes from elsewhere: nothing in it is believed.

Of an archive's members only `result.json` and `files/<sha256>` are written, under those very names, whatever folder
they are said to lie in. The format is that of POSIX.1-1988 ("ustar"; pubs.opengroup.org, utility pax); extended headers
are passed over, links and devices refused.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import re
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from trtrecipe.device.link import Json
from trtrecipe.digest import sha256_file, sha256_json
from trtrecipe.errors import InputError

SCHEMA = "trtrecipe/result/v1"
LIST = "result.json"
LONGEST_LIST = 32 << 20
"""Bytes of result.json."""
MOST_MEMBERS = 10_000
MOST_BYTES = 64 << 30
MOST_GROWTH = 100, 64 << 20
"""An archive unpacks to no more than so many times its size, and so many bytes."""
_BLOCK = 512
_PIECE = 1 << 20
_NAME = re.compile(r"(?:\./)?(?:(?!\.\.?/)[^/\0]+/)?(result\.json|files/[0-9a-f]{64})")
_REGULAR, _FOLDER, _EXTENDED = (b"0", b"\0"), b"5", (b"x", b"g")
_AGAIN = "bring it over again, or run build.py there again"


class _Wrong(Exception):
    """What is wrong with it."""


def unpack(path: Path, into: Path) -> tuple[Path, Json]:
    """The folder with `result.json` and `files`, and what that says; an archive is unpacked below `into`.

    Every file is there in its size and with its digest. Raises InputError.
    """
    try:
        if path.is_dir():
            folder = path
        else:
            into.mkdir()
            (into / "files").mkdir()
            folder = into
            _unpack(path, into)
        content = _read_list(folder)
        files = content.get("files")
        if not isinstance(files, dict):
            raise _Wrong("its list names no files")
        for digest, size in files.items():
            _check(folder, digest, size)
    except _Wrong as wrong:
        raise InputError.of(f"{path}: {wrong}", _AGAIN) from None
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise InputError.of(f"{path} is damaged or cut short", _AGAIN) from None
    except OSError as error:
        raise InputError.of(f"{path} cannot be read: {error.strerror or error}") from None
    return folder, content


def _unpack(path: Path, into: Path) -> None:
    size = path.stat().st_size
    left = min(MOST_BYTES, max(size * MOST_GROWTH[0], MOST_GROWTH[1]))
    seen: set[str] = set()
    with contextlib.ExitStack() as stack:
        stream: BinaryIO = stack.enter_context(path.open("rb"))
        if stream.read(2) == b"\x1f\x8b":
            stream.seek(0)
            stream = stack.enter_context(gzip.GzipFile(fileobj=stream))  # type: ignore[assignment]  # it reads the same
        else:
            stream.seek(0)
        for number, (name, count) in enumerate(_members(stream)):
            left -= count + _BLOCK
            if number >= MOST_MEMBERS or left < 0 or (name == LIST and count > LONGEST_LIST):
                raise _Wrong("it unpacks to more than a result can be")
            if name is None:
                _take(stream, count, None)
                continue
            if name in seen:
                raise _Wrong(f"it holds {name} twice")
            seen.add(name)
            if count > shutil.disk_usage(into).free:
                raise _Wrong(f"there is no room for it in {into}")
            with (into / name).open("xb") as out:
                digest = _take(stream, count, out)
            if name != LIST and name != f"files/{digest}":
                raise _Wrong(f"{name} is damaged")


def _members(stream: BinaryIO) -> Iterator[tuple[str | None, int]]:
    """Name, None for what is passed over, and size of each member, whose content the caller takes off the stream."""
    while True:
        header = _exactly(stream, _BLOCK)
        if header == bytes(_BLOCK):
            return
        blank = header[:148] + b" " * 8 + header[156:]
        if header[257:262] != b"ustar" or _octal(header[148:156]) != sum(blank):
            raise _Wrong("it is no result of a bundle")
        kind, size = header[156:157], _octal(header[124:136])
        prefix, name = (
            field.partition(b"\0")[0].decode("utf-8", "replace") for field in (header[345:500], header[:100])
        )
        full = f"{prefix}/{name}" if prefix and header[257:263] == b"ustar\0" else name
        if kind in _EXTENDED or (kind in _REGULAR and os.path.basename(full).startswith("._")):  # noqa: PTH119 - no path yet
            yield None, size
        elif kind == _FOLDER:
            yield None, 0
        elif kind in _REGULAR and (found := _NAME.fullmatch(full)):
            yield found[1], size
        else:
            raise _Wrong(f"it holds {full[:200]!r}, which is no part of a result")


def _octal(field: bytes) -> int:
    text = field.strip(b" \0")
    if not re.fullmatch(b"[0-7]{1,12}", text):
        raise _Wrong("it is no result of a bundle")
    return int(text, 8)


def _exactly(stream: BinaryIO, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = stream.read(count - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data


def _take(stream: BinaryIO, count: int, out: BinaryIO | None) -> str:
    """Move a member's content to `out`, and pass over what fills its last block; the digest."""
    digest, left = hashlib.sha256(), count
    while left:
        piece = _exactly(stream, min(left, _PIECE))
        digest.update(piece)
        if out is not None:
            out.write(piece)
        left -= len(piece)
    _exactly(stream, -count % _BLOCK)
    return digest.hexdigest()


def _read_list(folder: Path) -> Json:
    """result.json, as it was written."""
    path = folder / LIST
    if path.is_symlink() or not path.is_file():
        raise _Wrong(f"it has no {LIST}: is it the result folder or archive that build.py wrote?")
    with path.open("rb") as source:
        text = source.read(LONGEST_LIST + 1)
    try:
        content = json.loads(text) if len(text) <= LONGEST_LIST else None
        rest = {name: value for name, value in content.items() if name != "sha256"} if content else {}
        if not content or sha256_json(rest) != content.get("sha256"):
            raise _Wrong(f"its {LIST} is damaged")
    except (AttributeError, TypeError, ValueError, RecursionError):
        raise _Wrong(f"its {LIST} is damaged") from None
    if content.get("schema") != SCHEMA:
        raise _Wrong(f"its form is {content.get('schema')!r}, and {SCHEMA} is what this release reads")
    return dict(content)


def _check(folder: Path, digest: object, size: object) -> None:
    if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
        raise _Wrong(f"its list names the file {digest!r}")
    path = folder / "files" / digest
    if path.is_symlink() or path.parent.is_symlink() or not path.is_file():
        raise _Wrong(f"files/{digest} is missing")
    if path.stat().st_size != size or sha256_file(path) != digest:
        raise _Wrong(f"files/{digest} is damaged")
