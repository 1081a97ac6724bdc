"""Blobs, records, stat rows and locks: whole, or not served."""

from __future__ import annotations

import errno
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
from trtrecipe.store.blobs import Blob, DamagedBlobError, explain_oserror
from trtrecipe.store.inspect import survey, verify_all
from trtrecipe.store.locks import KeyLock
from trtrecipe.store.records import DamagedRecordError, Record
from trtrecipe.store.stat import FileChangedError, StatCache
from trtrecipe.store.store import Missing, Store, default_root

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
    assert record.measurements == {"seconds": 1.5} and store.records.key_document(KEY) == DOCUMENT
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


@pytest.fixture
def plain_user(store: Store) -> Iterator[None]:
    """Run as someone for whom modes count, even where tests run as root."""
    if os.geteuid() != 0:
        yield
        return
    # The folders above the store stay as they are, so it is used from within.
    before = Path.cwd()
    for path in (store.root, *store.root.rglob("*")):
        os.chown(path, 65534, 65534)
    os.chdir(store.root)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
        os.chdir(before)


def a_folder(path: Path) -> None:
    path.mkdir()
    (path / "file").touch()


def a_loop(path: Path) -> None:
    path.symlink_to(path)


def dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def a_link(path: Path) -> None:
    (path.parent / "copy").write_bytes(b"result")
    path.symlink_to("copy")


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


IN_ITS_PLACE = [a_folder, a_loop, dangling, a_link, a_pipe]


@pytest.mark.parametrize("put", IN_ITS_PLACE)
def test_what_stands_in_a_blobs_place_is_set_aside(store: Store, tmp_path: Path, put: Callable[[Path], None]) -> None:
    record = publish(store)
    blob = record.outputs["onnx"]
    path = store.blobs.path(blob.sha256)
    path.unlink()
    put(path)
    found = store.lookup(KEY)
    assert isinstance(found, Missing) and found.what == "blob damaged"
    with pytest.raises(DamagedBlobError):
        store.blobs.copy_out(blob, tmp_path / "copy")
    assert survey(store).records == 1
    assert ("blob", blob.sha256) in {(damage.kind, damage.name) for damage in verify_all(store)[1]}
    assert survey(store).set_aside >= 2
    assert publish(store).outputs == record.outputs and isinstance(store.lookup(KEY), Record)


@pytest.mark.parametrize("put", IN_ITS_PLACE)
def test_what_stands_in_a_records_place_is_set_aside(store: Store, put: Callable[[Path], None]) -> None:
    record = publish(store)
    path = store.records.path(KEY)
    path.unlink()
    put(path)
    assert store.lookup(KEY) == Missing("record damaged")
    # Whoever finds it first sets it aside: a build that looked it up, one that did not, or cache verify.
    assert publish(store) == record == store.lookup(KEY)
    path.unlink()
    put(path)
    store.set_aside(KEY, Missing("record damaged"))
    assert store.lookup(KEY) == Missing("none")
    put(path)
    assert [damage.name for damage in verify_all(store)[1]] == [KEY]
    assert publish(store) == record == store.lookup(KEY)


def test_a_damaged_blob_is_set_aside_by_who_makes_it_again(store: Store) -> None:
    blob = publish(store).outputs["onnx"]
    store.blobs.path(blob.sha256).unlink()
    a_folder(store.blobs.path(blob.sha256))
    publish(store, key="0" * 64)
    assert survey(store).set_aside == 1 and isinstance(store.lookup(KEY), Record)


@pytest.mark.parametrize("put", [Path.touch, dangling, a_loop])
def test_what_stands_in_a_folders_place_is_set_aside(store: Store, put: Callable[[Path], None]) -> None:
    for folder in (store.records.path(KEY).parent, store.blobs.path(sha256_bytes(b"result")).parent):
        put(folder)
    assert isinstance(store.lookup(KEY), Missing)
    assert verify_all(store) == (0, [])
    assert publish(store) == store.lookup(KEY)
    assert survey(store).set_aside == 2


@pytest.mark.usefixtures("plain_user")
def test_what_cannot_be_read_is_damaged(tmp_path: Path) -> None:
    root = Path() if os.getuid() == 0 else tmp_path / "store"
    with Store(root) as store:
        record = publish(store)
        blob = record.outputs["onnx"]
        store.blobs.path(blob.sha256).chmod(0)
        found = store.lookup(KEY)
        assert isinstance(found, Missing) and found.what == "blob damaged"
        with pytest.raises(DamagedBlobError):
            store.blobs.copy_out(blob, store.root / "copy")
        store.set_aside(KEY, found)
        assert publish(store) == record
        store.records.path(KEY).chmod(0)
        assert store.lookup(KEY) == Missing("record damaged")
        assert [damage.kind for damage in verify_all(store)[1]] == ["record"]
        assert publish(store) == record == store.lookup(KEY)


@pytest.mark.usefixtures("plain_user")
def test_damage_that_cannot_be_set_aside_is_told(tmp_path: Path) -> None:
    root = Path() if os.getuid() == 0 else tmp_path / "store"
    with Store(root) as store:
        blob = publish(store).outputs["onnx"]
        path = store.blobs.path(blob.sha256)
        alter(path, b"resulT")
        path.parent.chmod(0o555)
        try:
            checked, damaged = verify_all(store)
            with pytest.raises(StoreError, match="cannot be written to") as caught:
                store.blobs.set_aside(blob.sha256)
        finally:
            path.parent.chmod(0o755)
        assert checked == 2 and damaged[0].kept is not None and "Permission denied" in damaged[0].kept
        assert caught.value.hint == "set TRTRECIPE_STORE to a folder that you can write to"


def test_a_blob_that_was_put_right_meanwhile_stays(store: Store) -> None:
    record = publish(store)
    store.blobs.set_aside(record.outputs["onnx"].sha256)
    assert store.lookup(KEY) == record and survey(store).set_aside == 0


@pytest.mark.parametrize("name", ["blobs", "records", "locks", "tmp", "last"])
def test_a_folder_that_is_gone_is_made_again(store: Store, tmp_path: Path, name: str) -> None:
    import shutil

    publish(store)
    shutil.rmtree(store.root / "v1" / name)
    with Store(store.root) as again:
        record = publish(again)
        assert again.lookup(KEY) == record
        assert again.lock(KEY).acquire()
        again.write_last(tmp_path / "recipe.yaml", {})


LAST = {"calibrate": {"key": KEY, "why": [["the samples changed", None], ["export changed", "export"]]}}


@pytest.mark.parametrize(
    "content",
    [
        b'{"calibrate": 5}',
        b"[" * 200_000,
        b"[]",
        b"\xff",
        b"{",
        b'{"calibrate": {"key": 5, "why": []}}',
        b'{"calibrate": {"key": "..", "why": []}}',
        b'{"calibrate": {"key": "%s", "why": 3}}' % KEY.encode(),
        b'{"calibrate": {"key": "%s", "why": ["ab"]}}' % KEY.encode(),
        b'{"calibrate": {"key": "%s", "why": [["a", 3]]}}' % KEY.encode(),
        None,
    ],
    ids=lambda content: repr(content)[:40],
)
def test_a_damaged_memory_of_the_last_build_is_forgotten(store: Store, tmp_path: Path, content: bytes | None) -> None:
    recipe = tmp_path / "recipe.yaml"
    store.write_last(recipe, LAST)
    assert store.read_last(recipe) == LAST
    (path,) = (store.root / "v1" / "last").iterdir()
    path.unlink()
    if content is None:
        a_folder(path)
    else:
        path.write_bytes(content)
    assert store.read_last(recipe) == {}
    store.write_last(recipe, LAST)
    assert store.read_last(recipe) == LAST


def test_a_recipe_is_remembered_by_its_real_path(store: Store, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    store.write_last(tmp_path / "link" / "recipe.yaml", LAST)
    assert store.read_last(tmp_path / "folder" / "recipe.yaml") == LAST
    odd = tmp_path / os.fsdecode(b"\xff.yaml")
    store.write_last(odd, LAST)
    assert store.read_last(odd) == LAST


def test_old_logs_and_work_folders_are_swept(store: Store) -> None:
    temporary = store.root / "v1" / "tmp"
    held = store.lock("held")
    assert held.acquire()
    for age in ("old", "new"):
        (temporary / f"{age}.log").touch()
        a_folder(temporary / age)
        (temporary / f"{age}.link").symlink_to(store.root)
    a_folder(temporary / "held")
    past = time.time() - 8 * 24 * 3600
    for path in temporary.iterdir():
        if not path.name.startswith("new"):
            os.utime(path, (past, past), follow_symlinks=False)
    store.sweep()
    assert {path.name for path in temporary.iterdir()} == {"new.log", "new", "new.link", "held"}
    assert store.root.is_dir()
    held.release()


def test_the_default_store_is_absolute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRTRECIPE_STORE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "relative")
    assert default_root() == Path.cwd() / "relative" / ".cache" / "trtrecipe"
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("os.getuid", lambda: 4_000_000_000)
    with pytest.raises(StoreError, match="no home folder") as caught:
        default_root()
    assert caught.value.hint == "set TRTRECIPE_STORE to a folder"


@pytest.mark.parametrize(
    ("what", "hint"),
    [("store", "set TRTRECIPE_STORE to a folder that you can write to"), ("output folder", "use --output FOLDER")],
)
def test_a_folder_that_cannot_be_written_to_comes_with_a_way_out(what: str, hint: str) -> None:
    for error in (PermissionError(errno.EACCES, "Permission denied"), OSError(errno.ENOTDIR, "Not a directory")):
        assert explain_oserror(error, Path("folder"), what).hint == hint


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

    @staticmethod
    def remember(cache: StatCache, path: Path) -> None:
        path.write_bytes(b"1")
        os.utime(path, (1, 1))
        cache.remember_blob("0" * 64, path.stat())

    def test_a_damaged_database_is_made_anew(self, tmp_path: Path) -> None:
        path, blob = tmp_path / "stat.sqlite", tmp_path / "blob"
        first = StatCache(path)
        self.remember(first, blob)
        first.close()
        content = path.read_bytes()
        path.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))
        second = StatCache(path)
        assert not second.blob_is_known("0" * 64, blob.stat())
        self.remember(second, blob)
        assert second.blob_is_known("0" * 64, blob.stat())
        second.close()
        assert StatCache(path).blob_is_known("0" * 64, blob.stat())

    def test_a_log_is_not_played_into_another_database(self, cache: StatCache, tmp_path: Path) -> None:
        assert cache._database is not None
        cache._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self.remember(cache, tmp_path / "blob")
        copy = tmp_path / "copy.sqlite"
        copy.write_bytes(b"no database" * 1000)
        (tmp_path / "copy.sqlite-wal").write_bytes((tmp_path / "stat.sqlite-wal").read_bytes())
        anew = StatCache(copy)
        assert not anew.blob_is_known("0" * 64, (tmp_path / "blob").stat())
        self.remember(anew, tmp_path / "blob")
        assert anew.blob_is_known("0" * 64, (tmp_path / "blob").stat())

    def test_a_locked_database_is_not_removed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "stat.sqlite"
        other = sqlite3.connect(path)
        other.execute("CREATE TABLE other (x)")
        other.execute("BEGIN EXCLUSIVE")
        inode = path.stat().st_ino
        connect = sqlite3.connect
        monkeypatch.setattr(sqlite3, "connect", lambda name, **options: connect(name, **options | {"timeout": 0}))
        StatCache(path).close()
        assert path.stat().st_ino == inode

    def test_no_row_keeps_another_process_waiting(self, cache: StatCache, tmp_path: Path) -> None:
        self.remember(cache, tmp_path / "blob")
        other = sqlite3.connect(tmp_path / "stat.sqlite", timeout=0)
        other.execute("BEGIN IMMEDIATE")

    def test_names_that_are_no_utf8(self, cache: StatCache, tmp_path: Path) -> None:
        path = tmp_path / os.fsdecode(b"\xff")
        path.write_bytes(b"1")
        self.settle(path)
        calls = iter(["first", "second", "third"])
        assert [cache.digest(path, "", lambda: next(calls)) for _ in range(2)] == ["first", "first"]
        assert cache.digest(path, "\udcff", lambda: next(calls)) == "second"


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


def test_rows_read_at_once_say_the_same(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"1")
    TestStat.settle(path)
    with Store(tmp_path / "store") as first:
        record = publish(first)
        first.stat.digest(path, "", lambda: "digest")
    with Store(tmp_path / "store") as store:
        store.stat.preload()
        assert store.lookup(KEY) == record
        assert store.stat.digest(path, "", lambda: "hashed again") == "digest"
        alter(store.blobs.path(record.outputs["onnx"].sha256), b"resulT")
        assert isinstance(store.lookup(KEY), Missing)
        path.write_bytes(b"2")
        assert store.stat.digest(path, "", lambda: "hashed again") == "hashed again"
