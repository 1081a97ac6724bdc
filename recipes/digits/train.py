"""Makes what this recipe starts from: `model/` (a TensorFlow SavedModel) and `data.npz`.

Both are committed, so a build trains nothing. To make them again, from this folder:
`pip install "trtrecipe[tensorflow,dev]"` and `python train.py`.

The images are scikit-learn's handwritten digits: 1797 labelled pictures of 8 x 8 pixels with values 0 to 16. They are
dealt into three parts that share no picture: training, calibration of INT8, and the test that accuracy is judged by.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # the same result on every machine matters more than speed

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from sklearn.datasets import load_digits

HERE = Path(__file__).resolve().parent
SEED = 7
SCALE = 0.0625  # the recipe declares the same as its preprocessing
CALIBRATION, TEST = 512, 360
EPOCHS, BATCH = 60, 32


def split() -> dict[str, np.ndarray]:
    """Arrays x_<part> uint8 [N,8,8,1] and y_<part> int64 [N] of the parts train, calib and test."""
    digits = load_digits()
    order = np.random.default_rng(SEED).permutation(len(digits.target))
    parts = {
        "test": order[:TEST],
        "calib": order[TEST : TEST + CALIBRATION],
        "train": order[TEST + CALIBRATION :],
    }
    arrays = {}
    for part, chosen in parts.items():
        arrays[f"x_{part}"] = digits.images[chosen].astype(np.uint8)[..., np.newaxis]
        arrays[f"y_{part}"] = digits.target[chosen].astype(np.int64)
    return arrays


def build() -> keras.Model:
    """The classifier: float32 image [N,8,8,1] with values 0 to 1 → ten logits."""
    image = keras.Input((8, 8, 1), name="image")

    def normalized(x: keras.KerasTensor, name: str) -> keras.KerasTensor:
        return layers.BatchNormalization(momentum=0.9, name=name)(x)

    x = layers.Conv2D(16, 3, padding="same", use_bias=False, name="stem")(image)
    stem = layers.ReLU(name="stem_relu")(normalized(x, "stem_bn"))

    x = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise")(stem)
    x = layers.ReLU(name="depthwise_relu")(normalized(x, "depthwise_bn"))
    x = layers.Conv2D(16, 1, use_bias=False, name="pointwise")(x)
    x = layers.Add(name="residual")([stem, normalized(x, "pointwise_bn")])
    x = layers.ReLU(name="residual_relu")(x)

    x = layers.Conv2D(32, 3, strides=2, padding="same", name="reduce")(x)
    x = layers.ReLU(name="reduce_relu")(normalized(x, "reduce_bn"))
    x = layers.SeparableConv2D(48, 3, padding="same", use_bias=False, name="separable")(x)
    x = layers.ReLU(name="separable_relu")(normalized(x, "separable_bn"))

    x = layers.MaxPooling2D(2, name="pool")(x)
    x = layers.Flatten(name="flatten")(x)
    x = layers.Dropout(0.3, name="dropout")(x)
    return keras.Model(image, layers.Dense(10, name="logits")(x), name="digits")


def shifted(images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The pictures moved by up to one pixel each way: the only augmentation."""
    padded = tf.pad(images, [[0, 0], [1, 1], [1, 1], [0, 0]])
    return tf.image.random_crop(padded, tf.shape(images), seed=SEED), labels


def train(arrays: dict[str, np.ndarray]) -> keras.Model:
    """The trained classifier; sees x_train and y_train only."""
    keras.utils.set_random_seed(SEED)
    tf.config.experimental.enable_op_determinism()
    model = build()
    x, y = arrays["x_train"].astype(np.float32) * SCALE, arrays["y_train"]
    data = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(y), seed=SEED).batch(BATCH).map(shifted)
    rate = keras.optimizers.schedules.CosineDecay(2e-3, EPOCHS * len(data))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss)
    model.fit(data, epochs=EPOCHS, verbose=2)
    return model


def export(model: keras.Model, folder: Path) -> None:
    """Write the inference graph alone, as signature serving_default: image → logits."""

    def serve(image: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"logits": model(image, training=False)}

    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint("serving_default", serve, [tf.TensorSpec((None, 8, 8, 1), tf.float32, "image")])
    shutil.rmtree(folder, ignore_errors=True)
    archive.write_out(folder, verbose=False)
    (folder / "fingerprint.pb").unlink(missing_ok=True)  # of use to serving systems only; differs from run to run
    for empty in [path for path in folder.iterdir() if path.is_dir() and not any(path.iterdir())]:
        empty.rmdir()


def main() -> None:
    """Write both, and print the accuracy of the parts."""
    arrays = split()
    np.savez_compressed(HERE / "data.npz", **arrays)
    model = train(arrays)
    export(model, HERE / "model")
    served = tf.saved_model.load(HERE / "model").signatures["serving_default"]
    for part in ("train", "calib", "test"):
        logits = served(image=tf.constant(arrays[f"x_{part}"], tf.float32) * SCALE)["logits"].numpy()
        correct = int((logits.argmax(axis=1) == arrays[f"y_{part}"]).sum())
        print(f"{part}: {correct} of {len(logits)} right, {correct / len(logits):.4f}")


if __name__ == "__main__":
    main()
