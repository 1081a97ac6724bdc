"""TensorFlow's FakeQuant operators → Q/DQ with the same values.

tf2onnx has a conversion of two of the three only, without narrow ranges, and computes the scale in other steps. The
arithmetic here is that of TensorFlow's kernels (tensorflow/core/kernels/fake_quant_ops_functor.h at v2.21.0, Nudge),
done in float32 as there. What differs: halfway between two integers TensorFlow rounds up, QuantizeLinear to the even
one, and TensorFlow multiplies by the inverse of the scale where QuantizeLinear divides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from trtrecipe.errors import StepError
from trtrecipe.graphs.names import cleaned
from trtrecipe.graphs.sound import listed

ARGS, VARS, PER_CHANNEL = (
    "FakeQuantWithMinMaxArgs",
    "FakeQuantWithMinMaxVars",
    "FakeQuantWithMinMaxVarsPerChannel",
)
OPERATORS = (ARGS, VARS, PER_CHANNEL)

_EMPTY_SCALE = np.float32(2.0**100)
"""For a channel with min = max = 0, all of which TensorFlow makes 0: whatever is divided by this rounds to 0."""

_MIDDLE = 128
"""The zero point of such a channel: what is symmetric stays so."""
_FLOAT = 1  # DT_FLOAT in TensorFlow's types.proto; FakeQuant takes nothing else

Array = npt.NDArray[Any]


def nudge(least: Array, most: Array, narrow: bool) -> tuple[Array, Array]:
    """Ranges (float32) → scales (float32) and zero points (uint8) of the integers from 0, or 1 if `narrow`, to 255.

    The range is moved so that 0 is one of its values, as training saw it.
    """
    low, high = np.float32(1 if narrow else 0), np.float32(255)
    empty = (least == 0) & (most == 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = np.where(empty, _EMPTY_SCALE, (most - least) / (high - low)).astype(np.float32)
        exact = low - least / scale
    # Half away from zero, as std::round; all of it is positive once it is clipped.
    zero = np.floor(np.clip(exact, low, high).astype(np.float64) + 0.5)
    return scale, np.where(empty, _MIDDLE, zero).astype(np.uint8)


def require_expressible(definition: Any) -> None:
    """Refuse FakeQuant nodes of a TensorFlow graph, functions included, that no Q/DQ of 8 bits is equal to.

    `definition` is frozen and folded, so that ranges which do not depend on the inputs are constants. Raises StepError
    that names every such node.
    """
    problems = [
        f"{node.op} {cleaned(node.name)}: {reason}"
        for nodes in (definition.node, *(function.node_def for function in definition.library.function))
        for node, reason in _problems(nodes)
    ]
    if problems:
        raise StepError(
            "these FakeQuant nodes cannot be written in ONNX's 8 bit form:\n" + listed(problems),
            hint="train with num_bits=8 and ranges that are fixed after training, or give the float model",
        )


def _problems(nodes: Any) -> Iterator[tuple[Any, str]]:
    known = {node.name: node for node in nodes}
    for node in nodes:
        if node.op not in OPERATORS:
            continue
        bits = node.attr["num_bits"].i if "num_bits" in node.attr else 8
        if bits != 8:
            yield node, f"num_bits is {bits}, and only 8 bits become INT8"
            continue
        ranges = _ranges(node, known)
        if ranges is None:
            yield node, "its range is computed from the model's inputs"
            continue
        least, most = ranges
        per_channel = least.size > 1 or node.op == PER_CHANNEL
        with np.errstate(over="ignore", invalid="ignore"):
            fits = np.isfinite(most - least) & ((least < most) | ((least == 0) & (most == 0) & per_channel))
        if not fits.all():
            low, high = (np.ravel(bound)[int(np.argmin(fits))] for bound in (least, most))
            yield node, f"its range is {low:g} to {high:g}; it was never trained, it seems"


def _ranges(node: Any, known: dict[str, Any]) -> tuple[Array, Array] | None:
    """min and max as float32, None where they are no constants."""
    import tensorflow as tf

    if node.op == ARGS:
        least = node.attr["min"].f if "min" in node.attr else -6.0
        most = node.attr["max"].f if "max" in node.attr else 6.0
        return np.array(least, np.float32), np.array(most, np.float32)
    found = []
    for name in node.input[1:3]:
        source = known.get(name.split(":")[0])
        while source is not None and source.op == "Identity":
            source = known.get(source.input[0].split(":")[0])
        if source is None or source.op != "Const":
            return None
        found.append(tf.make_ndarray(source.attr["value"].tensor).astype(np.float32))
    return found[0], found[1]


def keep_from_folding(definition: Any) -> None:
    """Put a node that tf2onnx does not compute in front of every FakeQuant of a TensorFlow graph, in place.

    It would compute FakeQuant of weights, and the scales would be lost. It leaves out nodes with two outputs.
    """
    for nodes, in_function in (
        (definition.node, False),
        *((function.node_def, True) for function in definition.library.function),
    ):
        for node in [node for node in nodes if node.op in OPERATORS]:
            guard = nodes.add(name=f"{node.name}/unfolded", op="IdentityN", input=[node.input[0]] * 2)
            guard.attr["T"].list.type.extend([_FLOAT] * 2)
            node.input[0] = f"{guard.name}:output:0" if in_function else guard.name


def handlers() -> dict[str, tuple[Callable[..., None], list[str]]]:
    """What tf2onnx's process_tf_graph takes as custom_op_handlers."""
    return dict.fromkeys(OPERATORS, (_convert, []))


def _convert(context: Any, node: Any, name: str, arguments: Any) -> None:
    """Replace the node in tf2onnx's graph by QuantizeLinear, Clip where the range is narrow, and DequantizeLinear."""
    from onnx import TensorProto
    from tf2onnx.utils import make_name

    narrow = bool(node.get_attr_value("narrow_range", 0))
    if node.type == ARGS:
        least, most = (np.array(node.get_attr_value(bound), np.float32) for bound in ("min", "max"))
    else:
        least, most = (each.get_tensor_value(as_list=False).astype(np.float32) for each in node.inputs[1:3])
    scale, zero = nudge(least, most, narrow)
    source, result = node.input[0], node.output[0]
    shape, kind = context.get_shape(result), context.get_dtype(result)
    attributes = {}
    if node.type == PER_CHANNEL:
        rank = len(context.get_shape(source))
        attributes["axis"] = rank - 1
    scales, zeros, first, final = (
        context.make_const(make_name(name), value).output[0]
        for value in (scale, zero, np.array(1, np.uint8), np.array(255, np.uint8))
    )
    context.remove_node(name)
    last = context.make_node(
        "QuantizeLinear",
        [source, scales, zeros],
        name=make_name(name),
        attr=attributes,
        shapes=[shape],
        dtypes=[TensorProto.UINT8],
    )
    if narrow:
        last = context.make_node(
            "Clip",
            [last.output[0], first, final],
            name=make_name(name),
            shapes=[shape],
            dtypes=[TensorProto.UINT8],
        )
    last = context.make_node(
        "DequantizeLinear",
        [last.output[0], scales, zeros],
        outputs=[make_name(name)],
        name=name,
        attr=attributes,
        shapes=[shape],
        dtypes=[kind],
    )
    # tf2onnx takes a DequantizeLinear in front of a Conv for one kind of pair, and rewrites the weights behind it.
    context.make_node(
        "Identity", [last.output[0]], outputs=[result], name=make_name(name), shapes=[shape], dtypes=[kind]
    )
