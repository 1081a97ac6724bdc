"""data.metrics against obvious computations."""

from __future__ import annotations

import math

import numpy as np
import pytest

from trtrecipe.data import metrics
from trtrecipe.errors import StepError

RNG = np.random.default_rng(2)
SCORES = RNG.standard_normal((40, 10)).astype(np.float32)
LABELS = RNG.integers(0, 10, 40)


@pytest.mark.parametrize(("metric", "count"), [("top1", 1), ("top5", 5)])
def test_top(metric: str, count: int) -> None:
    hits = sum(
        label in sorted(range(10), key=lambda i: -row[i])[:count] for row, label in zip(SCORES, LABELS, strict=True)
    )
    assert metrics.evaluate(metric, SCORES, LABELS, "y") == hits / 40


def test_top_drops_axes_of_size_one_and_takes_a_column_of_labels() -> None:
    expected = metrics.evaluate("top1", SCORES, LABELS, "y")
    assert metrics.evaluate("top1", SCORES[:, :, None, None], LABELS[:, None], "y") == expected


def test_among_equal_scores_the_lower_index_ranks_first() -> None:
    assert metrics.evaluate("top1", np.zeros((2, 3)), np.array([0, 1]), "y") == 0.5


def test_top5_of_three_classes_is_always_right() -> None:
    assert metrics.evaluate("top5", np.zeros((2, 3)), np.array([2, 1]), "y") == 1


def test_nan_is_no_evidence() -> None:
    assert metrics.evaluate("top1", np.array([[np.nan, -5.0]]), np.array([1]), "y") == 1


def test_mse() -> None:
    assert metrics.evaluate("mse", np.array([[1.0, 2], [3, 4]]), np.array([[1.0, 4], [3, 8]]), "y") == 5


def test_cosine_is_the_mean_over_samples() -> None:
    ours, target = np.array([[1.0, 0], [0, 2], [0, 0], [1, 0]]), np.array([[1.0, 1], [0, 1], [0, 0], [0, 0]])
    assert metrics.evaluate("cosine", ours, target, "y") == pytest.approx((math.sqrt(0.5) + 1 + 1 + 0) / 4)


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_cosine_does_not_depend_on_size(size: float) -> None:
    assert metrics.evaluate("cosine", np.float32([[3, 4]]) * size, np.float32([[4, 3]]), "y") == pytest.approx(0.96)


def test_snr() -> None:
    assert metrics.evaluate("snr", np.array([[11.0, 0]]), np.array([[10.0, 0]]), "y") == pytest.approx(20)
    assert metrics.evaluate("snr", np.array([[10.0]]), np.array([[10.0]]), "y") == metrics.MAX_SNR
    with pytest.raises(StepError, match="every target value is 0"):
        metrics.evaluate("snr", np.array([[10.0]]), np.array([[0.0]]), "y")


@pytest.mark.parametrize(
    ("metric", "output", "label", "words"),
    [
        ("top1", SCORES, np.full(40, 10), "label of sample 0 is 10, and output y has classes 0 to 9"),
        ("top1", SCORES, np.full(40, -1), "is -1"),
        ("top1", SCORES, np.zeros((40, 10)), "one-hot"),
        ("top1", SCORES, LABELS.astype(np.float32), "class index"),
        ("top1", np.zeros((40, 4, 4)), LABELS, "one score per class"),
        ("mse", SCORES, LABELS, "with labels of shape [40]"),
    ],
)
def test_outputs_and_labels_that_do_not_fit(metric: str, output: np.ndarray, label: np.ndarray, words: str) -> None:
    with pytest.raises(StepError) as caught:
        metrics.evaluate(metric, output, label, "y")
    assert words in caught.value.message
    assert caught.value.hint


def test_agreement() -> None:
    assert metrics.agreement(np.array([[1, 2], [3, 1.0]]), np.array([[5, 9], [1, 2.0]]), "y") == 0.5


def test_closeness() -> None:
    reference = {"a": np.array([[1.0, 0], [0, 1]]), "b": np.array([[2.0], [2]]), "ids": np.array([1, 2, 3, 4])}
    ours = {"a": np.array([[1.0, 1], [0, 1]]), "b": np.array([[1.5], [2]]), "ids": np.array([1, 2, 0, 4])}
    found = metrics.closeness(ours, reference)
    assert found.cosine == pytest.approx((math.sqrt(0.5) + 1) / 2)
    assert found.cosine_worst == pytest.approx(math.sqrt(0.5))
    assert found.max_abs_error == 1.0
    assert found.equal == 0.75


def test_figures_that_do_not_apply_are_absent() -> None:
    assert metrics.closeness({"i": np.array([1])}, {"i": np.array([1])}).measurements() == {"equal": 1.0}


def test_what_is_infinite_in_the_reference_is_left_out() -> None:
    reference, ours = {"a": np.array([[np.inf, 1.0]])}, {"a": np.array([[3.0, 1.0]])}
    metrics.check_comparable(ours, reference)
    assert metrics.closeness(ours, reference).max_abs_error == 0


@pytest.mark.parametrize(
    ("ours", "words"),
    [
        ({"b": np.zeros((3, 2))}, "no output a; it has b"),
        ({"a": np.zeros((3, 4))}, "has shape [3, 4]"),
        ({"a": np.array([[0, 0], [0, np.nan], [np.inf, 0]])}, "NaN in 2 of 3 samples (the first is sample 1)"),
    ],
)
def test_outputs_that_cannot_be_compared(ours: dict[str, np.ndarray], words: str) -> None:
    with pytest.raises(StepError) as caught:
        metrics.check_comparable(ours, {"a": np.zeros((3, 2))})
    assert words in caught.value.message


@pytest.mark.parametrize("metric", ["mse", "cosine", "snr"])
def test_targets_along_one_axis_are_taken_in_the_outputs_order(metric: str) -> None:
    output = np.random.default_rng(1).normal(size=(6, 2, 3)).astype(np.float32)
    target = output + np.float32(0.1)
    assert metrics.evaluate(metric, output, target.reshape(6, 6), "y") == metrics.evaluate(metric, output, target, "y")
    assert metrics.evaluate(metric, output[:, :1, :1], target[:, 0, 0], "y") == metrics.evaluate(
        metric, output[:, :1, :1], target[:, :1, :1], "y"
    )
