"""export: every form that TensorFlow and Keras write is told by its content, and gives what TensorFlow computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from support.fixtures_formats import FIXTURES, Fixture

from trtrecipe import formats
from trtrecipe.graphs import layers
from trtrecipe.steps import export, fetch


def _exported(made: Fixture, out: Path) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """The graph, and what ONNX Runtime computes of the fixture's feed."""
    out.mkdir()
    fetch.run(fetch.Params(format=made.format), {"source": made.path}, out)
    export.run(export.Params(format=made.format, **made.params), {"model": out / "model"}, out)
    model = onnx.load(out / "model.onnx")
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return model, dict(zip(names, session.run(None, dict(made.feeds)), strict=True))


@pytest.mark.parametrize("name", FIXTURES)
def test_each_form(name: str, tmp_path: Path) -> None:
    made = FIXTURES[name](tmp_path)
    hidden = made.path.rename(tmp_path / "no_name_that_tells")
    made = Fixture(hidden, made.format, made.feeds, made.expected, made.params)
    assert formats.model_format(hidden) == made.format
    model, results = _exported(made, tmp_path / "out")
    assert [value.name for value in model.graph.input] == sorted(made.feeds)
    assert results.keys() == made.expected.keys()
    for output, expected in made.expected.items():
        assert np.std(expected) > 0.01
        np.testing.assert_allclose(results[output], expected, atol=1e-5)


@pytest.mark.parametrize("name", ["keras_2_file", "keras_2_h5", "keras_3_h5"])
def test_layers_of_keras_files_are_named(name: str, tmp_path: Path) -> None:
    model, _ = _exported(FIXTURES[name](tmp_path), tmp_path / "out")
    found = layers.load(tmp_path / "out" / "layers.json")
    head = set(found["head"])
    assert head and head <= {node.name for node in model.graph.node}
    assert ("memory" if name == "keras_2_file" else "stem") in found


def test_a_frozen_graph_from_its_placeholders(tmp_path: Path) -> None:
    """Inputs need no names where they are placeholders, and ranks that the graph lacks come from the recipe."""
    import tensorflow as tf

    v1 = tf.compat.v1
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, name="scope/x")
        tf.split(x * v1.placeholder_with_default(2.0, [], name="factor"), 2, axis=1, name="halves")
    (tmp_path / "g.pb").write_bytes(graph.as_graph_def().SerializeToString())
    inputs = {"scope/x": {"shape": [2, 4]}}
    value = np.arange(8, dtype=np.float32).reshape(2, 4)
    expected = {"halves": value[:, :2] * 2, "halves:1": value[:, 2:] * 2}
    params = {"inputs": inputs, "outputs": ["halves", "halves:1"]}
    _, results = _exported(
        Fixture(tmp_path / "g.pb", "frozen_graph", {"scope/x": value}, expected, params), tmp_path / "out"
    )
    assert results.keys() == expected.keys()
    for name, result in expected.items():
        np.testing.assert_array_equal(results[name], result)


def test_initialisers_of_a_saved_model_are_not_run(tmp_path: Path) -> None:
    """TensorFlow's own loader would run them: here one that writes a file."""
    import tensorflow as tf

    v1 = tf.compat.v1
    written = tmp_path / "written"
    builder = v1.saved_model.Builder(str(tmp_path / "m"))
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [1, 2], name="x")
        info = v1.saved_model.build_tensor_info
        signature = v1.saved_model.build_signature_def({"x": info(x)}, {"y": info(x + 1.0)})
        builder.add_meta_graph_and_variables(
            session, ["serve"], {"serving_default": signature}, main_op=tf.io.write_file(str(written), "here")
        )
    builder.save()
    with v1.Session(graph=tf.Graph()) as session:
        v1.saved_model.loader.load(session, ["serve"], str(tmp_path / "m"))
    assert written.exists()
    written.unlink()
    value = np.ones((1, 2), np.float32)
    _, results = _exported(Fixture(tmp_path / "m", "saved_model", {"x": value}, {}), tmp_path / "out")
    np.testing.assert_array_equal(results["y"], value + 1)
    assert not written.exists()
