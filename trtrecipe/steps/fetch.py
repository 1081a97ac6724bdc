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

from trtrecipe.errors import StepError

VERSION = 1
OUTPUTS = {"model": "model"}
NUMERIC = False


@dataclass(frozen=True)
class Params:
    """`format`: saved_model, keras or onnx."""

    format: str


def tools(params: Params) -> tuple[str, ...]:
    """No tool but Python's own."""
    return ()


def run(params: Params, inputs: Mapping[str, Path], out: Path) -> Mapping[str, Any]:
    """Copy "source" (file or directory) to `out/model`. Raises StepError if it is not what `params.format` says."""
    import shutil

    source, target = inputs["source"], out / OUTPUTS["model"]
    try:
        mode = source.stat().st_mode
    except OSError as error:
        raise StepError(
            f"the model {source} cannot be read: {error.strerror}", hint="model.source is a path relative to the recipe"
        ) from error
    if params.format == "saved_model":
        _require_saved_model(source, mode)
        _write_tar(source, target)
        return {}
    if not stat.S_ISREG(mode):
        raise StepError(
            f"the model {source} is {_kind(mode)}, but format {params.format} is a single file",
            hint="name the file in model.source, or give the right model.format",
        )
    with _open(source) as reader, target.open("wb") as writer:
        shutil.copyfileobj(reader, writer, 1 << 20)
    return {}


def _require_saved_model(source: Path, mode: int) -> None:
    if not stat.S_ISDIR(mode):
        raise StepError(
            f"the model {source} is {_kind(mode)}, but a SavedModel is a folder",
            hint="name the folder that holds saved_model.pb in model.source",
        )
    if not (source / "saved_model.pb").is_file():
        inside = sorted(path.parent.name for path in source.glob("*/saved_model.pb"))
        raise StepError(
            f"{source} is no SavedModel: it holds no saved_model.pb",
            hint=f"a folder inside it does: {inside[0]}" if inside else "name the folder that holds saved_model.pb",
        )


def _write_tar(folder: Path, target: Path) -> None:
    import tarfile

    names = sorted(_files(folder), key=lambda path: path.as_posix())
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as archive:
        for name in names:
            with _open(folder / name) as reader:
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
