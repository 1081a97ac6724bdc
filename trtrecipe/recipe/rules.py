"""What a recipe asks against what its targets can do: a `Target` per entry and mode, and what stands against it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from trtrecipe.errors import Problem
from trtrecipe.recipe import dla
from trtrecipe.recipe.checks import LABEL
from trtrecipe.recipe.document import MAX_PROBLEMS
from trtrecipe.recipe.findings import Finding
from trtrecipe.recipe.model import Precision, Recipe, TargetEntry
from trtrecipe.targets.catalog import Catalog, Dialect, Profile, Release, TargetError, load_catalog
from trtrecipe.targets.spec import Target

if TYPE_CHECKING:
    from trtrecipe.recipe.load import Loaded

_MODES = ("fp32", "fp16", "int8")
_WITHOUT_IMPLICIT = {
    "jetson": "its networks are strongly typed, with precisions in the graph",
    "cuda": "its networks are strongly typed, with precisions in the graph",
    "rtx": "its networks are strongly typed, with precisions in the graph",
    "host": "ONNX Runtime reads no calibration table",
    "tflite": "TensorFlow's converter reads no calibration table",
}


Shown = Callable[[str], str | None]
"""A profile's id → its release here: of a Jetson what the inventory's device of that profile last showed, of cuda what
the installed tensorrt package is."""


def target_findings(recipe: Any, catalog: Catalog | None = None, shown: Shown | None = None) -> Iterator[Finding]:
    """Everything wrong between the targets and their profiles in `recipe`, plain data as read from YAML.

    Made for `load(path, also=target_findings)`: what is malformed is passed over, so that these are reported in the
    same pass as the recipe's own problems. At most MAX_PROBLEMS, since looking for near matches takes its time.
    """
    return islice(_findings(recipe, catalog or load_catalog(), shown), MAX_PROBLEMS)


def resolve_targets(loaded: Loaded, catalog: Catalog, shown: Shown | None = None) -> tuple[list[Target], list[Problem]]:
    """The recipe's targets in its order, and the problems of `target_findings`; an entry with a problem has no target.

    An entry whose precision is a list gives one target for each mode that its device computes. There are no problems
    when the recipe was loaded with `also=target_findings`.
    """
    findings = list(target_findings(loaded.document.value, catalog, shown))
    wrong = {finding.loc[1] for finding in findings}
    entries = [entry for index, entry in enumerate(loaded.recipe.targets) if index not in wrong]
    problems = [loaded.problem(finding.loc, finding.message, finding.hint) for finding in findings]
    if len(findings) == MAX_PROBLEMS:
        return [], problems
    return [target for entry in entries for target in _targets(entry, loaded.recipe, catalog, shown)], problems


def _find(catalog: Catalog, spec: str, shown: Shown | None) -> tuple[Profile, Release | None]:
    """The profile and release of a target; a profile alone is taken at what is found of it. Raises TargetError."""
    if "@" not in spec and shown is not None:
        profile, _ = catalog.look_up(spec)
        if profile.releases and (jetpack := shown(profile.id)) is not None:
            spec = f"{profile.id}@{jetpack}"
    return catalog.find(spec)


def _findings(recipe: Any, catalog: Catalog, shown: Shown | None) -> Iterator[Finding]:
    shared = recipe if isinstance(recipe, dict) else {}
    targets = shared.get("targets")
    for index, written in enumerate(targets if isinstance(targets, list) else []):
        entry = written if isinstance(written, dict) else {"profile": written}
        spec = entry.get("profile")
        if not isinstance(spec, str) or not spec:
            continue
        try:
            profile, release = _find(catalog, spec, shown)
        except TargetError as error:
            yield Finding(_place(index, written, "profile"), error.message, error.hint)
            continue
        dialect = catalog.dialect(profile, release)
        yield from _precision(index, written, shared, profile, dialect)
        yield from _kept(index, written, shared, profile, dialect)
        yield from dla.findings(index, written, shared, profile, release, dialect)
        if not dialect.workspace and _at(entry, "build", "workspace") is not None:
            message = f"{profile.id} takes no workspace: {profile.builder} has no such limit"
            at = ("targets", index, "build", "workspace")
            yield Finding(at, message, "remove it from this target", at_key=True)


def _precision(index: int, written: Any, shared: Any, profile: Profile, dialect: Dialect) -> Iterator[Finding]:
    """A precision that the device, or its release, does not compute."""
    own = isinstance(written, dict) and written.get("precision") is not None
    block = (written if own else shared).get("precision")
    mode = _at(block, "mode")
    modes = mode if isinstance(mode, list) else [mode]
    if not modes or any(not isinstance(each, str) or each not in _MODES for each in modes):
        return
    able = _able(profile, dialect)
    if not set(modes) & set(able):
        why = next((profile.precision_notes[each] for each in modes if each in profile.precision_notes), None)
        why = why or f"with {dialect.id} it computes {', '.join(able)}"
        better = f"precision: {{mode: {'fp16' if 'fp16' in able else 'fp32'}}}"
        hint = f"write {{profile: {written}, {better}}}" if isinstance(written, str) else f"give this target {better}"
        at = _place(index, written, *(("precision", "mode") if own else ("profile",)))
        yield Finding(at, f"{profile.id} does not compute {' or '.join(modes)}: {why}", hint)
        return
    at = _place(index, written, *(("precision", "quantization") if own else ("profile",)))
    quantization = _at(block, "quantization") if "int8" in modes else None
    if quantization == "implicit" and not dialect.implicit:
        message = f"{profile.id} with {dialect.id} has no implicit quantization: {_WITHOUT_IMPLICIT[profile.family]}"
        yield Finding(at, message, "use quantization: explicit for this target")
    if quantization == "dynamic" and profile.family != "tflite":
        message = f"{profile.id} has no dynamic quantization: only TFLite quantizes weights without activations"
        yield Finding(at, message, "use quantization: explicit for this target, with calibration data")
    if profile.family == "tflite":
        yield from _tflite(index, written, block, own, shared)


def _tflite(index: int, written: Any, block: Any, own: bool, shared: Any) -> Iterator[Finding]:
    """What TensorFlow's converter cannot be told."""
    if _at(block, "quantization") not in (None, "explicit"):
        return
    for key, what in (("keep", "keep layers in another precision"), ("search", "search for layers to keep")):
        if _at(block, key):
            at = _place(index, written, *(("precision", key) if own else ("profile",)))
            message = f"tflite cannot {what}: TensorFlow's converter decides by operator what it quantizes"
            hint = f"give this target a precision of its own, without {key}"
            yield Finding(at, message, hint, at_key=own)
    mode = _at(block, "mode")
    modes = mode if isinstance(mode, list) else [mode]
    if "int8" in modes and _at(shared, "calibration", "table") is not None:
        at = _place(index, written, *(("precision", "mode") if own else ("profile",)))
        message = "tflite cannot take its ranges from calibration.table, which is TensorRT's and names ONNX tensors"
        yield Finding(at, message, "give calibration.data, or this target quantization: dynamic")


def _kept(index: int, written: Any, shared: Any, profile: Profile, dialect: Dialect) -> Iterator[Finding]:
    """Layers to be kept in another precision than their network, where a release's trtexec has no way to say so."""
    own = isinstance(written, dict) and written.get("precision") is not None
    block = (written if own else shared).get("precision")
    kept, mode = _at(block, "keep"), _at(block, "mode")
    if profile.family != "jetson" or dialect.strongly_typed or not isinstance(kept, list):
        return
    modes = [each for each in (mode if isinstance(mode, list) else [mode]) if each in _able(profile, dialect)]
    needed = [
        number
        for number, entry in enumerate(kept)
        for each in modes
        if _needs_word(each, block, _at(entry, "precision"))
    ]
    if not needed:
        return
    from trtrecipe.targets.trtexec import record, records  # large, and few recipes keep anything

    if record(str(dialect.tensorrt)).means["layer_precisions"]:
        return
    first = next(known.tensorrt for known in records() if known.means["layer_precisions"])
    at = _place(index, written, *(("precision", "keep", needed[0]) if own else ("profile",)))
    message = f"{profile.id} with {dialect.id} cannot keep single layers in another precision"
    yield Finding(at, f"{message}: TensorRT {first} is the first that can", "give this target a precision without keep")


def _needs_word(mode: str, block: Any, precision: Any) -> bool:
    """Whether a kept layer needs a word to trtexec. Q/DQ nodes say by themselves what is not quantized."""
    if mode == "fp16":
        return precision in (None, "fp32")
    return bool(_at(block, "fallback") == "fp16" and precision == "fp32")


def _able(profile: Profile, dialect: Dialect) -> list[str]:
    """The modes that a device computes with its release."""
    return [known for known in profile.precisions if known in dialect.precisions]


def _place(index: int, written: Any, *keys: int | str) -> tuple[int | str, ...]:
    """Where `keys` of a target stand; a target written as one word is all there is to point at."""
    return ("targets", index) if isinstance(written, str) else ("targets", index, *keys)


def _at(value: Any, *loc: str) -> Any:
    for item in loc:
        value = value.get(item) if isinstance(value, dict) else None
    return value


def _targets(written: str | TargetEntry, recipe: Recipe, catalog: Catalog, shown: Shown | None) -> Iterator[Target]:
    """One target, or one for each mode of a list that the device computes."""
    entry = TargetEntry.model_validate({"profile": written}) if isinstance(written, str) else written
    profile, release = _find(catalog, entry.profile, shown)
    dialect = catalog.dialect(profile, release)
    precision = entry.precision or recipe.precision
    build = entry.build or recipe.build
    core = dla.chosen(build.dla, profile, release, dialect)
    modes = [mode for mode in precision.modes if mode in _able(profile, dialect) and (not core or mode in dla.MODES)]
    for mode in modes:
        quantization = "implicit" if core else precision.quantization
        yield Target(
            id=entry.name or entry.profile,
            profile=profile,
            release=release,
            dialect=dialect,
            mode=mode,
            fallback=_fallback(profile, precision, mode),
            rivals=tuple(modes) if len(modes) > 1 else (),
            quantization=quantization if mode == "int8" else None,
            keep=tuple(keep.model_dump() for keep in precision.keep) if mode != "fp32" else (),
            search=precision.search and mode == "int8",
            workspace=build.workspace if dialect.workspace else None,
            dims=entry.model.dims if entry.model else recipe.model.dims,
            gates=entry.gates or recipe.gates,
            notes=(
                *_notes(profile, dialect, precision, mode, build.workspace, core is not None),
                *dla.notes(build.dla, core, _fallback(profile, precision, mode), profile, release, dialect),
                *_notes_on_data(recipe, profile, precision, mode),
            ),
            dla=core,
        )


def _fallback(profile: Profile, precision: Precision, mode: str) -> str | None:
    if mode != "int8":
        return None
    return precision.fallback if precision.fallback in profile.fallbacks else profile.fallbacks[0]


def _notes_on_data(recipe: Recipe, profile: Profile, precision: Precision, mode: str) -> Iterator[str]:
    if mode != "int8" or precision.quantization == "dynamic":
        return
    if recipe.calibration is None or recipe.calibration.data is None:
        return
    if profile.family == "tflite" and recipe.calibration.method != "minmax":
        method = recipe.calibration.method
        yield f"calibration.method {method} does not apply to tflite: its converter takes the least and largest values"
    if recipe.evaluation is None:
        return
    calibration, evaluation = (_without_labels(block.data) for block in (recipe.calibration, recipe.evaluation))
    if calibration == evaluation:
        yield "calibration and evaluation name the same data: results are judged on samples that scales are made from"


def _without_labels(data: Any) -> dict[str, Any]:
    named = {key: value for key, value in data.model_dump().items() if key != "labels"}
    return {
        key: {name: item for name, item in value.items() if name != LABEL} if isinstance(value, dict) else value
        for key, value in named.items()
    }


def _notes(
    profile: Profile, dialect: Dialect, precision: Precision, mode: str, workspace: int | None, on_dla: bool
) -> Iterator[str]:
    for other in precision.modes:
        if other == mode and mode in profile.precision_notes:
            yield f"{mode}: {profile.precision_notes[mode]}"
        elif on_dla and other not in dla.MODES:
            yield f"{other} is no candidate: DLA does not compute it"
        elif other not in _able(profile, dialect):
            why = profile.precision_notes.get(other) or f"{profile.id} does not compute it"
            yield f"{other} is no candidate: {why}"
    if _fallback(profile, precision, mode) not in (None, precision.fallback):
        yield f"fallback {precision.fallback}: {profile.precision_notes['fallback']}"
    if mode == "int8" and precision.quantization == "implicit":
        yield "implicit quantization: TensorRT chooses the layers itself, so no accuracy can be predicted"
    if workspace is not None and not dialect.workspace:
        yield f"build.workspace does not apply to {profile.id}: {profile.builder} has no such limit"
    if dialect.assumed:
        table = dialect.operators_from
        yield f"assumed: TensorRT {dialect.tensorrt} takes the opsets and operators published for {table}"
