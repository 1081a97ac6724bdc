"""An ONNX file as it was given, as something to compare with where its operator set was changed."""

from __future__ import annotations

from pathlib import Path

from onnx import ModelProto

from trtrecipe.engines.ort import OrtEngine
from trtrecipe.errors import StepError
from trtrecipe.graphs import files
from trtrecipe.graphs.interface import Interface, interface
from trtrecipe.truth.source import Source


def of_file(path: Path, exported: ModelProto) -> Source | None:
    """The graph in the file, run by ONNX Runtime; None where the export kept its opset, so that nothing was converted.

    Where ONNX Runtime cannot run the file (its operator set is too old), or the export takes other types, the source
    only bears a note.
    """
    given = files.load(path)
    if files.opset(given) == files.opset(exported):
        return None
    before = f"the given graph at opset {files.opset(given)}"
    if _types(interface(given)) != _types(interface(exported)):
        return Source(before, None, (f"{before} could not be compared with the export: it takes other types",))
    try:
        engine = OrtEngine(path, threads=0)
    except StepError as error:
        return Source(before, None, (f"{before} could not be compared with the export: {error.message}",))
    return Source(f"{before} computes", engine.run)


def _types(graph: Interface) -> list[tuple[str, str]]:
    return [(spec.name, spec.dtype) for spec in (*graph.inputs, *graph.outputs)]
