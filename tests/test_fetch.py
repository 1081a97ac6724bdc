"""fetch: what enters the store is content alone."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest

from trtrecipe.errors import StepError
from trtrecipe.steps import fetch


def _fetch(source: Path, out: Path, format: str = "saved_model") -> bytes:
    out.mkdir()
    assert fetch.run(fetch.Params(format=format), {"source": source}, out) == {}
    return (out / "model").read_bytes()


def _saved_model(folder: Path, names: tuple[str, ...] = ("saved_model.pb", "variables/b", "variables/a")) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


def test_equal_folders_give_equal_bytes(tmp_path: Path) -> None:
    one = _saved_model(tmp_path / "one")
    two = _saved_model(tmp_path / "elsewhere" / "two", ("variables/a", "variables/b", "saved_model.pb"))
    (two / "saved_model.pb").chmod(0o755)
    os.utime(two / "variables/a", (1, 1))
    (two / "assets").mkdir()
    assert _fetch(one, tmp_path / "o1") == _fetch(two, tmp_path / "o2")


def test_the_tar_holds_names_and_bytes_only(tmp_path: Path) -> None:
    _fetch(_saved_model(tmp_path / "m"), tmp_path / "o")
    with tarfile.open(tmp_path / "o" / "model") as archive:
        members = archive.getmembers()
        assert [m.name for m in members] == ["saved_model.pb", "variables/a", "variables/b"]
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o644)}
        assert all(m.isreg() for m in members)
        content = archive.extractfile("variables/a")
        assert content is not None and content.read() == b"variables/a"


def test_every_byte_and_name_counts(tmp_path: Path) -> None:
    before = _fetch(_saved_model(tmp_path / "m"), tmp_path / "o1")
    (tmp_path / "m" / "variables" / "a").write_bytes(b"Variables/a")
    after = _fetch(tmp_path / "m", tmp_path / "o2")
    (tmp_path / "m" / "variables" / "a").rename(tmp_path / "m" / "variables" / "c")
    assert len({before, after, _fetch(tmp_path / "m", tmp_path / "o3")}) == 3


def test_a_file_is_copied_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "m.h5").write_bytes(b"\x89HDF\r\n\x1a\n" * 1000)
    assert _fetch(tmp_path / "m.h5", tmp_path / "o", "h5") == b"\x89HDF\r\n\x1a\n" * 1000


@pytest.mark.parametrize("format", ["saved_model", "keras", "onnx"])
def test_a_missing_model_is_named(tmp_path: Path, format: str) -> None:
    with pytest.raises(StepError, match=r"nowhere cannot be read: No such file"):
        _fetch(tmp_path / "nowhere", tmp_path / "o", format)


def test_a_folder_that_is_no_saved_model(tmp_path: Path) -> None:
    _saved_model(tmp_path / "m" / "1")
    with pytest.raises(StepError, match=r"is a folder without saved_model\.pb") as caught:
        _fetch(tmp_path / "m", tmp_path / "o")
    assert caught.value.hint == "a folder inside it is one: 1"


def test_the_wrong_kind_of_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(StepError, match=r"is a file, and model\.format says saved_model") as caught:
        _fetch(tmp_path / "file", tmp_path / "o1")
    assert caught.value.hint == "name the folder that holds saved_model.pb"
    with pytest.raises(StepError, match=r"is a SavedModel, and model\.format says onnx"):
        _fetch(_saved_model(tmp_path / "m"), tmp_path / "o2", "onnx")


def test_links_and_special_files_are_refused(tmp_path: Path) -> None:
    folder = _saved_model(tmp_path / "m")
    (folder / "link").symlink_to("saved_model.pb")
    with pytest.raises(StepError, match="link is a symbolic link"):
        _fetch(folder, tmp_path / "o1")
    (folder / "link").unlink()
    (folder / "inside").symlink_to(tmp_path)
    with pytest.raises(StepError, match="inside is a symbolic link"):
        _fetch(folder, tmp_path / "o2")
    (folder / "inside").unlink()
    os.mkfifo(folder / "pipe")
    with pytest.raises(StepError, match="pipe is a special file"):
        _fetch(folder, tmp_path / "o3")


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _saved_model(tmp_path / "m")
    whole = os.fstat
    monkeypatch.setattr(fetch.os, "fstat", lambda fd: os.stat_result((*whole(fd)[:6], whole(fd).st_size + 1, 0, 0, 0)))
    with pytest.raises(StepError, match="changed while it was read"):
        _fetch(folder, tmp_path / "o")
