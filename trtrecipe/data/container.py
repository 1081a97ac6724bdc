"""One file that holds the files of all samples as they are, in order: what a step is given of images and raw files.

MAGIC, the header's length as 8 little-endian bytes, the header as canonical JSON {"decoder": version, "form": …,
"sizes": [bytes of each file]}, then the files one after the other. It holds no names, so that a key changes when a file
that is used changes, and not when one is renamed in its place. For messages, names stand in a file beside it
(`write_names`), which is part of no digest.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import IO

from trtrecipe.digest import canonical_json

MAGIC = b"TRTRSMP1"
DECODER = 1
"""Version of what is made of a file's bytes: raised when the same bytes give other samples."""


@dataclass(frozen=True)
class Container:
    """`form`: images, raw or files (each by its content). Sample i is `sizes[i]` bytes from `starts[i]` on."""

    file: IO[bytes]
    form: str
    starts: Sequence[int]
    sizes: Sequence[int]

    def read(self, index: int) -> bytes:
        """The bytes of one sample's file."""
        self.file.seek(self.starts[index])
        return self.file.read(self.sizes[index])


def head(form: str, sizes: Sequence[int]) -> bytes:
    """What stands before the files."""
    header = canonical_json({"decoder": DECODER, "form": form, "sizes": list(sizes)})
    return MAGIC + struct.pack("<Q", len(header)) + header


def is_container(path: Path) -> bool:
    """Whether the file begins as one."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def open_container(path: Path) -> Container:
    """The container at `path`, which stays open."""
    file = path.open("rb")
    file.seek(len(MAGIC))
    (length,) = struct.unpack("<Q", file.read(8))
    header = json.loads(file.read(length))
    first = len(MAGIC) + 8 + length
    starts = [*accumulate(header["sizes"], initial=first)]
    return Container(file, header["form"], starts, header["sizes"])


def write_names(path: Path, names: Sequence[str]) -> None:
    """What the samples of the file at `path` are called."""
    _beside(path).write_text(json.dumps(names), "utf-8")


def read_names(path: Path) -> list[str]:
    """What `write_names` wrote; empty where it has not."""
    beside = _beside(path)
    return list(json.loads(beside.read_text("utf-8"))) if beside.is_file() else []


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.names")
