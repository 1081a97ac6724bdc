"""What is wrong with data, as found while planning; the caller knows its place in the recipe."""

from __future__ import annotations

from collections.abc import Sequence

from trtrecipe.data.sampling import Sampling, select

LFS_POINTER = b"version https://git-lfs"
"""How a Git LFS pointer begins (https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md)."""


class DataError(Exception):
    """The data cannot be used as asked; `field` names the part of the recipe at fault (array, samples or file)."""

    def __init__(self, message: str, hint: str | None = None, field: str = "file") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.field = field


def lfs_pointer(what: str) -> DataError:
    """The error for a pointer in the place of a file."""
    return DataError(f"{what} is a Git LFS pointer, not the data", "run: git lfs pull")


def chosen(count: int, sampling: Sampling, what: str) -> Sequence[int]:
    """`sampling.select`, with a DataError for a sample that is larger than what there is."""
    try:
        return select(count, sampling)
    except ValueError as error:
        raise DataError(f"{what}: {error}", "ask for fewer samples or add data", field="samples") from None
