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

_HEAD = b'{"digest":"'
_BODY = b'","record":'


@dataclass(frozen=True, slots=True)
class Record:
    """`key` is the SHA-256 of `key_document`; `digest` that of the record's own canonical JSON."""

    key: str
    key_document: Mapping[str, Any]
    outputs: Mapping[str, Blob]
    measurements: Mapping[str, Any]
    digest: str


class DamagedRecordError(Exception):
    """A record's bytes do not match its own digest or its name, or cannot be had."""


def make_record(
    key: str, key_document: Mapping[str, Any], outputs: Mapping[str, Blob], measurements: Mapping[str, Any]
) -> Record:
    """A record with its digest. Raises ValueError for measurements that are no finite JSON."""
    digest = sha256_bytes(_body(key, key_document, outputs, measurements))
    return Record(key, key_document, outputs, measurements, digest)


def _body(
    key: str, key_document: Mapping[str, Any], outputs: Mapping[str, Blob], measurements: Mapping[str, Any]
) -> bytes:
    return canonical_json(
        {
            "key": key,
            "key_document": key_document,
            "outputs": {role: {"sha256": blob.sha256, "size": blob.size} for role, blob in outputs.items()},
            "measurements": measurements,
        }
    )


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
    # The digest covers the bytes after it, so it is checked without writing the JSON out again.
    start = len(_HEAD) + 64 + len(_BODY)
    digest, body = data[len(_HEAD) : len(_HEAD) + 64], data[start:-2]
    if data[: len(_HEAD)] != _HEAD or data[-2:] != b"}\n" or sha256_bytes(body).encode() != digest:
        raise DamagedRecordError
    fields = json.loads(body)
    if fields["key"] != key:
        raise DamagedRecordError
    outputs = {role: Blob(blob["sha256"], blob["size"]) for role, blob in fields["outputs"].items()}
    return Record(key, fields["key_document"], outputs, fields["measurements"], digest.decode())


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
        body = _body(record.key, record.key_document, record.outputs, record.measurements)
        temporary = self._temporary / f"{record.key}.{os.urandom(4).hex()}"
        try:
            with temporary.open("xb") as file:
                file.write(_HEAD + record.digest.encode() + _BODY + body + b"}\n")
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
