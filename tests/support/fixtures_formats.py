"""One small model in every form that TensorFlow and Keras write, with what TensorFlow itself computes of one feed.

Run as a program to write them all under a folder: python tests/support/fixtures_formats.py FOLDER
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


@dataclass(frozen=True)
class Fixture:
    """`path` is what model.source would name; `params` are what the recipe adds; `expected` is TensorFlow's answer."""

    path: Path
    format: str
    feeds: Mapping[str, Any]
    expected: Mapping[str, Any]
    params: Mapping[str, Any] = field(default_factory=dict)


def values(*shape: int, seed: int = 0) -> Any:
    """Samples of a normal distribution, float32."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def tf2(folder: Path) -> Fixture:
    """tf.saved_model.save of a module with two signatures."""
    import tensorflow as tf

    module = tf.Module()
    module.kernel = tf.Variable(values(3, 3, 2, 4), name="kernel")
    module.scale = tf.Variable([2.0], name="scale")

    def features(image: Any) -> dict[str, Any]:
        return {"features": tf.nn.relu(tf.nn.conv2d(image, module.kernel, 1, "SAME", name="stem"))}

    def scores(image: Any) -> dict[str, Any]:
        return {"scores": tf.reduce_mean(features(image)["features"], [1, 2]) * module.scale}

    spec = tf.TensorSpec([None, 6, 6, 2], name="image")
    signatures = {
        "serving_default": tf.function(scores).get_concrete_function(spec),
        "features": tf.function(features).get_concrete_function(spec),
    }
    tf.saved_model.save(module, str(folder / "model"), signatures=signatures)
    x = values(1, 6, 6, 2)
    return Fixture(
        folder / "model", "saved_model", {"image": x}, _numbers(features(tf.constant(x))), {"signature": "features"}
    )


def keras_3_export(folder: Path) -> Fixture:
    """Keras 3's model.export."""
    model = _keras_3_model()
    model.export(str(folder / "model"), verbose=False)
    x = values(1, 8, 8, 3)
    return Fixture(folder / "model", "saved_model", {"image": x}, {"output_0": model(x).numpy()})


def keras_2_saved_model(folder: Path) -> Fixture:
    """Keras 2's model.save, trained a step: its optimizer's state is one that Keras 3 and TensorFlow cannot restore."""
    import tf_keras

    model = _keras_2_model()
    model.compile(tf_keras.optimizers.legacy.Adam(0.01), "mse")
    model.fit(values(4, 8, 8, 3), values(4, 3), verbose=0, shuffle=False)
    model.save(str(folder / "model"), save_format="tf")
    x = values(1, 8, 8, 3)
    return Fixture(folder / "model", "saved_model", {"image": x}, {"head": model(x).numpy()})


def tf1(folder: Path) -> Fixture:
    """Graph mode: variables of both kinds, one in slices; two graphs, two signatures, a placeholder's default."""
    import tensorflow as tf

    v1 = tf.compat.v1
    builder = v1.saved_model.Builder(str(folder / "model"))
    x = values(2, 5)
    with tf.Graph().as_default(), v1.Session() as session:
        image = v1.placeholder(tf.float32, [None, 5], name="features_in")
        rate = v1.placeholder_with_default(1.0, [], name="keep_probability")
        old = v1.get_variable("dense/kernel", initializer=values(5, 4), use_resource=False)
        new = v1.get_variable("dense/bias", initializer=values(4, seed=1), use_resource=True)
        parts = v1.fixed_size_partitioner(2)
        ones = v1.random_uniform_initializer(seed=1)
        sliced = v1.get_variable("sliced/kernel", [4, 3], initializer=ones, use_resource=False, partitioner=parts)
        hidden = tf.nn.relu(tf.matmul(image, old) + new, name="hidden") * rate
        logits = tf.matmul(hidden, tf.convert_to_tensor(sliced), name="logits")
        session.run(v1.global_variables_initializer())
        expected = session.run(hidden, {image: x})
        info = v1.saved_model.build_tensor_info
        make = v1.saved_model.build_signature_def
        signatures = {
            "serving_default": make({"x": info(image)}, {"logits": info(logits)}, "predict"),
            "hidden": make({"x": info(image)}, {"hidden": info(hidden)}, "predict"),
        }
        builder.add_meta_graph_and_variables(session, ["train"], signature_def_map={})
        builder.add_meta_graph(["serve", "small"], signature_def_map=signatures)
    builder.save()
    return Fixture(
        folder / "model",
        "saved_model",
        {"x": x},
        {"hidden": expected},
        {"signature": "hidden", "tags": ["serve", "small"], "inputs": {"x": {"shape": [2, 5]}}},
    )


def tf1_sliced(folder: Path) -> Fixture:
    """The other signature of `tf1`, which reads the variable in slices."""
    import tensorflow as tf

    made = tf1(folder)
    loaded = tf.saved_model.load(str(made.path), tags=["serve", "small"])
    expected = loaded.signatures["serving_default"](x=tf.constant(made.feeds["x"]))
    return Fixture(
        made.path, made.format, made.feeds, _numbers(expected), {**made.params, "signature": "serving_default"}
    )


def preprocessing(folder: Path) -> Fixture:
    """Layers of preprocessing that need no table, in front of a convolution."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(3)
    image = keras.Input((12, 10, 3), name="image")
    x = layers.Rescaling(1 / 127.5, offset=-1, name="rescale")(image)
    x = layers.Normalization(mean=[0.1, 0.2, 0.3], variance=[1.0, 2.0, 3.0], name="normalize")(x)
    x = layers.CenterCrop(8, 8, name="crop")(layers.Resizing(10, 9, name="resize")(x))
    model = keras.Model(image, layers.Conv2D(4, 3, name="stem")(x))
    model.export(str(folder / "model"), verbose=False)
    x = np.random.default_rng(0).integers(0, 256, (1, 12, 10, 3)).astype(np.float32)
    return Fixture(folder / "model", "saved_model", {"image": x}, {"output_0": model(x).numpy()})


def keras_file(folder: Path) -> Fixture:
    """Keras 3's .keras."""
    model = _keras_3_model()
    model.save(folder / "model.keras")
    x = values(1, 8, 8, 3)
    return Fixture(folder / "model.keras", "keras", {"image": x}, {"head": model(x).numpy()})


def keras_2_file(folder: Path) -> Fixture:
    """Keras 2's .keras, with inputs and outputs by name."""
    import tf_keras
    from tf_keras import layers

    tf_keras.utils.set_random_seed(4)
    left, right = tf_keras.Input((5, 3), name="left"), tf_keras.Input((4,), name="right")
    joined = layers.Concatenate(name="join")([layers.LSTM(4, name="memory")(left), right])
    model = tf_keras.Model(
        {"left": left, "right": right}, {"score": layers.Dense(2, name="head")(joined), "mix": joined}
    )
    model.save(folder / "model.keras", save_format="keras")
    feeds = {"left": values(1, 5, 3), "right": values(1, 4)}
    return Fixture(folder / "model.keras", "keras", feeds, _numbers(model(feeds)))


def keras_2_h5(folder: Path) -> Fixture:
    """Keras 2's HDF5 file, trained a step, with operations of TensorFlow as layers."""
    model = _keras_2_model()
    model.compile("adam", "mse")
    model.fit(values(4, 8, 8, 3), values(4, 3), verbose=0, shuffle=False)
    model.save(folder / "model.hdf5", save_format="h5")
    x = values(1, 8, 8, 3)
    return Fixture(folder / "model.hdf5", "h5", {"image": x}, {"head": model(x).numpy()})


def keras_3_h5(folder: Path) -> Fixture:
    """Keras 3's HDF5 file."""
    model = _keras_3_model()
    model.save(folder / "model.h5")
    x = values(1, 8, 8, 3)
    return Fixture(folder / "model.h5", "h5", {"image": x}, {"head": model(x).numpy()})


def frozen_graph(folder: Path) -> Fixture:
    """A GraphDef with constants for variables, that begins with decoding a file, which the named input cuts away."""
    import tensorflow as tf

    v1 = tf.compat.v1
    x = values(1, 4, 4, 3)
    with tf.Graph().as_default() as graph, v1.Session() as session:
        name = v1.placeholder(tf.string, [], name="file_name")
        image = tf.image.decode_png(tf.io.read_file(name), channels=3)
        image = tf.reshape(tf.cast(image, tf.float32), [1, 4, 4, 3], name="image")
        kernel = v1.get_variable("kernel", initializer=values(1, 1, 3, 2), use_resource=False)
        result = tf.nn.conv2d(image, kernel, 1, "SAME", name="net/conv")
        tf.nn.relu(result, name="net/relu")
        session.run(v1.global_variables_initializer())
        expected = session.run(["net/conv:0", "net/relu:0"], {"image:0": x})
        constant = v1.graph_util.convert_variables_to_constants(session, graph.as_graph_def(), ["net/relu"])
    (folder / "graph.pb").write_bytes(constant.SerializeToString())
    return Fixture(
        folder / "graph.pb",
        "frozen_graph",
        {"image": x},
        dict(zip(("net/conv", "net/relu"), expected, strict=True)),
        {"inputs": {"image:0": {"shape": [1, 4, 4, 3]}}, "outputs": ["net/relu:0", "net/conv"]},
    )


FIXTURES: Mapping[str, Callable[[Path], Fixture]] = {
    make.__name__: make
    for make in (
        tf2, keras_3_export, keras_2_saved_model, tf1, tf1_sliced, preprocessing, keras_file, keras_2_file, keras_2_h5,
        keras_3_h5, frozen_graph,
    )
}  # fmt: skip


def _keras_3_model() -> Any:
    import keras
    from keras import layers

    keras.utils.set_random_seed(1)
    image = keras.Input((8, 8, 3), name="image")
    x = layers.BatchNormalization(name="norm")(layers.Conv2D(4, 3, padding="same", name="stem")(image))
    x = layers.GlobalAveragePooling2D(name="pool")(layers.ReLU(6.0, name="clip")(x))
    return keras.Model(image, layers.Dense(3, name="head")(x))


def _keras_2_model() -> Any:
    import tensorflow as tf
    import tf_keras
    from tf_keras import layers

    tf_keras.utils.set_random_seed(1)
    image = tf_keras.Input((8, 8, 3), name="image")
    x = layers.BatchNormalization(name="norm")(layers.Conv2D(4, 3, padding="same", name="stem")(image))
    x = layers.GlobalAveragePooling2D(name="pool")(tf.clip_by_value(x * 2.0, 0.0, 6.0))
    return tf_keras.Model(image, layers.Dense(3, name="head")(x))


def _numbers(tensors: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def main(folder: Path) -> None:
    """Write every fixture under `folder`."""
    for name, make in FIXTURES.items():
        (folder / name).mkdir(parents=True)
        sys.stdout.write(f"{name}: {make(folder / name).path}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
