"""data.batches, data.preprocess, data.draw and data.outputs: what a step feeds, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from trtrecipe.data import batches, outputs, preprocess
from trtrecipe.data.draw import draw
from trtrecipe.errors import StepError
from trtrecipe.graphs.interface import Interface, TensorSpec


def graph(*inputs: TensorSpec) -> Interface:
    return Interface(inputs or (TensorSpec("image", "float32", ("batch", 2, 3)),), ())


def given(folder: Path, **arrays: np.ndarray) -> dict[str, Path]:
    roles = {}
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
        roles[f"data.{name}"] = folder / f"{name}.npy"
    return roles


def images(count: int, dtype: type = np.float32) -> np.ndarray:
    return np.arange(count * 6).reshape(count, 2, 3).astype(dtype)


def test_batches_have_one_size_and_repeat_the_last_sample(tmp_path: Path) -> None:
    samples = batches.load(given(tmp_path, image=images(5)), graph(), {})
    found = list(batches.batches(samples, graph(), {}, 2))
    assert [(b.size, b.count, len(b.feeds["image"])) for b in found] == [(2, 2, 2), (2, 2, 2), (2, 1, 2)]
    np.testing.assert_array_equal(found[2].feeds["image"], images(5)[[4, 4]])


def test_fixed_first_axis_decides_the_batch(tmp_path: Path) -> None:
    fixed = graph(TensorSpec("image", "float32", (3, 2, 3)))
    samples = batches.load(given(tmp_path, image=images(4)), fixed, {})
    assert [b.count for b in batches.batches(samples, fixed, {}, 2)] == [3, 1]


def test_inputs_with_different_first_axes_are_refused() -> None:
    with pytest.raises(StepError, match="a takes 1, b takes 2"):
        batches.batch_size(graph(TensorSpec("a", "float32", (1,)), TensorSpec("b", "float32", (2,))))


def test_scalar_input_is_refused() -> None:
    with pytest.raises(StepError, match="has no axes"):
        batches.batch_size(graph(TensorSpec("a", "float32", ())))


def test_preprocessing_is_float32_in_the_order_given(tmp_path: Path) -> None:
    operations = {"image": [{"scale": 0.5}, {"normalize": {"mean": [1, 2, 3], "std": [1, 2, 4]}}]}
    samples = batches.load(given(tmp_path, image=images(2, np.uint8)), graph(), operations)
    feed = next(batches.batches(samples, graph(), operations, 2)).feeds["image"]
    expected = (images(2) * np.float32(0.5) - np.float32([1, 2, 3])) / np.float32([1, 2, 4])
    assert feed.dtype == np.float32
    np.testing.assert_array_equal(feed, expected)


def test_without_operations_values_are_cast() -> None:
    spec = TensorSpec("image", "float16", ("batch", 2, 3))
    assert preprocess.apply(images(1, np.uint8), spec, ()).dtype == np.float16


def test_label_is_kept_apart(tmp_path: Path) -> None:
    samples = batches.load(given(tmp_path, image=images(2), label=np.array([1, 0])), graph(), {})
    assert samples.label is not None
    assert list(samples.arrays) == ["image"]


def test_model_input_called_label_is_an_input(tmp_path: Path) -> None:
    spec = graph(TensorSpec("label", "int64", ("n",)))
    samples = batches.load(given(tmp_path, label=np.array([1, 0])), spec, {})
    assert samples.label is None
    assert list(samples.arrays) == ["label"]


def broken(value: float) -> np.ndarray:
    array = images(4)
    array[2, 1, 1] = value
    return array


TOKENS = TensorSpec("image", "int32", ("batch", 2, 3))
SCALE = [{"scale": 2.0}]


@pytest.mark.parametrize(
    ("spec", "arrays", "operations", "words"),
    [
        (None, {}, {}, ["no array for input image", "it has none"]),
        (None, {"picture": images(2)}, {}, ["no array for input image", "it has picture"]),
        (None, {"image": images(2), "extra": images(2)}, {}, ["names input extra, which the model lacks"]),
        (None, {"image": np.zeros((2, 3, 2), np.float32)}, {}, ["has shape [3, 2]", "takes [2, 3]"]),
        (None, {"image": np.zeros((2, 6), np.float32)}, {}, ["has shape [6]", "takes [2, 3]"]),
        (None, {"image": np.zeros((2, 2, 3), "S3")}, {}, ["is |S3, not numbers"]),
        (None, {"image": np.zeros((2, 2, 3), np.complex64)}, {}, ["is complex64, not numbers"]),
        (None, {"image": broken(np.nan)}, {}, ["array of input image holds NaN in sample 2"]),
        (None, {"image": broken(-np.inf)}, {}, ["an infinite value in sample 2"]),
        (None, {"image": images(2), "label": np.zeros(3, int)}, {}, ["differ", "image has 2, label has 3"]),
        (None, {"image": images(0)}, {}, ["no samples"]),
        (None, {"image": images(2), "label": np.array(["a", "b"])}, {}, ["label array is <U1"]),
        (None, {"image": images(2), "label": np.array([0, np.nan])}, {}, ["label array holds NaN in sample 1"]),
        (TOKENS, {"image": images(2)}, {}, ["is float32, and the model takes int32"]),
        (TOKENS, {"image": images(2, np.int64) + 2**40}, {}, ["sample 0 of input image has a value outside int32"]),
        (TOKENS, {"image": images(2, np.int32)}, {"image": SCALE}, ["computes in float32, and the model takes int32"]),
        (None, {"image": images(2)}, {"picture": SCALE}, ["preprocess names input picture"]),
        (
            None,
            {"image": images(2)},
            {"image": [{"normalize": {"mean": [0, 0], "std": [1, 1]}}]},
            ["has 2 entries", "has 3"],
        ),
    ],
)
def test_data_that_does_not_fit_is_refused(
    tmp_path: Path, spec: TensorSpec | None, arrays: dict[str, np.ndarray], operations: dict, words: list[str]
) -> None:
    with pytest.raises(StepError) as caught:
        batches.load(given(tmp_path, **arrays), graph(*([spec] if spec else [])), operations)
    for word in words:
        assert word in caught.value.message
    assert caught.value.hint


def test_value_that_overflows_in_preprocessing_is_named(tmp_path: Path) -> None:
    operations = {"image": [{"scale": 3e38}]}
    samples = batches.load(given(tmp_path, image=images(3)), graph(), operations)
    with pytest.raises(StepError, match=r"after preprocessing, holds an infinite value in sample 0"):
        list(batches.batches(samples, graph(), operations, 1))


def test_value_beyond_the_models_dtype_is_named(tmp_path: Path) -> None:
    half = graph(TensorSpec("image", "float16", ("batch", 2, 3)))
    samples = batches.load(given(tmp_path, image=broken(1e6)), half, {})
    with pytest.raises(StepError, match="infinite value in sample 2"):
        list(batches.batches(samples, half, {}, 2))


def test_damaged_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(b"\x93NUMPY nonsense")
    with pytest.raises(StepError, match=r"data\.image is no readable \.npy file"):
        batches.load({"data.image": tmp_path / "x.npy"}, graph(), {})


def test_shared_dimension_has_one_size(tmp_path: Path) -> None:
    both = graph(TensorSpec("a", "float32", ("n", "length")), TensorSpec("b", "float32", ("n", "length")))
    roles = given(tmp_path, a=np.zeros((2, 3), np.float32), b=np.zeros((2, 4), np.float32))
    with pytest.raises(StepError, match="dimension length is 3 in the samples of input a and 4 in those of b"):
        batches.load(roles, both, {})


def test_document_spells_out_the_contract() -> None:
    both = graph(TensorSpec("image", "float16", ("batch", 2, 3)), TensorSpec("ids", "int64", ("batch", 4)))
    assert json.loads(preprocess.document(both, {"image": SCALE})) == {
        "schema": "trtrecipe/preprocessing/v2",
        "inputs": {
            "image": {
                "dtype": "float16",
                "shape": ["batch", 2, 3],
                "operations": [{"cast": "float32"}, {"scale": 2.0}, {"cast": "float16"}],
            },
            "ids": {"dtype": "int64", "shape": ["batch", 4], "operations": [{"cast": "int64"}]},
        },
    }


def test_drawn_samples_follow_seed_and_distribution() -> None:
    spec = graph(TensorSpec("x", "float32", ("n", 1000)), TensorSpec("i", "int64", ("n", "l")))
    drawn = {"samples": 8, "seed": 3, "dims": {"l": 50}}
    first, again, other = draw(spec, drawn), draw(spec, drawn), draw(spec, {**drawn, "seed": 4})
    np.testing.assert_array_equal(first.arrays["x"], again.arrays["x"])
    assert not np.array_equal(first.arrays["x"], other.arrays["x"])
    assert abs(float(first.arrays["x"].std()) - 1) < 0.05
    assert first.arrays["i"].shape == (8, 50)
    assert set(np.unique(first.arrays["i"])) == {0, 1}


def test_open_axis_without_size_cannot_be_drawn() -> None:
    with pytest.raises(StepError, match="axis length is open"):
        draw(graph(TensorSpec("x", "float32", ("n", "length"))), {"samples": 1, "seed": 0})


def run_in_batches(count: int, size: int, function) -> tuple[dict[str, np.ndarray], list[str]]:
    samples = batches.Samples({"image": images(count)}, None, count)
    return outputs.collect(function, batches.batches(samples, graph(), {}, size))


def test_padding_is_cut_from_outputs() -> None:
    collected, notes = run_in_batches(5, 2, lambda feeds: {"y": feeds["image"] + 1})
    np.testing.assert_array_equal(collected["y"], images(5) + 1)
    assert notes == []


def test_output_without_a_batch_axis_gets_an_entry_per_batch() -> None:
    collected, _ = run_in_batches(4, 2, lambda feeds: {"y": feeds["image"].sum()[...], "z": feeds["image"]})
    np.testing.assert_array_equal(collected["y"], images(4).reshape(2, -1).sum(axis=1))


def test_output_that_changes_shape_is_left_out_with_a_note() -> None:
    def run(feeds):
        return {"y": feeds["image"], "found": np.zeros((int(feeds["image"].max()), 1))}

    collected, notes = run_in_batches(2, 1, run)
    assert list(collected) == ["y"]
    assert "found" in notes[0]
    with pytest.raises(StepError, match="no output can be compared"):
        run_in_batches(2, 1, lambda feeds: {"found": run(feeds)["found"]})


def test_npz_bytes_depend_on_values_alone(tmp_path: Path) -> None:
    arrays = {"b/c:0": images(2), "file": images(1), "a": np.float16([1, 2])}
    outputs.write_npz(tmp_path / "1.npz", arrays)
    outputs.write_npz(tmp_path / "2.npz", dict(reversed(arrays.items())))
    assert (tmp_path / "1.npz").read_bytes() == (tmp_path / "2.npz").read_bytes()
    read = outputs.read_npz(tmp_path / "1.npz")
    assert sorted(read) == sorted(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name], array)
        assert read[name].dtype == array.dtype
