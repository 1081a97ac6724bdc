"""From the histogram of a tensor to its threshold, the absolute value that maps to 127.

- minmax: the largest |x|.
- percentile: the least bound that 99.999 % of the values are below.
- entropy: Kullback-Leibler divergence over 128 levels, after S. Migacz, "8-bit Inference with TensorRT" (GTC 2017,
  S7310), which describes TensorRT's calibration. Where the talk is silent, as NVIDIA's pytorch-quantization toolkit
  (calib/histogram.py) has it: bins are divided evenly among levels, among equal minima the largest threshold wins, and
  it is a bin's upper bound. Unlike both: there are 2049 to 4096 bins instead of 2048; zeros are left out, as every
  scale maps them exactly (the toolkit gives their bin the count of the next, the talk counts them); and a last bin that
  is empty has the weight of 1/10,000 value, as in MXNet and ONNX Runtime, where otherwise one outlier with nothing near
  it would forbid every threshold but the largest.
- mse: the least mean squared error of quantizing and dequantizing.

All of them give 0 where every value is 0, and never more than the largest |x|.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from trtrecipe.quant.histogram import Float64, Histogram
from trtrecipe.quant.scales import LIMIT

LEVELS = 128
EMPTY = 1e-4
PERCENTILE = (99_999, 100_000)
"""The share of values that percentile keeps, as a fraction of integers."""
MSE_CANDIDATES = 256
MSE_PER_OCTAVE = 32

_EQUAL = 1e-9  # divergences this close, in nats, differ by rounding only
_AT_ONCE = 256  # candidates of entropy computed together: their tables take half a MiB


def minmax(histogram: Histogram) -> float:
    """The largest |x|."""
    return histogram.largest


def percentile(histogram: Histogram) -> float:
    """The upper bound of the cell that holds the value of that rank among |x|.

    Where the value is 0 (less than one in 100,000 is anything else) the largest |x|: a threshold of 0 would say that
    the tensor is always 0.
    """
    share, of = PERCENTILE
    rank = -(-share * histogram.count // of)
    cell = int(np.searchsorted(np.cumsum(histogram.counts), rank)) - 1
    if cell < 0:
        return histogram.largest
    return min(float(histogram.edges()[cell + 1]), histogram.largest)


def entropy(histogram: Histogram) -> float:
    """The threshold whose 128 levels tell least from the values' distribution.

    For i bins, P is the first i counts with all that is beyond added to the last, and Q what is left of the first i
    counts when every level's sum is spread evenly over its bins that are not empty; both are then scaled to 1. The i
    with the least KL(P, Q) wins. With T the count of all, o of what is beyond, L the sum of a level and N its bins that
    are not empty (L' and N' of the last level), T KL = sum(p ln p) - sum(L ln(L/N)) - o ln(L'/N') + T ln(sum(L)/T).
    Sums over bins come from running totals, so that only those over levels are computed for every i. Where the last
    bin is empty and something is beyond it, it counts as EMPTY in Q.
    """
    counts, width = histogram.linear()
    if counts.size <= LEVELS:  # all is zero
        return histogram.largest
    sizes = np.arange(LEVELS, counts.size + 1)
    parts = np.array_split(sizes, -(-sizes.size // _AT_ONCE))
    divergences = np.concatenate([_divergences(counts.astype(np.float64), part) for part in parts])
    best = np.flatnonzero(divergences <= divergences.min() + _EQUAL)[-1]
    return min(float(sizes[best]) * width, histogram.largest)


def _divergences(counts: Float64, sizes: np.ndarray) -> Float64:
    """KL(P, Q) in nats for every number of bins in `sizes`, shape [len(sizes)]; infinite where all is beyond."""
    sums = _running(counts)
    filled = _running((counts > 0).astype(np.float64))
    bounds = -(-np.arange(LEVELS + 1) * sizes[:, np.newaxis] // LEVELS)
    level_sums = np.diff(sums[bounds], axis=1)
    level_filled = np.diff(filled[bounds], axis=1)
    level_logs = np.log(np.where(level_sums > 0, level_sums, 1)) - np.log(np.where(level_filled > 0, level_filled, 1))
    total, kept, last = sums[-1], sums[sizes], counts[sizes - 1]
    beyond = total - kept
    bins = _running(_n_log_n(counts))[sizes] - _n_log_n(last) + _n_log_n(last + beyond)
    bare = (last == 0) & (beyond > 0)
    levels = (level_sums * level_logs).sum(axis=1) + beyond * np.where(bare, np.log(EMPTY), level_logs[:, -1])
    divergences = (bins - levels) / total + np.log(
        (kept + EMPTY * bare) / total, where=kept > 0, out=np.zeros_like(kept)
    )
    return np.where(kept > 0, divergences, np.inf)


def mse(histogram: Histogram) -> float:
    """The best of 256 thresholds from the largest |x| downwards, 32 to the octave; cells count at their middles."""
    largest = histogram.largest
    used = np.flatnonzero(histogram.counts[1:])
    if used.size == 0:
        return largest
    edges, weights = histogram.edges(), histogram.counts[1:][used].astype(np.float64)
    values = np.minimum((edges[used] + edges[used + 1]) / 2, largest)
    moments = [_running(weights * values**power) for power in (0, 1, 2)]
    candidates = largest * np.exp2(-np.arange(MSE_CANDIDATES) / MSE_PER_OCTAVE)
    errors = [_squared_error(values, weights, moments, threshold) for threshold in candidates]
    return float(candidates[int(np.argmin(errors))])


def _squared_error(values: Float64, weights: Float64, moments: Sequence[Float64], threshold: float) -> float:
    """Sum of squared errors over ascending `values`.

    What rounds to 0 and what is cut is summed by running totals of weights times values to the power 0, 1 and 2; only
    what is between is rounded one by one.
    """
    scale = threshold / LIMIT
    low, high = np.searchsorted(values, [scale / 2, threshold])
    cut = [float(totals[-1] - totals[high]) for totals in moments]
    between = values[low:high]
    difference = np.rint(between / scale) * scale - between
    rounded = float((weights[low:high] * difference * difference).sum())  # np.dot rounds by the number of cores
    return float(moments[2][low]) + rounded + cut[2] - 2 * threshold * cut[1] + threshold**2 * cut[0]


def _running(values: Float64) -> Float64:
    """Sums of the first 0, 1, 2, ... values."""
    return np.concatenate([[0.0], np.cumsum(values)])


def _n_log_n(values: Float64) -> Float64:
    """n ln n, and 0 for 0."""
    found: Float64 = values * np.log(np.where(values > 0, values, 1))
    return found


METHODS: Mapping[str, Callable[[Histogram], float]] = {
    "minmax": minmax,
    "percentile": percentile,
    "entropy": entropy,
    "mse": mse,
}
