"""The exported graph against its source: what is drawn, how it is judged, and what is said when it is wrong."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper, numpy_helper, parser

from trtrecipe.errors import StepError
from trtrecipe.graphs import tensorflow_refusals
from trtrecipe.graphs.interface import TensorSpec, interface
from trtrecipe.steps import export, fetch
from trtrecipe.truth import check, culprit, indices, samples
from trtrecipe.truth.difference import Difference
from trtrecipe.truth.source import Source

HEAD = '<ir_version: 8, opset_import: ["" : 13]> '
IMAGE = TensorSpec("image", "float32", ("batch", 6, 5, 3))


# --- what is drawn


def drawn(*specs: TensorSpec, bounds: Mapping[str, int | None] | None = None, **sizes: int) -> list[samples.Trial]:
    return list(samples.trials(specs, sizes, bounds or {}))


def test_an_open_batch_is_tried_with_one_and_three_samples_of_different_size() -> None:
    one, three = drawn(IMAGE)
    assert (one.batch, three.batch) == (1, 3)
    assert one.feeds["image"].shape == (1, 6, 5, 3) and three.feeds["image"].shape == (3, 6, 5, 3)
    uniform, normal, wide = three.feeds["image"]
    assert uniform.min() >= 0 and uniform.max() < 1
    assert normal.min() < 0 and np.abs(normal).max() < 10
    assert wide.max() > 100 and np.array_equal(wide, np.round(wide)) and wide.min() >= 0
    assert not np.array_equal(one.feeds["image"][0], uniform)
    again = drawn(IMAGE)
    assert all(np.array_equal(a.feeds["image"], b.feeds["image"]) for a, b in zip((one, three), again, strict=True))


@pytest.mark.parametrize("dtype", ["float32", "int64", "bool", "uint8"])
def test_an_input_without_axes_is_an_array_too(dtype: str) -> None:
    for run in drawn(IMAGE, TensorSpec("factor", dtype, ())):
        assert isinstance(run.feeds["factor"], np.ndarray)
        assert (run.feeds["factor"].shape, run.feeds["factor"].dtype) == ((), np.dtype(dtype))


def test_without_an_open_batch_each_distribution_is_a_run() -> None:
    signal = TensorSpec("signal", "float32", ("frames", 7))
    state = TensorSpec("state", "float16", (4,))
    runs = drawn(signal, state, frames=9)
    assert [run.batch for run in runs] == [None, None, None]
    assert [run.feeds["signal"].shape for run in runs] == [(9, 7)] * 3
    assert {run.feeds["state"].dtype.name for run in runs} == {"float16"}
    largest = [float(np.abs(run.feeds["signal"]).max()) for run in runs]
    assert largest[0] < 1 < largest[1] < largest[2]


@pytest.mark.parametrize(
    ("shapes", "axis"),
    [
        ([("n", 3), ("n",)], "n"),
        ([("n", 3), ()], "n"),
        ([("n", "n")], None),
        ([("n", 3), ("m", 3)], None),
        ([(2, "n")], None),
        ([()], None),
    ],
)
def test_which_axis_is_the_batch(shapes: list[tuple[int | str, ...]], axis: str | None) -> None:
    specs = [TensorSpec(f"x{index}", "float32", shape) for index, shape in enumerate(shapes)]
    assert samples.batch_axis(specs) == axis


def test_integers_stay_in_their_range() -> None:
    specs = [
        TensorSpec("ids", "int64", ("n", 50)),
        TensorSpec("float_ids", "float32", ("n", 50)),
        TensorSpec("unknown", "int32", ("n", 50)),
        TensorSpec("pixels", "uint8", ("n", 500)),
        TensorSpec("counts", "int32", ("n", 50)),
        TensorSpec("mask", "bool", ("n", 50)),
    ]
    _, run = drawn(*specs, bounds={"ids": 7, "float_ids": 5, "unknown": None})
    found = {name: sorted(set(values.ravel().tolist())) for name, values in run.feeds.items()}
    assert found["ids"] == list(range(7)) and found["float_ids"] == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert found["unknown"] == [0, 1] and found["mask"] == [False, True]
    assert found["counts"] == list(range(10)) and (found["pixels"][0], found["pixels"][-1]) == (0, 255)
    assert {name: values.dtype.name for name, values in run.feeds.items()} == {spec.name: spec.dtype for spec in specs}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("i = Cast<to = 7>(x) y = Gather(table, i)", {"x": 6}),
        ("i = Cast<to = 7>(x) y = Gather<axis = 1>(table, i)", {"x": 4}),
        ("r = Reshape(x, shape) i = Cast<to = 6>(r) c = Less(i, zero) n = Add(i, six) j = Where(c, n, i) "
         "a = Gather(table, j) b = Gather<axis = 1>(table, j) y = Concat<axis = 0>(a, b)", {"x": 4}),
        ("f = Floor(x) i = Cast<to = 7>(f) y = Gather(table, i)", {"x": None}),
        ("i = Cast<to = 7>(x) y = OneHot<axis = 1>(i, depth, values)", {"x": 9}),
        ("s = Shape(x) y = Gather(s, start)", {}),
        ("y = Relu(x)", {}),
        ("i = Cast<to = 7>(x) t = Neg(x) y = GatherElements(t, i)", {"x": None}),
    ],
)  # fmt: skip
def test_which_inputs_are_indices(body: str, expected: dict[str, int | None]) -> None:
    model = parser.parse_model(
        HEAD + "g (float[2,3] x) => (float y) <float[6,4] table = {"
        + ", ".join(["0"] * 24)
        + "}, int64[1] shape = {-1}, int32 zero = {0}, int32 six = {6}, int64 start = {0}, int64 depth = {9}, "
        + "float[2] values = {0, 1}> { " + body + " }"
    )  # fmt: skip
    assert indices.bounds(model.graph) == expected


# --- how it is judged


def seen(*pairs: tuple[Any, Any], batch: int | None = None) -> Difference:
    difference = Difference()
    for expected, found in pairs:
        difference.add(np.asarray(expected), np.asarray(found), batch)
    return difference


def test_errors_are_parts_of_the_largest_magnitude_of_a_sample() -> None:
    expected = np.array([[1.0, -2.0], [100.0, 50.0]])
    found = expected + np.array([[0.0, 0.02], [0.1, 0.0]])
    whole, rows = seen((expected, found)), seen((expected, found), batch=2)
    assert whole.max_abs == rows.max_abs == pytest.approx(0.1)
    assert whole.relative == pytest.approx(0.001) and rows.relative == pytest.approx(0.01)
    both = expected.ravel(), found.ravel()
    cosine = np.dot(*both) / np.linalg.norm(both[0]) / np.linalg.norm(both[1])
    assert rows.cosine == pytest.approx(cosine, abs=1e-15)
    assert rows.document().keys() == {"max_abs", "relative", "cosine"}


def test_rows_that_cancel_to_nothing_are_judged_by_the_others() -> None:
    assert seen(([[1e-9], [1.0]], [[2e-9], [1.0]]), batch=2).relative == pytest.approx(1e-6)
    assert seen(([[0.0]], [[1e-7]]), batch=1).relative == pytest.approx(1e-7)
    assert seen(([0.0], [0.0])).relative == 0 and seen(([0.0], [0.0])).cosine == 1


def test_integers_are_counted() -> None:
    difference = seen((np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5])), (np.array([True]), np.array([True])))
    assert difference.relative == 0.2 and "1 of 5 elements" in difference.words()


@pytest.mark.parametrize(
    ("expected", "found", "words"),
    [
        (np.ones((1, 2)), np.ones((2, 1)), "shape [2, 1] and should have [1, 2]"),
        (np.ones(2), np.ones(2, np.int64), "is int64 and should be float64"),
        (np.array([np.nan, 1]), np.array([1.0, np.nan]), "not finite in the same places"),
        (np.array([np.inf]), np.array([-np.inf]), "not finite in the same places"),
        (np.array([1.0]), np.array([np.nan]), "not finite in the same places"),
    ],
)
def test_what_no_tolerance_allows(expected: Any, found: Any, words: str) -> None:
    difference = seen((expected, found))
    assert difference.relative > 1 and words in difference.words()


def test_equal_infinities_are_equal_and_the_rest_counts() -> None:
    difference = seen(([np.inf, np.nan, 2.0], [np.inf, np.nan, 2.1]))
    assert difference.wrong is None and difference.relative == pytest.approx(0.05)


def test_outputs_that_never_change_are_noticed() -> None:
    ones, zeros = np.ones((3, 2)), np.zeros((3, 2))
    assert seen((ones, ones), batch=3).is_flat and seen((ones, ones), (ones, ones)).is_flat
    assert not seen((ones, ones), (zeros, zeros), batch=3).is_flat
    assert not seen((ones, ones)).is_flat  # of one sample nothing can be told


# --- the whole


def compared(text: str, run: Any, folder: Path, **given: Any) -> dict[str, Any]:
    model = parser.parse_model(HEAD + text)
    onnx.save(model, folder / "model.onnx")
    specs = given.pop("specs", interface(model).inputs)
    source = Source("the source computes", run)
    return check.check(
        model,
        folder / "model.onnx",
        specs,
        source,
        given.get("sizes", {}),
        given.get("tolerance"),
        given.get("culprit"),
    )


DOUBLE = "g (float[batch,4] x) => (float[batch,4] y) { y = Add(x, x) }"


def test_a_right_graph_is_measured(tmp_path: Path) -> None:
    found = compared(DOUBLE, lambda feeds: {"y": 2 * feeds["x"]}, tmp_path)
    assert found == {
        "against": "the source computes",
        "tolerance": 1e-3,
        "batches": [1, 3],
        "outputs": {"y": {"max_abs": 0.0, "relative": 0.0, "cosine": pytest.approx(1.0)}},
        "notes": [],
    }


def test_what_is_wrong_in_larger_batches_alone_is_found(tmp_path: Path) -> None:
    text = (
        "g (float[batch,4] x) => (float[batch,4] y) <int64[1] zero = {0}, int64[1] one = {1}> "
        "{ first = Slice(x, zero, one) rest = Sub(x, first) d = Add(x, x) y = Sub(d, rest) }"
    )
    with pytest.raises(StepError, match=r"for a batch of 3, output y differs by up to .* \(allowed: 0.001\)") as caught:
        compared(text, lambda feeds: {"y": 2 * feeds["x"]}, tmp_path)
    assert "model.tolerance" in (caught.value.hint or "")
    assert compared(text, lambda feeds: {"y": 2 * feeds["x"]}, tmp_path, tolerance=100.0)["tolerance"] == 100


def test_the_first_wrong_output_and_part_are_named(tmp_path: Path) -> None:
    text = "g (float[batch,4] x) => (float[batch,4] a, float[batch,4] b, float[batch,4] c) "
    text += "{ a = Relu(x) b = Neg(x) c = Abs(x) }"
    asked: list[float] = []

    def blame(feeds: Mapping[str, Any], tolerance: float) -> str:
        asked.append(tolerance)
        return "the first layer whose values differ is middle"

    def run(feeds: Mapping[str, Any]) -> dict[str, Any]:
        return {"a": np.maximum(feeds["x"], 0), "b": feeds["x"], "c": feeds["x"]}

    with pytest.raises(StepError, match=r"output b .*; the first layer whose values differ is middle"):
        compared(text, run, tmp_path, culprit=blame)
    assert asked == [1e-3]


def test_integer_outputs_have_to_be_equal(tmp_path: Path) -> None:
    text = "g (float[batch,4] x) => (int64[batch,1] y) { y = ArgMax<axis = 1>(x) }"
    assert compared(text, lambda feeds: {"y": feeds["x"].argmax(1, keepdims=True)}, tmp_path)["outputs"]["y"]
    with pytest.raises(StepError, match=r"output y differs in .* elements"):
        compared(text, lambda feeds: {"y": feeds["x"].argmin(1, keepdims=True)}, tmp_path)


def test_half_precision_is_allowed_more(tmp_path: Path) -> None:
    text = "g (float16[batch,4] x) => (float16[batch,4] y) { y = Add(x, x) }"
    assert compared(text, lambda feeds: {"y": feeds["x"] * np.float16(2.01)}, tmp_path)["tolerance"] == 1e-2


def test_graphs_that_quantize_are_allowed_a_few_steps(tmp_path: Path) -> None:
    text = "g (float[batch,4] x) => (float[batch,4] y) <float s = {0.5}, int8 z = {0}> "
    text += "{ q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }"

    def run(feeds: Mapping[str, Any]) -> dict[str, Any]:
        return {"y": np.clip(np.rint(feeds["x"] / 0.5), -128, 127) * 0.5}

    assert compared(text, run, tmp_path)["tolerance"] == 2e-2


def test_a_source_that_is_not_repeatable_is_said_to_be(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    with pytest.raises(StepError, match="different results for the same inputs"):
        compared(DOUBLE, lambda feeds: {"y": random.random(feeds["x"].shape)}, tmp_path)


def test_rounding_that_the_model_amplifies_is_noted_and_not_an_error(tmp_path: Path) -> None:
    """In front of a sine of many turns the last bits decide."""
    text = "g (float[batch,400] x) => (float[batch,400] y) <float large = {100000}> { l = Mul(x, large) y = Sin(l) }"

    def run(feeds: Mapping[str, Any]) -> dict[str, Any]:
        return {"y": np.sin((feeds["x"] * np.float32(3)) * np.float32(1e5 / 3))}

    found = compared(text, run, tmp_path)
    assert [note for note in found["notes"] if "output y differs by" in note and note.endswith("it is rounding")]
    assert found["outputs"]["y"]["relative"] > 1e-3
    with pytest.raises(StepError, match=r"output y differs by .*allowed: 0.0005"):  # what the recipe says counts
        compared(text, run, tmp_path, tolerance=5e-4)
    with pytest.raises(StepError, match="output y differs"):
        compared(text, lambda feeds: {"y": 3 * run(feeds)["y"]}, tmp_path)


def test_what_the_source_does_not_take_is_noted(tmp_path: Path) -> None:
    def run(feeds: Mapping[str, Any]) -> dict[str, Any]:
        if len(feeds["x"]) > 1:
            raise StepError("one at a time")
        return {"y": 2 * feeds["x"]}

    found = compared(DOUBLE, run, tmp_path)
    assert found["batches"] == [1]
    assert found["notes"] == [
        "the export was not checked with a batch of 3, as the model does not take them: one at a time"
    ]

    def refuse(feeds: Mapping[str, Any]) -> dict[str, Any]:
        raise StepError("never")

    assert list(compared(DOUBLE, refuse, tmp_path)) == ["notes"]


def test_outputs_that_say_nothing_are_noted(tmp_path: Path) -> None:
    text = "g (float[batch,4] x) => (float[batch,4] y) { z = Sub(x, x) y = Exp(z) }"
    notes = compared(text, lambda feeds: {"y": np.ones_like(feeds["x"])}, tmp_path)["notes"]
    assert len(notes) == 1 and notes[0].startswith("output y is the same for all inputs")


# --- in the step


def exported(source: Path, out: Path, format: str = "saved_model", **params: Any) -> dict[str, Any]:
    out.mkdir()
    fetch.run(fetch.Params(format=format), {"source": source}, out)
    return dict(export.run(export.Params(format=format, **params), {"model": out / "model"}, out))


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a Keras model as `model.keras` and as the SavedModel `model`."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(5)
    image = keras.Input((8, 8, 3), name="image")
    x = image
    for name in ("first", "second", "third"):
        x = layers.Conv2D(6, 3, padding="same", name=name)(x)
        x = layers.ReLU(name=f"{name}_relu")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    model = keras.Model(image, layers.Dense(4, name="scores")(x))
    folder = tmp_path_factory.mktemp("network")
    model.save(folder / "model.keras")
    model.export(str(folder / "model"), verbose=False)
    return folder


OPEN = {"inputs": {"image": {"shape": ["batch", 8, 8, 3]}}, "dims": ["batch"]}


def test_a_saved_model_is_compared_with_what_tensorflow_loads(network: Path, tmp_path: Path) -> None:
    found = exported(network / "model", tmp_path / "out", **OPEN)["check"]
    assert found["against"] == "the model as it was saved computes" and found["batches"] == [1, 3]
    (figures,) = found["outputs"].values()
    assert figures["relative"] < 1e-4 and figures["cosine"] > 0.99999


def test_a_keras_file_is_compared_with_the_keras_model(network: Path, tmp_path: Path) -> None:
    found = exported(network / "model.keras", tmp_path / "out", "keras", **OPEN)["check"]
    assert found["against"] == "the Keras model computes" and found["batches"] == [1, 3]
    assert found["outputs"]["scores"]["relative"] < 1e-4


def test_beyond_the_tolerance_the_step_fails_and_leaves_no_graph(network: Path, tmp_path: Path) -> None:
    with pytest.raises(StepError, match=r"does not compute what the model as it was saved computes: .*allowed: 1e-12"):
        exported(network / "model", tmp_path / "out", tolerance=1e-12, **OPEN)
    assert not (tmp_path / "out" / "model.onnx").exists()


def test_the_layer_that_was_converted_wrongly_is_named(network: Path) -> None:
    from trtrecipe.graphs import from_tensorflow, layers, saved_model
    from trtrecipe.graphs.canonical import Renamed, renamed

    frozen = saved_model.freeze(network / "model")
    model, _ = from_tensorflow.to_onnx(frozen, {"image": ("batch", 8, 8, 3)}, None)
    made = renamed(model)
    found = layers.of_tensorflow([(node.op, node.name) for node in frozen.graph.node], [], made)
    feeds = {"image": np.random.default_rng(0).random((2, 8, 8, 3), np.float32)}
    damaged = ModelProto()
    damaged.CopyFrom(made.model)
    node = next(node for node in damaged.graph.node if node.name.startswith("second/"))
    kernel = next(tensor for tensor in damaged.graph.initializer if tensor.name == node.input[1])
    kernel.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(kernel), kernel.name))
    named = culprit.first(frozen, Renamed(damaged, made.constants, made.layers), found, feeds, 1e-3)
    assert named == "the first layer whose values differ is second"
    before = culprit.first(frozen, made, found, feeds, 1e-3)
    assert before is not None and before.startswith("the graph with its values, as it was read from the model")
    turned = ModelProto()
    turned.CopyFrom(made.model)
    head = next(node for node in turned.graph.node if node.output[0] == turned.graph.output[0].name)
    source, head.output[0] = head.output[0], "in_order"
    at = numpy_helper.from_array(np.array([1, 0], np.int64), "at")
    turned.graph.initializer.append(at)
    turned.graph.node.append(helper.make_node("Gather", ["in_order", "at"], [source], name="turned"))
    named = culprit.first(frozen, Renamed(turned, made.constants, made.layers), found, feeds, 1e-3)
    assert named is None or "differs already" not in named  # the same values in another order are others


def test_a_loader_that_would_reach_files_is_not_run(tmp_path: Path) -> None:
    import tensorflow as tf
    from tensorflow.core.protobuf import saved_model_pb2

    secret = tmp_path / "written"

    class Model(tf.Module):  # type: ignore[misc]  # tensorflow has no types
        @tf.function(input_signature=[tf.TensorSpec([None, 2], name="x")])
        def serve(self, x: Any) -> dict[str, Any]:
            return {"y": x * 2}

        @tf.function(input_signature=[])
        def other(self) -> Any:
            tf.io.write_file(str(secret), "x")
            return 1

    model = Model()
    tf.saved_model.save(model, str(tmp_path / "model"), signatures={"serving_default": model.serve})
    saved = saved_model_pb2.SavedModel.FromString((tmp_path / "model" / "saved_model.pb").read_bytes())
    assert tensorflow_refusals.run_when_loaded(saved.meta_graphs[0]) == ["WriteFile WriteFile"]
    measured = exported(tmp_path / "model", tmp_path / "out")
    assert measured["check"]["against"] == "the TensorFlow graph it was made from computes"
    assert [note for note in measured["notes"] if "loading it would run WriteFile" in note]
    assert not secret.exists()


def test_random_models_are_refused(tmp_path: Path) -> None:
    import tensorflow as tf

    def stateful(x: Any) -> dict[str, Any]:
        return {"y": x + tf.random.uniform([4])}

    def stateless(x: Any) -> dict[str, Any]:
        return {"y": x + tf.random.stateless_normal(tf.shape(x), seed=[1, 2])}

    for function in (stateful, stateless):
        name = function.__name__
        signature = tf.function(function).get_concrete_function(tf.TensorSpec([None, 4], name="x"))
        tf.saved_model.save(tf.Module(), str(tmp_path / name), signatures={"serving_default": signature})
        with pytest.raises(StepError, match="draws random numbers while it computes") as caught:
            exported(tmp_path / name, tmp_path / f"out-{name}")
        assert "training=False" in (caught.value.hint or "")


def test_an_onnx_file_is_checked_where_its_opset_changed(tmp_path: Path) -> None:
    old = parser.parse_model(
        '<ir_version: 4, opset_import: ["" : 9]> g (float[batch,3] x) => (float[batch,3] y) '
        "{ z = Softmax<axis = 1>(x) y = Dropout<ratio = 0.5>(z) }"
    )
    onnx.save(old, tmp_path / "old.onnx")
    given = {"inputs": {"x": {"shape": ["batch", 3]}}, "dims": ["batch"]}
    found = exported(tmp_path / "old.onnx", tmp_path / "raised", "onnx", **given)["check"]
    assert found["against"] == "the given graph at opset 9 computes" and found["batches"] == [1, 3]
    again = exported(tmp_path / "raised" / "model.onnx", tmp_path / "same", "onnx", **given)
    assert "check" not in again


def test_indices_are_drawn_within_their_table(tmp_path: Path) -> None:
    """TensorFlow and ONNX Runtime both refuse an index beyond it."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(1)
    ids = keras.Input((12,), name="ids", dtype="int32")
    x = layers.Embedding(5, 8, name="table")(ids)
    model = keras.Model(ids, layers.Dense(3, name="scores")(layers.GlobalAveragePooling1D()(x)))
    model.save(tmp_path / "model.keras")
    measured = exported(tmp_path / "model.keras", tmp_path / "out", "keras")
    assert measured["check"]["outputs"]["scores"]["relative"] < 1e-4
    assert not [note for note in measured["notes"] if "not checked" in note or "the same for all" in note]


# --- what the check has to pay for


def test_tensorflow_comes_without_keras_which_still_comes_after_it() -> None:
    program = (
        "import sys; from trtrecipe.graphs.tensorflow_runtime import tensorflow; tf = tensorflow();"
        "assert 'keras' not in sys.modules; import keras; assert tf.keras.layers.Dense is keras.layers.Dense"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_an_optimizer_that_fails_is_left_out_and_noted(
    network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tf2onnx import optimizer

    def broken() -> Any:
        raise ValueError("no such axis")

    monkeypatch.setitem(optimizer._optimizers, "const_dequantize_optimizer", broken)
    measured = exported(network / "model", tmp_path / "out", **OPEN)
    (note,) = measured["notes"]
    assert "const_dequantize_optimizer (ValueError: no such axis)" in note
    assert measured["check"]["batches"] == [1, 3]
