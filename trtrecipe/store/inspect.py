"""Looking through a whole store: what it holds, and whether all of it is what its names say."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from trtrecipe.errors import StoreError
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
    """`kind` "blob" or "record"; `name` its SHA-256 or key; `state` what is wrong; `kept` why it was not set aside."""

    kind: str
    name: str
    state: str
    kept: str | None = None


def survey(store: Store) -> Survey:
    """What the store holds. Raises OSError."""
    sizes = [size for _, path in store.blobs.all() if (size := _size(path)) is not None]
    return Survey(
        blobs=len(sizes),
        blob_bytes=sum(sizes),
        records=sum(1 for _ in store.records.all()),
        set_aside=sum(1 for _ in store.quarantine.iterdir()),
        free_bytes=shutil.disk_usage(store.root).free,
    )


def verify_all(store: Store) -> tuple[int, list[Damage]]:
    """Hash every blob and record; how many were looked at, and the damaged ones, set aside if that can be.

    Raises OSError.
    """
    checked = 0
    damaged: list[Damage] = []
    for sha256, _ in _named(store.blobs.all()):
        checked += 1
        if store.blobs.verify(Blob(sha256, 0)) == "damaged":
            kept = _tried(store.blobs.set_aside, sha256)
            damaged.append(Damage("blob", sha256, "its bytes are not what its name says", kept))
    for key, _ in _named(store.records.all()):
        checked += 1
        try:
            record = store.records.read(key)
        except DamagedRecordError:
            kept = _tried(store.records.set_aside, key)
            damaged.append(Damage("record", key, "it does not match its own digest", kept))
            continue
        for role, blob in record.outputs.items() if record else ():
            if not os.path.isfile(store.blobs.path(blob.sha256)):
                kept = _tried(store.records.set_aside, key)
                damaged.append(Damage("record", key, f"its output '{role}' is gone", kept))
                break
    return checked, damaged


def _size(path: Path) -> int | None:
    """In bytes, of a plain file; None for anything else, and for what another process took away meanwhile."""
    with contextlib.suppress(FileNotFoundError):
        found = path.lstat()
        return found.st_size if stat.S_ISREG(found.st_mode) else None
    return None


def _tried(set_aside: Callable[[str], None], name: str) -> str | None:
    """Set aside; why that could not be done. What else is damaged is to be said all the same."""
    try:
        set_aside(name)
    except StoreError as error:
        return error.message
    return None


def _named(files: Iterator[tuple[str, Path]]) -> list[tuple[str, Path]]:
    # A list, since files are moved away while it is walked.
    return sorted(files)
