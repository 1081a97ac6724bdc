"""quant.histogram: exact counts that do not depend on how the values came."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from trtrecipe.quant.histogram import BINADES, CELLS, MANTISSA, Histogram

FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
VALUES = hnp.arrays(np.float32, st.integers(1, 60), elements=FINITE)
RNG = np.random.default_rng(5)


def counted(*parts: np.ndarray) -> Histogram:
    histogram = Histogram()
    for part in parts:
        histogram.add(part)
    return histogram


def expected(values: np.ndarray) -> np.ndarray:
    """The counts by the module's words, value by value."""
    largest = float(np.abs(values).max())
    top = np.frexp(largest)[1] if largest >= np.finfo(np.float32).tiny else -125
    lowest = max(int(top) - BINADES, -126)  # the grid starts with 2 to this power
    counts = np.zeros(1 + CELLS, np.int64)
    for value in np.abs(values.astype(np.float64)):
        if value < 2.0**lowest:
            counts[0] += 1
            continue
        mantissa, exponent = np.frexp(value)
        part = int((float(mantissa) * 2 - 1) * 2**MANTISSA)
        counts[1 + ((int(exponent) - 1 - lowest) << MANTISSA) + part] += 1
    return counts


@given(VALUES)
@example(np.float32([0, -0.0]))
@example(np.float32([1e-45, -1e-40, 1e-38]))
@example(np.float32([np.finfo(np.float32).max, np.finfo(np.float32).tiny]))
@example(np.float32([1, 2**-23, 2**-24, -(2**-23.5)]))
@settings(deadline=None)
def test_counts_are_those_of_the_words(values: np.ndarray) -> None:
    found = counted(values)
    assert np.array_equal(found.counts, expected(values))
    assert (found.min, found.max, found.count) == (values.min(), values.max(), values.size)
    assert found.largest == np.abs(values).max()


@given(VALUES, st.lists(st.integers(0, 60), max_size=5), st.data())
@settings(deadline=None)
def test_every_order_and_partition_gives_the_same_bytes(
    values: np.ndarray, cuts: list[int], data: st.DataObject
) -> None:
    whole = counted(values).to_bytes()
    order = data.draw(st.permutations(range(values.size)))
    parts = np.split(values[order], sorted(min(cut, values.size) for cut in cuts))
    assert counted(*parts).to_bytes() == whole
    histograms = data.draw(st.permutations([counted(part) for part in parts]))
    merged = Histogram()
    for histogram in histograms:
        merged = Histogram.from_bytes(merged.merge(histogram).to_bytes())
    assert merged.to_bytes() == whole


def test_pieces_of_a_large_tensor_count_as_one() -> None:
    values = (RNG.standard_normal(300_001) * np.exp(RNG.standard_normal(300_001) * 6)).astype(np.float32)
    whole = counted(values).to_bytes()
    assert counted(*np.array_split(np.sort(values), 1000)).to_bytes() == whole
    assert counted(values.reshape(1, -1, 1)[:, ::-1]).to_bytes() == whole


def test_zero_has_one_sign() -> None:
    assert counted(np.float32([-0.0])).to_bytes() == counted(np.float32([0.0])).to_bytes()


def test_merging_leaves_the_parts_as_they_are() -> None:
    small, large = counted(np.float32([1e-3, 0])), counted(np.float32([1e3]))
    before = small.to_bytes(), large.to_bytes()
    small.merge(large)
    assert (small.to_bytes(), large.to_bytes()) == before


@given(VALUES)
@settings(deadline=None)
def test_linear_bins_are_exact(values: np.ndarray) -> None:
    histogram = counted(values)
    bins, width = histogram.linear()
    sizes = np.abs(values.astype(np.float64))
    sizes = sizes[sizes >= histogram.edges()[0]]
    assert bins.tolist() == np.bincount((sizes / width).astype(np.int64), minlength=1).tolist()
    if sizes.size:
        assert 2**MANTISSA < bins.size <= 2 ** (MANTISSA + 1)


def test_edges_enclose_the_values_of_their_cell() -> None:
    for value in np.float32([1, 1.9999, 3.1, 1e-30, 3.4e38]):
        histogram = counted(np.atleast_1d(value))
        (cell,) = np.flatnonzero(histogram.counts[1:])
        low, high = histogram.edges()[cell : cell + 2]
        assert low <= value < high <= low * (1 + 2**-MANTISSA) or high == np.inf


def test_nothing_seen() -> None:
    empty = Histogram()
    assert (empty.count, empty.largest, empty.min, empty.max) == (0, 0, np.inf, -np.inf)
    assert counted(np.zeros(0, np.float32)).to_bytes() == empty.to_bytes()
    some = counted(np.float32([1, -2]))
    assert empty.merge(some).to_bytes() == some.merge(empty).to_bytes() == some.to_bytes()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(bad: float) -> None:
    with pytest.raises(ValueError, match="NaN or infinite"):
        counted(np.float32([1, bad, 2]))


def test_other_types_are_refused_instead_of_being_misread() -> None:
    with pytest.raises(TypeError, match="float64"):
        counted(np.ones(3))


@pytest.mark.parametrize(
    "data", [b"", b"x" * 40, counted(np.float32([1])).to_bytes()[:-1], counted(np.float32([1])).to_bytes() + b"\0"]
)
def test_damaged_bytes(data: bytes) -> None:
    with pytest.raises(ValueError, match="not a histogram"):
        Histogram.from_bytes(data)
