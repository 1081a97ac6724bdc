"""What a recipe asks against what its targets can do: one `Target` per entry, or the problems that stand against it.

Two passes, because names can be checked even when the rest of the recipe does not hold: `target_problems` reads the
document's plain values, `resolve_targets` the validated recipe.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from trtrecipe.errors import Problem
from trtrecipe.recipe.model import Gates, NpzData, Precision, Recipe, TargetEntry
from trtrecipe.targets.catalog import Catalog, Dialect, Profile, Release, TargetError
from trtrecipe.targets.spec import Target

Loc = tuple[int | str, ...]
MAX_PROBLEMS = 100
"""No one reads more than this; what lies behind shows when these are mended."""


class ProblemAt(Protocol):
    """Makes a problem with the position of the value at `loc`."""

    def __call__(self, loc: Loc, message: str, hint: str | None = None, /) -> Problem: ...


class LoadedRecipe(Protocol):
    """What `recipe.load.load` returns, as far as rules need it."""

    @property
    def recipe(self) -> Recipe: ...

    @property
    def problem(self) -> ProblemAt: ...


def target_problems(targets: Any, catalog: Catalog, problem: ProblemAt) -> list[Problem]:
    """Unknown profiles and releases, and ids used twice, in the plain value of the document's `targets`.

    Values of the wrong type are left to the schema.
    """
    found: list[Problem] = []
    first: dict[str, int] = {}
    for index, entry in enumerate(targets if isinstance(targets, list) else []):
        spec, name = _spec_and_name(entry)
        at: Loc = ("targets", index) if isinstance(entry, str) else ("targets", index, "profile")
        if spec is not None:
            try:
                catalog.find(spec)
            except TargetError as error:
                found.append(problem(at, error.message, error.hint))
        id = spec if name is None else name
        if id is not None and first.setdefault(id.casefold(), index) != index:
            at = at if name is None else ("targets", index, "name")
            message = f"target id {id} is taken by entry {first[id.casefold()] + 1} of targets; ids name folders"
            found.append(problem(at, message, "give one of them another `name`"))
        if len(found) >= MAX_PROBLEMS:
            break
    return found


def resolve_targets(loaded: LoadedRecipe, catalog: Catalog) -> tuple[list[Target], list[Problem]]:
    """The recipe's targets in its order, and every problem of recipe and profile. Build only when there is none."""
    recipe, problem = loaded.recipe, loaded.problem
    raw = [entry if isinstance(entry, str) else entry.model_dump(exclude_none=True) for entry in recipe.targets]
    problems = target_problems(raw, catalog, problem)
    problems += _precision_problems(recipe, problem)
    problems += _measure_problems(recipe, problem)
    targets = []
    for index, written in enumerate(recipe.targets):
        entry = _entry(written)
        try:
            profile, release = catalog.find(entry.profile)
        except TargetError:
            continue  # target_problems has it
        dialect = catalog.dialect(profile, release)
        wrong = list(_entry_problems(index, written, recipe, profile, dialect, problem))
        problems += wrong
        if not wrong:
            targets.append(_target(entry, recipe, profile, release, dialect))
    return targets, problems


def _spec_and_name(entry: Any) -> tuple[str | None, str | None]:
    if isinstance(entry, str):
        return entry, None
    if not isinstance(entry, Mapping):
        return None, None
    spec, name = entry.get("profile"), entry.get("name")
    return (spec if isinstance(spec, str) else None), (name if isinstance(name, str) else None)


def _entry(written: str | TargetEntry) -> TargetEntry:
    return TargetEntry.model_validate({"profile": written}) if isinstance(written, str) else written


def _target(entry: TargetEntry, recipe: Recipe, profile: Profile, release: Release | None, dialect: Dialect) -> Target:
    precision = entry.precision or recipe.precision
    workspace = (entry.build or recipe.build).workspace
    fallback = None
    if precision.mode == "int8":
        fallback = precision.fallback if precision.fallback in profile.fallbacks else profile.fallbacks[0]
    return Target(
        id=entry.name or entry.profile,
        profile=profile,
        release=release,
        dialect=dialect,
        precision_mode=precision.mode,
        fallback=fallback,
        workspace=workspace if dialect.workspace else None,
        dims=entry.model.dims if entry.model else recipe.model.dims,
        gates=entry.gates or recipe.gates,
        notes=tuple(_notes(profile, dialect, precision, workspace)),
    )


def _notes(profile: Profile, dialect: Dialect, precision: Precision, workspace: int | None) -> Iterator[str]:
    if precision.mode in profile.precision_notes:
        yield f"{precision.mode}: {profile.precision_notes[precision.mode]}"
    if precision.mode == "int8" and precision.fallback not in profile.fallbacks:
        yield f"fallback {precision.fallback}: {profile.precision_notes['fallback']}"
    if workspace is not None and not dialect.workspace:
        yield f"build.workspace does not apply to {profile.id}: {profile.builder} has no such limit"
    if dialect.assumed:
        table = dialect.operators_from
        yield f"assumed: TensorRT {dialect.tensorrt} takes the opsets and operators published for {table}"


def _entry_problems(
    index: int, written: str | TargetEntry, recipe: Recipe, profile: Profile, dialect: Dialect, problem: ProblemAt
) -> Iterator[Problem]:
    entry = _entry(written)
    mode = (entry.precision or recipe.precision).mode
    if mode not in profile.precisions or mode not in dialect.precisions:
        yield problem(*_refused_precision(index, written, mode, profile, dialect))
    if entry.build and entry.build.workspace is not None and not dialect.workspace:
        message = f"{profile.id} takes no workspace: {profile.builder} has no such limit"
        yield problem(("targets", index, "build", "workspace"), message, "remove it from this target")
    if entry.model and (lost := sorted(recipe.model.dims.keys() - entry.model.dims.keys())):
        message = f"model.dims of a target replaces the recipe's as a whole, here without {', '.join(lost)}"
        yield problem(("targets", index, "model", "dims"), message, "list every dimension")


def _refused_precision(
    index: int, written: str | TargetEntry, mode: str, profile: Profile, dialect: Dialect
) -> tuple[Loc, str, str]:
    able = [known for known in profile.precisions if known in dialect.precisions]
    why = profile.precision_notes.get(mode) or f"with {dialect.id} it computes {', '.join(able)}"
    block = f"precision: {{mode: {'fp16' if 'fp16' in able else 'fp32'}}}"
    if isinstance(written, str):
        return ("targets", index), f"{profile.id} has no {mode}: {why}", f"write {{profile: {written}, {block}}}"
    at: Loc = ("targets", index, "precision", "mode") if written.precision else ("targets", index, "profile")
    return at, f"{profile.id} has no {mode}: {why}", f"use {block} in this target"


def _precision_problems(recipe: Recipe, problem: ProblemAt) -> Iterator[Problem]:
    """int8 without calibration, said where the mode is written."""
    if recipe.calibration is not None:
        return
    places: dict[Loc, Precision] = {}
    for index, written in enumerate(recipe.targets):
        own = _entry(written).precision
        places[("targets", index, "precision", "mode") if own else ("precision", "mode")] = own or recipe.precision
    hint = "add a block such as calibration: {data: {npz: FILE, arrays: {INPUT: ARRAY}}}, or use mode fp16"
    for at, precision in places.items():
        if precision.mode == "int8":
            yield problem(at, "int8 needs calibration samples, and the recipe has no calibration block", hint)


def _measure_problems(recipe: Recipe, problem: ProblemAt) -> Iterator[Problem]:
    """Gates on figures that no step would measure, and a metric without the labels that it compares with."""
    metric = recipe.evaluation.metric if recipe.evaluation else None
    if recipe.evaluation and metric in ("top1", "top5"):
        data = recipe.evaluation.data
        form, named = ("arrays", data.arrays) if isinstance(data, NpzData) else ("npy", data.npy)
        if "label" not in named:
            at: Loc = ("evaluation", "data", form)
            yield problem(at, f"{metric} compares with labels, and {form} names none", "add label: NAME")
    blocks: list[tuple[Loc, Gates | None]] = [(("gates",), recipe.gates)]
    for index, written in enumerate(recipe.targets):
        blocks.append((("targets", index, "gates"), _entry(written).gates))
    for at, gates in blocks:
        if gates and gates.accuracy and metric is None:
            message = "an accuracy gate needs evaluation.metric, which says what accuracy is"
            yield problem((*at, "accuracy"), message, "add an evaluation block with a metric, or gate on cosine")
        if gates and gates.agreement is not None and metric not in ("top1", "top5"):
            message = "agreement is measured for classifiers only, where evaluation.metric is top1 or top5"
            yield problem((*at, "agreement"), message, "set that metric, or gate on cosine")
