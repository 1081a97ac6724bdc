"""The data that a recipe names → what steps are given of it, by role."""

from __future__ import annotations

from typing import Any

from trtrecipe.data.sampling import Sampling
from trtrecipe.data.sources import ALL_INPUTS, ArrayData, ColumnData, FileData, LabelData, RecordData
from trtrecipe.data.sources import Data as Selected
from trtrecipe.plan.graph import StepOutput
from trtrecipe.plan.sources import SampleSource, Source
from trtrecipe.recipe.load import Loaded
from trtrecipe.recipe.model import CsvData, Data, ImagesData, NpyData, NpzData, RawData

LABEL = "label"
_DECODES_IMAGES = ("pillow",)


def sample_sources(loaded: Loaded, block: str, sampling: Sampling) -> dict[str, Source | StepOutput]:
    """Role → the samples for it, of the recipe's block "calibration" or "evaluation"."""
    data: Data = getattr(loaded.recipe, block).data
    resizes = any("resize" in op.model_fields_set for ops in loaded.recipe.preprocess.values() for op in ops)
    tools = tuple(dict.fromkeys((*_tools(data), *(_DECODES_IMAGES if resizes else ()))))
    samples_at = loaded.problem((block, "samples"), "")
    return {
        role: SampleSource(part, sampling, loaded.problem((block, "data", *loc), ""), samples_at, tools)
        for role, part, loc in _parts(loaded, data)
    }


def _parts(loaded: Loaded, data: Data) -> list[tuple[str, Selected, tuple[Any, ...]]]:
    """Role, what its samples are selected from, and where that stands in the data block."""
    folder = loaded.path.parent
    if isinstance(data, NpzData):
        file = loaded.file(data.npz)
        return [
            (f"data.{name}", ArrayData(file, array), ("arrays", name)) for name, array in sorted(data.arrays.items())
        ]
    if isinstance(data, NpyData):
        named = sorted(data.npy.items())
        return [(f"data.{name}", ArrayData(loaded.file(file), None), ("npy", name)) for name, file in named]
    if isinstance(data, ImagesData):
        return [
            (ALL_INPUTS, FileData(folder, data.images, "images"), ("images",)),
            *_labels(loaded, data.labels, data.images),
        ]
    if isinstance(data, RawData):
        named = sorted(data.raw.items())
        return [
            *((f"data.{name}", FileData(folder, pattern, "raw"), ("raw", name)) for name, pattern in named),
            *_labels(loaded, data.labels, named[0][1]),
        ]
    if isinstance(data, CsvData):
        file = loaded.file(data.csv)
        return [
            (f"data.{name}", ColumnData(file, column, name == LABEL), ("columns", name))
            for name, column in sorted(data.columns.items())
        ]
    return [(ALL_INPUTS, RecordData(folder, data.tfrecord, tuple(sorted(data.features.items()))), ("tfrecord",))]


def _labels(loaded: Loaded, file: str | None, pattern: str) -> list[tuple[str, Selected, tuple[Any, ...]]]:
    if file is None:
        return []
    return [(f"data.{LABEL}", LabelData(loaded.path.parent, pattern, loaded.file(file)), ("labels",))]


def _tools(data: Data) -> tuple[str, ...]:
    """The distributions that decide what values files become: those that may decode them."""
    if isinstance(data, NpzData | NpyData | RawData):
        return ()
    if isinstance(data, ImagesData | CsvData):
        return _DECODES_IMAGES
    return ("tensorflow", *_DECODES_IMAGES)
