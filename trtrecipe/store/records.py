"""Records: what a step with a given key produced. A file each, created once, never overwritten."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtrecipe.digest import canonical_json, sha256_bytes
from trtrecipe.store.blobs import Blob, sync_folder

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
    """A record's bytes do not match its own digest or its name."""


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
            with open(f"{self._prefix}{key[:2]}{os.sep}{key[2:]}.json", "rb", buffering=0) as file:
                data = file.readall()
        except FileNotFoundError:
            return None
        return _decode(data, key)

    def create(self, record: Record) -> Record:
        """Keep the record unless one is there already; the one that is kept. Raises OSError."""
        path = self.path(record.key)
        path.parent.mkdir(exist_ok=True)
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
                return self.read(record.key) or record
            sync_folder(path.parent)
            return record
        finally:
            temporary.unlink(missing_ok=True)

    def all(self) -> Iterator[tuple[str, Path]]:
        """(key, path) of every record, in no order."""
        for path in self._folder.glob("??/*.json"):
            yield path.parent.name + path.stem, path

    def set_aside(self, key: str) -> None:
        """Move a record that can no longer be served out of the way."""
        with contextlib.suppress(FileNotFoundError):
            self.path(key).rename(self._quarantine / f"{key}.json.{os.urandom(4).hex()}")
