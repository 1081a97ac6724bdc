"""graphs.layers: the source model's layers, and which nodes of the exported graph are theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import parser

from trtrecipe.errors import StepError
from trtrecipe.graphs import keep, layers
from trtrecipe.steps import export, fetch

DIGITS = Path(__file__).parent.parent / "recipes" / "digits"
HEAD = '<ir_version: 8, opset_import: ["" : 17]> '


def _export(source: Path, out: Path, format: str, **params: object) -> layers.Layers:
    out.mkdir()
    fetch.run(fetch.Params(format=format), {"source": source}, out)
    export.run(export.Params(format=format, **params), {"model": out / "model"}, out)  # type: ignore[arg-type]
    found = layers.load(out / "layers.json")
    present = {node.name for node in onnx.load(out / "model.onnx").graph.node}
    assert {node for nodes in found.values() for node in nodes} <= present
    return found


@pytest.fixture(scope="module")
def nested(tmp_path_factory: pytest.TempPathFactory) -> tuple[layers.Layers, layers.Layers, onnx.ModelProto]:
    """A Keras model with a model inside, from its .keras file and from its SavedModel; and the graph."""
    import keras
    from keras.layers import BatchNormalization, Conv2D, Dense, Dropout, Flatten, Input, ReLU, Softmax

    entry = Input((8, 8, 4))
    body = BatchNormalization(name="bn")(Conv2D(4, 3, padding="same", use_bias=False, name="conv")(entry))
    block = keras.Model(entry, ReLU(name="act")(body), name="block")
    image = Input((8, 8, 3), name="image")
    x = BatchNormalization(name="norm")(Conv2D(4, 3, name="stem", padding="same")(image))
    x = Flatten(name="flat")(block(Dropout(0.1, name="drop")(x)))
    model = keras.Model(image, Softmax(name="probabilities")(Dense(3, name="logits")(x)), name="digits")
    folder = tmp_path_factory.mktemp("nested")
    model.save(folder / "m.keras")
    model.export(folder / "saved", verbose=False)
    from_keras = _export(folder / "m.keras", folder / "a", "keras")
    from_saved = _export(folder / "saved", folder / "b", "saved_model")
    return from_keras, from_saved, onnx.load(folder / "a" / "model.onnx")


def test_keras_layers_by_their_names(nested: tuple[layers.Layers, layers.Layers, onnx.ModelProto]) -> None:
    found, _, _ = nested
    assert {"image", "stem", "norm", "drop", "block", "block/conv", "block/bn", "block/act", "flat", "logits"} <= set(
        found
    )
    assert found["logits"] == ["logits/MatMul"]
    assert found["probabilities"] == ["probabilities/Softmax"]
    assert set(found["block/act"]) < set(found["block"])
    assert found["drop"] == found["image"] == []


def test_a_convolution_that_took_in_its_normalization_is_both_layers(
    nested: tuple[layers.Layers, layers.Layers, onnx.ModelProto],
) -> None:
    for found in nested[:2]:
        kinds = {node.name: node.op_type for node in nested[2].graph.node}
        for pair in (("stem", "norm"), ("block/conv", "block/bn")):
            shared = set(found[pair[0]]) & set(found[pair[1]])
            assert [kinds[name] for name in shared] == ["Conv"], pair


def test_a_saved_model_tells_the_same_layers(
    nested: tuple[layers.Layers, layers.Layers, onnx.ModelProto],
) -> None:
    from_keras, from_saved, _ = nested
    assert {name for name, nodes in from_keras.items() if nodes} == {
        name for name, nodes in from_saved.items() if nodes
    }
    assert from_saved.items() <= from_keras.items()


def test_keep_by_the_name_of_a_merged_layer(nested: tuple[layers.Layers, layers.Layers, onnx.ModelProto]) -> None:
    found, _, model = nested
    kinds = {node.name: node.op_type for node in model.graph.node}
    kept = keep.resolve(model, found, [{"layers": "conv"}], "fp32")
    assert [kinds[name] for name in kept] == ["Conv"] and all(name.startswith("block/") for name in kept)
    assert len(keep.resolve(model, found, [{"layers": "block"}], "fp32")) > 1
    with pytest.raises(StepError, match="the model has layer drop, but nothing of it is left"):
        keep.resolve(model, found, [{"layers": "drop"}], "fp32")


def test_the_digits_model(tmp_path: Path) -> None:
    params = {"inputs": {"image": {"shape": ["batch", 8, 8, 1]}}, "dims": ["batch"]}
    found = _export(DIGITS / "model", tmp_path / "a", "saved_model", **params)
    assert found["logits"][0] == "logits/MatMul"
    assert "stem/convolution" in found["stem"]
    _export(DIGITS / "model", tmp_path / "b", "saved_model", **params)
    assert (tmp_path / "a/layers.json").read_bytes() == (tmp_path / "b/layers.json").read_bytes()


def test_scopes_of_an_onnx_model_and_what_export_drops(tmp_path: Path) -> None:
    model = parser.parse_model(
        HEAD + "g (float[N,4] x) => (float[N,4] y) "
        "{ a = Relu(x) s = Shape(x) h = Reshape(a, s) y = Neg(h) dead = Abs(x) }"
    )
    for node, name in zip(
        model.graph.node, ("/body/act/Relu", "/body/size/Shape", "/body/same/Reshape", "Neg", "/gone/Abs"), strict=True
    ):
        node.name = name
    onnx.save(model, tmp_path / "m.onnx")
    found = _export(tmp_path / "m.onnx", tmp_path / "out", "onnx", inputs={"x": {"shape": [2, 4]}})
    assert found["body"] == ["/body/act/Relu", "/body/same/Reshape"]
    assert found["body/act"] == ["/body/act/Relu"]
    assert found["body/size"] == []  # the shape is known and became a constant


def test_keras_layers_in_a_configuration() -> None:
    inner = {"name": "inner", "layers": [{"config": {"name": "deep"}}, {"config": {}}]}
    listed = [{"name": "a", "config": {}}, {"name": "block", "config": inner}]
    for config in ({"layers": listed}, listed):  # the first Keras 2 had a list alone for Sequential
        assert layers.of_keras({"config": config}) == ["a", "block", "block/deep"]


@pytest.mark.parametrize("config", [{}, {"config": None}, {"config": {"layers": [1]}}])
def test_keras_configurations_that_do_not_say(config: dict[str, Any]) -> None:
    with pytest.raises(StepError, match="does not say what its layers are"):
        layers.of_keras(config)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b'{"schema": "trtrecipe/layers/v9", "layers": {}}', b'{"schema": "trtrecipe/layers/v1"}']
)
def test_damaged_documents(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "layers.json").write_bytes(content)
    with pytest.raises(StepError, match=r"layers\.json"):
        layers.load(tmp_path / "layers.json")
