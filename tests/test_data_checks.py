"""data.checks: what is said of samples before anything is run on them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trtrecipe.data import batches, checks
from trtrecipe.data.sampling import Sampling
from trtrecipe.data.sources import ALL_INPUTS, FileData, write_samples
from trtrecipe.errors import StepError
from trtrecipe.graphs.interface import Interface, TensorSpec

GRAPH = Interface((TensorSpec("image", "float32", ("n", 4, 5)),), ())
RANDOM = np.random.default_rng(4)
ZERO_TO_ONE = RANDOM.uniform(size=(20, 4, 5)).astype(np.float32)
IMAGENET = {"normalize": {"mean": [0.45], "std": [0.225]}}


def notes(folder: Path, array: np.ndarray, *operations: Any, label: np.ndarray | None = None) -> list[str]:
    np.save(folder / "x.npy", array)
    inputs = {"data.image": folder / "x.npy"}
    if label is not None:
        np.save(folder / "y.npy", label)
        inputs["data.label"] = folder / "y.npy"
    preprocess = {"image": list(operations)}
    return checks.look(batches.load(inputs, GRAPH, preprocess), GRAPH, preprocess)


@pytest.mark.parametrize(
    ("array", "operations"),
    [
        (ZERO_TO_ONE, []),
        (ZERO_TO_ONE, [IMAGENET]),
        (ZERO_TO_ONE * 255, [{"scale": 1 / 255}, IMAGENET]),
        (ZERO_TO_ONE * 255, [{"normalize": {"mean": [127.5], "std": [127.5]}}]),
        (ZERO_TO_ONE * 255, [{"normalize": {"mean": [120.0], "std": [1.0]}}]),  # only a mean is taken away
        (ZERO_TO_ONE * 16, [{"scale": 0.0625}]),
        (ZERO_TO_ONE, [{"scale": 255.0}]),  # for a model that brings it back
        (ZERO_TO_ONE * 65535, [{"scale": 0.001}]),  # millimetres as metres
        (np.zeros((20, 4, 5), np.float32) + np.arange(20, dtype=np.float32)[:, None, None], [{"scale": 2.0}]),
        (ZERO_TO_ONE[:2], []),
    ],
)
def test_no_word_on_what_may_well_be_right(array: np.ndarray, operations: list[Any], tmp_path: Path) -> None:
    assert [note for note in notes(tmp_path, array, *operations) if "one value only" not in note] == []


@pytest.mark.parametrize(
    ("array", "operations", "words"),
    [
        (ZERO_TO_ONE * 255, [IMAGENET], "after normalize, values of input image have a standard deviation of 3"),
        (ZERO_TO_ONE, [{"scale": 1 / 255}, IMAGENET], "have a standard deviation of 0.00"),
        (ZERO_TO_ONE, [{"normalize": {"mean": [127.5], "std": [127.5]}}], "have a standard deviation of 0.00"),
        (ZERO_TO_ONE, [{"scale": 1 / 255}], "after scale, values of input image reach 0.00392"),
        (ZERO_TO_ONE * 255, [{"scale": 255.0}], "after scale, values of input image reach 6.49e+04 where about 255"),
    ],
)
def test_values_out_of_the_range_that_preprocessing_is_for(
    array: np.ndarray, operations: list[Any], words: str, tmp_path: Path
) -> None:
    [note] = notes(tmp_path, array, *operations)
    assert words in note


def test_copies(tmp_path: Path) -> None:
    array = ZERO_TO_ONE.copy()
    array[[7, 9, 12]] = array[[2, 2, 5]]
    [note] = notes(tmp_path, array)
    assert note.startswith("3 of 20 samples are exact copies of others: sample 7 ")
    [note] = notes(tmp_path, array, label=np.arange(20))
    assert "of others, with other labels: sample 7" in note


def test_samples_without_content(tmp_path: Path) -> None:
    array = ZERO_TO_ONE.copy()
    array[[3, 4]] = [[[0.0]], [[1.0]]]
    [note] = notes(tmp_path, array)
    assert note.startswith("2 of 20 samples have one value only in input image: sample 3 ")


def test_outliers(tmp_path: Path) -> None:
    array = ZERO_TO_ONE.copy()
    array[11, 0, 0] = -5000
    [note] = notes(tmp_path, array)
    assert "1 of 20 samples reach more than 100 times" in note
    assert "sample 11 (samples counted from 0, after selection) has 5000, the median is" in note


def test_samples_that_are_all_the_same_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StepError, match=r"all samples are the same: sample 0 .* sample 7 "):
        notes(tmp_path, np.repeat(ZERO_TO_ONE[:1], 8, axis=0))
    assert len(notes(tmp_path, np.repeat(ZERO_TO_ONE[:1], 7, axis=0))) == 1


def test_a_large_data_set_is_looked_at_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "SAMPLES", 10)
    array = ZERO_TO_ONE.copy()
    array[[4, 5]] = 0.0
    [note] = notes(tmp_path, array)
    assert note.startswith("1 of 10 of 20 samples has one value only")
    monkeypatch.setattr(checks, "BYTES", 4 * 20 * 4)
    array[0] = 0.0
    [note] = notes(tmp_path, array)
    assert note.startswith("1 of 3 of 20 samples")


def test_turned_images_are_named(tmp_path: Path) -> None:
    for number in range(3):
        picture = Image.fromarray(RANDOM.integers(0, 256, (4, 5, 3), np.uint8))
        exif = picture.getexif()
        exif[0x0112] = 6 if number == 1 else 1
        picture.save(tmp_path / f"{number}.jpg", exif=exif)
    write_samples(FileData(tmp_path, "*.jpg", "images"), Sampling(None, 0), tmp_path / "in")
    graph = Interface((TensorSpec("image", "uint8", ("n", 4, 5, 3)),), ())
    samples = batches.load({ALL_INPUTS: tmp_path / "in"}, graph, {})
    assert checks.look(samples, graph, {}) == ["1 of 3 samples asks by EXIF to be turned, which is ignored: 1.jpg"]
    # Not turned, indeed.
    assert batches.raw_sample(samples, graph.inputs[0], 1).shape == (4, 5, 3)


def test_a_damaged_image_is_found_before_anything_runs(tmp_path: Path) -> None:
    out = io.BytesIO()
    Image.fromarray(RANDOM.integers(0, 256, (64, 64, 3), np.uint8)).save(out, "PNG")
    (tmp_path / "a.png").write_bytes(out.getvalue())
    (tmp_path / "b.png").write_bytes(out.getvalue()[:-2000])
    write_samples(FileData(tmp_path, "*.png", "images"), Sampling(None, 0), tmp_path / "in")
    graph = Interface((TensorSpec("image", "uint8", ("n", 64, 64, 3)),), ())
    with pytest.raises(StepError, match=r"b\.png is damaged"):
        checks.look(batches.load({ALL_INPUTS: tmp_path / "in"}, graph, {}), graph, {})
