"""An ONNX file as it was given, as something to compare with where its operator set was changed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from onnx import ModelProto

from trtrecipe.engines.ort import OrtEngine
from trtrecipe.errors import StepError
from trtrecipe.graphs import files
from trtrecipe.graphs.engine_side import EngineSide
from trtrecipe.graphs.interface import Interface, interface
from trtrecipe.truth.engine_side import as_engine
from trtrecipe.truth.source import Source


def of_file(given: Path | ModelProto, exported: ModelProto, side: EngineSide) -> Source | None:
    """The given graph, run by ONNX Runtime and fed as the engine is; None where its opset and layouts were kept, as
    nothing was rewritten then.

    Where ONNX Runtime cannot run it (its operator set is too old), or the export takes other types, the source only
    bears a note.
    """
    model = given if isinstance(given, ModelProto) else files.load(given)
    if files.opset(model) == files.opset(exported) and not side.perms:
        return None
    before = f"the given graph at opset {files.opset(model)}"
    if _types(interface(model), {**side.inputs, **side.outputs}) != _types(interface(exported), {}):
        return Source(before, None, (f"{before} could not be compared with the export: it takes other types",))
    try:
        engine = OrtEngine(given, threads=0)
    except StepError as error:
        return Source(before, None, (f"{before} could not be compared with the export: {error.message}",))
    return as_engine(Source(f"{before} computes", engine.run), side)


def _types(graph: Interface, names: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(names.get(spec.name, spec.name), spec.dtype) for spec in (*graph.inputs, *graph.outputs)]
