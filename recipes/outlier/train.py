"""Makes what this recipe starts from: `model/` (a TensorFlow SavedModel) and `data.npz`.

Both are committed, so a build trains nothing. To make them again, from this folder:
`pip install "trtrecipe[tensorflow,dev]"` and `python train.py` (about a minute on two cores).

The images are scikit-learn's handwritten digits, as in recipes/digits. The network is trained as usual and then one of
its layers is spoilt for INT8 without changing what the network computes: every second channel of `squeeze` is made
256 times larger, and the weights of `expand` that read it 256 times smaller. ReLU passes a positive factor on, and
256 is a power of two, so FP32 gives the same bits. In INT8 one scale must serve all channels of the activation, and
one all weights of an output channel: whichever half of the channels that scale suits, the other half rounds to nothing.
Networks with unequal channels of this kind occur in practice, see "Data-Free Quantization Through Weight Equalization
and Bias Correction" (https://arxiv.org/abs/1906.04721), which uses the same rescaling to mend them.
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
SEED = 17
SCALE = 0.0625  # the recipe declares the same as its preprocessing
CALIBRATION, TEST = 512, 360
EPOCHS, BATCH = 40, 32
FACTOR = 256.0


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

    def convolved(x: keras.KerasTensor, channels: int, size: int, name: str, stride: int = 1) -> keras.KerasTensor:
        x = layers.Conv2D(channels, size, stride, padding="same", use_bias=False, name=name)(x)
        x = layers.BatchNormalization(momentum=0.9, name=f"{name}_bn")(x)
        return layers.ReLU(name=f"{name}_relu")(x)

    x = convolved(image, 16, 3, "stem")
    x = convolved(x, 24, 3, "first")
    x = convolved(x, 16, 1, "squeeze")
    x = convolved(x, 32, 3, "expand", stride=2)
    x = convolved(x, 32, 3, "second")
    x = convolved(x, 48, 3, "third", stride=2)
    x = layers.Flatten(name="flatten")(x)
    x = layers.Dropout(0.3, name="dropout")(x)
    return keras.Model(image, layers.Dense(10, name="logits")(x), name="outlier")


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


def spoil(model: keras.Model) -> None:
    """Make every second channel between `squeeze` and `expand` 256 times larger; the outputs stay the same."""
    factors = np.where(np.arange(16) % 2, FACTOR, 1).astype(np.float32)
    norm, expand = model.get_layer("squeeze_bn"), model.get_layer("expand")
    norm.gamma.assign(norm.gamma * factors)
    norm.beta.assign(norm.beta * factors)
    expand.kernel.assign(expand.kernel / factors[:, np.newaxis])


def export(model: keras.Model, folder: Path) -> None:
    """Write the inference graph alone, as signature serving_default: image → logits."""

    inference = keras.Model(model.inputs, model.outputs)  # the optimizer's state stays behind

    def serve(image: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"logits": inference(image, training=False)}

    archive = keras.export.ExportArchive()
    archive.track(inference)
    archive.add_endpoint("serving_default", serve, [tf.TensorSpec((None, 8, 8, 1), tf.float32, "image")])
    shutil.rmtree(folder, ignore_errors=True)
    archive.write_out(folder, verbose=False)
    (folder / "fingerprint.pb").unlink(missing_ok=True)  # of use to serving systems only; differs from run to run
    for empty in [path for path in folder.iterdir() if path.is_dir() and not any(path.iterdir())]:
        empty.rmdir()


def main() -> None:
    """Write both, and print the accuracy of the parts, and how far the outputs moved when the layer was spoilt."""
    arrays = split()
    kept = {name: arrays[name] for name in ("x_calib", "x_test", "y_test")}
    np.savez_compressed(HERE / "data.npz", **kept)
    model = train(arrays)
    test = arrays["x_test"].astype(np.float32) * SCALE
    before = model(test, training=False).numpy()
    spoil(model)
    print(f"outputs moved by {np.abs(model(test, training=False).numpy() - before).max():g}")
    export(model, HERE / "model")
    served = tf.saved_model.load(HERE / "model").signatures["serving_default"]
    for part in ("calib", "test"):
        logits = served(image=tf.constant(arrays[f"x_{part}"], tf.float32) * SCALE)["logits"].numpy()
        correct = int((logits.argmax(axis=1) == arrays[f"y_{part}"]).sum())
        print(f"{part}: {correct} of {len(logits)} right, {correct / len(logits):.4f}")


if __name__ == "__main__":
    main()
