"""export: every source ends as one canonical graph, or in one message that says what to change."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, numpy_helper, parser

from trtrecipe.errors import StepError
from trtrecipe.graphs import from_tensorflow
from trtrecipe.graphs.edit import attribute
from trtrecipe.graphs.interface import interface
from trtrecipe.graphs.saved_model import unpack
from trtrecipe.graphs.tensorflow_repairs import failures_noted, pad_transposed_convolutions
from trtrecipe.steps import export, fetch

DIGITS = Path(__file__).parent.parent / "recipes" / "digits"
HEAD = '<ir_version: 8, opset_import: ["" : 13]> '
OPEN = HEAD + "g (float[N,3,H] x, float[N] m) => (float[N,3,H] y, float[N] z) { y = Relu(x) z = Neg(m) }"


def _export(model: ModelProto | bytes, folder: Path, **params: Any) -> tuple[ModelProto, list[str]]:
    (folder / "model").write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    measured = export.run(export.Params(format="onnx", **params), {"model": folder / "model"}, folder)
    return onnx.load(folder / "model.onnx"), list(measured.get("notes", []))


def _refused(model: ModelProto | bytes | str, folder: Path, match: str, **params: Any) -> str:
    """The hint of the StepError that is raised; nothing is left behind."""
    source = parser.parse_model(model) if isinstance(model, str) else model
    with pytest.raises(StepError, match=match) as caught:
        _export(source, folder, **params)
    assert not (folder / "model.onnx").exists()
    return caught.value.hint or ""


# --- ONNX files


def test_names_and_axes_of_a_model_that_has_them(tmp_path: Path) -> None:
    model, notes = _export(
        parser.parse_model(OPEN), tmp_path, dims=["N"], inputs={"x": {"shape": ["N", 3, 8], "dtype": "float32"}}
    )
    assert [str(spec) for spec in interface(model).inputs] == ["x: float32 [N, 3, 8]", "m: float32 [N]"]
    assert [str(spec) for spec in interface(model).outputs] == ["y: float32 [N, 3, 8]", "z: float32 [N]"]
    assert notes == []
    assert (tmp_path / "model.onnx").read_bytes() == model.SerializeToString(deterministic=True)


def test_a_dimension_renamed_for_one_input_is_renamed_for_all(tmp_path: Path) -> None:
    model, _ = _export(parser.parse_model(OPEN), tmp_path, dims=["batch"], inputs={"x": {"shape": ["batch", 3, 8]}})
    assert [spec.shape for spec in interface(model).inputs] == [("batch", 3, 8), ("batch",)]
    assert [spec.shape for spec in interface(model).outputs] == [("batch", 3, 8), ("batch",)]


def test_inputs_along_which_no_samples_run_are_refused_at_once(tmp_path: Path) -> None:
    """Every later step takes its samples along the first axis of all inputs."""
    head = '<ir_version: 8, opset_import: ["" : 17]> g '
    scalar = parser.parse_model(head + "(float[2,3] x, float k) => (float[2,3] y) { y = Mul(x, k) }")
    with pytest.raises(StepError, match=r"^input k: float32 \[\] has no axes") as caught:
        _export(scalar, tmp_path)
    assert "as a constant" in (caught.value.hint or "")
    unlike = parser.parse_model(head + "(float[2,3] x, float[3,3] k) => (float[2,3] y) { y = MatMul(x, k) }")
    with pytest.raises(StepError, match="differ in their first axis: x takes 2, k takes 3"):
        _export(unlike, tmp_path)
    assert not (tmp_path / "model.onnx").exists()


def test_an_open_leading_axis_becomes_one_and_is_reported(tmp_path: Path) -> None:
    model, notes = _export(parser.parse_model(OPEN), tmp_path, inputs={"x": {"shape": [4, 3, 8]}})
    assert [spec.shape for spec in interface(model).inputs] == [(4, 3, 8), (4,)] and notes == []
    model, notes = _export(parser.parse_model(OPEN.replace("N,3,H", "N,3,8")), tmp_path)
    assert [spec.shape for spec in interface(model).inputs] == [(1, 3, 8), (1,)]
    assert notes[0].startswith("axis 0 of input x is open") and "fixed at 1" in notes[0]
    assert len(notes) == 1  # m has the same dimension


@pytest.mark.parametrize(
    ("match", "hint", "params"),
    [
        (r"axis 2 of input x is open \(the model calls it H\)", "model.inputs.x.shape: [<axis 0>, 3, <axis 2>]", {}),
        ("the model has no input image", "x: float32 [N, 3, H]; m: float32 [N]", {"inputs": {"image": {}}}),
        (
            "input x of the model is float32, the recipe says uint8",
            "dtype: float32",
            {"inputs": {"x": {"dtype": "uint8"}}},
        ),
        ("shape has 2 axes, the model's input has 3", "", {"inputs": {"x": {"shape": [1, 3]}}}),
        ("axis 1 of input x is fixed at 3 by the model, .*says 4", "write 3", {"inputs": {"x": {"shape": [1, 4, 8]}}}),
        (
            "axis 1 of input x is fixed at 3 .*says c",
            "write 3",
            {"inputs": {"x": {"shape": [1, "c", 8]}}, "dims": ["c"]},
        ),
        ("names the dimension b, which has no range", "model.dims.b", {"inputs": {"x": {"shape": ["b", 3, 8]}}}),
        ("model.dims names T, but no axis", "m: float32 [N]", {"inputs": {"x": {"shape": [1, 3, 8]}}, "dims": ["T"]}),
        (
            "calls several axes N, so they are equal, but the recipe makes one 2 and another 3",
            "the same",
            {"inputs": {"x": {"shape": [2, 3, 8]}, "m": {"shape": [3]}}},
        ),
    ],
)
def test_what_does_not_fit_the_recipe(match: str, hint: str, params: dict[str, Any], tmp_path: Path) -> None:
    assert hint in _refused(OPEN, tmp_path, match, **params)


def test_sizes_that_contradict_the_graph(tmp_path: Path) -> None:
    text = HEAD + "g (float[N,A] x) => (float[N,2] y) <float[3,2] w = {1,2,3,4,5,6}> { y = MatMul(x, w) }"
    _refused(text, tmp_path, "contradict each other", inputs={"x": {"shape": [1, 4]}})
    model, _ = _export(parser.parse_model(text), tmp_path, inputs={"x": {"shape": [1, 3]}})
    assert interface(model).outputs[0].shape == (1, 2)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ('<ir_version: 8, opset_import: ["" : 13, "com.acme" : 1]> g (float[2] x) => (float[2] y) '
         "{ y = com.acme.Fancy(x) }", r"com\.acme\.Fancy y"),
        (HEAD + "g (float[2] x) => (float[2] y) { y = Gelu(x) }", "Gelu y"),
        (HEAD + "g (float[2] x) => (uint8[2] y, float s, uint8 z) { y, s, z = DynamicQuantizeLinear(x) }",
         "compute on integers"),
        (HEAD + "g (float[2] x) => (float[2] y) <float r = {0.5}, bool t = {1}> { y = Dropout(x, r, t) }",
         "training mode"),
        (HEAD + "g (float[2] x) => (float[2] y) <float r = {0.5}> "
         "{ t = Constant<value = bool {1}>() y = Dropout(x, r, t) }", "training mode"),
        (HEAD + "g () => (float[2] y) <float[2] k = {1, 2}> { y = Relu(k) }", "has no inputs"),
        (HEAD + "g (float[2] x) => (float[3] y) { y = Relu(x) }", "not valid ONNX"),
        (HEAD + "g (float[2] x) => (float[2] y) { y = Relu(nowhere) }", "not valid ONNX"),
        (HEAD.replace("13", "12") + "g (string[2] x) => (string[2] y) { y = Identity(x) }",
         "input x of the model is of strings"),
        (HEAD.replace("13", "21") + "g (float8e4m3fn[2] x) => (float[2] y) { y = Cast<to = 1>(x) }",
         "element type that is not supported: float8e4m3fn"),
        ('<ir_version: 3, opset_import: ["" : 8]> g (float[1,2] i, float[1,3,2] x) => (float[1,2] y, float[1,3,2] z) '
         "{ y, z = Scan<num_scan_inputs = 1, body = b (float[2] s, float[2] n) => (float[2] t, float[2] o) "
         "{ t = Add(s, n) o = Identity(t) }>(, i, x) }", "onnx gives it other inputs"),
    ],
)  # fmt: skip
def test_models_that_are_not_what_we_work_with(text: str, match: str, tmp_path: Path) -> None:
    assert _refused(text, tmp_path, match)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "Git LFS pointer"),
        (b"", "holds no ONNX graph"),
        (b"\x00\x01 not a protobuf at all", "no ONNX model, or it is cut short"),
        (parser.parse_model(OPEN).SerializeToString()[:-9], "no ONNX model, or it is cut short|not valid ONNX"),
    ],
)
def test_files_that_hold_no_model(content: bytes, match: str, tmp_path: Path) -> None:
    assert _refused(content, tmp_path, match)


@pytest.mark.parametrize("name", [b"Relu", b"float_x", b"some_y", b"size_n"])
def test_names_that_are_no_text(name: bytes, tmp_path: Path) -> None:
    text = HEAD + "g (float[size_n] float_x) => (float[size_n] some_y) { some_y = Relu(float_x) }"
    content = parser.parse_model(text).SerializeToString().replace(name, b"\xff" * len(name))
    assert "compare the file" in _refused(content, tmp_path, r"damaged: the name b'\\xff")


def test_bfloat16_of_an_onnx_model_becomes_fp32(tmp_path: Path) -> None:
    text = '<ir_version: 9, opset_import: ["" : 17]> ' + (
        "g (bfloat16[2] x, float[2] z) => (bfloat16[2] y, float[2] w) <bfloat16[2] k = {16256, 16384}> "
        "{ y = Mul(x, k) b = Cast<to = 16>(z) w = Cast<to = 1>(b) }"
    )
    model, notes = _export(parser.parse_model(text), tmp_path)
    assert {spec.dtype for spec in (*interface(model).inputs, *interface(model).outputs)} == {"float32"}
    assert notes[0].endswith("it becomes FP32; inputs and outputs that become float32: x, y")
    found = _run(model, {"x": np.ones(2, np.float32), "z": np.full(2, 70_001, np.float32)})
    assert found["y"].tolist() == [1, 2] and found["w"].tolist() == [70_001, 70_001]


def test_every_way_to_cut_a_model_short_is_a_message(tmp_path: Path) -> None:
    whole = parser.parse_model(OPEN).SerializeToString()
    for length in range(len(whole)):
        with pytest.raises(StepError):
            _export(whole[:length], tmp_path)


def test_values_in_other_files_that_fetch_did_not_see_are_refused(tmp_path: Path) -> None:
    model = parser.parse_model(HEAD + "g (float[2] x) => (float[2] y) { y = Add(x, w) }")
    model.graph.initializer.append(numpy_helper.from_array(np.ones(2, np.float32), "w"))
    onnx.external_data_helper.set_external_data(model.graph.initializer[0], "../../etc/weights.bin")
    model.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL
    assert "onnx.save" in _refused(model, tmp_path, "keeps the values of w elsewhere")


def test_integers_that_are_no_shape(tmp_path: Path) -> None:
    """onnx's arithmetic on shapes takes any few integers for one, and fails on a row and a column of them."""
    text = HEAD + (
        "g (int64[3,2] x) => (int64[3,2] y) <int64[3] r = {0, 1, 2}, int64[2] c = {5, 6}, int64[1] a = {0}, "
        "int64[1] b = {1}> "
        "{ rows = Unsqueeze(r, b) columns = Unsqueeze(c, a) grid = Add(rows, columns) y = Add(x, grid) }"
    )
    model, _ = _export(parser.parse_model(text), tmp_path)
    x = np.zeros((3, 2), np.int64)
    np.testing.assert_array_equal(_run(model, {"x": x})["y"], [[5, 6], [6, 7], [7, 8]])


def test_older_models_are_raised_to_13(tmp_path: Path) -> None:
    model = parser.parse_model(
        '<ir_version: 4, opset_import: ["" : 9]> g (float[1,3] x) => (float[3] y) { y = Squeeze<axes = [0]>(x) }'
    )
    result, _ = _export(model, tmp_path)
    assert result.opset_import[0].version == 13
    assert len(result.graph.node[0].input) == 2  # axes are an input by then
    assert [_export(model, tmp_path, opset=15)[0].opset_import[0].version] == [15]


def test_an_asked_opset_below_the_models(tmp_path: Path) -> None:
    model = parser.parse_model(HEAD.replace("13", "18") + "g (float[1,3] x) => (float[1,3] y) { y = Relu(x) }")
    assert _export(model, tmp_path)[0].opset_import[0].version == 18
    assert _export(model, tmp_path, opset=13)[0].opset_import[0].version == 13


def test_functions_of_a_model_are_inlined(tmp_path: Path) -> None:
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 13, "local" : 1]> g (float[2] x) => (float[2] y) { y = local.twice(x) }'
        '<domain: "local", opset_import: ["" : 13]> twice (a) => (b) { b = Add(a, a) }'
    )
    result, _ = _export(model, tmp_path)
    assert [node.op_type for node in result.graph.node] == ["Add"]


def test_functions_in_another_opset_are_written_in_the_models(tmp_path: Path) -> None:
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17, "local" : 1]> g '
        "(float[2,3] x) => (float[2,1] y) { y = local.total(x) }"
        '<domain: "local", opset_import: ["" : 11]> total (a) => (b) { b = ReduceSum<axes = [1]>(a) }'
    )
    result, _ = _export(model, tmp_path)
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(_run(result, {"x": x})["y"], [[3], [12]])


def test_functions_that_grow_without_end_are_refused(tmp_path: Path) -> None:
    """Each of them calls the one before twice: 25 make 2 ** 24 nodes. Two that call each other make no end of them."""
    imports = '<domain: "local", opset_import: ["" : 13, "local" : 1]> '
    model = '<ir_version: 8, opset_import: ["" : 13, "local" : 1]> g (float[2] x) => (float[2] y) { y = local.f24(x) }'
    body = "f%d (a) => (b) { c = local.f%d(a) b = local.f%d(c) }"
    grown = [imports + "f0 (a) => (b) { b = Relu(a) }", *(imports + body % (at, at - 1, at - 1) for at in range(1, 25))]
    assert "do not use" in _refused(parser.parse_model(model + "".join(grown)), tmp_path, "make 16,777,216 nodes")
    turns = [imports + "f24 (a) => (b) { b = local.g(a) }", imports + "g (a) => (b) { b = local.f24(a) }"]
    assert "Loop" in _refused(parser.parse_model(model + "".join(turns)), tmp_path, "call themselves, .*: f24, g")


def test_weights_listed_among_the_inputs_are_no_inputs(tmp_path: Path) -> None:
    model = parser.parse_model(HEAD + "g (float[2] x, float[2] w) => (float[2] y) { y = Add(x, w) }")
    model.graph.initializer.append(numpy_helper.from_array(np.ones(2, np.float32), "w"))
    result, _ = _export(model, tmp_path)
    assert [value.name for value in result.graph.input] == ["x"]


# --- TensorFlow; one process imports it once


def _saved_model(folder: Path, function: Any, *specs: Any, **signatures: Any) -> Path:
    import tensorflow as tf

    module = tf.Module()
    module.serve = tf.function(function, input_signature=specs)
    module.scale = tf.Variable([2.0], name="scale")
    tf.saved_model.save(module, str(folder), signatures={"serving_default": module.serve, **signatures})
    return folder


def _from_tensorflow(
    source: Path, out: Path, format: str = "saved_model", **params: Any
) -> tuple[ModelProto, list[str]]:
    out.mkdir()
    fetch.run(fetch.Params(format=format), {"source": source}, out)
    measured = export.run(export.Params(format=format, **params), {"model": out / "model"}, out)
    return onnx.load(out / "model.onnx"), list(measured.get("notes", []))


def _run(model: ModelProto, feeds: dict[str, Any]) -> dict[str, Any]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip([value.name for value in session.get_outputs()], session.run(None, feeds), strict=True))


def test_the_digits_model_is_the_same_bytes_everywhere(tmp_path: Path) -> None:
    """Two processes, two folders, two hash seeds."""
    program = (
        "import sys, pathlib; from trtrecipe.steps import fetch, export; source, out = map(pathlib.Path, sys.argv[1:]);"
        "fetch.run(fetch.Params('saved_model'), {'source': source}, out);"
        "export.run(export.Params('saved_model', inputs={'image': {'shape': ['batch', 8, 8, 1]}}, dims=['batch']),"
        "{'model': out / 'model'}, out)"
    )
    results = []
    for seed in ("0", "1"):
        source, out = tmp_path / f"source{seed}", tmp_path / f"a/longer/path/{seed}"
        shutil.copytree(DIGITS / "model", source)
        out.mkdir(parents=True)
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-c", program, source, out], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        results.append((out / "model.onnx").read_bytes())
    assert results[0] == results[1]

    model = onnx.ModelProto.FromString(results[0])
    assert [str(spec) for spec in interface(model).inputs] == ["image: float32 [batch, 8, 8, 1]"]
    assert [str(spec) for spec in interface(model).outputs] == ["logits: float32 [batch, 10]"]
    assert {"stem/convolution", "depthwise/depthwise", "residual/Add", "logits/MatMul"} <= {
        n.name for n in model.graph.node
    }
    with np.load(DIGITS / "data.npz") as data:
        logits = _run(model, {"image": data["x_test"].astype(np.float32) * 0.0625})["logits"]
        assert (logits.argmax(axis=1) == data["y_test"]).mean() >= 0.97


def test_the_digits_splits_share_no_picture() -> None:
    with np.load(DIGITS / "data.npz") as data:
        parts = {name: {x.tobytes() for x in data[f"x_{name}"]} for name in ("train", "calib", "test")}
        assert {data[f"x_{name}"].dtype for name in parts} == {np.dtype(np.uint8)}
        assert {name: len(data[f"y_{name}"]) for name in parts} == {"train": 925, "calib": 512, "test": 360}
    assert not parts["test"] & parts["train"] and not parts["test"] & parts["calib"]
    assert not parts["train"] & parts["calib"]
    size = sum(path.stat().st_size for path in (DIGITS / "model").rglob("*") if path.is_file())
    assert size <= 400_000


def test_signatures_and_inputs_of_a_saved_model(tmp_path: Path) -> None:
    import tensorflow as tf

    def serve(x: Any, unused: Any) -> dict[str, Any]:
        return {"y": x + 1.0, "same": x, "twice": x + 1.0}

    source = _saved_model(
        tmp_path / "m", serve, tf.TensorSpec([None, None], name="x"), tf.TensorSpec([2], name="unused")
    )
    with pytest.raises(StepError, match="no signature predict") as caught:
        _from_tensorflow(source, tmp_path / "o1", signature="predict")
    assert caught.value.hint == "set model.signature to one that exists: serving_default"
    with pytest.raises(StepError, match="axis 1 of input x is open") as caught:
        _from_tensorflow(source, tmp_path / "o2")
    assert "model.inputs.x.shape" in (caught.value.hint or "")
    with pytest.raises(StepError, match="the model has no input image") as caught:
        _from_tensorflow(source, tmp_path / "o3", inputs={"image": {}})
    assert "unused: float32 [2]; x: float32 [?, ?]" in (caught.value.hint or "")
    model, notes = _from_tensorflow(source, tmp_path / "o4", inputs={"x": {"shape": ["n", 3]}}, dims=["n"])
    assert [str(spec) for spec in interface(model).inputs] == ["unused: float32 [2]", "x: float32 [n, 3]"]
    assert [str(spec) for spec in interface(model).outputs] == [
        "same: float32 [n, 3]",
        "twice: float32 [n, 3]",
        "y: float32 [n, 3]",
    ]
    assert notes == []
    x = np.ones((2, 3), np.float32)
    results = _run(model, {"x": x, "unused": np.zeros(2, np.float32)})
    np.testing.assert_array_equal(results["same"], x)
    np.testing.assert_array_equal(results["twice"], results["y"])


def test_loops_and_conditions(tmp_path: Path) -> None:
    import tensorflow as tf

    def serve(x: Any) -> dict[str, Any]:
        grown = tf.while_loop(lambda i, v: i < 5, lambda i, v: (i + 1, v * 2.0), [0, x])[1]
        errors = tf.while_loop(lambda i, v: i < 2, lambda i, v: (i + 1, tf.math.erfc(v)), [0, x])[1]
        return {"y": tf.cond(tf.reduce_sum(x) > 0, lambda: grown, lambda: grown * 3.0), "errors": errors}

    source = _saved_model(tmp_path / "m", serve, tf.TensorSpec([1, 4], name="x"))
    model, _ = _from_tensorflow(source, tmp_path / "o1")
    for sign, factor in ((1, 32), (-1, 96)):
        x = np.full((1, 4), sign, np.float32)
        results = _run(model, {"x": x})
        np.testing.assert_array_equal(results["y"], x * factor)
        np.testing.assert_allclose(results["errors"], tf.math.erfc(tf.math.erfc(x)), atol=1e-6)
    _from_tensorflow(source, tmp_path / "o2")
    assert (tmp_path / "o1" / "model.onnx").read_bytes() == (tmp_path / "o2" / "model.onnx").read_bytes()


def test_a_convolution_times_what_is_computed_from_constants(tmp_path: Path) -> None:
    """Of tf.linspace TensorFlow's constant folding does not foresee the shape, and used to abort the process."""
    import tensorflow as tf

    kernel = tf.constant(np.random.default_rng(0).standard_normal((3, 3, 2, 4)), tf.float32)

    def serve(x: Any) -> dict[str, Any]:
        return {"y": tf.nn.conv2d(x, kernel, 1, "SAME") * tf.linspace(0.5, 1.0, 4)}

    source = _saved_model(tmp_path / "m", serve, tf.TensorSpec([1, 5, 5, 2], name="x"))
    model, _ = _from_tensorflow(source, tmp_path / "o")
    assert {node.op_type for node in model.graph.node} == {"Transpose", "Conv"}  # the factor is in the weights
    x = np.random.default_rng(1).standard_normal((1, 5, 5, 2)).astype(np.float32)
    np.testing.assert_allclose(_run(model, {"x": x})["y"], serve(tf.constant(x))["y"], atol=1e-5)


@pytest.mark.parametrize("method", ["bilinear", "nearest"])
def test_sizes_whose_ratio_no_float_holds(method: str, tmp_path: Path) -> None:
    """tf2onnx makes 7 / 5 a little less than 1.4, which is 6 pixels of 5; and nearest what ONNX has taken back."""
    import tensorflow as tf

    def serve(x: Any) -> dict[str, Any]:
        return {"y": tf.image.resize(x, [7, 11], method), "z": tf.image.resize(x, [3, 2], method)}

    source = _saved_model(tmp_path / "m", serve, tf.TensorSpec([1, 5, 6, 3], name="x"))
    model, _ = _from_tensorflow(source, tmp_path / "o")
    modes = {attribute(n, "coordinate_transformation_mode") for n in model.graph.node if n.op_type == "Resize"}
    assert modes == {b"half_pixel"}
    x = np.random.default_rng(0).standard_normal((1, 5, 6, 3)).astype(np.float32)
    found, expected = _run(model, {"x": x}), serve(tf.constant(x))
    for name in ("y", "z"):
        np.testing.assert_allclose(found[name], expected[name], atol=1e-5)


def test_functions_that_onnx_writes_otherwise(tmp_path: Path) -> None:
    import tensorflow as tf

    def serve(x: Any) -> dict[str, Any]:
        looped = tf.while_loop(lambda i, v: i < 1, lambda i, v: (i + 1, tf.math.expm1(tf.math.log1p(v))), [0, x])[1]
        return {"a": tf.math.log1p(x), "b": tf.math.expm1(x), "c": looped + tf.math.erfc(x)}

    source = _saved_model(tmp_path / "m", serve, tf.TensorSpec([1, 4], name="x"))
    model, _ = _from_tensorflow(source, tmp_path / "o")
    x = np.array([[0, 0.1, 1, 5]], np.float32)
    found, expected = _run(model, {"x": x}), serve(tf.constant(x))
    for name in found:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-6, atol=1e-6)


def test_rows_gathered_from_a_variable(tmp_path: Path) -> None:
    """TensorFlow makes a constant of the variable and leaves a ResourceGather of it in the function."""
    import tensorflow as tf

    table = tf.Variable(np.arange(12, dtype=np.float32).reshape(6, 2))

    def serve(i: Any) -> dict[str, Any]:
        return {"rows": tf.nn.embedding_lookup(table, i), "entries": tf.gather_nd(table, i[:, :2])}

    module = tf.Module()
    module.table = table
    module.serve = tf.function(serve, input_signature=[tf.TensorSpec([2, 3], tf.int32, name="i")])
    tf.saved_model.save(module, str(tmp_path / "m"), signatures=module.serve)
    model, _ = _from_tensorflow(tmp_path / "m", tmp_path / "o")
    i = np.array([[0, 1, 1], [1, 0, 0]], np.int32)
    for name, value in serve(tf.constant(i)).items():
        np.testing.assert_array_equal(_run(model, {"i": i})[name], value)


def test_bfloat16_becomes_fp32(tmp_path: Path) -> None:
    """tf2onnx makes FP16 of it in places, and 70,000 is more than that holds."""
    import tensorflow as tf

    weights = tf.constant([[1.5], [2.0]], tf.bfloat16)

    def serve(x: Any, h: Any) -> dict[str, Any]:
        return {"y": tf.cast(tf.cast(x, tf.bfloat16) * 2, tf.float32), "z": tf.matmul(h, weights)}

    specs = tf.TensorSpec([1, 2], name="x"), tf.TensorSpec([1, 2], tf.bfloat16, name="h")
    model, notes = _from_tensorflow(_saved_model(tmp_path / "m", serve, *specs), tmp_path / "o")
    assert [str(spec) for spec in interface(model).inputs] == ["h: float32 [1, 2]", "x: float32 [1, 2]"]
    assert "bfloat16" in notes[0]
    found = _run(model, {"x": np.full((1, 2), 70_000, np.float32), "h": np.ones((1, 2), np.float32)})
    np.testing.assert_array_equal(found["y"], [[140_000, 140_000]])
    np.testing.assert_array_equal(found["z"], [[3.5]])


def test_an_axis_that_a_constant_gives(tmp_path: Path) -> None:
    """An einsum asks its weights for their shape, and without it nothing is known of its output."""
    import tensorflow as tf

    weights = tf.constant(np.random.default_rng(0).standard_normal((8, 2, 4)), tf.float32)
    source = _saved_model(
        tmp_path / "m", lambda x: {"y": tf.einsum("bsd,dhk->bhsk", x, weights)}, tf.TensorSpec([None, 6, 8], name="x")
    )
    model, _ = _from_tensorflow(source, tmp_path / "o", inputs={"x": {"shape": ["n", 6, 8]}}, dims=["n"])
    assert interface(model).outputs[0].shape[1:] == (2, 6, 4)


def test_a_switch_is_named(tmp_path: Path) -> None:
    import tensorflow as tf

    def serve(x: Any, i: Any) -> dict[str, Any]:
        return {"y": tf.switch_case(i, [lambda: x, lambda: x + 1, lambda: x + 2])}

    specs = tf.TensorSpec([2], name="x"), tf.TensorSpec([], tf.int32, name="i")
    with pytest.raises(StepError, match="no conversion for these operators:\n  StatelessCase switch_case"):
        _from_tensorflow(_saved_model(tmp_path / "m", serve, *specs), tmp_path / "o")


def test_operators_that_have_no_conversion_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorflow as tf

    def serve(x: Any) -> dict[str, Any]:
        return {"y": tf.math.lgamma(x, name="lg")}

    source = _saved_model(tmp_path / "m", serve, tf.TensorSpec([1, 4], name="x"))
    convert, opsets = from_tensorflow._convert, []
    monkeypatch.setattr(from_tensorflow, "_convert", lambda *given: opsets.append(given[2]) or convert(*given))
    with pytest.raises(StepError, match="no conversion for these operators:\n  Lgamma lg"):
        _from_tensorflow(source, tmp_path / "o")
    assert opsets == [13, 18]  # what neither has is not tried in between


def test_a_higher_opset_is_taken_only_where_it_is_needed(tmp_path: Path) -> None:
    import tensorflow as tf

    source = _saved_model(
        tmp_path / "m", lambda x: {"y": tf.tensor_scatter_nd_max(x, [[1]], [3.0])}, tf.TensorSpec([4])
    )
    with pytest.raises(StepError, match="TensorScatterMax"):
        _from_tensorflow(source, tmp_path / "o1", opset=13)
    model, notes = _from_tensorflow(source, tmp_path / "o2")
    assert model.opset_import[0].version > 13
    assert notes == [f"exported at opset {model.opset_import[0].version}: lower ones have no form for TensorScatterMax"]


def test_damaged_saved_models(tmp_path: Path) -> None:
    source = tmp_path / "m"
    shutil.copytree(DIGITS / "model", source)
    variables = source / "variables" / "variables.data-00000-of-00001"
    variables.write_bytes(variables.read_bytes()[:100])
    with pytest.raises(StepError, match="TensorFlow cannot load the model") as caught:
        _from_tensorflow(source, tmp_path / "o1")
    assert str(tmp_path) not in caught.value.message
    (source / "saved_model.pb").write_bytes(b"\xff" * 64)
    with pytest.raises(StepError, match=r"saved_model\.pb cannot be read"):
        _from_tensorflow(source, tmp_path / "o2")


@dataclass(frozen=True)
class Zoo:
    """A Keras model of awkward layers, saved by tf.saved_model.save, with what TensorFlow computes of `x`."""

    model: ModelProto
    notes: list[str]
    x: Any
    expected: dict[str, Any]

    def outputs_agree(self, *names: str) -> None:
        results = _run(self.model, {"x": self.x})
        for name in names:
            assert self.expected[name].std() > 0.01
            np.testing.assert_allclose(results[name], self.expected[name], atol=2e-5)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    import keras
    import tensorflow as tf
    from keras import layers

    keras.utils.set_random_seed(2)
    x = keras.Input((6, 6, 4), name="x")
    deep = layers.Conv2D(4, 3, padding="same", use_bias=False)(x) + 3.0
    deep = layers.Conv2D(4, 3, padding="same")(keras.ops.relu(deep) * 0.5)
    outputs = {
        "grouped": layers.Conv2D(8, 3, groups=4)(x),
        "gelu": layers.Dense(3, activation="gelu")(x),
        "deep": deep,
        "grown": layers.Conv2DTranspose(3, 3, strides=2, output_padding=1, bias_initializer="ones")(x),
        "spread": layers.Conv2DTranspose(3, 1, strides=3, padding="same", bias_initializer="ones")(x),
    }
    model = keras.Model(x, outputs)
    serve = tf.function(lambda x: model(x, training=False))
    folder = tmp_path_factory.mktemp("zoo")
    signature = serve.get_concrete_function(tf.TensorSpec([None, 6, 6, 4], name="x"))
    tf.saved_model.save(model, str(folder / "saved"), signatures=signature)
    exported, notes = _from_tensorflow(folder / "saved", folder / "out", inputs={"x": {"shape": [2, 6, 6, 4]}})
    values = np.random.default_rng(0).standard_normal((2, 6, 6, 4)).astype(np.float32)
    return Zoo(exported, notes, values, {name: value.numpy() for name, value in model(values).items()})


def test_variables_that_keras_saves_under_their_own_names(zoo: Zoo) -> None:
    zoo.outputs_agree(*zoo.expected)


def test_grouped_convolution(zoo: Zoo) -> None:
    zoo.outputs_agree("grouped")
    assert [attribute(n, "group") for n in zoo.model.graph.node if attribute(n, "group", 1) > 1] == [4]


def test_exact_gelu(zoo: Zoo) -> None:
    zoo.outputs_agree("gelu")
    assert "Erf" in {node.op_type for node in zoo.model.graph.node}


def test_a_number_added_to_a_convolution_keeps_no_transposes(zoo: Zoo) -> None:
    makers = {name: node for node in zoo.model.graph.node for name in node.output}
    convolutions = [node for node in zoo.model.graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 3
    between = []  # operators from the second convolution of the two in a row back to the first
    (current,) = [node for node in convolutions if makers[node.input[0]].op_type != "Transpose"]
    while makers[current.input[0]].op_type != "Conv":
        current = makers[current.input[0]]
        between.append(current.op_type)
    assert between == ["Mul", "Relu", "Add"]
    zoo.outputs_agree("deep")
    assert zoo.notes == []


def test_transposed_convolutions_that_end_beyond_the_kernel(zoo: Zoo) -> None:
    zoo.outputs_agree("grown", "spread")
    found = [attribute(n, "output_padding") for n in zoo.model.graph.node if n.op_type == "ConvTranspose"]
    assert sorted(found) == [[1, 1], [2, 2]]


def test_padding_beyond_the_stride_is_not_blamed_on_the_recipe() -> None:
    text = "g (float[1,1,4,4] x, float[1,1,3,3] w) => (float y) { y = ConvTranspose<pads = [0, 0, -1, 0]>(x, w) }"
    model = parser.parse_model(HEAD + text)
    model.graph.node[0].name = "up"
    with pytest.raises(StepError, match="transposed convolution up has an output larger") as caught:
        pad_transposed_convolutions(model)
    assert "recipe" not in caught.value.message + (caught.value.hint or "")


def test_variables_of_one_name(tmp_path: Path) -> None:
    import keras
    import tensorflow as tf
    from keras import layers

    def part() -> Any:
        y = keras.Input((2,))
        return keras.Model(y, layers.Dense(2, name="same")(y))

    x = keras.Input((2,), name="x")
    model = keras.Model(x, [part()(x), part()(x)])
    serve = tf.function(lambda x: {"y": model(x)[0], "z": model(x)[1]})
    signature = serve.get_concrete_function(tf.TensorSpec([1, 2], name="x"))
    tf.saved_model.save(model, str(tmp_path / "m"), signatures=signature)
    exported, _ = _from_tensorflow(tmp_path / "m", tmp_path / "o1")
    model.save(tmp_path / "m.keras")
    from_file, _ = _from_tensorflow(tmp_path / "m.keras", tmp_path / "o2", "keras", inputs={"x": {"shape": [1, 2]}})
    values = np.array([[1, 2]], np.float32)
    expected = [result.numpy() for result in model(values)]
    assert not np.allclose(*expected)
    for results in (_run(exported, {"x": values}), _run(from_file, {"x": values})):
        np.testing.assert_allclose(list(results.values()), expected, atol=1e-6)


def test_an_optimizer_of_tf2onnx_that_fails_is_noted() -> None:
    with failures_noted() as notes:
        try:
            max(())
        except ValueError:
            for _ in range(2):
                logging.getLogger("tf2onnx.optimizer").warning("Failed to apply %s", "optimize_it", exc_info=True)
    assert len(notes) == 1 and "was left out: optimize_it (ValueError: max()" in notes[0]


def test_keras_files(tmp_path: Path) -> None:
    import keras
    from keras import layers

    keras.utils.set_random_seed(1)
    left, right = keras.Input((5, 3), name="left"), keras.Input((4,), name="right")
    joined = layers.Concatenate(name="join")([layers.LSTM(4, name="memory")(left), right])
    model = keras.Model({"b": left, "a": right}, {"score": layers.Dense(2, name="head")(joined), "mix": joined})
    model.save(tmp_path / "m.keras")
    result, _ = _from_tensorflow(
        tmp_path / "m.keras", tmp_path / "o", "keras", dims=["n"],
        inputs={"left": {"shape": ["n", 5, 3]}, "right": {"shape": ["n", 4]}},
    )  # fmt: skip
    assert [spec.name for spec in interface(result).inputs] == ["left", "right"]
    random = np.random.default_rng(0)
    feeds = {"left": random.random((2, 5, 3), np.float32), "right": random.random((2, 4), np.float32)}
    expected = model({"b": feeds["left"], "a": feeds["right"]})
    for name, value in _run(result, feeds).items():
        np.testing.assert_allclose(value, expected[name].numpy(), atol=1e-5)


def test_an_archive_cannot_write_elsewhere(tmp_path: Path) -> None:
    import tarfile

    for name in ("../outside", "/tmp/outside"):
        with tarfile.open(tmp_path / "t.tar", "w") as archive:
            archive.addfile(tarfile.TarInfo(name))
        with pytest.raises(StepError, match="no plain file inside it"):
            unpack(tmp_path / "t.tar", tmp_path / "in")


def test_missing_tensorflow_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(StepError, match="needs the package tensorflow") as caught:
        _from_tensorflow(DIGITS / "model", tmp_path / "o")
    assert caught.value.hint == 'run: pip install "trtrecipe[tensorflow]"'
