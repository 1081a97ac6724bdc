"""ONNX files: read with a clear error, written so that equal graphs are equal bytes.

A model that a protobuf message cannot hold is written in the form of `trtrecipe.parted`, any other as one plain file.
Read from the former, large tensors name the place of their values (`graphs.values`) and hold none.
"""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError, EncodeError  # type: ignore[import-untyped]  # protobuf ships no types

from trtrecipe import parted
from trtrecipe.errors import StepError
from trtrecipe.graphs import values
from trtrecipe.graphs.edit import all_tensors
from trtrecipe.graphs.light import without


def load(path: Path) -> onnx.ModelProto:
    """The model in `path`. Raises StepError when it is no ONNX file."""
    held = parted.files(path)
    try:
        if held is None:
            return onnx.load_model(str(path), format="protobuf")
        return _attached(path, *held)
    except (DecodeError, onnx.checker.ValidationError) as error:
        raise StepError(f"{path.name} is not a readable ONNX file: {error}", "export the model again") from None


def load_in_folder(path: Path) -> onnx.ModelProto:
    """The model in the plain file `path`, some of whose values lie in other files of its folder."""
    model = onnx.load_model(str(path), format="protobuf", load_external_data=False)
    for tensor in values.outside(model):
        found = values.place(tensor)
        values.put(tensor, found._replace(file=str(path.parent.absolute() / found.file)))
    return model


def save(model: onnx.ModelProto, path: Path) -> None:
    """Write `model`, map entries in a fixed order: in one plain file where it fits, else as `parted` has it.

    Raises StepError for a graph that is too large without its values.
    """
    if (data := in_one(model)) is not None:
        path.write_bytes(data)
        return
    graph, tensors = _parts(model, parted.data_name(path.name))
    places = (values.place(tensor) for tensor in graph.graph.initializer if values.is_outside(tensor))
    starts = dict.fromkeys(found.start for found in places)
    pieces = (
        parted.Values(start, values.size(tensor), iter((values.content(tensor),)))
        for start, tensor in zip(starts, tensors, strict=True)
    )
    parted.write(path, path.name, _serialized(graph), pieces)


def in_one(model: onnx.ModelProto) -> bytes | None:
    """The model as one message with all its values; None where there are too many of them."""
    if sum(values.size(tensor) for tensor in all_tensors(model.graph)) > parted.LIMIT:
        return None
    if any(values.outside(model)):
        whole = onnx.ModelProto()
        whole.CopyFrom(model)
        for tensor in values.outside(whole):
            tensor.CopyFrom(values.inline(tensor))
        model = whole
    try:
        data: bytes = model.SerializeToString(deterministic=True)
    except (ValueError, EncodeError):
        return None
    return data if len(data) <= parted.LIMIT else None


def beside(model: onnx.ModelProto) -> tuple[bytes, Path] | None:
    """The model as a message that names its large values by files of one folder, and that folder; None where they lie
    in several, or nowhere but in the model, or where the model is too large even so."""
    folders = {Path(values.place(tensor).file).parent for tensor in values.outside(model)}
    if len(folders) != 1:
        return None
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for tensor in values.outside(result):
        found = values.place(tensor)
        values.put(tensor, found._replace(file=Path(found.file).name))
    try:
        return result.SerializeToString(deterministic=True), folders.pop()
    except (ValueError, EncodeError):
        return None


def lay_out(model: onnx.ModelProto, folder: Path) -> Path:
    """The model as a file in `folder` that other tools read, and beside it what it keeps its values in.

    What is large is no copy where the file system links files.
    """
    path = folder / "model.onnx"
    found = beside(model)
    if found is None:
        whole = folder / "whole"
        save(model, whole)
        return parted.unpack(whole, folder, path.name)[path.name]
    graph, source = found
    path.write_bytes(graph)
    for name in {Path(values.place(tensor).file).name for tensor in values.outside(model)}:
        try:
            os.link(source / name, folder / name)
        except OSError:
            shutil.copyfile(source / name, folder / name)
    return path


def opset(model: onnx.ModelProto) -> int:
    """Version of the default operator set that `model` is written in."""
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)


def _attached(path: Path, graph: parted.File, data: parted.File) -> onnx.ModelProto:
    """The graph of a parted file, its tensors naming places of that very file."""
    with path.open("rb") as file:
        model = onnx.load_model_from_string(b"".join(parted.pieces(file, graph.start, graph.size)))
    for tensor in values.outside(model):
        found = values.place(tensor)
        values.put(tensor, values.Place(str(path.absolute()), data.start + found.start, found.size))
    return model


def _parts(model: onnx.ModelProto, name: str) -> tuple[onnx.ModelProto, list[onnx.TensorProto]]:
    """The model with its large tensors in a file of that name, and those tensors, each once, in the order of places."""
    graph = without(model)
    at = 0
    known: dict[values.Place, int] = {}
    tensors = []
    for tensor in model.graph.initializer:
        size = values.size(tensor)
        if not parted.lies_outside(math.prod(tensor.dims), size):
            graph.graph.initializer.append(values.inline(tensor))
            continue
        former = values.place(tensor) if values.is_outside(tensor) else None
        start = known.get(former) if former is not None else None
        if start is None:
            start = at
            at = parted.after(at + size)
            tensors.append(tensor)
            if former is not None:
                known[former] = start
        held = graph.graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        values.put(held, values.Place(name, start, size))
    for tensor in all_tensors(graph.graph):  # of bodies and attributes
        if values.is_outside(tensor) and values.place(tensor).file != name:
            tensor.CopyFrom(values.inline(tensor))
    return graph, tensors


def _serialized(graph: onnx.ModelProto) -> bytes:
    try:
        data: bytes = graph.SerializeToString(deterministic=True)
    except (ValueError, EncodeError):
        raise StepError(
            "the graph has more than 2 GiB beside the weights of its main part, and cannot be written",
            "export the model in parts",
        ) from None
    return data
