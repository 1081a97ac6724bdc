"""Makes what this recipe starts from: `model.keras` and `data.npz`.

Both are committed, so a build trains nothing. To make them again, from this folder:
`pip install "trtrecipe[tensorflow]"` and `python train.py` (about two minutes on two cores).

The pictures are drawn here: one of ten filled or hollow figures, turned, moved and scaled at random, lighter or darker
than an uneven ground, crossed by a line, under noise. 24 x 24 pixels with values 0 to 15. The network is built of
inverted residuals (expand by 1x1, depthwise 3x3, project by 1x1 without activation, add), as MobileNetV2 is
(https://arxiv.org/abs/1801.04381).
"""

from __future__ import annotations

import os
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # the same result on every machine matters more than speed

import keras
import numpy as np
import tensorflow as tf
from keras import layers

HERE = Path(__file__).resolve().parent
SEED = 11
SIZE, LEVELS = 24, 16
SCALE = 1 / LEVELS  # the recipe declares the same as its preprocessing
COUNTS = {"train": 20000, "calib": 256, "test": 800}
EPOCHS, BATCH = 8, 64
NOISE = 0.05
FIGURES = ("disc", "ring", "square", "frame", "triangle", "cross", "bars", "crescent", "half", "corner")


def figure(name: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Where the figure is, in coordinates in which it spans about -1 to 1."""
    radius, box = np.hypot(x, y), np.maximum(abs(x), abs(y))
    match name:
        case "disc":
            return radius < 0.95
        case "ring":
            return (radius < 1) & (radius > 0.55)
        case "square":
            return box < 0.85
        case "frame":
            return (box < 0.9) & (box > 0.5)
        case "triangle":
            return (y > -0.6) & (y < 1 - 1.8 * abs(x))
        case "cross":
            return (np.minimum(abs(x), abs(y)) < 0.3) & (box < 1)
        case "bars":
            return (abs(y) > 0.3) & (box < 0.9)
        case "crescent":
            return (radius < 1) & (np.hypot(x - 0.55, y) > 0.75)
        case "half":
            return (radius < 1) & (x < 0.1)
        case "corner":
            return (box < 0.9) & (np.minimum(x, y) < -0.2)
    raise ValueError(name)


def picture(random: np.random.Generator, name: str) -> np.ndarray:
    """One picture: uint8 [24,24] with values 0 to 15."""
    row, column = np.mgrid[:SIZE, :SIZE].astype(np.float64)
    radius = random.uniform(6, 10)
    middle = random.uniform(radius, SIZE - 1 - radius, 2)
    turn = random.uniform(0, 2 * np.pi)
    u, v = (column - middle[0]) / radius, (row - middle[1]) / radius
    inside = figure(name, u * np.cos(turn) + v * np.sin(turn), v * np.cos(turn) - u * np.sin(turn))
    slope = random.uniform(-0.012, 0.012, 2)
    ground = 0.5 + slope[0] * (column - SIZE / 2) + slope[1] * (row - SIZE / 2)
    contrast = random.uniform(0.25, 0.4) * random.choice([-1, 1])
    angle, offset = random.uniform(0, np.pi), random.uniform(-8, 8)
    across = (column - SIZE / 2) * np.cos(angle) + (row - SIZE / 2) * np.sin(angle) - offset
    drawn = np.where(abs(across) < 0.7, 0.5 - contrast, ground + contrast * inside)
    noisy = drawn + random.normal(0, NOISE, drawn.shape)
    return np.clip(np.floor(noisy * LEVELS), 0, LEVELS - 1).astype(np.uint8)


def draw() -> dict[str, np.ndarray]:
    """Arrays x_<part> uint8 [N,24,24,1] and y_<part> int64 [N] of the parts train, calib and test."""
    arrays = {}
    for number, (part, count) in enumerate(COUNTS.items()):
        random = np.random.default_rng([SEED, number])
        classes = random.integers(len(FIGURES), size=count)
        pictures = [picture(random, FIGURES[index]) for index in classes]
        arrays[f"x_{part}"] = np.stack(pictures)[..., np.newaxis]
        arrays[f"y_{part}"] = classes.astype(np.int64)
    return arrays


def build() -> keras.Model:
    """The classifier: float32 image [N,24,24,1] with values 0 to 1 → ten logits."""
    image = keras.Input((SIZE, SIZE, 1), name="image")

    def convolved(x: keras.KerasTensor, channels: int, size: int, name: str, active: bool = True) -> keras.KerasTensor:
        x = layers.Conv2D(channels, size, padding="same", use_bias=False, name=name)(x)
        x = layers.BatchNormalization(momentum=0.9, name=f"{name}_bn")(x)
        return layers.ReLU(6.0, name=f"{name}_relu")(x) if active else x

    def inverted(x: keras.KerasTensor, channels: int, stride: int, name: str) -> keras.KerasTensor:
        inside = convolved(x, 2 * x.shape[-1], 1, f"{name}_expand")
        inside = layers.DepthwiseConv2D(3, stride, "same", use_bias=False, name=f"{name}_depthwise")(inside)
        inside = layers.BatchNormalization(momentum=0.9, name=f"{name}_depthwise_bn")(inside)
        inside = layers.ReLU(6.0, name=f"{name}_depthwise_relu")(inside)
        inside = convolved(inside, channels, 1, f"{name}_project", active=False)
        return layers.Add(name=f"{name}_add")([x, inside]) if stride == 1 else inside

    x = layers.Conv2D(16, 3, strides=2, padding="same", use_bias=False, name="stem")(image)
    x = layers.ReLU(6.0, name="stem_relu")(layers.BatchNormalization(momentum=0.9, name="stem_bn")(x))
    x = inverted(x, 16, 1, "block1")
    x = inverted(x, 32, 2, "block2")
    x = inverted(x, 32, 1, "block3")
    x = inverted(x, 48, 2, "block4")
    x = inverted(x, 48, 1, "block5")
    x = convolved(x, 96, 1, "head")
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(image, layers.Dense(len(FIGURES), name="logits")(x), name="residual")


def train(arrays: dict[str, np.ndarray]) -> keras.Model:
    """The trained classifier; sees x_train and y_train only."""
    keras.utils.set_random_seed(SEED)
    tf.config.experimental.enable_op_determinism()
    model = build()
    x, y = arrays["x_train"].astype(np.float32) * SCALE, arrays["y_train"]
    data = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(y), seed=SEED).batch(BATCH)
    rate = keras.optimizers.schedules.CosineDecay(4e-3, EPOCHS * len(data))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss)
    model.fit(data, epochs=EPOCHS, verbose=2)
    return model


def main() -> None:
    """Write both, and print the accuracy of the parts."""
    arrays = draw()
    kept = {name: arrays[name] for name in ("x_calib", "x_test", "y_test")}
    np.savez_compressed(HERE / "data.npz", **kept)
    model = train(arrays)
    inference = keras.Model(model.inputs, model.outputs, name=model.name)  # the optimizer's state stays behind
    inference.save(HERE / "model.keras")
    saved = keras.models.load_model(HERE / "model.keras")
    for part in ("calib", "test"):
        logits = saved.predict(arrays[f"x_{part}"].astype(np.float32) * SCALE, verbose=0)
        correct = int((logits.argmax(axis=1) == arrays[f"y_{part}"]).sum())
        print(f"{part}: {correct} of {len(logits)} right, {correct / len(logits):.4f}")


if __name__ == "__main__":
    main()
