"""quant.methods: thresholds against slow, obvious references and against ONNX Runtime's calibrators."""

from __future__ import annotations

import contextlib
import io
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnxruntime.quantization.calibrate import HistogramCollector

from trtrecipe.quant.histogram import MANTISSA, Histogram
from trtrecipe.quant.methods import EMPTY, LEVELS, METHODS, entropy, minmax, mse, percentile

RNG = np.random.default_rng(11)
N = 230_000  # 99.999 % of which are no whole number: ONNX Runtime's running sum rounds to either side of one
TENSORS = {
    "normal": RNG.standard_normal(N),
    "relu": np.maximum(RNG.standard_normal(N), 0),
    "laplace": RNG.laplace(size=N) * 3e-4,
    "heavy tails": RNG.standard_t(3, N) * 50,
    "uniform": RNG.random(N) - 0.5,
    "outlier": np.append(RNG.standard_normal(N), 1000),
    "mostly zero": RNG.standard_normal(N) * (RNG.random(N) < 0.01),
    "few": RNG.standard_normal(300),
}
TENSORS = {name: values.astype(np.float32) for name, values in TENSORS.items()}
EVERY = pytest.mark.parametrize("values", TENSORS.values(), ids=TENSORS.keys())


def counted(values: np.ndarray) -> Histogram:
    histogram = Histogram()
    histogram.add(values)
    return histogram


def kl_of_the_talk(counts: list[int], i: int) -> float:
    """KL(P, Q) of the first `i` bins, step by step."""
    p = [float(count) for count in counts[:i]]
    p[-1] += sum(counts[i:])
    q = [0.0] * i
    for level in range(LEVELS):
        bins = range(math.ceil(level * i / LEVELS), math.ceil((level + 1) * i / LEVELS))
        filled = [j for j in bins if counts[j] > 0]
        for j in filled:
            q[j] = sum(counts[j] for j in bins) / len(filled)
    if sum(q) == 0:
        return math.inf
    if p[-1] > 0 and q[-1] == 0:
        q[-1] = EMPTY
    total_p, total_q = sum(p), sum(q)
    return sum(a / total_p * math.log(a / total_p / (b / total_q)) for a, b in zip(p, q, strict=True) if a > 0)


@EVERY
def test_minmax(values: np.ndarray) -> None:
    assert minmax(counted(values)) == np.abs(values).max()


@EVERY
def test_percentile_is_the_value_of_that_rank_up_to_a_cell(values: np.ndarray) -> None:
    exact = np.sort(np.abs(values))[math.ceil(values.size * 99_999 / 100_000) - 1]
    assert exact <= percentile(counted(values)) <= exact * (1 + 2**-MANTISSA)


def test_percentile_of_a_tensor_that_is_almost_always_zero_is_not_zero() -> None:
    values = np.zeros(300_000, np.float32)
    values[[7, 70_000]] = [3, -5]
    assert percentile(counted(values)) == 5


@EVERY
def test_entropy_has_the_least_divergence(values: np.ndarray) -> None:
    """Every 37th candidate, those around the choice and the last are computed the slow way."""
    histogram = counted(values)
    bins, width = histogram.linear()
    counts = bins.tolist()
    chosen = round(entropy(histogram) / width) if entropy(histogram) < histogram.largest else len(counts)
    tried = {*range(LEVELS, len(counts), 37), *range(chosen - 3, chosen + 4), len(counts)}
    slow = {i: kl_of_the_talk(counts, i) for i in sorted(tried) if LEVELS <= i <= len(counts)}
    assert slow[chosen] <= min(slow.values()) + 1e-9
    assert all(divergence > slow[chosen] for i, divergence in slow.items() if i > chosen)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=40), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=25)
def test_entropy_is_that_of_the_slow_way_for_every_candidate(sizes: list[int], seed: int) -> None:
    """Few values, so that most bins are empty and divergences are infinite or equal."""
    rng = np.random.default_rng(seed)
    values = np.concatenate([[1.02], *(rng.random(size) * 1.02 for size in sizes)]).astype(np.float32)
    histogram = counted(values)
    bins, width = histogram.linear()
    counts = bins.tolist()
    candidates = range(LEVELS, len(counts) + 1, 61)
    chosen = math.ceil(entropy(histogram) / width)
    best = min(kl_of_the_talk(counts, i) for i in candidates)
    assert kl_of_the_talk(counts, chosen) <= best + 1e-9


def squared_error(values: np.ndarray, threshold: float) -> float:
    scale = threshold / 127
    rounded = np.clip(np.rint(values.astype(np.float64) / scale), -127, 127) * scale
    return float(np.square(rounded - values).mean())


@EVERY
def test_mse_is_within_a_thousandth_of_the_least_over_the_values_themselves(values: np.ndarray) -> None:
    histogram = counted(values)
    candidates = histogram.largest * 2.0 ** (-np.arange(0, 256, 3) / 32)
    least = min(squared_error(values, threshold) for threshold in candidates)
    assert squared_error(values, mse(histogram)) <= least * 1.001


@pytest.mark.parametrize("method", METHODS)
def test_zeros(method: str) -> None:
    assert METHODS[method](counted(np.zeros(10, np.float32))) == 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [1.0, -1.0, 1e-40, 1e-45, 3.4e38, 127.5])
def test_one_value_over_and_over_keeps_it(method: str, value: float) -> None:
    """No method has a reason to cut a tensor that is constant."""
    values = np.full(1000, value, np.float32)
    chosen = METHODS[method](counted(values))
    assert 0 < chosen <= np.abs(values[0])
    if method != "mse":
        assert chosen == np.abs(values[0])


@pytest.mark.parametrize("method", METHODS)
@EVERY
def test_thresholds_follow_the_values_when_these_are_scaled(method: str, values: np.ndarray) -> None:
    """By a power of two nothing changes but the exponent."""
    assert METHODS[method](counted(values * np.float32(2**-9))) == METHODS[method](counted(values)) * 2**-9


def of_onnxruntime(method: str, values: np.ndarray, bins: int, levels: int) -> float:
    collector = HistogramCollector(method, True, bins, levels, 99.999, "same")
    with contextlib.redirect_stdout(io.StringIO()):
        collector.collect({"x": values})
        low, high = collector.compute_collection_result()["x"][:2]
    return max(abs(float(low)), abs(float(high)))


@EVERY
def test_percentile_of_onnxruntime_differs_by_one_of_its_bins(values: np.ndarray) -> None:
    """Its result is the lower bound of a bin, as wide as the largest |x| divided by their number."""
    bins = 2048
    slack = float(np.abs(values).max()) * (1 / bins + 2**-MANTISSA)
    assert percentile(counted(values)) == pytest.approx(of_onnxruntime("percentile", values, bins, 128), abs=slack)


@pytest.mark.parametrize("name", ["relu", "laplace"])
def test_entropy_of_onnxruntime_on_the_same_bins_is_within_a_fifth(name: str) -> None:
    """It cuts fractions of counts in Q, divides bins among levels with a rest, and its curve is as flat as ours.

    It is given our bins as the right half of its own, the left half empty, and so twice our levels.
    """
    histogram = counted(TENSORS[name])
    bins, width = histogram.linear()
    counts = bins.tolist()
    edges = (np.arange(-bins.size, bins.size + 1) * width).astype(np.float32)
    largest = np.float32(histogram.largest)
    collector = HistogramCollector("entropy", True, 2 * bins.size, 2 * LEVELS, 99.999, "same")
    given = (np.concatenate([np.zeros_like(bins), bins]), edges, -largest, largest)
    theirs = float(collector.get_entropy_threshold(given, 2 * LEVELS)[1])
    ours = entropy(histogram)
    assert 5 / 6 < ours / theirs < 6 / 5
    assert kl_of_the_talk(counts, round(ours / width)) <= kl_of_the_talk(counts, min(round(theirs / width), bins.size))
