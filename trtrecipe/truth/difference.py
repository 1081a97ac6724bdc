"""How far one output is from what it should be."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from trtrecipe.data.preprocess import Array

_FLOOR = 1e-3
"""Rows whose values are less than this part of the largest of all are judged by this part of it: of values that cancel
to almost nothing only the rounding remains."""
_KEPT = 4096  # elements of the first row, to see whether others differ
_SAME = 1e-6
_LARGEST = 1e300  # in place of infinity, which JSON has no word for


@dataclass
class Difference:
    """What was seen of one output over all runs.

    `max_abs`: largest difference. `cosine`: least cosine similarity of two runs' values. `differing`, `elements`: of
    integers, how many differ of how many. `wrong`: what cannot be put in a number, in words. `varies`: whether the
    source's values depend on the inputs drawn so far.
    """

    max_abs: float = 0.0
    cosine: float = 1.0
    differing: int = 0
    elements: int = 0
    wrong: str | None = None
    varies: bool = False
    _first: Array | None = None
    _rows: list[tuple[float, float]] = field(default_factory=list)  # (largest difference, largest magnitude)

    def add(self, expected: Array, found: Array, batch: int | None) -> None:
        """Take in one run: what the source gave, and the graph. With `batch`, outputs of that length are judged by
        row."""
        if expected.shape != found.shape:
            self._say(f"has the shape {list(found.shape)} and should have {list(expected.shape)}")
            return
        if (expected.dtype.kind in "fV") != (found.dtype.kind in "fV"):
            self._say(f"is {found.dtype} and should be {expected.dtype}")
            return
        self.elements += expected.size
        if expected.dtype.kind not in "fV":
            self.differing += int(np.count_nonzero(expected != found))
        wanted, given = expected.astype(np.float64), found.astype(np.float64)
        if not self._add_finite(wanted, given):
            return
        if not expected.size:
            return
        rows = (batch, -1) if batch is not None and expected.shape[:1] == (batch,) else (1, -1)
        self._look(wanted.reshape(rows))
        gaps = np.abs(wanted - given).reshape(rows).max(axis=1)
        sizes = np.abs(wanted).reshape(rows).max(axis=1)
        self._rows += zip(gaps.tolist(), sizes.tolist(), strict=True)
        self.max_abs = max(self.max_abs, float(gaps.max()))
        self.cosine = min(self.cosine, _cosine(wanted.reshape(-1), given.reshape(-1)))

    @property
    def relative(self) -> float:
        """The largest difference as a part of the largest magnitude of the row (one sample's values) it is in.

        The absolute difference where all values are zero; for integers the part of all elements that differ.
        """
        if self.wrong is not None:
            return _LARGEST
        if self.differing or not self._rows:
            return self.differing / self.elements if self.elements else 0.0
        largest = max(size for _, size in self._rows)
        return max(gap / (max(size, _FLOOR * largest) or 1.0) for gap, size in self._rows)

    def is_within(self, other: Difference, times: float, allowed: float) -> bool:
        """Whether each row (or the count of integers that differ) is off by at most `times` what `other`'s is.

        Rows that are off by no more than `allowed` of their magnitude are so in any case.
        """
        if self.wrong is not None:
            return self.wrong == other.wrong
        if self.differing:
            return self.differing <= times * other.differing
        largest = max(size for _, size in self._rows)
        return other.wrong is None and all(
            gap <= max(allowed * max(size, _FLOOR * largest), times * own)
            for (gap, size), (own, _) in zip(self._rows, other._rows, strict=True)
        )

    @property
    def is_flat(self) -> bool:
        """Whether several samples all gave the same values."""
        return len(self._rows) > 1 and not self.varies

    def document(self) -> dict[str, Any]:
        """For measurements."""
        return {"max_abs": self.max_abs, "relative": self.relative, "cosine": self.cosine}

    def words(self) -> str:
        """What is wrong with the output, to follow its name."""
        if self.wrong is not None:
            return self.wrong
        if self.differing:
            return f"differs in {self.differing:,} of {self.elements:,} elements"
        return f"differs by up to {self.max_abs:.3g}, {self.relative:.3g} of the largest magnitude"

    def _look(self, rows: npt.NDArray[np.float64]) -> None:
        """Whether a row differs from the first one seen, in the elements that are kept of it."""
        if self._first is None:
            self._first = rows[0, :_KEPT].copy()
        if not self.varies:
            few = rows[:, :_KEPT]
            self.varies = few.shape[1] != len(self._first) or bool(
                np.abs(few - self._first).max() > _SAME * np.abs(few).max()
            )

    def _add_finite(self, wanted: npt.NDArray[np.float64], given: npt.NDArray[np.float64]) -> bool:
        """Compare what is not finite, and put zeros there in both; whether the rest can be compared."""
        ends = ~np.isfinite(wanted)
        if not np.array_equal(wanted[ends], given[ends], equal_nan=True) or not np.isfinite(given[~ends]).all():
            self._say("is not finite in the same places")
            return False
        wanted[ends] = given[ends] = 0
        return True

    def _say(self, words: str) -> None:
        self.wrong = self.wrong or words


def _cosine(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    lengths = float(np.linalg.norm(a)), float(np.linalg.norm(b))
    if 0 in lengths:
        return 1.0 if lengths == (0, 0) else 0.0
    return float(np.clip(np.dot(a / lengths[0], b / lengths[1]), -1, 1))
