"""ONNX models whose values lie in other files: which files, whether they hold what the model says, and all in one file.

Light, as it is asked whenever a build is planned: the model's file is walked field by field and values are skipped.
Field numbers: onnx/onnx.proto at v1.18.0. What entries mean: docs/ExternalData.md of the same release.
"""

from __future__ import annotations

import collections
import mmap
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod
from pathlib import Path, PurePosixPath

from trtrecipe import parted, wire
from trtrecipe.formats import FormatError, is_lfs_pointer

MESSAGES: Mapping[str, Mapping[int, str]] = {
    "ModelProto": {7: "GraphProto", 25: "FunctionProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: "TensorProto",
        6: "GraphProto",
        10: "TensorProto",
        11: "GraphProto",
        22: "SparseTensorProto",
        23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
}
"""Message → field → the message in it, as far as they lead to tensors."""
DIMS, DATA_TYPE, NAME, RAW_DATA, EXTERNAL_DATA, DATA_LOCATION = 1, 2, 8, 9, 13, 14  # of TensorProto
EXTERNAL = 1  # of TensorProto.DataLocation
BITS: Mapping[int, int] = {
    **dict.fromkeys((2, 3, 9, 17, 18, 19, 20, 24), 8),
    **dict.fromkeys((4, 5, 10, 16), 16),
    **dict.fromkeys((1, 6, 12), 32),
    **dict.fromkeys((7, 11, 13, 14), 64),
    15: 128,
    **dict.fromkeys((21, 22, 23), 4),
    **dict.fromkeys((25, 26), 2),
}
"""TensorProto.DataType → bits of an element; strings have no fixed number and are never external."""

_MARK = b"\x0a\x08location"
"""How the key of the entry that names a file is always written."""
_GRAPH = "model.onnx"  # what the graph of a fetched model is called
_LONGEST = 4096  # bytes of a path
_DEEPEST = 100  # messages in one another; what protobuf takes
_AGAIN = "save the model again: onnx.save(model, 'model.onnx', save_as_external_data=True)"
_COPY = "copy it again with all its files, or compare their sizes with the original's"


@dataclass(frozen=True)
class Part:
    """The bytes `start` to `end` of the file `location`, the `elements` of `tensor`. "" is the model's own file."""

    location: str
    start: int
    end: int
    tensor: str = ""
    elements: int = 0


@dataclass
class _Left:
    """Which parts stay outside the graph, each once, where in a file called `name`; it ends at `end`."""

    name: str
    starts: dict[tuple[str, int, int], int] = field(default_factory=dict)
    end: int = 0

    def start(self, part: Part) -> int:
        """Where the part begins in that file."""
        found = self.starts.setdefault((part.location, part.start, part.end), parted.after(self.end))
        self.end = max(self.end, found + part.end - part.start)
        return found


_Piece = Part | bytes


def parts(path: Path) -> list[Part]:
    """What the ONNX model in the file `path` keeps in other files, by file and place.

    Raises FormatError for a file that is cut short, locations outside its folder, sizes that do not fit the tensors,
    and bytes that several tensors share in part. Raises OSError.
    """
    found = [piece for piece in _pieces(path) if isinstance(piece, Part) and piece.location]
    found.sort(key=lambda part: (part.location, part.start, part.end, part.tensor))
    _require_apart(found, path)
    return found


def needed(found: Sequence[Part]) -> dict[str, int]:
    """File, relative to the model's folder → how many bytes it has at least."""
    sizes: dict[str, int] = {}
    for part in found:
        sizes[part.location] = max(sizes.get(part.location, 0), part.end)
    return sizes


def require_there(path: Path, sizes: Mapping[str, int]) -> None:
    """Check that the files `sizes` (`needed`'s) lie beside the model in `path`, plain and long enough.

    Raises FormatError. Raises OSError for what cannot be read.
    """
    for location, size in sizes.items():
        what = f"{path} keeps values in {location}"
        for folder in list(PurePosixPath(location).parents)[:-1]:
            if (path.parent / folder).is_symlink():
                raise FormatError(f"{what}, and {folder} is a link", "put a copy of the folder there")
        file = path.parent / location
        try:
            found = os.lstat(file)
        except (FileNotFoundError, NotADirectoryError):
            raise FormatError(f"{what}, which is not there", _COPY) from None
        if stat.S_ISLNK(found.st_mode):
            raise FormatError(f"{what}, which is a link", "put a copy of the file there")
        if not stat.S_ISREG(found.st_mode):
            raise FormatError(f"{what}, which is no file", _COPY)
        if found.st_size < 1024 and is_lfs_pointer(file.read_bytes()):
            raise FormatError(f"{file} is a Git LFS pointer, not the model's values", "run: git lfs pull")
        if found.st_size < size:
            raise FormatError(f"{path} needs {size:,} bytes of {location}, which has {found.st_size:,}", _COPY)


def write_in_one(path: Path, target: Path) -> None:
    """Write the ONNX model in `path` with all its values to `target`: as a plain file, or as `parted` has it where they
    are too many. Where its files end and what they are called is lost.

    Raises as `parts` and `require_there`.
    """
    require_there(path, needed(parts(path)))
    pieces = _pieces(path)
    if _size(pieces) > parted.LIMIT:
        _write_parted(path, target)
        return
    with target.open("wb") as writer:
        for chunk in _content(path, pieces):
            writer.write(chunk)


def _write_parted(path: Path, target: Path) -> None:
    left = _Left(parted.data_name(_GRAPH))
    pieces = _pieces(path, left)
    if _size(pieces) > parted.LIMIT:
        raise FormatError(
            f"{path} has {_size(pieces):,} bytes beside its large constants, and no reader of protobuf takes more than "
            f"{parted.LIMIT:,}",
            "export it in parts",
        )
    values = (
        parted.Values(start, end - begin, _content(path, [Part(location, begin, end)]))
        for (location, begin, end), start in left.starts.items()
    )
    parted.write(target, _GRAPH, b"".join(_content(path, pieces)), values)


def _content(path: Path, pieces: Sequence[_Piece]) -> Iterator[bytes]:
    """The bytes of the pieces, in chunks."""
    for piece in pieces:
        if isinstance(piece, bytes):
            yield piece
            continue
        source = path.parent / piece.location if piece.location else path
        left = piece.end - piece.start
        with source.open("rb") as reader:
            for chunk in parted.pieces(reader, piece.start, left):
                left -= len(chunk)
                yield chunk
        if left:
            raise FormatError(f"{source} changed while it was read", "build again")


def _pieces(path: Path, left: _Left | None = None) -> list[_Piece]:
    """What makes the model in one file, in order; but for what is `left` outside, which this adds to."""
    if not path.stat().st_size:
        return []
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        whole = Part("", 0, len(data))
        try:
            collections.deque(wire.fields(data, 0, len(data)), maxlen=0)
        except wire.DamagedError:
            raise FormatError(f"{path} is cut short, or damaged", _COPY) from None
        if data.find(_MARK) < 0:
            return [whole]
        try:
            return _folded(data, "ModelProto", whole, path, left) or [whole]
        except wire.DamagedError:
            raise FormatError(f"{path} is damaged: what is in it does not fit together", _COPY) from None


def _folded(
    data: mmap.mmap, message: str, span: Part, path: Path, left: _Left | None, depth: int = 0
) -> list[_Piece] | None:
    """The message with the values that lie elsewhere; None where it has none."""
    if message == "TensorProto":
        return _folded_tensor(data, span, path, left)
    if depth > _DEEPEST:
        raise wire.DamagedError
    pieces: list[_Piece] = []
    copied = before = span.start
    for number, kind, start, end in wire.fields(data, span.start, span.end):
        inner = MESSAGES[message].get(number) if kind == wire.LENGTH else None
        folded = None
        if inner == "TensorProto" or (inner is not None and data.find(_MARK, start, end) >= 0):
            folded = _folded(data, inner, Part("", start, end), path, left, depth + 1)
        if folded is not None:
            pieces += [Part("", copied, before), wire.head(number, _size(folded)), *folded]
            copied = end
        before = end
    return [*pieces, Part("", copied, span.end)] if pieces else None


def _folded_tensor(data: mmap.mmap, span: Part, path: Path, left: _Left | None) -> list[_Piece] | None:
    outside = _part(data, span.start, span.end, path)
    if outside is None:
        return None
    pieces: list[_Piece] = []
    before = span.start
    for number, _, _, end in wire.fields(data, span.start, span.end):
        if number not in (RAW_DATA, EXTERNAL_DATA, DATA_LOCATION):
            pieces.append(Part("", before, end))
        before = end
    size = outside.end - outside.start
    if left is None or not parted.lies_outside(outside.elements, size):
        return [*pieces, wire.head(RAW_DATA, size), outside]
    entries = {"location": left.name, "offset": str(left.start(outside)), "length": str(size)}
    for key, value in entries.items():
        entry = wire.text(1, key) + wire.text(2, value)
        pieces.append(wire.head(EXTERNAL_DATA, len(entry)) + entry)
    return [*pieces, wire.number(DATA_LOCATION, EXTERNAL)]


def _size(pieces: Sequence[_Piece]) -> int:
    return sum(len(piece) if isinstance(piece, bytes) else piece.end - piece.start for piece in pieces)


def _part(data: mmap.mmap, start: int, end: int, path: Path) -> Part | None:
    dims: list[int] = []
    entries: dict[str, str] = {}
    name, element, place = "", 0, 0
    for number, kind, a, b in wire.fields(data, start, end):
        if number == DIMS:
            dims += wire.packed(data, a, b) if kind == wire.LENGTH else [a]
        elif number == DATA_TYPE and kind == wire.VARINT:
            element = a
        elif number == DATA_LOCATION and kind == wire.VARINT:
            place = a
        elif number == NAME and kind == wire.LENGTH:
            name = data[a : min(b, a + _LONGEST)].decode(errors="replace")
        elif number == EXTERNAL_DATA and kind == wire.LENGTH:
            key, value = _entry(data, a, b)
            entries[key] = value
    if place != EXTERNAL:
        return None
    what = f"{path} keeps the values of {name or 'a constant'}"
    location = entries.get("location", "")
    _require_inside(location, what)
    if location == path.name:
        raise FormatError(f"{what} in the graph's own file", _AGAIN)
    if element not in BITS:
        raise FormatError(f"{what} in {location}, and their type cannot be kept so", _AGAIN)
    size = -(-prod(dims) * BITS[element] // 8)
    begin, length = _number(entries, "offset", 0, what), _number(entries, "length", size, what)
    if length != size:
        raise FormatError(f"{what} in {length:,} bytes of {location}, and its shape {dims} takes {size:,}", _AGAIN)
    return Part(location, begin, begin + size, name, prod(dims))


def _entry(data: mmap.mmap, start: int, end: int) -> tuple[str, str]:
    found = {1: "", 2: ""}
    for number, kind, a, b in wire.fields(data, start, end):
        if number in found and kind == wire.LENGTH:
            try:
                found[number] = data[a : min(b, a + _LONGEST)].decode()
            except UnicodeDecodeError:
                raise wire.DamagedError from None
    return found[1], found[2]


def _number(entries: Mapping[str, str], key: str, default: int, what: str) -> int:
    text = entries.get(key)
    if text is None:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise FormatError(f"{what} elsewhere, and the {key} there is {text[:40]!r}", _AGAIN)
    return int(text)


def _require_inside(location: str, what: str) -> None:
    if not location or "\0" in location or not PurePosixPath(location).parts:
        raise FormatError(f"{what} elsewhere, and does not say in which file", _AGAIN)
    if location.startswith("/") or ".." in PurePosixPath(location).parts or "\\" in location or location[1:2] == ":":
        raise FormatError(
            f"{what} in {location[:200]}: only files under its own folder are read",
            "put the file beside the model, and " + _AGAIN,
        )


def _require_apart(found: Sequence[Part], path: Path) -> None:
    """Refuse bytes that are part of two tensors. Two of the very same bytes are one constant that is used twice."""
    filled = [part for part in found if part.start < part.end]
    for one, two in pairwise(filled):
        apart = one.location != two.location or two.start >= one.end
        if not apart and (one.start, one.end) != (two.start, two.end):
            names = " and ".join(part.tensor or "a constant" for part in (one, two))
            raise FormatError(
                f"{path} gives {names} some of the same bytes of {one.location} ({two.start:,} to "
                f"{min(one.end, two.end):,})",
                _AGAIN,
            )
