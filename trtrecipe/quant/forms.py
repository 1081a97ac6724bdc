"""The forms of quantization that a graph has: what decides whether a release of TensorRT takes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, numpy_helper, shape_inference

from trtrecipe.errors import StepError
from trtrecipe.graphs.carried import DEQUANTIZE, INTEGER_OPERATORS, QUANTIZE, is_pair_node
from trtrecipe.graphs.edit import DEFAULT_DOMAINS, all_graphs
from trtrecipe.graphs.files import opset
from trtrecipe.quant.overview import Overview, overview

_TYPES: dict[int, str] = {
    TensorProto.INT8: "int8",
    TensorProto.UINT8: "uint8",
    TensorProto.INT16: "int16",
    TensorProto.UINT16: "int16",
    TensorProto.INT32: "int32",
    TensorProto.INT4: "int4",
    TensorProto.FLOAT8E4M3FN: "fp8",
    TensorProto.FLOAT4E2M1: "fp4",
    TensorProto.UNDEFINED: "unknown-type",
}
_SMALL = ("int4", "fp8", "fp4")  # the types whose scales may come in blocks
_HALF = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
_OUTPUT_CHANNELS = {"Conv": 0, "ConvTranspose": 1}
_BIASES = {"Conv": "bias", "ConvTranspose": "bias", "Gemm": "bias-gemm"}
_FIRST_AXIS = 13


@dataclass(frozen=True)
class Quantization:
    """How a graph is quantized.

    `pairs` counts the DequantizeLinear that read a QuantizeLinear, `per_channel` the DequantizeLinear with more than
    one scale; `forms`: name of a form (those of targets/data/qdq.json) → names of the nodes that have it, in the order
    of the graph.
    """

    quantize: int
    dequantize: int
    pairs: int
    per_channel: int
    forms: Mapping[str, tuple[str, ...]]


def quantization(model: ModelProto) -> Quantization:
    """What quantization `model` carries; all counts are 0 and `forms` is empty when it carries none.

    Weights in other files are not needed. Raises StepError when the graph is no valid ONNX, or a scale is damaged.
    """
    found: dict[str, dict[str, None]] = {}
    graph = _Graph(model)
    for node in graph.view.nodes:
        for form in _forms(graph, node):
            found.setdefault(form, {})[_name(node)] = None
    _, *bodies = all_graphs(model.graph)
    for body in bodies:
        for node in filter(_quantizes, body.node):
            found.setdefault("in-body", {})[_name(node)] = None
    nodes = [node for node in graph.view.nodes if is_pair_node(node)]
    halves = [node for node in nodes if node.op_type == DEQUANTIZE]
    return Quantization(
        len(nodes) - len(halves),
        len(halves),
        sum(graph.is_quantized(node.input[0]) for node in halves),
        sum(graph.count(node) > 1 for node in halves),
        {form: tuple(names) for form, names in found.items()},
    )


class _Graph:
    """The main graph, and what of it is constant. An initializer is, even one that an input could override."""

    def __init__(self, model: ModelProto) -> None:
        self.opset = opset(model)
        self.view = _view(model)
        self.constants = {**self.view.constants, **{tensor.name: tensor for tensor in model.graph.initializer}}
        self.folds = set(self.constants)  # tensors that constants alone decide
        for node in self.view.nodes:
            if node.input and not is_pair_node(node) and all(name in self.folds for name in node.input if name):
                self.folds.update(node.output)

    def maker(self, tensor: str) -> NodeProto | None:
        index = self.view.makers.get(tensor)
        return None if index is None else self.view.nodes[index]

    def is_quantized(self, tensor: str) -> bool:
        maker = self.maker(tensor)
        return maker is not None and is_pair_node(maker) and maker.op_type == QUANTIZE

    def constant(self, tensor: str) -> TensorProto | None:
        """The constant behind a tensor, also through a Cast (its type is then the Cast's, not that of the constant)."""
        maker = self.maker(tensor)
        if maker is not None and maker.op_type == "Cast" and maker.domain in DEFAULT_DOMAINS:
            tensor = maker.input[0]
        return self.constants.get(tensor)

    def count(self, node: NodeProto) -> int:
        """How many scales the node has; 1 where that is not known."""
        scale = self.constant(_input(node, 1))
        if scale is not None:
            return int(np.prod(scale.dims))
        shape = self.view.shapes.get(_input(node, 1), ())
        return int(np.prod([size or 1 for size in shape]))


def _view(model: ModelProto) -> Overview:
    try:
        return overview(model)
    except (shape_inference.InferenceError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise StepError(f"the graph is not valid ONNX: {reason}", "export the model again") from None


def _integer(node: NodeProto, name: str) -> int | None:
    """The attribute, when the node has it and it is an integer."""
    found = next((each for each in node.attribute if each.name == name), None)
    return int(found.i) if found is not None and found.type == AttributeProto.INT else None


def _input(node: NodeProto, slot: int) -> str:
    return node.input[slot] if len(node.input) > slot else ""


def _name(node: NodeProto) -> str:
    return node.name or next(iter(node.output), "?")


def _quantizes(node: NodeProto) -> bool:
    return "Quantize" in node.op_type or node.op_type in INTEGER_OPERATORS


def _forms(graph: _Graph, node: NodeProto) -> list[str]:
    if is_pair_node(node):
        return [_quantized_type(graph, node), *_scale(graph, node), *_zero_point(graph, node), *_place(graph, node)]
    if node.domain not in DEFAULT_DOMAINS:
        return ["other-domain"] if _quantizes(node) or node.op_type.startswith("QLinear") else []
    if node.op_type == "DynamicQuantizeLinear":
        return ["dynamic"]
    return ["integer-operators"] if node.op_type in INTEGER_OPERATORS else []


def _quantized_type(graph: _Graph, node: NodeProto) -> str:
    """The form that says what is quantized to: the zero point's type decides, else the attribute, else UINT8."""
    zero = _input(node, 2)
    kind = graph.constants[zero].data_type if zero in graph.constants else graph.view.types.get(zero)
    if node.op_type == DEQUANTIZE and not kind:
        given = node.input[0]
        kind = graph.constants[given].data_type if given in graph.constants else graph.view.types.get(given)
    if node.op_type == QUANTIZE and not zero:
        kind = _integer(node, "output_dtype") or TensorProto.UINT8
    return _TYPES.get(kind or TensorProto.UNDEFINED, "other-type")


def _scale(graph: _Graph, node: NodeProto) -> list[str]:
    name = _input(node, 1)
    scale = graph.constant(name)
    kind = scale.data_type if scale is not None and name in graph.constants else graph.view.types.get(name)
    found = []
    if kind not in (TensorProto.FLOAT, None, TensorProto.UNDEFINED):
        found.append("scale-fp16" if kind in _HALF else "scale-other")
    if scale is None:
        found.append("scale-computed")
    elif (values := _values(scale)) is None:
        found.append("not-in-file")
    elif not (values.astype(np.float64) > 0).all():
        found.append("scale-not-positive")
    return [*found, *_channels(graph, node)] if graph.count(node) > 1 else found


def _channels(graph: _Graph, node: NodeProto) -> list[str]:
    """Forms of a node that has several scales."""
    scale = graph.constant(_input(node, 1))
    if _integer(node, "block_size") or (scale is not None and len(scale.dims) > 1):
        return [] if _quantized_type(graph, node) in _SMALL else ["blocked"]
    source = node.input[0]
    if graph.is_quantized(source):
        maker = graph.maker(source)
        assert maker is not None
        source = maker.input[0]
    found = []
    if source in graph.constants:
        found.append("per-channel-weights")
    else:
        found.append("per-channel-computed" if source in graph.folds else "per-channel-activation")
    if graph.opset < _FIRST_AXIS:
        found.append("per-channel-before-13")
    elif _integer(node, "axis") is None:
        found.append("axis-left-out")
    return found + _axis(graph, node, source)


def _axis(graph: _Graph, node: NodeProto, source: str) -> list[str]:
    """Whether the axis has as many entries as there are scales, and is that of the output channels."""
    shape = tuple(graph.constants[source].dims) if source in graph.constants else graph.view.shapes.get(source)
    axis = _integer(node, "axis")
    axis = 1 if axis is None else axis
    if shape is None:
        return []
    if not -len(shape) <= axis < len(shape) or shape[axis] not in (None, graph.count(node)):
        return ["scale-count"]
    for index in graph.view.readers.get(node.output[0], ()) if node.op_type == DEQUANTIZE else ():
        reader = graph.view.nodes[index]
        channels = _OUTPUT_CHANNELS.get(graph.view.operator(index))
        if channels is not None and _input(reader, 1) == node.output[0] and axis % len(shape) != channels:
            return ["axis-other"]
    return []


def _zero_point(graph: _Graph, node: NodeProto) -> list[str]:
    name = _input(node, 2)
    if not name:
        return ["zero-point-left-out"]
    zero = graph.constant(name)
    if zero is None:
        return ["zero-point-computed"]
    values = _values(zero)
    if values is None:
        return ["not-in-file"]
    return ["zero-point"] if values.astype(np.float64).any() else []


def _place(graph: _Graph, node: NodeProto) -> list[str]:
    """Forms that come from what stands before and behind the node."""
    readers = [(index, graph.view.nodes[index]) for index in graph.view.readers.get(node.output[0], ())]
    if node.op_type == QUANTIZE:
        paired = all(is_pair_node(reader) and reader.op_type == DEQUANTIZE for _, reader in readers)
        return [] if paired and readers and node.output[0] not in graph.view.outputs else ["quantize-alone"]
    found = []
    if node.input[0] in graph.constants:
        found += ["int8-weights"] if _quantized_type(graph, node) == "int8" else []
    elif not graph.is_quantized(node.input[0]):
        found.append("dequantize-alone")
    for index, reader in readers:
        if _input(reader, 2) == node.output[0] and graph.view.operator(index) in _BIASES:
            found.append(_BIASES[reader.op_type])
    return found


def _values(tensor: TensorProto) -> npt.NDArray[np.generic] | None:
    """The constant's values; None when they lie in another file. Raises StepError when they are damaged."""
    if tensor.data_location == TensorProto.EXTERNAL:
        return None
    try:
        values: npt.NDArray[np.generic] = numpy_helper.to_array(tensor)
        return values
    except (ValueError, TypeError, KeyError) as error:
        raise StepError(f"constant {tensor.name} is damaged: {error}", "export the model again") from None
