"""fetch: brings the model source into the store, by content.

A file is copied as it is. A directory becomes a tar that holds nothing but names and bytes, so equal content gives
equal bytes whatever the folder, owner, dates and order of the files were.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtrecipe import external_data, formats
from trtrecipe.errors import StepError

VERSION = 1
OUTPUTS = {"model": "model"}
NUMERIC = False


@dataclass(frozen=True)
class Params:
    """`format`: one of `formats.FORMATS`."""

    format: str


def tools(params: Params) -> tuple[str, ...]:
    """No tool but Python's own."""
    return ()


def run(params: Params, inputs: Mapping[str, Path], out: Path) -> Mapping[str, Any]:
    """Copy "source" (file or directory) to `out/model`, an ONNX model with what it keeps in other files.

    Raises StepError if it is not what `params.format` says, for Git LFS pointers, and for files that do not fit.
    """
    import shutil

    source, target = inputs["source"], out / OUTPUTS["model"]
    try:
        formats.model_format(source, params.format)
        if params.format == "onnx":
            external_data.write_in_one(source, target)
            return {}
    except formats.FormatError as error:
        raise StepError(f"the model {error.message}", hint=error.hint) from error
    except OSError as error:
        raise StepError(
            f"the model {source} cannot be read: {error.strerror}", hint="model.source is a path relative to the recipe"
        ) from error
    if params.format == "saved_model":
        _write_tar(source, target)
        return {}
    with _open(source) as reader, target.open("wb") as writer:
        shutil.copyfileobj(reader, writer, 1 << 20)
    return {}


def _write_tar(folder: Path, target: Path) -> None:
    import tarfile

    names = sorted(_files(folder), key=lambda path: path.as_posix())
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as archive:
        for name in names:
            with _open(folder / name) as reader:
                if formats.is_lfs_pointer(reader.read(64)):
                    raise StepError(
                        f"{folder / name} is a Git LFS pointer, not the file itself",
                        hint="run git lfs pull in its repository",
                    )
                reader.seek(0)
                info = tarfile.TarInfo(name.as_posix())
                info.size = os.fstat(reader.fileno()).st_size
                info.mode = 0o644
                try:
                    archive.addfile(info, reader)
                except OSError as error:
                    if error.errno is not None:
                        raise
                    # Without an error number it is tarfile's own: the file ended before its size.
                    raise StepError(f"{folder / name} changed while it was read", hint="build again") from error


def _files(folder: Path) -> Iterator[Path]:
    """Paths of all files relative to `folder`. Raises StepError for links and anything else that is no file."""
    pending = [folder]
    while pending:
        current = pending.pop()
        try:
            entries = list(os.scandir(current))
        except OSError as error:
            raise StepError(f"the folder {current} cannot be read: {error.strerror}") from error
        for entry in entries:
            path = Path(entry.path)
            if entry.is_dir(follow_symlinks=False):
                pending.append(path)
            elif entry.is_file(follow_symlinks=False):
                yield path.relative_to(folder)
            else:
                raise StepError(
                    f"{path} is {_kind(entry.stat(follow_symlinks=False).st_mode)}; "
                    "a model folder may hold regular files and folders only",
                    hint="copy the file itself to that place, or remove it",
                )


def _open(path: Path) -> Any:
    try:
        return path.open("rb")
    except OSError as error:
        raise StepError(f"{path} cannot be read: {error.strerror}", hint="check its permissions") from error


def _kind(mode: int) -> str:
    names = {stat.S_IFDIR: "a folder", stat.S_IFREG: "a file", stat.S_IFLNK: "a symbolic link"}
    return names.get(stat.S_IFMT(mode), "a special file")
