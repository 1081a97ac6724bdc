"""What a recipe calls data → the selected samples as one byte stream, for each role of a step.

A stream is what steps are given and what keys are made of: exactly the samples used, in ascending order of index.
Nothing here needs NumPy, Pillow or TensorFlow, save for arrays in Fortran order: planning must not import them.
"""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from trtrecipe.data import container, records, tables
from trtrecipe.data.errors import LFS_POINTER, DataError, chosen, lfs_pointer
from trtrecipe.data.npy import Header, header_bytes, stream_array
from trtrecipe.data.patterns import matching
from trtrecipe.data.sampling import Sampling

STREAM = 2
"""Version of the streams: raised when the same data and sampling give other bytes, or are newly refused."""

ALL_INPUTS = "data.*"
"""The role of a stream that holds the samples of every input; any other is "data." and an input's name, or "label"."""

_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class ArrayData:
    """An .npy file, or the array `member` of an .npz file, samples along the first axis → .npy."""

    path: Path
    member: str | None


@dataclass(frozen=True, slots=True)
class FileData:
    """One file per sample: those that match `pattern` below `folder` → `container`. `form`: images or raw."""

    folder: Path
    pattern: str
    form: str


@dataclass(frozen=True, slots=True)
class LabelData:
    """The numbers that a text file gives to the files that match `pattern` below `folder` → .npy."""

    folder: Path
    pattern: str
    path: Path


@dataclass(frozen=True, slots=True)
class ColumnData:
    """A column of a CSV file: files, named relative to it → `container`; or `numbers` → .npy."""

    path: Path
    column: str
    numbers: bool


@dataclass(frozen=True, slots=True)
class RecordData:
    """The records of the TFRecord files that match `pattern` below `folder` → `records`.

    `features`: pairs of an input, or label, and the name of its feature.
    """

    folder: Path
    pattern: str
    features: tuple[tuple[str, str], ...]


Data = ArrayData | FileData | LabelData | ColumnData | RecordData
_FORMS: Mapping[str, Callable[..., Data]] = {
    kind.__name__: kind for kind in (ArrayData, FileData, LabelData, ColumnData, RecordData)
}
_PATHS = ("path", "folder")


def to_json(data: Data) -> dict[str, Any]:
    """As plain JSON, with absolute paths, for another process."""
    fields = {name: str(value.absolute()) if name in _PATHS else value for name, value in asdict(data).items()}
    return {"kind": type(data).__name__, **fields}


def from_json(value: Mapping[str, Any]) -> Data:
    """What `to_json` was given."""
    fields: dict[str, Any] = {
        name: Path(item) if name in _PATHS else item for name, item in value.items() if name != "kind"
    }
    if "features" in fields:
        fields["features"] = tuple((name, feature) for name, feature in fields["features"])
    return _FORMS[value["kind"]](**fields)


def in_words(data: Data) -> str:
    """What a person would call it."""
    if isinstance(data, ArrayData):
        return data.member or data.path.name
    if isinstance(data, ColumnData):
        return f"{data.column} in {data.path.name}"
    return data.path.name if isinstance(data, LabelData) else data.pattern


def used_files(data: Data, sampling: Sampling) -> tuple[list[str], list[str]]:
    """What the samples depend on: the names that their order is made from, and the files that are read.

    Raises DataError, OSError.
    """
    if isinstance(data, ArrayData):
        return [], [str(data.path)]
    if isinstance(data, ColumnData):
        return [], [str(data.path), *(str(path) for _, path in _listed(data, sampling))]
    top, names = matching(data.folder, data.pattern)
    if isinstance(data, LabelData):
        return names, [str(data.path)]
    if isinstance(data, RecordData):
        return names, [f"{top}/{name}" for name in names]
    return names, [f"{top}/{names[index]}" for index in chosen(len(names), sampling, data.pattern)]


def digest_samples(data: Data, sampling: Sampling) -> str:
    """SHA-256 of the stream of the selected samples. Raises DataError, OSError."""
    digest = hashlib.sha256()
    for piece in _stream(data, sampling)[1]:
        digest.update(piece)
    return digest.hexdigest()


def write_samples(data: Data, sampling: Sampling, out: Path) -> str:
    """Write the stream of the selected samples to `out` and their names beside it; its SHA-256.

    Raises DataError, OSError.
    """
    digest = hashlib.sha256()
    names, pieces = _stream(data, sampling)
    with out.open("xb") as file:
        for piece in pieces:
            digest.update(piece)
            file.write(piece)
    if names:
        container.write_names(out, names)
    return digest.hexdigest()


def _stream(data: Data, sampling: Sampling) -> tuple[list[str], Iterator[bytes]]:
    """What the samples are called where they have names, and the stream in pieces."""
    if isinstance(data, ArrayData):
        return [], stream_array(data.path, data.member, sampling)
    if isinstance(data, LabelData):
        names = matching(data.folder, data.pattern)[1]
        values = tables.labels(data.path, names)
        return [], _numbers([values[index] for index in chosen(len(values), sampling, data.pattern)])
    if isinstance(data, RecordData):
        return _records(data, sampling)
    if isinstance(data, ColumnData):
        entries = tables.column(data.path, data.column)
        if data.numbers:
            used = [entries[index] for index in chosen(len(entries), sampling, data.path.name)]
            return [], _numbers(tables.numbers(data.path, used, data.column))
        files, form = _listed(data, sampling), "files"
    else:
        top, names = matching(data.folder, data.pattern)
        files, form = [(names[i], top / names[i]) for i in chosen(len(names), sampling, data.pattern)], data.form
    return [name for name, _ in files], _files(files, form)


def _listed(data: ColumnData, sampling: Sampling) -> list[tuple[str, Path]]:
    """The selected files of a CSV column: as they are written there, and their paths."""
    entries = tables.column(data.path, data.column)
    used = [entries[index] for index in chosen(len(entries), sampling, data.path.name)]
    if data.numbers:
        return []
    for line, name in used:
        path = data.path.parent / name
        if not path.is_file():
            what = "is no plain file" if os.path.lexists(path) else "does not exist"
            raise DataError(
                f"{data.path.name}:{line}: {name[:200]} {what}", f"files are looked for in {data.path.parent}"
            )
    return [(name, data.path.parent / name) for _, name in used]


def _files(files: Sequence[tuple[str, Path]], form: str) -> Iterator[bytes]:
    sizes = [path.stat().st_size for _, path in files]
    empty = next((name for (name, _), size in zip(files, sizes, strict=True) if not size), None)
    if empty is not None:
        raise DataError(f"{empty} is empty", "remove it, or copy it again")
    yield container.head(form, sizes)
    for (name, path), size in zip(files, sizes, strict=True):
        read = 0
        with path.open("rb") as file:
            while piece := file.read(_PIECE):
                if not read and piece.startswith(LFS_POINTER):
                    raise lfs_pointer(name)
                read += len(piece)
                yield piece
        if read != size:
            raise DataError(f"{name} changed while it was read", "build again once it is at rest")


def _records(data: RecordData, sampling: Sampling) -> tuple[list[str], Iterator[bytes]]:
    top, names = matching(data.folder, data.pattern)
    shards = [records.scan(name, top / name) for name in names]
    firsts = [*accumulate((len(shard.starts) for shard in shards), initial=0)]
    if not firsts[-1]:
        raise DataError(f"the files that match {data.pattern} hold no record", "write at least one")
    used = []
    for index in chosen(firsts[-1], sampling, data.pattern):
        number = bisect_right(firsts, index) - 1
        used.append((shards[number], index - firsts[number]))

    def pieces() -> Iterator[bytes]:
        yield records.head(len(used), dict(data.features))
        for shard, number in used:
            yield from records.copy(shard, number)

    return [f"record {number} of {shard.name}" for shard, number in used], pieces()


def _numbers(values: Sequence[tables.Number]) -> Iterator[bytes]:
    import struct

    whole = all(isinstance(value, int) for value in values)
    yield header_bytes(Header("<i8" if whole else "<f8", len(values), (), False), len(values))
    yield struct.pack(f"<{len(values)}{'q' if whole else 'd'}", *values)
