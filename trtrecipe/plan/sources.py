"""Digests of what comes from outside the store: models and samples."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from trtrecipe import external_data, formats
from trtrecipe.data.errors import DataError
from trtrecipe.data.sampling import Sampling
from trtrecipe.data.sources import STREAM, ArrayData, Data, LabelData, digest_samples, in_words, to_json, used_files
from trtrecipe.digest import canonical_json, sha256_file, sha256_json
from trtrecipe.errors import InputError, Problem
from trtrecipe.store.stat import StatCache


@dataclass(frozen=True, slots=True)
class ModelSource:
    """The model's file or folder. `at` is the place in the recipe to blame."""

    path: Path
    at: Problem = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class SampleSource:
    """The selected samples of `data`. `tools`: the distributions that decide what values they become."""

    data: Data
    sampling: Sampling
    at: Problem = field(compare=False, repr=False)
    samples_at: Problem = field(compare=False, repr=False)
    tools: tuple[str, ...] = ()


Source = ModelSource | SampleSource


def model_format(model: ModelSource, declared: str | None = None, declared_at: Problem | None = None) -> str:
    """One of `formats.FORMATS`, from what is there and, where that does not tell, from what the recipe says.

    Raises InputError, at the place of `model.format` where the two contradict each other.
    """
    try:
        return formats.model_format(model.path, declared)
    except formats.FormatError as error:
        at = declared_at if declared_at is not None and error.contradicts else model.at
        raise InputError([_blame(at, error.message, error.hint)]) from None
    except OSError as error:
        raise InputError([_blame(model.at, f"{model.path} cannot be read: {error.strerror}")]) from None


def digest_sources(sources: Iterable[Source], stat: StatCache) -> dict[Source, str]:
    """The content digest of every source. Raises InputError with all problems found."""
    digests: dict[Source, str] = {}
    problems: list[Problem] = []
    for source in dict.fromkeys(sources):
        try:
            digests[source] = source_digest(source, stat)
        except DataError as error:
            labels = isinstance(source, SampleSource) and isinstance(source.data, LabelData)
            if labels and any(problem.message == error.message for problem in problems):
                continue  # of the files themselves: said where those are named
            at = source.samples_at if isinstance(source, SampleSource) and error.field == "samples" else source.at
            problems.append(_blame(at, error.message, error.hint))
        except OSError as error:
            name = error.filename or (source.path if isinstance(source, ModelSource) else in_words(source.data))
            problems.append(_blame(source.at, f"{os.fsdecode(name)}: {error.strerror or error}"))
    if problems:
        raise InputError(dict.fromkeys(problems))
    return digests


def source_digest(source: Source, stat: StatCache) -> str:
    """SHA-256 of a file, with what an ONNX model keeps in others, of a folder's files, or of the selected samples.

    Raises DataError, OSError, FileChangedError.
    """
    if isinstance(source, SampleSource):
        return _sample_digest(source.data, source.sampling, stat)
    path = source.path
    try:
        own, _, sizes = stat.digest(path, "model", partial(_read_model, path)).partition(" ")
    except IsADirectoryError:
        return sha256_json([[name, stat.digest(file, "", partial(sha256_file, file))] for name, file in _files(path)])
    if sizes == "{}":
        return own
    beside = json.loads(sizes)
    try:
        external_data.require_there(path, beside)
    except formats.FormatError as error:
        raise DataError(error.message, error.hint) from None
    others = [(name, path.parent / name) for name in sorted(beside)]
    digests = [[name, stat.digest(file, "", partial(sha256_file, file))] for name, file in others]
    return sha256_json([["", own], *digests])


def _read_model(path: Path) -> str:
    """The file's SHA-256, and as JSON what an ONNX model needs of other files: their names in its folder, and sizes.

    Raises DataError, OSError.
    """
    own = sha256_file(path)
    try:
        is_onnx = formats.model_format(path) == "onnx"
    except formats.FormatError:  # a table of scales, say; of models it is said where their format is told
        is_onnx = False
    try:
        return f"{own} {json.dumps(external_data.needed(external_data.parts(path)) if is_onnx else {})}"
    except formats.FormatError as error:
        raise DataError(error.message, error.hint) from None


def _sample_digest(data: Data, sampling: Sampling, stat: StatCache) -> str:
    how = f"{sampling.samples}|{sampling.seed}|{sampling.at_most}"
    if isinstance(data, ArrayData):
        return stat.digest(data.path, f"{STREAM}|{data.member}|{how}", lambda: digest_samples(data, sampling))
    names, files = used_files(data, sampling)
    what = f"{STREAM}|{canonical_json(to_json(data)).decode()}|{how}"
    return stat.digest_files(what, names, files, lambda: digest_samples(data, sampling))


def _files(folder: Path) -> Iterable[tuple[str, Path]]:
    """Every file of the folder as (POSIX path, path), sorted.

    Raises DataError for a link, a special file or a name that is not UTF-8, OSError for a folder that cannot be read.
    """
    found: list[tuple[str, Path]] = []
    for parent, folders, files in os.walk(folder, onerror=_raise):
        for name in (*folders, *files):
            path = Path(parent, name)
            if not _is_utf8(name):
                raise DataError(f"{parent} holds {os.fsencode(name)!r}, which is no UTF-8 name", "rename it")
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise DataError(f"{path} is no plain file", "put a copy of the file there")
            if path.is_file():
                found.append((path.relative_to(folder).as_posix(), path))
    return sorted(found)


def _raise(error: OSError) -> None:
    raise error


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _blame(at: Problem, message: str, hint: str | None = None) -> Problem:
    return replace(at, message=message, hint=hint)
