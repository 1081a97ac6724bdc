"""Records: what a step with a given key produced. A file each, created once, never overwritten."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtrecipe.digest import canonical_json, sha256_bytes
from trtrecipe.store.blobs import Blob, make_folder, move_aside, open_plain, sync_folder, wrong_with
from trtrecipe.store.stat import StatCache

_parse = json.JSONDecoder().decode

# A record is JSON on five lines, of which two vary. Canonical JSON has no line break in it, so that a no-op build can
# take the result without parsing the key document, which is most of the bytes.
_FIRST, _MIDDLE, _LAST = b'{"digest":"%s","result":', b',"key_document":', b"}"


@dataclass(frozen=True, slots=True)
class Record:
    """What the step with the key `key` made. Its key document is kept beside it (`Records.key_document`)."""

    key: str
    outputs: Mapping[str, Blob]
    measurements: Mapping[str, Any]


class DamagedRecordError(Exception):
    """A record's bytes do not match its own digest or its name, or cannot be had."""


def _encode(record: Record, key_document: Mapping[str, Any]) -> bytes:
    """All lines. Raises ValueError for measurements that are no finite JSON."""
    blobs = {role: {"sha256": blob.sha256, "size": blob.size} for role, blob in record.outputs.items()}
    result = canonical_json({"outputs": blobs, "measurements": record.measurements})
    rest = b"\n".join((result, _MIDDLE, canonical_json(key_document), _LAST, b""))
    return _FIRST % sha256_bytes(rest).encode() + b"\n" + rest


def _split(data: bytes, key: str) -> tuple[bytes, bytes]:
    """The result and the key document, after checking every byte. Raises DamagedRecordError."""
    first, _, rest = data.partition(b"\n")
    lines = rest.split(b"\n")
    # The key is the digest of the key document: a record under another name is found out too.
    if first != _FIRST % sha256_bytes(rest).encode() or len(lines) != 5 or sha256_bytes(lines[2]) != key:
        raise DamagedRecordError
    return lines[0], lines[2]


def _record(key: str, result: bytes) -> Record:
    fields = _parse(result.decode())
    outputs = {role: Blob(blob["sha256"], blob["size"]) for role, blob in fields["outputs"].items()}
    return Record(key, outputs, fields["measurements"])


class Records:
    """The folder of records, with the stat rows that spare reading them again."""

    def __init__(self, folder: Path, temporary: Path, quarantine: Path, stat: StatCache) -> None:
        self._folder = folder
        self._temporary = temporary
        self._quarantine = quarantine
        self._stat = stat
        self._prefix = f"{folder}{os.sep}"

    def path(self, key: str) -> Path:
        """Where the record of `key` is, or would be."""
        return Path(self._name(key))

    def _name(self, key: str) -> str:
        return f"{self._prefix}{key[:2]}{os.sep}{key[2:]}.json"

    def find(self, key: str) -> Record | None:
        """Like `read`, but a record whose stat is as it was when it was last hashed counts as whole, and is not read.

        Raises DamagedRecordError, OSError.
        """
        try:
            stat = os.lstat(self._name(key))
        except OSError as error:
            if wrong_with(error) == "lost":
                return None
            raise DamagedRecordError from error
        result = self._stat.result(key, stat)
        return self.read(key) if result is None else _record(key, result)

    def read(self, key: str) -> Record | None:
        """The record, None where there is none. Raises DamagedRecordError, OSError."""
        lines = self._lines(key)
        return None if lines is None else _record(key, lines[0])

    def key_document(self, key: str) -> dict[str, Any] | None:
        """The key document in the record, None where there is no record. Raises DamagedRecordError, OSError."""
        lines = self._lines(key)
        if lines is None:
            return None
        document: dict[str, Any] = json.loads(lines[1])
        return document

    def _lines(self, key: str) -> tuple[bytes, bytes] | None:
        try:
            with open(self._name(key), "rb", buffering=0, opener=open_plain) as file:
                stat = os.fstat(file.fileno())
                data = file.readall()
        except OSError as error:
            if wrong_with(error) == "lost":
                return None
            raise DamagedRecordError from error
        lines = _split(data, key)
        self._stat.remember_result(key, stat, lines[0])
        return lines

    def create(self, record: Record, key_document: Mapping[str, Any]) -> Record:
        """Keep the record unless one is there already; the one that is kept.

        Raises ValueError for measurements that are no finite JSON, OSError, StoreError.
        """
        data = _encode(record, key_document)
        path = self.path(record.key)
        make_folder(path.parent, self._quarantine)
        temporary = self._temporary / f"{record.key}.{os.urandom(4).hex()}"
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            try:
                os.link(temporary, path)
            except FileExistsError:
                if (kept := self._readable(record.key)) is not None:
                    return kept
                self.set_aside(record.key)
                os.link(temporary, path)
            sync_folder(path.parent)
            return record
        finally:
            temporary.unlink(missing_ok=True)

    def _readable(self, key: str) -> Record | None:
        try:
            return self.read(key)
        except DamagedRecordError:
            return None

    def all(self) -> Iterator[tuple[str, Path]]:
        """(key, path) of whatever stands where a record would, in no order."""
        for path in self._folder.glob("??/*.json"):
            yield path.parent.name + path.stem, path

    def set_aside(self, key: str) -> None:
        """Move a record that can no longer be served out of the way. Raises StoreError."""
        move_aside(self.path(key), self._quarantine, f"{key}.json")
