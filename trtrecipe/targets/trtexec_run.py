"""What one run of a finished engine is told → the command line of one TensorRT release's trtexec.

For devices whose JetPack has no `tensorrt` module, and for per-layer profiles. TensorRT 11 turned CUDA graphs, spinning
and separate profile runs on and data transfers off by default (samples/common/sampleOptions.cpp at release/11.0), so
what is measured is always said, or is the release's own default. Exported values have six significant digits, and
--exportOutput shows the last iteration's (sampleReporting.cpp, exportJSONOutput).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from trtrecipe.errors import InputError, Problem
from trtrecipe.targets.trtexec import Record, fitting, lacks, pairs, record, records, unreadable


@dataclass(frozen=True)
class RunSpec:
    """One run. `shapes`: every input with a dynamic axis → its shape; `inputs`: input → file of raw values (others are
    random). `iterations` at least, `seconds` at least, after `warm_up` milliseconds. `profile`, `times`, `output`,
    `layer_info`: JSON files to write; a profile is measured in a run of its own, so it does not touch `times`."""

    engine: str
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    iterations: int = 10
    seconds: int = 0
    warm_up: int = 200
    data_transfers: bool = True
    spin_wait: bool = False
    cuda_graph: bool = False
    dla_core: int | None = None
    plugins: tuple[str, ...] = ()
    profile: str | None = None
    times: str | None = None
    output: str | None = None
    layer_info: str | None = None


def run_arguments(spec: RunSpec, tensorrt: str) -> list[str]:
    """The arguments after `trtexec` that run `spec` with TensorRT `tensorrt`. Raises `InputError`."""
    release = record(tensorrt)
    problems = [*_wrong(spec), *_unsaid(spec, release), *unreadable("input", {**spec.shapes, **spec.inputs})]
    if problems:
        raise InputError(problems)
    return fitting(list(_arguments(spec, release)))


def _wrong(spec: RunSpec) -> Iterator[Problem]:
    for name, shape in spec.shapes.items():
        if not shape or any(size < 1 for size in shape):
            yield Problem(f"input {name!r}: sizes must be at least 1: {shape}")
    for name, path in spec.inputs.items():
        if not path or any(char in path for char in ",':\0"):
            yield Problem(f"input {name!r}: trtexec cannot read a file called {path!r}")
    if spec.iterations < 1 or spec.seconds < 0 or spec.warm_up < 0:
        yield Problem("a run needs at least one iteration, and no negative time")
    if spec.dla_core is not None and spec.dla_core < 0:
        yield Problem(f"DLA core {spec.dla_core}", hint="cores count from 0")


def _behaviours(spec: RunSpec) -> dict[str, bool]:
    """What differs by release → what is wanted."""
    wanted = {"data_transfers": spec.data_transfers, "spin_wait": spec.spin_wait, "cuda_graph": spec.cuda_graph}
    return wanted | ({"separate_profile_run": True} if spec.profile is not None else {})


def _can(release: Record, behaviour: str, wanted: bool) -> bool:
    means = release.means[behaviour]
    return means["default"] == wanted or means.get("on" if wanted else "off") is not None


def _unsaid(spec: RunSpec, release: Record) -> Iterator[Problem]:
    for behaviour, wanted in _behaviours(spec).items():
        if not _can(release, behaviour, wanted):
            what = f"{'' if wanted else 'no '}{behaviour.replace('_', ' ')}"
            yield lacks(release, what, [known for known in records() if _can(known, behaviour, wanted)], None)
    for asked, what, meaning in (
        (spec.dla_core is not None, "DLA", "dla"),
        (spec.layer_info is not None, "an export of the engine's layers", "layer_info"),
    ):
        if asked and not release.means[meaning]:
            yield lacks(release, what, [known for known in records() if known.means[meaning]], None)


def _arguments(spec: RunSpec, release: Record) -> Iterator[str]:
    means = release.means
    yield f"{means['load_engine']}={spec.engine}"
    if spec.shapes:
        yield f"--shapes={pairs((name, 'x'.join(map(str, shape))) for name, shape in spec.shapes.items())}"
    if spec.inputs:
        yield f"{means['load_inputs']}={pairs(spec.inputs.items())}"
    yield f"--iterations={spec.iterations}"
    yield f"--duration={spec.seconds}"
    yield f"--warmUp={spec.warm_up}"
    for behaviour, wanted in _behaviours(spec).items():
        if means[behaviour]["default"] != wanted:
            yield means[behaviour]["on" if wanted else "off"]
    if spec.dla_core is not None:
        yield f"{means['dla']['core']}={spec.dla_core}"
    for plugin in spec.plugins:
        yield f"{means['plugins']}={plugin}"
    for meaning, path in {
        "export_profile": spec.profile,
        "export_times": spec.times,
        "export_output": spec.output,
        "layer_info": spec.layer_info,
    }.items():
        if path is not None:
            yield f"{means[meaning]}={path}"
