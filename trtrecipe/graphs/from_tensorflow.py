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
from trtrecipe.graphs import sound
from trtrecipe.graphs.interface import TensorSpec
from trtrecipe.graphs.names import rename_interface
from trtrecipe.graphs.shapes import OPEN, Shape
from trtrecipe.graphs.sound import listed

DEFAULT_SIGNATURE = "serving_default"
OPSETS = (13, 16, 17, 18)
"""Tried in turn when the recipe asks for none: the oldest devices take 13, some operators need more."""

_HDF5 = b"\x89HDF"


@dataclass(frozen=True)
class Frozen:
    """A signature's graph with its variables as constants. `tensors`: input name → TensorFlow's name of it."""

    graph: Any
    inputs: tuple[TensorSpec, ...]
    tensors: Mapping[str, str]
    outputs: Mapping[str, str]


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
    v1 = tf.compat.v1
    operations = sorted({tensor.partition(":")[0] for tensor in outputs.values()})
    with _explained("TensorFlow cannot load the model"), v1.Session(graph=tf.Graph()) as session:
        v1.saved_model.loader.load(session, ["serve"], str(folder))
        definition = v1.graph_util.convert_variables_to_constants(session, session.graph.as_graph_def(), operations)
    specs = tuple(_spec(tf, name, chosen.inputs[name]) for name in inputs)
    return Frozen(definition, specs, inputs, outputs)


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
    with _explained("Keras cannot load the model"):
        model = keras.saving.load_model(named, compile=False, safe_mode=True)
    if not getattr(model, "inputs", None):
        raise StepError(
            "the Keras model does not say what its inputs are (a subclassed or unbuilt model)",
            hint="export it as a SavedModel with a signature: model.export('model')",
        )
    signature = [tf.TensorSpec(tensor.shape, tensor.dtype, tensor.name) for tensor in model.inputs]
    names = _keras_outputs(model)

    def serve(*arguments: Any) -> dict[str, Any]:
        # The list of inputs is the form that every functional and sequential model takes.
        result = model(list(arguments) if len(arguments) > 1 else arguments[0], training=False)
        return dict(zip(names, keras.tree.flatten(result), strict=True))

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
    names = [str(name) for name in getattr(model, "output_names", None) or []]
    if len(names) == len(model.outputs) and len(set(names)) == len(names):
        return names
    return [f"output_{index}" for index in range(len(model.outputs))]


def to_onnx(frozen: Frozen, shapes: Mapping[str, Shape], opset: int | None) -> tuple[ModelProto, tuple[str, ...]]:
    """The frozen graph as ONNX at that opset, or the first of OPSETS that has what it needs; and notes.

    `shapes` are the inputs' decided shapes. Names inside are tf2onnx's still. Raises StepError that names the
    operators which have no conversion: tf2onnx itself would leave them in the graph and call it a success.
    """
    definition = _with_shapes(frozen, shapes)
    left: list[str] = []
    for version in OPSETS if opset is None else (opset,):
        first, left = left, []
        model = _convert(definition, frozen, version)
        left = sound.foreign(model)
        if not left:
            rename_interface(model, {tensor: name for name, tensor in frozen.tensors.items()}, frozen.outputs)
            notes = (f"exported at opset {version}; below it has no form for: {', '.join(first[:3])}",) if first else ()
            return model, notes
    raise StepError(
        "tf2onnx has no conversion for these operators:\n" + listed(left),
        hint="replace them in the TensorFlow model by operators that ONNX has",
    )


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
def _explained(what: str) -> Iterator[None]:
    """Turn whatever TensorFlow, Keras or tf2onnx raise about a model into a StepError with their own last words."""
    try:
        yield
    except StepError:
        raise
    except Exception as error:  # they share no base class, and any may come out of a damaged or unusual model
        words = " ".join(str(error).split())
        raise StepError(f"{what}: {type(error).__name__}: {words[:600]}") from error


def _signature(tf: Any, folder: Path, name: str) -> Any:
    from tensorflow.core.protobuf import saved_model_pb2

    with _explained("saved_model.pb cannot be read, it is damaged or cut short"):
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
        raise StepError(f"signature {name} has no outputs", hint=f"its model.signature must be another: {signatures}")
    return signatures[name]


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


def _convert(definition: Any, frozen: Frozen, opset: int) -> ModelProto:
    import tf2onnx

    with _explained("tf2onnx cannot convert the model"):
        model, _ = tf2onnx.convert.from_graph_def(
            definition,
            input_names=list(frozen.tensors.values()),
            output_names=list(dict.fromkeys(frozen.outputs.values())),
            opset=opset,
        )
    converted: ModelProto = model
    return converted


def unused_inputs(model: ModelProto, names: Collection[str]) -> list[str]:
    """Those of the signature's inputs that the converted graph does not have."""
    present = {value.name for value in model.graph.input}
    return [name for name in names if name not in present]
