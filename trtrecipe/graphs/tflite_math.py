"""TFLite's operators that compute value by value, or over axes.

Each function adds the nodes of one operator. What an operator computes: tensorflow/lite/kernels at v2.21.0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from trtrecipe.graphs import fake_quant
from trtrecipe.graphs import tflite_schema as schema
from trtrecipe.graphs.tflite_builder import WHERE, Builder, Refused
from trtrecipe.graphs.tflite_file import Operator, Quantization

Convert = Callable[[Builder, Operator], None]


def elementwise(kind: str, **attributes: Any) -> Convert:
    """One ONNX operator on all inputs, which are broadcast to each other."""

    def convert(build: Builder, operator: Operator) -> None:
        names, first = build.together(operator.inputs)
        result = build.node(kind, names, **attributes)
        build.store(operator.outputs[0], result, first, operator.options.get("fused_activation_function", 0))

    return convert


def composed(make: Callable[[Builder, list[str]], str]) -> Convert:
    """Several nodes in the place of one operator."""

    def convert(build: Builder, operator: Operator) -> None:
        names, first = build.together(operator.inputs)
        build.store(operator.outputs[0], make(build, names), first)

    return convert


def _relu6(build: Builder, names: list[str]) -> str:
    return build.clip(names[0], 0.0, 6.0)


def _relu_n1(build: Builder, names: list[str]) -> str:
    return build.clip(names[0], -1.0, 1.0)


def _relu_1(build: Builder, names: list[str]) -> str:
    return build.clip(names[0], 0.0, 1.0)


def _hard_swish(build: Builder, names: list[str]) -> str:
    gate = build.node("HardSigmoid", names, alpha=float(np.float32(1 / 6)), beta=0.5)  # HardSwish came with opset 14
    return build.node("Mul", [names[0], gate])


def _square(build: Builder, names: list[str]) -> str:
    return build.node("Mul", [names[0], names[0]])


def _squared_difference(build: Builder, names: list[str]) -> str:
    return _square(build, [build.node("Sub", names)])


def _rsqrt(build: Builder, names: list[str]) -> str:
    return build.node("Reciprocal", [build.node("Sqrt", names)])


def _not_equal(build: Builder, names: list[str]) -> str:
    return build.node("Not", [build.node("Equal", names)])


def zeros_like(build: Builder, operator: Operator) -> None:
    """Zeros in the input's shape."""
    shape = build.node("Shape", [build.plain(operator.inputs[0])])
    value = helper.make_tensor("", schema.ONNX[build.tensor(operator.outputs[0]).kind], [1], [0])
    build.store(operator.outputs[0], build.node("ConstantOfShape", [shape], value=value))


def gelu(build: Builder, operator: Operator) -> None:
    """x / 2 (1 + erf(x / sqrt 2)), or its approximation by tanh; ONNX has Gelu from opset 20 on."""
    (name,), first = build.together(operator.inputs)
    if operator.options["approximate"]:
        cube = build.node("Mul", [build.node("Mul", [name, name]), name])
        scaled = build.node("Mul", [cube, build.floats("cubic", 0.044715)])
        inner = build.node("Mul", [build.node("Add", [name, scaled]), build.floats("scale", np.sqrt(2 / np.pi))])
        curve = build.node("Tanh", [inner])
    else:
        curve = build.node("Erf", [build.node("Mul", [name, build.floats("scale", np.sqrt(0.5))])])
    half = build.node("Mul", [name, build.floats("half", 0.5)])
    result = build.node("Mul", [half, build.node("Add", [curve, build.floats("one", 1.0)])])
    build.store(operator.outputs[0], result, first)


def leaky_relu(build: Builder, operator: Operator) -> None:
    """x, or alpha x below 0."""
    names, first = build.together(operator.inputs)
    build.store(operator.outputs[0], build.node("LeakyRelu", names, alpha=operator.options["alpha"]), first)


def floor_div(build: Builder, operator: Operator) -> None:
    """Of floats: the quotient rounded down."""
    if build.tensor(operator.outputs[0]).kind != "FLOAT32":
        raise Refused("it divides integers, which ONNX rounds towards 0")
    names, first = build.together(operator.inputs)
    build.store(operator.outputs[0], build.node("Floor", [build.node("Div", names)]), first)


def floor_mod(build: Builder, operator: Operator) -> None:
    """The rest with the sign of the divisor."""
    names, first = build.together(operator.inputs)
    if build.tensor(operator.outputs[0]).kind != "FLOAT32":
        build.store(operator.outputs[0], build.node("Mod", names), first)
        return
    whole = build.node("Floor", [build.node("Div", names)])
    build.store(operator.outputs[0], build.node("Sub", [names[0], build.node("Mul", [whole, names[1]])]), first)


def add_n(build: Builder, operator: Operator) -> None:
    """The sum of any number of tensors."""
    names, first = build.together(operator.inputs)
    build.store(operator.outputs[0], build.node("Sum", names), first)


def select(build: Builder, operator: Operator) -> None:
    """Entries of the second input where the first is true, else of the third."""
    condition, one, _ = operator.inputs
    if operator.name == "SELECT" and build.rank(condition) != build.rank(one):
        raise Refused("its condition has another number of axes than its values")
    names, first = build.together(operator.inputs)
    build.store(operator.outputs[0], build.node("Where", names), first)


def cast(build: Builder, operator: Operator) -> None:
    """Another type."""
    source, result = operator.inputs[0], operator.outputs[0]
    if build.grid(source) is not None or build.grid(result) is not None:
        raise Refused("it takes the integers of a quantized tensor as they are")
    kind = build.tensor(result).kind
    if kind not in schema.ONNX:
        raise Refused(f"it makes {kind}")
    names, first = build.together([source])
    build.store(result, build.node("Cast", names, to=schema.ONNX[kind]), first)


def _axes(build: Builder, operator: Operator, rank: int) -> list[int]:
    axes = build.numbers(operator.inputs[1], "axes")
    if any(not -rank <= axis < rank for axis in axes):
        raise Refused(f"its axes are {axes}, and its input has {rank}")
    return sorted({axis % rank for axis in axes})


def reduce(kind: str) -> Convert:
    """Over the axes of the second input."""

    def convert(build: Builder, operator: Operator) -> None:
        source, keep = operator.inputs[0], bool(operator.options["keep_dims"])
        rank = build.rank(source)
        axes = _axes(build, operator, rank)
        # Without the reduced axes the others must stand in the file's order.
        left = [WHERE[axis] for axis in range(4) if axis not in axes]
        first = not build.is_constant(source) and build.is_first(source) and (keep or left == sorted(left))
        if first:
            axes = sorted(WHERE[axis] for axis in axes)
        name = build.first(source) if first else build.plain(source)
        if not axes:
            build.store(operator.outputs[0], build.node("Identity", [name]), first)
        elif kind == "ReduceSum":
            result = build.node(kind, [name, build.integers("axes", axes)], keepdims=int(keep))
            build.store(operator.outputs[0], result, first and keep)
        else:
            build.store(operator.outputs[0], build.node(kind, [name], axes=axes, keepdims=int(keep)), first and keep)

    return convert


def arg(kind: str) -> Convert:
    """The index of the largest or least entry, of equal ones the first."""

    def convert(build: Builder, operator: Operator) -> None:
        (axis,) = build.numbers(operator.inputs[1], "axis")
        found = build.node(kind, [build.plain(operator.inputs[0])], axis=axis, keepdims=0)
        if build.tensor(operator.outputs[0]).kind == "INT32":
            found = build.node("Cast", [found], to=TensorProto.INT32)
        build.store(operator.outputs[0], found)

    return convert


def softmax(build: Builder, operator: Operator) -> None:
    """Over the last axis, of the input times beta."""
    names, first = build.together(operator.inputs)
    if operator.name == "SOFTMAX" and operator.options["beta"] != 1:
        names = [build.node("Mul", [names[0], build.floats("beta", operator.options["beta"])])]
    kind = "Softmax" if operator.name == "SOFTMAX" else "LogSoftmax"
    build.store(operator.outputs[0], build.node(kind, names, axis=1 if first else -1), first)


def l2_normalization(build: Builder, operator: Operator) -> None:
    """x / max(|x|, 1e-6) along the last axis."""
    (name,), first = build.together(operator.inputs)
    length = build.node("ReduceL2", [name], axes=[1 if first else -1], keepdims=1)
    length = build.node("Max", [length, build.floats("least", 1e-6)])
    result = build.node("Div", [name, length])
    build.store(operator.outputs[0], result, first, operator.options["fused_activation_function"])


def cumsum(build: Builder, operator: Operator) -> None:
    """Running sums along an axis."""
    (axis,) = build.numbers(operator.inputs[1], "axis")
    inputs = [build.plain(operator.inputs[0]), build.initializer(f"{build.base}/axis", np.array(axis, np.int64))]
    attributes = {key: operator.options[key] for key in ("exclusive", "reverse")}
    build.store(operator.outputs[0], build.node("CumSum", inputs, **attributes))


def top_k(build: Builder, operator: Operator) -> None:
    """The largest entries of the last axis and their indices."""
    (count,) = build.numbers(operator.inputs[1], "k")
    inputs = [build.plain(operator.inputs[0]), build.integers("k", [count])]
    values, indices = build.split("TopK", inputs, 2, axis=-1, largest=1, sorted=1)
    build.store(operator.outputs[0], values, same=operator.inputs[0])
    if build.tensor(operator.outputs[1]).kind == "INT32":
        indices = build.node("Cast", [indices], to=TensorProto.INT32)
    build.store(operator.outputs[1], indices)


def quantize(build: Builder, operator: Operator) -> None:
    """To integers, or from one scale to another."""
    source, result = operator.inputs[0], operator.outputs[0]
    if build.tensor(result).kind not in schema.ONNX or build.grid(result) is None:
        raise Refused(f"it makes {build.tensor(result).kind} with a scale; only 8 bits are supported")
    if build.equal_grids(source, result):
        build.alias(source, result)
        return
    first = not build.is_constant(source) and build.is_first(source)
    build.store(result, build.first(source) if first else build.plain(source), first)


def dequantize(build: Builder, operator: Operator) -> None:
    """From integers: what they stand for is what the graph has of them anyway."""
    source = operator.inputs[0]
    if not build.is_constant(source) and build.grid(source) is None:
        raise Refused(f"it reads {build.tensor(source).kind} without a scale")
    build.note_stored(source)
    build.alias(source, operator.outputs[0])


def fake_quantize(build: Builder, operator: Operator) -> None:
    """What quantization-aware training leaves behind in a float model."""
    options = operator.options
    if options["num_bits"] != 8 or options["narrow_range"]:
        raise Refused(f"it has {options['num_bits']} bits{' and a narrow range' if options['narrow_range'] else ''}")
    low, high = np.float32(options["min"]), np.float32(options["max"])
    if not (low < high and np.isfinite(high - low)):
        raise Refused(f"its range is {low:g} to {high:g}")
    scale, zero = fake_quant.nudge(np.array(low), np.array(high), False)
    names, first = build.together(operator.inputs)
    grid = Quantization(scale.reshape(1), zero.astype(np.int64).reshape(1), 0)
    build.store(operator.outputs[0], build.pair(names[0], "UINT8", grid), first)


CONVERSIONS: Mapping[str, Convert] = {
    "ABS": elementwise("Abs"),
    "ADD": elementwise("Add"),
    "ADD_N": add_n,
    "ARG_MAX": arg("ArgMax"),
    "ARG_MIN": arg("ArgMin"),
    "CAST": cast,
    "CEIL": elementwise("Ceil"),
    "COS": elementwise("Cos"),
    "CUMSUM": cumsum,
    "DEQUANTIZE": dequantize,
    "DIV": elementwise("Div"),
    "ELU": elementwise("Elu"),
    "EQUAL": elementwise("Equal"),
    "EXP": elementwise("Exp"),
    "FAKE_QUANT": fake_quantize,
    "FLOOR": elementwise("Floor"),
    "FLOOR_DIV": floor_div,
    "FLOOR_MOD": floor_mod,
    "GELU": gelu,
    "GREATER": elementwise("Greater"),
    "GREATER_EQUAL": elementwise("GreaterOrEqual"),
    "HARD_SWISH": composed(_hard_swish),
    "L2_NORMALIZATION": l2_normalization,
    "LEAKY_RELU": leaky_relu,
    "LESS": elementwise("Less"),
    "LESS_EQUAL": elementwise("LessOrEqual"),
    "LOG": elementwise("Log"),
    "LOGICAL_AND": elementwise("And"),
    "LOGICAL_NOT": elementwise("Not"),
    "LOGICAL_OR": elementwise("Or"),
    "LOGISTIC": elementwise("Sigmoid"),
    "LOG_SOFTMAX": softmax,
    "MAXIMUM": elementwise("Max"),
    "MEAN": reduce("ReduceMean"),
    "MINIMUM": elementwise("Min"),
    "MUL": elementwise("Mul"),
    "NEG": elementwise("Neg"),
    "NOT_EQUAL": composed(_not_equal),
    "POW": elementwise("Pow"),
    "PRELU": elementwise("PRelu"),
    "QUANTIZE": quantize,
    "REDUCE_MAX": reduce("ReduceMax"),
    "REDUCE_MIN": reduce("ReduceMin"),
    "REDUCE_PROD": reduce("ReduceProd"),
    "RELU": elementwise("Relu"),
    "RELU6": composed(_relu6),
    "RELU_0_TO_1": composed(_relu_1),
    "RELU_N1_TO_1": composed(_relu_n1),
    "ROUND": elementwise("Round"),
    "RSQRT": composed(_rsqrt),
    "SELECT": select,
    "SELECT_V2": select,
    "SIGN": elementwise("Sign"),
    "SIN": elementwise("Sin"),
    "SOFTMAX": softmax,
    "SQRT": elementwise("Sqrt"),
    "SQUARE": composed(_square),
    "SQUARED_DIFFERENCE": composed(_squared_difference),
    "SUB": elementwise("Sub"),
    "SUM": reduce("ReduceSum"),
    "TANH": elementwise("Tanh"),
    "TOPK_V2": top_k,
    "ZEROS_LIKE": zeros_like,
}
"""Operator → its conversion."""
