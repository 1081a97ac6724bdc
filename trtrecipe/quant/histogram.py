"""What calibration keeps of a tensor: its exact range, and how many of its values have which size.

Sizes are counted on a grid of float32 bit patterns: a cell is all values whose |x| has the same exponent and the same
first `MANTISSA` bits of mantissa, 2048 cells to a binade. Such a grid needs no range beforehand, so one pass is enough,
and is the same for all parts of the data, so parts are merged by adding integers. Values further than `BINADES` powers
of two below the largest, denormals and zeros share one cell: none of them can matter to an 8-bit scale. Which values
those are depends only on the largest value of all, so the result is the same in whatever order values came.
"""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt

MANTISSA = 11
BINADES = 24
CELLS = BINADES << MANTISSA
"""Cells of the grid, beside the one for what is too small."""

_SHIFT = 23 - MANTISSA
_MAGNITUDE = np.uint32(0x7FFFFFFF)
_PIECE = 1 << 17  # values counted at once: their indices take half a MiB
_HEADER = struct.Struct("<8sffIII")
_MAGIC = b"trthist1"

Counts = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]


class Histogram:
    """Counts of |x| over the values seen so far, and their least and largest x (+inf and -inf before the first).

    `counts` is int64, shape [1 + CELLS]: first what is too small for the grid, then cell by cell, ascending; the grid
    ends with the binade of the largest |x|. `add` works in place, as a copy per call would cost more than counting.
    """

    __slots__ = ("_first", "counts", "max", "min")

    def __init__(self) -> None:
        self.counts: Counts = np.zeros(1 + CELLS, np.int64)
        self.min = float("inf")
        self.max = float("-inf")
        self._first = _first_cell(0.0)  # the number, over all of float32, of the grid's first cell

    @property
    def count(self) -> int:
        """How many values were seen."""
        return int(self.counts.sum())

    @property
    def largest(self) -> float:
        """The largest |x|; 0 before the first value."""
        return max(self.max, -self.min, 0.0)

    def add(self, values: Float32) -> None:
        """Count float32 `values` of any shape. Raises ValueError, leaving a part counted, when one is not finite."""
        if values.dtype != np.float32:
            raise TypeError(f"values are {values.dtype}, not float32")
        flat = np.ascontiguousarray(values).reshape(-1)
        for start in range(0, flat.size, _PIECE):
            self._add_piece(flat[start : start + _PIECE])

    def _add_piece(self, piece: Float32) -> None:
        low, high = float(piece.min()) + 0.0, float(piece.max()) + 0.0  # + 0.0 turns -0.0, found by chance, into 0.0
        if not (np.isfinite(low) and np.isfinite(high)):
            raise ValueError("a value is NaN or infinite")
        self.min, self.max = min(self.min, low), max(self.max, high)
        self._end_at(_first_cell(self.largest))
        below = np.uint32(self._first - 1)
        cells = piece.view(np.uint32) & _MAGNITUDE
        cells >>= np.uint32(_SHIFT)
        np.maximum(cells, below, out=cells)
        cells -= below
        np.add.at(self.counts, cells.view(np.int32), 1)

    def _end_at(self, first: int) -> None:
        """Move the grid up so that it starts with cell `first`; what falls out below is too small from now on."""
        moved = min(first - self._first, CELLS)
        if moved <= 0:
            return
        counts = np.zeros_like(self.counts)
        counts[0] = self.counts[: 1 + moved].sum()
        counts[1 : 1 + CELLS - moved] = self.counts[1 + moved :]
        self.counts, self._first = counts, first

    def merge(self, other: Histogram) -> Histogram:
        """The histogram of both parts together, as if it had counted all their values itself."""
        merged = Histogram()
        merged.min, merged.max = min(self.min, other.min), max(self.max, other.max)
        merged._end_at(_first_cell(merged.largest))
        for part in (self, other):
            moved = min(merged._first - part._first, CELLS)
            merged.counts[0] += part.counts[: 1 + moved].sum()
            merged.counts[1 : 1 + CELLS - moved] += part.counts[1 + moved :]
        return merged

    def edges(self) -> Float64:
        """Bounds of the grid's cells, float64, shape [CELLS + 1]: cell i of `counts[1:]` is edges[i] <= |x| < [i+1]."""
        patterns = (self._first + np.arange(CELLS + 1, dtype=np.int64)) << _SHIFT
        infinity = 0xFF << 23
        bounds: Float64 = np.minimum(patterns, infinity).astype(np.uint32).view(np.float32).astype(np.float64)
        return bounds

    def above(self, threshold: float) -> int:
        """How many |x| are beyond `threshold`, as far as cells tell: those in cells that begin at it or further up."""
        if threshold >= self.largest:
            return 0
        return int(self.counts[1:][self.edges()[:-1] >= threshold].sum())

    def linear(self) -> tuple[Counts, float]:
        """Counts in bins of equal width from 0 to the largest |x|, without what is too small; and the bins' width.

        The width is a power of two, such that there are 2049 to 4096 bins: every bin then is a whole number of cells,
        and its count is exact.
        """
        _, exponent = np.frexp(self.largest)
        width = float(np.ldexp(1.0, int(exponent) - 1 - MANTISSA))
        used = np.flatnonzero(self.counts[1:])
        bins = (self.edges()[used] / width).astype(np.int64)
        counts = np.zeros((int(bins[-1]) if bins.size else 0) + 1, np.int64)
        np.add.at(counts, bins, self.counts[1:][used])
        return counts, width

    def to_bytes(self) -> bytes:
        """All of it, the same bytes for the same values in any order and from any parts."""
        used = np.flatnonzero(self.counts)
        first, stop = (int(used[0]), int(used[-1]) + 1) if used.size else (0, 0)
        header = _HEADER.pack(_MAGIC, self.min, self.max, self._first, first, stop)
        return header + self.counts[first:stop].astype("<i8").tobytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> Histogram:
        """What `to_bytes` gave. Raises ValueError for anything else."""
        try:
            magic, low, high, grid, first, stop = _HEADER.unpack_from(data)
        except struct.error:
            raise ValueError("not a histogram: too short") from None
        made = cls()
        made.min, made.max = low, high
        sound = magic == _MAGIC and first <= stop <= 1 + CELLS and len(data) == _HEADER.size + 8 * (stop - first)
        if not sound or grid != _first_cell(made.largest):
            raise ValueError("not a histogram, or one of another version")
        made._first = grid
        made.counts[first:stop] = np.frombuffer(data, "<i8", offset=_HEADER.size)
        if (made.counts < 0).any():
            raise ValueError("not a histogram: a count is negative")
        return made


def _first_cell(largest: float) -> int:
    """The number of the first cell of the grid that ends with the binade of `largest`; never one of denormals."""
    exponent = int(np.float32(largest).view(np.uint32)) >> 23
    return max(exponent - BINADES + 1, 1) << MANTISSA
