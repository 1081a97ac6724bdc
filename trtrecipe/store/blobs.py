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
from typing import IO

from trtrecipe.digest import CHUNK, sha256_file
from trtrecipe.errors import StoreError
from trtrecipe.store.stat import SETTLED_NS, StatCache

# Of a file's mode: its type, and whether its owner may read it. Nothing else is a blob, whatever it leads to.
_TYPE_AND_READ, _PLAIN_AND_READ = 0o170400, 0o100400
_PLAIN_FLAGS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_GONE = (errno.ENOENT, errno.ENOTDIR)
# What says that this one file is not what the store wrote; any other error is about the machine.
_DAMAGED = (errno.EISDIR, errno.ELOOP, errno.EACCES, errno.EPERM, errno.EIO, errno.ENXIO, errno.EAGAIN)
_HINTS = {
    "store": "set TRTRECIPE_STORE to a folder that you can write to",
    "output folder": "use --output FOLDER",
}


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
        """Move a file of the same file system into the store. Raises OSError, StoreError."""
        with file.open("rb") as opened:
            sha256 = hashlib.sha256()
            while chunk := opened.read(CHUNK):
                sha256.update(chunk)
            os.fsync(opened.fileno())
        blob = Blob(sha256.hexdigest(), file.stat().st_size)
        state = self.state(blob)
        if state is None:
            file.unlink()
            return blob
        if state == "damaged":
            self.set_aside(blob.sha256)
        target = self.path(blob.sha256)
        file.chmod(0o444)
        # An age of 10 s makes the stat row count at once, and any later write shows as a newer mtime.
        settled = time.time_ns() - 5 * SETTLED_NS
        os.utime(file, ns=(settled, settled))
        make_folder(target.parent, self._quarantine)
        file.rename(target)
        sync_folder(target.parent)
        self._stat.remember_blob(blob.sha256, target.stat())
        return blob

    def state(self, blob: Blob) -> str | None:
        """None when the blob is there and whole, else "lost" or "damaged".

        A blob whose stat is as it was when it was last hashed counts as whole; any other is hashed now. Raises OSError.
        """
        try:
            stat = os.lstat(self._name(blob.sha256))
        except OSError as error:
            return wrong_with(error)
        if stat.st_size != blob.size or stat.st_mode & _TYPE_AND_READ != _PLAIN_AND_READ:
            return "damaged"
        if self._stat.blob_is_known(blob.sha256, stat):
            return None
        return self.verify(blob)

    def verify(self, blob: Blob) -> str | None:
        """Like `state`, always hashing. Raises OSError."""
        path = self.path(blob.sha256)
        try:
            stat = path.lstat()
            if stat.st_mode & _TYPE_AND_READ != _PLAIN_AND_READ or sha256_file(path) != blob.sha256:
                return "damaged"
        except OSError as error:
            return wrong_with(error)
        self._stat.remember_blob(blob.sha256, stat)
        return None

    def copy_out(self, blob: Blob, target: Path) -> None:
        """Copy the blob to a new file `target`, then hash what arrived there.

        Raises DamagedBlobError, leaving no file, when the bytes are not the blob; OSError.
        """
        try:
            reader = open(self._name(blob.sha256), "rb", opener=open_plain)  # noqa: SIM115 (closed below)
        except OSError as error:
            raise DamagedBlobError(blob, wrong_with(error)) from None
        with reader, target.open("xb") as writer:
            _copy(reader, writer)
        if sha256_file(target) != blob.sha256:
            target.unlink()
            raise DamagedBlobError(blob, "damaged")

    def all(self) -> Iterator[tuple[str, Path]]:
        """(SHA-256, path) of whatever stands where a blob would, in no order."""
        for path in self._folder.glob("??/*"):
            yield path.parent.name + path.name, path

    def set_aside(self, sha256: str) -> None:
        """Move a blob that is damaged still out of the way, where a person can look at it. Raises OSError, StoreError.

        It is hashed again, since another process may have put it right meanwhile.
        """
        if self.verify(Blob(sha256, 0)) == "damaged":
            move_aside(self.path(sha256), self._quarantine, sha256)


def wrong_with(error: OSError) -> str:
    """ "lost" or "damaged", from what the system answered for a stored file; any other error is raised again."""
    if error.errno in _GONE:
        return "lost"
    if error.errno in _DAMAGED:
        return "damaged"
    raise error


def open_plain(name: str, flags: int) -> int:
    """A descriptor, opened without following a link or waiting for a pipe. Raises OSError."""
    return os.open(name, flags | _PLAIN_FLAGS)


def move_aside(path: Path, quarantine: Path, name: str) -> None:
    """Move what stands at `path`, or keeps it from being there, to where a person can look at it. Raises StoreError."""
    if not os.path.isdir(path.parent):
        path = path.parent
    try:
        with contextlib.suppress(FileNotFoundError):
            path.rename(quarantine / f"{name}.{os.urandom(4).hex()}")
    except OSError as error:
        raise explain_oserror(error, path, "store") from error


def make_folder(folder: Path, quarantine: Path) -> None:
    """Make a folder of the store; anything else in its place is set aside. Raises OSError, StoreError."""
    try:
        folder.mkdir(exist_ok=True)
    except FileExistsError:
        move_aside(folder, quarantine, folder.name)
        folder.mkdir(exist_ok=True)


def _copy(reader: IO[bytes], writer: IO[bytes]) -> None:
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
        return StoreError(f"the {what} {folder} cannot be written to: {error.strerror}", _HINTS.get(what))
    return StoreError(f"the {what} {folder} cannot be used: {error.strerror or error}", _HINTS.get(what))
