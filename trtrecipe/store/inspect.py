"""Looking through a whole store: what it holds, and whether all of it is what its names say."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from trtrecipe.store.blobs import Blob
from trtrecipe.store.records import DamagedRecordError
from trtrecipe.store.store import Store


@dataclass(frozen=True)
class Survey:
    """Counts of files, and bytes."""

    blobs: int
    blob_bytes: int
    records: int
    set_aside: int
    free_bytes: int


@dataclass(frozen=True)
class Damage:
    """`kind` "blob" or "record"; `name` its SHA-256 or key; `state` what is wrong with it."""

    kind: str
    name: str
    state: str


def survey(store: Store) -> Survey:
    """What the store holds. Raises OSError."""
    blobs = list(store.blobs.all())
    return Survey(
        blobs=len(blobs),
        blob_bytes=sum(path.stat().st_size for _, path in blobs),
        records=sum(1 for _ in store.records.all()),
        set_aside=sum(1 for _ in store.quarantine.iterdir()),
        free_bytes=shutil.disk_usage(store.root).free,
    )


def verify_all(store: Store) -> tuple[int, list[Damage]]:
    """Hash every blob and record; how many were hashed, and the damaged ones, which are set aside. Raises OSError."""
    checked = 0
    damaged: list[Damage] = []
    for sha256, path in _named(store.blobs.all()):
        checked += 1
        if store.blobs.verify(Blob(sha256, path.stat().st_size)) is not None:
            store.blobs.set_aside(sha256)
            damaged.append(Damage("blob", sha256, "its bytes are not what its name says"))
    for key, _ in _named(store.records.all()):
        checked += 1
        try:
            record = store.records.read(key)
        except DamagedRecordError:
            store.records.set_aside(key)
            damaged.append(Damage("record", key, "it does not match its own digest"))
            continue
        for role, blob in record.outputs.items() if record else ():
            if not store.blobs.path(blob.sha256).is_file():
                damaged.append(Damage("record", key, f"its output '{role}' is gone"))
                store.records.set_aside(key)
                break
    return checked, damaged


def _named(files: Iterator[tuple[str, Path]]) -> list[tuple[str, Path]]:
    # A list, since files are moved away while it is walked.
    return sorted(files)
