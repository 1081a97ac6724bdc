"""Preprocessing as docs/preprocessing.md defines it: each operation against the definition written out in NumPy."""

from __future__ import annotations

import json
import math
from itertools import accumulate
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from trtrecipe.data import preprocess
from trtrecipe.errors import StepError
from trtrecipe.graphs.interface import Interface, TensorSpec

RANDOM = np.random.default_rng(3)
RGB = RANDOM.integers(0, 256, (2, 11, 7, 3), np.uint8)
FLOATS = RANDOM.normal(size=(2, 11, 7, 3)).astype(np.float32)
FILTERS = ["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]


def apply(raw: np.ndarray, *operations: Any, dtype: str = "float32") -> np.ndarray:
    shape, _ = preprocess.result(raw.shape[1:], raw.dtype.name, operations, "a sample")
    found = preprocess.apply(raw, TensorSpec("x", dtype, ("n", *shape)), operations)
    assert found.shape == (len(raw), *shape)
    return found


# Resampling, as docs/preprocessing.md writes it down.

SUPPORT = {"box": 0.5, "bilinear": 1.0, "hamming": 1.0, "bicubic": 2.0, "lanczos": 3.0}


def _sinc(x: float) -> float:
    return 1.0 if x == 0 else math.sin(math.pi * x) / (math.pi * x)


def _weight(name: str, x: float) -> float:
    if name == "box":
        return 1.0 if -0.5 < x <= 0.5 else 0.0
    if name == "lanczos":
        return _sinc(x) * _sinc(x / 3) if -3 <= x < 3 else 0.0
    x = abs(x)
    if name == "bilinear":
        return max(0.0, 1 - x)
    if name == "hamming":
        # 0.54 and 0.46 are float32 there.
        return _sinc(x) * (float(np.float32(0.54)) + float(np.float32(0.46)) * math.cos(math.pi * x)) if x < 1 else 0.0
    if x < 1:
        return (1.5 * x - 2.5) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * -0.5 if x < 2 else 0.0


def _weights(name: str, size: int, new: int) -> list[tuple[int, list[float]]]:
    """For each new position the first old one that counts, and the weights from there on."""
    scale = size / new
    stretch = max(scale, 1.0)
    found = []
    for position in range(new):
        centre = (position + 0.5) * scale
        first = max(0, int(centre - SUPPORT[name] * stretch + 0.5))
        last = min(size, int(centre + SUPPORT[name] * stretch + 0.5))
        weights = [_weight(name, (old - centre + 0.5) / stretch) for old in range(first, last)]
        found.append((first, [weight / sum(weights) for weight in weights]))
    return found


def _along_rows(plane: np.ndarray, name: str, new: int) -> np.ndarray:
    out = np.empty((plane.shape[0], new), plane.dtype)
    for column, (first, weights) in enumerate(_weights(name, plane.shape[1], new)):
        taken = plane[:, first : first + len(weights)]
        if plane.dtype == np.uint8:
            fixed = np.array([int(w * 2**22 + (0.5 if w >= 0 else -0.5)) for w in weights])
            out[:, column] = np.clip((taken.astype(np.int64) @ fixed + 2**21) >> 22, 0, 255)
        else:
            total = np.zeros(len(plane))
            for weight, values in zip(weights, taken.T, strict=True):
                total += values.astype(np.float64) * weight
            out[:, column] = total.astype(np.float32)
    return out


def _nearest(size: int, new: int) -> list[int]:
    """Summed up in double, so that halves may fall on either side."""
    scale = size / new
    return [int(centre) for centre in accumulate([scale] * (new - 1), initial=scale * 0.5)]


def resampled(plane: np.ndarray, name: str, height: int, width: int) -> np.ndarray:
    """Nearest: the old pixel in which the new one's centre lies. Else along rows, then along columns."""
    if name == "nearest":
        return plane[_nearest(plane.shape[0], height)][:, _nearest(plane.shape[1], width)]
    if plane.shape[1] != width:
        plane = _along_rows(plane, name, width)
    if plane.shape[0] != height:
        plane = _along_rows(plane.T, name, height).T
    return plane


@pytest.mark.parametrize("size", [(5, 3), (11, 7), (22, 21), (4, 20), (1, 1), (11, 3)], ids=str)
@pytest.mark.parametrize("name", FILTERS)
def test_resize_is_as_documented(name: str, size: tuple[int, int]) -> None:
    for raw in (RGB, FLOATS):
        found = apply(raw, {"resize": {"size": list(size), "filter": name}}, dtype=raw.dtype.name)
        for sample in range(2):
            for channel in range(3):
                expected = resampled(raw[sample, :, :, channel], name, *size)
                if raw.dtype == np.uint8:
                    np.testing.assert_array_equal(found[sample, :, :, channel], expected)
                else:
                    np.testing.assert_allclose(found[sample, :, :, channel], expected, rtol=1e-6, atol=1e-6)


@settings(deadline=None, max_examples=100, derandomize=True)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 50), st.integers(1, 50), st.sampled_from(FILTERS))
def test_resize_of_any_size_is_as_documented(height: int, width: int, tall: int, wide: int, name: str) -> None:
    plane = np.random.default_rng(height * 41 + width).integers(0, 256, (1, height, width, 1), np.uint8)
    found = apply(plane, {"resize": {"size": [tall, wide], "filter": name}}, dtype="uint8")
    np.testing.assert_array_equal(found[0, :, :, 0], resampled(plane[0, :, :, 0], name, tall, wide))


@pytest.mark.parametrize("name", FILTERS)
def test_resize_of_images_is_what_pillow_does(name: str) -> None:
    found = apply(RGB, {"resize": {"size": [6, 9], "filter": name}}, dtype="uint8")
    expected = [np.asarray(Image.fromarray(rgb).resize((9, 6), Image.Resampling[name.upper()])) for rgb in RGB]
    np.testing.assert_array_equal(found, expected)


def test_other_types_are_resized_as_float32() -> None:
    resize = {"resize": {"size": [6, 9], "filter": "bicubic"}}
    for dtype in (np.int16, np.float64, np.float16):
        np.testing.assert_array_equal(apply(RGB.astype(dtype), resize), apply(RGB.astype(np.float32), resize))


@pytest.mark.parametrize(
    ("height", "width", "short", "expected"),
    [(11, 7, 5, (7, 5)), (7, 11, 5, (5, 7)), (7, 7, 9, (9, 9)), (480, 640, 256, (256, 341)), (100, 1, 3, (300, 3))],
)
def test_the_short_side_keeps_the_shape(height: int, width: int, short: int, expected: tuple[int, int]) -> None:
    assert preprocess.resized(height, width, {"short_side": short}) == expected


@pytest.mark.parametrize(
    ("size", "rows", "columns"),
    [([5, 3], (3, 8), (2, 5)), ([4, 4], (3, 7), (1, 5)), ([11, 7], (0, 11), (0, 7))],
)
def test_crop_takes_the_middle(size: list[int], rows: tuple[int, int], columns: tuple[int, int]) -> None:
    found = apply(RGB, {"crop": size}, dtype="uint8")
    np.testing.assert_array_equal(found, RGB[:, slice(*rows), slice(*columns)])


def test_gray_is_pillows() -> None:
    every = (
        np.stack(np.meshgrid(*[np.arange(0, 256, 15)] * 3, indexing="ij"), -1).astype(np.uint8).reshape(1, 18, -1, 3)
    )
    found = apply(every, {"colour": "gray"}, dtype="uint8")
    np.testing.assert_array_equal(found[0, :, :, 0], np.asarray(Image.fromarray(every[0]).convert("L")))
    gray = np.repeat(np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1), 3, axis=3)
    np.testing.assert_array_equal(apply(gray, {"colour": "gray"}, dtype="uint8"), gray[..., :1])


def test_gray_of_floats() -> None:
    found = apply(FLOATS, {"colour": "gray"})
    np.testing.assert_allclose(found[..., 0], FLOATS @ np.array([0.299, 0.587, 0.114]), rtol=1e-5, atol=1e-6)


def test_colours_and_layouts() -> None:
    np.testing.assert_array_equal(apply(RGB, {"colour": "bgr"}, dtype="uint8"), RGB[..., ::-1])
    np.testing.assert_array_equal(apply(RGB, {"colour": "rgb"}, dtype="uint8"), RGB)
    first = RGB.transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(apply(RGB, {"layout": "nchw"}, dtype="uint8"), first)
    np.testing.assert_array_equal(apply(first, {"layout": "nhwc"}, dtype="uint8"), RGB)
    there_and_back = {"layout": "nchw"}, {"colour": "bgr"}, {"layout": "nhwc"}, {"colour": "bgr"}
    np.testing.assert_array_equal(apply(RGB, *there_and_back, dtype="uint8"), RGB)


@pytest.mark.parametrize(
    "operation",
    [
        {"resize": {"size": [5, 9], "filter": "lanczos"}},
        {"resize": {"short_side": 4, "filter": "box"}},
        {"crop": [6, 4]},
        {"colour": "gray"},
        {"colour": "bgr"},
        {"normalize": {"mean": [1.0, 2.0, 3.0], "std": [4.0, 5.0, 6.0]}},
        {"normalize": {"mean": [1.0], "std": [4.0]}},
        {"scale": 0.5},
    ],
    ids=str,
)
def test_an_operation_is_the_same_in_both_layouts(operation: Any) -> None:
    last = apply(RGB, operation, {"layout": "nchw"})
    first = apply(RGB, {"layout": "nchw"}, operation)
    np.testing.assert_array_equal(first, last)
    # What begins with nhwc had its channels first.
    moved = RGB.transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(apply(moved, operation, {"layout": "nhwc"}), apply(RGB, operation))


def test_normalize_is_float32() -> None:
    found = apply(RGB, {"scale": 1 / 255}, {"normalize": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}})
    scaled = RGB.astype(np.float32) * np.float32(1 / 255)
    np.testing.assert_array_equal(
        found, (scaled - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225])
    )


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        ([0.5, 1.5, 2.5, -0.5, -1.5, 300.0, -300.0], "int8", [0, 2, 2, 0, -2, 127, -128]),
        ([0.5, -3.0, 255.4, 255.6, 1e30], "uint8", [0, 0, 255, 255, 255]),
        ([3e9, -3e9, 2.0**31 - 128], "int32", [2**31 - 1, -(2**31), 2**31 - 128]),
        ([1e30, -1e30, 2.0**40], "int64", [2**63 - 1024, -(2**63), 2**40]),
        ([1.0, 0.1], "float16", [1.0, 0.0999755859375]),
    ],
)
def test_casts(values: list[float], dtype: str, expected: list[float]) -> None:
    assert apply(np.array([values], np.float32), {"cast": dtype}, dtype=dtype).tolist() == [expected]


@pytest.mark.parametrize(("raw", "to"), [("uint64", "int8"), ("int64", "uint8"), ("bool", "int8"), ("int8", "int64")])
def test_casts_of_integers_hold_the_range(raw: str, to: str) -> None:
    limits = np.iinfo(np.uint8 if raw == "bool" else raw)
    values = [0, 1] if raw == "bool" else [limits.min, 0, 5, limits.max]
    found = apply(np.array([values], raw), {"cast": to}, dtype=to)
    held = [min(max(value, np.iinfo(to).min), np.iinfo(to).max) for value in values]
    assert found.tolist() == [held]


@pytest.mark.parametrize(
    ("shape", "operation", "words"),
    [
        ((8, 8), {"resize": {"size": [4, 4], "filter": "box"}}, "has shape [8, 8], and resize needs height, width"),
        ((8, 8, 3), {"crop": [9, 8]}, "is 8 x 8 where it is to be cropped to 9 x 8"),
        ((8, 8, 1), {"colour": "gray"}, "has 1 channels, and colour needs 3"),
        (
            (8, 8, 4),
            {"normalize": {"mean": [1, 2, 3], "std": [1, 2, 3]}},
            "has 4 channels, and normalize has 3 entries",
        ),
    ],
)
def test_samples_that_an_operation_does_not_fit(shape: tuple[int, ...], operation: Any, words: str) -> None:
    with pytest.raises(StepError) as caught:
        preprocess.result(shape, "uint8", [operation], "cat.png")
    assert words in caught.value.message and caught.value.message.startswith("cat.png")
    assert caught.value.hint


def _graph(dtype: str, *shape: int | str) -> Interface:
    return Interface((TensorSpec("image", dtype, ("n", *shape)),), ())


@pytest.mark.parametrize(
    ("graph", "operations", "words"),
    [
        (_graph("uint8", 4, 4, 3), [{"scale": 2.0}], "computes in float32, and the model takes uint8"),
        (_graph("float32", 3, 4, 5), [{"layout": "nchw"}, {"normalize": {"mean": [0] * 5, "std": [1] * 5}}],
         "has 5 entries, and the first axis of a sample"),
        (_graph("float32", 3, 4, 5), [{"normalize": {"mean": [0] * 3, "std": [1] * 3}}], "the last axis of a sample"),
    ],
)  # fmt: skip
def test_contracts_that_do_not_fit(graph: Interface, operations: Any, words: str) -> None:
    with pytest.raises(StepError) as caught:
        preprocess.check(graph, {"image": operations})
    assert words in caught.value.message


def test_the_document_spells_out_every_change_of_type() -> None:
    operations = [{"resize": {"size": [4, 4], "filter": "box"}}, {"colour": "bgr"}, {"layout": "nchw"}, {"scale": 2.0}]
    raw = {"image": {"dtype": "uint8", "shape": [None, None, 3]}}
    document = json.loads(preprocess.document(_graph("float16", 3, 4, 4), {"image": operations}, raw))
    assert document["schema"] == "trtrecipe/preprocessing/v2"
    assert document["inputs"]["image"] == {
        "dtype": "float16",
        "shape": ["n", 3, 4, 4],
        "raw": {"dtype": "uint8", "shape": [None, None, 3]},
        "operations": [*operations[:3], {"cast": "float32"}, {"scale": 2.0}, {"cast": "float16"}],
    }
    document = json.loads(preprocess.document(_graph("uint8", 4, 4, 3), {"image": [{"scale": 2.0}, {"cast": "uint8"}]}))
    assert document["inputs"]["image"]["operations"] == [{"cast": "float32"}, {"scale": 2.0}, {"cast": "uint8"}]
