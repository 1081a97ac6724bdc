"""TFRecord files, as far as planning needs them: where each record begins and ends.

A record is its length (8 bytes, little-endian), a masked CRC-32C of these, the data, and a masked CRC-32C of the data
("TFRecords format details", https://www.tensorflow.org/tutorials/load_data/tfrecord; the mask is that of
tensorflow/core/lib/hash/crc32c.h). Lengths are checked here, the data by TensorFlow's reader in the step.

What a step is given is a TFRecord file, too: a first record of ours, canonical JSON {"count", "decoder", "features":
{INPUT: FEATURE}}, then the selected records as they are.
"""

from __future__ import annotations

import json
import struct
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from trtrecipe.data.container import DECODER
from trtrecipe.data.errors import LFS_POINTER, DataError, lfs_pointer
from trtrecipe.digest import canonical_json

_PIECE = 1 << 20
_LENGTH = 12  # of a record's head: its length and the CRC of that
_POLYNOMIAL = 0x82F63B78  # Castagnoli's, bits reversed
_HEADER_LIMIT = 1 << 20


@dataclass(frozen=True)
class Shard:
    """A file and where its records begin and end, heads and CRCs included."""

    name: str
    path: Path
    starts: Sequence[int]
    ends: Sequence[int]


def scan(name: str, path: Path) -> Shard:
    """Find the records of a file. Raises DataError for what is no TFRecord file, OSError."""
    starts, ends = array("Q"), array("Q")
    size = path.stat().st_size
    position = 0
    with path.open("rb") as file:
        while position < size:
            file.seek(position)
            head = file.read(_LENGTH)
            if len(head) == _LENGTH and _masked(head[:8]) != struct.unpack("<I", head[8:])[0]:
                raise _no_record(name, position, head)
            length = int.from_bytes(head[:8], "little")
            end = position + _LENGTH + length + 4
            if len(head) < _LENGTH or end > size:
                raise DataError(
                    f"{name} is cut short: its record {len(starts)}, at byte {position}, ends after the file",
                    "copy or write the file again",
                )
            starts.append(position)
            ends.append(end)
            position = end
    return Shard(name, path, starts, ends)


def framed(data: bytes) -> bytes:
    """`data` as a record."""
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", _masked(length)) + data + struct.pack("<I", _masked(data))


def head(count: int, features: Mapping[str, str]) -> bytes:
    """The first record of what a step is given."""
    return framed(canonical_json({"count": count, "decoder": DECODER, "features": dict(features)}))


def is_records(path: Path) -> bool:
    """Whether the file begins with a record."""
    with path.open("rb") as file:
        start = file.read(_LENGTH)
    return len(start) == _LENGTH and struct.pack("<I", _masked(start[:8])) == start[8:]


def read_head(path: Path) -> dict[str, Any]:
    """What `head` wrote at the beginning of the file at `path`."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH)[:8], "little")
        header: dict[str, Any] = json.loads(file.read(min(length, _HEADER_LIMIT)))
    return header


def copy(shard: Shard, number: int) -> Iterator[bytes]:
    """The bytes of a record, in pieces. Raises DataError when the file has become shorter, OSError."""
    with shard.path.open("rb") as file:
        file.seek(shard.starts[number])
        left = shard.ends[number] - shard.starts[number]
        while left:
            piece = file.read(min(left, _PIECE))
            if not piece:
                raise DataError(f"{shard.name} became shorter while it was read", "build again once it is at rest")
            left -= len(piece)
            yield piece


def _no_record(name: str, position: int, head: bytes) -> DataError:
    if position == 0 and head == LFS_POINTER[:_LENGTH]:
        return lfs_pointer(name)
    if position == 0 and head[:3] == b"\x1f\x8b\x08":
        return DataError(f"{name} is compressed with gzip, which is not supported", f"run: gunzip {name}")
    if position == 0:
        return DataError(
            f"{name} is no TFRecord file, or a compressed one: it does not begin with a record",
            "write it with tf.io.TFRecordWriter, without compression",
        )
    return DataError(f"{name} is damaged at byte {position}: no record begins there", "copy or write the file again")


@cache
def _table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (_POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return table


def _masked(data: bytes) -> int:
    table, crc = _table(), 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
