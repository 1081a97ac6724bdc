"""`BuildSpec` → the command line of one TensorRT release's trtexec.

What a release accepts is data (`data/trtexec.json`, made from trtexec's own option parser); nothing a spec asks for is
left out in silence: what a release has no way to say is an error that names the releases that do. How values are read
is from github.com/NVIDIA/TensorRT samples/common/sampleOptions.cpp: lists split at commas, a name ends at the
last colon, quotes are taken out, and `*` matches anything in the newer releases.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

from trtrecipe.errors import InputError, Problem
from trtrecipe.targets.buildspec import MIB, BuildSpec, check

DATA = Path(__file__).parent / "data" / "trtexec.json"

LONGEST_ARGUMENT = (128 << 10) - 1
"""Bytes that Linux takes in one argument (MAX_ARG_STRLEN less the final zero; execve(2))."""


@dataclass(frozen=True)
class Record:
    """One release. `flags`: flag → "switch" or "value"; `values`: flag → the words it takes; `means`: what is asked of
    a build → how this release is told, None where it cannot be. `commit`, `sources`: where that was read."""

    tensorrt: str
    commit: str
    sources: tuple[str, ...]
    flags: Mapping[str, str]
    deprecated: tuple[str, ...]
    values: Mapping[str, tuple[str, ...]]
    means: Mapping[str, Any]


@cache
def records() -> tuple[Record, ...]:
    """Every release, oldest first."""
    return tuple(
        Record(**{**raw, "sources": tuple(raw["sources"]), "deprecated": tuple(raw["deprecated"])})
        for raw in json.loads(DATA.read_text("utf-8"))["releases"]
    )


def record(tensorrt: str) -> Record:
    """The record that serves TensorRT `tensorrt` ("8.5.2"): its own, else the nearest older one of the same major.

    Raises `InputError` where there is none.
    """
    try:
        wanted = _version(tensorrt)
    except ValueError:
        raise InputError.of(f"{tensorrt!r} is no TensorRT version", "such as 8.5.2") from None
    for known in reversed(records()):
        found = _version(known.tensorrt)
        if found[0] == wanted[0] and found <= wanted:
            return known
    names = ", ".join(known.tensorrt for known in records())
    raise InputError.of(f"what the trtexec of TensorRT {tensorrt} accepts is not known", f"known releases: {names}")


def arguments(spec: BuildSpec, tensorrt: str) -> list[str]:
    """The arguments after `trtexec` that build `spec` with TensorRT `tensorrt`. Raises `InputError`.

    Without a workspace in the spec there is none in them: who runs them adds it, by `workspace_flag`.
    """
    check(spec)
    release = record(tensorrt)
    problems = [*_unsaid(spec, release), *unreadable("input", spec.shapes), *unreadable("layer", spec.layers)]
    if problems:
        raise InputError(problems)
    return fitting(list(_arguments(spec, release)))


def fitting(found: list[str]) -> list[str]:
    """The arguments themselves; raises `InputError` for one that a command line cannot hold."""
    for argument in found:
        if len(argument.encode()) > LONGEST_ARGUMENT:
            flag = argument.partition("=")[0]
            raise InputError.of(f"{flag} takes {len(argument.encode())} bytes, more than a command line can hold")
    return found


def workspace_flag(tensorrt: str) -> str:
    """What stands before a number of MiB where TensorRT `tensorrt` is told the workspace. Raises `InputError`."""
    means = record(tensorrt).means["workspace"]
    return f"{means['flag']}={means['pool']}:" if means["pool"] else f"{means['flag']}="


def _version(text: str) -> tuple[int, int]:
    major, _, rest = text.partition(".")
    return int(major), int(rest.partition(".")[0] or 0)


Can = Callable[[Mapping[str, Any]], object]


def _asked(spec: BuildSpec) -> Iterator[tuple[bool, str, Can, str | None]]:
    """Everything a release may lack: whether the spec asks for it, what it is called, whether a release has it, and
    what to do without it."""
    weak = not spec.strongly_typed

    def has(meaning: str) -> Can:
        return lambda means: means[meaning]

    yield weak, "a weakly typed network", has("weak_typing"), "bake the precisions into the graph (strong typing)"
    yield spec.strongly_typed, "a strongly typed network", has("strong_typing"), "use precision flags (weak typing)"
    yield spec.table is not None, "a calibration table", has("calibration_table"), "quantize with Q/DQ nodes"
    yield bool(spec.layers), "precisions of single layers", has("layer_precisions"), None
    yield bool(spec.layers), "precision constraints", has("precision_constraints"), None
    odd = spec.workspace is not None and spec.workspace % MIB != 0
    yield odd, "a workspace that is no whole number of MiB", lambda means: means["workspace"]["fractions"], "round it"
    yield spec.timing_cache is not None, "a timing cache", has("timing_cache"), None
    yield spec.error_on_timing_cache_miss, "an error on a timing-cache miss", has("error_on_timing_cache_miss"), None
    yield spec.dla is not None, "DLA", has("dla"), "build for the GPU"
    yield spec.optimization_level is not None, "an optimization level", has("optimization_level"), None
    yield spec.version_compatible, "version-compatible engines", has("version_compatible"), None
    yield spec.hardware_compatibility is not None, "hardware compatibility", has("hardware_compatibility"), None
    yield spec.layer_info is not None, "an export of the engine's layers", has("layer_info"), None


def _unsaid(spec: BuildSpec, release: Record) -> Iterator[Problem]:
    for asked, what, can, instead in _asked(spec):
        if asked and not can(release.means):
            yield lacks(release, what, [known for known in records() if can(known.means)], instead)
    level = spec.hardware_compatibility
    if level is not None and release.means["hardware_compatibility"]:
        having = [known for known in records() if level in known.values.get("--hardwareCompatibilityLevel", ())]
        if release not in having:
            yield lacks(release, f"hardware compatibility {level!r}", having, None)
    names = release.means["verbosity"]["names"]
    if spec.verbosity is not None and spec.verbosity not in names:
        yield Problem(f"verbosity {spec.verbosity!r} is none of {', '.join(names)}")


def lacks(release: Record, what: str, having: list[Record], instead: str | None) -> Problem:
    """A release has no way to say `what`; `having` do, oldest first."""
    names = [known.tensorrt for known in having]
    if not names:
        return Problem(f"no release's trtexec takes {what}", hint=instead)
    if having[-1] is records()[-1]:
        message = f"the first that can is {names[0]}"
    else:
        message = f"the first that can is {names[0]}, the last {names[-1]}"
    return Problem(f"trtexec of TensorRT {release.tensorrt} cannot take {what}: {message}", hint=instead)


def unreadable(kind: str, names: Iterable[str]) -> Iterator[Problem]:
    """Names that trtexec's parser would read as something else."""
    for name in names:
        bad = [char for char in ",'*\0" if char in name]
        if bad or not name:
            what = f"a name with {' and '.join(map(repr, bad))}" if bad else "an empty name"
            yield Problem(f"{kind} {name!r}: trtexec cannot be told of {what}", hint=f"rename the {kind}")


def _arguments(spec: BuildSpec, release: Record) -> Iterator[str]:
    means = release.means
    yield f"--onnx={spec.onnx}"
    yield f"--saveEngine={spec.engine}"
    yield means["skip_inference"]
    if spec.workspace is not None:
        yield workspace_flag(release.tensorrt) + _mib(spec.workspace)
    if spec.strongly_typed:
        if means["strong_typing"] != "always":
            yield means["strong_typing"]
    else:
        if spec.float_precision == "fp16":
            yield means["weak_typing"]["fp16"]
        if spec.mode == "int8":
            yield means["weak_typing"]["int8"]
    if spec.table is not None:
        yield f"{means['calibration_table']}={spec.table}"
    if spec.layers:
        yield f"{means['layer_precisions']}={pairs(spec.layers.items())}"
        yield f"{means['precision_constraints']}={'obey' if spec.obey else 'prefer'}"
    if spec.shapes:
        for end, flag in means["shapes"].items():
            yield f"{flag}={pairs((name, 'x'.join(map(str, getattr(s, end)))) for name, s in spec.shapes.items())}"
    if spec.timing_cache is not None:
        yield f"{means['timing_cache']}={spec.timing_cache}"
    if spec.error_on_timing_cache_miss:
        yield means["error_on_timing_cache_miss"]
    if spec.dla is not None:
        yield f"{means['dla']['core']}={spec.dla.core}"
        if spec.dla.gpu_fallback:
            yield means["dla"]["gpu_fallback"]
    yield from _rest(spec, means)


def _rest(spec: BuildSpec, means: Mapping[str, Any]) -> Iterator[str]:
    if spec.optimization_level is not None:
        yield f"{means['optimization_level']}={spec.optimization_level}"
    for plugin in spec.plugins:
        yield f"{means['plugins']}={plugin}"
    if spec.version_compatible:
        yield means["version_compatible"]
    if spec.hardware_compatibility is not None:
        yield f"{means['hardware_compatibility']}={spec.hardware_compatibility}"
    if not spec.tf32:
        yield means["no_tf32"]
    if spec.layer_info is not None:
        yield f"{means['layer_info']}={spec.layer_info}"
    if spec.verbosity is not None:
        yield f"{means['verbosity']['flag']}={means['verbosity']['names'][spec.verbosity]}"
    if spec.verbose:
        yield means["verbose"]


def pairs(items: Iterable[tuple[str, str]]) -> str:
    """A list of names with values, as trtexec reads it."""
    return ",".join(f"{name}:{value}" for name, value in items)


def _mib(size: int) -> str:
    """A bare number of MiB, which every release reads; its fractions are exact in decimal (2**-20 is)."""
    return f"{Decimal(size) / MIB:f}" if size % MIB else str(size // MIB)
