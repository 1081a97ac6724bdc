"""`BuildSpec` → what the Python API of one TensorRT or TensorRT for RTX release is told, as plain data.

Everything that differs between releases is here. The program that makes the calls (`engines/tensorrt_child.py`) knows
no release: what is not in its request is not named, so a release without it never notices. What a release cannot do is
an error that names those that can.

Sources: names by release from github.com/NVIDIA/TensorRT python/src of the branches release/8.2 to release/11.1, and
the wheels of tensorrt-cu12-bindings 11.2.1.2, 11.3.0.99 and 11.4.0.106; DLA:
https://docs.nvidia.com/deeplearning/tensorrt/11.4.1/inference-library/work-with-dla.html; tensorrt_rtx: observed with
1.4.0.76, 1.5.0.114, 1.6.1.120 and 1.7.1.116.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trtrecipe.errors import InputError, Problem
from trtrecipe.targets.buildspec import BuildSpec, check

Version = tuple[int, ...]

NEWEST = {"tensorrt": ("8.6", "9.3", "10.16", "11.4"), "tensorrt_rtx": ("1.7",)}
"""Module → the newest release of each major version whose names are known; newer ones of its major are taken for it."""


@dataclass(frozen=True)
class Span:
    """The releases that have something: from `first` up to `last`, None for those that still do."""

    first: str
    last: str | None = None

    def __contains__(self, version: Version) -> bool:
        return _numbers(self.first) <= version and (self.last is None or version <= _numbers(self.last))


PRODUCTS = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT for RTX"}

SPANS: Mapping[str, Mapping[str, Span]] = {
    "tensorrt": {
        "": Span("8.5"),  # that are served at all: 8.2 and 8.4 come with Pythons that trtrecipe does not run on
        "a weakly typed network": Span("8.5", "10.16"),
        "a strongly typed network": Span("9.0"),
        "a calibration table": Span("8.5", "10.16"),
        "precisions of single layers": Span("8.5", "10.16"),
        "a timing cache": Span("8.5"),
        "an error on a timing-cache miss": Span("9.0"),
        "DLA": Span("8.5", "10.7"),
        "an optimization level": Span("8.6"),
        "version-compatible engines": Span("8.6"),
        "hardware compatibility 'ampere+'": Span("8.6"),
        "hardware compatibility 'samecomputecapability'": Span("10.9"),
    },
    "tensorrt_rtx": {
        "": Span("1.4"),
        "a strongly typed network": Span("1.4"),
        "an optimization level": Span("1.4"),
        "INT8": Span("1.7"),
    },
}
"""Module → what a spec may ask for, by the words of messages → the releases that can; no entry: none of them."""

_EXPLICIT_BATCH = Span("8.5", "9.3")  # a network has to be asked for it; later ones have no other
_SAYS_STRONG = Span("9.0", "10.16")  # 11 has the flag too, with no effect
# Engines for other versions or GPUs cannot have the plugin for InstanceNormalization, the parser's default before 10.0
# (github.com/onnx/onnx-tensorrt docs/Changelog.md).
_NORMALIZES_BY_PLUGIN = Span("8.6", "9.3")
_HARDWARE = {"ampere+": "AMPERE_PLUS", "samecomputecapability": "SAME_COMPUTE_CAPABILITY"}
_TYPES = {"fp32": "FLOAT", "fp16": "HALF"}
_INSTEAD = {
    "a weakly typed network": "bake the precisions into the graph (strong typing)",
    "a strongly typed network": "use precision flags (weak typing)",
    "a calibration table": "quantize with Q/DQ nodes",
    "DLA": "build for the GPU",
    "INT8": "use precision.mode fp16 for this target",
}


def lower(spec: BuildSpec, module: str, version: str) -> dict[str, Any]:
    """The request that `engines/tensorrt_child.py` builds `spec` by, with the `module` of that version ("8.5.3.1").

    Without a workspace the release's own default holds, all of the GPU's memory. Raises `InputError`.
    """
    check(spec)
    release = served(module, version)
    if problems := [*_lacking(spec, module, release)]:
        raise InputError(problems)
    return {
        "module": module,
        "plugins": list(spec.plugins),
        "standard_plugins": module == "tensorrt",
        "network": _network(spec, module, release),
        "parser": _parser(spec, module, release),
        "set": _set(spec),
        "clear": [] if spec.tf32 else ["TF32"],
        "workspace": spec.workspace,
        "config": _config(spec),
        "dla": spec.dla is not None,
        "layers": {name: _TYPES[precision] for name, precision in spec.layers.items()},
        # The variant that trtexec reads tables with, and the only one that DLA takes.
        "calibrator": "IInt8EntropyCalibrator2" if spec.table is not None else None,
        "table": spec.table,
        "profile": {name: [list(s.min), list(s.opt), list(s.max)] for name, s in spec.shapes.items()},
        "timing_cache": spec.timing_cache,
        "layer_info": spec.layer_info,
        "verbose": spec.verbose,
    }


def _network(spec: BuildSpec, module: str, release: Version) -> list[str]:
    """NetworkDefinitionCreationFlag; every tensorrt_rtx makes strongly typed networks of an explicit batch."""
    if module != "tensorrt":
        return []
    strong = ["STRONGLY_TYPED"] if spec.strongly_typed and release in _SAYS_STRONG else []
    return (["EXPLICIT_BATCH"] if release in _EXPLICIT_BATCH else []) + strong


def _parser(spec: BuildSpec, module: str, release: Version) -> list[str]:
    """OnnxParserFlag."""
    travels = spec.version_compatible or spec.hardware_compatibility is not None
    return ["NATIVE_INSTANCENORM"] if travels and module == "tensorrt" and release in _NORMALIZES_BY_PLUGIN else []


def _set(spec: BuildSpec) -> list[str]:
    """BuilderFlag."""
    asked = {
        # DLA computes FP16 and INT8 only; trtexec, too, sets the flag for it (samples/common/sampleEngines.cpp).
        "FP16": not spec.strongly_typed and (spec.float_precision == "fp16" or spec.dla is not None),
        "INT8": not spec.strongly_typed and spec.mode == "int8",
        ("OBEY" if spec.obey else "PREFER") + "_PRECISION_CONSTRAINTS": bool(spec.layers),
        "GPU_FALLBACK": spec.dla is not None and spec.dla.gpu_fallback,
        "ERROR_ON_TIMING_CACHE_MISS": spec.error_on_timing_cache_miss,
        "VERSION_COMPATIBLE": spec.version_compatible,
    }
    return [flag for flag, wanted in asked.items() if wanted]


def _config(spec: BuildSpec) -> dict[str, Any]:
    """Properties of IBuilderConfig: a value, or an enumeration and the name of its member."""
    found: dict[str, Any] = {}
    if spec.dla is not None:
        found["default_device_type"] = ["DeviceType", "DLA"]
        found["DLA_core"] = spec.dla.core
    if spec.optimization_level is not None:
        found["builder_optimization_level"] = spec.optimization_level
    if spec.hardware_compatibility is not None:
        level = _HARDWARE[spec.hardware_compatibility]
        found["hardware_compatibility_level"] = ["HardwareCompatibilityLevel", level]
    if spec.verbosity is not None:
        found["profiling_verbosity"] = ["ProfilingVerbosity", spec.verbosity.upper()]
    return found


def _asked(spec: BuildSpec, module: str) -> Iterator[str]:
    """Everything in the spec that a release may lack."""
    yield "a strongly typed network" if spec.strongly_typed else "a weakly typed network"
    if module == "tensorrt_rtx" and spec.mode == "int8":
        yield "INT8"
    if spec.table is not None:
        yield "a calibration table"
    if spec.layers:
        yield "precisions of single layers"
    if spec.timing_cache is not None:
        yield "a timing cache"
    if spec.error_on_timing_cache_miss:
        yield "an error on a timing-cache miss"
    if spec.dla is not None:
        yield "DLA"
    if spec.optimization_level is not None:
        yield "an optimization level"
    if spec.version_compatible:
        yield "version-compatible engines"
    if spec.hardware_compatibility is not None:
        yield f"hardware compatibility {spec.hardware_compatibility!r}"


def _lacking(spec: BuildSpec, module: str, release: Version) -> Iterator[Problem]:
    for what in _asked(spec, module):
        span = SPANS[module].get(what)
        if span is None:
            yield Problem(f"no release of {PRODUCTS[module]} takes {what}", hint=_INSTEAD.get(what))
        elif release not in span:
            last = f", the last {span.last}" if span.last else ""
            message = f"{_named(module, release)} cannot take {what}: the first that can is {span.first}{last}"
            yield Problem(message, hint=_INSTEAD.get(what))
    names = ("none", "layer_names_only", "detailed")
    if spec.verbosity is not None and spec.verbosity not in names:
        yield Problem(f"verbosity {spec.verbosity!r} is none of {', '.join(names)}")


def served(module: str, version: str) -> Version:
    """The release as whose API that of the version is used. Raises `InputError` where it is not used here."""
    found = _numbers(".".join(version.split(".")[:2]))
    first = SPANS[module][""].first
    if found < _numbers(first):
        hint = "build with that release's trtexec instead" if module == "tensorrt" else None
        message = f"trtrecipe cannot use {_named(module, found)}: the first that it can is {first}"
        raise InputError.of(message, hint)
    for newest in map(_numbers, NEWEST[module]):
        if newest[0] == found[0]:
            return min(found, newest)
    raise InputError.of(f"what {_named(module, found)} accepts is not known", f"newest known: {NEWEST[module][-1]}")


def _named(module: str, release: Sequence[int]) -> str:
    return f"the Python API of {PRODUCTS[module]} {'.'.join(map(str, release))}"


def _numbers(version: str) -> Version:
    return tuple(int(part) for part in version.split("."))
