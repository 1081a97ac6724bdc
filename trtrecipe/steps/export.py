"""export: the model as a canonical ONNX graph whose inputs have every axis decided.

A SavedModel goes through the graph of one signature and tf2onnx, a Keras file through a SavedModel, a frozen graph is
one already, an ONNX file passes through. The same model gives the same bytes, in any process. Beside it goes what
became of the source model's layers (`graphs.layers`). What was written is then compared with the source (`truth`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnx import ModelProto

    from trtrecipe.graphs.frozen import Frozen
    from trtrecipe.graphs.layers import Layers
    from trtrecipe.truth.source import Source

VERSION = 3
OUTPUTS = {"onnx": "model.onnx", "layers": "layers.json"}
NUMERIC = True  # TensorFlow and tf2onnx compute constants on the way


@dataclass(frozen=True)
class Params:
    """`format`: one of `formats.FORMATS`. `inputs`: input → {"shape": [...] | None, "dtype": str | None}.

    `dims` are the names that have a range; `opset` None is 13, or higher where the model needs it. `signature` and
    `tags` choose among what a SavedModel has. `outputs` are a frozen graph's. `sizes`: name of a dimension → its length
    when the export is checked; `tolerance`: the error allowed then, `truth.check.TOLERANCE` for None.
    """

    format: str
    signature: str | None = None
    inputs: dict[str, Any] = field(default_factory=dict)
    dims: list[str] = field(default_factory=list)
    opset: int | None = None
    tags: list[str] | None = None
    outputs: list[str] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)
    tolerance: float | None = None


@dataclass(frozen=True)
class _Exported:
    """`check` compares the written file with the source; None where nothing of the source was changed."""

    model: ModelProto
    layers: Layers
    notes: list[str]
    check: Callable[[Path], dict[str, Any]] | None = None


def tools(params: Params) -> tuple[str, ...]:
    """ONNX itself; for TensorFlow models what loads and converts them too."""
    if params.format == "onnx":
        return ("numpy", "onnx")
    keras = ("keras", "tf-keras", "h5py") if params.format in ("keras", "h5") else ()
    return (*keras, "numpy", "onnx", "tensorflow", "tf2onnx")


def run(params: Params, inputs: Mapping[str, Path], out: Path) -> Mapping[str, Any]:
    """Write the graph of "model" (what fetch made) to `out/model.onnx`, its layers' nodes to `out/layers.json`.

    Measures "check", how far the graph is from its source. Raises StepError where model and recipe do not fit, for
    models that cannot be expressed in ONNX, and where the graph does not compute what its source does.
    """
    import tempfile

    from trtrecipe.errors import StepError
    from trtrecipe.graphs import files, layers, sound

    file = out / OUTPUTS["onnx"]
    with tempfile.TemporaryDirectory(prefix="trtrecipe-") as folder:
        if params.format == "onnx":
            exported = _onnx(params, inputs["model"])
        else:
            exported = _tensorflow(params, inputs["model"], Path(folder))
        sound.check(exported.model)
        files.save(exported.model, file)
        try:
            check = exported.check(file) if exported.check is not None else {}
        except StepError:
            file.unlink()
            raise
    (out / OUTPUTS["layers"]).write_bytes(layers.dump(exported.layers))
    notes = [*exported.notes, *check.pop("notes", ())]
    return {name: value for name, value in (("notes", notes), ("check", check)) if value}


def _onnx(params: Params, path: Path) -> _Exported:
    from trtrecipe.graphs import from_onnx, layers, shapes
    from trtrecipe.graphs.canonical import canonical
    from trtrecipe.graphs.interface import interface

    model = from_onnx.read(path, params.opset)
    source = [node.name for node in model.graph.node]
    bound = shapes.bind(interface(model).inputs, params.inputs, params.dims)
    _settle(model, bound.shapes)
    exported = canonical(model)

    def check(file: Path) -> dict[str, Any]:
        from trtrecipe.truth import check, onnx_source

        against = onnx_source.of_file(path, exported)
        if against is None:
            return {}
        specs = interface(exported).inputs
        return check.check(exported, file, specs, against, params.sizes, params.tolerance)

    return _Exported(exported, layers.of_onnx(source, exported), list(bound.notes), check)


def _tensorflow(params: Params, path: Path, folder: Path) -> _Exported:
    from dataclasses import replace

    from trtrecipe.graphs import from_tensorflow, layers, shapes, sound
    from trtrecipe.graphs.canonical import renamed

    asked = _asked(params)
    frozen, keras, source = _frozen(params, asked, path, folder)
    bound = shapes.bind(frozen.inputs, asked, params.dims)
    model, notes = from_tensorflow.to_onnx(frozen, bound.shapes, params.opset)
    sound.require_inference_form(model)
    unused = from_tensorflow.unused_inputs(model, list(bound.shapes))
    _settle(model, {name: shape for name, shape in bound.shapes.items() if name not in unused})
    dropped = [f"input {name} does not affect any output and is no input of the graph" for name in unused]
    exported = renamed(model)
    operations = [(node.op, node.name) for node in frozen.graph.node]
    found = layers.of_tensorflow(operations, keras, exported)
    specs = [replace(spec, shape=bound.shapes[spec.name]) for spec in frozen.inputs]

    def check(file: Path) -> dict[str, Any]:
        from trtrecipe.truth import check, culprit

        def blame(feeds: Mapping[str, Any], tolerance: float) -> str | None:
            return culprit.first(frozen, exported, found, feeds, tolerance)

        return check.check(exported.model, file, specs, source(), params.sizes, params.tolerance, blame)

    return _Exported(exported.model, found, [*bound.notes, *notes, *dropped], check)


def _asked(params: Params) -> dict[str, Any]:
    """The recipe's inputs by the names that the graph will have."""
    from trtrecipe.graphs.frozen_graph import plain

    return {plain(name) if params.format == "frozen_graph" else name: spec for name, spec in params.inputs.items()}


def _frozen(
    params: Params, asked: Mapping[str, Any], path: Path, folder: Path
) -> tuple[Frozen, list[str], Callable[[], Source]]:
    """The frozen graph, the paths of its Keras layers where the file names them, and what makes the source runnable."""
    from trtrecipe.graphs import from_keras, frozen_graph, keras_file, layers, saved_model
    from trtrecipe.truth import tensorflow_source

    ranks = {name: len(spec["shape"]) for name, spec in asked.items() if spec.get("shape")}
    if params.format == "frozen_graph":
        frozen = frozen_graph.freeze(path, list(params.inputs), params.outputs, ranks)
        return frozen, [], lambda: tensorflow_source.of_graph(frozen)
    if params.format in ("keras", "h5"):
        file = keras_file.read_archive(path) if params.format == "keras" else keras_file.read_hdf5(path)
        suffix = ".keras" if params.format == "keras" else ".h5"
        saved = from_keras.to_saved_model(path, file, suffix, folder)
        frozen = saved_model.freeze(saved.folder, ranks=ranks)
        return frozen, layers.of_keras(file.config), lambda: tensorflow_source.of_keras(saved.run)
    root = saved_model.unpack(path, folder)
    frozen = saved_model.freeze(root, params.signature, params.tags, ranks)
    return frozen, [], lambda: tensorflow_source.of_saved_model(root, params.signature, params.tags, frozen)


def _settle(model: ModelProto, bound: Mapping[str, tuple[int | str, ...]]) -> None:
    """Carry the inputs' shapes through the graph: computed shapes become constants, outputs get theirs."""
    from trtrecipe.graphs.shapes import set_inputs, set_outputs
    from trtrecipe.graphs.symbolic import fold_shapes

    set_inputs(model, bound)
    fold_shapes(model)
    set_outputs(model)
