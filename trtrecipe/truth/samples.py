"""Inputs on which a graph is compared with its source.

Nothing is known of the data, so floats come from three distributions of different size: what happens near zero, what
happens to signs, and what happens to large values (clipping, saturation, preprocessing inside the model) all shows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trtrecipe.data.preprocess import Array
from trtrecipe.graphs.interface import TensorSpec

BATCHES = (1, 3)
"""Sizes of an open batch axis. Three is odd and larger than one; a batch of three holds each distribution once."""
DISTRIBUTIONS = ("uniform", "normal", "wide")
"""Of floats: 0 to 1; the standard normal; whole numbers from 0 to 255 for what has the shape of images, normal with a
deviation of 10 otherwise."""
_CHANNELS = (1, 3, 4)
_NUDGES = 1  # the seed of the signs in `nudged`
_FEW = 10  # plain integers that are no index: 0 to 9


@dataclass(frozen=True)
class Trial:
    """One run: the arrays, and the size of the open batch axis (None without one)."""

    feeds: Mapping[str, Array]
    batch: int | None

    def __str__(self) -> str:
        return f"a batch of {self.batch}" if self.batch else "the drawn inputs"


def batch_axis(specs: Sequence[TensorSpec]) -> str | None:
    """The name of the open axis that leads all inputs with axes and is no other axis of any."""
    shapes = [spec.shape for spec in specs if spec.shape]
    leading = {shape[0] for shape in shapes}
    others = {entry for shape in shapes for entry in shape[1:]}
    name = next(iter(leading)) if len(leading) == 1 else None
    return name if isinstance(name, str) and name not in others else None


def trials(
    specs: Sequence[TensorSpec], sizes: Mapping[str, int], bounds: Mapping[str, int | None], seed: int = 0
) -> Iterator[Trial]:
    """Arrays for inputs with decided shapes: each batch size once, or three runs where no batch axis is open.

    `sizes` says how long open axes are, those it does not name 1; `bounds` is what `indices.bounds` tells. Each input
    has its own generator, PCG64 seeded with (seed, run, position of the input).
    """
    axis = batch_axis(specs)
    if axis is None:
        plans: list[tuple[int | None, Sequence[str]]] = [(None, [kind]) for kind in DISTRIBUTIONS]
    else:
        plans = [(count, DISTRIBUTIONS[:count]) for count in BATCHES]
    for run, (count, kinds) in enumerate(plans):
        known = dict(sizes) if axis is None or count is None else {**sizes, axis: count}
        feeds = {}
        for index, spec in enumerate(specs):
            generator = np.random.Generator(np.random.PCG64([seed, run, index]))
            shape = tuple(entry if isinstance(entry, int) else known.get(entry, 1) for entry in spec.shape)
            feeds[spec.name] = np.asarray(_array(spec, shape, kinds, generator, bounds))  # a scalar too
        yield Trial(feeds, count)


def nudged(trial: Trial, bounds: Mapping[str, int | None]) -> dict[str, Array]:
    """The trial's arrays with the last bits of floats changed: eight steps up or down for float32, one for float16."""
    feeds = dict(trial.feeds)
    for index, (name, values) in enumerate(sorted(feeds.items())):
        if name in bounds or values.dtype.kind != "f":
            continue
        signs = np.random.Generator(np.random.PCG64([_NUDGES, index])).integers(0, 2, values.shape) * 2 - 1
        step = max(8 * np.finfo(np.float32).eps, float(np.finfo(values.dtype).eps))
        feeds[name] = (values * (1 + step * signs)).astype(values.dtype)
    return feeds


def _array(
    spec: TensorSpec,
    shape: tuple[int, ...],
    kinds: Sequence[str],
    generator: np.random.Generator,
    bounds: Mapping[str, int | None],
) -> Array:
    dtype = np.dtype(spec.dtype)
    if dtype == np.bool_:
        return generator.integers(0, 2, shape).astype(dtype)
    if spec.name in bounds:  # of floats too: old Keras models take indices as floats and cast them
        return generator.integers(0, bounds[spec.name] or 2, shape).astype(dtype)
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        low, high = (limits.min, limits.max + 1) if dtype.itemsize == 1 else (0, _FEW)
        return generator.integers(low, high, shape, dtype=np.int64).astype(dtype)
    if len(kinds) == 1 or not shape:
        return _floats(kinds[0], shape, generator).astype(dtype)
    rows = [_floats(kinds[row % len(kinds)], shape[1:], generator, len(shape)) for row in range(shape[0])]
    return np.stack(rows).astype(dtype)


def _floats(kind: str, shape: tuple[int, ...], generator: np.random.Generator, axes: int | None = None) -> Array:
    """`axes` is the number of axes of the whole input where `shape` is that of one row."""
    if kind == "uniform":
        return generator.random(shape)
    if kind == "normal":
        return generator.standard_normal(shape)
    row = shape if axes is not None else shape[1:]
    if len(row) == 3 and (row[-1] in _CHANNELS or row[0] in _CHANNELS):
        return generator.integers(0, 256, shape).astype(np.float64)
    return 10 * generator.standard_normal(shape)
