"""The store: blobs, records, stat rows, locks and the last keys of each recipe, in one folder.

<store>/CACHEDIR.TAG README
<store>/v1/blobs/ab/cdef…          bytes, named by their SHA-256
<store>/v1/records/12/3456….json   what the step with that key produced
<store>/v1/last/<recipe>.json      keys of a recipe's last build: what `explain` compares with
<store>/v1/stat.sqlite             stat rows; may be deleted at any time
<store>/v1/checkpoints/<key>/      what a step that was interrupted had done so far, in files of its own
<store>/v1/locks tmp quarantine
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtrecipe.digest import canonical_json, sha256_bytes
from trtrecipe.errors import StoreError
from trtrecipe.store.blobs import Blob, Blobs, explain_oserror, move_aside
from trtrecipe.store.locks import KeyLock
from trtrecipe.store.records import DamagedRecordError, Record, Records
from trtrecipe.store.stat import StatCache

BUCKET = "v1"
_WEEK = 7 * 24 * 3600
_TAG = "Signature: 8a477f597d28d172789f06886806bc55\n# This folder is a cache; see README beside it.\n"
_README = """This is trtrecipe's store of finished build steps. It may be deleted whenever no build runs:
the next build makes everything again. Nothing in it is meant to be edited.
"""


@dataclass(frozen=True)
class Missing:
    """Why the store cannot serve a key. `what` is "none", "record damaged", "blob lost" or "blob damaged"."""

    what: str
    output: str | None = None
    record: Record | None = None


def default_root() -> Path:
    """TRTRECIPE_STORE, else `trtrecipe` in the user's cache folder; absolute. Raises StoreError without a home."""
    if named := os.environ.get("TRTRECIPE_STORE"):
        return Path(named).absolute()
    cache = os.environ.get("XDG_CACHE_HOME", "")
    if Path(cache).is_absolute():
        return Path(cache, "trtrecipe")
    try:
        return (Path.home() / ".cache" / "trtrecipe").absolute()
    except RuntimeError:
        raise StoreError("you have no home folder to keep the store in", "set TRTRECIPE_STORE to a folder") from None


class Store:
    """One store. Opening it creates its folders; raises StoreError where that cannot be done."""

    def __init__(self, root: Path) -> None:
        self.root = root
        base = root / BUCKET
        self._locks, self._temporary = base / "locks", base / "tmp"
        self._last, self.quarantine = base / "last", base / "quarantine"
        self._checkpoints = base / "checkpoints"
        kept = (base / "blobs", base / "records", self._last, self.quarantine, self._checkpoints)
        folders = (*kept, self._locks, self._temporary)
        try:
            if not all(map(os.path.isdir, folders)):
                self._create(folders)
        except OSError as error:
            raise explain_oserror(error, root, "store") from error
        self.stat = StatCache(base / "stat.sqlite")
        self.blobs = Blobs(base / "blobs", self.quarantine, self.stat)
        self.records = Records(base / "records", self._temporary, self.quarantine, self.stat)

    def _create(self, folders: tuple[Path, ...]) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        for name, text in (("CACHEDIR.TAG", _TAG), ("README", _README)):
            (self.root / name).write_text(text)
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)

    def close(self) -> None:
        """Let go of the stat rows."""
        self.stat.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def lookup(self, key: str) -> Record | Missing:
        """The record of `key` if it and all its outputs are there and whole, else why not. Changes nothing.

        Raises StoreError.
        """
        try:
            record = self.records.find(key)
            if record is None:
                return Missing("none")
            for role, blob in record.outputs.items():
                if (state := self.blobs.state(blob)) is not None:
                    return Missing(f"blob {state}", role, record)
        except DamagedRecordError:
            return Missing("record damaged")
        except OSError as error:
            raise explain_oserror(error, self.root, "store") from error
        return record

    def set_aside(self, key: str, missing: Missing) -> None:
        """Make room for what `lookup` could not serve. To be called by who holds the key's lock.

        Raises OSError, StoreError.
        """
        if missing.what == "none":
            return
        if missing.record is not None:
            for blob in missing.record.outputs.values():
                if self.blobs.state(blob) == "damaged":
                    self.blobs.set_aside(blob.sha256)
        self.records.set_aside(key)

    def publish(
        self,
        key: str,
        key_document: Mapping[str, Any],
        files: Mapping[str, Path],
        measurements: Mapping[str, Any],
    ) -> Record:
        """Move output files (under `work_folder`) into the store, then create the record. The first writer wins.

        Raises StoreError.
        """
        try:
            outputs: dict[str, Blob] = {role: self.blobs.put(file) for role, file in files.items()}
            return self.records.create(Record(key, outputs, measurements), key_document)
        except OSError as error:
            raise explain_oserror(error, self.root, "store") from error

    def lock(self, key: str) -> KeyLock:
        """The lock of a key, not yet taken."""
        return KeyLock(self._locks / f"{key}.lock")

    @contextlib.contextmanager
    def work_folder(self, key: str) -> Iterator[Path]:
        """An empty folder on the store's file system, removed afterwards; for who holds the key's lock.

        Raises StoreError.
        """
        import shutil

        folder = self._temporary / key
        try:
            # What a killed worker left behind; with the lock in hand nobody else can be using it.
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        except OSError as error:
            raise explain_oserror(error, self.root, "store") from error
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @contextlib.contextmanager
    def checkpoint(self, key: str) -> Iterator[Path]:
        """A folder in which a step keeps what it has done so far; for who holds the key's lock.

        It is there again when the step is repeated after an error or the end of its process, and removed when all went
        well. Raises StoreError.
        """
        import shutil

        folder = self._checkpoints / key
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise explain_oserror(error, self.root, "store") from error
        try:
            yield folder
        except BaseException:
            with contextlib.suppress(OSError):  # not empty: that is what is kept
                folder.rmdir()
            raise
        shutil.rmtree(folder, ignore_errors=True)

    def log_path(self, key: str) -> Path:
        """A new file for what a step's tools say."""
        return self._temporary / f"{key[:16]}.{os.urandom(4).hex()}.log"

    def sweep(self) -> None:
        """Remove the logs, work folders and checkpoints of builds that ended more than a week ago."""
        # Left for want of rights they only cost space, and no build should fail for that.
        for folder in (self._temporary, self._checkpoints):
            with contextlib.suppress(OSError):
                for path in folder.iterdir():
                    if time.time() - path.lstat().st_mtime > _WEEK:
                        self._remove(path)

    def _remove(self, path: Path) -> None:
        import shutil

        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)
            return
        # A folder is named by its key; who holds the key's lock is still at it.
        lock = self.lock(path.name)
        if lock.acquire():
            shutil.rmtree(path, ignore_errors=True)
            lock.release()

    def read_last(self, recipe: Path) -> dict[str, Any]:
        """What `write_last` kept for this recipe file; empty where there is nothing readable."""
        try:
            value = json.loads(self._last_path(recipe).read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        return value if isinstance(value, dict) and all(map(_is_entry, value.values())) else {}

    def write_last(self, recipe: Path, value: Mapping[str, Any]) -> None:
        """Keep what the next `explain` of this recipe file compares with. Raises StoreError."""
        path = self._last_path(recipe)
        temporary = self._temporary / f"last.{os.urandom(8).hex()}"
        try:
            temporary.write_bytes(canonical_json(value))
            if path.is_dir():
                move_aside(path, self.quarantine, path.name)
            temporary.replace(path)
        except OSError as error:
            raise explain_oserror(error, self.root, "store") from error

    def _last_path(self, recipe: Path) -> Path:
        return self._last / f"{sha256_bytes(os.fsencode(os.path.realpath(recipe)))}.json"


def _is_entry(entry: Any) -> bool:
    """Whether this is what a build remembers of a step: {"key": SHA-256, "why": [[text, follows from], …]}."""
    if not isinstance(entry, dict) or not isinstance(key := entry.get("key"), str):
        return False
    why = entry.get("why", [])
    return len(key) == 64 and key.isalnum() and isinstance(why, list) and all(map(_is_reason, why))


def _is_reason(reason: Any) -> bool:
    return (
        isinstance(reason, list)
        and len(reason) == 2
        and isinstance(reason[0], str)
        and isinstance(reason[1], (str, type(None)))
    )
