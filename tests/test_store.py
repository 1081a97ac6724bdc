"""Blobs, records, stat rows and locks: whole, or not served."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from trtrecipe.digest import sha256_bytes, sha256_json
from trtrecipe.errors import StoreError
from trtrecipe.store.blobs import Blob, DamagedBlobError
from trtrecipe.store.inspect import survey, verify_all
from trtrecipe.store.locks import KeyLock
from trtrecipe.store.records import DamagedRecordError, Record
from trtrecipe.store.stat import FileChangedError, StatCache
from trtrecipe.store.store import Missing, Store

DOCUMENT = {"kind": "prepare", "params": {}}
KEY = sha256_json(DOCUMENT)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store") as opened:
        yield opened


def publish(store: Store, data: bytes = b"result", key: str = KEY, **measurements: object) -> Record:
    with store.work_folder(key) as folder:
        (folder / "file").write_bytes(data)
        return store.publish(key, DOCUMENT, {"onnx": folder / "file"}, measurements)


def alter(path: Path, data: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(data)


def test_what_is_published_is_found(store: Store, tmp_path: Path) -> None:
    record = publish(store, seconds=1.5)
    assert store.lookup(KEY) == record
    assert record.outputs["onnx"] == Blob(sha256_bytes(b"result"), 6)
    assert record.key_document == DOCUMENT and record.measurements == {"seconds": 1.5}
    store.blobs.copy_out(record.outputs["onnx"], tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"result"
    assert (tmp_path / "copy").stat().st_ino != store.blobs.path(record.outputs["onnx"].sha256).stat().st_ino


def test_the_first_writer_wins(store: Store) -> None:
    first = publish(store, b"first")
    assert publish(store, b"second") == first
    assert store.lookup(KEY) == first


def test_nothing_is_found_before_it_is_published(store: Store) -> None:
    assert store.lookup(KEY) == Missing("none")


@pytest.mark.parametrize("data", [b"resulT", b"longer than it was", b""], ids=["same size", "longer", "empty"])
def test_an_altered_blob_is_neither_found_nor_served(store: Store, tmp_path: Path, data: bytes) -> None:
    record = publish(store)
    blob = record.outputs["onnx"]
    alter(store.blobs.path(blob.sha256), data)
    found = store.lookup(KEY)
    assert isinstance(found, Missing) and (found.what, found.output) == ("blob damaged", "onnx")
    with pytest.raises(DamagedBlobError):
        store.blobs.copy_out(blob, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    store.set_aside(KEY, found)
    assert store.lookup(KEY) == Missing("none")
    assert survey(store).set_aside == 2
    assert publish(store).outputs == record.outputs


def test_an_alteration_that_keeps_the_stat_is_caught_when_served(store: Store, tmp_path: Path) -> None:
    blob = publish(store).outputs["onnx"]
    path = store.blobs.path(blob.sha256)
    stat = path.stat()
    alter(path, b"resulT")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert isinstance(store.lookup(KEY), Record)  # the stat rule's limit: nothing has left the store yet
    with pytest.raises(DamagedBlobError):
        store.blobs.copy_out(blob, tmp_path / "copy")
    checked, damaged = verify_all(store)
    assert checked == 2 and {(d.kind, d.state) for d in damaged} == {
        ("blob", "its bytes are not what its name says"),
        ("record", "its output 'onnx' is gone"),
    }


def test_a_lost_blob_is_said_to_be_lost(store: Store) -> None:
    store.blobs.path(publish(store).outputs["onnx"].sha256).unlink()
    found = store.lookup(KEY)
    assert isinstance(found, Missing) and found.what == "blob lost"


@pytest.mark.parametrize("change", [lambda d: d[:-10], lambda d: d.replace(b"prepare", b"prepaRe"), lambda d: b"{}"])
def test_an_altered_record_is_not_served(store: Store, change: Callable[[bytes], bytes]) -> None:
    publish(store)
    path = store.records.path(KEY)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DamagedRecordError):
        store.records.read(KEY)
    assert store.lookup(KEY) == Missing("record damaged")
    assert verify_all(store)[1][0].kind == "record"


def test_a_record_under_another_key_is_not_served(store: Store) -> None:
    publish(store)
    other = "0" * 64
    store.records.path(other).parent.mkdir()
    store.records.path(other).write_bytes(store.records.path(KEY).read_bytes())
    assert store.lookup(other) == Missing("record damaged")


def test_the_stat_rows_may_go_at_any_time(store: Store, tmp_path: Path) -> None:
    record = publish(store)
    store.close()
    database = tmp_path / "store" / "v1" / "stat.sqlite"
    for content in (None, b"not a database, but long enough to look like a file of one" * 40):
        database.unlink()
        if content is not None:
            database.write_bytes(content)
        with Store(tmp_path / "store") as again:
            assert again.lookup(KEY) == record


def test_a_store_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be used"):
        Store(tmp_path / "file" / "store")


class TestStat:
    @pytest.fixture
    def cache(self, tmp_path: Path) -> StatCache:
        return StatCache(tmp_path / "stat.sqlite")

    @staticmethod
    def settle(path: Path) -> None:
        """Make the file look old; its ctime cannot be set, so wait for that to be old enough."""
        past = time.time_ns() - 10_000_000_000
        os.utime(path, ns=(past, past))
        time.sleep(2.1)

    def test_a_settled_file_is_hashed_once(self, cache: StatCache, tmp_path: Path) -> None:
        path = tmp_path / "data"
        path.write_bytes(b"1")
        self.settle(path)
        calls = iter(["first", "second"])
        assert [cache.digest(path, "", lambda: next(calls)) for _ in range(2)] == ["first", "first"]
        assert cache.digest(path, "another part", lambda: next(calls)) == "second"

    def test_a_young_file_is_hashed_again(self, cache: StatCache, tmp_path: Path) -> None:
        path = tmp_path / "data"
        path.write_bytes(b"1")
        calls = iter(["first", "second"])
        assert [cache.digest(path, "", lambda: next(calls)) for _ in range(2)] == ["first", "second"]

    def test_a_write_that_keeps_size_and_mtime_is_seen(self, cache: StatCache, tmp_path: Path) -> None:
        path = tmp_path / "data"
        path.write_bytes(b"1")
        self.settle(path)
        calls = iter(["first", "second"])
        cache.digest(path, "", lambda: next(calls))
        stat = path.stat()
        path.write_bytes(b"2")
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert cache.digest(path, "", lambda: next(calls)) == "second"

    def test_a_file_that_changes_while_it_is_hashed(self, cache: StatCache, tmp_path: Path) -> None:
        path = tmp_path / "data"
        path.write_bytes(b"1")
        with pytest.raises(FileChangedError, match="changed while it was being read"):
            cache.digest(path, "", lambda: str(path.write_bytes(b"22")))

    def test_a_locked_database_only_costs_speed(self, tmp_path: Path) -> None:
        first = StatCache(tmp_path / "stat.sqlite")
        other = sqlite3.connect(tmp_path / "stat.sqlite", timeout=0)
        first._database.execute("PRAGMA busy_timeout=0")  # type: ignore[union-attr]
        other.execute("BEGIN EXCLUSIVE")
        path = tmp_path / "data"
        path.write_bytes(b"1")
        assert first.digest(path, "", lambda: "digest") == "digest"


class TestLocks:
    def test_one_holder_at_a_time(self, tmp_path: Path) -> None:
        first, second = KeyLock(tmp_path / "key.lock"), KeyLock(tmp_path / "key.lock")
        assert first.acquire() and not second.acquire()
        first.release()
        assert second.acquire()
        second.release()
        assert not (tmp_path / "key.lock").exists()

    def test_a_killed_holder_lets_go(self, tmp_path: Path) -> None:
        path = tmp_path / "key.lock"
        code = (
            "import sys, time; from pathlib import Path; from trtrecipe.store.locks import KeyLock\n"
            "assert KeyLock(Path(sys.argv[1])).acquire(); print('held', flush=True); time.sleep(60)"
        )
        holder = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        assert not KeyLock(path).acquire()
        holder.kill()
        holder.wait()
        holder.stdout.close()
        lock = KeyLock(path)
        assert lock.acquire()
        lock.release()
