"""A frozen TensorFlow graph → a TFLite file, by TensorFlow's own converter.

The converter takes a SavedModel. It is not given the model's own: that one is loaded as Python objects, which executes
its initialisers and fails for optimizers that this TensorFlow does not know. One is made here of the frozen graph that
export starts from, too, so that both have the same inputs and outputs under the same names. It is written in the form
of TensorFlow 1, whose signatures take any name, and its operations bear the names of the source model's layers, so that
nothing that TensorFlow made up while the model was saved gets into the file.

How modes map to settings: https://ai.google.dev/edge/litert/models/post_training_quantization
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trtrecipe.data.preprocess import Array
from trtrecipe.engines import tflite_kind
from trtrecipe.errors import StepError
from trtrecipe.graphs import tflite_file
from trtrecipe.graphs.frozen import Frozen
from trtrecipe.graphs.interface import TensorSpec
from trtrecipe.graphs.layers import NO_LAYER
from trtrecipe.graphs.names import LayerNames, Unique, cleaned
from trtrecipe.graphs.sound import listed
from trtrecipe.graphs.tensorflow_runtime import explained, tensorflow

Samples = Callable[[], Iterator[Mapping[str, Array]]]
"""Starts over with each call: input name → array, one sample or several."""

SIGNATURE = "serving_default"
_VALID = re.compile(r"[A-Za-z0-9.][A-Za-z0-9_.\\/>-]*")  # TensorFlow's rule for names of operations
_INVALID = re.compile(r"[^A-Za-z0-9_.\\/>-]")
_ERROR = re.compile(r'error: (?:loc\((?:fused\["[^"]*", )?"(?P<name>[^"]*)"[^)]*\): )?(?P<words>.+)')
_LONGEST = 400


@dataclass(frozen=True)
class Source:
    """`inputs`: what the file is to take, open axes as names. `perms`: input → the Transpose that makes of it what the
    graph takes, where the two differ. `dtype` and number of axes are the graph's."""

    frozen: Frozen
    inputs: Sequence[TensorSpec]
    perms: Mapping[str, Sequence[int]]


def build(source: Source, engine: Path, mode: str, quantization: str | None, samples: Samples | None) -> list[str]:
    """Write the TFLite file of the graph to `engine`. Returns notes.

    `mode`: fp32, fp16 (weights are stored in 16 bits) or int8; `quantization` with int8: "dynamic" (weights of 8 bits,
    activations are quantized in each run) or "explicit" (weights and activations, whose ranges come from `samples`;
    None: from the fake quantization that the model was trained with). Inputs and outputs stay what the graph has,
    floats for the most part. Raises StepError for operators that TFLite has no form for, with their names.
    """
    import tempfile

    tf = tensorflow()
    if quantization == "explicit" and samples is not None:
        _require_no_lists(source.frozen)
    with tempfile.TemporaryDirectory(prefix="trtrecipe-") as folder:
        model = Path(folder) / "model"
        _save(tf, source, model)
        with explained("TensorFlow's converter cannot read the graph", folder=Path(folder)):
            converter = tf.lite.TFLiteConverter.from_saved_model(str(model), signature_keys=[SIGNATURE])
        _configure(tf, converter, mode, quantization, samples)
        engine.write_bytes(_convert(converter, Path(folder), source.frozen))
    return _notes(engine, mode, quantization, samples)


def _require_no_lists(frozen: Frozen) -> None:
    """Refuse loops that fill lists of tensors: TensorFlow 2.21 dies of a memory fault where it runs one on samples."""
    loops = [node for node in frozen.graph.node if node.op in ("While", "StatelessWhile")]
    functions = (node for function in frozen.graph.library.function for node in function.node_def)
    if loops and any(node.op.startswith("TensorList") for node in (*frozen.graph.node, *functions)):
        raise StepError(
            "TensorFlow's converter cannot take the ranges of recurrent layers from samples:\n"
            + listed([cleaned(loop.name) for loop in loops]),
            hint="use quantization: dynamic for this target, which quantizes their weights",
        )


def _configure(tf: Any, converter: Any, mode: str, quantization: str | None, samples: Samples | None) -> None:
    if mode == "fp32":
        return
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if mode == "fp16":
        converter.target_spec.supported_types = [tf.float16]
    elif quantization == "explicit" and samples is not None:
        converter.representative_dataset = samples


def _convert(converter: Any, folder: Path, frozen: Frozen) -> bytes:
    from tensorflow.lite.python.convert_phase import ConverterError

    with explained("TensorFlow's converter cannot make a TFLite file of the model", folder=folder):
        try:
            return bytes(converter.convert())
        except ConverterError as error:
            if missing := _without_form(error):
                raise StepError(
                    f"TFLite has no form for these operators:\n{listed(missing)}",
                    hint="replace them in the model or leave this target out; TensorFlow's own operators "
                    "(SELECT_TF_OPS) are not used, as runtimes on devices lack them",
                ) from None
            if unsized := _named_in(error, "TensorList"):
                raise StepError(
                    f"TFLite needs the sizes of what loops gather, and axes are open:\n{listed(unsized)}",
                    hint="fix the axes under model.inputs, the batch included, as in shape: [1, 20, 8]",
                ) from None
            raise StepError(f"TensorFlow's converter cannot make a TFLite file of the model: {_words(error)}") from None


def _without_form(error: Any) -> list[str]:
    """`Operator layer` for each operator that only TensorFlow itself could run."""
    return sorted({_place(each) for each in error.errors if "NEEDS" in type(each).ErrorCode.Name(each.error_code)})


def _named_in(error: Any, operators: str) -> list[str]:
    """`Operator layer` of the errors about operators whose name begins so."""
    return sorted({place for each in error.errors if (place := _place(each)).startswith(operators)})


def _place(error: Any) -> str:
    places = [cleaned(call.name) for call in error.location.call if call.name]
    return " ".join((error.operator.name.removeprefix("tf."), *places[:1]))


def _words(error: Any) -> str:
    """The first thing that the converter says, with the operation it is about: what follows are consequences."""
    found = _ERROR.search(str(error))
    if found is None:
        return " ".join(str(error).split())[:_LONGEST]
    return f"{cleaned(found['name'])}: {found['words']}"[:_LONGEST] if found["name"] else found["words"][:_LONGEST]


def _save(tf: Any, source: Source, folder: Path) -> None:
    """Write the graph as a SavedModel with one signature."""
    frozen, v1 = source.frozen, tf.compat.v1
    definition, tensors = _named(frozen, [*(spec.name for spec in source.inputs), *frozen.outputs])
    with explained("TensorFlow cannot load the graph"), v1.Session(graph=tf.Graph()) as session:
        given, feeds = {}, {}
        for spec in source.inputs:
            perm = source.perms.get(spec.name)
            shape = [axis if isinstance(axis, int) else None for axis in spec.shape]
            given[spec.name] = v1.placeholder(tf.dtypes.as_dtype(spec.dtype), shape, _valid(spec.name))
            fed = given[spec.name] if perm is None else tf.transpose(given[spec.name], perm)
            feeds[tensors[frozen.tensors[spec.name]]] = fed
        wanted = [tensors[tensor] for tensor in frozen.outputs.values()]
        made = tf.import_graph_def(definition, input_map=feeds, return_elements=wanted, name="")
        results = {name: tf.identity(tensor, _valid(name)) for name, tensor in zip(frozen.outputs, made, strict=True)}
        info = v1.saved_model.build_tensor_info
        signature = v1.saved_model.build_signature_def(
            {name: info(tensor) for name, tensor in given.items()},
            {name: info(tensor) for name, tensor in results.items()},
            v1.saved_model.signature_constants.PREDICT_METHOD_NAME,
        )
        pruned = v1.graph_util.extract_sub_graph(
            session.graph.as_graph_def(), [tensor.op.name for tensor in (*given.values(), *results.values())]
        )
    _size_lists(tf, pruned, {_valid(spec.name): spec for spec in source.inputs})
    with explained("TensorFlow cannot save the graph"), v1.Session(graph=tf.Graph()) as session:
        tf.import_graph_def(pruned, name="")
        builder = v1.saved_model.Builder(str(folder))
        builder.add_meta_graph_and_variables(session, ["serve"], signature_def_map={SIGNATURE: signature})
        builder.save()


def _size_lists(tf: Any, definition: Any, given: Mapping[str, TensorSpec]) -> None:
    """Say how large the entries of lists of tensors are that loops fill, in place, where the inputs' sizes decide it.

    A recurrent layer gathers its results in such a list, TFLite has to know their size, and a model that was saved with
    an open batch does not say it, even where the batch is fixed now. So the loop is run once, on zeros. `given`: name
    of a placeholder → what it takes.
    """
    if any(isinstance(axis, str) for spec in given.values() for axis in spec.shape):
        return
    from tensorflow.python.framework import tensor_util

    nodes = {node.name: node for node in definition.node}
    stacks = {  # (loop, which of its results) → what makes one tensor of the list
        (loop.name, position): node
        for node in definition.node
        if node.op == "TensorListStack"
        for loop, position in [_origin(nodes, node.input[0])]
    }
    wanted: dict[str, Any] = {}  # node that makes a list → what reads it at the end
    for loop in definition.node:
        if loop.op in ("While", "StatelessWhile"):
            for position, entry in enumerate(loop.input):
                maker, _ = _origin(nodes, entry)
                if maker.op in ("TensorListReserve", "EmptyTensorList") and (loop.name, position) in stacks:
                    wanted[maker.name] = stacks[loop.name, position]
    if not wanted:
        return
    v1 = tf.compat.v1
    feeds = {f"{name}:0": np.zeros([int(axis) for axis in spec.shape], spec.dtype) for name, spec in given.items()}
    with explained("TensorFlow cannot run the model on zeros"), v1.Session(graph=tf.Graph()) as session:
        tf.import_graph_def(definition, name="")
        values = session.run([f"{node.name}:0" for node in wanted.values()], feeds)
    for (maker_name, stack), value in zip(wanted.items(), values, strict=True):
        size = tensor_util.make_tensor_proto(value.shape[1:], dtype=tf.int32)
        for node, position in ((nodes[maker_name], 0), (stack, 1)):
            constant = definition.node.add(name=f"{node.name}/entry", op="Const")
            constant.attr["dtype"].type = size.dtype
            constant.attr["value"].tensor.CopyFrom(size)
            node.input[position] = constant.name
            node.attr["shape_type"].type = size.dtype


def _origin(nodes: Mapping[str, Any], reference: str) -> tuple[Any, int]:
    """The node behind all Identities that makes the tensor, and which of its results it is."""
    name, _, position = reference.partition(":")
    while nodes[name].op == "Identity":
        name, _, position = nodes[name].input[0].partition(":")
    return nodes[name], int(position or 0)


def _named(frozen: Frozen, interface: Sequence[str]) -> tuple[Any, dict[str, str]]:
    """The graph with the source model's names of operations; TensorFlow's name of an input or output → the one there."""
    definition = type(frozen.graph)()
    definition.CopyFrom(frozen.graph)
    restored = LayerNames(node.name for node in definition.node if node.op not in NO_LAYER)
    unique = Unique(_valid(name) for name in interface)
    names = {node.name: unique.claim(_valid(restored.name(node.name))) for node in definition.node}
    for node in (*definition.node, *(each for function in definition.library.function for each in function.node_def)):
        node.ClearField("experimental_debug_info")
        for attribute in [key for key in node.attr if key.startswith("_")]:
            del node.attr[attribute]
    for node in definition.node:
        node.name = names[node.name]
        for index, entry in enumerate(node.input):
            node.input[index] = _moved(entry, names)
    return definition, {
        tensor: _moved(tensor, names) for tensor in (*frozen.tensors.values(), *frozen.outputs.values())
    }


def _moved(reference: str, names: Mapping[str, str]) -> str:
    control, name = ("^", reference[1:]) if reference.startswith("^") else ("", reference)
    node, colon, position = name.partition(":")
    return f"{control}{names[node]}{colon}{position}"


def _valid(name: str) -> str:
    """The name as TensorFlow takes it for an operation."""
    return name if _VALID.fullmatch(name) else _INVALID.sub("_", name).lstrip("_-\\/>") or "tensor"


def _notes(engine: Path, mode: str, quantization: str | None, samples: Samples | None) -> list[str]:
    model = tflite_file.read(engine)
    found = tflite_kind.kind(model)
    if found == "int8" and quantization != "explicit":
        raise StepError(
            "the model was trained with fake quantization, and TensorFlow's converter makes 8-bit integers of it",
            hint="use precision: {mode: int8} for this target, with calibration: {model: true}",
        )
    if mode != "int8":
        return []
    if quantization == "dynamic":
        if found == "dynamic":
            return []
        return ["nothing was quantized: TFLite leaves weights of fewer than 1,024 values as they are"]
    if found == "int8":
        floats = tflite_kind.left_in_float(model)
        return [f"in float, as TFLite has no 8-bit form of them or no range: {'; '.join(floats)}"] if floats else []
    if samples is None:
        raise StepError(
            "the model carries no ranges that TFLite can use: it was not trained with fake quantization",
            hint="give calibration.data, or use quantization: dynamic for this target",
        )
    return ["nothing was quantized: no operator of the model has an 8-bit form in TFLite"]
