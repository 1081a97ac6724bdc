"""The calibration table of implicit INT8: a text file of one scale per tensor, read and written exactly.

The first line is `TRT-<version>-<algorithm>`, each following one `<tensor name>: <8 hex digits>`. The digits are the
bits of the tensor's scale, a float32 in big-endian reading: max(|x|) / 127, so 127 x scale is the range. The name ends
at the last colon of the line, so names may hold colons. The form: github.com/NVIDIA/TensorRT release/8.2
samples/sampleINT8/README.md, and release/8.6 samples/common/sampleEngines.cpp, which splits lines that way.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from trtrecipe.errors import StepError

ENTROPY_2 = "EntropyCalibration2"
"""The algorithm of the calibrator that trtexec --calib reads a table with, and the only one that DLA takes."""
LARGEST = 64 << 20
"""Bytes of the largest table that is read: more than 100,000 tensors with names of 500 characters."""

_THOUSANDS = (7, 8, 9)
_TEN_THOUSANDS = 10
_HEADER = re.compile(r"TRT-([0-9]{4,6})-([A-Za-z][A-Za-z0-9]*)", re.ASCII)
_LINE = re.compile(r"(.*): ([0-9a-f]{8})", re.DOTALL)
_SHOWN = 80


@dataclass(frozen=True)
class Table:
    """Scales by tensor name, in the order of the file; each is a positive, finite float32 held in a float.

    `tensorrt` is the exact version that the header names ("8.5.2"), `algorithm` such as `ENTROPY_2`.
    """

    tensorrt: str
    algorithm: str
    scales: Mapping[str, float]


def read(path: Path) -> Table:
    """The table in the file. Raises StepError naming file, line and reason; OSError when it cannot be read."""
    with path.open("rb") as file:
        return parse(file.read(LARGEST + 1), path.name)


def parse(data: bytes, name: str = "the calibration table") -> Table:
    """The table in `data`, called `name` in errors. Raises StepError naming the line and what is wrong with it."""
    if len(data) > LARGEST:
        raise StepError(f"{name} has more than {LARGEST >> 20} MiB, so it is no calibration table", _HINT)
    lines = data.split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    if not lines:
        raise StepError(f"{name} is empty", _HINT)
    tensorrt, algorithm = _header(_text(lines[0], name, 1), name)
    scales: dict[str, float] = {}
    first: dict[str, int] = {}
    for number, line in enumerate(lines[1:], 2):
        tensor, scale = _entry(_text(line, name, number), name, number)
        if tensor in scales:
            raise _wrong(name, number, f"tensor {shown(tensor)} is on line {first[tensor]} already")
        scales[tensor], first[tensor] = scale, number
    if not scales:
        raise StepError(f"{name} has a header and no scales", _HINT)
    return Table(tensorrt, algorithm, scales)


def dump(table: Table) -> bytes:
    """The table's file, which `parse` reads back as an equal table. Raises StepError for what no line can say."""
    lines = [f"TRT-{version_number(table.tensorrt)}-{table.algorithm}"]
    if not _HEADER.fullmatch(lines[0]):
        raise StepError(f"a calibration table's header cannot name the algorithm {shown(table.algorithm)}")
    for tensor, scale in table.scales.items():
        if problem := _unusable_name(tensor) or _unusable(scale):
            raise StepError(f"the calibration table cannot hold tensor {shown(tensor)}: {problem}")
        lines.append(f"{tensor}: {struct.pack('>f', scale).hex()}")
    return ("\n".join(lines) + "\n").encode()


def version_number(tensorrt: str) -> int:
    """The header's number for an exact version: 8.5.2 is 8502, 10.3.0 is 100300. Raises StepError.

    NV_TENSORRT_VERSION of github.com/NVIDIA/TensorRT include/NvInferRuntimeCommon.h (7.1, 8.0), NvInferRuntimeBase.h
    (8.6, 9.3, 10.3, 10.16): major*1000 + minor*100 + patch up to 9, major*10000 + minor*100 + patch in 10. TensorRT 11
    has neither calibrators nor tables.
    """
    parts = tensorrt.split(".")
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() and len(part) < 4 for part in parts):
        raise StepError(
            f"{shown(tensorrt)} is no exact TensorRT version, and a calibration table is valid for one only",
            "name it as major.minor.patch, such as 8.5.2",
        )
    major, minor, patch = map(int, parts)
    if major > _TEN_THOUSANDS:
        raise StepError(
            f"TensorRT {tensorrt} takes no calibration table: implicit quantization ended with 10.x",
            "use precision.quantization: explicit",
        )
    if major == _TEN_THOUSANDS and max(minor, patch) < 100:
        return major * 10_000 + minor * 100 + patch
    if major in _THOUSANDS and minor < 10 and patch < 100:
        return major * 1_000 + minor * 100 + patch
    raise StepError(f"how TensorRT {tensorrt} is written in a calibration table's header is not known")


def shown(text: str) -> str:
    """The text for a message: quoted, on one line, its first part where it is long."""
    return repr(text[:_SHOWN]) + ("..." if len(text) > _SHOWN else "")


_HINT = "give the file that a TensorRT INT8 calibrator wrote: a line TRT-<version>-<algorithm>, then a line per tensor"


def _wrong(name: str, line: int, reason: str, hint: str = _HINT) -> StepError:
    return StepError(f"{name}, line {line}: {reason}", hint)


def _text(line: bytes, name: str, number: int) -> str:
    if line.endswith(b"\r"):
        hint = "save it with plain line feeds; TensorRT reads the carriage return as a part of the line"
        raise _wrong(name, number, "it ends in a carriage return", hint)
    try:
        return line.decode()
    except UnicodeDecodeError:
        raise _wrong(name, number, "it is not UTF-8 text") from None


def _header(line: str, name: str) -> tuple[str, str]:
    found = _HEADER.fullmatch(line)
    if not found:
        raise _wrong(name, 1, f"{shown(line)} is no header")
    number = int(found[1])
    major, rest = divmod(number, 10_000 if number >= 100_000 else 1_000)
    tensorrt = f"{major}.{rest // 100}.{rest % 100}"
    if major not in (*_THOUSANDS, _TEN_THOUSANDS) or str(version_number(tensorrt)) != found[1]:
        raise _wrong(name, 1, f"{found[1]} is the number of no TensorRT release that has calibration tables")
    return tensorrt, found[2]


def _entry(line: str, name: str, number: int) -> tuple[str, float]:
    found = _LINE.fullmatch(line)
    if not found:
        reason = f"{shown(line)} is not a tensor name, a colon, a space and 8 lower-case hexadecimal digits"
        raise _wrong(name, number, reason if line else "it is empty")
    [scale] = struct.unpack(">f", bytes.fromhex(found[2]))
    if problem := _unusable_name(found[1]) or _unusable(scale):
        raise _wrong(name, number, problem)
    return found[1], scale


def _unusable_name(tensor: str) -> str | None:
    if not tensor:
        return "the tensor has no name"
    if "\n" in tensor or any("\ud800" <= character <= "\udfff" for character in tensor):
        return "its name holds a line feed or is no text"
    return None


def _unusable(scale: float) -> str | None:
    """Why the number is no scale, or None. What float32 does not hold exactly would not be read back the same."""
    if not (math.isfinite(scale) and scale > 0):
        return f"its scale is {scale}, which is not a positive number"
    try:
        exact = struct.unpack(">f", struct.pack(">f", scale)) == (scale,)
    except OverflowError:
        exact = False
    return None if exact else f"its scale {scale!r} is not a float32"
