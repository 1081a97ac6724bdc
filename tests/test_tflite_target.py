"""Target tflite: a TensorFlow model through TensorFlow's converter, run by LiteRT; a TFLite file as it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from support.fixtures_formats import FIXTURES
from support.tflite import fixture

from trtrecipe.cli.app import run as command
from trtrecipe.cli.recipes import load_all
from trtrecipe.data import outputs
from trtrecipe.engines import tflite_kind
from trtrecipe.engines.tflite import TfliteEngine
from trtrecipe.errors import InputError, StepError
from trtrecipe.graphs import from_tflite, tflite_file
from trtrecipe.plan.graph import Graph, StepOutput
from trtrecipe.plan.machine import Machine
from trtrecipe.plan.pipeline import build_graph
from trtrecipe.plan.sources import SampleSource, digest_sources
from trtrecipe.steps import compile, export, fetch, reference, verify
from trtrecipe.store.store import Store

MACHINE = Machine("x86-64-v3", "a CPU x 2", None)
MODES = {"fp32": ("fp32", None), "fp16": ("fp16", None), "dynamic": ("int8", "dynamic"), "int8": ("int8", "explicit")}
SCALE = {"image": [{"scale": 0.5}]}


@dataclass(frozen=True)
class Exported:
    """A source that has been through fetch and export, and what it is compiled with."""

    folder: Path
    source: Mapping[str, Any]

    @property
    def inputs(self) -> dict[str, Path]:
        return {"model": self.folder / "model", "onnx": self.folder / "model.onnx"}

    def compile(
        self, out: Path, kind: str, data: Mapping[str, Path] | None = None, preprocess: Any = None
    ) -> Mapping[str, Any]:
        """Write `out`/model.engine."""
        out.mkdir(parents=True, exist_ok=True)
        mode, quantization = MODES[kind]
        params = compile.Params(
            "tflite", mode=mode, quantization=quantization, source=dict(self.source), preprocess=preprocess or {}
        )
        return compile.run(params, {**self.inputs, **(data or {})}, out)


def exported(path: Path, form: str, folder: Path, **params: Any) -> Exported:
    folder.mkdir()
    fetch.run(fetch.Params(form), {"source": path}, folder)
    export.run(export.Params(form, **params), {"model": folder / "model"}, folder)
    return Exported(folder, {"format": form, **params})


def saved(folder: Path, function: Callable[..., Any], *specs: Any) -> Path:
    """A SavedModel of one function with these inputs, x and y."""
    import tensorflow as tf

    module = tf.Module()
    named = [tf.TensorSpec(*spec, name=name) for spec, name in zip(specs, ("x", "y"), strict=False)]
    concrete = tf.function(function).get_concrete_function(*named)
    tf.saved_model.save(module, str(folder), signatures=concrete)
    return folder


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A small classifier of images, with the open batch that Keras leaves; x.npy, labels.npy and outputs.npz beside."""
    import keras

    folder = tmp_path_factory.mktemp("digits")
    keras.utils.set_random_seed(3)
    layers = keras.layers
    taken = x = keras.Input((8, 8, 1), name="image")
    x = layers.Conv2D(16, 3, padding="same", use_bias=False, name="stem")(x)
    x = layers.ReLU(name="act")(layers.BatchNormalization(name="norm")(x))
    x = layers.Flatten(name="flat")(layers.MaxPooling2D(name="pool")(x))
    x = layers.Dense(32, activation="relu", name="hidden")(x)
    keras.Model(taken, layers.Dense(10, name="logits")(x)).export(str(folder / "source"), verbose=False)
    made = exported(
        folder / "source",
        "saved_model",
        folder / "exported",
        inputs={"image": {"shape": ["batch", 8, 8, 1]}},
        dims=["batch"],
    )
    random = np.random.default_rng(1)
    np.save(folder / "exported" / "x.npy", 2 * random.random((60, 8, 8, 1), np.float32))
    np.save(folder / "exported" / "labels.npy", np.zeros(60, np.int64))
    judged = {"data.image": made.folder / "x.npy", "data.label": made.folder / "labels.npy"}
    params = reference.Params(SCALE, metric="top1")
    reference.run(params, {"onnx": made.folder / "model.onnx", **judged}, made.folder)
    collected = outputs.read_npz(made.folder / "outputs.npz")
    np.save(made.folder / "labels.npy", collected["output_0"].argmax(axis=1))
    return made


def samples(made: Exported) -> dict[str, Path]:
    return {"data.image": made.folder / "x.npy"}


@pytest.fixture(scope="module")
def engines(digits: Exported, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Kind → the classifier's file, calibrated where it is quantized in full."""
    made = {}
    for kind in MODES:
        out = tmp_path_factory.mktemp(kind)
        data = samples(digits) if kind == "int8" else None
        digits.compile(out, kind, data, SCALE)
        made[kind] = out / "model.engine"
    return made


@pytest.mark.parametrize("kind", MODES)
def test_each_precision_agrees_with_the_reference(
    kind: str, digits: Exported, engines: Mapping[str, Path], tmp_path: Path
) -> None:
    model = tflite_file.read(engines[kind])
    assert tflite_kind.kind(model) == kind
    data = {"data.image": digits.folder / "x.npy", "data.label": digits.folder / "labels.npy"}
    inputs = {
        "onnx": digits.folder / "model.onnx",
        "engine": engines[kind],
        "reference": digits.folder / "outputs.npz",
        **data,
    }
    found = verify.run(verify.Params("litert", "engine", SCALE, metric="top1"), inputs, tmp_path)
    assert found["samples"] == 60 and found["evaluated"] == "engine"
    assert found["cosine"] > (0.999999 if kind in ("fp32", "fp16") else 0.99)
    assert found["accuracy"] == found["agreement"] > 0.9
    assert (found["max_abs_error"] < 1e-5) == (kind == "fp32")


def test_files_are_as_small_as_their_precision(engines: Mapping[str, Path]) -> None:
    size = {kind: path.stat().st_size for kind, path in engines.items()}
    assert size["int8"] < size["fp16"] < size["fp32"] and size["dynamic"] < size["fp16"]


def test_names_are_the_models_own(engines: Mapping[str, Path]) -> None:
    [signature] = tflite_file.read(engines["int8"]).signatures
    assert (set(signature.inputs), set(signature.outputs)) == ({"image"}, {"output_0"})
    tensors = tflite_file.read(engines["fp32"]).graphs[0].tensors
    named = {part for tensor in tensors for part in tensor.name.split(";")}
    assert {"image:0", "output_0:0", "hidden/MatMul", "pool/MaxPool2d"} <= named
    assert not any("PartitionedCall" in name for name in named)
    assert tensors[0].shape == (-1, 8, 8, 1) and tensors[0].kind == "FLOAT32"  # as in int8
    assert tflite_file.read(engines["int8"]).graphs[0].tensors[0].kind == "FLOAT32"


def test_the_same_model_gives_the_same_bytes(digits: Exported, engines: Mapping[str, Path], tmp_path: Path) -> None:
    program = (
        "import sys, json; from pathlib import Path; from trtrecipe.steps import compile\n"
        "for arguments, inputs, out in json.loads(sys.argv[1]):\n"
        "    compile.run(compile.Params(*arguments), {k: Path(v) for k, v in inputs.items()}, Path(out))"
    )
    requests = []
    for kind, (mode, quantization) in MODES.items():
        (tmp_path / kind).mkdir()
        data = samples(digits) if kind == "int8" else {}
        inputs = {role: str(path) for role, path in {**digits.inputs, **data}.items()}
        arguments = ("tflite", {}, None, mode, quantization, digits.source, None, SCALE if data else {})
        requests.append((arguments, inputs, str(tmp_path / kind)))
    elsewhere = {**os.environ, "PYTHONHASHSEED": "4711", "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", program, json.dumps(requests)], env=elsewhere, check=True, cwd="/")
    for kind in MODES:
        assert (tmp_path / kind / "model.engine").read_bytes() == engines[kind].read_bytes(), kind


def test_ranges_come_from_the_samples_and_their_preprocessing(
    digits: Exported, engines: Mapping[str, Path], tmp_path: Path
) -> None:
    before = engines["int8"].read_bytes()
    digits.compile(tmp_path, "int8", samples(digits), {"image": [{"scale": 0.25}]})
    assert (tmp_path / "model.engine").read_bytes() != before
    data = np.load(digits.folder / "x.npy")
    data[7] *= 10
    np.save(tmp_path / "more.npy", data)
    digits.compile(tmp_path, "int8", {"data.image": tmp_path / "more.npy"}, SCALE)
    assert (tmp_path / "model.engine").read_bytes() != before
    scales = [_input_scale(path) for path in (engines["int8"], tmp_path / "model.engine")]
    assert scales[1] > 5 * scales[0]


def _input_scale(path: Path) -> float:
    graph = tflite_file.read(path).graphs[0]
    [first] = [operator for operator in graph.operators if operator.name == "QUANTIZE"]
    grid = graph.tensors[first.outputs[0]].quantization
    assert grid is not None
    return float(grid.scale[0])


@pytest.mark.parametrize("name", ["keras_3_h5", "frozen_graph", "tf1"])
def test_each_source_computes_what_tensorflow_computes(name: str, tmp_path: Path) -> None:
    source = FIXTURES[name](tmp_path)
    made = exported(source.path, source.format, tmp_path / "out", **source.params)
    made.compile(tmp_path / "out", "fp32")
    with TfliteEngine(tmp_path / "out" / "model.engine") as engine:
        found = engine.run(source.feeds)
    assert found.keys() == source.expected.keys()
    for output, expected in source.expected.items():
        np.testing.assert_allclose(found[output], expected, atol=1e-5)


def test_an_exact_gelu_is_one_operator(tmp_path: Path) -> None:
    """Keras writes it with Erfc, which TFLite has no form for but in a GELU; ONNX has one for neither."""
    import tensorflow as tf

    def function(x: Any) -> dict[str, Any]:
        return {"z": tf.nn.gelu(x)}

    made = exported(saved(tmp_path / "source", function, ([1, 6],)), "saved_model", tmp_path / "out")
    made.compile(tmp_path / "out", "fp32")
    file = tflite_file.read(tmp_path / "out" / "model.engine")
    assert [operator.name for operator in file.graphs[0].operators] == ["GELU"]
    x = np.linspace(-4, 4, 6, dtype=np.float32)[None]
    with TfliteEngine(tmp_path / "out" / "model.engine") as engine:
        np.testing.assert_allclose(engine.run({"x": x})["z"], tf.nn.gelu(x), atol=1e-6)


def test_the_engines_interface_is_the_recipes(tmp_path: Path) -> None:
    """Other names, channels in front, and a fixed batch of three."""
    source = FIXTURES["tf2"](tmp_path)
    made = exported(
        source.path,
        "saved_model",
        tmp_path / "out",
        signature="serving_default",
        inputs={"pixels": {"shape": [3, 2, 6, 6], "layout": "nchw"}},
        rename={"image": "pixels", "scores": "odd/name:0"},
    )
    made.compile(tmp_path / "out", "fp32")
    import onnxruntime

    feeds = {"pixels": np.random.default_rng(0).standard_normal((3, 2, 6, 6)).astype(np.float32)}
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"))
    with TfliteEngine(tmp_path / "out" / "model.engine") as engine:
        found = engine.run(feeds)
    assert list(found) == ["odd/name:0"]
    np.testing.assert_allclose(found["odd/name:0"], session.run(None, feeds)[0], atol=1e-5)


def test_inner_outputs_inputs_that_go_and_several_types(tmp_path: Path) -> None:
    import tensorflow as tf

    def function(x: Any, y: Any) -> dict[str, Any]:
        inner = tf.nn.relu(x, name="inner")
        return {"both": tf.gather(inner, y, axis=1, batch_dims=1), "best": tf.argmax(x, axis=1)}

    path = saved(tmp_path / "source", function, ([None, 5],), ([None, 2], tf.int32))
    x, y = np.array([[-1, 4, 0, 2, 3]], np.float32), np.array([[4, 0]], np.int32)
    made = exported(path, "saved_model", tmp_path / "both")
    made.compile(tmp_path / "both", "fp32")
    with TfliteEngine(tmp_path / "both" / "model.engine") as engine:
        found = engine.run({"x": x, "y": y})
        assert [found["both"].tolist(), found["best"].tolist()] == [[[3, 0]], [1]]
        assert found["best"].dtype == np.int64
        with pytest.raises(StepError, match="an input y that no data is given for"):
            engine.run({"x": x})
        with pytest.raises(StepError, match=r"LiteRT cannot run the model: .*Cannot set tensor"):
            engine.run({"x": x.astype(np.int32), "y": y})
    made = exported(path, "saved_model", tmp_path / "inner", outputs=["inner"])
    made.compile(tmp_path / "inner", "fp32")
    with TfliteEngine(tmp_path / "inner" / "model.engine") as engine:
        found = engine.run({"x": x, "y": y})
    assert list(found) == ["inner"] and found["inner"].tolist() == np.maximum(x, 0).tolist()


def refusal(made: Exported, kind: str, data: Mapping[str, Path] | None = None) -> tuple[str, str]:
    with pytest.raises(StepError) as caught:
        made.compile(made.folder, kind, data)
    return caught.value.message, caught.value.hint or ""


def test_operators_without_a_form_are_named(tmp_path: Path) -> None:
    import tensorflow as tf

    def function(x: Any) -> dict[str, Any]:
        with tf.name_scope("plain"):
            x = tf.nn.relu(x)
        with tf.name_scope("odd"):
            return {"z": tf.linalg.det(x)}

    made = exported(saved(tmp_path / "source", function, ([None, 3, 3],)), "saved_model", tmp_path / "out")
    message, hint = refusal(made, "fp32")
    assert message == "TFLite has no form for these operators:\n  MatrixDeterminant odd/MatrixDeterminant"
    assert hint == (
        "replace them in the model or leave this target out; TensorFlow's own operators (SELECT_TF_OPS) are not used, "
        "as runtimes on devices lack them"
    )


def recurrent(folder: Path, batch: int | str) -> Exported:
    import keras

    keras.utils.set_random_seed(5)
    taken = keras.Input((6, 4), name="steps")
    model = keras.Model(taken, keras.layers.Dense(3)(keras.layers.GRU(24, return_sequences=True, name="memory")(taken)))
    model.export(str(folder / "source"), verbose=False)
    dims = [batch] if isinstance(batch, str) else []
    inputs = {"steps": {"shape": [batch, 6, 4]}}
    made = exported(folder / "source", "saved_model", folder / "out", inputs=inputs, dims=dims)
    feeds = np.random.default_rng(2).standard_normal((3, 6, 4)).astype(np.float32)
    np.save(folder / "x.npy", feeds)
    np.save(folder / "expected.npy", model(feeds).numpy())
    return made


def test_recurrent_layers_with_a_fixed_batch(tmp_path: Path) -> None:
    made = recurrent(tmp_path, 3)
    expected = np.load(tmp_path / "expected.npy")
    for kind, tolerance in (("fp32", 1e-5), ("dynamic", 0.02)):
        made.compile(tmp_path / kind, kind)
        assert tflite_kind.kind(tflite_file.read(tmp_path / kind / "model.engine")) == kind
        with TfliteEngine(tmp_path / kind / "model.engine") as engine:
            for _ in range(2):
                found = engine.run({"steps": np.load(tmp_path / "x.npy")})
        np.testing.assert_allclose(found["output_0"], expected, atol=tolerance)
    # TensorFlow itself would die of it: tensorflow/tensorflow#75140.
    message, hint = refusal(made, "int8", {"data.steps": tmp_path / "x.npy"})
    assert message == (
        "TensorFlow's converter cannot take ranges from samples where a model has such loops:\n  memory/while"
    )
    assert hint == "use quantization: dynamic for this target, which quantizes the weights of recurrent layers"


def test_recurrent_layers_with_an_open_batch_say_what_to_fix(tmp_path: Path) -> None:
    message, hint = refusal(recurrent(tmp_path, "batch"), "fp32")
    assert message.startswith(
        "TFLite needs the sizes of what loops gather, and axes are open:\n  TensorListReserve memory/"
    )
    assert hint == "fix the axes under model.inputs, the batch included, as in shape: [1, 20, 8]"


def test_loops_of_other_kinds_are_quantized_around(tmp_path: Path) -> None:
    import tensorflow as tf

    weights = tf.constant(np.random.default_rng(0).standard_normal((8, 8)), tf.float32)

    def function(x: Any) -> dict[str, Any]:
        _, y = tf.while_loop(lambda i, x: i < 3, lambda i, x: (i + 1, tf.nn.relu(x * 0.9)), [tf.constant(0), x])
        return {"z": tf.matmul(y, weights)}

    made = exported(saved(tmp_path / "source", function, ([None, 8],)), "saved_model", tmp_path / "out")
    np.save(tmp_path / "x.npy", np.random.default_rng(1).standard_normal((20, 8)).astype(np.float32))
    notes = made.compile(tmp_path / "out", "int8", {"data.x": tmp_path / "x.npy"})["notes"]
    assert notes == ["in float, as TFLite has no 8-bit form of them or no range: WHILE (while)"]


def test_a_model_with_nothing_to_quantize_says_so(tmp_path: Path) -> None:
    import tensorflow as tf

    def function(x: Any) -> dict[str, Any]:
        return {"z": tf.matmul(tf.abs(x), tf.eye(4))}

    made = exported(saved(tmp_path / "source", function, ([None, 4],)), "saved_model", tmp_path / "out")
    notes = made.compile(tmp_path / "out", "dynamic")["notes"]
    assert notes == ["nothing was quantized: TFLite leaves weights of fewer than 1,024 values as they are"]
    message, hint = refusal(made, "int8")
    assert message.startswith("the model carries no ranges that TFLite can use")
    assert hint == "give calibration.data, or use quantization: dynamic for this target"


def test_ranges_that_the_model_was_trained_with(tmp_path: Path) -> None:
    import tensorflow as tf

    fake = tf.quantization.fake_quant_with_min_max_args
    kernel = tf.constant(np.random.default_rng(0).standard_normal((3, 3, 1, 8)), tf.float32)

    def function(x: Any) -> dict[str, Any]:
        weights = fake(kernel, -3, 3, narrow_range=True)
        return {"z": fake(tf.nn.relu(tf.nn.conv2d(fake(x, -1, 1), weights, 1, "SAME")), 0, 6)}

    made = exported(saved(tmp_path / "source", function, ([None, 8, 8, 1],)), "saved_model", tmp_path / "out")
    made.compile(tmp_path / "out", "int8")
    assert _input_scale(tmp_path / "out" / "model.engine") == pytest.approx(2 / 255)
    for kind in ("fp32", "fp16", "dynamic"):
        message, hint = refusal(made, kind)
        assert message.startswith(
            "the model was trained with fake quantization, and TensorFlow's converter makes 8-bit"
        )
        assert hint == "use precision: {mode: int8} for this target, with calibration: {model: true}"


KINDS = {"vision_float": "fp32", "vision_float16": "fp16", "vision_dynamic": "dynamic", "vision_int8": "int8"}


@pytest.mark.parametrize("name", KINDS)
def test_a_tflite_file_is_left_as_it_is_where_it_fits(name: str, tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(fixture(name).read_bytes())
    made = Exported(tmp_path, {"format": "tflite"})
    assert compile.tools(compile.Params("tflite", source=dict(made.source))) == ()
    made.compile(tmp_path, KINDS[name])
    assert (tmp_path / "model.engine").read_bytes() == fixture(name).read_bytes()
    other = "fp32" if KINDS[name] != "fp32" else "dynamic"
    message, hint = refusal(made, other)
    assert message == (
        f"the model is a TFLite file already, {tflite_kind.IN_WORDS[KINDS[name]]}, "
        f"and cannot become {tflite_kind.IN_WORDS[other]}"
    )
    written = {"dynamic": "{mode: int8, quantization: dynamic}", "int8": "{mode: int8}"}
    precision = written.get(KINDS[name], f"{{mode: {KINDS[name]}}}")
    assert hint == f"write precision: {precision} for this target, or give the TensorFlow model behind the file"


@pytest.mark.parametrize(
    ("name", "params", "why"),
    [
        ("vision_float", {"rename": {"a": "b"}}, "names, outputs and layouts of model do not reach into it"),
        ("vision_float", {"outputs": ["a"]}, "names, outputs and layouts of model do not reach into it"),
        (
            "vision_float",
            {"inputs": {"x": {"layout": "nchw"}}},
            "names, outputs and layouts of model do not reach into it",
        ),
        ("signatures", {}, "it has several signatures"),
    ],
)
def test_a_tflite_file_is_never_changed(name: str, params: dict[str, Any], why: str, tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(fixture(name).read_bytes())
    message, _ = refusal(Exported(tmp_path, {"format": "tflite", **params}), "fp32")
    assert message == f"the model is a TFLite file already, which is left as it is: {why}"


@pytest.mark.parametrize("name", ["vision_int8_int8", "vision_int8_uint8"])
def test_integers_at_the_ends_are_given_and_taken_as_floats(name: str) -> None:
    results = []
    for path in (fixture("vision_int8"), fixture(name)):
        chosen = from_tflite.choose(tflite_file.read(path), None)
        [(taken, number)] = chosen.inputs.items()
        shape = [max(axis, 1) for axis in chosen.graph.tensors[number].shape]
        with TfliteEngine(path) as engine:
            [result] = engine.run({taken: np.random.default_rng(0).random(shape).astype(np.float32)}).values()
        results.append(result)
    assert results[1].dtype == np.float32
    np.testing.assert_allclose(results[1], results[0], atol=1e-6)


def test_a_damaged_file_is_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "cut.tflite").write_bytes(fixture("vision_float").read_bytes()[:2000])
    with pytest.raises(StepError):
        TfliteEngine(tmp_path / "cut.tflite")


DATA = {"npz": "data.npz", "arrays": {"image": "x"}}


def project(folder: Path, **changes: Any) -> Path:
    """A recipe for tflite with what looks like a SavedModel beside it; for what needs no model to be loaded."""
    (folder / "model").mkdir(parents=True, exist_ok=True)
    (folder / "model" / "saved_model.pb").write_bytes(b"never read")
    np.savez(folder / "data.npz", x=np.arange(24, dtype=np.float32).reshape(12, 2))
    recipe: dict[str, Any] = {
        "schema": "trtrecipe/v1",
        "name": "small",
        "model": {"source": "model"},
        "precision": {"mode": "int8"},
        "calibration": {"data": DATA, "samples": 6, "method": "minmax"},
        "preprocess": SCALE,
        "targets": ["tflite"],
    }
    text = {name: block for name, block in (recipe | changes).items() if block is not None}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(text))
    return folder / "recipe.yaml"


def planned(recipe: Path) -> Graph:
    return build_graph(load_all([recipe]), MACHINE)


def test_the_plan_goes_from_the_source_past_onnx(tmp_path: Path) -> None:
    graph = planned(project(tmp_path))
    assert list(graph.steps) == [f"small:{name}" for name in ("fetch", "export", "reference")] + [
        f"small:{kind}@tflite" for kind in ("compile", "verify", "benchmark")
    ]
    compiled = graph.steps["small:compile@tflite"]
    assert compiled.inputs["model"] == StepOutput("small:fetch", "model")
    assert compiled.inputs["onnx"] == StepOutput("small:export", "onnx")
    assert isinstance(compiled.inputs["data.image"], SampleSource)
    assert compiled.params["preprocess"] == SCALE and compiled.params["dims"] == {}
    assert compiled.params["source_version"] == export.VERSION
    [target] = graph.recipes[0].targets
    assert set(target.artifacts) == {"engine", "preprocessing"} and target.evaluates == "engine"
    assert compile.tools(compile.Params(**compiled.params)) == ("numpy", "onnx", "tensorflow")


@pytest.mark.parametrize(
    "precision", [{"mode": "fp32"}, {"mode": "fp16"}, {"mode": "int8", "quantization": "dynamic"}], ids=str
)
def test_only_full_quantization_depends_on_samples(precision: dict[str, Any], tmp_path: Path) -> None:
    compiled = planned(project(tmp_path, precision=precision)).steps["small:compile@tflite"]
    assert set(compiled.inputs) == {"model", "onnx"} and compiled.params["preprocess"] == {}


def test_dynamic_quantization_needs_no_calibration(tmp_path: Path) -> None:
    precision = {"mode": "int8", "quantization": "dynamic"}
    [target] = planned(project(tmp_path, precision=precision, calibration=None)).recipes[0].targets
    assert (target.target.mode, target.target.quantization) == ("int8", "dynamic")


def test_the_key_changes_with_the_samples_that_are_used_alone(tmp_path: Path) -> None:
    def digest() -> str:
        source = planned(tmp_path / "recipe.yaml").steps["small:compile@tflite"].inputs["data.image"]
        assert isinstance(source, SampleSource)
        with Store(tmp_path / "store") as store:
            return digest_sources([source], store.stat)[source]

    project(tmp_path)
    before, changed = digest(), 0
    values = dict(np.load(tmp_path / "data.npz"))["x"]
    for index in range(12):
        other = values.copy()
        other[index] += 1
        np.savez(tmp_path / "data.npz", x=other)
        changed += digest() != before
    assert changed == 6


def test_targets_of_other_families_share_what_they_can(tmp_path: Path) -> None:
    targets = ["host", "tflite", {"profile": "tflite", "name": "float", "precision": {"mode": ["fp32", "fp16"]}}]
    graph = planned(project(tmp_path, targets=targets))
    assert [step for step in graph.steps if step.endswith(("fetch", "export", "reference"))] == [
        f"small:{kind}" for kind in ("fetch", "export", "reference")
    ]
    alone = planned(project(tmp_path, targets=["host"]))
    assert {name: step for name, step in graph.steps.items() if name in alone.steps} == dict(alone.steps)
    assert [plan.target.label for plan in graph.recipes[0].targets] == ["host", "tflite", "float/fp32", "float/fp16"]


def test_an_onnx_model_is_refused_where_the_recipe_names_it(tmp_path: Path) -> None:
    import onnx

    graph = onnx.parser.parse_graph("g (float[1, 4] x) => (float[1, 4] z) { z = Relu(x) }")
    recipe = project(tmp_path, model={"source": "model.onnx"})
    onnx.save(onnx.helper.make_model(graph), tmp_path / "model.onnx")
    with pytest.raises(InputError) as caught:
        planned(recipe)
    [problem] = caught.value.problems
    assert problem.message == "target tflite cannot be made of an ONNX model: TensorFlow's converter makes TFLite files"
    assert problem.line is not None and problem.hint == (
        "give the SavedModel or Keras file that the ONNX model was made from, or leave this target out"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"precision": {"mode": "fp16", "keep": [{"layers": "a"}]}},
            "tflite cannot keep layers in another precision: TensorFlow's converter decides by operator",
        ),
        (
            {"precision": {"mode": "int8", "search": True}, "gates": {"cosine": 0.9}},
            "tflite cannot search for layers to keep: TensorFlow's converter decides by operator",
        ),
        (
            {"precision": {"mode": "int8", "quantization": "implicit"}},
            "tflite with tflite has no implicit quantization: TensorFlow's converter reads no calibration table",
        ),
        (
            {"calibration": {"table": "data.npz"}},
            "tflite cannot take its ranges from calibration.table, which is TensorRT's and names ONNX tensors",
        ),
        (
            {"precision": {"mode": "int8", "quantization": "dynamic"}, "targets": ["rtx"]},
            "rtx has no dynamic quantization: only TFLite quantizes weights without activations",
        ),
        (
            {"precision": {"mode": "int8", "quantization": "dynamic", "keep": [{"layers": "a"}]}},
            "precision cannot have keep with dynamic quantization: TensorFlow's converter chooses its layers",
        ),
        (
            {"precision": {"mode": "fp16", "quantization": "dynamic"}},
            "precision may have quantization only with mode int8",
        ),
    ],
    ids=lambda value: "" if isinstance(value, str) else None,
)
def test_what_the_converter_cannot_be_told(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        planned(project(tmp_path, **changes))
    [problem] = caught.value.problems
    assert problem.message.startswith(message)


def test_what_does_not_apply_is_noted(tmp_path: Path) -> None:
    calibration = {"data": DATA, "method": "entropy"}
    [plan] = (
        planned(project(tmp_path, calibration=calibration, precision={"mode": "int8", "fallback": "fp16"}))
        .recipes[0]
        .targets
    )
    assert plan.target.fallback == "fp32"
    assert list(plan.target.notes) == [
        "fallback fp16: whatever is not quantized stays FP32, as TensorFlow's converter has no other form beside INT8",
        "calibration.method entropy does not apply to tflite: its converter takes the least and largest values",
    ]


def test_a_whole_build_and_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a TFLite file, which no step needs TensorFlow for."""
    recipe = project(
        tmp_path,
        model={"source": "model.tflite"},
        calibration=None,
        preprocess=None,
        precision={"mode": "int8", "quantization": "dynamic"},
    )
    (tmp_path / "model.tflite").write_bytes(fixture("vision_dynamic").read_bytes())
    monkeypatch.chdir(tmp_path)
    assert command(["build", str(recipe), "--json"]) == 0
    [target] = json.loads(capsys.readouterr().out)["targets"]
    assert (target["status"], target["artifacts"]["engine"]["path"]) == ("built", "dist/small/tflite/model.tflite")
    assert (tmp_path / "dist/small/tflite/model.tflite").read_bytes() == fixture("vision_dynamic").read_bytes()
    metrics = target["metrics"]
    assert metrics["evaluated"] == "engine" and metrics["cosine"] > 0.99 and metrics["latency_ms"]["p50"] > 0
    conditions = metrics["conditions"]
    assert (conditions["runtime"], conditions["threads"], conditions["delegate"]) == ("litert", 1, "xnnpack")
    manifest = json.loads((tmp_path / "dist/small/tflite/manifest.json").read_text())
    assert manifest["precision"]["quantization"] == "dynamic" and manifest["tools"]["ai-edge-litert"]
    assert manifest["artifacts"]["engine"]["file"] == "model.tflite" and "onnx" not in manifest["artifacts"]
    assert command(["build", str(recipe)]) == 0
    printed = capsys.readouterr().out
    assert "tflite  cached  int8 dynamic" in printed
    # What is no longer made goes, under either name that an engine may have.
    recipe = project(
        tmp_path,
        model={"source": "model.tflite"},
        calibration=None,
        preprocess=None,
        precision={"mode": "fp32"},
        targets=[{"profile": "host", "name": "tflite"}],
        gates={"cosine": 0.5},
    )
    assert command(["build", str(recipe)]) == 0
    assert not (tmp_path / "dist/small/tflite/model.tflite").exists()
    assert (tmp_path / "dist/small/tflite/model.engine").exists()
