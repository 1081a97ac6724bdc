"""One lock file per key: whoever holds it works on that key."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


class KeyLock:
    """An flock that is taken without waiting, and released by the kernel when its process ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def acquire(self) -> bool:
        """Take the lock; False when someone else holds it."""
        while True:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                return False
            # The previous holder removes the file before it lets go: a lock on a removed file guards nothing.
            if _same_file(descriptor, self._path):
                self._descriptor = descriptor
                return True
            os.close(descriptor)

    def release(self) -> None:
        """Remove the file, then let go."""
        if self._descriptor is not None:
            self._path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = None


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
