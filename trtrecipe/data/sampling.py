"""Which samples of a data set are used."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sampling:
    """`samples` items (None: all of them; `at_most`: all of them if there are fewer), chosen by `seed`."""

    samples: int | None
    seed: int
    at_most: bool = False

    def __str__(self) -> str:
        if self.samples is None:
            return "all samples"
        return f"{'up to ' if self.at_most else ''}{self.samples} samples by seed {self.seed}"


def select(count: int, sampling: Sampling) -> Sequence[int]:
    """Ascending indices of the items out of `count` with the smallest SHA-256 of "seed:index".

    The choice depends on nothing else, so it is the same however the data is stored or read, and a larger sample
    contains the smaller one. Raises ValueError when fewer items exist than are asked for.
    """
    samples, seed = sampling.samples, sampling.seed
    if samples is None or samples == count or (sampling.at_most and samples > count):
        return range(count)
    if samples > count:
        raise ValueError(f"{samples} samples are asked for and {count} exist")
    chosen = heapq.nsmallest(
        samples, range(count), key=lambda index: (hashlib.sha256(f"{seed}:{index}".encode()).digest(), index)
    )
    return sorted(chosen)
