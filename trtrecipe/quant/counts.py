"""What counting the values of some samples gives: mergeable, and storable as a file that is verified when read.

A file is one line of canonical JSON, the histograms' bytes in the order that the line lists them, and the SHA-256 of
both. It says of which layout and which samples it is, so that a file of other work is not taken for this one's.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from trtrecipe.digest import canonical_json, sha256_bytes, sha256_json
from trtrecipe.quant.histogram import Histogram

SCHEMA = "trtrecipe/counts/v1"
_SUFFIX = ".counts"
_DIGEST = 64

Range = tuple[float, float]
Span = tuple[int, int]
"""Samples from the first index up to, not including, the second."""
NOTHING: Range = (float("inf"), float("-inf"))


@dataclass
class Counts:
    """Of the samples in `spans` (ascending, apart): histograms and ranges by tensor.

    A range is the least and the largest value, `NOTHING` where there were none. `odd`: tensors that became NaN or
    infinite, of which neither is kept. Counting works in place.
    """

    histograms: dict[str, Histogram] = field(default_factory=dict)
    ranges: dict[str, Range] = field(default_factory=dict)
    odd: set[str] = field(default_factory=set)
    spans: list[Span] = field(default_factory=list)

    def merge(self, other: Counts) -> None:
        """Take in what was counted of other samples. Raises ValueError, changing nothing, when samples are in both."""
        spans = joined([*self.spans, *other.spans])
        self.odd |= other.odd
        for name, histogram in other.histograms.items():
            own = self.histograms.get(name)
            self.histograms[name] = histogram if own is None else own.merge(histogram)
        for name, found in other.ranges.items():
            self.ranges[name] = widened(self.ranges.get(name, NOTHING), found)
        for name in self.odd:
            self.histograms.pop(name, None)
            self.ranges.pop(name, None)
        self.spans = spans

    def done(self) -> int:
        """How many samples were counted."""
        return sum(stop - start for start, stop in self.spans)


def widened(one: Range, other: Range) -> Range:
    """The range of both."""
    return min(one[0], other[0]), max(one[1], other[1])


def joined(spans: Iterable[Span]) -> list[Span]:
    """The same samples in as few spans as can be, ascending. Raises ValueError when a sample is in two."""
    found: list[Span] = []
    for start, stop in sorted(span for span in spans if span[0] < span[1]):
        if found and start < found[-1][1]:
            raise ValueError(f"sample {start} was counted twice")
        if found and start == found[-1][1]:
            found[-1] = found[-1][0], stop
        else:
            found.append((start, stop))
    return found


def missing(spans: Sequence[Span], count: int) -> list[Span]:
    """The samples below `count` that are in none of `spans`, which are ascending and apart."""
    edges = [0, *(edge for span in spans for edge in span), count]
    return [(start, stop) for start, stop in zip(edges[::2], edges[1::2], strict=True) if start < stop]


def shares(spans: Sequence[Span], parts: int, step: int) -> list[list[Span]]:
    """The samples of `spans` in `parts` runs of nearly equal length, cut at multiples of `step`; some may be empty."""
    total = sum(stop - start for start, stop in spans)
    found: list[list[Span]] = [[] for _ in range(parts)]
    taken = 0
    for start, stop in spans:
        while start < stop:
            part = taken * parts // total
            end = -(-(part + 1) * total // parts)  # of this part, in samples taken
            cut = min(stop, start + max(1, end - taken))
            cut = min(stop, -(-cut // step) * step)
            found[part].append((start, cut))
            taken += cut - start
            start = cut
    return found


def write(counts: Counts, layout: str, path: Path) -> None:
    """Write the file at once or not at all: a reader never sees half of it. Raises OSError."""
    data = dump(counts, layout)
    temporary = path.with_suffix(".part")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def dump(counts: Counts, layout: str) -> bytes:
    """The file. `layout` says of which work it is part."""
    parts = {name: counts.histograms[name].to_bytes() for name in sorted(counts.histograms)}
    header = {
        "schema": SCHEMA,
        "layout": layout,
        "spans": counts.spans,
        "odd": sorted(counts.odd),
        "ranges": {name: [bound.hex() for bound in found] for name, found in counts.ranges.items()},
        "histograms": [[name, len(part)] for name, part in parts.items()],
    }
    body = b"".join([canonical_json(header), b"\n", *parts.values()])
    return body + sha256_bytes(body).encode()


def load(data: bytes, layout: str) -> Counts:
    """What `dump` was given. Raises ValueError for anything else, and for a file of another layout."""
    body, digest = data[:-_DIGEST], data[-_DIGEST:]
    if sha256_bytes(body).encode() != digest:
        raise ValueError("it is damaged")
    line, _, rest = body.partition(b"\n")
    header = json.loads(line)
    if not isinstance(header, dict) or header.get("schema") != SCHEMA or header.get("layout") != layout:
        raise ValueError("it belongs to other work")
    histograms = {}
    for name, length in header["histograms"]:
        histograms[name], rest = Histogram.from_bytes(rest[:length]), rest[length:]
    ranges = {name: (float.fromhex(low), float.fromhex(high)) for name, (low, high) in header["ranges"].items()}
    return Counts(histograms, ranges, set(header["odd"]), joined((start, stop) for start, stop in header["spans"]))


def file_name(group: int, suffix: str) -> str:
    """The name of a file of that group's counts."""
    return f"{group:04}-{suffix}{_SUFFIX}"


def read_all(folder: Path, group: int, layout: str) -> Counts:
    """What the folder's files hold of the group, merged. What is damaged or of other work is passed over.

    Raises OSError.
    """
    found = Counts()
    for path in sorted(folder.glob(file_name(group, "*"))):
        # Counting again costs time; trusting what cannot be read could cost the result.
        with contextlib.suppress(ValueError, KeyError, TypeError):
            found.merge(load(path.read_bytes(), layout))
    return found


def layout_name(layout: Mapping[str, object]) -> str:
    """A layout in words → the name of it that files carry."""
    return sha256_json(layout)
