"""What a Keras file says of itself, read without Keras; files that hold more than they should, or code, are refused."""

from __future__ import annotations

import json
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from trtrecipe.errors import StepError
from trtrecipe.graphs.keras_config import SAFELY, require_no_code

EXPANSION = 100
"""How many times its own size a file may declare to hold. Keras compresses nothing; a pruned model that somebody
compressed stays far below."""
FLOOR = 64 << 20
"""Bytes that a file may declare to hold, however small it is."""
_CONFIG = 64 << 20  # bytes of JSON; the largest models need a few MiB

_CONFIG_NAME, _METADATA_NAME, _WEIGHTS_NAME = "config.json", "metadata.json", "model.weights.h5"
_PICKLE = re.compile(rb"\x80[\x02-\x05]")


@dataclass(frozen=True)
class KerasFile:
    """`config`: the model's, {"class_name", "config"}. `version`: the Keras that wrote it, where the file says."""

    config: Mapping[str, Any]
    version: str | None

    @property
    def is_keras_2(self) -> bool:
        """Whether tf-keras reads it; so are HDF5 files that say no version."""
        return self.version is None or self.version.split(".")[0] in ("1", "2")


def read_archive(path: Path) -> KerasFile:
    """A `.keras` file. Raises StepError when it is damaged, carries code, or declares far more than its size."""
    try:
        with zipfile.ZipFile(path) as archive:
            _check_members(archive, path.stat().st_size)
            names = archive.namelist()
            if _CONFIG_NAME not in names:
                raise StepError(
                    "the Keras file holds no config.json, so no model", hint="save it with model.save('model.keras')"
                )
            config = _json(archive, _CONFIG_NAME)
            metadata = _json(archive, _METADATA_NAME) if _METADATA_NAME in names else {}
            if _WEIGHTS_NAME in names:
                with archive.open(_WEIGHTS_NAME) as weights:
                    _check_hdf5(weights, archive.getinfo(_WEIGHTS_NAME).file_size)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError) as error:
        raise StepError(
            f"the model file is no .keras file, or it is cut short: {error}",
            hint="compare its size with the original's",
        ) from error
    require_no_code(config)
    return KerasFile(config, metadata.get("keras_version"))


def read_hdf5(path: Path) -> KerasFile:
    """An HDF5 file with a whole model. Raises StepError like `read_archive`, and when it holds weights alone."""
    import h5py

    with path.open("rb") as file:
        _check_hdf5(file, path.stat().st_size)
        with _undamaged(), h5py.File(file, "r") as opened:
            text, version = opened.attrs.get("model_config"), opened.attrs.get("keras_version")
    if text is None:
        raise StepError(
            "the HDF5 file holds weights alone, and no model", hint="save the whole model: model.save('model.keras')"
        )
    config = _parsed(_text(text), "model_config")
    require_no_code(config)
    return KerasFile(config, None if version is None else _text(version))


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _json(archive: zipfile.ZipFile, name: str) -> dict[str, Any]:
    if archive.getinfo(name).file_size > _CONFIG:
        raise StepError(f"{name} of the Keras file has more than {_CONFIG >> 20} MiB", hint="save the model again")
    return _parsed(archive.read(name).decode("utf-8", "replace"), name)


def _parsed(text: str, name: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise StepError(f"{name} of the Keras file is no JSON: {error}", hint="save the model again") from error
    if not isinstance(value, dict) or (name != _METADATA_NAME and not isinstance(value.get("config"), dict | list)):
        raise StepError(f"{name} of the Keras file describes no model", hint="save the model again")
    return value


def _check_members(archive: zipfile.ZipFile, size: int) -> None:
    """Names, declared sizes, then every byte: Python stops at a member's declared size and compares its checksum."""
    members = archive.infolist()
    for member in members:
        name = PurePosixPath(member.filename.replace("\\", "/"))
        if name.is_absolute() or ".." in name.parts or re.match(r"[A-Za-z]:", member.filename):
            raise StepError(
                f"the Keras file holds {member.filename}, which would leave its folder", hint="do not use this file"
            )
        if member.flag_bits & 1:
            raise StepError("the Keras file is encrypted", hint="give it without a password")
    _check_size("the Keras file", sum(member.file_size for member in members), size)
    for member in members:
        with archive.open(member) as content:
            start = content.read(2)
            if _PICKLE.match(start):
                raise StepError(
                    f"the Keras file holds {member.filename}, a pickle, which runs code when it is read", hint=SAFELY
                )
            while content.read(1 << 20):
                pass


def _check_size(what: str, declared: int, size: int) -> None:
    if declared > max(FLOOR, EXPANSION * size):
        raise StepError(
            f"{what} has {size:,} bytes and declares to hold {declared:,}: it would fill the memory",
            hint="do not use this file; Keras itself writes models uncompressed",
        )


@contextmanager
def _undamaged() -> Iterator[None]:
    """Turn what h5py raises about damaged data, at whatever depth it meets it, into a StepError."""
    try:
        yield
    except StepError:
        raise
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, OverflowError, MemoryError) as error:
        words = " ".join(str(error).split())
        raise StepError(
            f"the HDF5 data cannot be read, it is damaged or cut short: {words[:200]}",
            hint="compare the file's size with the original's",
        ) from error


def _check_hdf5(file: IO[bytes], size: int) -> None:
    """Refuse what is cut short, points to other files, or declares more than the file's `size` can account for."""
    import h5py

    declared = 0
    with _undamaged(), h5py.File(file, "r") as opened:
        waiting, seen = [opened["/"]], set()
        while waiting:
            group = waiting.pop()
            for name in group:
                link = group.get(name, getlink=True)
                if isinstance(link, h5py.ExternalLink):
                    raise StepError(
                        f"the HDF5 data refers to another file: {group.name.rstrip('/')}/{name}",
                        hint="save the model again in one file",
                    )
                item = group.get(name)
                if isinstance(item, h5py.Dataset):
                    if item.external or item.is_virtual:
                        raise StepError(
                            f"the HDF5 data refers to another file: {item.name}",
                            hint="save the model again in one file",
                        )
                    declared += item.size * item.dtype.itemsize
                elif isinstance(item, h5py.Group) and item.id not in seen:
                    seen.add(item.id)
                    waiting.append(item)
    _check_size("the HDF5 data", declared, size)
