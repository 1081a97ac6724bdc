"""`BuildSpec` → trtexec's command line, for every release."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import trtexec_surrogate
from support.buildspecs import NAMES, PATHS, optional, specs

from trtrecipe.errors import InputError
from trtrecipe.targets.buildspec import MIB, BuildSpec, Dla, Shapes
from trtrecipe.targets.catalog import load_catalog
from trtrecipe.targets.trtexec import LONGEST_ARGUMENT, arguments, record, records
from trtrecipe.targets.trtexec_run import RunSpec, run_arguments

RELEASES = ["8.0", "8.2", "8.4", "8.5", "8.6", "10.3", "10.13", "10.16", "11.0", "11.1"]
PLAIN = BuildSpec("model.onnx", "model.engine", 1 << 30, "fp16")
QUANTIZED = dataclasses.replace(PLAIN, mode="int8", fallback="fp16", quantized=True)
REPOSITORY = Path(__file__).parent.parent


def table(release: str) -> dict[str, Any]:
    known = record(release)
    means = known.means["workspace"]
    return {
        "flags": known.flags,
        "values": known.values,
        "fractions": means["fractions"],
        "suffixes": means["suffixes"],
    }


def typed(spec: BuildSpec, release: str) -> BuildSpec:
    """With the typing that the release has."""
    return dataclasses.replace(spec, strongly_typed=record(release).means["weak_typing"] is None)


def expected(spec: BuildSpec, release: str) -> dict[str, Any]:
    """What trtexec must have understood: written down here by flag, apart from the code that is tested."""
    version = tuple(map(int, release.split(".")))
    found: dict[str, Any] = {"--onnx": spec.onnx, "--saveEngine": spec.engine, "workspace": spec.workspace}
    found["--skipInference" if version >= (8, 6) else "--buildOnly"] = True
    if spec.strongly_typed and version < (11,):
        found["--stronglyTyped"] = True
    if not spec.strongly_typed:
        found |= {"--fp16": True} if "fp16" in (spec.mode, spec.fallback) else {}
        found |= {"--int8": True} if spec.mode == "int8" else {}
    if spec.layers:
        found |= {"--layerPrecisions": spec.layers, "--precisionConstraints": "obey" if spec.obey else "prefer"}
    for flag, end in {"--minShapes": "min", "--optShapes": "opt", "--maxShapes": "max"}.items():
        if spec.shapes:
            found[flag] = {name: list(getattr(shapes, end)) for name, shapes in spec.shapes.items()}
    if spec.dla:
        found |= {"--useDLACore": spec.dla.core} | ({"--allowGPUFallback": True} if spec.dla.gpu_fallback else {})
    if spec.plugins:
        found["--staticPlugins" if version >= (8, 6) else "--plugins"] = list(spec.plugins)
    if spec.verbosity and version < (8, 2):
        names = {"none": "none", "layer_names_only": "default", "detailed": "verbose"}
        found["--nvtxMode"] = names[spec.verbosity]
    elif spec.verbosity:
        found["--profilingVerbosity"] = spec.verbosity
    values = {
        "--calib": spec.table,
        "--timingCacheFile": spec.timing_cache,
        "--builderOptimizationLevel": spec.optimization_level,
        "--hardwareCompatibilityLevel": spec.hardware_compatibility,
        "--exportLayerInfo": spec.layer_info,
    }
    switches = {
        "--errorOnTimingCacheMiss": spec.error_on_timing_cache_miss,
        "--versionCompatible": spec.version_compatible,
        "--noTF32": not spec.tf32,
        "--verbose": spec.verbose,
    }
    return found | {f: v for f, v in values.items() if v is not None} | {f: True for f, yes in switches.items() if yes}


@settings(max_examples=250, deadline=None)
@given(spec=specs(), release=st.sampled_from(RELEASES))
def test_what_is_emitted_is_accepted_and_means_what_the_spec_says(spec: BuildSpec, release: str) -> None:
    try:
        argv = arguments(spec, release)
    except InputError as error:
        # Refused: then the message says who can, and a release that is said to can does not lack the same thing.
        for problem in error.problems:
            assert f"TensorRT {release} cannot take" in problem.message
            first = problem.message.partition("first that can is ")[2].partition(",")[0]
            assert first in RELEASES and first != release
            what = problem.message.partition("cannot take ")[2].partition(":")[0]
            try:
                arguments(spec, first)
            except InputError as other:
                assert not any(f"cannot take {what}:" in again.message for again in other.problems)
        return
    known = record(release)
    for argument in argv:
        flag, equals, _ = argument.partition("=")
        assert known.flags[flag] == ("value" if equals else "switch")
        assert flag not in known.deprecated
    understood = trtexec_surrogate.parse(argv, table(release))
    understood.pop("--workspace", None), understood.pop("--memPoolSize", None)
    assert understood == expected(spec, release)


def test_every_release_builds_what_every_release_can() -> None:
    for release in RELEASES:
        for spec in (PLAIN, QUANTIZED):
            argv = arguments(typed(spec, release), release)
            assert ("--fp16" in argv) == (not release.startswith("11"))
            assert any("1024" in argument for argument in argv if "orkspace" in argument)


@pytest.mark.parametrize(
    ("change", "release", "message"),
    [
        ({"layers": {"a": "fp32"}}, "8.2.1", "cannot take precisions of single layers: the first that can is 8.4"),
        ({"layer_info": "x.json"}, "8.0.1", "the first that can is 8.2"),
        ({"optimization_level": 3}, "8.5.2", "the first that can is 8.6"),
        ({"strongly_typed": True}, "8.6.2", "a strongly typed network: the first that can is 10.3"),
        ({}, "11.0", "a weakly typed network: the first that can is 8.0, the last 10.16"),
        ({"mode": "int8", "table": "t"}, "11.1", "a calibration table: the first that can is 8.0, the last 10.16"),
        ({"dla": Dla(0, True)}, "10.16.2", "DLA: the first that can is 8.0, the last 10.3"),
        ({"workspace": MIB + 1}, "8.2.1", "no whole number of MiB: the first that can is 8.4"),
        ({"hardware_compatibility": "samecomputecapability"}, "8.6", "the first that can is 10.13"),
        ({"hardware_compatibility": "turing"}, "10.3", "no release's trtexec takes hardware compatibility 'turing'"),
        ({"timing_cache": "t", "error_on_timing_cache_miss": True}, "8.6", "the first that can is 10.3"),
        ({"mode": "int8"}, "8.5.2", "INT8 without ranges"),
        ({"mode": "int8", "quantized": True, "table": "t"}, "8.5.2", "at once"),
        ({"mode": "bf16"}, "10.3", "precision 'bf16' is none of"),
        ({"table": "t"}, "8.5.2", "a calibration table with precision fp16"),
        ({"quantized": True}, "8.5.2", "Q/DQ nodes with precision fp16"),
        ({"fallback": "fp16"}, "8.5.2", "a fallback with precision fp16"),
        ({"mode": "fp32", "layers": {"a": "fp16"}}, "8.5.2", "at fp16 in a build whose float precision is fp32"),
        ({"layers": {"a": "int8"}}, "8.5.2", "precision 'int8' is none of fp32, fp16"),
        ({"strongly_typed": True, "layers": {"a": "fp32"}}, "10.3", "layer precisions of a strongly typed network"),
        (
            {"mode": "int8", "table": "t", "strongly_typed": True},
            "10.3",
            "a calibration table for a strongly typed network",
        ),
        ({"dla": Dla(0, True), "mode": "fp32"}, "8.5", "DLA with precision fp32"),
        ({"dla": Dla(0, True), "mode": "int8", "quantized": True}, "8.5", "DLA with Q/DQ nodes"),
        ({"dla": Dla(0, True), "shapes": {"x": Shapes((1,), (1,), (2,))}}, "8.5", "DLA needs fixed shapes"),
        ({"dla": Dla(-1, True)}, "8.5", "DLA core -1"),
        ({"dla": Dla(0, True), "strongly_typed": True}, "10.3", "DLA with a strongly typed network"),
        ({"shapes": {"x": Shapes((1,), (4,), (2,))}}, "8.5", "1 <= min <= opt <= max"),
        ({"shapes": {"x": Shapes((0,), (1,), (2,))}}, "8.5", "1 <= min <= opt <= max"),
        ({"shapes": {"x": Shapes((), (), ())}}, "8.5", "one rank of at least 1"),
        ({"shapes": {"x": Shapes((1,), (1, 2), (2,))}}, "8.5", "one rank of at least 1"),
        (
            {"shapes": {"a,b": Shapes((1,), (1,), (1,))}},
            "8.5",
            "input 'a,b': trtexec cannot be told of a name with ','",
        ),
        ({"shapes": {"": Shapes((1,), (1,), (1,))}}, "8.5", "an empty name"),
        ({"layers": {"it's": "fp32"}}, "8.5", "trtexec cannot be told of a name with"),
        ({"layers": {"(Unnamed Layer* 4)": "fp32"}}, "8.5", "a name with '*'"),
        ({"workspace": 0}, "8.5", "workspace 0"),
        ({"optimization_level": 6}, "8.6", "not within 0 to 5"),
        ({"verbosity": "loud"}, "8.6", "verbosity 'loud' is none of"),
        ({"error_on_timing_cache_miss": True}, "10.3", "without a timing cache"),
        ({"plugins": ("a.so", "a.so")}, "10.3", "named twice"),
        ({"onnx": "~/model.onnx"}, "8.5", "onnx: '~/model.onnx' is no path"),
        ({"engine": ""}, "8.5", "engine: '' is no path"),
        ({"layers": {"n" * 200_000: "fp32"}}, "8.5", "--layerPrecisions takes 200023 bytes, more than"),
        ({}, "7.1.3", "TensorRT 7.1.3 accepts is not known"),
        ({}, "9.3", "TensorRT 9.3 accepts is not known"),
        ({}, "new", "'new' is no TensorRT version"),
    ],
)
def test_what_cannot_be_built_is_refused_with_a_reason(change: dict[str, Any], release: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        arguments(dataclasses.replace(PLAIN, **change), release)
    assert message in str(caught.value)


def test_all_problems_are_told_at_once() -> None:
    spec = dataclasses.replace(PLAIN, workspace=0, shapes={"x": Shapes((2,), (1,), (1,))}, engine="")
    with pytest.raises(InputError) as caught:
        arguments(spec, "8.5")
    assert len(caught.value.problems) == 3


def test_a_fraction_of_a_mebibyte_is_said_exactly() -> None:
    size = (1 << 34) + 1
    argv = arguments(dataclasses.replace(PLAIN, workspace=size), "8.5.2")
    assert trtexec_surrogate.parse(argv, table("8.5"))["workspace"] == size


def test_names_reach_trtexec_without_a_shell() -> None:
    names = ["model/conv 1:0", ":a", "a::b", "$(x)", "--fp16", "a=b"]
    spec = dataclasses.replace(PLAIN, shapes={name: Shapes((1, 2), (3, 4), (5, 6)) for name in names})
    understood = trtexec_surrogate.parse(arguments(spec, "8.2.1"), table("8.2"))
    assert understood["--maxShapes"] == {name: [5, 6] for name in names}
    assert "--fp16" in understood and LONGEST_ARGUMENT == 131071


def test_a_version_is_served_by_its_own_record_or_the_nearest_older_one() -> None:
    found = {version: record(version).tensorrt for version in ("8.0.1", "8.2.1", "8.6.2", "10.7", "10.13.3", "11.4.1")}
    assert found == {
        "8.0.1": "8.0",
        "8.2.1": "8.2",
        "8.6.2": "8.6",
        "10.7": "10.3",
        "10.13.3": "10.13",
        "11.4.1": "11.1",
    }


def test_records_agree_with_the_catalogue_and_name_their_source() -> None:
    assert [known.tensorrt for known in records()] == RELEASES
    for dialect in load_catalog().dialects.values():
        if dialect.tensorrt is None or not dialect.id.startswith("trt-"):
            continue
        known = record(dialect.tensorrt)
        assert known.tensorrt == dialect.tensorrt
        assert bool(known.means["dla"]) == dialect.dla
    for known in records():
        assert len(known.commit) == 40
        assert any(known.commit in source for source in known.sources)


def test_what_a_release_means_uses_only_flags_that_it_has() -> None:
    def flags(value: object) -> list[str]:
        if isinstance(value, dict):
            return list(itertools.chain.from_iterable(flags(item) for item in value.values()))
        return [value] if isinstance(value, str) and value.startswith("--") else []

    for known in records():
        assert set(flags(dict(known.means))) <= set(known.flags)
        assert {"--onnx", "--saveEngine", "--shapes", "--loadInputs", "--exportOutput"} <= set(known.flags)


def test_the_data_is_what_the_script_makes(tmp_path: Path) -> None:
    """With the table of flags given in TRTRECIPE_TRTEXEC_FLAGS: all of it; always: what is derived from the flags."""
    given = os.environ.get("TRTRECIPE_TRTEXEC_FLAGS")
    script = [sys.executable, str(REPOSITORY / ".ci" / "dialects")]
    if given:
        subprocess.run([*script, given, "--check"], check=True)
    kinds = {flag: {"kind": kind} for known in records() for flag, kind in known.flags.items()}
    releases = {
        known.tensorrt: {
            "git_ref": "",
            "git_commit": known.commit,
            "flags": list(known.flags),
            "marked_deprecated": list(known.deprecated),
            "enumerated_values": {flag: list(values) for flag, values in known.values.items()},
            "memPoolSize_accepts_unit_suffix": known.means["workspace"]["suffixes"],
            "sources": [],
        }
        for known in records()
    }
    facts = tmp_path / "flags.json"
    facts.write_text(json.dumps({"flag_lifetimes": kinds, "releases": releases}))
    import runpy

    made = json.loads(runpy.run_path(str(REPOSITORY / ".ci" / "dialects"))["made_from"](json.loads(facts.read_text())))
    assert [dict(raw, sources=[]) for raw in made["releases"]] == [
        {**dataclasses.asdict(known), "sources": [], "deprecated": list(known.deprecated)} for known in records()
    ]


RUN_PATHS = st.sampled_from(["x.json", "with space.json", "été.json"])


@settings(max_examples=100, deadline=None)
@given(
    spec=st.builds(
        RunSpec,
        engine=PATHS,
        shapes=st.dictionaries(NAMES, st.lists(st.integers(1, 99), min_size=1, max_size=3).map(tuple), max_size=2),
        inputs=st.dictionaries(NAMES, RUN_PATHS, max_size=2),
        iterations=st.integers(1, 1000),
        seconds=st.integers(0, 9),
        warm_up=st.integers(0, 999),
        data_transfers=st.booleans(),
        spin_wait=st.booleans(),
        cuda_graph=st.booleans(),
        dla_core=optional(st.integers(0, 1)),
        plugins=st.lists(PATHS, unique=True, max_size=2).map(tuple),
        profile=optional(RUN_PATHS),
        times=optional(RUN_PATHS),
        output=optional(RUN_PATHS),
        layer_info=optional(RUN_PATHS),
    ),
    release=st.sampled_from(RELEASES),
)
def test_a_run_means_what_its_spec_says(spec: RunSpec, release: str) -> None:
    eleven = release.startswith("11")
    lacking = (spec.dla_core is not None and release not in RELEASES[:6]) or (spec.layer_info and release == "8.0")
    if lacking:
        with pytest.raises(InputError, match="cannot take"):
            run_arguments(spec, release)
        return
    argv = run_arguments(spec, release)
    assert not set(record(release).deprecated) & {argument.partition("=")[0] for argument in argv}
    found = trtexec_surrogate.parse(argv, table(release))
    assert found.pop("--loadEngine") == spec.engine
    assert found.pop("--shapes", {}) == {name: list(shape) for name, shape in spec.shapes.items()}
    assert found.pop("--loadInputs", {}) == spec.inputs
    times = [found.pop(flag) for flag in ("--iterations", "--duration", "--warmUp")]
    assert times == [str(spec.iterations), str(spec.seconds), str(spec.warm_up)]
    plugins = found.pop("--plugins" if release in RELEASES[:4] else "--staticPlugins", [])
    assert plugins == list(spec.plugins)
    assert found.pop("--useDLACore", None) == spec.dla_core
    exports = [found.pop(f"--export{what}", None) for what in ("Profile", "Times", "Output", "LayerInfo")]
    assert exports == [spec.profile, spec.times, spec.output, spec.layer_info]
    found.pop("--includeDataTransfers", None), found.pop("--noDataTransfers", None)
    expected_switches = {
        "--noSpinWait": eleven and not spec.spin_wait,
        "--noCudaGraph": eleven and not spec.cuda_graph,
        "--useSpinWait": not eleven and spec.spin_wait,
        "--useCudaGraph": not eleven and spec.cuda_graph,
        "--separateProfileRun": not eleven and spec.profile is not None,
    }
    assert found == {flag: True for flag, yes in expected_switches.items() if yes}
    assert ("--includeDataTransfers" in argv) == (eleven and spec.data_transfers)
    assert ("--noDataTransfers" in argv) == (not eleven and not spec.data_transfers)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": {"x": "c:/a"}}, "cannot read a file called"),
        ({"inputs": {"x,y": "a"}}, "a name with ','"),
        ({"shapes": {"x": ()}}, "sizes must be at least 1"),
        ({"iterations": 0}, "at least one iteration"),
        ({"dla_core": -1}, "DLA core -1"),
    ],
)
def test_a_run_that_cannot_be_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        run_arguments(RunSpec("model.engine", **change), "8.5.2")
    assert message in str(caught.value)
