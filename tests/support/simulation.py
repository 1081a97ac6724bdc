"""What an ONNX graph computes, in NumPy: an obvious loop or einsum per operator, written from the ONNX specification.

Products are summed in float64 and rounded once to float32, everything else is float32. Nothing here comes from the
package, so that it can be compared with what the package and ONNX Runtime make of a graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

Array = np.ndarray


def run(
    model: onnx.ModelProto, feeds: Mapping[str, Array], known: Mapping[str, Array] | None = None
) -> dict[str, Array]:
    """Every tensor of the graph. Where `known` has a tensor, it is what its readers get instead of the one computed."""
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer} | dict(feeds)
    computed: dict[str, Array] = {}
    for node in model.graph.node:
        attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        inputs = [held[name] if name else None for name in node.input]
        outputs = OPERATORS[node.op_type](*inputs, **attributes)
        outputs = outputs if isinstance(outputs, list) else [outputs]
        for name, value in zip(node.output, outputs, strict=True):
            computed[name] = held[name] = value
            if known is not None and name in known:
                held[name] = known[name]
    return computed


def quantize(x: Array, scale: Array, zero: Array, axis: int = 1) -> Array:
    """Divide, round half to even, add the zero point, saturate."""
    scale, zero = (along(each, x.ndim, axis) for each in (scale, zero))
    return np.clip(np.rint(x / scale) + zero.astype(np.float32), -128, 127).astype(np.int8)


def dequantize(x: Array, scale: Array, zero: Array, axis: int = 1) -> Array:
    """Subtract the zero point, multiply."""
    scale, zero = (along(each, x.ndim, axis) for each in (scale, zero))
    return (x.astype(np.int32) - zero.astype(np.int32)).astype(np.float32) * scale


def along(values: Array, rank: int, axis: int) -> Array:
    """One value per entry of the axis, or a single one, in a shape that broadcasts."""
    return values.reshape([-1 if other == axis % rank else 1 for other in range(rank)]) if values.ndim else values


def conv(
    x: Array,
    w: Array,
    b: Array | None = None,
    group: int = 1,
    pads: tuple[int, ...] = (0, 0, 0, 0),
    strides: tuple[int, ...] = (1, 1),
    dilations: tuple[int, ...] = (1, 1),
    kernel_shape: tuple[int, ...] = (),
) -> Array:
    """[N, C, H, W] with filters [M, C / group, kh, kw]."""
    padded = np.pad(x, ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])))
    filters, per_group, *kernel = w.shape
    reach = [dilation * (size - 1) + 1 for dilation, size in zip(dilations, kernel, strict=True)]
    rows, columns = (
        (size - far) // stride + 1 for size, far, stride in zip(padded.shape[2:], reach, strides, strict=True)
    )
    y = np.zeros((len(x), filters, rows, columns), np.float64)
    for number in range(filters):
        first = number // (filters // group) * per_group
        for row in range(rows):
            for column in range(columns):
                top, left = row * strides[0], column * strides[1]
                window = padded[
                    :,
                    first : first + per_group,
                    top : top + reach[0] : dilations[0],
                    left : left + reach[1] : dilations[1],
                ]
                y[:, number, row, column] = np.einsum("nchw,chw->n", np.float64(window), np.float64(w[number]))
    return (y if b is None else y + b.reshape(1, -1, 1, 1)).astype(np.float32)


def conv_transpose(
    x: Array, w: Array, b: Array | None = None, strides: tuple[int, ...] = (1, 1), kernel_shape: tuple[int, ...] = ()
) -> Array:
    """[N, C, H, W] with filters [C, M, kh, kw], one group, no padding: each value adds a filter to the result."""
    _, filters, high, wide = w.shape
    n, _, rows, columns = x.shape
    y = np.zeros((n, filters, (rows - 1) * strides[0] + high, (columns - 1) * strides[1] + wide), np.float64)
    for row in range(rows):
        for column in range(columns):
            top, left = row * strides[0], column * strides[1]
            added = np.einsum("nc,cmhw->nmhw", np.float64(x[:, :, row, column]), np.float64(w))
            y[:, :, top : top + high, left : left + wide] += added
    return (y if b is None else y + b.reshape(1, -1, 1, 1)).astype(np.float32)


def matmul(a: Array, b: Array) -> Array:
    return (np.float64(a) @ np.float64(b)).astype(np.float32)


def gemm(a: Array, b: Array, c: Array | None = None, transA: int = 0, transB: int = 0) -> Array:
    y = np.float64(a.T if transA else a) @ np.float64(b.T if transB else b)
    return (y if c is None else y + c).astype(np.float32)


def pool(reduce: Callable[..., Any]) -> Callable[..., Array]:
    """Windows without padding."""

    def pooled(x: Array, kernel_shape: tuple[int, ...], strides: tuple[int, ...] = (1, 1)) -> Array:
        rows, columns = (
            (size - kernel) // stride + 1
            for size, kernel, stride in zip(x.shape[2:], kernel_shape, strides, strict=True)
        )
        y = np.zeros((*x.shape[:2], rows, columns), np.float32)
        for row in range(rows):
            for column in range(columns):
                top, left = row * strides[0], column * strides[1]
                window = x[:, :, top : top + kernel_shape[0], left : left + kernel_shape[1]]
                y[:, :, row, column] = reduce(np.float64(window), axis=(2, 3))
        return y

    return pooled


def softmax(x: Array, axis: int = -1) -> Array:
    powers = np.exp(np.float64(x) - x.max(axis=axis, keepdims=True))
    return (powers / powers.sum(axis=axis, keepdims=True)).astype(np.float32)


def split(x: Array, sizes: Array, axis: int = 0) -> list[Array]:
    return np.split(x, np.cumsum(sizes)[:-1], axis=axis)


def resize(x: Array, roi: Array, scales: Array, mode: bytes = b"nearest", **rest: bytes) -> Array:
    """Whole factors and nearest neighbours only."""
    assert mode == b"nearest"
    for axis, factor in enumerate(scales):
        x = np.repeat(x, int(factor), axis=axis)
    return x


OPERATORS: dict[str, Callable[..., Any]] = {
    "Add": np.add,
    "AveragePool": pool(np.mean),
    "Concat": lambda *parts, axis: np.concatenate(parts, axis=axis),
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "DequantizeLinear": dequantize,
    "Flatten": lambda x, axis=1: x.reshape(int(np.prod(x.shape[:axis])), -1),
    "Gemm": gemm,
    "GlobalAveragePool": lambda x: np.float64(x).mean(axis=(2, 3), keepdims=True).astype(np.float32),
    "Identity": lambda x: x,
    "MatMul": matmul,
    "MaxPool": pool(np.max),
    "Mul": np.multiply,
    "QuantizeLinear": quantize,
    "Relu": lambda x: np.maximum(x, np.float32(0)),
    "Reshape": lambda x, shape: x.reshape([x.shape[i] if size == 0 else size for i, size in enumerate(shape)]),
    "Resize": resize,
    "Softmax": softmax,
    "Split": split,
    "Transpose": lambda x, perm: x.transpose(perm),
}
