"""A graph that gives out what calibration wants to see of it."""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
from onnx import helper

from trtrecipe.data.preprocess import Array
from trtrecipe.engines.ort import OrtEngine
from trtrecipe.graphs import files, values
from trtrecipe.graphs.names import Unique

Feeds = Mapping[str, Array]


@contextmanager
def observing(
    model: onnx.ModelProto, tensors: Iterable[str], nodes: Sequence[onnx.NodeProto] = ()
) -> Iterator[OrtEngine]:
    """`model` with `nodes` added, giving out `tensors` alone.

    The model is changed and put right again, and goes through a file, as there would be more copies of its weights in
    memory otherwise. Raises StepError.
    """
    graph = model.graph
    outputs, count = list(graph.output), len(graph.node)
    try:
        graph.node.extend(nodes)
        del graph.output[:]
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors)
        engine = _engine(model)
    finally:
        del graph.output[:]
        graph.output.extend(outputs)
        del graph.node[count:]
    with engine:
        yield engine


def _engine(model: onnx.ModelProto) -> OrtEngine:
    if any(values.outside(model)):
        return OrtEngine(model)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "observed.onnx"
        files.save(model, path)
        _give_back()
        return OrtEngine(path)


def _give_back() -> None:
    """Return to the system what was freed: the model's bytes, and what the session before took."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc has it
        trim(0)


class Figures:
    """Nodes that reduce tensors to single figures, as only these then leave the graph.

    They are added behind the others: ONNX Runtime runs each as soon as its tensor is there, so that none lives longer.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        given = (value.name for value in (*graph.input, *graph.initializer, *graph.output))
        self._names = Unique({*given, *(name for node in graph.node for name in (node.name, *node.output))})
        self.nodes: list[onnx.NodeProto] = []

    def add(self, tensor: str, *operators: str) -> str:
        """The name of what the operators, one after the other, make of the tensor."""
        for operator in operators:
            attributes: dict[str, Any] = {"keepdims": 0} if operator.startswith("Reduce") else {}
            attributes |= {"to": onnx.TensorProto.FLOAT} if operator == "Cast" else {}
            made = self._names.claim(f"{tensor}/{operator}")
            self.nodes.append(helper.make_node(operator, [tensor], [made], made, **attributes))
            tensor = made
        return tensor


def sizes(model: onnx.ModelProto, tensors: Sequence[str], feeds: Feeds) -> dict[str, int]:
    """Number of values of each tensor in one run."""
    if not tensors:
        return {}
    figures = Figures(model)
    names = {name: figures.add(name, "Size") for name in tensors}
    with observing(model, names.values(), figures.nodes) as engine:
        counted = engine.run(feeds)
    return {name: int(counted[figure]) for name, figure in names.items()}


def first_with(operator: str, model: onnx.ModelProto, tensors: Sequence[str], feeds: Feeds) -> str | None:
    """The first of the tensors of which a value is what `operator` (IsNaN or IsInf) asks for."""
    figures = Figures(model)
    names = {name: figures.add(name, operator, "Cast", "ReduceMax") for name in tensors}
    with observing(model, names.values(), figures.nodes) as engine:
        found = engine.run(feeds)
    return next((name for name, figure in names.items() if found[figure] > 0), None)
