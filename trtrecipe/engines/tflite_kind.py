"""In which precision a TFLite file computes, by what is in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from trtrecipe.errors import StepError
from trtrecipe.graphs import tflite_file
from trtrecipe.graphs.tflite_file import ABSENT, Graph, Model, Operator

IN_WORDS = {
    "fp32": "float",
    "fp16": "float with weights of 16 bits",
    "dynamic": "float with weights of 8 bits (dynamic range)",
    "int8": "8-bit integers with the file's own ranges (full integer)",
}
"""Every kind; the first two are modes of their own, the others are mode int8."""

_WRITTEN = {
    "fp32": "{mode: fp32}",
    "fp16": "{mode: fp16}",
    "dynamic": "{mode: int8, quantization: dynamic}",
    "int8": "{mode: int8}",
}
_INTEGERS = ("INT8", "UINT8", "INT16")
_BETWEEN = ("QUANTIZE", "DEQUANTIZE")
_NAMED = 3


def kind(model: Model) -> str:
    """One of IN_WORDS."""
    if any(_is_integer(graph, number) for graph in model.graphs for number in _activations(graph)):
        return "int8"
    constants = [tensor for graph in model.graphs for tensor in graph.tensors if tensor.data is not None]
    if any(tensor.kind in _INTEGERS and tensor.quantization is not None for tensor in constants):
        return "dynamic"
    return "fp16" if any(tensor.kind == "FLOAT16" for tensor in constants) else "fp32"


def require(path: Path, mode: str, quantization: str | None, changed: bool) -> None:
    """Refuse a TFLite file as the engine of a target. `changed`: whether the recipe wants other names or outputs of it.

    Raises StepError for a file of another precision, or with several graphs to choose from.
    """
    model = tflite_file.read(path)
    found, wanted = kind(model), "dynamic" if quantization == "dynamic" else mode
    if found != wanted:
        raise StepError(
            f"the model is a TFLite file already, {IN_WORDS[found]}, and cannot become {IN_WORDS[wanted]}",
            f"write precision: {_WRITTEN[found]} for this target, or give the TensorFlow model behind the file",
        )
    if changed or len(model.signatures) > 1:
        why = "model.rename and model.outputs do not reach into it" if changed else "it has several signatures"
        raise StepError(
            f"the model is a TFLite file already, which is left as it is: {why}",
            "give the TensorFlow model that the file was made of, or leave this target out",
        )


def left_in_float(model: Model) -> list[str]:
    """`OPERATOR (layers)` of what computes in floats, for each kind of operator."""
    found: dict[str, list[str]] = {}
    for graph in model.graphs:
        for operator in graph.operators:
            if operator.name not in _BETWEEN and _computes_floats(graph, operator):
                found.setdefault(operator.name, []).append(_layer(graph, operator))
    return [f"{name} ({_some(layers)})" for name, layers in sorted(found.items())]


def _activations(graph: Graph) -> Iterator[int]:
    return (number for operator in graph.operators for number in operator.outputs)


def _is_integer(graph: Graph, number: int) -> bool:
    tensor = graph.tensors[number]
    return tensor.kind in _INTEGERS and tensor.quantization is not None and tensor.data is None


def _computes_floats(graph: Graph, operator: Operator) -> bool:
    """Constants that are only unpacked are none of it."""
    given = [graph.tensors[number] for number in operator.inputs if number != ABSENT]
    makes_floats = any(graph.tensors[number].kind == "FLOAT32" for number in operator.outputs)
    return makes_floats and any(tensor.data is None and tensor.kind == "FLOAT32" for tensor in given)


def _layer(graph: Graph, operator: Operator) -> str:
    """The name of what the operator makes; where several operations were merged into it, of the first."""
    return graph.tensors[operator.outputs[0]].name.partition(";")[0]


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
