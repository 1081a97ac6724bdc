"""FlatBuffers read with every offset checked: files come from other people.

The format: https://flatbuffers.dev/internals/ (tables with vtables, vectors behind offsets, little endian). Nothing is
copied but what is asked for, and a file cannot make the reader hold more Python objects than ITEMS.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

ITEMS = 1 << 21
"""Most tables, numbers and characters that one file may make the reader unpack."""

_INTEGER = struct.Struct("<i")
_UNSIGNED = struct.Struct("<I")
_SHORT = struct.Struct("<H")
_FORMATS = {kind: struct.Struct(f"<{kind}") for kind in "bBiIqQf"}


class Damaged(ValueError):
    """The bytes are no FlatBuffer of the form that was asked for; says what is wrong."""


class Buffer:
    """The bytes, and how much has been unpacked from them."""

    def __init__(self, data: bytes) -> None:
        self.data = memoryview(data)
        self._left = ITEMS

    def root(self) -> Table:
        """The table that the first four bytes point at. Raises Damaged, as everything below."""
        return Table(self, self.offset(0))

    def number(self, form: struct.Struct, at: int) -> int | float:
        """The number at a position."""
        if not 0 <= at <= len(self.data) - form.size:
            raise Damaged(f"an offset points to byte {at} of {len(self.data)}")
        value: int | float = form.unpack_from(self.data, at)[0]
        return value

    def offset(self, at: int) -> int:
        """Where the unsigned offset at a position points to."""
        return at + int(self.number(_UNSIGNED, at))

    def vector(self, at: int, size: int) -> tuple[int, int]:
        """Position of the first entry of the vector at `at`, and the number of its entries of `size` bytes."""
        count, start = int(self.number(_UNSIGNED, at)), at + 4
        if count * size > len(self.data) - start:
            raise Damaged(f"a list of {count} entries at byte {at} goes beyond the end of the file")
        return start, count

    def take(self, count: int) -> None:
        """Note that `count` more objects are unpacked."""
        self._left -= count
        if self._left < 0:
            raise Damaged(f"it holds more than {ITEMS} entries, or the same ones many times over")


class Table:
    """One table. Fields go by their slot, the number of the field in the schema from 0."""

    def __init__(self, buffer: Buffer, at: int) -> None:
        buffer.take(1)
        self.buffer, self.at = buffer, at
        self._vtable = at - int(buffer.number(_INTEGER, at))
        self._size = int(buffer.number(_SHORT, self._vtable))

    def field(self, slot: int) -> int | None:
        """Position of the field's bytes, None where it is absent."""
        entry = 4 + 2 * slot
        if entry + 2 > self._size:
            return None
        offset = int(self.buffer.number(_SHORT, self._vtable + entry))
        return self.at + offset if offset else None

    def number(self, slot: int, kind: str, default: float = 0) -> int | float:
        """The number of a struct `kind`: b, B, i, I, q, Q or f."""
        at = self.field(slot)
        return default if at is None else self.buffer.number(_FORMATS[kind], at)

    def integer(self, slot: int, kind: str, default: int = 0) -> int:
        """The whole number of a struct `kind`."""
        return int(self.number(slot, kind, default))

    def numbers(self, slot: int, kind: str) -> tuple[int, ...] | None:
        """The whole numbers of a vector."""
        span = self.span(slot, _FORMATS[kind].size)
        if span is None:
            return None
        start, count = span
        self.buffer.take(count)
        return struct.unpack_from(f"<{count}{kind}", self.buffer.data, start)

    def span(self, slot: int, size: int) -> tuple[int, int] | None:
        """Position and number of the entries, of `size` bytes each, of a vector."""
        at = self.field(slot)
        return None if at is None else self.buffer.vector(self.buffer.offset(at), size)

    def bytes(self, slot: int) -> memoryview | None:
        """The bytes of a vector, not copied."""
        span = self.span(slot, 1)
        return None if span is None else self.buffer.data[span[0] : span[0] + span[1]]

    def text(self, slot: int) -> str:
        """A string; "" where it is absent. Bytes that are no UTF-8 are replaced."""
        content = self.bytes(slot)
        if content is None:
            return ""
        self.buffer.take(len(content) // 8)
        return str(content, "utf-8", "replace")

    def table(self, slot: int) -> Table | None:
        """The table that a field points to."""
        at = self.field(slot)
        return None if at is None else Table(self.buffer, self.buffer.offset(at))

    def tables(self, slot: int) -> Iterator[Table]:
        """The tables of a vector; none where it is absent."""
        start, count = self.span(slot, 4) or (0, 0)
        for index in range(count):
            yield Table(self.buffer, self.buffer.offset(start + 4 * index))
