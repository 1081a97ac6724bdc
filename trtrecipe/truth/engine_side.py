"""A model that is fed and read as the engine is: by the engine's names, in its layouts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from trtrecipe.data.preprocess import Array
from trtrecipe.graphs.engine_side import EngineSide
from trtrecipe.truth.source import Run, Source


def as_engine(source: Source, side: EngineSide) -> Source:
    """The source with inputs and outputs as `side` has them; `steps` are by the engine's names already."""
    run = source.run
    if run is None or not side.changes:
        return source
    return replace(source, run=_through(run, side))


def _through(run: Run, side: EngineSide) -> Run:
    olds = {new: old for old, new in side.inputs.items()}

    def changed(feeds: Mapping[str, Array]) -> dict[str, Array]:
        given = {olds[name]: array for name, array in side.arrays(feeds).items()}
        return {side.outputs[name]: array for name, array in run(given).items() if name in side.outputs}

    return changed
