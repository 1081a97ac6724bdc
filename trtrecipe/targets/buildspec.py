"""What one engine build is told, in the terms of no particular release or tool."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from trtrecipe.errors import InputError, Problem

MODES = ("fp32", "fp16", "int8")
FLOATS = ("fp32", "fp16")
MIB = 1 << 20


@dataclass(frozen=True)
class Shapes:
    """The optimization profile of one input: smallest, most usual and largest shape, all of one rank."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


@dataclass(frozen=True)
class Dla:
    """Build for DLA core `core`; without `gpu_fallback` a layer that DLA lacks fails the build."""

    core: int
    gpu_fallback: bool


@dataclass(frozen=True)
class BuildSpec:
    """One build. Paths are the builder's own: it runs where they mean something.

    `workspace`: bytes that tactics may use; None leaves it to who runs the builder, who has to say something, because
    TensorRT 8.2's own default is 16 MiB.
    `mode`: "fp32", "fp16" or "int8"; `fallback`: "fp32" or "fp16" for whatever is not quantized, int8 only.
    `quantized`: the graph carries Q/DQ nodes; `table`: a calibration table. INT8 needs one of them.
    `strongly_typed`: precisions are baked into the graph, and the builder has no say in them.
    `layers`: layer name → "fp32" or the float precision, weak typing only; `obey`: fail where that
    cannot be had, not only prefer it.
    `shapes`: every input with a dynamic axis → its profile, and no other: a builder makes up what is not said.
    `optimization_level`: 0 to 5. `hardware_compatibility`: "ampere+" or "samecomputecapability".
    `tf32`: whether FP32 layers may round their inputs to TF32, as TensorRT does unless told otherwise.
    `layer_info`: where a JSON description of the engine's layers goes. `verbosity`: how much of it the engine keeps:
    "none", "layer_names_only" or "detailed". `verbose`: a log that names each layer as it is timed.
    """

    onnx: str
    engine: str
    workspace: int | None
    mode: str
    fallback: str | None = None
    quantized: bool = False
    table: str | None = None
    strongly_typed: bool = False
    layers: Mapping[str, str] = field(default_factory=dict)
    obey: bool = True
    shapes: Mapping[str, Shapes] = field(default_factory=dict)
    timing_cache: str | None = None
    error_on_timing_cache_miss: bool = False
    dla: Dla | None = None
    optimization_level: int | None = None
    plugins: tuple[str, ...] = ()
    version_compatible: bool = False
    hardware_compatibility: str | None = None
    tf32: bool = True
    layer_info: str | None = None
    verbosity: str | None = None
    verbose: bool = False

    @property
    def float_precision(self) -> str:
        """The precision of whatever is not quantized: "fp32" or "fp16"."""
        return self.fallback or "fp32" if self.mode == "int8" else self.mode


def check(spec: BuildSpec) -> None:
    """Raise `InputError` with everything that no release could build."""
    if problems := [*_precision(spec), *_shapes(spec), *_dla(spec), *_others(spec)]:
        raise InputError(problems)


def _precision(spec: BuildSpec) -> Iterator[Problem]:
    if spec.mode not in MODES:
        yield Problem(f"precision {spec.mode!r} is none of {', '.join(MODES)}")
        return
    if spec.mode == "int8":
        if not spec.quantized and spec.table is None:
            yield Problem(
                "INT8 without ranges: the graph carries no Q/DQ nodes and there is no calibration table",
                hint="trtexec would put made-up ranges on every tensor; calibrate, or build fp16",
            )
        if spec.quantized and spec.table is not None:
            yield Problem("Q/DQ nodes and a calibration table at once", hint="TensorRT ignores the table; leave it out")
        if spec.fallback is not None and spec.fallback not in FLOATS:
            yield Problem(f"fallback {spec.fallback!r} is none of {', '.join(FLOATS)}")
    elif spec.quantized or spec.table is not None or spec.fallback is not None:
        given = "Q/DQ nodes" if spec.quantized else "a calibration table" if spec.table is not None else "a fallback"
        yield Problem(f"{given} with precision {spec.mode}", hint="only int8 takes it")
    for name, precision in spec.layers.items():
        if precision not in FLOATS:
            yield Problem(f"layer {name!r}: precision {precision!r} is none of {', '.join(FLOATS)}")
        elif precision not in (spec.float_precision, "fp32"):
            yield Problem(
                f"layer {name!r} at fp16 in a build whose float precision is fp32",
                hint="weak typing would allow fp16 for every layer; make it fp16 and keep the others at fp32",
            )
    if spec.strongly_typed:
        if spec.layers:
            yield Problem("layer precisions of a strongly typed network", hint="they are baked into the graph")
        if spec.table is not None:
            yield Problem("a calibration table for a strongly typed network", hint="it takes Q/DQ nodes only")


def _shapes(spec: BuildSpec) -> Iterator[Problem]:
    for name, shapes in spec.shapes.items():
        ranks = {len(shapes.min), len(shapes.opt), len(shapes.max)}
        if len(ranks) > 1 or 0 in ranks:
            yield Problem(f"input {name!r}: min, opt and max need one rank of at least 1: {shapes}")
        elif any(
            not 1 <= low <= usual <= high for low, usual, high in zip(shapes.min, shapes.opt, shapes.max, strict=True)
        ):
            yield Problem(f"input {name!r}: sizes must be 1 <= min <= opt <= max: {shapes}")


def _dla(spec: BuildSpec) -> Iterator[Problem]:
    """Source: https://docs.nvidia.com/deeplearning/tensorrt/11.4.1/inference-library/work-with-dla.html; trtexec sets
    the FP16 builder flag for DLA by itself (samples/common/sampleEngines.cpp), which strong typing refuses."""
    if spec.dla is None:
        return
    if spec.dla.core < 0:
        yield Problem(f"DLA core {spec.dla.core}", hint="cores count from 0")
    if spec.mode == "fp32":
        yield Problem("DLA with precision fp32", hint="DLA computes fp16 and int8 only")
    if spec.quantized:
        yield Problem("DLA with Q/DQ nodes", hint="DLA takes INT8 by calibration table: `quantization: implicit`")
    if spec.strongly_typed:
        yield Problem("DLA with a strongly typed network", hint="DLA needs precision flags")
    for name, shapes in spec.shapes.items():
        if not shapes.min == shapes.opt == shapes.max:
            yield Problem(f"input {name!r}: DLA needs fixed shapes", hint="give min, opt and max the same sizes")


def _others(spec: BuildSpec) -> Iterator[Problem]:
    if spec.workspace is not None and spec.workspace < 1:
        yield Problem(f"workspace {spec.workspace}: it must be at least one byte")
    if spec.optimization_level is not None and not 0 <= spec.optimization_level <= 5:
        yield Problem(f"optimization level {spec.optimization_level} is not within 0 to 5")
    if spec.error_on_timing_cache_miss and spec.timing_cache is None:
        yield Problem("an error on a timing-cache miss without a timing cache")
    if len(set(spec.plugins)) < len(spec.plugins):
        yield Problem("a plugin library is named twice")
    paths = {"onnx": spec.onnx, "engine": spec.engine, "table": spec.table, "timing cache": spec.timing_cache}
    for what, path in {**paths, "layer info": spec.layer_info, **{f"plugin {p!r}": p for p in spec.plugins}}.items():
        if path is not None and (not path or "\0" in path or path.startswith("~")):
            yield Problem(f"{what}: {path!r} is no path that a builder can take", hint="write it out in full")
