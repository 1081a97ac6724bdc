"""What TensorFlow or tf2onnx leave undone or get wrong about a model, each put right in one place.

Every repair keeps what the model computes; one that cannot is a StepError.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from onnx import ModelProto, helper

from trtrecipe.errors import StepError
from trtrecipe.graphs.edit import all_nodes, attribute, reset
from trtrecipe.graphs.names import cleaned

_LOGGER = "tf2onnx.optimizer"
_NOT_COMPUTED = re.compile(
    "Placeholder.*|(Ref)?(Enter|Exit|Switch|Merge|NextIteration)|LoopCond|(Stateless)?(While|If|Case)|.*Call.*|FakeQuant.*"
)
"""Operators whose results are no constants of the graph, or are not to become some."""
_FLOAT, _BFLOAT16 = 1, 14  # TensorFlow's types.proto
_CONVOLUTIONS = ("Conv2D", "Conv3D", "DepthwiseConv2dNative", "MatMul")


def let_inline(definition: Any) -> None:
    """Take away, in place, what would keep function calls from being replaced by the functions' bodies.

    Keras marks a grouped convolution for XLA; on the CPU that mark changes nothing but this. Loops and conditions stay
    functions, since tf2onnx has forms for these, but none for the jumps that they would be lowered to.
    """
    functions = definition.library.function
    for nodes in (definition.node, *(function.node_def for function in functions)):
        for node in nodes:
            node.attr.pop("_XlaMustCompile", None)
            if "_lower_using_switch_merge" in node.attr:
                node.attr["_lower_using_switch_merge"].b = False
    for function in functions:
        function.attr.pop("_XlaMustCompile", None)
        function.attr.pop("api_implements", None)  # else a variant for another device may be chosen


def compute_factors(definition: Any) -> None:
    """Make constants, in place, of what convolutions are multiplied by, where it depends on no input.

    TensorFlow's constant folding computes such a factor too and moves it into the convolution; but where it did not
    foresee the factor's shape (that of tf.linspace is one) it aborts the process. ConstantFolding::MulConvPushDown in
    tensorflow/core/grappler/optimizers/constant_folding.cc at v2.21.0.
    """
    import tensorflow as tf

    nodes = {node.name: node for node in definition.node}
    unsettled = [name for name in _factors(nodes) if nodes[name].op != "Const"]
    if not unsettled:
        return
    part = tf.compat.v1.graph_util.extract_sub_graph(definition, unsettled)
    with tf.Graph().as_default() as graph, tf.compat.v1.Session() as session:
        tf.import_graph_def(part, name="")
        operations = [graph.get_operation_by_name(name) for name in unsettled]
        tensors = [operation.outputs[0] for operation in operations if len(operation.outputs) == 1]
        for tensor, value in zip(tensors, session.run(tensors), strict=True):
            node = nodes[tensor.op.name]
            reset(node.input, [])
            node.op = "Const"
            node.attr.clear()
            node.attr["dtype"].type = tensor.dtype.as_datatype_enum
            node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value))


def _factors(nodes: Mapping[str, Any]) -> list[str]:
    """Nodes that depend on no input, and that a multiplication reads beside a convolution that does."""
    from tensorflow.python.framework import op_def_registry

    readers: dict[str, list[str]] = {}
    for node in nodes.values():
        for entry in node.input:
            readers.setdefault(entry.removeprefix("^").partition(":")[0], []).append(node.name)
    kinds = {node.op: op_def_registry.get(node.op) for node in nodes.values()}
    varying: set[str] = set()
    waiting = [
        node.name
        for node in nodes.values()
        if kinds[node.op] is None or kinds[node.op].is_stateful or _NOT_COMPUTED.fullmatch(node.op)
    ]
    while waiting:
        name = waiting.pop()
        if name not in varying:
            varying.add(name)
            waiting += readers.get(name, ())
    factors: dict[str, None] = {}
    for node in nodes.values():
        sources = [entry.partition(":")[0] for entry in node.input[:2]]
        if node.op == "Mul" and any(source in varying and nodes[source].op in _CONVOLUTIONS for source in sources):
            factors |= dict.fromkeys(source for source in sources if source not in varying)
    return list(factors)


def expand_functions(definition: Any, operators: Collection[str]) -> None:
    """Write in place those of `operators` that ONNX has none for: Erfc(x), of the exact GELU, as 1 - Erf(x), Expm1(x)
    as Exp(x) - 1, Log1p(x) as Log(1 + x)."""
    _expand_functions(definition.node, operators, False)
    for function in definition.library.function:
        # A function's tensors are called node:output:position, and the outputs of Erfc and Sub differ in name.
        renamed = {f"{name}:y:0": f"{name}:z:0" for name in _expand_functions(function.node_def, operators, True)}
        for node in function.node_def:
            reset(node.input, [renamed.get(name, name) for name in node.input])
        for result, name in list(function.ret.items()):
            function.ret[result] = renamed.get(name, name)


_EXPANDED = {"Erfc": ("Erf", "y"), "Expm1": ("Exp", "y"), "Log1p": ("AddV2", "z")}
"""Operator → the one inside of what it is written as, and what that calls its output."""


def _expand_functions(nodes: Any, operators: Collection[str], in_function: bool) -> list[str]:
    """Names of the nodes that are Sub now. References in a function say which output they mean."""
    import tensorflow as tf

    subtractions = []
    for node in [node for node in nodes if node.op in operators]:
        kind, (operator, output) = node.attr["T"], _EXPANDED[node.op]
        one = nodes.add(name=f"{node.name}/one", op="Const")
        one.attr["dtype"].CopyFrom(kind)
        one.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(1, dtype=kind.type))
        inner = nodes.add(name=f"{node.name}/{operator}", op=operator, input=node.input)
        inner.attr["T"].CopyFrom(kind)
        first, second = (f"{one.name}:output:0", f"{inner.name}:{output}:0") if in_function else (one.name, inner.name)
        if node.op == "Log1p":
            inner.input.append(first)
            node.op = "Log"
            reset(node.input, [second])
            continue
        reset(node.input, [first, second] if node.op == "Erfc" else [second, first])
        node.op = "Sub"
        subtractions.append(node.name)
    return subtractions


def read_before_gathering(definition: Any) -> None:
    """Let functions read a variable first and gather from its value then, in place.

    TensorFlow's convert_variables_to_constants makes a constant of the variable and leaves a ResourceGather inside a
    function as it is (_ResourceGather in tensorflow/python/framework/convert_to_constants.py at v2.21.0).
    """
    for function in definition.library.function:
        for node in [node for node in function.node_def if node.op in ("ResourceGather", "ResourceGatherNd")]:
            _read_before_gathering(function.node_def, node)


def _read_before_gathering(nodes: Any, node: Any) -> None:
    import tensorflow as tf

    kind, indices, axis = node.attr["dtype"].type, node.attr["Tindices"].type, node.attr["batch_dims"].i
    read = nodes.add(name=f"{node.name}/read", op="ReadVariableOp", input=[node.input[0]])
    read.attr["dtype"].type = kind
    given = [f"{read.name}:value:0", node.input[1]]
    controls = [entry for entry in node.input if entry.startswith("^")]
    node.attr.clear()
    node.attr["Tparams"].type, node.attr["Tindices"].type = kind, indices
    if node.op == "ResourceGather":
        along = nodes.add(name=f"{node.name}/axis", op="Const")
        along.attr["dtype"].type = tf.int32.as_datatype_enum
        along.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(axis, dtype=tf.int32))
        given.append(f"{along.name}:output:0")
        node.attr["batch_dims"].i, node.attr["Taxis"].type = axis, tf.int32.as_datatype_enum
    node.op = {"ResourceGather": "GatherV2", "ResourceGatherNd": "GatherNd"}[node.op]
    reset(node.input, [*given, *controls])


def widen(definition: Any) -> bool:
    """Make FP32 of bfloat16 in place, in functions too; whether there was any.

    tf2onnx makes FP16 of some of it, which overflows at 65,504, and leaves the rest as it is.
    """
    functions = definition.library.function
    found = False
    for nodes in (definition.node, *(function.node_def for function in functions)):
        for node in nodes:
            for value in node.attr.values():
                found = _widen(value) or found
    for function in functions:
        for argument in (*function.signature.input_arg, *function.signature.output_arg):
            if argument.type == _BFLOAT16:
                argument.type, found = _FLOAT, True
    return found


def _widen(value: Any) -> bool:
    """The same for the value of an attribute."""
    import tensorflow as tf

    inner = [each for function in (value.func, *value.list.func) for each in function.attr.values()]
    found = sum(map(_widen, inner)) > 0  # all of them, not up to the first
    if value.type == _BFLOAT16:
        value.type, found = _FLOAT, True
    if _BFLOAT16 in value.list.type:
        reset(value.list.type, [_FLOAT if kind == _BFLOAT16 else kind for kind in value.list.type])
        found = True
    for tensor in (value.tensor, *value.list.tensor):
        if tensor.dtype == _BFLOAT16:
            tensor.CopyFrom(tf.make_tensor_proto(tf.make_ndarray(tensor).astype("float32")))
            found = True
    return found


def fit_scales(graph: Any) -> None:
    """Make the scales of each Resize of tf2onnx's `graph` reach the size that they stand for, in place, in bodies too.

    tf2onnx divides the sizes and rounds to FP32: 7 / 5 becomes a little less than 1.4, and five times that 6 pixels.
    """
    for node in list(graph.get_nodes()):
        for inner in (node.get_body_graphs() or {}).values():
            fit_scales(inner)
        if node.type != "Resize" or len(node.input) < 3 or not node.inputs[2].is_const():
            continue
        shape, scales = graph.get_shape(node.input[0]), node.inputs[2].get_tensor_value(as_list=False)
        if shape and len(scales) == len(shape):
            fitted = [_fitted(scale, size) for scale, size in zip(scales, shape, strict=True)]
            constant = graph.make_const(f"{node.name}/scales", np.array(fitted, np.float32))
            graph.replace_input(node, node.input[2], constant.output[0], 2)


def _fitted(scale: Any, size: int) -> Any:
    """The scale, or the next above it where that is what reaches a whole number of pixels."""
    above = np.nextafter(scale, np.float32(np.inf))
    reached, wanted = math.floor(float(scale) * size), math.floor(float(above) * size)
    return above if size > 0 and wanted > reached else scale


def give_scalars_an_axis(graph: Any) -> None:
    """Make [1] of the scalar constants that tf2onnx's `graph` adds to tensors with axes, in place, bodies included.

    Its optimizer of Transposes looks for the longest axis of what is added to a convolution, fails where there is none,
    and then leaves every Transpose of the graph in place.
    """
    for node in list(graph.get_nodes()):
        for inner in (node.get_body_graphs() or {}).values():
            give_scalars_an_axis(inner)
        if node.type != "Add":
            continue
        for constant, other in ((0, 1), (1, 0)):
            source = node.inputs[constant]
            if not source.is_const() or not graph.get_shape(node.input[other]):  # none known, or no axis there either
                continue
            value = source.get_tensor_value(as_list=False)
            if value.shape == ():
                vector = graph.make_const(f"{node.name}/scalar_{constant}", value.reshape(1))
                graph.replace_input(node, node.input[constant], vector.output[0], constant)


class _Failures(logging.Handler):
    """Keeps what tf2onnx says about optimizers that failed."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.notes: dict[str, None] = {}

    def emit(self, record: logging.LogRecord) -> None:
        if not record.getMessage().startswith("Failed"):
            return
        error = record.exc_info[1] if record.exc_info else None
        words = " ".join(str(error).split())[:200]
        reason = f" ({type(error).__name__}: {words})" if error else ""
        what = record.getMessage().removeprefix("Failed ").removeprefix("to apply ")
        self.notes[f"a step of tf2onnx's simplification failed and was left out: {what}{reason}"] = None


@contextmanager
def failures_noted() -> Iterator[list[str]]:
    """A list that holds, after the block, a sentence on each optimizer of tf2onnx that failed inside it.

    tf2onnx itself logs such a failure and goes on without.
    """
    logger, handler = logging.getLogger(_LOGGER), _Failures()
    level, propagate = logger.level, logger.propagate
    notes: list[str] = []
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    try:
        yield notes
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate
        notes.extend(handler.notes)


def round_to_nearest(model: ModelProto) -> None:
    """Write tf_half_pixel_for_nn, which ONNX took back with opset 13, as half_pixel, in place.

    floor((x + 0.5) * scale), which is TensorFlow's nearest neighbour, is (x + 0.5) * scale - 0.5 rounded half up.
    """
    for node in all_nodes(model.graph):
        if node.op_type == "Resize" and attribute(node, "coordinate_transformation_mode") == b"tf_half_pixel_for_nn":
            names = ("coordinate_transformation_mode", "nearest_mode")
            kept = [each for each in node.attribute if each.name not in names]
            values = zip(names, ("half_pixel", "round_prefer_ceil"), strict=True)
            reset(node.attribute, [*kept, *(helper.make_attribute(name, value) for name, value in values)])


def pad_transposed_convolutions(model: ModelProto) -> None:
    """Write the negative padding that tf2onnx gives a ConvTranspose as output_padding, in place.

    TensorFlow appends what the output is larger than the convolution at the end of an axis; tf2onnx spreads it over
    both. Raises StepError where it is as much as the stride, which no TensorFlow layer asks for.
    """
    for node in all_nodes(model.graph):
        pads = list(attribute(node, "pads", ())) if node.op_type == "ConvTranspose" else []
        if min(pads, default=0) >= 0:
            continue
        half = len(pads) // 2
        strides = attribute(node, "strides", [1] * half)
        totals = [begin + end for begin, end in zip(pads[:half], pads[half:], strict=True)]
        if attribute(node, "output_padding") or any(
            -total >= step for total, step in zip(totals, strides, strict=True)
        ):
            raise StepError(
                f"the transposed convolution {cleaned(node.name)} has an output larger than ONNX can express: tf2onnx "
                f"makes its padding {pads} at strides {list(strides)}",
                hint="change the layer's output_padding or output_shape in the TensorFlow model",
            )
        fitted = [
            (begin, end, 0) if begin + end >= 0 else (0, 0, -begin - end)
            for begin, end in zip(pads[:half], pads[half:], strict=True)
        ]
        kept = [each for each in node.attribute if each.name not in ("pads", "output_padding")]
        begins, ends, beyond = zip(*fitted, strict=True)
        kept.append(helper.make_attribute("pads", [*begins, *ends]))
        kept.append(helper.make_attribute("output_padding", beyond))
        reset(node.attribute, kept)
