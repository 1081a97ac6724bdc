"""What a model says of itself, in any format, read without running or converting it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trtrecipe.errors import StepError
from trtrecipe.graphs.interface import TensorSpec
from trtrecipe.graphs.shapes import OPEN


@dataclass(frozen=True)
class Signature:
    """What can be called: its inputs and outputs in the file's order. `tags`: of a SavedModel's graph, else empty."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Description:
    """`signatures`: one, called "", where a format has none. `operators`: operator or layer type → number.

    `opset` and `carries_quantization` are None where the format does not tell before it is converted.
    """

    signatures: tuple[Signature, ...]
    operators: Mapping[str, int]
    opset: int | None = None
    written_by: str | None = None
    carries_quantization: bool | None = None
    notes: tuple[str, ...] = field(default=())


def describe(path: Path, kind: str) -> Description:
    """The model at `path`, in a format of `formats.FORMATS`. Raises StepError for files that are damaged, OSError."""
    return _READERS[kind](path)


def _onnx(path: Path) -> Description:
    from trtrecipe.graphs import from_onnx
    from trtrecipe.graphs.carried import carries
    from trtrecipe.graphs.edit import all_nodes
    from trtrecipe.graphs.files import opset
    from trtrecipe.graphs.interface import interface

    model = from_onnx.read(path)
    found = interface(model)
    operators = Counter(node.op_type for node in all_nodes(model.graph))
    return Description(
        (Signature("", found.inputs, found.outputs),), _sorted(operators), opset(model), None, carries(model)
    )


def _tflite(path: Path) -> Description:
    from trtrecipe.graphs import from_tflite, tflite_file
    from trtrecipe.graphs.tflite_schema import NUMPY

    model = tflite_file.read(path)
    names: list[str | None] = [each.key for each in model.signatures] or [None]
    signatures = []
    for name in names:
        found = from_tflite.choose(model, name)

        def spec(entry: tuple[str, int], tensors: Any = found.graph.tensors) -> TensorSpec:
            tensor = tensors[entry[1]]
            shape = tuple(OPEN if axis < 0 else axis for axis in tensor.shape)
            return TensorSpec(entry[0], str(NUMPY.get(tensor.kind, tensor.kind.lower())), shape)

        inputs, outputs = map(spec, found.inputs.items()), map(spec, found.outputs.items())
        signatures.append(Signature(name or "", tuple(inputs), tuple(outputs)))
    operators = Counter(operator.name for graph in model.graphs for operator in graph.operators)
    integers = any(
        tensor.quantization is not None and tensor.data is None and tensor.kind in ("INT8", "UINT8", "INT16")
        for graph in model.graphs
        for tensor in graph.tensors
    )
    return Description(tuple(signatures), _sorted(operators), carries_quantization=integers)


def _saved_model(path: Path) -> Description:
    from trtrecipe.graphs.tensorflow_runtime import explained, tensorflow

    tf = tensorflow()
    from tensorflow.core.protobuf import saved_model_pb2

    with explained("saved_model.pb cannot be read, it is damaged or cut short", "export the model again"):
        saved = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
    if not saved.meta_graphs:
        raise StepError("saved_model.pb holds no graph", "export the model again")
    signatures, operators, version = [], Counter[str](), None
    for graph in saved.meta_graphs:
        tags = tuple(sorted(graph.meta_info_def.tags))
        version = graph.meta_info_def.tensorflow_version or version
        for node in _operations(graph.graph_def):
            operators[node.op] += 1
        for name, signature in sorted(graph.signature_def.items()):
            if not name.startswith("__"):
                inputs, outputs = _infos(tf, signature.inputs), _infos(tf, signature.outputs)
                signatures.append(Signature(name, inputs, outputs, tags))
    written_by = f"TensorFlow {version}" if version else None
    return Description(tuple(signatures), _sorted(operators), written_by=written_by)


def _infos(tf: Any, infos: Mapping[str, Any]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(name, tf.dtypes.as_dtype(info.dtype).name, _shape(info.tensor_shape))
        for name, info in sorted(infos.items())
    )


def _shape(shape: Any) -> tuple[int | str, ...]:
    if shape.unknown_rank:
        return ("...",)
    return tuple(dim.size if dim.size >= 0 else OPEN for dim in shape.dim)


def _operations(definition: Any) -> Iterable[Any]:
    yield from definition.node
    for function in definition.library.function:
        yield from function.node_def


def _frozen_graph(path: Path) -> Description:
    from trtrecipe.graphs import frozen, frozen_graph
    from trtrecipe.graphs.tensorflow_runtime import tensorflow

    tf = tensorflow()
    definition = frozen_graph.read(path)
    inputs = [node for node in definition.node if node.op in frozen.PLACEHOLDERS]
    specs = tuple(
        TensorSpec(node.name, tf.dtypes.as_dtype(node.attr["dtype"].type).name, _shape(frozen.shape_of(node)))
        for node in inputs
    )
    outputs = tuple(TensorSpec(name, "unknown", ("...",)) for name in frozen_graph.last(definition))
    operators = Counter(node.op for node in _operations(definition))
    notes = ("outputs are the operations whose result nothing reads; name those you want in model.outputs",)
    return Description((Signature("", specs, outputs),), _sorted(operators), notes=notes)


def _keras(path: Path) -> Description:
    from trtrecipe.graphs.keras_file import read_archive

    return _of_keras(read_archive(path))


def _h5(path: Path) -> Description:
    from trtrecipe.graphs.keras_file import read_hdf5

    return _of_keras(read_hdf5(path))


def _of_keras(file: Any) -> Description:
    """Inputs as the input layers say; what a layer computes from them is known to Keras alone."""
    config = file.config.get("config")
    layers = config.get("layers", ()) if isinstance(config, dict) else ()
    layers = [layer for layer in layers if isinstance(layer, dict) and isinstance(layer.get("config"), dict)]
    inputs: list[TensorSpec] = []
    for layer in layers:
        settings = layer["config"]
        shape = settings.get("batch_shape", settings.get("batch_input_shape"))
        if isinstance(shape, list) and (layer.get("class_name") == "InputLayer" or not inputs):
            dtype = settings.get("dtype") if isinstance(settings.get("dtype"), str) else "float32"
            axes = tuple(axis if isinstance(axis, int) else OPEN for axis in shape)
            inputs.append(TensorSpec(str(settings.get("name", "input")), dtype, axes))
    operators = Counter(str(layer.get("class_name")) for layer in layers)
    written_by = f"Keras {file.version}" if file.version else None
    return Description((Signature("", tuple(inputs), ()),), _sorted(operators), written_by=written_by)


def _sorted(counts: Mapping[str, int]) -> dict[str, int]:
    """The most frequent first."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


_READERS = {
    "onnx": _onnx,
    "tflite": _tflite,
    "saved_model": _saved_model,
    "frozen_graph": _frozen_graph,
    "keras": _keras,
    "h5": _h5,
}


def require_signature(description: Description, name: str | None) -> Signature:
    """The signature called `name`, else serving_default, else the first. Raises StepError, listing those there are."""
    by_name = {signature.name: signature for signature in description.signatures}
    if name is None:
        preferred = by_name.get("serving_default") or next(iter(description.signatures), None)
        if preferred is not None:
            return preferred
    elif name in by_name:
        return by_name[name]
    there = ", ".join(filter(None, by_name)) or "none"
    raise StepError(f"the model has no signature {name or 'at all'}; it has: {there}", "export it with a signature")
