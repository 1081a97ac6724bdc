"""What a recipe's `build.dla` asks against what its targets have.

DLA computes FP16 and INT8, needs shapes that are fixed, and takes INT8 by calibration table alone. Sources:
https://docs.nvidia.com/deeplearning/tensorrt/11.4.1/inference-library/work-with-dla.html;
github.com/NVIDIA/TensorRT include/NvInferRuntime.h at 8.0.1 to v10.3.0 (IOptimizationProfile::setDimensions: minimum,
optimum and maximum must be the same on DLA). Where a target has no DLA, what the whole recipe asks does not apply to
it, and what the target itself asks is an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from trtrecipe.recipe.findings import Finding, listed, short
from trtrecipe.targets.buildspec import Dla
from trtrecipe.targets.catalog import Dialect, Profile, Release, dla_cores

MODES = ("fp16", "int8")
"""What DLA computes."""


def without(profile: Profile, release: Release | None, dialect: Dialect) -> str | None:
    """Why a profile has no DLA at a release; None where it has."""
    if not any(variant.dla_cores for variant in profile.variants):
        return "it has no DLA"
    if not dialect.dla:
        return f"{dialect.id} offers no DLA"
    if not any(dla_cores(profile, release, dialect).values()):
        return "it has no DLA core with that release"
    return None


def findings(
    index: int, target: Any, recipe: Any, profile: Profile, release: Release | None, dialect: Dialect
) -> Iterator[Finding]:
    """Everything that keeps target `index` of `recipe`, plain data, from being built for the DLA core it asks for.

    What the recipe says for all targets is found wrong of a target, and so shown there.
    """
    owns = isinstance(target, dict) and target.get("build") is not None
    dla = _at(target if owns else recipe, "build", "dla")
    if not isinstance(dla, dict):
        return
    lacking = without(profile, release, dialect)
    if lacking is not None:
        if owns:
            where = ("targets", index, "build", "dla")
            message = f"{profile.id} cannot be built for DLA: {lacking}"
            yield Finding(where, message, "remove it from this target", at_key=True)
        return
    core, most = dla.get("core"), max(dla_cores(profile, release, dialect).values())
    if isinstance(core, int) and not isinstance(core, bool) and core >= most:
        at = _place(index, target, "build", "dla", "core")
        there = "core 0" if most == 1 else f"cores 0 to {most - 1}"
        yield Finding(at, f"{profile.id} has no DLA core {core}", f"it has {there}")
    yield from _precision(index, target, recipe, profile)
    yield from _dimensions(index, target, recipe, profile)


def _precision(index: int, target: Any, recipe: Any, profile: Profile) -> Iterator[Finding]:
    block = _at(target, "precision") or _at(recipe, "precision")
    mode = _at(block, "mode")
    modes = mode if isinstance(mode, list) else [mode]
    if modes == ["fp32"]:
        hint = "use precision.mode fp16 or int8, or give this target `build: {}` for the GPU"
        at = _place(index, target, "precision", "mode")
        yield Finding(at, f"{profile.id}: DLA computes {listed(MODES)}, not fp32", hint)
    if "int8" not in modes:
        return
    why = "which DLA does not take: it takes INT8 by calibration table"
    if _at(block, "quantization") == "explicit":
        message = f"{profile.id}: explicit quantization puts Q/DQ nodes into the graph, {why}"
        at = _place(index, target, "precision", "quantization")
        yield Finding(at, message, "write quantization: implicit, or leave it out")
    for key in ("keep", "search"):
        if _at(block, key):
            how = "with a calibration table TensorRT chooses its layers"
            message = f"{profile.id}: INT8 on DLA cannot have precision.{key}: {how}"
            hint = f"give this target a precision of its own, without {key}"
            yield Finding(_place(index, target, "precision", key), message, hint)
    if _at(recipe, "calibration", "model") is True:
        message = f"{profile.id}: calibration.model keeps the Q/DQ nodes of the model, {why}"
        yield Finding(_place(index, target, "build", "dla"), message, "calibrate with data a model without Q/DQ nodes")


def _dimensions(index: int, target: Any, recipe: Any, profile: Profile) -> Iterator[Finding]:
    own = _at(target, "model", "dims")
    dims = own if own is not None else _at(recipe, "model", "dims")
    for name, span in dims.items() if isinstance(dims, dict) else ():
        sizes = [_at(span, end) for end in ("min", "opt", "max")]
        whole = isinstance(name, str) and all(isinstance(size, int) for size in sizes)
        if whole and len(set(sizes)) > 1:
            given = listed([str(size) for size in sizes])
            message = f"{profile.id}: DLA needs one size for the dimension '{short(name)}', not {given}"
            hint = f"give this target model: {{dims: {{{short(name)}: {{min: N, opt: N, max: N}}}}}}"
            yield Finding(_place(index, target, "model", "dims", name), message, hint)


def _place(index: int, target: Any, block: str, *keys: str) -> tuple[int | str, ...]:
    """Where a target says it itself, else where it names its profile."""
    if isinstance(target, str):
        return ("targets", index)
    if _at(target, block) is None or (block == "model" and _at(target, "model", "dims") is None):
        return ("targets", index, "profile")
    return ("targets", index, block, *keys)


def chosen(asked: Any, profile: Profile, release: Release | None, dialect: Dialect) -> Dla | None:
    """The DLA core to build for, None for the GPU; `asked`, the recipe's `build.dla`, was found to be without fault."""
    if asked is None or without(profile, release, dialect) is not None:
        return None
    return Dla(asked.core, asked.gpu_fallback)


def notes(
    asked: Any, found: Dla | None, fallback: str | None, profile: Profile, release: Release | None, dialect: Dialect
) -> Iterator[str]:
    """What a person should know: that what was asked does not apply, or what DLA does with a mode; `fallback`: what the
    target computes beside int8, None in another mode."""
    if asked is None:
        return
    if found is None:
        yield f"build.dla does not apply to {profile.id}: {without(profile, release, dialect)}"
        return
    fewer = [id for id, count in dla_cores(profile, release, dialect).items() if count <= found.core]
    if fewer:
        yield f"DLA core {found.core}: {listed(fewer)} lacks it, so such a device is passed over"
    if fallback == "fp32":
        yield "fallback fp32: layers without a scale run on the GPU, as DLA computes fp16 and int8 alone"
    yield "DLA: TensorRT decides on the device which layers it takes, so no accuracy can be predicted"


def _at(value: Any, *loc: str) -> Any:
    for item in loc:
        value = value.get(item) if isinstance(value, dict) else None
    return value
