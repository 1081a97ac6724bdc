"""Makes what this recipe starts from: `model/` (a TensorFlow SavedModel) and `data.npz`.

Both are committed, so a build trains nothing. To make them again, from this folder:
`pip install "trtrecipe[tensorflow]"` and `python train.py` (about two minutes on two cores).

The samples are invented here: what a sensor with three axes gives while two gestures are made, one after the other.
There are four gestures, each of its own length, strength and moment, under drift and noise; the class is the ordered
pair of them, 16 in all. 64 time steps as int8. The network is a transformer encoder over 16 patches of four steps:
attention over four heads, layer normalization before each half of a block, GELU.
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

HERE = Path(__file__).resolve().parent
SEED = 13
STEPS, AXES, PATCH = 64, 3, 4
SCALE = 1 / 32  # the recipe declares the same as its preprocessing
COUNTS = {"train": 20000, "calib": 256, "test": 800}
EPOCHS, BATCH = 14, 64
WIDTH, HEADS, BLOCKS = 48, 4, 2
GESTURES = 4
NOISE = 0.55


def gesture(number: int, phase: np.ndarray) -> np.ndarray:
    """The signal [phases, 3] of a gesture at `phase` 0 to 1."""
    envelope = np.sin(np.pi * phase)
    wave, double = np.sin(2 * np.pi * phase), np.sin(4 * np.pi * phase)
    quarter = np.cos(2 * np.pi * phase)
    axes = {
        0: (wave, quarter * envelope, 0 * phase),  # a circle
        1: (wave, -quarter * envelope, 0 * phase),  # the same circle the other way round
        2: (envelope, 0 * phase, double),  # a push with a shake
        3: (double, 0 * phase, envelope),  # a lift with a shake
    }[number]
    return np.stack(axes, axis=-1)


def recording(random: np.random.Generator, first: int, second: int) -> np.ndarray:
    """One sample: int8 [64, 3]."""
    time = np.arange(STEPS)
    signal = np.cumsum(random.normal(0, 0.06, (STEPS, AXES)), axis=0) + random.normal(0, NOISE, (STEPS, AXES))
    lengths = random.integers(14, 27, 2)
    spare = STEPS - lengths.sum()
    start = random.integers(0, spare // 2 + 1)
    starts = start, start + lengths[0] + random.integers(0, spare - start + 1)
    for number, begin, length in zip((first, second), starts, lengths, strict=True):
        during = (time >= begin) & (time < begin + length)
        phase = (time[during] - begin) / length
        signal[during] += random.uniform(0.9, 1.8) * gesture(number, phase)
    return np.clip(np.rint(signal / SCALE), -127, 127).astype(np.int8)


def record() -> dict[str, np.ndarray]:
    """Arrays x_<part> int8 [N,64,3] and y_<part> int64 [N] of the parts train, calib and test."""
    arrays = {}
    for number, (part, count) in enumerate(COUNTS.items()):
        random = np.random.default_rng([SEED, number])
        pairs = random.integers(GESTURES, size=(count, 2))
        arrays[f"x_{part}"] = np.stack([recording(random, *map(int, pair)) for pair in pairs])
        arrays[f"y_{part}"] = (pairs[:, 0] * GESTURES + pairs[:, 1]).astype(np.int64)
    return arrays


class Position(layers.Layer):
    """Adds a learned vector to each place of a sequence."""

    def build(self, shape: tuple[int | None, ...]) -> None:
        """Make the vectors: one per place."""
        self.vectors = self.add_weight(shape=shape[1:], initializer=keras.initializers.RandomNormal(0.02))

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """[N, places, width] → the same."""
        return x + self.vectors


def build() -> keras.Model:
    """The classifier: float32 signal [N,64,3], about -4 to 4 → 16 logits."""
    signal = keras.Input((STEPS, AXES), name="signal")
    x = layers.Reshape((STEPS // PATCH, PATCH * AXES), name="patches")(signal)
    x = Position(name="position")(layers.Dense(WIDTH, name="embed")(x))
    for number in range(1, BLOCKS + 1):
        attention = layers.MultiHeadAttention(HEADS, WIDTH // HEADS, name=f"attention{number}")
        y = layers.LayerNormalization(epsilon=1e-5, name=f"attention{number}_norm")(x)
        x = layers.Add(name=f"attention{number}_add")([x, attention(y, y)])
        y = layers.LayerNormalization(epsilon=1e-5, name=f"mlp{number}_norm")(x)
        y = layers.Dense(2 * WIDTH, activation="gelu", name=f"mlp{number}_up")(y)
        x = layers.Add(name=f"mlp{number}_add")([x, layers.Dense(WIDTH, name=f"mlp{number}_down")(y)])
    x = layers.LayerNormalization(epsilon=1e-5, name="norm")(x)
    x = layers.GlobalAveragePooling1D(name="pool")(x)
    return keras.Model(signal, layers.Dense(GESTURES**2, name="logits")(x), name="transformer")


def train(arrays: dict[str, np.ndarray]) -> keras.Model:
    """The trained classifier; sees x_train and y_train only."""
    keras.utils.set_random_seed(SEED)
    tf.config.experimental.enable_op_determinism()
    model = build()
    x, y = arrays["x_train"].astype(np.float32) * SCALE, arrays["y_train"]
    data = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(y), seed=SEED).batch(BATCH)
    rate = keras.optimizers.schedules.CosineDecay(0.0, EPOCHS * len(data), warmup_target=2e-3, warmup_steps=len(data))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss)
    model.fit(data, epochs=EPOCHS, verbose=2)
    return model


def export(model: keras.Model, folder: Path) -> None:
    """Write the inference graph alone, as signature serving_default: signal → logits."""

    inference = keras.Model(model.inputs, model.outputs)  # the optimizer's state stays behind

    def serve(signal: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"logits": inference(signal, training=False)}

    archive = keras.export.ExportArchive()
    archive.track(inference)
    archive.add_endpoint("serving_default", serve, [tf.TensorSpec((None, STEPS, AXES), tf.float32, "signal")])
    shutil.rmtree(folder, ignore_errors=True)
    archive.write_out(folder, verbose=False)
    (folder / "fingerprint.pb").unlink(missing_ok=True)  # of use to serving systems only; differs from run to run
    for empty in [path for path in folder.iterdir() if path.is_dir() and not any(path.iterdir())]:
        empty.rmdir()


def main() -> None:
    """Write both, and print the accuracy of the parts."""
    arrays = record()
    kept = {name: arrays[name] for name in ("x_calib", "x_test", "y_test")}
    np.savez_compressed(HERE / "data.npz", **kept)
    model = train(arrays)
    export(model, HERE / "model")
    served = tf.saved_model.load(HERE / "model").signatures["serving_default"]
    for part in ("calib", "test"):
        logits = served(signal=tf.constant(arrays[f"x_{part}"], tf.float32) * SCALE)["logits"].numpy()
        correct = int((logits.argmax(axis=1) == arrays[f"y_{part}"]).sum())
        print(f"{part}: {correct} of {len(logits)} right, {correct / len(logits):.4f}")


if __name__ == "__main__":
    main()
