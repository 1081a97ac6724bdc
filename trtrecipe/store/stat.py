"""Digests remembered by file stat, in a SQLite file that may be deleted at any time.

A row counts only if the file's stat is unchanged and the file was at least 2 s old when it was hashed: a later write
within the same clock tick could otherwise go unseen (git calls such an entry racy).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from trtrecipe.errors import StepError

SETTLED_NS = 2_000_000_000
# Some file systems number files beyond the 63 bits that SQLite holds; an array's name may be no UTF-8.
_UNUSABLE = (sqlite3.Error, OverflowError, UnicodeError)

_TABLES = """
CREATE TABLE IF NOT EXISTS files (
  path TEXT, part TEXT, dev INTEGER, ino INTEGER, size INTEGER, mtime_ns INTEGER, ctime_ns INTEGER, sha256 TEXT,
  PRIMARY KEY (path, part)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS blobs (
  sha256 TEXT PRIMARY KEY, dev INTEGER, ino INTEGER, size INTEGER, mtime_ns INTEGER) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS records (
  key TEXT PRIMARY KEY, dev INTEGER, ino INTEGER, size INTEGER, mtime_ns INTEGER, ctime_ns INTEGER, result BLOB,
  sha256 TEXT) WITHOUT ROWID;
"""


class FileChangedError(StepError):
    """A file changed while it was being read."""

    def __init__(self, path: Path | str) -> None:
        super().__init__(f"{path} changed while it was being read", "run the build again once the file is at rest")


class StatCache:
    """Rows for files of the user (`digest`), and for blobs (`blob_is_known`, `remember_blob`) and records (`result`,
    `remember_result`) of the store.

    Every failure of the database only costs speed: a damaged one is made anew, any other is left unused. Each row is
    committed as it is written, so that no other process ever waits for this one.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._database: sqlite3.Connection | None = None
        self._made_anew = False
        # What `preload` read; rows written since then, here or elsewhere, are only in the database.
        self._files: dict[tuple[bytes, str], tuple[object, ...]] = {}
        self._blobs: dict[str, tuple[object, ...]] = {}
        self._records: dict[str, tuple[object, ...]] = {}
        self._open()

    def _open(self) -> None:
        try:
            self._database = sqlite3.connect(self._path, timeout=5.0, isolation_level=None)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=NORMAL")
            self._database.executescript(_TABLES)
        except sqlite3.Error as error:
            if not self._make_anew(error):
                self.close()

    def _make_anew(self, error: Exception) -> bool:
        """Start with an empty database, once, if the error says that this one is damaged or none at all."""
        # That is this very class; a database that is locked, full or not to be written raises a subclass.
        if type(error) is not sqlite3.DatabaseError or self._made_anew:
            return False
        self._made_anew = True
        self.close()
        # The log first: left beside a new database it would be played into it.
        with contextlib.suppress(OSError):
            for suffix in ("-wal", "-shm", ""):
                self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
        self._open()
        return True

    def preload(self) -> None:
        """Read all rows at once, for who is about to ask for thousands: one by one they cost twice as much."""
        if self._database is None:
            return
        try:
            self._blobs = {row[0]: row for row in self._database.execute("SELECT * FROM blobs")}
            self._records = {row[0]: row for row in self._database.execute("SELECT * FROM records")}
            self._files = {row[:2]: row for row in self._database.execute("SELECT * FROM files")}
        except _UNUSABLE as error:
            self._make_anew(error)

    def close(self) -> None:
        """Let go of the database."""
        if self._database is not None:
            with contextlib.suppress(sqlite3.Error):
                self._database.close()
            self._database = None

    def digest(self, path: Path, part: str, compute: Callable[[], str]) -> str:
        """The SHA-256 (or other text) that `compute` gives for `part` of the file, from its row where that counts.

        Raises OSError, FileChangedError when the file changes meanwhile, and whatever `compute` raises.
        """
        name = os.fsencode(path)
        if not os.path.isabs(name):
            name = os.path.join(os.getcwdb(), name)
        before = os.stat(name)
        known = (name, part, *_identity(before))
        found = self._files.get((name, part))
        if found is None or found[:7] != known:
            found = self._query("SELECT * FROM files WHERE path = ? AND part = ?", (name, part))
        if found is not None and found[:7] == known:
            return str(found[7])
        sha256 = compute()
        after = os.stat(name)
        if _identity(before) != _identity(after):
            raise FileChangedError(path)
        if time.time_ns() - max(after.st_mtime_ns, after.st_ctime_ns) >= SETTLED_NS:
            row = (name, part, *_identity(after), sha256)
            self._write("INSERT OR REPLACE INTO files VALUES (?,?,?,?,?,?,?,?)", row)
        return sha256

    def digest_files(self, what: str, names: Sequence[str], files: Sequence[str], compute: Callable[[], str]) -> str:
        """The SHA-256 that `compute` gives for `what` of many files, from its row where names and stats are the same.

        `names` are those that the choice of files was made from. Raises as `digest` does.
        """
        before, _ = _state(names, files)
        row = self._query("SELECT sha256 FROM files WHERE path = ? AND part = ?", (b"", what))
        if row is not None and str(row[0]).startswith(f"{before} "):
            return str(row[0]).partition(" ")[2]
        sha256 = compute()
        after, settled = _state(names, files)
        if after != before:
            raise FileChangedError(files[0])
        if settled:
            values = (b"", what, 0, 0, 0, 0, 0, f"{after} {sha256}")
            self._write("INSERT OR REPLACE INTO files VALUES (?,?,?,?,?,?,?,?)", values)
        return sha256

    def blob_is_known(self, sha256: str, stat: os.stat_result) -> bool:
        """Whether the blob was hashed when its stat was as it is now (its ctime aside: links change it)."""
        known = (sha256, *_identity(stat)[:4])
        if self._blobs.get(sha256) == known:
            return True
        return self._query("SELECT * FROM blobs WHERE sha256 = ?", (sha256,)) == known

    def remember_blob(self, sha256: str, stat: os.stat_result) -> None:
        """Note that the blob was hashed and right, unless it is too young for that to last."""
        if time.time_ns() - stat.st_mtime_ns >= SETTLED_NS:
            self._write("INSERT OR REPLACE INTO blobs VALUES (?,?,?,?,?)", (sha256, *_identity(stat)[:4]))

    def result(self, key: str, stat: os.stat_result) -> bytes | None:
        """What the record of `key` says of its result, if it was hashed when its stat was as it is now.

        A row is no better than its file: it is checked against a digest of its own each time.
        """
        known = (key, *_identity(stat))
        found = self._records.get(key)
        if found is None or found[:6] != known:
            found = self._query("SELECT * FROM records WHERE key = ?", (key,))
        if found is None or found[:6] != known:
            return None
        result = found[6]
        return result if isinstance(result, bytes) and _seal(key, result) == found[7] else None

    def remember_result(self, key: str, stat: os.stat_result, result: bytes) -> None:
        """Note that the record was hashed and right, unless it is too young for that to last."""
        if time.time_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns) >= SETTLED_NS:
            row = (key, *_identity(stat), result, _seal(key, result))
            self._write("INSERT OR REPLACE INTO records VALUES (?,?,?,?,?,?,?,?)", row)

    def _query(self, sql: str, values: tuple[object, ...]) -> tuple[object, ...] | None:
        if self._database is None:
            return None
        try:
            row: tuple[object, ...] | None = self._database.execute(sql, values).fetchone()
            return row
        except _UNUSABLE as error:
            self._make_anew(error)
            return None

    def _write(self, sql: str, values: tuple[object, ...]) -> None:
        if self._database is None:
            return
        try:
            self._database.execute(sql, values)
        except _UNUSABLE as error:
            self._make_anew(error)


def _state(names: Sequence[str], files: Sequence[str]) -> tuple[str, bool]:
    """A digest of the names and of each file's path and stat, and whether all files are old enough for a row."""
    digest = hashlib.sha256("\0".join((str(len(names)), *names, "")).encode())
    newest = 0
    for file in files:
        stat = os.stat(file)
        newest = max(newest, stat.st_mtime_ns, stat.st_ctime_ns)
        digest.update(b"%s\0%d %d %d %d %d\n" % (os.fsencode(file), *_identity(stat)))
    return digest.hexdigest(), time.time_ns() - newest >= SETTLED_NS


def _seal(key: str, result: bytes) -> str:
    return hashlib.sha256(key.encode() + result).hexdigest()


def _identity(stat: os.stat_result) -> tuple[int, int, int, int, int]:
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
