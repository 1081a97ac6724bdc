"""Sampling, and reading samples as canonical .npy streams."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtrecipe.data.errors import DataError
from trtrecipe.data.sampling import Sampling, select
from trtrecipe.data.sources import ArrayData, digest_samples, write_samples
from trtrecipe.digest import sha256_file
from trtrecipe.errors import InputError, Problem
from trtrecipe.plan.sources import ModelSource, SampleSource, digest_sources, source_digest
from trtrecipe.store.stat import StatCache

ALL = Sampling(None, 0)


@given(st.integers(1, 300), st.integers(0, 2**40), st.data())
def test_selection_is_ascending_distinct_and_nested(count: int, seed: int, data: st.DataObject) -> None:
    small = data.draw(st.integers(1, count))
    large = data.draw(st.integers(small, count))
    chosen = select(count, Sampling(small, seed))
    assert list(chosen) == sorted(set(chosen)) and len(chosen) == small
    assert set(chosen) <= set(select(count, Sampling(large, seed)))


def test_selection_is_the_documented_one() -> None:
    import hashlib

    ranked = sorted(range(50), key=lambda index: hashlib.sha256(f"7:{index}".encode()).digest())
    assert select(50, Sampling(5, 7)) == sorted(ranked[:5])
    assert select(50, Sampling(5, 8)) != sorted(ranked[:5])


def test_more_samples_than_there_are() -> None:
    with pytest.raises(ValueError, match="5 samples are asked for and 4 exist"):
        select(4, Sampling(5, 0))
    assert list(select(4, Sampling(5, 0, at_most=True))) == [0, 1, 2, 3]


ARRAYS = [
    np.arange(60, dtype=np.float32).reshape(5, 3, 4),
    np.arange(5, dtype=np.int64),
    np.arange(40, dtype=">f8").reshape(5, 8),
    np.asfortranarray(np.arange(60, dtype=np.uint8).reshape(5, 12)),
    np.array([True, False, True, True, False]),
]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype.str}{array.shape}")
@pytest.mark.parametrize("sampling", [ALL, Sampling(3, 1)], ids=["all", "three"])
@pytest.mark.parametrize("form", ["npy", "npz", "compressed"])
def test_samples_arrive_as_numpy_reads_them(array: Any, sampling: Sampling, form: str, tmp_path: Path) -> None:
    path = tmp_path / "data"
    if form == "npy":
        with path.open("wb") as file:
            np.save(file, array)
    else:
        with path.open("wb") as file:
            (np.savez if form == "npz" else np.savez_compressed)(file, x=array, other=np.zeros(9))
    data = ArrayData(path, None if form == "npy" else "x")
    out = tmp_path / "out.npy"
    digest = write_samples(data, sampling, out)
    read = np.load(out)
    expected = array[select(5, sampling)]
    assert read.dtype == array.dtype and read.shape == expected.shape and (read == expected).all()
    assert digest == sha256_file(out) == digest_samples(data, sampling)
    canonical = io.BytesIO()
    np.save(canonical, np.ascontiguousarray(expected))
    assert out.read_bytes() == canonical.getvalue()


def _npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def test_only_the_samples_used_count(tmp_path: Path) -> None:
    array = np.arange(40.0).reshape(10, 4)
    before = digest_samples(ArrayData(_npz(tmp_path / "a.npz", x=array), "x"), Sampling(4, 3))
    chosen = select(10, Sampling(4, 3))
    unused = next(index for index in range(10) if index not in chosen)
    array[unused] += 1
    assert digest_samples(ArrayData(_npz(tmp_path / "b.npz", x=array, y=array), "x"), Sampling(4, 3)) == before
    array[chosen[0]] += 1
    assert digest_samples(ArrayData(_npz(tmp_path / "c.npz", x=array), "x"), Sampling(4, 3)) != before


def _cut(path: Path, size: int) -> Path:
    path.write_bytes(path.read_bytes()[:size])
    return path


def _npy(path: Path, array: Any) -> Path:
    with path.open("wb") as file:
        np.save(file, array, allow_pickle=True)
    return path


def _zip(path: Path, member: bytes, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("x.npy", member)
    return path


def _header(shape: object, descr: object = "<f4", fortran: bool = False, data: bytes = b"") -> bytes:
    """An .npy file as its header says, true or not."""
    body = f"{{'descr': {descr!r}, 'fortran_order': {fortran}, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x02\x00" + len(body).to_bytes(4, "little") + body + data


def _written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def _bad_deflate(path: Path) -> Path:
    """An archive whose compressed bytes start with a block of no known type."""
    np.savez_compressed(path, x=np.arange(1000))
    data = bytearray(path.read_bytes())
    name, extra = int.from_bytes(data[26:28], "little"), int.from_bytes(data[28:30], "little")
    data[30 + name + extra] = 0xFF
    return _written(path, bytes(data))


def _lying_archive(path: Path) -> Path:
    """An archive that promises 10 GB of one member, header and directory alike, and holds a few bytes."""
    count = 10**10
    _zip(path, _header(f"({count},)", "|u1", data=b"\0" * 9))
    data = path.read_bytes()
    directory = data.rindex(b"PK\x01\x02")
    lie = (0xFFFFFFFE).to_bytes(4, "little")
    return _written(path, data[: directory + 24] + lie + data[directory + 28 :])


BAD: dict[str, tuple[Callable[[Path], tuple[Path, str | None]], str, str]] = {
    "no such array": (lambda p: (_npz(p / "d.npz", x_test=np.zeros(3)), "x_tets"), "has no array 'x_tets'", "x_test?"),
    "not a zip": (lambda p: (_cut(_npz(p / "d.npz", x=np.zeros(99)), 60), "x"), "not a readable .npz", "numpy.savez"),
    "not npy": (lambda p: (_zip(p / "d.npz", b"no numpy here"), "x"), "not in NumPy's .npy format", "numpy.save"),
    "cut short": (lambda p: (_cut(_npy(p / "d.npy", np.zeros(99)), 300), None), "cut short", "again"),
    "pickle": (lambda p: (_npy(p / "d.npy", np.array([{}, []], dtype=object)), None), "pickle", "numeric"),
    "text": (lambda p: (_npy(p / "d.npy", np.array(["a"])), None), "dtype '<U1'", "convert"),
    "structured": (lambda p: (_npy(p / "d.npy", np.zeros(3, dtype="i4,f4")), None), "dtype", "convert"),
    "a number": (lambda p: (_npy(p / "d.npy", np.float32(1)), None), "single number", "array of samples"),
    "empty file": (lambda p: (_cut(_npy(p / "d.npy", np.zeros(3)), 0), None), "not in NumPy's", "numpy.save"),
    "too few": (lambda p: (_npy(p / "d.npy", np.zeros(3)), None), "9 samples are asked for and 3 exist", "fewer"),
    "bad deflate": (lambda p: (_bad_deflate(p / "d.npz"), "x"), "not a readable .npz file: Error", "numpy.savez"),
    "bzip2": (lambda p: (_zip(p / "d.npz", _header((1,)), zipfile.ZIP_BZIP2), "x"), "NumPy does not write", "savez"),
    "no values": (lambda p: (_npy(p / "d.npy", np.zeros((5, 0))), None), "its shape is (5, 0)", "at least one"),
    "no samples": (lambda p: (_npy(p / "d.npy", np.zeros((0, 5))), None), "its shape is (0, 5)", "at least one"),
    "endless and empty": (lambda p: (_written(p / "d.npy", _header((10**10, 0))), None), "is empty", "at least one"),
    "endless": (lambda p: (_written(p / "d.npy", _header((10**10,))), None), "cut short", "again"),
    "endless archive": (lambda p: (_lying_archive(p / "d.npz"), "x"), "cut short", "again"),
    "endless, Fortran": (
        lambda p: (_zip(p / "d.npz", _header((10**9, 10**6), fortran=True, data=b"\0" * 64)), "x"),
        "cut short",
        "again",
    ),
    "short, Fortran": (lambda p: (_cut(_npy(p / "d.npy", np.ones((9, 9)).T), 300), None), "cut short", "again"),
    "axes": (lambda p: (_written(p / "d.npy", _header((1,) * 20000, data=b"1234")), None), "20000 axes", "reshape"),
    "huge axis": (lambda p: (_written(p / "d.npy", _header(f"(0x{'f' * 9000},)")), None), "its shape", "again"),
    "huge dtype": (lambda p: (_written(p / "d.npy", _header((1,), ["x" * 9])), None), "several fields", "convert"),
    "b8": (lambda p: (_written(p / "d.npy", _header((1,), "|b8", data=b"12345678")), None), "dtype '|b8'", "convert"),
    "f1": (lambda p: (_written(p / "d.npy", _header((1,), "|f1", data=b"1")), None), "dtype '|f1'", "convert"),
    "line break": (lambda p: (_written(p / "d.npy", _header((1,), "<f4\n", data=b"1234")), None), "dtype", "convert"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_data_is_named(case: str, tmp_path: Path) -> None:
    make, message, hint = BAD[case]
    path, member = make(tmp_path)
    with pytest.raises(DataError) as caught:
        digest_samples(ArrayData(path, member), Sampling(9, 0) if case == "too few" else ALL)
    assert message in caught.value.message
    assert hint in (caught.value.hint or "")


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.npy")
        for content in (data, b"\x93NUMPY\x01\x00" + data, b"PK\x03\x04" + data):
            path.write_bytes(content)
            for member in (None, "x"):
                with pytest.raises(DataError):
                    digest_samples(ArrayData(path, member), ALL)


def test_a_header_that_calls_functions_is_refused_in_the_same_words_each_time(tmp_path: Path) -> None:
    body = b"print('called')\n"
    path = _written(tmp_path / "d.npy", b"\x93NUMPY\x01\x00" + len(body).to_bytes(2, "little") + body)
    with pytest.raises(DataError) as caught:
        digest_samples(ArrayData(path, None), ALL)
    assert caught.value.message == "d.npy has a damaged .npy header: malformed node or string on line 1"


def test_a_fortran_array_with_a_long_header_is_read(tmp_path: Path) -> None:
    array = np.asfortranarray(np.arange(12, dtype=np.int16).reshape(4, 3))
    padded = f"(4, {' ' * 20000}3)"
    path = _written(tmp_path / "d.npy", _header(padded, "<i2", True, array.tobytes("F")))
    archive = _zip(tmp_path / "d.npz", path.read_bytes(), zipfile.ZIP_DEFLATED)
    plain = digest_samples(ArrayData(_npy(tmp_path / "plain.npy", array), None), Sampling(2, 0))
    assert digest_samples(ArrayData(path, None), Sampling(2, 0)) == plain
    assert digest_samples(ArrayData(archive, "x"), Sampling(2, 0)) == plain


def test_the_digest_of_a_model_folder_is_refused_for_what_cannot_be_named(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / os.fsdecode(b"weights\xff")).touch()
    at = Problem("", "recipe.yaml", 3, 7)
    with pytest.raises(InputError, match=r"recipe.yaml:3:7: .*weights\\xff'") as caught:
        digest_sources([ModelSource(tmp_path / "model", at)], StatCache(tmp_path / "stat.sqlite"))
    assert caught.value.problems[0].hint == "rename it"


def test_a_model_folder_that_cannot_be_read_has_no_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model" / "variables").mkdir(parents=True)
    scandir = os.scandir

    def refuse(path: str) -> Any:
        if str(path).endswith("variables"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match=r"variables: Permission denied"):
        digest_sources([ModelSource(tmp_path / "model", Problem(""))], StatCache(tmp_path / "stat.sqlite"))


def test_rows_of_another_stream_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = []

    class Recorder:
        def digest(self, path: Path, part: str, compute: object) -> str:
            parts.append(part)
            return "0" * 64

    source = SampleSource(ArrayData(tmp_path / "x.npy", None), ALL, Problem(""), Problem(""))
    source_digest(source, Recorder())  # type: ignore[arg-type]  # stands for a StatCache
    monkeypatch.setattr("trtrecipe.plan.sources.STREAM", 99)
    source_digest(source, Recorder())  # type: ignore[arg-type]  # stands for a StatCache
    assert len(set(parts)) == 2
