"""A TFLite file → ONNX, written operator by operator, without TensorFlow.

tf2onnx reads TFLite as well. Of 12 files tried with 1.17 (float, float16, dynamic range, full integer, an LSTM, Gelu)
it left operators unconverted in four while it reported success, gave other bytes in every process, kept integers as
inputs and outputs, and multiplied the results of Softmax by beta instead of its inputs; and it runs the file in
TensorFlow's interpreter first.

What stands in the file in 16 or 8 bits only to be small (float16, dynamic range) becomes floats. A model that computes
in 8 bits (full integer) comes with Q/DQ pairs that have its own scales and zero points; its inputs and outputs become
floats too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
from onnx import ModelProto, TensorProto, helper

from trtrecipe.errors import StepError
from trtrecipe.graphs import tflite_file, tflite_layers, tflite_math, tflite_moves
from trtrecipe.graphs import tflite_schema as schema
from trtrecipe.graphs.canonical import GRAPH_NAME, canonical
from trtrecipe.graphs.flatbuffer import Damaged
from trtrecipe.graphs.layers import Layers, scopes
from trtrecipe.graphs.names import LayerNames, Unique, cleaned, rename_interface
from trtrecipe.graphs.sound import listed
from trtrecipe.graphs.tflite_builder import Builder, Refused
from trtrecipe.graphs.tflite_file import ABSENT, Graph, Model, Operator, Signature

OPSET = 13
"""What every operator here is written in; higher ones only where the recipe asks for them."""

_IR = 7  # of opset 13
_DEFAULT = "serving_default"
_CONVERSIONS: Mapping[str, tflite_math.Convert] = {
    **tflite_layers.CONVERSIONS,
    **tflite_math.CONVERSIONS,
    **tflite_moves.CONVERSIONS,
}
_NAMED_AFTER = {
    "CONV_2D": "conv",
    "DEPTHWISE_CONV_2D": "depthwise",
    "FULLY_CONNECTED": "matmul",
    "TRANSPOSE_CONV": "conv",
}
"""Which of the operations that the converter merged into one gives it its name."""


@dataclass(frozen=True)
class Interface:
    """What a graph of the file takes and gives: name → number of the tensor, in the graph's order.

    `index`: the number of the graph in the file.
    """

    graph: Graph
    inputs: Mapping[str, int]
    outputs: Mapping[str, int]
    index: int = 0

    def cut(self, outputs: Sequence[str]) -> Interface:
        """The same graph, ended at these outputs or tensors of the file; as it is where one of them is neither."""
        made = [number for operator in self.graph.operators for number in operator.outputs]
        tensors = {self.graph.tensors[number].name: number for number in reversed(made)} | dict(self.outputs)
        if not outputs or not tensors.keys() >= set(outputs):
            return self
        return replace(self, outputs={name: tensors[name] for name in outputs})

    def used_inputs(self) -> dict[str, int]:
        """The inputs that the outputs depend on."""
        read = {number for index in self.needed() for number in self.graph.operators[index].inputs}
        read.update(self.outputs.values())
        return {name: number for name, number in self.inputs.items() if number in read}

    def needed(self) -> list[int]:
        """Positions of the operators that the outputs depend on, in the file's order."""
        operators = self.graph.operators
        makers = {number: index for index, operator in enumerate(operators) for number in operator.outputs}
        pending = [makers[number] for number in self.outputs.values() if number in makers]
        found: set[int] = set()
        while pending:
            index = pending.pop()
            if index not in found:
                found.add(index)
                pending.extend(makers[number] for number in operators[index].inputs if number in makers)
        return sorted(found)


@dataclass(frozen=True)
class Converted:
    """`model`: canonical, inputs with the axes that the file leaves open. `notes`: sentences for people."""

    model: ModelProto
    layers: Layers
    notes: tuple[str, ...]


def read(path: Path, signature: str | None, opset: int | None, outputs: Sequence[str] = ()) -> Converted:
    """The graph of a signature at `opset` (None: OPSET), or only what the tensors `outputs` of it need (Interface.cut).

    Raises StepError for files that are damaged, and for operators and types without a form in ONNX, with their names.
    """
    interface = choose(tflite_file.read(path), signature).cut(outputs)
    try:
        return _Conversion(interface).run(opset)
    except Damaged as error:
        raise tflite_file.damaged(error) from None


def choose(model: Model, signature: str | None) -> Interface:
    """The signature called so; without a name the only one, or serving_default, or the first graph without any.

    Raises StepError, with the names there are, where there is none of that name, or none to prefer.
    """
    keys = [each.key for each in model.signatures]
    if signature is None and not model.signatures:
        graph = model.graphs[0]
        return Interface(graph, _names(graph, graph.inputs, {}), _names(graph, graph.outputs, {}))
    wanted = signature if signature is not None else (keys[0] if len(keys) == 1 else _DEFAULT)
    found = next((each for each in model.signatures if each.key == wanted), None)
    if found is None:
        there = f"its signatures are {', '.join(sorted(keys))}" if keys else "it has no signatures"
        what = f"has no signature {wanted}" if signature is not None else f"has several signatures, and no {wanted}"
        hint = "remove model.signature" if not keys else f"set model.signature, as in signature: {sorted(keys)[0]}"
        raise StepError(f"the TFLite model {what}: {there}", hint)
    return _of_signature(model.graphs[found.graph], found)


def _of_signature(graph: Graph, signature: Signature) -> Interface:
    # In the order of the graph; a tensor that two names stand for comes twice.
    inputs = _names(graph, graph.inputs, {number: name for name, number in signature.inputs.items()})
    ranks = {number: rank for rank, number in enumerate(graph.outputs)}
    ordered = sorted(signature.outputs.items(), key=lambda item: (ranks.get(item[1], len(ranks)), item[0]))
    return Interface(graph, inputs, dict(ordered), signature.graph)


def _names(graph: Graph, numbers: Iterable[int], given: Mapping[int, str]) -> dict[str, int]:
    unique = Unique(given.values())
    return {given.get(number) or unique.claim(graph.tensors[number].name or "tensor"): number for number in numbers}


class _Conversion:
    """One graph on its way to ONNX."""

    def __init__(self, interface: Interface) -> None:
        self._graph, self._interface = interface.graph, interface
        self._operators = [self._graph.operators[index] for index in interface.needed()]
        parts = [part for operator in self._operators for part in _parts(self._graph, operator) if "/" in part]
        self._restore = LayerNames(parts).name
        self._results = {number: name for name, number in reversed(list(interface.outputs.items()))}
        self._layers: Layers = {}
        self._notes: list[str] = []
        self._build = Builder(self._graph, Unique({*interface.inputs, *interface.outputs}))

    def run(self, opset: int | None) -> Converted:
        """The model, its layers and notes."""
        self._refuse_unknown()
        used = self._interface.used_inputs()
        self._notes += [
            f"input {name} does not affect any output and is no input of the graph"
            for name in self._interface.inputs
            if name not in used
        ]
        inputs = [self._input(name, number) for name, number in used.items()]
        nodes: list[list[str]] = []
        for operator in self._operators:
            start = len(self._build.nodes)
            self._convert(operator)
            nodes.append([node.name for node in self._build.nodes[start:]])
        outputs = [self._output(number) for number in dict.fromkeys(self._interface.outputs.values())]
        graph = helper.make_graph(self._build.nodes, GRAPH_NAME, inputs, outputs, self._build.initializers)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=_IR)
        wanted = {name: self._build.plain(number) for name, number in self._interface.outputs.items()}
        rename_interface(model, {}, wanted)
        model = canonical(_raised(model, opset))
        return Converted(model, self._found(nodes, model), tuple(self._all_notes()))

    def _refuse_unknown(self) -> None:
        unknown = [each for each in self._operators if each.custom or each.name not in _CONVERSIONS]
        if not unknown:
            return
        lines = [
            f"{each.name}{' (custom)' if each.custom else ''}: {self._name(each)}, which reads "
            + ", ".join(self._graph.tensors[number].name for number in each.inputs[:3] if self._is_computed(number))
            for each in unknown
        ]
        raise StepError(
            "the TFLite model has operators that cannot be written in ONNX:\n" + listed(lines),
            hint="convert the model again without them (those of TensorFlow come with SELECT_TF_OPS), or end it before "
            "them: model.outputs can name the tensors that they read",
        )

    def _is_computed(self, number: int) -> bool:
        return number != ABSENT and self._graph.tensors[number].data is None

    def _name(self, operator: Operator) -> str:
        """What the operator's nodes are called after: the model's own name for it, or for the output it makes."""
        for number in operator.outputs:
            if number in self._results and not cleaned(self._graph.tensors[number].name):
                return str(self._results[number])
        parts = _parts(self._graph, operator)
        word = _NAMED_AFTER.get(operator.name, "")
        scoped = [part for part in parts if "/" in part]
        named = [part for part in scoped if word and word in part.rpartition("/")[2].lower()]
        chosen = next(iter([*named, *scoped, *parts]), "")
        return (self._restore(chosen) if chosen else "") or operator.name.lower()

    def _input(self, name: str, number: int) -> onnx.ValueInfoProto:
        tensor = self._graph.tensors[number]
        grid = self._build.grid(number)
        self._build.base = name
        kind = schema.ONNX.get(tensor.kind)
        if grid is not None:
            kind = TensorProto.FLOAT
            self._notes.append(
                f"input {name} is {tensor.kind} in the model and float32 here: give what its integers stand for, "
                f"(integer - {grid.zero[0]}) * {grid.scale[0]:.8g}"
            )
        elif kind is None:
            raise StepError(
                f"input {name} of the TFLite model is {tensor.kind}",
                hint="floats, 8 bit integers, INT32, INT64 and BOOL are supported; convert the model again",
            )
        self._build.store(number, name)
        shape = [None if size < 0 else size for size in tensor.shape]
        return helper.make_tensor_value_info(name, kind, shape)

    def _convert(self, operator: Operator) -> None:
        self._build.base = self._name(operator)
        try:
            _CONVERSIONS[operator.name](self._build, operator)
        except Refused as reason:
            raise StepError(
                f"{operator.name} {self._build.base} of the TFLite model cannot be written in ONNX: {reason}",
                hint="convert the model again without it",
            ) from None
        except Damaged:
            raise
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:  # not as such an operator must be
            said = f"{operator.name} {self._build.base} has inputs or options that do not fit"
            raise Damaged(f"{said}: {' '.join(str(error).split())[:200]}") from None

    def _output(self, number: int) -> onnx.ValueInfoProto:
        tensor = self._graph.tensors[number]
        kind = TensorProto.FLOAT if self._build.grid(number) is not None else schema.ONNX.get(tensor.kind)
        if self._build.is_constant(number) and tensor.data is None:
            raise Damaged(f"nothing makes the output {self._results[number]}")
        if kind is None:
            raise Damaged(f"the output {self._results[number]} is {tensor.kind}")
        shape = [None if size < 0 else size for size in tensor.shape]
        self._build.base = self._results[number]
        return helper.make_tensor_value_info(self._build.plain(number), kind, shape)

    def _found(self, nodes: Sequence[Sequence[str]], model: ModelProto) -> Layers:
        """Every scope in the names of the operations that the converter merged into one operator → its nodes."""
        left = [node.name for node in model.graph.node]
        present = set(left)
        layers: Layers = {}
        for operator, made in zip(self._operators, nodes, strict=True):
            names = [self._restore(part) for part in _parts(self._graph, operator) if "/" in part]
            for scope in dict.fromkeys(scope for name in (*names, *made) for scope in scopes(name)):
                layers.setdefault(scope, []).extend(name for name in made if name in present)
        return layers

    def _all_notes(self) -> Iterable[str]:
        yield from self._notes
        yield from self._build.notes
        if self._build.hybrid:
            count = len(self._build.hybrid)
            yield (
                f"{count} weight tensor{'' if count == 1 else 's'} stored in 8 bits became floats of the same values; "
                "TFLite's interpreter also rounds what it multiplies them with, which no engine does"
            )


def _parts(graph: Graph, operator: Operator) -> list[str]:
    """Names of the operations that the converter made the operator from."""
    names = (graph.tensors[number].name for number in operator.outputs)
    return [part for name in names for each in name.split(";") if (part := cleaned(each))]


def _raised(model: ModelProto, opset: int | None) -> ModelProto:
    if opset is None or opset == OPSET:
        return model
    try:
        return onnx.version_converter.convert_version(model, opset)
    except Exception as error:  # the converter is C++ and raises several unrelated types, all of them about the model
        raise StepError(
            f"onnx cannot raise the model from opset {OPSET} to {opset}: {' '.join(str(error).split())[:300]}",
            hint="remove model.opset from the recipe",
        ) from error
