"""A TFLite model as something to compare with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trtrecipe.engines.tflite_source import TfliteSource
from trtrecipe.graphs.engine_side import EngineSide
from trtrecipe.truth.engine_side import as_engine
from trtrecipe.truth.source import Source

_WHAT = "the TFLite model computes"


def of_file(path: Path, signature: str | None, outputs: Sequence[str], side: EngineSide) -> Source:
    """The file, run by LiteRT's interpreter and fed as the engine is.

    `path`, `signature` and `outputs` are `from_tflite.read`'s. Where the graph ends at a node that is no tensor of the
    file, the source only bears a note. Raises StepError.
    """
    source = TfliteSource(path, signature, outputs)
    if inner := sorted(side.outputs.keys() - set(source.outputs)):
        note = f"the export was not compared with the TFLite model, which has no tensor {', '.join(inner)}"
        return Source(_WHAT, None, (note,))
    steps = {side.outputs[name]: step for name, step in source.steps().items() if name in side.outputs}
    return as_engine(Source(_WHAT, source.run, steps=steps), side)
