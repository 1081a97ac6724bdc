"""An ONNX model with more values than a protobuf message holds: its graph and its values, two files in one.

MAGIC, the length of the header as 8 little-endian bytes, the header as canonical JSON {"files": [{"name", "start",
"size", "sha256"}, …]} padded to _HEAD bytes, then the two files, each from its "start" on. The graph is an ONNX model
whose large tensors lie in the second file (docs/ExternalData.md of onnx v1.18.0), so that the two are a model that any
tool reads once they lie in one folder, and one that ours read where they are. Light: what is placed and fetched is told
so. Steps hold a model in one plain file wherever it fits (LIMIT), so that its bytes do not change.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import IO

from trtrecipe.digest import CHUNK, canonical_json
from trtrecipe.formats import LARGEST_PROTOBUF

MAGIC = b"TRTRONX1"
LIMIT = LARGEST_PROTOBUF
"""Bytes that a model may have in one plain file."""
SMALL = 1024
"""Elements up to which a tensor stays in the graph in any case: what shapes are computed from is far smaller."""
ALIGNED = 4096
"""Bytes of which the place of a tensor is a multiple, so that it can be mapped into memory; and the fewest it has."""
_HEAD = 4096


@dataclass(frozen=True)
class File:
    """One of the two: `size` bytes from `start` on."""

    name: str
    start: int
    size: int
    sha256: str


@dataclass(frozen=True)
class Values:
    """`size` bytes at the place `start` of the second file, as `read` gives them, which is called once."""

    start: int
    size: int
    read: Iterable[bytes | memoryview]


def data_name(name: str) -> str:
    """What the second file is called, beside a graph of that name."""
    return f"{name}.data"


def lies_outside(elements: int, size: int) -> bool:
    """Whether a tensor of so many elements and bytes belongs into the second file."""
    return elements > SMALL and size >= ALIGNED


def after(place: int) -> int:
    """Where the next tensor may begin."""
    return math.ceil(place / ALIGNED) * ALIGNED


def files(path: Path) -> tuple[File, File] | None:
    """The graph and its values, where the file at `path` is such a model; None for any other. Raises OSError."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if not head.startswith(MAGIC):
        return None
    (length,) = struct.unpack_from("<Q", head, len(MAGIC))
    start = len(MAGIC) + 8
    graph, values = (File(**entry) for entry in json.loads(head[start : start + length])["files"])
    return graph, values


def write(path: Path, name: str, graph: bytes, values: Iterable[Values]) -> None:
    """Write both files to `path`; the graph, called `name`, says that its values lie in `data_name(name)`.

    `values` in the order of their places. What lies between them is zeros. Raises OSError.
    """
    start = after(_HEAD + len(graph))
    with path.open("wb") as writer:
        writer.write(bytes(_HEAD))
        writer.write(graph)
        writer.write(bytes(start - _HEAD - len(graph)))
        digest = hashlib.sha256()
        at = 0
        for each in values:
            for chunk in chain((bytes(each.start - at),), each.read):
                writer.write(chunk)
                digest.update(chunk)
            at = each.start + each.size
        entries = (
            File(name, _HEAD, len(graph), hashlib.sha256(graph).hexdigest()),
            File(data_name(name), start, at, digest.hexdigest()),
        )
        header = canonical_json({"files": [asdict(entry) for entry in entries]})
        writer.seek(0)
        writer.write(MAGIC + struct.pack("<Q", len(header)) + header)


def unpack(path: Path, folder: Path, name: str) -> dict[str, Path]:
    """Name → file of a model of any form: both, copied into `folder`, or the plain file at `path` itself as `name`.

    Raises OSError.
    """
    held = files(path)
    if held is None:
        return {name: path}
    for file in held:
        copy(path, file, folder / file.name)
    return {file.name: folder / file.name for file in held}


def copy(path: Path, file: File, target: Path) -> str:
    """Copy one of the files at `path` to `target`; the SHA-256 of what was copied. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as reader, target.open("xb") as writer:
        for chunk in pieces(reader, file.start, file.size):
            writer.write(chunk)
            digest.update(chunk)
    return digest.hexdigest()


def pieces(reader: IO[bytes], start: int, size: int) -> Iterator[bytes]:
    """The bytes from `start` on, in chunks; fewer where the file ends before."""
    reader.seek(start)
    while size and (chunk := reader.read(min(size, CHUNK))):
        yield chunk
        size -= len(chunk)
