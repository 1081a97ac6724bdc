"""Rows kept for records: looking up with them says what looking up without them says, whatever happens meanwhile."""

from __future__ import annotations

import os
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trtrecipe.digest import sha256_json
from trtrecipe.store.inspect import verify_all
from trtrecipe.store.records import Record, Records
from trtrecipe.store.store import Missing, Store

DOCUMENTS = ({"kind": "prepare"}, {"kind": "lower"})
KEYS = tuple(map(sha256_json, DOCUMENTS))
SPOILED = (
    "UPDATE records SET result = CAST(replace(CAST(result AS TEXT), '1', '2') AS BLOB)",
    "UPDATE records SET result = CAST(result AS TEXT)",
    "UPDATE records SET result = x'7b7d'",
    "UPDATE records SET sha256 = 'damaged'",
    "UPDATE records SET sha256 = NULL, size = 'large'",
    "UPDATE records SET (result, sha256) = (SELECT result, sha256 FROM records AS r WHERE r.key != records.key)",
    "UPDATE records SET (mtime_ns, ctime_ns) = (ctime_ns, mtime_ns)",
    "DELETE FROM records",
    "DROP TABLE records",
)


def publish(store: Store, which: int, figure: int) -> Record:
    key = KEYS[which]
    with store.work_folder(key) as folder:
        (folder / "file").write_text(f"result {figure}")
        return store.publish(key, DOCUMENTS[which], {"onnx": folder / "file"}, {"figure": figure})


class Clock:
    """`time.time_ns`, ahead of the true one. The file system's cannot be set, only waited for."""

    def __init__(self) -> None:
        self._true, self._ahead = time.time_ns, 0

    def __call__(self) -> int:
        return self._true() + self._ahead

    def wait(self) -> None:
        self._ahead += 3_000_000_000


def tick(root: Path) -> None:
    """Return once the file system gives files another time than it gave the last one."""
    file = root / "tick"
    file.touch()
    before = file.stat().st_ctime_ns
    while file.stat().st_ctime_ns == before:
        time.sleep(0.0005)
        file.touch()


def happen(what: str, which: int, figure: int, store: Store, root: Path) -> None:
    """Something that happens to a record or its row, all but the waiting."""
    path = store.records.path(KEYS[which])
    found = path.lstat() if path.is_file() and not path.is_symlink() else None
    if what == "publish":
        publish(store, which, figure)
    elif what == "spoil":
        with sqlite3.connect(root / "store" / "v1" / "stat.sqlite") as database:
            if database.execute("SELECT 1 FROM sqlite_master WHERE name = 'records'").fetchone():
                database.execute(SPOILED[figure % len(SPOILED)])
        database.close()
    elif what == "replace":
        with Store(root / f"other-{os.urandom(4).hex()}") as other:
            publish(other, which, figure)
            path.parent.mkdir(exist_ok=True)
            if not path.is_dir():
                other.records.path(KEYS[which]).replace(path)
    elif found is not None:
        data = path.read_bytes()
        if what == "touch":
            path.touch()
        elif what == "damage":
            at = figure % max(1, len(data))
            path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :] if data else b"")
            os.utime(path, ns=(found.st_mtime_ns, found.st_mtime_ns))
        elif what == "cut":
            os.truncate(path, figure % (len(data) + 1))
        elif what == "remove":
            path.unlink()
        elif what == "link":
            path.rename(root / f"moved-{os.urandom(4).hex()}")
            (root / "linked").write_bytes(data)
            path.symlink_to(root / "linked")
        elif what == "folder":
            path.unlink()
            path.mkdir()


EVENTS = ("publish", "replace", "touch", "damage", "cut", "remove", "link", "folder", "spoil")
ACTS = st.tuples(st.sampled_from(("wait", "reopen", "damage", *EVENTS)), st.integers(0, 1), st.integers(0, 300))


@settings(max_examples=30, deadline=None)
@given(st.lists(ACTS, max_size=12))
@example([("publish", 0, 1), ("wait", 0, 0), ("damage", 0, 100)])
@example([("publish", 0, 1), ("wait", 0, 0), ("replace", 0, 2), ("wait", 0, 0), ("reopen", 0, 0), ("cut", 0, 90)])
@example([("publish", 0, 1), ("publish", 1, 2), ("wait", 0, 0), *(("spoil", 0, n) for n in range(len(SPOILED)))])
@example([("publish", 0, 1), ("publish", 1, 2), ("wait", 0, 0), ("spoil", 0, 5), ("reopen", 0, 0)])
def test_rows_change_no_answer(acts: list[tuple[str, int, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder, mock.patch("time.time_ns", Clock()) as clock:
        root = Path(folder)
        store = Store(root / "store")
        for what, which, figure in acts:
            if what == "wait":
                clock.wait()
            elif what == "reopen":
                store.close()
                store = Store(root / "store")
                store.stat.preload()
            else:
                tick(root)
                happen(what, which, figure, store, root)
            with Store(root / "store") as bare:
                bare.stat.close()
                for key in KEYS:
                    assert store.lookup(key) == bare.lookup(key)
        store.close()


@pytest.fixture
def known(tmp_path: Path) -> Iterator[Store]:
    """A store with a record that has a row."""
    clock = Clock()
    with mock.patch("time.time_ns", clock), Store(tmp_path / "store") as store:
        publish(store, 0, 1)
        clock.wait()
        store.lookup(KEYS[0])
        yield store


def test_an_unchanged_record_is_not_read(known: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    record = known.records.read(KEYS[0])
    monkeypatch.setattr(Records, "_lines", mock.Mock(side_effect=AssertionError("read again")))
    assert record is not None and known.lookup(KEYS[0]) == record
    known.stat.preload()
    assert known.lookup(KEYS[0]) == record


def test_a_young_record_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store(tmp_path / "store") as store:
        record = publish(store, 0, 1)
        assert store.lookup(KEYS[0]) == record
        monkeypatch.setattr(Records, "_lines", mock.Mock(side_effect=AssertionError("read again")))
        with pytest.raises(AssertionError, match="read again"):
            store.lookup(KEYS[0])


def test_damage_that_no_stat_shows_serves_nothing_wrong_and_is_found_by_verifying(known: Store, tmp_path: Path) -> None:
    record = known.records.read(KEYS[0])
    path = known.records.path(KEYS[0])
    path.write_bytes(path.read_bytes().replace(b'"figure":1', b'"figure":2'))
    found = path.stat()
    with sqlite3.connect(tmp_path / "store" / "v1" / "stat.sqlite") as database:
        changed = "UPDATE records SET ino = ?, mtime_ns = ?, ctime_ns = ?"
        database.execute(changed, (found.st_ino, found.st_mtime_ns, found.st_ctime_ns))
    database.close()
    assert known.lookup(KEYS[0]) == record
    _, damaged = verify_all(known)
    assert [damage.name for damage in damaged] == [KEYS[0]] and known.lookup(KEYS[0]) == Missing("none")
