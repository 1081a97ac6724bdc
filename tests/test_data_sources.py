"""Sampling, and reading samples as canonical .npy streams."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtrecipe.data.sampling import Sampling, select
from trtrecipe.data.sources import DataError, digest_samples, write_samples
from trtrecipe.digest import sha256_file

ALL = Sampling(None, 0)


@given(st.integers(1, 300), st.integers(0, 2**40), st.data())
def test_selection_is_ascending_distinct_and_nested(count: int, seed: int, data: st.DataObject) -> None:
    small = data.draw(st.integers(1, count))
    large = data.draw(st.integers(small, count))
    chosen = select(count, Sampling(small, seed))
    assert chosen == sorted(set(chosen)) and len(chosen) == small
    assert set(chosen) <= set(select(count, Sampling(large, seed)))


def test_selection_is_the_documented_one() -> None:
    import hashlib

    ranked = sorted(range(50), key=lambda index: hashlib.sha256(f"7:{index}".encode()).digest())
    assert select(50, Sampling(5, 7)) == sorted(ranked[:5])
    assert select(50, Sampling(5, 8)) != sorted(ranked[:5])


def test_more_samples_than_there_are() -> None:
    with pytest.raises(ValueError, match="5 samples are asked for and 4 exist"):
        select(4, Sampling(5, 0))
    assert select(4, Sampling(5, 0, at_most=True)) == [0, 1, 2, 3]


ARRAYS = [
    np.arange(60, dtype=np.float32).reshape(5, 3, 4),
    np.arange(5, dtype=np.int64),
    np.arange(40, dtype=">f8").reshape(5, 8),
    np.asfortranarray(np.arange(60, dtype=np.uint8).reshape(5, 12)),
    np.zeros((5, 0), dtype=np.float32),
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
    out = tmp_path / "out.npy"
    digest = write_samples(path, None if form == "npy" else "x", sampling, out)
    read = np.load(out)
    expected = array[select(5, sampling)]
    assert read.dtype == array.dtype and read.shape == expected.shape and (read == expected).all()
    assert digest == sha256_file(out) == digest_samples(path, None if form == "npy" else "x", sampling)
    canonical = io.BytesIO()
    np.save(canonical, np.ascontiguousarray(expected))
    assert out.read_bytes() == canonical.getvalue()


def _npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def test_only_the_samples_used_count(tmp_path: Path) -> None:
    array = np.arange(40.0).reshape(10, 4)
    before = digest_samples(_npz(tmp_path / "a.npz", x=array), "x", Sampling(4, 3))
    chosen = select(10, Sampling(4, 3))
    unused = next(index for index in range(10) if index not in chosen)
    array[unused] += 1
    assert digest_samples(_npz(tmp_path / "b.npz", x=array, y=array), "x", Sampling(4, 3)) == before
    array[chosen[0]] += 1
    assert digest_samples(_npz(tmp_path / "c.npz", x=array), "x", Sampling(4, 3)) != before


def _cut(path: Path, size: int) -> Path:
    path.write_bytes(path.read_bytes()[:size])
    return path


def _npy(path: Path, array: Any) -> Path:
    with path.open("wb") as file:
        np.save(file, array, allow_pickle=True)
    return path


def _bad_zip_member(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"no numpy here")
    return path


BAD = {
    "no such array": (lambda p: (_npz(p / "d.npz", x_test=np.zeros(3)), "x_tets"), "has no array 'x_tets'", "x_test?"),
    "not a zip": (lambda p: (_cut(_npz(p / "d.npz", x=np.zeros(99)), 60), "x"), "not a readable .npz", "numpy.savez"),
    "not npy": (lambda p: (_bad_zip_member(p / "d.npz"), "x"), "not in NumPy's .npy format", "numpy.save"),
    "cut short": (lambda p: (_cut(_npy(p / "d.npy", np.zeros(99)), 300), None), "cut short", "again"),
    "pickle": (lambda p: (_npy(p / "d.npy", np.array([{}, []], dtype=object)), None), "pickle", "numeric"),
    "text": (lambda p: (_npy(p / "d.npy", np.array(["a"])), None), "dtype <U1", "convert"),
    "structured": (lambda p: (_npy(p / "d.npy", np.zeros(3, dtype="i4,f4")), None), "dtype", "convert"),
    "a number": (lambda p: (_npy(p / "d.npy", np.float32(1)), None), "single number", "array of samples"),
    "empty file": (lambda p: (_cut(_npy(p / "d.npy", np.zeros(3)), 0), None), "not in NumPy's", "numpy.save"),
    "too few": (lambda p: (_npy(p / "d.npy", np.zeros(3)), None), "9 samples are asked for and 3 exist", "fewer"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_data_is_named(case: str, tmp_path: Path) -> None:
    make, message, hint = BAD[case]
    path, member = make(tmp_path)
    with pytest.raises(DataError) as caught:
        digest_samples(path, member, Sampling(9, 0) if case == "too few" else ALL)
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
                    digest_samples(path, member, ALL)
