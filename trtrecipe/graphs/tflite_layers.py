"""TFLite's operators with weights or windows: convolutions, pools, products, resizing, recurrence.

Each function adds the nodes of one operator. What an operator computes: tensorflow/lite/kernels at v2.21.0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from trtrecipe.graphs.flatbuffer import Damaged
from trtrecipe.graphs.tflite_builder import Builder, Refused
from trtrecipe.graphs.tflite_file import Array, Operator
from trtrecipe.graphs.tflite_math import Convert

SAME = 0
_LSTM_GATES = (0, 3, 1, 2)
"""ONNX's order of the gates (input, output, forget, cell) in TFLite's (input, forget, cell, output)."""


def _sizes(operator: Operator, *names: str) -> list[int]:
    """Options that must be positive."""
    values = [operator.options[name] for name in names]
    if min(values) < 1:
        raise Damaged(f"{operator.name} has {', '.join(names)} of {values}")
    return values


def _window(
    build: Builder, operator: Operator, kernel: Sequence[int], dilations: Sequence[int], pictures: int
) -> dict[str, Any]:
    """Strides, dilations and pads of a window that goes over tensor `pictures`.

    Where a size is open, what "same" pads is left to ONNX, which has the same rule (ComputePaddingHeightWidth).
    """
    strides = _sizes(operator, "stride_h", "stride_w")
    attributes: dict[str, Any] = {"kernel_shape": list(kernel), "strides": strides}
    if set(dilations) != {1}:
        attributes["dilations"] = list(dilations)
    if operator.options["padding"] != SAME:
        return attributes
    totals = []
    sizes = build.tensor(pictures).shape[1:3]
    for size, reach, step, spread in zip(sizes, kernel, strides, dilations, strict=True):
        full = (reach - 1) * spread + 1
        if size < 0 and step > 1:
            return {**attributes, "auto_pad": "SAME_UPPER"}
        totals.append(full - 1 if step == 1 else max((-(-size // step) - 1) * step + full - size, 0))
    return {**attributes, "pads": [*(total // 2 for total in totals), *(total - total // 2 for total in totals)]}


def _bias(build: Builder, operator: Operator, position: int) -> list[str]:
    number = build.given(operator, position)
    return [] if number is None else [build.plain(number)]


def convolution(build: Builder, operator: Operator) -> None:
    """CONV_2D: weights [out, height, width, in of a group]."""
    pictures, weights = operator.inputs[:2]
    _, *kernel, inside = _weight_shape(build, weights)
    channels = build.tensor(pictures).shape[3]
    if inside < 1 or (channels % inside if channels > 0 else 0):
        raise Damaged(f"the weights are for {inside} channels, and there are {channels}")
    groups = channels // inside if channels > 0 else 1
    dilations = _sizes(operator, "dilation_h_factor", "dilation_w_factor")
    attributes = _window(build, operator, kernel, dilations, pictures)
    quantized = build.is_quantized(pictures)
    if build.is_constant(weights):
        name = build.weights(weights, lambda values: values.transpose(0, 3, 1, 2), 0, quantized)
    else:
        name = build.node("Transpose", [build.plain(weights)], perm=(0, 3, 1, 2))
    result = build.node("Conv", [build.first(pictures), name, *_bias(build, operator, 2)], group=groups, **attributes)
    build.store(operator.outputs[0], result, True, operator.options["fused_activation_function"])


def depthwise(build: Builder, operator: Operator) -> None:
    """DEPTHWISE_CONV_2D: weights [1, height, width, channels times multiplier]."""
    pictures, weights = operator.inputs[:2]
    _, *kernel, count = _weight_shape(build, weights)
    channels = build.tensor(pictures).shape[3]
    if channels < 1 or count % channels:
        raise Damaged(f"there are {count} filters for {channels} channels")
    dilations = _sizes(operator, "dilation_h_factor", "dilation_w_factor")
    attributes = _window(build, operator, kernel, dilations, pictures)
    quantized = build.is_quantized(pictures)
    if build.is_constant(weights):
        name = build.weights(weights, lambda values: values.transpose(3, 0, 1, 2), 0, quantized)
    else:
        name = build.node("Transpose", [build.plain(weights)], perm=(3, 0, 1, 2))
    result = build.node("Conv", [build.first(pictures), name, *_bias(build, operator, 2)], group=channels, **attributes)
    build.store(operator.outputs[0], result, True, operator.options["fused_activation_function"])


def transposed(build: Builder, operator: Operator) -> None:
    """TRANSPOSE_CONV: output shape, weights [out, height, width, in], input, bias."""
    wanted, weights, pictures = operator.inputs[:3]
    kernel = _weight_shape(build, weights)[1:3]
    strides = _sizes(operator, "stride_h", "stride_w")
    sizes = build.tensor(pictures).shape[1:3]
    outside = _output_sizes(build, operator, wanted)
    begins, ends, more = [], [], []
    for size, target, reach, step in zip(sizes, outside, kernel, strides, strict=True):
        same = operator.options["padding"] == SAME
        if same and (size < 0 or target < 0):
            raise Refused("the sizes of its input or output are open")
        # The padding of the convolution that this one undoes.
        total = max((-(-target // step) - 1) * step + reach - target, 0) if same else 0
        left = target - ((size - 1) * step + reach - total) if size >= 0 and target >= 0 else 0
        if left >= step or left < 0:
            raise Refused(f"it makes {target} of {size} entries with a window of {reach} and steps of {step}")
        begins.append(total // 2)
        ends.append(total - total // 2)
        more.append(left)
    attributes: dict[str, Any] = {"kernel_shape": list(kernel), "strides": strides, "pads": [*begins, *ends]}
    if any(more):
        attributes["output_padding"] = more
    quantized = build.is_quantized(pictures)
    name = build.weights(weights, lambda values: values.transpose(3, 0, 1, 2), 1, quantized)
    inputs = [build.first(pictures), name, *_bias(build, operator, 3)]
    result = build.node("ConvTranspose", inputs, **attributes)
    build.store(operator.outputs[0], result, True, operator.options["fused_activation_function"])


def _output_sizes(build: Builder, operator: Operator, wanted: int) -> Sequence[int]:
    """Height and width of what a TRANSPOSE_CONV makes: asked for, or what the file says came out."""
    if build.is_constant(wanted):
        return build.numbers(wanted, "output shape")[1:3]
    return build.tensor(operator.outputs[0]).shape[1:3]


def _weight_shape(build: Builder, weights: int) -> tuple[int, ...]:
    shape = build.tensor(weights).shape
    if len(shape) != 4 or min(shape) < 1:
        raise Damaged(f"the weights of {build.base} have the shape {list(shape)}")
    return shape


def pool(kind: str) -> Convert:
    """The largest or the mean of a window; what is padded does not count."""

    def convert(build: Builder, operator: Operator) -> None:
        pictures = operator.inputs[0]
        kernel = _sizes(operator, "filter_height", "filter_width")
        result = build.node(kind, [build.first(pictures)], **_window(build, operator, kernel, (1, 1), pictures))
        fused = operator.options["fused_activation_function"]
        same = pictures if kind == "MaxPool" and not fused else None
        build.store(operator.outputs[0], result, True, fused, same)

    return convert


def fully_connected(build: Builder, operator: Operator) -> None:
    """Rows times weights [out, in], plus a bias."""
    rows, weights = operator.inputs[:2]
    if operator.options["weights_format"]:
        raise Refused("its weights are shuffled for one kind of processor")
    shape = build.tensor(weights).shape
    if len(shape) != 2 or min(shape) < 1:
        raise Damaged(f"the weights of {build.base} have the shape {list(shape)}")
    keeps = operator.options["keep_num_dims"]
    quantized = build.is_quantized(rows)
    name = build.plain(rows)
    if not keeps and (build.rank(rows) != 2 or build.tensor(rows).shape[1] != shape[1]):
        source = build.flattened.get(rows)
        name = build.plain(source) if source is not None else name
        name = build.node("Reshape", [name, build.integers("shape", [-1, shape[1]])])
    if build.is_constant(weights):
        columns = build.weights(weights, lambda values: values.T, 1, quantized)
    else:
        columns = build.node("Transpose", [build.plain(weights)], perm=(1, 0))
    result = build.node("MatMul", [name, columns])
    for bias in _bias(build, operator, 2):
        result = build.node("Add", [result, bias])
    build.store(operator.outputs[0], result, False, operator.options["fused_activation_function"])


def batch_matmul(build: Builder, operator: Operator) -> None:
    """The product of the last two axes, each side transposed before where asked for."""
    names = []
    quantized = build.is_quantized(operator.inputs[0])
    for number, option in zip(operator.inputs, ("adj_x", "adj_y"), strict=True):
        rank = build.rank(number)
        turned = operator.options[option]
        if turned and rank < 2:
            raise Refused("the number of its axes is not known")
        order = (*range(rank - 2), rank - 1, rank - 2) if turned else tuple(range(rank))
        if build.is_constant(number):
            scaled = build.tensor(number).quantization
            axis = order.index(scaled.axis) if scaled is not None and scaled.scale.size > 1 else 0
            names.append(build.weights(number, _transposing(order), axis, quantized))
        else:
            name = build.plain(number)
            names.append(build.node("Transpose", [name], perm=order) if turned else name)
    build.store(operator.outputs[0], build.node("MatMul", names))


def _transposing(order: Sequence[int]) -> Callable[[Array], Array]:
    def arrange(values: Array) -> Array:
        moved: Array = values.transpose(order)
        return moved

    return arrange


def resize(kind: str) -> Convert:
    """To a height and width, where pixels lie as the two options say."""

    def convert(build: Builder, operator: Operator) -> None:
        pictures, sizes = operator.inputs
        corners, half = operator.options["align_corners"], operator.options["half_pixel_centers"]
        place = "align_corners" if corners else "half_pixel" if half else "asymmetric"
        attributes = {"mode": kind, "coordinate_transformation_mode": place}
        if kind == "nearest":
            # Half of a pixel is rounded up (TfLiteRound); without the options, and with a shift by half, it is a floor.
            attributes["nearest_mode"] = "round_prefer_ceil" if corners or half else "floor"
        name = build.first(pictures)
        target = build.numbers(sizes, "size")
        if len(target) != 2 or min(target) < 1:
            raise Damaged(f"{operator.name} makes a picture of {target}")
        before, channels = build.tensor(pictures).shape[0], build.tensor(pictures).shape[3]
        if before > 0 and channels > 0:
            inputs = [name, "", "", build.integers("sizes", [before, channels, *target])]
        else:
            start = [build.integers(f"sizes/{what}", [at]) for what, at in (("from", 0), ("to", 2))]
            kept = build.node("Slice", [build.node("Shape", [name]), *start])
            inputs = [name, "", "", build.node("Concat", [kept, build.integers("sizes", target)], axis=0)]
        # With two sizes alike nothing moves, and entries stay what they are.
        same = pictures if kind == "nearest" else None
        build.store(operator.outputs[0], build.node("Resize", inputs, **attributes), True, 0, same)

    return convert


def local_response(build: Builder, operator: Operator) -> None:
    """x / (bias + alpha times the sum of squares of the channels around)^beta."""
    options = operator.options
    size = 2 * options["radius"] + 1
    if options["radius"] < 0:
        raise Damaged(f"{operator.name} has a radius of {options['radius']}")
    attributes = {"size": size, "alpha": options["alpha"] * size, "beta": options["beta"], "bias": options["bias"]}
    build.store(operator.outputs[0], build.node("LRN", [build.first(operator.inputs[0])], **attributes), True)


def lstm(build: Builder, operator: Operator) -> None:
    """UNIDIRECTIONAL_SEQUENCE_LSTM from a state of zeros, without projection or normalization inside."""
    given = [build.given(operator, position) for position in range(24)]
    options = operator.options
    if any(number is None for number in (*given[1:9], *given[12:16])):
        raise Refused("it has no input gate, or no biases")
    if any(number is not None for number in (*given[9:12], *given[16:18], *given[20:24])):
        raise Refused("it has peepholes, a projection or normalization inside")
    if options["fused_activation_function"] != 4 or options["diagonal_recurrent_tensors"]:
        raise Refused("it has another activation than tanh, or a diagonal recurrence")
    source = operator.inputs[0]
    if build.is_quantized(source):
        raise Refused("it computes in integers")
    if build.rank(source) != 3:
        raise Damaged(f"{operator.name} reads {build.rank(source)} axes")

    def gates(start: int) -> Array:
        values = [build.constant(number, "weights") for number in given[start : start + 4] if number is not None]
        stacked: Array = np.concatenate([values[gate] for gate in _LSTM_GATES])[None].astype(np.float32)
        return stacked

    inputs, recurrent, biases = gates(1), gates(5), gates(12)
    size = recurrent.shape[2]
    steps = build.tensor(source).shape[0 if options["time_major"] else 1]
    if options["cell_clip"] > 0 and not 0 <= steps <= options["cell_clip"]:
        build.notes[
            f"{build.base}: TFLite keeps the cells of this LSTM between ±{options['cell_clip']:g}, which ONNX cannot "
            "say; in the graph they are free"
        ] = None
    name = build.plain(source)
    name = name if options["time_major"] else build.node("Transpose", [name], perm=(1, 0, 2))
    constants = [
        build.initializer(f"{build.base}/{what}", values)
        for what, values in (("W", inputs), ("R", recurrent), ("B", np.concatenate([biases, 0 * biases], 1)))
    ]
    (result,) = build.split("LSTM", [name, *constants], 1, hidden_size=size)
    result = build.node("Squeeze", [result, build.integers("axes", [1])])
    if not options["time_major"]:
        result = build.node("Transpose", [result], perm=(1, 0, 2))
    build.store(operator.outputs[0], result)


CONVERSIONS: Mapping[str, Convert] = {
    "AVERAGE_POOL_2D": pool("AveragePool"),
    "BATCH_MATMUL": batch_matmul,
    "CONV_2D": convolution,
    "DEPTHWISE_CONV_2D": depthwise,
    "FULLY_CONNECTED": fully_connected,
    "LOCAL_RESPONSE_NORMALIZATION": local_response,
    "MAX_POOL_2D": pool("MaxPool"),
    "RESIZE_BILINEAR": resize("linear"),
    "RESIZE_NEAREST_NEIGHBOR": resize("nearest"),
    "TRANSPOSE_CONV": transposed,
    "UNIDIRECTIONAL_SEQUENCE_LSTM": lstm,
}
"""Operator → its conversion."""
