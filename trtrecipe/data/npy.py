"""Reads the selected samples of an .npy file, or of an array in an .npz file, as one canonical .npy byte stream.

The stream is what steps are given and what keys are made of: version 1.0 header, C order, the file's own dtype and
byte order, the samples in ascending index order. Nothing is unpickled. Memory stays bounded by one piece, save for an
array in Fortran order inside an .npz file, which is held whole. Only Fortran order needs NumPy; planning a build must
not import it.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from trtrecipe.data.errors import LFS_POINTER, DataError, chosen, lfs_pointer
from trtrecipe.data.sampling import Sampling

_PIECE = 1 << 20
_DESCR = re.compile(r"[<>|=](b1|[iu][1248]|f[248])")
_MAX_AXES = 32
# Deflate cannot make more of a byte than this, whatever a file promises.
_MAX_INFLATION = 1032


@dataclass(frozen=True)
class Header:
    """An .npy header: NumPy type string, sample count, shape of one sample (the axes after the first)."""

    descr: str
    count: int
    sample_shape: tuple[int, ...]
    fortran: bool

    @property
    def sample_bytes(self) -> int:
        return int(self.descr[2:]) * math.prod(self.sample_shape)


def stream_array(path: Path, member: str | None, sampling: Sampling) -> Iterator[bytes]:
    """The canonical stream in pieces. `member` is the array's name in an .npz file, None for an .npy file."""
    with _open(path, member) as (file, size, what):
        header = _read_header(file, what)
        # Before anything is done for each sample: a header can promise any number of them.
        expected = header.count * header.sample_bytes
        if size - file.tell() < expected:
            raise DataError(
                f"{what} is cut short: its header promises {expected} bytes of data", "write the file again"
            )
        indices = chosen(header.count, sampling, what)
        yield header_bytes(header, len(indices))
        if header.fortran:
            yield from _fortran_samples(path if member is None else None, file, header, indices, what)
        else:
            yield from _samples(file, header, indices, what)


@contextmanager
def _open(path: Path, member: str | None) -> Iterator[tuple[IO[bytes], int, str]]:
    """The file, the most bytes it can hold, and what to call it."""
    if member is None:
        with path.open("rb") as file:
            yield file, path.stat().st_size, path.name
        return
    import zipfile
    import zlib

    unreadable = (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, RuntimeError, KeyError, ValueError)
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            if member not in names:
                from difflib import get_close_matches

                close = get_close_matches(member, names, 1)
                hint = f"did you mean {close[0]}?" if close else None
                raise DataError(f"{path.name} has no array '{member}'; it has: {', '.join(names)}", hint, field="array")
            entry = archive.getinfo(f"{member}.npy")
            if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise NotImplementedError(f"array '{member}' is compressed in a way that NumPy does not write")
            size = min(entry.file_size, _MAX_INFLATION * path.stat().st_size)
            with archive.open(entry) as file:
                yield file, size, f"array '{member}' of {path.name}"
    except unreadable as error:
        with path.open("rb") as file:
            if file.read(len(LFS_POINTER)) == LFS_POINTER:
                raise lfs_pointer(path.name) from None
        raise DataError(f"{path.name} is not a readable .npz file: {error}", "write it with numpy.savez") from None


def _read_header(file: IO[bytes], what: str) -> Header:
    import ast

    start = file.read(8)
    if start == LFS_POINTER[:8]:
        raise lfs_pointer(what)
    if start[:6] != b"\x93NUMPY" or len(start) < 8 or start[6] not in (1, 2, 3):
        raise DataError(f"{what} is not in NumPy's .npy format", "write it with numpy.save or numpy.savez")
    length_format = "<H" if start[6] == 1 else "<I"
    try:
        (length,) = struct.unpack(length_format, file.read(struct.calcsize(length_format)))
        if length > 65536:
            raise ValueError(f"a header of {length} bytes")
        fields = ast.literal_eval(file.read(length).decode("utf-8" if start[6] == 3 else "latin1").strip())
        descr, fortran, shape = fields["descr"], fields["fortran_order"], fields["shape"]
    except (ValueError, SyntaxError, KeyError, TypeError, struct.error, MemoryError, RecursionError) as error:
        why = str(error).partition(": <ast.")[0]  # what follows is where an object of Python's lies in memory
        raise DataError(f"{what} has a damaged .npy header: {why}", "write the file again") from None
    if isinstance(descr, str) and descr.endswith("O"):
        raise DataError(f"{what} holds Python objects (a pickle), which is refused", "save a plain numeric array")
    if not isinstance(descr, str) or not _DESCR.fullmatch(descr):
        dtype = f"dtype {descr[:40]!a}" if isinstance(descr, str) else "a dtype of several fields"
        raise DataError(f"{what} has {dtype}; numbers and booleans are supported", "convert it before saving")
    if not isinstance(shape, tuple) or not all(type(axis) is int and 0 <= axis < 1 << 63 for axis in shape):
        raise DataError(f"{what} has a damaged .npy header: its shape is none", "write the file again")
    if not shape:
        raise DataError(f"{what} is a single number; samples run along the first axis", "save an array of samples")
    if len(shape) > _MAX_AXES:
        raise DataError(f"{what} has {len(shape)} axes; at most {_MAX_AXES} are supported", "reshape it before saving")
    if 0 in shape:
        raise DataError(f"{what} is empty: its shape is {shape}", "save at least one sample of at least one value")
    return Header(descr, shape[0], shape[1:], bool(fortran) and len(shape) > 1)


def header_bytes(header: Header, count: int) -> bytes:
    """The .npy header of `count` samples in C order."""
    shape = (count, *header.sample_shape)
    text = f"{{'descr': '{header.descr}', 'fortran_order': False, 'shape': {shape!r}, }}"
    padding = -(10 + len(text) + 1) % 64
    body = text.encode("latin1") + b" " * padding + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(body)) + body


def _samples(file: IO[bytes], header: Header, chosen: Sequence[int], what: str) -> Iterator[bytes]:
    start, position = file.tell(), 0
    for first, count in _runs(chosen):
        if first != position:
            file.seek(start + first * header.sample_bytes)
        left = count * header.sample_bytes
        while left:
            piece = file.read(min(left, _PIECE))
            if not piece:
                raise DataError(f"{what} ends before sample {first + count - 1}", "write the file again")
            left -= len(piece)
            yield piece
        position = first + count


def _runs(indices: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Ascending indices as (first, count) of consecutive ones, so that reading stays sequential."""
    if isinstance(indices, range):
        yield indices.start, len(indices)
        return
    first, count = 0, 0
    for index in indices:
        if count and index == first + count:
            count += 1
            continue
        if count:
            yield first, count
        first, count = index, 1
    if count:
        yield first, count


def _fortran_samples(
    path: Path | None, file: IO[bytes], header: Header, chosen: Sequence[int], what: str
) -> Iterator[bytes]:
    """Each sample's bytes lie all over the array: mapped from the file at `path`, else read whole from `file`."""
    import numpy as np

    shape = (header.count, *header.sample_shape)
    array: np.ndarray[Any, Any]
    if path is not None:
        array = np.memmap(path, header.descr, "r", file.tell(), shape, "F")
    else:
        data = file.read(header.count * header.sample_bytes)
        if len(data) < header.count * header.sample_bytes:
            raise DataError(f"{what} ends before its last sample", "write the file again")
        array = np.frombuffer(data, header.descr).reshape(shape, order="F")
    for index in chosen:
        yield np.ascontiguousarray(array[index]).tobytes()
