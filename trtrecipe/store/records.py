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

_parse = json.JSONDecoder().decode

# A record is JSON on five lines, of which two vary. Canonical JSON has no line break in it, so that a no-op build can
# take the result without parsing the key document, which is most of the bytes.
_FIRST, _MIDDLE, _LAST = b'{"digest":"%s","result":', b',"key_document":', b"}"


@dataclass(frozen=True, slots=True)
class Record:
    """`key` is the SHA-256 of `key_json`, the canonical JSON of the key document; `digest` that of all that is kept."""

    key: str
    key_json: bytes
    outputs: Mapping[str, Blob]
    measurements: Mapping[str, Any]
    digest: str

    @property
    def key_document(self) -> dict[str, Any]:
        """The key document, parsed."""
        document: dict[str, Any] = json.loads(self.key_json)
        return document


class DamagedRecordError(Exception):
    """A record's bytes do not match its own digest or its name, or cannot be had."""


def make_record(
    key: str, key_document: Mapping[str, Any], outputs: Mapping[str, Blob], measurements: Mapping[str, Any]
) -> Record:
    """A record with its digest. Raises ValueError for measurements that are no finite JSON."""
    key_json = canonical_json(key_document)
    return Record(key, key_json, outputs, measurements, sha256_bytes(_rest(key_json, outputs, measurements)))


def _rest(key_json: bytes, outputs: Mapping[str, Blob], measurements: Mapping[str, Any]) -> bytes:
    """All lines but the first."""
    blobs = {role: {"sha256": blob.sha256, "size": blob.size} for role, blob in outputs.items()}
    result = canonical_json({"outputs": blobs, "measurements": measurements})
    return b"\n".join((result, _MIDDLE, key_json, _LAST, b""))


def _read(name: str) -> bytes:
    # Without a file object: a no-op build reads thousands of these.
    descriptor = open_plain(name, os.O_RDONLY)
    try:
        left = os.fstat(descriptor).st_size
        data = os.read(descriptor, left + 1)
        while len(data) < left and (more := os.read(descriptor, left - len(data))):
            data += more
        return data
    finally:
        os.close(descriptor)


def _decode(data: bytes, key: str) -> Record:
    first, _, rest = data.partition(b"\n")
    digest = sha256_bytes(rest)
    lines = rest.split(b"\n")
    # The key is the digest of the key document: a record under another name is found out too.
    if first != _FIRST % digest.encode() or len(lines) != 5 or sha256_bytes(lines[2]) != key:
        raise DamagedRecordError
    fields = _parse(lines[0].decode())
    outputs = {role: Blob(blob["sha256"], blob["size"]) for role, blob in fields["outputs"].items()}
    return Record(key, lines[2], outputs, fields["measurements"], digest)


class Records:
    """The folder of records."""

    def __init__(self, folder: Path, temporary: Path, quarantine: Path) -> None:
        self._folder = folder
        self._temporary = temporary
        self._quarantine = quarantine
        self._prefix = f"{folder}{os.sep}"

    def path(self, key: str) -> Path:
        """Where the record of `key` is, or would be."""
        return self._folder / key[:2] / f"{key[2:]}.json"

    def read(self, key: str) -> Record | None:
        """The record, None where there is none. Raises DamagedRecordError, OSError."""
        try:
            data = _read(f"{self._prefix}{key[:2]}{os.sep}{key[2:]}.json")
        except OSError as error:
            if wrong_with(error) == "lost":
                return None
            raise DamagedRecordError from error
        return _decode(data, key)

    def create(self, record: Record) -> Record:
        """Keep the record unless one is there already; the one that is kept. Raises OSError, StoreError."""
        path = self.path(record.key)
        make_folder(path.parent, self._quarantine)
        rest = _rest(record.key_json, record.outputs, record.measurements)
        temporary = self._temporary / f"{record.key}.{os.urandom(4).hex()}"
        try:
            with temporary.open("xb") as file:
                file.write(_FIRST % record.digest.encode() + b"\n" + rest)
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
