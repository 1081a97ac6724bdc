"""Samples drawn from a stated distribution, for recipes without evaluation data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from trtrecipe.data.batches import Samples
from trtrecipe.data.preprocess import Array
from trtrecipe.errors import StepError
from trtrecipe.graphs.interface import Interface, TensorSpec

DISTRIBUTION = "floats from the standard normal distribution, integers from 0 to 1, booleans evenly"


def draw(interface: Interface, drawn: Mapping[str, Any]) -> Samples:
    """What `arrays` draws, as samples."""
    values = arrays(interface, drawn)
    return Samples(values, None, int(drawn["samples"]), {name: array.shape[1:] for name, array in values.items()})


def arrays(interface: Interface, drawn: Mapping[str, Any]) -> dict[str, Array]:
    """`drawn` = {"samples": count, "seed": seed, "dims": {name: size}} → samples of every input, from DISTRIBUTION.

    They are what the model is given: preprocessing does not apply to them. Integers stay at 0 and 1 because they are
    mostly indices, and those fit every table. `dims` gives the sizes of open axes other than the first. Each input has
    its own generator, PCG64 seeded with (seed, position of the input). Raises StepError for an axis without a size.
    """
    dims = drawn.get("dims") or {}
    return {
        spec.name: _array(
            spec, int(drawn["samples"]), np.random.Generator(np.random.PCG64([int(drawn["seed"]), index])), dims
        )
        for index, spec in enumerate(interface.inputs)
    }


def _array(spec: TensorSpec, count: int, generator: np.random.Generator, dims: Mapping[str, int]) -> Array:
    shape = (count, *(axis if isinstance(axis, int) else _size(spec, axis, dims) for axis in spec.shape[1:]))
    kind = np.dtype(spec.dtype).kind
    if kind == "f":
        return generator.standard_normal(shape).astype(spec.dtype)
    return generator.integers(0, 2, shape).astype(spec.dtype)


def _size(spec: TensorSpec, axis: str, dims: Mapping[str, int]) -> int:
    if axis not in dims:
        raise StepError(
            f"no samples can be drawn for input {spec}: axis {axis} is open and has no range",
            "give evaluation data, or a range for it under model.dims",
        )
    return int(dims[axis])
