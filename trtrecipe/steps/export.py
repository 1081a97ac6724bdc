"""export: the model as a canonical ONNX graph whose inputs have every axis decided.

A SavedModel goes through the graph of one signature and tf2onnx, a Keras file through a SavedModel, an ONNX file
passes through. The same model gives the same bytes, in any process.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnx import ModelProto

    from trtrecipe.graphs.from_tensorflow import Frozen

VERSION = 1
OUTPUTS = {"onnx": "model.onnx"}
NUMERIC = True  # TensorFlow and tf2onnx compute constants on the way


@dataclass(frozen=True)
class Params:
    """`format`: saved_model, keras or onnx. `inputs`: input → {"shape": [...] | None, "dtype": str | None}.

    `dims` are the names that have a range; `opset` None is 13, or higher where the model needs it.
    """

    format: str
    signature: str | None = None
    inputs: dict[str, Any] = field(default_factory=dict)
    dims: list[str] = field(default_factory=list)
    opset: int | None = None


def tools(params: Params) -> tuple[str, ...]:
    """ONNX itself; for TensorFlow models what loads and converts them too."""
    if params.format == "onnx":
        return ("numpy", "onnx")
    return ("keras", "numpy", "onnx", "tensorflow", "tf2onnx")


def run(params: Params, inputs: Mapping[str, Path], out: Path) -> Mapping[str, Any]:
    """Write the graph of "model" (what fetch made) to `out/model.onnx`.

    Raises StepError where model and recipe do not fit, and for models that cannot be expressed in ONNX.
    """
    import tempfile

    from trtrecipe.graphs import files, sound
    from trtrecipe.graphs.canonical import canonical

    if params.format == "onnx":
        model, notes = _onnx(params, inputs["model"])
    else:
        with tempfile.TemporaryDirectory(prefix="trtrecipe-") as folder:
            model, notes = _tensorflow(params, inputs["model"], Path(folder))
    model = canonical(model, rename=params.format != "onnx")
    sound.check(model)
    files.save(model, out / OUTPUTS["onnx"])
    return {"notes": notes} if notes else {}


def _onnx(params: Params, path: Path) -> tuple[ModelProto, list[str]]:
    from trtrecipe.graphs import from_onnx, shapes
    from trtrecipe.graphs.interface import interface

    model = from_onnx.read(path, params.opset)
    bound = shapes.bind(interface(model).inputs, params.inputs, params.dims)
    _settle(model, bound.shapes)
    return model, list(bound.notes)


def _tensorflow(params: Params, path: Path, folder: Path) -> tuple[ModelProto, list[str]]:
    from trtrecipe.graphs import from_tensorflow, shapes, sound

    frozen = _frozen(params, path, folder)
    bound = shapes.bind(frozen.inputs, params.inputs, params.dims)
    model, notes = from_tensorflow.to_onnx(frozen, bound.shapes, params.opset)
    sound.require_inference_form(model)
    unused = from_tensorflow.unused_inputs(model, list(bound.shapes))
    _settle(model, {name: shape for name, shape in bound.shapes.items() if name not in unused})
    dropped = [f"input {name} does not affect any output and is no input of the graph" for name in unused]
    return model, [*bound.notes, *notes, *dropped]


def _frozen(params: Params, path: Path, folder: Path) -> Frozen:
    from trtrecipe.graphs import from_tensorflow

    if params.format == "keras":
        return from_tensorflow.freeze(from_tensorflow.from_keras(path, folder), None)
    return from_tensorflow.freeze(from_tensorflow.unpack(path, folder), params.signature)


def _settle(model: ModelProto, bound: Mapping[str, tuple[int | str, ...]]) -> None:
    """Carry the inputs' shapes through the graph: computed shapes become constants, outputs get theirs."""
    from trtrecipe.graphs.shapes import set_inputs, set_outputs
    from trtrecipe.graphs.symbolic import fold_shapes

    set_inputs(model, bound)
    fold_shapes(model)
    set_outputs(model)
