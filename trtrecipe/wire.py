"""Protobuf as it lies in a file: fields, one after the other (https://protobuf.dev/programming-guides/encoding)."""

from __future__ import annotations

import mmap
from collections.abc import Iterator

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
"""Wire types: a number; 8 bytes; bytes behind their number, which may be a message; 4 bytes."""


class DamagedError(Exception):
    """Bytes that are no fields."""


def fields(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """(number, wire type, a, b) of each field of the message: for numbers the value, for others where the bytes begin;
    and where the field ends.

    Raises DamagedError for what is no field, or does not end within the message.
    """
    at = start
    while at < end:
        tag, at = varint(data, at, end)
        kind = tag & 7
        if kind == VARINT:
            value, at = varint(data, at, end)
            yield tag >> 3, kind, value, at
            continue
        length = {FIXED64: 8, FIXED32: 4}.get(kind)
        if kind == LENGTH:
            length, at = varint(data, at, end)
        if length is None or not tag >> 3 or at + length > end:
            raise DamagedError
        at += length
        yield tag >> 3, kind, at - length, at


def packed(data: mmap.mmap, start: int, end: int) -> list[int]:
    """The numbers of a packed field. Raises DamagedError."""
    values = []
    while start < end:
        value, start = varint(data, start, end)
        values.append(value)
    return values


def varint(data: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    """A number, and where the next byte is. Raises DamagedError."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise DamagedError


def head(number: int, length: int) -> bytes:
    """What comes before the bytes of a field."""
    return _written(number << 3 | LENGTH) + _written(length)


def text(number: int, value: str) -> bytes:
    """A field of text."""
    data = value.encode()
    return head(number, len(data)) + data


def number(field: int, value: int) -> bytes:
    """A field of a number that is not negative."""
    return _written(field << 3 | VARINT) + _written(value)


def _written(value: int) -> bytes:
    digits = []
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*digits, value])
