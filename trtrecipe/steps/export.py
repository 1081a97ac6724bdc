"""export: the model as a canonical ONNX graph whose inputs have every axis decided.

A SavedModel goes through the graph of one signature and tf2onnx, a Keras file through a SavedModel, a frozen graph is
one already, a TFLite file is written operator by operator, an ONNX file passes through. The same model gives the same
bytes, in any process. Beside it goes what became of the source model's layers (`graphs.layers`). What was written is
then compared with the source (`truth`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnx import ModelProto

    from trtrecipe.graphs.engine_side import EngineSide
    from trtrecipe.graphs.frozen import Frozen
    from trtrecipe.graphs.layers import Layers
    from trtrecipe.truth.source import Source

VERSION = 4
OUTPUTS = {"onnx": "model.onnx", "layers": "layers.json"}
NUMERIC = True  # TensorFlow and tf2onnx compute constants on the way


@dataclass(frozen=True)
class Params:
    """`format`: one of `formats.FORMATS`.

    `inputs`: the engine's input → {"shape": [...] | None, "dtype": str | None, "layout": "nchw" | "nhwc" | None}.
    `dims` are the names that have a range; `opset` None is 13, or higher where the model needs it. `signature` and
    `tags` choose among what a SavedModel has. `outputs`: tensors that the graph ends in, by the model's names; none:
    those of the model. `rename`: the model's name of an input or output → the engine's. `tolerance`: the error allowed
    when the export is checked, `truth.check.TOLERANCE` for None.
    """

    format: str
    signature: str | None = None
    inputs: dict[str, Any] = field(default_factory=dict)
    dims: list[str] = field(default_factory=list)
    opset: int | None = None
    tags: list[str] | None = None
    outputs: list[str] = field(default_factory=list)
    tolerance: float | None = None
    rename: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Exported:
    """`check` compares the written file with the source; None where nothing of the source was changed."""

    model: ModelProto
    layers: Layers
    notes: list[str]
    check: Callable[[Path, Mapping[str, int]], dict[str, Any]] | None = None


def tools(params: Params) -> tuple[str, ...]:
    """ONNX itself; for TensorFlow models what loads and converts them too."""
    if params.format == "onnx":
        return ("numpy", "onnx")
    if params.format == "tflite":
        return ("ai-edge-litert", "numpy", "onnx")
    keras = ("keras", "tf-keras", "h5py") if params.format in ("keras", "h5") else ()
    return (*keras, "numpy", "onnx", "tensorflow", "tf2onnx")


def run(
    params: Params, inputs: Mapping[str, Path], out: Path, *, sizes: Mapping[str, int] = MappingProxyType({})
) -> Mapping[str, Any]:
    """Write the graph of "model" (what fetch made) to `out/model.onnx`, its layers' nodes to `out/layers.json`.

    `sizes`: name of a dimension → its length when the export is checked, which changes no output.

    Measures "check", how far the graph is from its source. Raises StepError where model and recipe do not fit, for
    models that cannot be expressed in ONNX or whose inputs count no samples, and where the graph does not compute what
    its source does.
    """
    import tempfile

    from trtrecipe.data.batches import batch_size
    from trtrecipe.errors import StepError
    from trtrecipe.graphs import files, layers, sound
    from trtrecipe.graphs.interface import interface

    file = out / OUTPUTS["onnx"]
    with tempfile.TemporaryDirectory(prefix="trtrecipe-") as folder:
        if params.format == "onnx":
            exported = _onnx(params, inputs["model"])
        elif params.format == "tflite":
            exported = _tflite(params, inputs["model"])
        else:
            exported = _tensorflow(params, inputs["model"], Path(folder))
        sound.check(exported.model)
        batch_size(interface(exported.model))  # which no later step can do without
        files.save(exported.model, file)
        try:
            check = exported.check(file, sizes) if exported.check is not None else {}
        except StepError:
            file.unlink()
            raise
    (out / OUTPUTS["layers"]).write_bytes(layers.dump(exported.layers))
    notes = [*exported.notes, *check.pop("notes", ())]
    return {name: value for name, value in (("notes", notes), ("check", check)) if value}


def _onnx(params: Params, path: Path) -> _Exported:
    from trtrecipe.graphs import cut, from_onnx, layers, retype

    given = from_onnx.read(path)
    widened = retype.bfloat16_to_floats(given)
    ended = cut.cut(given, params.outputs) if params.outputs else None
    ends = given if ended is None else ended.model
    source = [node.name for node in ends.graph.node]  # before shapes are settled in that very graph
    exported, side, notes = _as_engine(params, from_onnx.at_opset(ends, params.opset))
    found = layers.of_onnx(source, exported)

    def check(file: Path, sizes: Mapping[str, int]) -> dict[str, Any]:
        from trtrecipe.graphs.interface import interface
        from trtrecipe.truth import check, onnx_source

        # Read again: the graph that was settled is no source to compare it with.
        given = path if ended is None else cut.cut(from_onnx.read(path), params.outputs).model
        against = onnx_source.of_file(given, exported, side)
        if against is None:
            return {}
        return check.check(exported, file, interface(exported).inputs, against, sizes, params.tolerance)

    return _Exported(exported, found, [*(cut.note_dropped(ended.dropped) if ended else ()), *widened, *notes], check)


def _tflite(params: Params, path: Path) -> _Exported:
    from trtrecipe.graphs import cut, from_tflite, sound

    converted = from_tflite.read(path, params.signature, params.opset, params.outputs)
    sound.require_inference_form(converted.model)
    ended = cut.cut(converted.model, params.outputs) if params.outputs else None
    exported, side, notes = _as_engine(params, converted.model if ended is None else ended.model)
    present = {node.name for node in exported.graph.node}
    found = {layer: [name for name in nodes if name in present] for layer, nodes in converted.layers.items()}

    def check(file: Path, sizes: Mapping[str, int]) -> dict[str, Any]:
        from trtrecipe.graphs.interface import interface
        from trtrecipe.truth import check, tflite_source

        against = tflite_source.of_file(path, params.signature, params.outputs, side)
        return check.check(exported, file, interface(exported).inputs, against, sizes, params.tolerance)

    said = [*(cut.note_dropped(ended.dropped) if ended else ()), *converted.notes, *notes]
    return _Exported(exported, found, said, check)


def _as_engine(params: Params, model: ModelProto) -> tuple[ModelProto, EngineSide, list[str]]:
    """The graph with the names, layouts and axes that the recipe asks for, how these differ, and notes."""
    from trtrecipe.graphs import engine_side, input_layout, shapes
    from trtrecipe.graphs.canonical import canonical
    from trtrecipe.graphs.interface import interface

    changed, side = engine_side.of_graph(model, params.inputs, params.rename)
    bound = shapes.bind(interface(changed).inputs, params.inputs, params.dims)
    _settle(changed, bound.shapes)
    notes = input_layout.settle(changed, side.layouts) if side.perms else []
    return canonical(changed), side, [*bound.notes, *notes]


def _tensorflow(params: Params, path: Path, folder: Path) -> _Exported:
    from dataclasses import replace

    from trtrecipe.graphs import cut, from_tensorflow, frozen_graph, input_layout, layers, shapes, sound
    from trtrecipe.graphs.canonical import renamed

    if params.format == "frozen_graph":  # whose recipe may call a tensor `image:0`
        params = replace(params, inputs={frozen_graph.plain(name): spec for name, spec in params.inputs.items()})
    frozen, side, keras, source, dropped = _frozen(params, path, folder)
    bound = shapes.bind(side.specs(frozen.inputs), params.inputs, params.dims)
    model, notes = from_tensorflow.to_onnx(frozen, side.shapes(bound.shapes), params.opset)
    sound.require_inference_form(model)
    unused = from_tensorflow.unused_inputs(model, list(bound.shapes))
    for name, perm in side.perms.items():
        if name not in unused:
            input_layout.transpose(model, name, perm)
    _settle(model, {name: shape for name, shape in bound.shapes.items() if name not in unused})
    if side.perms:
        notes = (*notes, *input_layout.settle(model, side.layouts))
    without = [f"input {name} does not affect any output and is no input of the graph" for name in unused]
    exported = renamed(model)
    operations = [(node.op, node.name) for node in frozen.graph.node]
    found = layers.of_tensorflow(operations, keras, exported)
    specs = [replace(spec, shape=bound.shapes[spec.name]) for spec in frozen.inputs]

    def check(file: Path, sizes: Mapping[str, int]) -> dict[str, Any]:
        from trtrecipe.truth import check, culprit, engine_side

        def blame(feeds: Mapping[str, Any], tolerance: float) -> str | None:
            return culprit.first(frozen, exported, found, side.arrays(feeds), tolerance, feeds)

        against = engine_side.as_engine(source(), side)
        return check.check(exported.model, file, specs, against, sizes, params.tolerance, blame)

    said = [*cut.note_dropped(dropped), *bound.notes, *notes, *without]
    return _Exported(exported.model, found, said, check)


def frozen_source(params: Params, path: Path, folder: Path) -> tuple[Frozen, EngineSide]:
    """What a TensorFlow model is exported from: its frozen graph with the engine's names, and how these differ.

    `path` is what fetch made, `folder` an empty one. Raises StepError as `run`.
    """
    return _frozen(params, path, folder)[:2]


def _frozen(
    params: Params, path: Path, folder: Path
) -> tuple[Frozen, EngineSide, list[str], Callable[[], Source], Sequence[str]]:
    """The frozen graph with the engine's names and how these differ, the paths of its Keras layers where the file names
    them, what makes the source runnable, and inputs that `params.outputs` does without."""
    from dataclasses import replace

    from trtrecipe.graphs import engine_side, frozen_interface, tensorflow_repairs
    from trtrecipe.truth import tensorflow_source

    frozen, keras, source = _read_frozen(params, path, folder)
    dropped: Sequence[str] = ()
    notes: tuple[str, ...] = ()
    if tensorflow_repairs.widen(frozen.graph):
        specs = [replace(each, dtype="float32") if each.dtype == "bfloat16" else each for each in frozen.inputs]
        frozen, notes = replace(frozen, inputs=tuple(specs)), (_WIDENED,)
    if params.outputs and params.format != "frozen_graph":
        ended = frozen_interface.cut_at(frozen, params.outputs)
        frozen, dropped = ended.frozen, ended.dropped
        if ended.inner or dropped:  # the model itself gives no such outputs, or takes more
            source = tensorflow_source.of_graph
    own = frozen
    if notes:
        source = lambda graph: replace(tensorflow_source.of_graph(graph), notes=notes)  # noqa: E731
    rename = _rename(params)
    side = engine_side.of(
        own.inputs, list(own.outputs), params.inputs, rename, lambda name: frozen_interface.layout(own, name)
    )
    called = frozen_interface.renamed(own, {**side.inputs, **side.outputs})
    return called, side, keras, lambda: source(own), dropped


_WIDENED = (
    "the model computes in bfloat16, which ONNX Runtime and most of TensorRT's releases do not: it becomes FP32, "
    "and was compared in FP32"
)


def _rename(params: Params) -> dict[str, str]:
    """What the recipe renames, by the names that the model's inputs and outputs have here."""
    from trtrecipe.graphs.frozen_graph import plain

    return {plain(old) if params.format == "frozen_graph" else old: new for old, new in params.rename.items()}


def _read_frozen(params: Params, path: Path, folder: Path) -> tuple[Frozen, list[str], Callable[[Frozen], Source]]:
    """The frozen graph as the model has it, its Keras layers, and what makes the source runnable for such a graph."""
    from trtrecipe.graphs import from_keras, frozen_graph, keras_file, layers, saved_model
    from trtrecipe.truth import tensorflow_source

    olds = {new: old for old, new in params.rename.items()}
    asked = {olds.get(name, name): spec for name, spec in params.inputs.items()}
    ranks = {name: len(spec["shape"]) for name, spec in asked.items() if spec.get("shape")}
    if params.format == "frozen_graph":
        ranks = {frozen_graph.plain(name): rank for name, rank in ranks.items()}
        frozen = frozen_graph.freeze(path, list(asked), params.outputs, ranks)
        return frozen, [], tensorflow_source.of_graph
    if params.format in ("keras", "h5"):
        file = keras_file.read_archive(path) if params.format == "keras" else keras_file.read_hdf5(path)
        suffix = ".keras" if params.format == "keras" else ".h5"
        saved = from_keras.to_saved_model(path, file, suffix, folder)
        frozen = saved_model.freeze(saved.folder, ranks=ranks)
        return frozen, layers.of_keras(file.config), lambda _: tensorflow_source.of_keras(saved.run)
    root = saved_model.unpack(path, folder)
    frozen = saved_model.freeze(root, params.signature, params.tags, ranks)
    return frozen, [], lambda own: tensorflow_source.of_saved_model(root, params.signature, params.tags, own)


def _settle(model: ModelProto, bound: Mapping[str, tuple[int | str, ...]]) -> None:
    """Carry the inputs' shapes through the graph: computed shapes become constants, outputs get theirs."""
    from trtrecipe.graphs.shapes import set_inputs, set_outputs
    from trtrecipe.graphs.symbolic import fold_shapes

    set_inputs(model, bound)
    fold_shapes(model)
    set_outputs(model)
