"""The integers of a Q/DQ pair and the floats they stand for; the symmetric INT8 grid that comes nearest.

TensorRT takes INT8 with zero point 0 and nothing else: https://docs.nvidia.com/deeplearning/tensorrt/latest/
inference-library/quantized-types-explicit-quantization.html and onnx/onnx-tensorrt, docs/operators.md at release/10.3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

LOWEST, HIGHEST = -128, 127


@dataclass(frozen=True)
class Grid:
    """The integers `low` to `high` stand for (integer - zero) * scale.

    `scale` (float32) and `zero` (int64) are scalars, or have one entry per index of the tensor's `axis`.
    """

    scale: Array
    zero: Array
    low: int
    high: int
    axis: int | None = None

    @property
    def least(self) -> Array:
        """Steps from 0 down to the lower end: int64, 0 or negative unless the integers are clipped."""
        below: Array = self.low - self.zero
        return below

    @property
    def most(self) -> Array:
        """Steps from 0 up to the upper end: int64."""
        above: Array = self.high - self.zero
        return above

    def fits(self) -> Array:
        """Where the same scale with zero point 0 has every value of this grid in INT8."""
        inside: Array = (self.least >= LOWEST) & (self.most <= HIGHEST)
        return inside

    def symmetric(self) -> Array:
        """float32 scales with zero point 0: the same where the grid fits, else max(|min|, |max|) / 127."""
        reach = np.maximum(np.abs(self.least), np.abs(self.most))
        wider = (self.scale.astype(np.float64) * reach / HIGHEST).astype(np.float32)
        chosen: Array = np.where(self.fits(), self.scale, wider)
        return chosen

    def bounds(self) -> tuple[Array, Array]:
        """The least and the largest float, float32."""
        return self.least.astype(np.float32) * self.scale, self.most.astype(np.float32) * self.scale

    def quantize(self, values: Array) -> Array:
        """QuantizeLinear: floats → integers as int64. Rounds half to even, saturates to `low` and `high`."""
        steps = np.rint(values / self._along(self.scale, values.ndim)) + self._along(self.zero, values.ndim)
        integers: Array = np.clip(steps, self.low, self.high).astype(np.int64)
        return integers

    def dequantize(self, integers: Array) -> Array:
        """DequantizeLinear: integers → float32."""
        steps = (integers - self._along(self.zero, integers.ndim)).astype(np.float32)
        floats: Array = steps * self._along(self.scale, integers.ndim)
        return floats

    def _along(self, values: Array, rank: int) -> Array:
        if self.axis is None:
            return values.reshape(())
        return values.reshape([-1 if axis == self.axis else 1 for axis in range(rank)])
