"""A TensorFlow SavedModel or Keras file → ONNX, with tf2onnx, on the CPU.

Only the signature's graph is loaded, not the Python objects beside it: an optimizer or a custom class that this
TensorFlow cannot restore does not matter then.
"""

from __future__ import annotations

import logging
import os
import shutil
import tarfile
import zipfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from onnx import ModelProto

from trtrecipe.errors import StepError
from trtrecipe.graphs import fake_quant, sound, tensorflow_repairs
from trtrecipe.graphs.interface import TensorSpec
from trtrecipe.graphs.names import cleaned, rename_interface
from trtrecipe.graphs.shapes import OPEN, Shape
from trtrecipe.graphs.sound import listed

DEFAULT_SIGNATURE = "serving_default"
OPSETS = (13, 16, 17, 18)
"""Tried in turn when the recipe asks for none: the oldest devices take 13, some operators need more."""

_LEFT_OUT = ("merge_duplication", "q_dq_optimizer")
"""Optimizers of tf2onnx. Which of two equal nodes stays is left to chance in the first, and with it the name: equal
nodes are merged by us. The second moves Q/DQ away from where the model has them."""
_END = "trtrecipe_output_"
_HDF5 = b"\x89HDF"


@dataclass(frozen=True)
class Frozen:
    """A signature's graph with its variables as constants. `tensors`: input name → TensorFlow's name of it."""

    graph: Any
    inputs: tuple[TensorSpec, ...]
    tensors: Mapping[str, str]
    outputs: Mapping[str, str]


@dataclass(frozen=True)
class _Converted:
    """A graph at one opset. `missing`: its nodes that are no ONNX, as `Operator name`."""

    model: ModelProto
    missing: tuple[str, ...]
    notes: tuple[str, ...]


def unpack(archive: Path, folder: Path) -> Path:
    """Put the files that `fetch` packed under `folder`; that folder. Raises StepError for names that leave it."""
    with tarfile.open(archive) as tar:
        for member in tar:
            name = PurePosixPath(member.name)
            if not member.isreg() or name.is_absolute() or ".." in name.parts:
                raise StepError(f"the model's archive holds {member.name}, which is no plain file inside it")
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            content = tar.extractfile(member)
            assert content is not None  # it is a regular file
            with content, target.open("wb") as file:
                shutil.copyfileobj(content, file, 1 << 20)
    return folder


def freeze(folder: Path, signature: str | None) -> Frozen:
    """The graph of one signature of the SavedModel in `folder`, `serving_default` unless named.

    Raises StepError when there is no such signature, listing those that exist, and when TensorFlow cannot load it.
    """
    tf = _tensorflow()
    chosen = _signature(tf, folder, signature or DEFAULT_SIGNATURE)
    inputs = {name: _tensor(name, info, "input") for name, info in sorted(chosen.inputs.items())}
    outputs = {name: _tensor(name, info, "output") for name, info in sorted(chosen.outputs.items())}
    if both := sorted(inputs.keys() & outputs.keys()):
        raise StepError(
            f"the signature calls an input and an output {both[0]}; in ONNX names are unique",
            hint="export it with another name for the output",
        )
    v1 = tf.compat.v1
    # A function call is inlined only where something behind it is asked for: hence an Identity per output.
    ends = {name: f"{_END}{index}" for index, name in enumerate(outputs)}
    hint = "export the model again; a file under its folder may be damaged or missing"
    with _explained("TensorFlow cannot load the model", hint, folder), v1.Session(graph=tf.Graph()) as session:
        v1.saved_model.loader.load(session, ["serve"], str(folder))
        for name, tensor in outputs.items():
            tf.identity(session.graph.get_tensor_by_name(tensor), name=ends[name])
        tensorflow_repairs.restore_variables(session, folder, list(ends.values()))
        definition = session.graph.as_graph_def()
        constant = v1.graph_util.convert_variables_to_constants(session, definition, list(ends.values()))
        frozen = _inlined(constant, list(ends.values()))
        tensorflow_repairs.expand_erfc(frozen)
    specs = tuple(_spec(tf, name, chosen.inputs[name]) for name in inputs)
    return Frozen(frozen, specs, inputs, {name: f"{end}:0" for name, end in ends.items()})


def from_keras(path: Path, folder: Path) -> Path:
    """Save the Keras model in file `path` as a SavedModel under `folder`, inputs and outputs named as in the model.

    Loads in Keras's safe mode: a model that carries code is refused. Raises StepError.
    """
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            old = file.read(4) == _HDF5
        raise StepError(
            "the model is in Keras's old HDF5 form" if old else "the model file is no .keras file, or it is cut short",
            hint="load it in Keras and save it again: model.save('model.keras')" if old else "check model.source",
        )
    tf = _tensorflow()
    import keras

    named = folder / "model.keras"  # Keras goes by the suffix
    shutil.copyfile(path, named)
    hint = (
        "Keras files are loaded in safe mode; a model that needs code of its own goes as a SavedModel: model.export()"
    )
    with _explained("Keras cannot load the model", hint, folder):
        model = keras.saving.load_model(named, compile=False, safe_mode=True)
    if not getattr(model, "inputs", None):
        raise StepError(
            "the Keras model does not say what its inputs are (a subclassed or unbuilt model)",
            hint="export it as a SavedModel with a signature: model.export('model')",
        )
    signature = [tf.TensorSpec(tensor.shape, tensor.dtype, tensor.name) for tensor in model.inputs]
    names = _keras_outputs(model)
    structure = getattr(model, "_inputs_struct", None)  # a functional model's: a tensor, list or dictionary

    def serve(*arguments: Any) -> dict[str, Any]:
        given = arguments[0] if structure is None else keras.tree.pack_sequence_as(structure, list(arguments))
        return dict(zip(names, keras.tree.flatten(model(given, training=False)), strict=True))

    with _explained("Keras cannot export the model"):
        archive = keras.export.ExportArchive()
        archive.track(model)
        archive.add_endpoint(DEFAULT_SIGNATURE, serve, signature)
        archive.write_out(str(folder / "model"), verbose=False)
    return folder / "model"


def _keras_outputs(model: Any) -> list[str]:
    """Names of the flattened outputs: the keys of a dictionary, else the layers that make them."""
    structure = getattr(model, "_outputs_struct", None)
    if isinstance(structure, dict):
        return sorted(structure)  # the order in which Keras flattens it
    names = [tensor._keras_history.operation.name for tensor in model.outputs]
    return names if len(set(names)) == len(names) else [f"output_{index}" for index in range(len(names))]


def to_onnx(frozen: Frozen, shapes: Mapping[str, Shape], opset: int | None) -> tuple[ModelProto, tuple[str, ...]]:
    """The frozen graph as ONNX at that opset, or the first of OPSETS that has what it needs; and notes.

    `shapes` are the inputs' decided shapes. Names inside are tf2onnx's still. Raises StepError that names the
    operators which have no conversion: tf2onnx itself would leave them in the graph and call it a success.
    """
    definition = _with_shapes(frozen, shapes)
    versions = OPSETS if opset is None else (opset,)
    # The highest comes second: operators that it lacks too have no conversion, and the others need not be tried.
    tried: dict[int, _Converted] = {}
    for version in dict.fromkeys((versions[0], versions[-1], *versions)):
        tried[version] = _convert(definition, frozen, version)
        missing = _operators(tried[version])
        if missing == _operators(tried[versions[0]]) if version == versions[-1] else not missing:
            break
    chosen = min((version for version, converted in tried.items() if not converted.missing), default=None)
    if chosen is None:
        nodes = [_readable(entry) for entry in tried[versions[-1]].missing]
        raise StepError(
            "tf2onnx has no conversion for these operators:\n" + listed(nodes),
            hint="replace them in the TensorFlow model by operators that ONNX has",
        )
    model = tried[chosen].model
    tensorflow_repairs.pad_transposed_convolutions(model)
    rename_interface(model, {tensor: name for name, tensor in frozen.tensors.items()}, frozen.outputs)
    lower = max((version for version in tried if version < chosen), default=None)
    notes = () if lower is None else (_opset_note(chosen, _operators(tried[lower])),)
    return model, (*notes, *tried[chosen].notes)


def _operators(converted: _Converted) -> list[str]:
    return sorted({entry.partition(" ")[0] for entry in converted.missing})


def _opset_note(version: int, missing: list[str]) -> str:
    return f"exported at opset {version}: lower ones have no form for {', '.join(missing)}"


def _readable(entry: str) -> str:
    operator, _, name = entry.partition(" ")
    return f"{operator} {cleaned(name)}"


def _tensorflow() -> Any:
    """TensorFlow, kept to the CPU, to its plain kernels (their results are repeatable) and to few words."""
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    try:
        import tensorflow as tf
        import tf2onnx
    except ImportError as error:
        raise StepError(
            f"a TensorFlow model needs the package {error.name}, which is not installed",
            hint='run: pip install "trtrecipe[tensorflow]"',
        ) from error
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    logging.getLogger(tf2onnx.__name__).setLevel(logging.ERROR)
    return tf


@contextmanager
def _explained(what: str, hint: str | None = None, folder: Path | None = None) -> Iterator[None]:
    """Turn whatever TensorFlow, Keras or tf2onnx raise about a model into a StepError with their own last words.

    Paths in `folder`, which is ours and temporary, are shown relative to it.
    """
    try:
        yield
    except StepError:
        raise
    except Exception as error:  # they share no base class, and any may come out of a damaged or unusual model
        words = " ".join(str(error).replace(f"{folder}/", "").split())
        raise StepError(f"{what}: {type(error).__name__}: {words[:400]}", hint=hint) from error


def _signature(tf: Any, folder: Path, name: str) -> Any:
    from tensorflow.core.protobuf import saved_model_pb2

    with _explained("saved_model.pb cannot be read, it is damaged or cut short", "export the model again"):
        saved = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    graphs = [graph for graph in saved.meta_graphs if "serve" in graph.meta_info_def.tags]
    if not graphs:
        tags = "; ".join(", ".join(graph.meta_info_def.tags) for graph in saved.meta_graphs)
        raise StepError(
            f"the SavedModel has no graph for serving; it has: {tags or 'none'}", hint="save it for serving"
        )
    signatures = {key: value for key, value in graphs[0].signature_def.items() if not key.startswith("__")}
    if name not in signatures:
        known = ", ".join(sorted(signatures))
        raise StepError(
            f"the SavedModel has no signature {name}",
            hint=f"set model.signature to one that exists: {known}" if known else "save the model with a signature",
        )
    if not signatures[name].outputs:
        raise StepError(f"signature {name} has no outputs", hint="set model.signature to one that has")
    return signatures[name]


def _inlined(definition: Any, outputs: list[str]) -> Any:
    """The graph, ending in the nodes `outputs`, with function calls replaced by the functions' bodies.

    tf2onnx converts no calls. Loops and conditions stay functions.
    """
    from tensorflow.core.protobuf import config_pb2, meta_graph_pb2, rewriter_config_pb2
    from tensorflow.python.grappler import tf_optimizer

    meta_graph = meta_graph_pb2.MetaGraphDef()
    meta_graph.graph_def.CopyFrom(definition)
    tensorflow_repairs.let_inline(meta_graph.graph_def)
    meta_graph.collection_def["train_op"].node_list.value.extend(outputs)
    config = config_pb2.ConfigProto()
    rewrite = config.graph_options.rewrite_options
    rewrite.min_graph_nodes = -1
    rewrite.function_optimization = rewriter_config_pb2.RewriterConfig.AGGRESSIVE
    rewrite.optimizers.append("function")
    return tf_optimizer.OptimizeGraph(config, meta_graph)


def _tensor(name: str, info: Any, role: str) -> str:
    if info.WhichOneof("encoding") != "name":
        raise StepError(
            f"{role} {name} of the signature is no plain tensor", hint="export a signature that takes and gives tensors"
        )
    return str(info.name)


def _spec(tf: Any, name: str, info: Any) -> TensorSpec:
    if info.tensor_shape.unknown_rank:
        raise StepError(
            f"the number of axes of input {name} is not known", hint="export the model with a shape for that input"
        )
    dtype = tf.dtypes.as_dtype(info.dtype).name
    return TensorSpec(name, dtype, tuple(dim.size if dim.size >= 0 else OPEN for dim in info.tensor_shape.dim))


def _with_shapes(frozen: Frozen, shapes: Mapping[str, Shape]) -> Any:
    """The graph definition with the inputs' known sizes, so that TensorFlow and tf2onnx can use them."""
    definition = type(frozen.graph)()
    definition.CopyFrom(frozen.graph)
    wanted = {frozen.tensors[name].partition(":")[0]: shape for name, shape in shapes.items()}
    for node in definition.node:
        if "_output_shapes" in node.attr:  # from before, and believed over the placeholder's own
            del node.attr["_output_shapes"]
        if node.op == "Placeholder" and node.name in wanted:
            shape = node.attr["shape"].shape
            shape.Clear()
            for entry in wanted[node.name]:
                shape.dim.add(size=entry if isinstance(entry, int) else -1)
    return definition


def _convert(definition: Any, frozen: Frozen, opset: int) -> _Converted:
    import tensorflow as tf
    from tf2onnx import optimizer, tf_loader, tfonnx

    inputs, outputs = list(frozen.tensors.values()), list(frozen.outputs.values())
    optimizers = {name: kind for name, kind in optimizer._optimizers.items() if name not in _LEFT_OUT}
    with (
        _explained("tf2onnx cannot convert the model"),
        tensorflow_repairs.failures_noted() as notes,
        tf.Graph().as_default() as graph,
    ):
        optimized = tf_loader.tf_optimize(inputs, outputs, definition)
        fake_quant.require_expressible(optimized)
        fake_quant.keep_from_folding(optimized)
        tf.import_graph_def(optimized, name="")
        converted = tfonnx.process_tf_graph(
            graph,
            continue_on_error=True,
            custom_op_handlers=fake_quant.handlers(),
            opset=opset,
            input_names=inputs,
            output_names=outputs,
        )
        tensorflow_repairs.give_scalars_an_axis(converted)
        model: ModelProto = optimizer.optimize_graph(converted, optimizers=optimizers).make_model("model")
    return _Converted(model, tuple(sound.foreign(model)), tuple(notes))


def unused_inputs(model: ModelProto, names: Collection[str]) -> list[str]:
    """Those of the signature's inputs that the converted graph does not have."""
    present = {value.name for value in model.graph.input}
    return [name for name in names if name not in present]
