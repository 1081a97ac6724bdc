"""Outputs of all samples: collected batch by batch, kept in an .npz file whose bytes depend on the values alone."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from trtrecipe.data.batches import Batch
from trtrecipe.data.preprocess import Array
from trtrecipe.errors import StepError

Run = Callable[[Mapping[str, Array]], Mapping[str, Array]]


def collect(run: Run, batches: Iterable[Batch]) -> tuple[dict[str, Array], list[str]]:
    """Every output of all batches along a first axis, and notes on outputs that have none.

    Where an output's first axis is the batch's, the samples are strung together and those that only filled the last
    batch are cut. Any other output gets one entry per batch. An output that changes its shape from batch to batch is
    left out, with a note. Raises StepError when nothing is left.
    """
    pieces: dict[str, list[Array]] = {}
    sizes: list[Batch] = []
    for batch in batches:
        sizes.append(Batch({}, batch.size, batch.count))
        for name, value in run(batch.feeds).items():
            pieces.setdefault(name, []).append(value)
    collected, notes = {}, []
    for name in sorted(pieces):
        values = pieces[name]
        if all(v.ndim and len(v) == b.size for v, b in zip(values, sizes, strict=True)):
            values = [value[: batch.count] for value, batch in zip(values, sizes, strict=True)]
        else:
            values = [value[None] for value in values]
        if len({value.shape[1:] for value in values}) > 1:
            notes.append(f"output {name} changes its shape with the samples, so it is not compared")
            continue
        collected[name] = np.concatenate(values)
    if not collected:
        raise StepError(
            "no output can be compared: each changes its shape with the samples",
            "give the model an output of fixed shape, e.g. the scores before non-maximum suppression",
        )
    return collected, notes


def pick(outputs: Mapping[str, Array], first: str, name: str | None) -> str:
    """The output that a metric reads: `name`, else the graph's `first`. Raises StepError when it does not exist."""
    chosen = name or first
    if chosen not in outputs:
        raise StepError(
            f"the metric reads output {chosen}, which is not among the outputs",
            f"outputs: {', '.join(outputs)}; name one under evaluation.output",
        )
    return chosen


def write_npz(path: Path, arrays: Mapping[str, Array]) -> None:
    """An uncompressed .npz file, members sorted by name and without times."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name in sorted(arrays):
            entry = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            entry.create_system = 3  # the same on every system
            with archive.open(entry, "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.ascontiguousarray(arrays[name]), (1, 0), allow_pickle=False)


def read_npz(path: Path) -> dict[str, Array]:
    """The arrays of a file that `write_npz` wrote."""
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}
