"""Models that do not fit one protobuf message: two files in one in every step, and the same results.

The limit is lowered, so that the same code runs with small models; TRTRECIPE_LARGE=1 adds a real one, of 2.3 GiB.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import yaml
from onnx import ModelProto, TensorProto, helper, numpy_helper

from trtrecipe import formats, parted
from trtrecipe.cli.app import run
from trtrecipe.errors import StepError
from trtrecipe.graphs import files, values
from trtrecipe.graphs.values import array_of
from trtrecipe.run import process
from trtrecipe.steps import compile, export, fetch

LIMIT = 60_000
WIDTH = 256


def network(width: int = WIDTH, depth: int = 1) -> ModelProto:
    """A convolution with a BatchNormalization behind it, products of `width`, one of them used twice: opset 13."""
    random = np.random.default_rng(7)

    def tensor(name: str, *shape: int) -> TensorProto:
        scale = np.float32(1 / np.sqrt(shape[0]))
        return numpy_helper.from_array(random.standard_normal(shape, np.float32) * scale, name)

    nodes = [
        helper.make_node("Conv", ["image", "conv.W"], ["conv"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["conv", "scale", "shift", "mean", "var"], ["norm"], "norm"),
        helper.make_node("Relu", ["norm"], ["relu"], "relu"),
        helper.make_node("Flatten", ["relu"], ["dense0"], "flatten"),
    ]
    channels = width // 16
    constants = [tensor("conv.W", channels, 8, 4, 4), *(tensor(name, channels) for name in ("scale", "shift", "mean"))]
    constants.append(numpy_helper.from_array(np.ones(channels, np.float32), "var"))
    for number in range(depth):
        constants.append(tensor(f"dense.W{number}", width, width))
        nodes.append(
            helper.make_node("MatMul", [f"dense{number}", f"dense.W{number}"], [f"dense{number + 1}"], f"dense{number}")
        )
    nodes.append(helper.make_node("Relu", [f"dense{depth}"], ["hidden"], "hidden"))
    nodes.append(helper.make_node("MatMul", ["hidden", "last.W"], ["logits"], "last"))
    constants.append(tensor("last.W", width, 16))
    graph = helper.make_graph(
        nodes,
        "large",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 8, 5, 5])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 16])],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def project(folder: Path, model: ModelProto, **blocks: Any) -> Path:
    """The model with its values beside it, data and a recipe, whose path it is."""
    folder.mkdir()
    onnx.save(model, folder / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=64)
    random = np.random.default_rng(5)
    np.savez(folder / "data.npz", x=random.standard_normal((16, 8, 5, 5), np.float32))
    recipe: dict[str, Any] = {
        "schema": "trtrecipe/v1",
        "name": "large",
        "model": {"source": "model.onnx", "dims": {"batch": {"min": 1, "opt": 2, "max": 4}}},
        "precision": {"mode": "fp32"},
        "calibration": {"data": {"npz": "data.npz", "arrays": {"image": "x"}}, "samples": 16, "method": "minmax"},
        "targets": ["host"],
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe | blocks, sort_keys=False))
    return folder / "recipe.yaml"


@pytest.fixture
def lowered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One file takes no more than LIMIT, here and in the processes of steps."""
    monkeypatch.setattr(parted, "LIMIT", LIMIT)
    body = "from trtrecipe.run.worker import main; main()"
    assert body in process._PROGRAM
    small = f"import trtrecipe.parted; trtrecipe.parted.LIMIT = {LIMIT}; {body}"
    monkeypatch.setattr(process, "_PROGRAM", process._PROGRAM.replace(body, small))
    yield


def build(recipe: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    capsys.readouterr()
    code = run(["build", str(recipe), "--output", str(folder), "--json"])
    said = capsys.readouterr()
    assert code == 0, said.out[-2000:] + said.err[-2000:]
    targets: list[dict[str, Any]] = json.loads(said.out)["targets"]
    return targets


def whole(path: Path) -> ModelProto:
    """The model with the values beside it, as any tool reads them."""
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        tensor.ClearField("data_location")
    return model


def outside(path: Path) -> list[str]:
    model = onnx.load(path, load_external_data=False)
    return [tensor.name for tensor in values.outside(model)]


# Whole builds


def test_whole_builds_give_what_they_give_of_one_file(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    monkeypatch.chdir(tmp_path)
    targets: list[Any] = ["host"]
    if importlib.util.find_spec("tensorrt_rtx") is not None:
        half = {"profile": "rtx", "name": "half", "precision": {"mode": "fp16"}}
        targets += [{"profile": "rtx", "precision": {"mode": "int8", "fallback": "fp16"}}, half]
    recipe = project(tmp_path / "project", network(), precision={"mode": "int8"}, targets=targets)
    plain = build(recipe, tmp_path / "plain", capsys)
    monkeypatch.setenv("TRTRECIPE_STORE", str(tmp_path / "another"))
    request.getfixturevalue("lowered")
    large = build(recipe, tmp_path / "large", capsys)
    for first, second in zip(plain, large, strict=True):
        target = first["target"]
        assert first["artifacts"]["onnx"]["path"] == f"plain/large/{target}/model.onnx"
        assert "onnx_data" not in first["artifacts"]
        assert second["artifacts"]["onnx_data"]["path"] == f"large/large/{target}/model.onnx.data"
        one, two = (tmp_path / each / "large" / target / "model.onnx" for each in ("plain", "large"))
        assert outside(one) == []
        assert "dense.W0" in " ".join(outside(two))
        assert whole(two) == onnx.load(one)
        for name in ("cosine", "agreement", "samples", "evaluated"):
            assert second["metrics"].get(name) == first["metrics"].get(name)
        assert second["metrics"]["cosine"] > 0.99
    folder = tmp_path / "large" / "large" / "host"
    onnxruntime.InferenceSession(str(folder / "model.engine"), providers=["CPUExecutionProvider"])
    assert run(["inspect", str(folder / "model.onnx")]) == 0
    assert "MatMul" in capsys.readouterr().out
    data = folder / "model.onnx.data"
    before = data.read_bytes()
    data.write_bytes(b"altered")
    assert run(["inspect", str(folder / "manifest.json"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"]["onnx_data"] == "altered"
    (folder / "model.engine").unlink()
    again = build(recipe, tmp_path / "large", capsys)
    assert [each["status"] for each in again] == ["cached"] * len(targets)
    assert [each["artifacts"] for each in again] == [each["artifacts"] for each in large]
    assert data.read_bytes() == before and (folder / "model.engine").is_file()


def test_a_device_is_given_both_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the names that the graph uses, which is how trtexec finds the second."""
    monkeypatch.setattr(parted, "LIMIT", LIMIT)
    source, given = tmp_path / "model.onnx", dict[str, Any]()
    files.save(network(), source)
    (tmp_path / "keep.json").write_text('{"schema": "trtrecipe/keep/v1", "nodes": {}}')

    def build_there(device: Any, key: str, spec: Any, found: dict[str, Path], engine: Path, say: Any) -> dict[str, Any]:
        given.update({name: path.read_bytes() for name, path in found.items()}, spec=spec.onnx)
        return {}

    monkeypatch.setattr("trtrecipe.device.build.build", build_there)
    params = compile.Params("trtexec", {"batch": {"min": 1, "opt": 2, "max": 4}}, mode="fp32", strongly_typed=False)
    compile.run(params, {"onnx": source, "keep": tmp_path / "keep.json"}, tmp_path, device={})
    assert given.pop("spec") == "model.onnx" and set(given) == {"model.onnx", "model.onnx.data"}
    (tmp_path / "there").mkdir()
    for name, content in given.items():
        (tmp_path / "there" / name).write_bytes(content)
    assert whole(tmp_path / "there" / "model.onnx") == network()


# The form


def test_a_model_is_read_as_it_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From memory, and from another file; equal models are equal bytes; copies of tensors are held once."""
    monkeypatch.setattr(parted, "LIMIT", LIMIT)
    model = network()
    one, two, three = (tmp_path / name / "model.onnx" for name in ("one", "two", "three"))
    for path in (one, two, three):
        path.parent.mkdir()
    files.save(model, one)
    read = files.load(one)
    assert [tensor.name for tensor in values.outside(read)] == ["conv.W", "dense.W0", "last.W"]
    assert all(value.flags.writeable is False for value in map(array_of, read.graph.initializer))
    for mine, theirs in zip(model.graph.initializer, read.graph.initializer, strict=True):
        assert np.array_equal(array_of(theirs), numpy_helper.to_array(mine)) and array_of(theirs).shape == tuple(
            mine.dims
        )
    files.save(read, two)
    assert two.read_bytes() == one.read_bytes()
    again = TensorProto()
    again.CopyFrom(read.graph.initializer[-1])
    again.name = "again"
    read.graph.initializer.append(again)
    files.save(read, three)
    assert three.stat().st_size == one.stat().st_size
    assert np.array_equal(array_of(files.load(three).graph.initializer[-1]), array_of(model.graph.initializer[-1]))
    monkeypatch.setattr(parted, "LIMIT", 1 << 30)
    del read.graph.initializer[-1]
    files.save(read, three)
    assert three.read_bytes() == model.SerializeToString(deterministic=True)


@pytest.mark.parametrize("kind", [TensorProto.BFLOAT16, TensorProto.INT4, TensorProto.FLOAT16, TensorProto.INT64])
def test_values_of_every_kind(kind: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parted, "LIMIT", 100)
    model = network()
    given = np.arange(128 * 128).reshape(128, 128) % 7
    tensor = numpy_helper.from_array(given.astype(helper.tensor_dtype_to_np_dtype(kind)), "w")
    assert tensor.data_type == kind
    model.graph.initializer.append(tensor)
    files.save(model, tmp_path / "m")
    read = files.load(tmp_path / "m").graph.initializer[-1]
    assert values.is_outside(read) and values.inline(read) == tensor
    assert np.array_equal(array_of(read).astype(int), given)


def test_fetch_brings_the_same_bytes_however_the_values_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parted, "LIMIT", LIMIT)
    written = []
    for name, one in (("all", True), ("each", False)):
        (tmp_path / name / "out").mkdir(parents=True)
        source = tmp_path / name / "model.onnx"
        onnx.save(network(), source, save_as_external_data=True, all_tensors_to_one_file=one, size_threshold=64)
        fetch.run(fetch.Params("onnx"), {"source": source}, tmp_path / name / "out")
        written.append((tmp_path / name / "out" / "model").read_bytes())
    assert written[0] == written[1] and written[0].startswith(parted.MAGIC)
    held = parted.files(tmp_path / "all" / "out" / "model")
    assert held is not None and [file.name for file in held] == ["model.onnx", "model.onnx.data"]
    out = tmp_path / "out"
    out.mkdir()
    export.run(export.Params("onnx", dims=["batch"]), {"model": tmp_path / "all" / "out" / "model"}, out)
    read = files.load(out / "model.onnx")
    assert "dense.W0" in [tensor.name for tensor in values.outside(read)]


def test_our_own_form_is_no_model_to_begin_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that was made up could name bytes of another."""
    monkeypatch.setattr(parted, "LIMIT", LIMIT)
    files.save(network(), tmp_path / "model.onnx")
    for brings in (lambda: formats.model_format(tmp_path / "model.onnx"), lambda: _fetched(tmp_path / "model.onnx")):
        with pytest.raises((StepError, formats.FormatError)) as caught:
            brings()
        assert str(tmp_path / "model.onnx") in caught.value.message


def _fetched(source: Path) -> None:
    fetch.run(fetch.Params("onnx"), {"source": source}, source.parent)


def test_a_graph_that_is_too_large_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    source = tmp_path / "model.onnx"
    onnx.save(model, source, save_as_external_data=True, location="w.bin", size_threshold=100_000)
    monkeypatch.setattr(parted, "LIMIT", 2_000)
    with pytest.raises(StepError) as caught:
        fetch.run(fetch.Params("onnx"), {"source": source}, tmp_path)
    said = re.sub("[0-9,]+ bytes", "N bytes", caught.value.message.replace(str(source), "M"))
    assert said == (
        "the model M has N bytes beside its large constants, and no reader of protobuf takes more than 2,000"
    )
    assert caught.value.hint == "export it in parts"


# TensorFlow's


def _exported(source: Path, folder: Path) -> dict[str, Any]:
    folder.mkdir()
    fetch.run(fetch.Params("saved_model"), {"source": source}, folder)
    return dict(export.run(export.Params("saved_model", dims=["batch"]), {"model": folder / "model"}, folder))


def test_variables_that_a_graph_of_tensorflow_has_no_room_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read in a loop, in a called function, and twice; small ones stay in the graph."""
    tf = pytest.importorskip("tensorflow", reason="needs the extra tensorflow")
    random = np.random.default_rng(3)
    module = tf.Module()
    module.kernel = tf.Variable(random.standard_normal((3, 3, 8, 64), np.float32) / 8, name="kernel")
    module.step = tf.Variable(random.standard_normal((64, 64), np.float32) / 8, name="step")
    module.last = tf.Variable(random.standard_normal((64, 100), np.float32), name="last")
    module.small = tf.Variable(random.standard_normal((100, 3), np.float32), name="small")

    @tf.function
    def called(x: Any) -> Any:
        return tf.matmul(x, module.last) + tf.reduce_mean(module.last)

    @tf.function(input_signature=[tf.TensorSpec([None, 6, 6, 8], name="image")])
    def serve(image: Any) -> dict[str, Any]:
        x = tf.reduce_mean(tf.nn.conv2d(image, module.kernel, 1, "SAME"), [1, 2])
        for _ in tf.range(3):
            x = tf.tanh(tf.matmul(x, module.step))
        return {"scores": tf.matmul(called(x), module.small)}

    tf.saved_model.save(module, str(tmp_path / "saved"), signatures=serve)
    params = {"image": {"shape": ["batch", 6, 6, 8], "dtype": None, "layout": None}}
    monkeypatch.setattr(export, "Params", functools.partial(export.Params, inputs=params))
    one = _exported(tmp_path / "saved", tmp_path / "one")
    monkeypatch.setattr(parted, "LIMIT", 20_000)
    two = _exported(tmp_path / "saved", tmp_path / "two")
    for measured in (one, two):
        assert measured["check"]["against"] == "the model as it was saved computes"
        assert measured["check"]["outputs"]["scores"]["relative"] < 1e-5
    model = files.load(tmp_path / "two/model.onnx")
    assert sorted(tuple(tensor.dims) for tensor in values.outside(model)) == [(3, 3, 8, 64), (64, 64), (64, 100)]
    assert [value.name for value in model.graph.input] == ["image"]


def test_what_tensorflow_1_has_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tf = pytest.importorskip("tensorflow", reason="needs the extra tensorflow")
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [2, 50], name="x")
        kernel = v1.get_variable("kernel", initializer=np.ones((50, 40), np.float32))
        y = tf.matmul(x, kernel)
        session.run(v1.global_variables_initializer())
        v1.saved_model.simple_save(session, str(tmp_path / "saved"), {"x": x}, {"y": y})
    monkeypatch.setattr(parted, "LIMIT", 5_000)
    with pytest.raises(StepError) as caught:
        _exported(tmp_path / "saved", tmp_path / "out")
    assert (
        caught.value.message == "the SavedModel keeps 8,000 bytes of values as TensorFlow 1 did, and 5,000 can be read"
    )
    assert caught.value.hint == "save it with TensorFlow 2, or export it as ONNX with its values in another file"


def test_no_tflite_file_is_that_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = TensorProto()
    frozen = SimpleNamespace(weights={"w:0": tensor})
    monkeypatch.setattr(export, "frozen_source", lambda *_: (frozen, None))
    files.save(network(), tmp_path / "model.onnx")
    params = compile.Params("tflite", mode="fp32", source={"format": "saved_model"})
    with pytest.raises(StepError) as caught:
        compile.run(params, {"onnx": tmp_path / "model.onnx", "model": tmp_path}, tmp_path)
    assert caught.value.message == "the model has more than 2 GiB of weights, and a TFLite file holds less"
    assert caught.value.hint == "leave this target out, or give a smaller model"


# The real size


@pytest.mark.skipif("TRTRECIPE_LARGE" not in os.environ, reason="takes minutes, 15 GiB of disk: TRTRECIPE_LARGE=1")
def test_more_than_protobuf_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = project(tmp_path / "project", network(8192, 9), precision={"mode": "int8"})
    [built] = build(recipe, tmp_path / "dist", capsys)
    assert built["artifacts"]["onnx_data"]["size"] > parted.LIMIT
    assert built["metrics"]["cosine"] > 0.99
