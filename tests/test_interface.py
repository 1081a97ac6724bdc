"""What the engine takes and gives: outputs cut, names, layouts, from every kind of source."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, numpy_helper, parser
from support.projects import make_project

from trtrecipe.cli.app import run
from trtrecipe.errors import StepError
from trtrecipe.graphs.interface import interface
from trtrecipe.steps import export, fetch

HEAD = '<ir_version: 8, opset_import: ["" : 13]> '
BRANCHES = (
    HEAD + "g (float[N,4] x, float[N,4] mask) => (float[N,4] scores, float[N,4] boxes) {"
    "[stem/relu] a = Relu(x) [stem/exp] b = Exp(a) [head/neg] scores = Neg(b) [last/mul] boxes = Mul(b, mask) }"
)
NHWC = (
    HEAD + "g (float[1,6,6,3] image) => (float[1,4,4,2] y) <float[1,1,1,3] mean = {1, 2, 3}, float[2,3,3,3] w> {"
    "[sub] c = Sub(image, mean) [first] t = Transpose<perm = [0, 3, 1, 2]>(c)"
    "[conv] k = Conv(t, w) [last] y = Transpose<perm = [0, 2, 3, 1]>(k) }"
)
NCHW = (
    HEAD + "g (float[1,3,6,6] image) => (float[1,2,4,4] y) <float[1,3,1,1] mean = {1, 2, 3}, float[2,3,3,3] w> {"
    "[sub] c = Sub(image, mean) [conv] y = Conv(c, w) }"
)


def _model(text: str) -> ModelProto:
    """`[name]` names the node that follows; weights that the text leaves open are drawn."""
    names = re.findall(r"(?:\[([a-z/]+)\] )?\w+ = [A-Z]", text)
    model = parser.parse_model(re.sub(r"\[[a-z/]+\] ", "", text))
    for node, name in zip(model.graph.node, names, strict=True):
        node.name = name
    for value in model.graph.value_info:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        values = np.random.default_rng(1).standard_normal(shape, np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, value.name))
    del model.graph.value_info[:]
    return model


def _export(model: ModelProto, folder: Path, **params: Any) -> tuple[ModelProto, dict[str, Any]]:
    source = folder / "source.onnx"
    source.write_bytes(model.SerializeToString())
    measured = dict(export.run(export.Params(format="onnx", **params), {"model": source}, folder))
    return onnx.load(folder / "model.onnx"), measured


def _run(model: ModelProto, **feeds: Any) -> dict[str, Any]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def _said(model: ModelProto) -> str:
    found = interface(model)
    return "; ".join(map(str, found.inputs)) + " -> " + "; ".join(map(str, found.outputs))


def _refused(folder: Path, text: str = BRANCHES, **params: Any) -> str:
    with pytest.raises(StepError) as caught:
        _export(_model(text), folder, **params)
    assert not (folder / "model.onnx").exists()
    return f"{caught.value.message} | {caught.value.hint}"


# --- outputs


@pytest.mark.parametrize(
    ("name", "tensor"),
    [("b", "b"), ("stem/exp", "b"), ("stem", "b"), ("scores", "scores"), ("head", "scores")],
    ids=["tensor", "node", "layer", "output", "layer that ends the graph"],
)
def test_a_graph_ends_where_the_recipe_says(name: str, tensor: str, tmp_path: Path) -> None:
    whole = _model(BRANCHES)
    model, measured = _export(whole, tmp_path, outputs=[name], inputs={"x": {"shape": [2, 4]}})
    assert _said(model) == f"x: float32 [2, 4] -> {name}: float32 [2, 4]"
    assert measured["notes"] == ["input mask is not needed by model.outputs and is no input of the graph"]
    x = np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)
    whole.graph.output.add(name="b")
    expected = _run(whole, x=x, mask=x)[tensor]
    assert np.array_equal(_run(model, x=x)[name], expected)


def test_outputs_come_in_the_recipes_order(tmp_path: Path) -> None:
    model, measured = _export(_model(BRANCHES), tmp_path, outputs=["boxes", "stem/relu", "scores"])
    assert [value.name for value in model.graph.output] == ["boxes", "stem/relu", "scores"]
    assert [value.name for value in model.graph.input] == ["x", "mask"]
    assert all(note.startswith("axis 0 of input") for note in measured["notes"])


def test_one_tensor_may_be_two_outputs(tmp_path: Path) -> None:
    model, _ = _export(_model(BRANCHES), tmp_path, outputs=["b", "stem"], inputs={"x": {"shape": [1, 4]}})
    found = _run(model, x=np.ones((1, 4), np.float32))
    assert np.array_equal(found["b"], found["stem"])


@pytest.mark.parametrize(
    ("params", "said"),
    [
        (
            {"outputs": ["score"]},
            "model.outputs names score, and the model has no output, tensor, node or layer of that name | "
            "did you mean scores? the model's outputs are: scores, boxes",
        ),
        (
            {"outputs": ["x"]},
            "model.outputs names x, which the graph does not compute: it is an input or a constant | "
            "the model's outputs are: scores, boxes",
        ),
        (
            {"outputs": ["scores"], "inputs": {"mask": {"shape": [1, 4]}}},
            "the model has no input mask | change model.inputs; its inputs are: x: float32 [N, 4]",
        ),
        (
            {"rename": {"image": "x"}},
            "model.rename names image, which is no input and no output of the model | "
            "inputs: x, mask; outputs: scores, boxes",
        ),
        (
            {"rename": {"box": "x"}},
            "model.rename names box, which is no input and no output of the model | "
            "did you mean boxes? inputs: x, mask; outputs: scores, boxes",
        ),
        (
            {"rename": {"x": "mask"}},
            "model.rename would call two tensors mask: x and mask | give one of them another name",
        ),
        (
            {"rename": {"x": "boxes"}},
            "model.rename would call two tensors boxes: x and boxes | give one of them another name",
        ),
        (
            {"outputs": ["scores"], "rename": {"boxes": "b"}},
            "model.rename names boxes, which is no input and no output of the model | inputs: x; outputs: scores",
        ),
        (
            {"rename": {"x": "image"}, "inputs": {"x": {"shape": [1, 4]}}},
            "model.inputs names x, which model.rename calls image | "
            "write model.inputs.image: outside model.rename and model.outputs the new names count",
        ),
        (
            {"inputs": {"x": {"layout": "nchw"}}},
            "model.inputs.x.layout is for inputs of four axes, and input x has 2 | leave layout out",
        ),
    ],
)
def test_what_does_not_fit_the_model(params: dict[str, Any], said: str, tmp_path: Path) -> None:
    assert _refused(tmp_path, **params) == said


def test_a_layer_that_several_tensors_leave(tmp_path: Path) -> None:
    text = HEAD + "g (float[2] x) => (float[2] y) { [l/a] a = Relu(x) [l/b] b = Neg(x) [end] y = Add(a, b) }"
    assert _refused(tmp_path, text, outputs=["l"]) == (
        "model.outputs names the layer l, which 2 tensors leave | name one of them: a, b"
    )


# --- names


def test_names_of_the_engine(tmp_path: Path) -> None:
    """A tensor inside that has the name already gets out of the way."""
    rename = {"x": "image", "scores": "b", "boxes": "scores"}
    model, measured = _export(
        _model(BRANCHES), tmp_path, rename=rename, inputs={"image": {"shape": ["n", 4]}}, dims=["n"]
    )
    assert _said(model) == ("image: float32 [n, 4]; mask: float32 [n, 4] -> b: float32 [n, 4]; scores: float32 [n, 4]")
    x = np.array([[-1, 0, 1, 2]], np.float32)
    before, after = _run(_model(BRANCHES), x=x, mask=x), _run(model, image=x, mask=x)
    assert np.array_equal(before["scores"], after["b"]) and np.array_equal(before["boxes"], after["scores"])
    assert "notes" not in measured


def test_two_names_may_be_exchanged(tmp_path: Path) -> None:
    model, _ = _export(_model(BRANCHES), tmp_path, rename={"x": "mask", "mask": "x"})
    x, mask = np.array([[1, 2, 3, 4]], np.float32), np.full((1, 4), 2, np.float32)
    assert np.array_equal(_run(model, mask=x, x=mask)["boxes"], _run(_model(BRANCHES), x=x, mask=mask)["boxes"])


# --- layouts


def _operators(model: ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize("opset", [13, 15])
def test_channels_first_takes_the_transpose_out(opset: int, tmp_path: Path) -> None:
    model, measured = _export(_model(NHWC), tmp_path, inputs={"image": {"layout": "nchw"}}, opset=opset)
    assert _said(model) == "image: float32 [1, 3, 6, 6] -> y: float32 [1, 4, 4, 2]"
    assert _operators(model) == ["Sub", "Conv", "Transpose"]
    assert "notes" not in measured
    assert measured["check"]["outputs"]["y"]["max_abs"] < 1e-5
    image = np.random.default_rng(0).standard_normal((1, 6, 6, 3), np.float32)
    expected = _run(_model(NHWC), image=image)["y"]
    found = _run(model, image=image.transpose(0, 3, 1, 2))["y"]
    assert np.allclose(found, expected, atol=1e-5)


def test_channels_last_of_a_graph_that_has_them_first_costs(tmp_path: Path) -> None:
    model, measured = _export(_model(NCHW), tmp_path, inputs={"image": {"layout": "nhwc"}})
    assert _said(model) == "image: float32 [1, 6, 6, 3] -> y: float32 [1, 2, 4, 4]"
    assert measured["notes"] == [
        "input image is nhwc as asked, and the graph has to transpose it first, which takes time in every run"
    ]
    image = np.random.default_rng(0).standard_normal((1, 3, 6, 6), np.float32)
    assert np.allclose(
        _run(model, image=image.transpose(0, 2, 3, 1))["y"], _run(_model(NCHW), image=image)["y"], atol=1e-5
    )


@pytest.mark.parametrize(("text", "layout"), [(NHWC, "nhwc"), (NCHW, "nchw")])
def test_the_layout_that_the_model_has_changes_nothing(text: str, layout: str, tmp_path: Path) -> None:
    plain, _ = _export(_model(text), tmp_path)
    asked, measured = _export(_model(text), tmp_path, inputs={"image": {"layout": layout}})
    assert plain == asked
    assert "notes" not in measured


def test_the_shape_is_the_engines(tmp_path: Path) -> None:
    model = _model(NHWC)
    for axis, name in ((0, "N"), (1, "H"), (2, "W")):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    for dim, name in zip(model.graph.output[0].type.tensor_type.shape.dim, "ABCD", strict=True):
        dim.dim_param = name
    inputs = {"picture": {"shape": ["n", 3, 8, "w"], "layout": "nchw"}}
    result, _ = _export(model, tmp_path, inputs=inputs, dims=["n", "w"], rename={"image": "picture"})
    assert _said(result) == "picture: float32 [n, 3, 8, w] -> y: float32 [n, 6, ?, 2]"
    inputs["picture"]["shape"] = ["n", 8, "w", 3]
    assert "axis 1 of input picture is fixed at 3" in _refused_model(model, tmp_path, inputs)


def _refused_model(model: ModelProto, folder: Path, inputs: dict[str, Any]) -> str:
    with pytest.raises(StepError) as caught:
        _export(model, folder, inputs=inputs, dims=["n", "w"], rename={"image": "picture"})
    return caught.value.message


def test_shapes_that_the_graph_computes_from_its_input(tmp_path: Path) -> None:
    """Shape of an input that is turned: the graph still sees the sizes in its own order."""
    text = (
        HEAD
        + "g (float[N,6,6,3] image) => (float[A,B] y) <float[2,3,3,3] w, int64[1] zero = {0}, int64[1] rest = {-1}>"
        "{ s = Shape(image) n = Gather<axis = 0>(s, zero) t = Transpose<perm = [0, 3, 1, 2]>(image) k = Conv(t, w)"
        "  to = Concat<axis = 0>(n, rest) y = Reshape(k, to) }"
    )
    model, _ = _export(
        _model(text), tmp_path, inputs={"image": {"layout": "nchw", "shape": ["n", 3, 6, 6]}}, dims=["n"]
    )
    assert _operators(model) == ["Conv", "Reshape"]
    image = np.random.default_rng(0).standard_normal((2, 6, 6, 3), np.float32)
    expected = _run(_model(text), image=image)["y"]
    assert np.allclose(_run(model, image=image.transpose(0, 3, 1, 2))["y"], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("{ [flat] y = Flatten(x) }", "no convolution or pooling is reached from it; it goes to Flatten flat"),
        (
            "{ [a] p = GlobalMaxPool(x) t = Transpose<perm = [0, 3, 1, 2]>(x) [b] q = GlobalMaxPool(t) y = Add(p, q) }",
            "GlobalMaxPool a reads it as nchw; GlobalMaxPool b reads it as nhwc",
        ),
        ("{ [act] z = Relu(x) [mm] y = MatMul(z, z) }", "it goes to MatMul mm"),
        ("{ t = Transpose<perm = [0, 2, 1, 3]>(x) [p] y = GlobalMaxPool(t) }", "no convolution or pooling is reached"),
    ],
)
def test_a_layout_that_nothing_tells(body: str, why: str, tmp_path: Path) -> None:
    found = _refused(tmp_path, HEAD + f"g (float[1,4,4,4] x) => (float y) {body}".replace("float y", "float[A,B,C,D] y"
                     if "Flatten" not in body else "float[A,B] y"), inputs={"x": {"layout": "nhwc"}})  # fmt: skip
    assert found.startswith("model.inputs.x.layout: the model does not tell whether input x is nchw or nhwc: ")
    assert why in found


def test_what_may_lie_between_an_input_and_what_tells() -> None:
    """Each of these is passed through: the Transpose behind it goes."""
    from trtrecipe.graphs import input_layout

    for operator, constants in {
        "c = Cast<to = 1>(image)": "",
        "c = Clip(image, low, high)": ", float low = {0}, float high = {6}",
        "c = Pad(image, pads)": ", int64[8] pads = {0, 1, 1, 0, 0, 0, 0, 0}",
        "d = Div(image, by) c = Add(d, one)": ", float by = {2}, float[3] one = {1, 2, 3}",
        "c = Resize(image, , , sizes)": ", int64[4] sizes = {1, 12, 12, 3}",
        "c = Slice(image, from, to, axes, steps)": ", int64[1] from = {-1}, int64[1] to = {-9}, int64[1] axes = {3},"
        " int64[1] steps = {-1}",
    }.items():
        text = (
            HEAD + f"g (float[1,6,6,3] image) => (float[A,B,C,D] y) <float[2,3,3,3] w{constants}>"
            f"{{ {operator} t = Transpose<perm = [0, 3, 1, 2]>(c) y = Conv(t, w) }}"
        )
        model = _model(text)
        assert input_layout.of_graph(model, "image") == "nhwc", operator
        input_layout.transpose(model, "image", (0, 2, 3, 1))
        assert input_layout.settle(model, {"image": "nchw"}) == [], operator
        assert "Transpose" not in _operators(model), operator
        image = np.random.default_rng(0).standard_normal((1, 6, 6, 3), np.float32)
        expected = _run(_model(text), image=image)["y"]
        assert np.allclose(_run(model, image=image.transpose(0, 3, 1, 2))["y"], expected, atol=1e-5), operator


def test_a_build_by_the_engines_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Data, preprocessing, judging and what is placed: all by the new names."""
    project = make_project(
        tmp_path / "project",
        {
            "model": {
                "source": "model.onnx",
                "outputs": ["gemm", "pooled"],
                "rename": {"image": "picture", "gemm": "scores"},
                "inputs": {"picture": {"shape": ["n", 1, 6, 6], "layout": "nchw"}},
                "dims": {"n": {"min": 1, "opt": 4, "max": 8}},
            },
            "precision": {"mode": "fp32"},
            "preprocess": {"picture": [{"scale": 1.0}]},
            "calibration": None,
            "evaluation": {
                "data": {"npz": "data.npz", "arrays": {"picture": "test", "label": "label"}},
                "metric": "top1",
                "output": "scores",
            },
        },
    )
    assert run(["build", str(project.recipe), "--output", str(tmp_path / "dist"), "--json"]) == 0
    [target] = json.loads(capsys.readouterr().out)["targets"]
    assert target["status"] == "built" and 0 <= target["metrics"]["accuracy"] <= 1
    folder = tmp_path / "dist" / "small" / "host"
    assert _said(onnx.load(folder / "model.onnx")) == (
        "picture: float32 [n, 1, 6, 6] -> scores: float32 [n, 16]; pooled: float32 [n, 16, 1, 1]"
    )
    assert list(json.loads((folder / "preprocessing.json").read_text())["inputs"]) == ["picture"]


# --- TensorFlow; one process imports it once


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Keras model of two outputs, saved with a signature and packed as fetch does."""
    import keras

    folder = tmp_path_factory.mktemp("saved")
    keras.utils.set_random_seed(1)
    image = keras.Input((8, 8, 3), name="image")
    scaled = keras.layers.Rescaling([1, 0.5, 0.25], offset=[0, 1, -1], name="scale")(image)
    features = keras.layers.Conv2D(4, 3, activation="relu", name="stem")(scaled)
    pooled = keras.layers.GlobalAveragePooling2D(name="pool")(features)
    outputs = {
        "logits": keras.layers.Dense(3, name="dense")(pooled),
        "sizes": keras.layers.Dense(2, name="size")(pooled),
    }
    model = keras.Model(image, outputs, name="net")
    model.export(folder / "model", verbose=False)
    (folder / "packed").mkdir()
    fetch.run(fetch.Params("saved_model"), {"source": folder / "model"}, folder / "packed")
    return folder / "packed" / "model"


def _from_tensorflow(source: Path, folder: Path, **params: Any) -> tuple[ModelProto, dict[str, Any]]:
    measured = dict(export.run(export.Params(format="saved_model", **params), {"model": source}, folder))
    return onnx.load(folder / "model.onnx"), measured


IMAGES = {"shape": ["n", 8, 8, 3]}


def test_a_tensorflow_model_ends_at_a_layer(saved: Path, tmp_path: Path) -> None:
    model, measured = _from_tensorflow(saved, tmp_path, outputs=["sizes", "stem"], inputs={"image": IMAGES}, dims=["n"])
    assert _said(model) == "image: float32 [n, 8, 8, 3] -> sizes: float32 [n, 2]; stem: float32 [n, 6, 6, 4]"
    assert "dense/MatMul" not in {node.name for node in model.graph.node}
    check = measured["check"]
    assert check["against"] == "the TensorFlow graph it was made from computes"
    assert sorted(check["outputs"]) == ["sizes", "stem"] and check["batches"] == [1, 3]
    assert "notes" not in measured


@pytest.mark.parametrize("name", ["stem/Relu", "stem/Relu:0", "net_1/stem_1/Relu"])
def test_operations_go_by_the_names_that_exports_show(name: str, saved: Path, tmp_path: Path) -> None:
    model, _ = _from_tensorflow(saved, tmp_path, outputs=[name], inputs={"image": {"shape": [1, 8, 8, 3]}})
    assert [value.name for value in model.graph.output] == [name]


def test_channels_first_of_a_tensorflow_model(saved: Path, tmp_path: Path) -> None:
    asked = {"picture": {"shape": ["n", 3, 8, 8], "layout": "nchw"}}
    model, measured = _from_tensorflow(
        saved, tmp_path, inputs=asked, dims=["n"], rename={"image": "picture", "sizes": "extents"}
    )
    assert _said(model) == "picture: float32 [n, 3, 8, 8] -> logits: float32 [n, 3]; extents: float32 [n, 2]"
    assert "Transpose" not in _operators(model)
    assert measured["check"]["against"] == "the model as it was saved computes"
    assert all(found["relative"] < 1e-3 for found in measured["check"]["outputs"].values())
    assert "notes" not in measured
    plain, _ = _from_tensorflow(saved, tmp_path, inputs={"image": IMAGES}, dims=["n"])
    image = np.random.default_rng(0).standard_normal((2, 8, 8, 3), np.float32)
    expected, found = _run(plain, image=image), _run(model, picture=image.transpose(0, 3, 1, 2))
    assert np.allclose(found["extents"], expected["sizes"], atol=1e-5)


@pytest.mark.parametrize(
    ("params", "said"),
    [
        (
            {"outputs": ["logit"]},
            "model.outputs names logit, and the model has no output, tensor, node or layer of that name | "
            "did you mean logits? the model's outputs are: logits, sizes",
        ),
        (
            {"outputs": ["logits", "serving_default_image"]},
            "model.outputs names serving_default_image, which the graph does not compute: it is an input or a constant"
            " | the model's outputs are: logits, sizes",
        ),
        (
            {"outputs": ["logits"], "rename": {"sizes": "s"}},
            "model.rename names sizes, which is no input and no output of the model | inputs: image; outputs: logits",
        ),
        (
            {"outputs": ["scale/mul:1"]},
            "model.outputs names scale/mul:1, and Mul StatefulPartitionedCall_1/StatefulPartitionedCall/net_1/"
            "scale_1/mul has no result 1 | the model's outputs are: logits, sizes",
        ),
        (
            {"inputs": {"image": {"shape": [1, 8, 8, 3], "layout": "nchw"}}},
            "axis 1 of input image is fixed at 3 by the model, model.inputs.image.shape says 8 | "
            "write 3 there, or export the model with that axis open",
        ),
    ],
)
def test_what_does_not_fit_a_tensorflow_model(params: dict[str, Any], said: str, saved: Path, tmp_path: Path) -> None:
    with pytest.raises(StepError) as caught:
        _from_tensorflow(saved, tmp_path, **params)
    assert f"{caught.value.message} | {caught.value.hint}" == said
    assert not (tmp_path / "model.onnx").exists()


def test_what_cannot_be_converted_may_be_cut_off(tmp_path: Path) -> None:
    """And an input that only that part needs goes."""
    import tensorflow as tf

    class Module(tf.Module):  # type: ignore[misc]  # tensorflow ships no types
        @tf.function(  # type: ignore[untyped-decorator]
            input_signature=[tf.TensorSpec([1, 4], tf.float32, "x"), tf.TensorSpec([], tf.int32, "k")]
        )
        def serve(self, x: Any, k: Any) -> Any:
            y = tf.nn.relu(x, name="kept")
            return {"y": y * 2, "odd": tf.math.igamma(y + 1, tf.cast(k, tf.float32) + y)}

    module = Module()
    tf.saved_model.save(module, str(tmp_path / "model"), signatures={"serving_default": module.serve})
    (tmp_path / "packed").mkdir()
    fetch.run(fetch.Params("saved_model"), {"source": tmp_path / "model"}, tmp_path / "packed")
    with pytest.raises(StepError, match="Igamma"):
        _from_tensorflow(tmp_path / "packed" / "model", tmp_path)
    model, measured = _from_tensorflow(tmp_path / "packed" / "model", tmp_path, outputs=["y", "kept"])
    assert _said(model) == "x: float32 [1, 4] -> y: float32 [1, 4]; kept: float32 [1, 4]"
    assert measured["notes"] == ["input k is not needed by model.outputs and is no input of the graph"]
    assert sorted(measured["check"]["outputs"]) == ["kept", "y"]


def test_a_frozen_graph_by_other_names(tmp_path: Path) -> None:
    """Its outputs may be layers, the inputs that cut it go by the engine's names, and so do shapes of unknown rank."""
    import tensorflow as tf

    v1 = tf.compat.v1
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, name="in/raw")
        y = tf.identity(x / 2, name="in/half")
        y = tf.nn.conv2d(y, np.ones((3, 3, 3, 2), np.float32), 1, "VALID", name="body/conv")
        y = tf.nn.relu(y, name="body/act")
        tf.reduce_mean(y, [1, 2], name="head/mean")
    (tmp_path / "g.pb").write_bytes(graph.as_graph_def().SerializeToString())
    params = export.Params(
        "frozen_graph",
        inputs={"image": {"shape": [1, 3, 6, 6], "layout": "nchw"}},
        outputs=["head/mean:0", "body"],
        rename={"in/half:0": "image", "head/mean": "means"},
    )
    measured = export.run(params, {"model": tmp_path / "g.pb"}, tmp_path)
    model = onnx.load(tmp_path / "model.onnx")
    assert _said(model) == "image: float32 [1, 3, 6, 6] -> means: float32 [1, 2]; body: float32 [1, 4, 4, 2]"
    assert _operators(model)[0] == "Conv"
    assert sorted(measured["check"]["outputs"]) == ["body", "means"]


def test_a_keras_file_by_other_names(tmp_path: Path) -> None:
    import keras

    image = keras.Input((4, 4, 3), name="image")
    features = keras.layers.Conv2D(2, 3, name="stem")(image)
    keras.Model(image, keras.layers.Flatten(name="flat")(features)).save(tmp_path / "m.keras")
    asked = {"picture": {"shape": ["n", 3, 4, 4], "layout": "nchw"}}
    for outputs, against in (([], "the Keras model computes"), (["stem"], "the TensorFlow graph it was made from")):
        rename = {"image": "picture", outputs[0] if outputs else "flat": "y"}
        params = export.Params("keras", inputs=asked, dims=["n"], outputs=outputs, rename=rename)
        measured = export.run(params, {"model": tmp_path / "m.keras"}, tmp_path)
        assert measured["check"]["against"].startswith(against)
        model = onnx.load(tmp_path / "model.onnx")
        assert [value.name for value in (*model.graph.input, *model.graph.output)] == ["picture", "y"]


def test_images_for_an_engine_that_takes_channels_first(tmp_path: Path) -> None:
    """The same pictures, with figures for each channel, give the same results in either layout."""
    from trtrecipe.data import preprocess

    pictures = np.random.default_rng(3).integers(0, 256, (5, 6, 6, 3), np.uint8)
    normalize: dict[str, Any] = {"normalize": {"mean": [10, 20, 30], "std": [1, 2, 3]}}
    found = []
    ways: list[tuple[str, list[Any]]] = [("nhwc", [normalize]), ("nchw", [normalize, {"layout": "nchw"}])]
    for layout, operations in ways:
        model = _model(NHWC.replace("float[1,6", "float[N,6").replace("float[1,4", "float[N,4"))
        shape = ["n", 6, 6, 3] if layout == "nhwc" else ["n", 3, 6, 6]
        inputs = {"image": {"layout": layout, "shape": shape}}
        result, _ = _export(model, tmp_path, inputs=inputs, dims=["n"])
        spec = interface(result).input("image")
        preprocess.check(interface(result), {"image": operations})
        found.append(_run(result, image=preprocess.apply(pictures, spec, operations))["y"])
    assert np.allclose(found[0], found[1], atol=1e-3)
