"""Content-addressed bytes: a blob's file name is its SHA-256."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from trtrecipe.digest import CHUNK, sha256_file
from trtrecipe.errors import StoreError
from trtrecipe.store.stat import SETTLED_NS, StatCache


@dataclass(frozen=True, slots=True)
class Blob:
    """`sha256` in lower-case hexadecimal, `size` in bytes."""

    sha256: str
    size: int


class DamagedBlobError(Exception):
    """The bytes under a blob's name are not the blob, or are gone. `state` is "damaged" or "lost"."""

    def __init__(self, blob: Blob, state: str) -> None:
        super().__init__(f"blob {blob.sha256} is {state}")
        self.blob = blob
        self.state = state


class Blobs:
    """The folder of blobs, with the stat rows that spare hashing them again."""

    def __init__(self, folder: Path, quarantine: Path, stat: StatCache) -> None:
        self._folder = folder
        self._quarantine = quarantine
        self._stat = stat
        self._prefix = f"{folder}{os.sep}"

    def path(self, sha256: str) -> Path:
        """Where the blob's bytes are, or would be."""
        return Path(self._name(sha256))

    def _name(self, sha256: str) -> str:
        return f"{self._prefix}{sha256[:2]}{os.sep}{sha256[2:]}"

    def put(self, file: Path) -> Blob:
        """Move a file of the same file system into the store. Raises OSError."""
        with file.open("rb") as opened:
            sha256 = hashlib.sha256()
            while chunk := opened.read(CHUNK):
                sha256.update(chunk)
            os.fsync(opened.fileno())
        blob = Blob(sha256.hexdigest(), file.stat().st_size)
        if self.state(blob) is None:
            file.unlink()
            return blob
        target = self.path(blob.sha256)
        file.chmod(0o444)
        # An age of 10 s makes the stat row count at once, and any later write shows as a newer mtime.
        settled = time.time_ns() - 5 * SETTLED_NS
        os.utime(file, ns=(settled, settled))
        target.parent.mkdir(exist_ok=True)
        file.rename(target)
        sync_folder(target.parent)
        self._stat.remember_blob(blob.sha256, target.stat())
        return blob

    def state(self, blob: Blob) -> str | None:
        """None when the blob is there and whole, else "lost" or "damaged".

        A blob whose stat is as it was when it was last hashed counts as whole; any other is hashed now.
        """
        try:
            stat = os.stat(self._name(blob.sha256))
        except FileNotFoundError:
            return "lost"
        if stat.st_size != blob.size:
            return "damaged"
        if self._stat.blob_is_known(blob.sha256, stat):
            return None
        return self.verify(blob)

    def verify(self, blob: Blob) -> str | None:
        """Like `state`, always hashing."""
        path = self.path(blob.sha256)
        try:
            stat = path.stat()
            if sha256_file(path) != blob.sha256:
                return "damaged"
        except FileNotFoundError:
            return "lost"
        self._stat.remember_blob(blob.sha256, stat)
        return None

    def copy_out(self, blob: Blob, target: Path) -> None:
        """Copy the blob to a new file `target`, then hash what arrived there.

        Raises DamagedBlobError, leaving no file, when the bytes are not the blob; OSError.
        """
        try:
            _copy(self.path(blob.sha256), target)
        except FileNotFoundError:
            if self.path(blob.sha256).exists():
                raise
            raise DamagedBlobError(blob, "lost") from None
        if sha256_file(target) != blob.sha256:
            target.unlink()
            raise DamagedBlobError(blob, "damaged")

    def all(self) -> Iterator[tuple[str, Path]]:
        """(SHA-256, path) of every blob, in no order."""
        for path in self._folder.glob("??/*"):
            yield path.parent.name + path.name, path

    def set_aside(self, sha256: str) -> None:
        """Move a damaged blob out of the way, where a person can look at it."""
        with contextlib.suppress(FileNotFoundError):
            self.path(sha256).rename(self._quarantine / f"{sha256}.{os.urandom(4).hex()}")


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as reader, target.open("xb") as writer:
        left = os.fstat(reader.fileno()).st_size
        while left:
            try:
                copied = os.copy_file_range(reader.fileno(), writer.fileno(), min(left, 1 << 30))
            except OSError as error:
                # What file systems answer that cannot do it between each other, or at all.
                if error.errno not in (errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM):
                    raise
                copied = writer.write(reader.read(CHUNK))
                writer.flush()
            if not copied:
                break
            left -= copied


def sync_folder(folder: Path) -> None:
    """Make the folder's entries last a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def explain_oserror(error: OSError, folder: Path, what: str) -> StoreError:
    """The store's own words for an operating system error under `folder`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreError(f"no space left in the {what} {folder}", "free some space, then run the build again")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StoreError(f"the {what} {folder} cannot be written to: {error.strerror}", "name another folder")
    return StoreError(f"the {what} {folder} cannot be used: {error.strerror or error}")
