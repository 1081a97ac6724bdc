"""quant.counts: what parts of the samples give merges exactly, and is not trusted when it is not what it says."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trtrecipe.quant.counts import (
    NOTHING,
    Counts,
    Span,
    dump,
    file_name,
    joined,
    load,
    missing,
    read_all,
    shares,
    widened,
    write,
)
from trtrecipe.quant.histogram import Histogram

RNG = np.random.default_rng(7)
VALUES = RNG.standard_normal((40, 5)).astype(np.float32)


def counted(*spans: Span) -> Counts:
    histogram, span = Histogram(), NOTHING
    for start, stop in spans:
        histogram.add(VALUES[start:stop])
        span = widened(span, (float(VALUES[start:stop].min()), float(VALUES[start:stop].max())))
    return Counts({"t": histogram}, {"r": span, "empty": NOTHING}, set(), list(spans))


@given(st.lists(st.integers(1, 39), max_size=6, unique=True), st.randoms())
@settings(deadline=None)
def test_parts_merge_to_the_same_file_in_any_order(cuts: list[int], random: Random) -> None:
    edges = [0, *sorted(cuts), 40]
    parts = [counted(span) for span in pairwise(edges)]
    random.shuffle(parts)
    merged = Counts()
    for part in parts:
        merged.merge(part)
    assert dump(merged, "work") == dump(counted((0, 40)), "work")
    assert merged.done() == 40


def test_samples_are_not_counted_twice() -> None:
    total = counted((0, 10))
    before = dump(total, "work")
    with pytest.raises(ValueError, match="sample 9 was counted twice"):
        total.merge(counted((9, 12)))
    assert dump(total, "work") == before


def test_what_is_odd_in_one_part_is_left_out_of_the_whole() -> None:
    odd = Counts({}, {"empty": NOTHING}, {"t", "r"}, [(10, 20)])
    for one, other in ((counted((0, 10)), odd), (odd, counted((0, 10)))):
        total = Counts()
        total.merge(one)
        total.merge(other)
        assert (total.histograms, total.ranges, total.odd) == ({}, {"empty": NOTHING}, {"t", "r"})


def test_a_file_gives_back_what_was_written() -> None:
    for whole in (counted((0, 7), (9, 12)), Counts(), Counts({}, {}, {"t"}, [(0, 1)])):
        assert dump(load(dump(whole, "work"), "work"), "work") == dump(whole, "work")


def test_a_file_of_other_work_or_a_damaged_one_is_refused() -> None:
    data = dump(counted((0, 7)), "work")
    with pytest.raises(ValueError, match="other work"):
        load(data, "other")
    for place in (0, 30, len(data) // 2, len(data) - 1):
        damaged = bytearray(data)
        damaged[place] ^= 1
        with pytest.raises(ValueError):
            load(bytes(damaged), "work")
    for end in (0, 1, 64, len(data) - 1):
        with pytest.raises(ValueError):
            load(data[:end], "work")


def test_a_folder_is_read_without_what_does_not_belong(tmp_path: Path) -> None:
    for number, span in enumerate([(0, 10), (20, 30), (5, 8)]):  # the last is in the first
        write(counted(span), "work", tmp_path / file_name(0, str(number)))
    write(counted((10, 20)), "other", tmp_path / file_name(0, "other"))
    write(counted((10, 20)), "work", tmp_path / file_name(1, "another group"))
    (tmp_path / file_name(0, "garbage")).write_bytes(b"garbage")
    (tmp_path / file_name(0, "half")).with_suffix(".part").write_bytes(dump(counted((10, 20)), "work"))
    found = read_all(tmp_path, 0, "work")
    assert dump(found, "work") == dump(counted((0, 10), (20, 30)), "work")
    assert missing(found.spans, 40) == [(10, 20), (30, 40)]


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(1, 9)), max_size=6), st.integers(1, 7), st.sampled_from([1, 4])
)
def test_shares_are_all_of_the_samples_in_order_and_nearly_equal(
    gaps: list[tuple[int, int]], parts: int, step: int
) -> None:
    spans, at = [], 0
    for gap, length in gaps:
        spans.append((at + step * gap, at + step * (gap + length)))
        at = spans[-1][1]
    found = shares(spans, parts, step)
    assert len(found) == parts
    assert joined(span for share in found for span in share) == joined(spans)
    assert [span for share in found for span in share] == sorted(span for share in found for span in share)
    assert all((start - stop) % step == 0 for share in found for start, stop in share)
    lengths = [sum(stop - start for start, stop in share) for share in found]
    assert max(lengths) - sum(lengths) / parts <= 2 * step


def test_the_last_share_may_end_within_a_batch() -> None:
    assert shares([(0, 10)], 2, 4) == [[(0, 8)], [(8, 10)]]
    assert shares([(0, 3)], 4, 4) == [[(0, 3)], [], [], []]
