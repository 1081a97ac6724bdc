"""An ONNX file as somebody gave it → a graph we work with."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import ModelProto, TensorProto

from trtrecipe import parted
from trtrecipe.errors import StepError
from trtrecipe.graphs import carried, files, functions, sound
from trtrecipe.graphs.canonical import canonical
from trtrecipe.graphs.files import opset
from trtrecipe.graphs.interface import interface
from trtrecipe.graphs.light import light, make_constant
from trtrecipe.graphs.opset import to_opset

OLDEST = 13
"""The opset that every later step can rely on at least."""

_LFS = b"version https://git-lfs.github.com/spec/"


def read(path: Path) -> ModelProto:
    """The model in the file, checked, canonical, at its own opset.

    Raises StepError for anything that is no ONNX model for inference in one file, plain or as `parted` has it.
    """
    if parted.files(path) is None:
        model = _parse(path.read_bytes())
        sound.require_one_file(model)
    else:
        model = files.load(path)
        _require_graph(model)
    sound.require_dense(model)
    _require_known_versions(model)
    model = functions.inlined(model)
    sound.require_text(model)
    carried.adopt(model)
    sound.require_known_operators(model)
    sound.check(model)
    sound.require_inference_form(model)
    _require_numbers(model)
    return canonical(model)


def at_opset(model: ModelProto, wanted: int | None) -> ModelProto:
    """The canonical model at opset `wanted`; without it at its own, 13 at least. Raises StepError."""
    present = opset(model)
    target = max(present, OLDEST) if wanted is None else wanted
    if present > target:
        return to_opset(model, target)
    return _raise_opset(model, target) if present < target else model


def _parse(data: bytes) -> ModelProto:
    if data.startswith(_LFS):
        raise StepError(
            "the model file is a Git LFS pointer, not the model itself", hint="run git lfs pull in its repository"
        )
    model = ModelProto()
    try:
        model.ParseFromString(data)
    except Exception as error:  # DecodeError; where protobuf keeps it differs between its versions
        raise StepError(
            "the model file is no ONNX model, or it is cut short", hint="compare its size with the original's"
        ) from error
    _require_graph(model)
    return model


def _require_graph(model: ModelProto) -> None:
    if not model.opset_import or not (model.graph.node or model.graph.input):
        raise StepError("the model file holds no ONNX graph", hint="check model.source and model.format")


def _require_known_versions(model: ModelProto) -> None:
    """Refuse what the installed onnx is too old for, or never knew."""
    newest = onnx.defs.onnx_opset_version()
    for what, found, least, most in (
        ("IR version", model.ir_version, 3, onnx.IR_VERSION),
        ("opset", opset(model), 7, newest),
    ):
        if found > most:
            raise StepError(
                f"the model is written in {what} {found}, and the installed onnx {onnx.__version__} knows {most} at "
                "most",
                hint=f"install a newer onnx, or save the model in {what} {most} or older",
            )
        if found < least:
            raise StepError(
                f"the model is written in {what} {found}, and {least} is the oldest that is read",
                hint=f"export it again at opset {OLDEST}",
            )


def _require_numbers(model: ModelProto) -> None:
    constant = {tensor.name for tensor in model.graph.initializer}
    for what, values in (("input", model.graph.input), ("output", model.graph.output)):
        for value in values:
            if value.type.tensor_type.elem_type == TensorProto.STRING and value.name not in constant:
                raise StepError(
                    f"{what} {value.name} of the model is of strings, and engines take and give numbers only",
                    hint="cut the graph where numbers begin, or end (model.outputs), and do the rest around the engine",
                )


def _raise_opset(model: ModelProto, version: int) -> ModelProto:
    slim, large = light(model)
    try:
        raised = onnx.version_converter.convert_version(slim, version)
    except Exception as error:  # the converter is C++ and raises several unrelated types, all of them about the model
        raise StepError(
            f"the model is written in opset {opset(model)} and onnx cannot raise it to {version}: "
            f"{' '.join(str(error).split())[:300]}",
            hint=f"export it again at opset {version}",
        ) from error
    make_constant(raised, large)
    sound.check(raised)
    if changed := [
        str(spec) for spec in interface(model).inputs if str(spec) not in map(str, interface(raised).inputs)
    ]:
        raise StepError(
            f"the model is written in opset {opset(model)}, and onnx gives it other inputs when it raises it to "
            f"{version}: it takes {'; '.join(changed)}",
            hint=f"export it again at opset {version}",
        )
    return canonical(raised)
