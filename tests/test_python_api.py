"""`BuildSpec` → TensorRT's Python API, on surrogates that have exactly the names of each release."""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.buildspecs import specs
from support.tensorrt_surrogate import DLA_CORES, HEADER, NAMES, RELEASES, Network, Surrogate, members, number

from trtrecipe.engines import tensorrt_child
from trtrecipe.errors import InputError
from trtrecipe.targets import python_api
from trtrecipe.targets.buildspec import BuildSpec, Dla, Shapes
from trtrecipe.targets.python_api import SPANS, lower

PLAIN = BuildSpec("model.onnx", "model.engine", None, "fp16")
SERVED = [release for release in RELEASES if release not in ("8.2", "8.4")]
LAYERS = Network([("conv", ["FLOAT"]), ("shape", ["INT32"]), ("fc", ["FLOAT", "HALF"])])
PLUGIN = "libm.so.6"  # any library that can be loaded


@contextmanager
def installed(surrogate: Surrogate) -> Iterator[Surrogate]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "tensorrt", surrogate)
        yield surrogate


def build(spec: BuildSpec, release: str, network: Network = LAYERS) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the surrogate was asked for, and what the child says beside the engine. Raises InputError, RuntimeError."""
    request = lower(spec, "tensorrt", f"{release}.0.1") | {"model": None}
    header: dict[str, Any] = {}
    with installed(Surrogate(release, network)) as surrogate:
        assert tensorrt_child.build(request, b"graph", header) == b"SURROGATE " + release.encode()
    return surrogate.asked, header


def placed(spec: BuildSpec, folder: Path, release: str) -> BuildSpec:
    """The spec with files that are there and layers that the network has, as far as it speaks of any."""
    (folder / "table").write_text(HEADER % number(release) + "\nx: 3c008912\n")
    return dataclasses.replace(
        spec,
        table=None if spec.table is None else str(folder / "table"),
        timing_cache=None if spec.timing_cache is None else str(folder / "timings"),
        layer_info=None if spec.layer_info is None else str(folder / "layers.json"),
        plugins=(PLUGIN,) if spec.plugins else (),
        layers=dict(zip(("conv", "shape", "gone"), spec.layers.values(), strict=False)),
    )


def expected(spec: BuildSpec, release: str) -> dict[str, Any]:
    """What TensorRT must have been asked for: written down here apart from the code that is tested."""
    version = tuple(map(int, release.split(".")))
    strong = ["STRONGLY_TYPED"] if spec.strongly_typed and version < (11,) else []
    weak = not spec.strongly_typed
    flags = {
        "FP16": weak and ("fp16" in (spec.mode, spec.fallback) or spec.dla is not None),
        "INT8": weak and spec.mode == "int8",
        "OBEY_PRECISION_CONSTRAINTS": bool(spec.layers) and spec.obey,
        "PREFER_PRECISION_CONSTRAINTS": bool(spec.layers) and not spec.obey,
        "GPU_FALLBACK": spec.dla is not None and spec.dla.gpu_fallback,
        "ERROR_ON_TIMING_CACHE_MISS": spec.error_on_timing_cache_miss,
        "VERSION_COMPATIBLE": spec.version_compatible,
    }
    config: dict[str, Any] = {}
    if spec.dla is not None:
        config |= {"default_device_type": "DeviceType.DLA", "DLA_core": spec.dla.core}
    if spec.optimization_level is not None:
        config["builder_optimization_level"] = spec.optimization_level
    if spec.hardware_compatibility is not None:
        level = {"ampere+": "AMPERE_PLUS", "samecomputecapability": "SAME_COMPUTE_CAPABILITY"}
        config["hardware_compatibility_level"] = f"HardwareCompatibilityLevel.{level[spec.hardware_compatibility]}"
    if spec.verbosity is not None:
        config["profiling_verbosity"] = f"ProfilingVerbosity.{spec.verbosity.upper()}"
    kind = {"fp32": "FLOAT", "fp16": "HALF"}
    travels = spec.version_compatible or spec.hardware_compatibility is not None
    conv = kind.get(spec.layers.get("conv", ""))
    return {
        "network": (["EXPLICIT_BATCH"] if version < (10,) else []) + strong,
        "parser": ["NATIVE_INSTANCENORM"] if travels and version < (10,) else [],
        "set": [flag for flag, wanted in flags.items() if wanted],
        "clear": [] if spec.tf32 else ["TF32"],
        "config": config,
        "profile": {name: [list(s.min), list(s.opt), list(s.max)] for name, s in spec.shapes.items()},
        "layers": {"conv": {"precision": conv, "outputs": {0: conv}}} if conv else {},
        "model": b"graph",
        **({} if spec.workspace is None else {"workspace": spec.workspace}),
        **({} if spec.table is None else {"table": Path(spec.table).read_bytes()}),
        **({} if spec.timing_cache is None else {"timing_cache": b""}),
    }


@settings(max_examples=300, deadline=None)
@given(spec=specs(), release=st.sampled_from(["8.2", "8.5", "10.3", "11.0", *RELEASES]))
def test_what_is_asked_for_exists_and_is_what_the_spec_says(spec: BuildSpec, release: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        spec = placed(spec, Path(folder), release)
        try:
            asked, header = build(spec, release)
        except InputError as error:
            assert_names_who_can(error, spec, release)
            return
        config = {name: repr(value) if hasattr(value, "kind") else value for name, value in asked["config"].items()}
        config.pop("int8_calibrator", None)
        assert asked | {"config": config} == expected(spec, release)
        assert header["missing"] == [name for name in spec.layers if name == "gone"]
        for written, text in ((spec.timing_cache, " and timings"), (spec.layer_info, '{"form": "JSON"}')):
            assert written is None or Path(written).read_text() == text


def assert_names_who_can(error: InputError, spec: BuildSpec, release: str) -> None:
    """The message says which release is the first that can, and that one does not lack the same thing."""
    for problem in error.problems:
        first = problem.message.partition(" can is ")[2].partition(",")[0]
        assert f"the Python API of TensorRT {release}" in problem.message
        assert first and first != release
        try:
            lower(spec, "tensorrt", first)
        except InputError as other:
            what = problem.message.partition("cannot take ")[2].partition(":")[0] or "trtrecipe cannot use"
            assert not any(what in again.message for again in other.problems)


NEEDED = {
    "a weakly typed network": ["BuilderFlag.FP16", "BuilderFlag.INT8"],
    "a strongly typed network": ["NetworkDefinitionCreationFlag.STRONGLY_TYPED"],
    "a calibration table": ["IInt8EntropyCalibrator2", "IBuilderConfig.int8_calibrator"],
    "precisions of single layers": [
        "BuilderFlag.OBEY_PRECISION_CONSTRAINTS",
        "BuilderFlag.PREFER_PRECISION_CONSTRAINTS",
        "ILayer.precision",
        "ILayer.set_output_type",
    ],
    "a timing cache": ["IBuilderConfig.set_timing_cache"],
    "an error on a timing-cache miss": ["BuilderFlag.ERROR_ON_TIMING_CACHE_MISS"],
    "DLA": ["BuilderFlag.GPU_FALLBACK"],
    "an optimization level": ["IBuilderConfig.builder_optimization_level"],
    "version-compatible engines": ["BuilderFlag.VERSION_COMPATIBLE"],
    "hardware compatibility 'ampere+'": ["HardwareCompatibilityLevel.AMPERE_PLUS"],
    "hardware compatibility 'samecomputecapability'": ["HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY"],
    "": [
        "IExecutionContext.execute_async_v3",
        "IExecutionContext.set_tensor_address",
        "ICudaEngine.get_tensor_profile_shape",
        "IBuilderConfig.set_memory_pool_limit",
        "BuilderFlag.TF32",
    ],
}


@pytest.mark.parametrize("what", SPANS["tensorrt"])
def test_spans_are_those_of_the_names(what: str) -> None:
    lifetimes = [NAMES["lifetimes"][name] for name in NEEDED[what]]
    known = SPANS["tensorrt"][what]
    first = max(((8, 5), *(tuple(map(int, life[0].split("."))) for life in lifetimes)))
    assert known.first == ".".join(map(str, first))
    if what != "DLA":  # its names outlive it: the last 10.x release that builds for DLA is 10.7
        assert {known.last} == {life[1] for life in lifetimes}


def test_network_flags_are_asked_for_where_they_exist() -> None:
    for release in SERVED:
        for strong in (False, True):
            try:
                said = lower(dataclasses.replace(PLAIN, strongly_typed=strong), "tensorrt", release)["network"]
            except InputError:
                continue
            assert set(said) <= set(members(release, "NetworkDefinitionCreationFlag"))
    assert {each: NAMES["lifetimes"][f"NetworkDefinitionCreationFlag.{each}"][1] for each in ("EXPLICIT_BATCH",)} == {
        "EXPLICIT_BATCH": "10.16"
    }


@pytest.mark.parametrize(
    ("change", "module", "version", "message"),
    [
        ({}, "tensorrt", "8.2.3.0", "cannot use the Python API of TensorRT 8.2: the first that it can is 8.5"),
        ({}, "tensorrt", "12.0.0.1", "what the Python API of TensorRT 12.0 accepts is not known"),
        ({}, "tensorrt", "11.4.0.106", "a weakly typed network: the first that can is 8.5, the last 10.16"),
        ({"strongly_typed": True}, "tensorrt", "8.6.1", "a strongly typed network: the first that can is 9.0"),
        ({"optimization_level": 3}, "tensorrt", "8.5.3.1", "an optimization level: the first that can is 8.6"),
        ({"dla": Dla(0, True)}, "tensorrt", "10.9.0", "DLA: the first that can is 8.5, the last 10.7"),
        ({"hardware_compatibility": "samecomputecapability"}, "tensorrt", "10.3", "the first that can is 10.9"),
        ({"hardware_compatibility": "turing"}, "tensorrt", "10.3", "no release of TensorRT takes hardware"),
        ({"verbosity": "loud"}, "tensorrt", "10.3", "verbosity 'loud' is none of none, layer_names_only, detailed"),
        ({"mode": "int8"}, "tensorrt", "10.3", "INT8 without ranges"),
        ({}, "tensorrt_rtx", "1.7.1.116", "no release of TensorRT for RTX takes a weakly typed network"),
        ({"strongly_typed": True, "dla": Dla(0, True)}, "tensorrt_rtx", "1.7.1.116", "DLA"),
        ({"strongly_typed": True, "timing_cache": "t"}, "tensorrt_rtx", "1.7.1.116", "takes a timing cache"),
        (
            {"strongly_typed": True, "mode": "int8", "quantized": True},
            "tensorrt_rtx",
            "1.6.1.120",
            "TensorRT for RTX 1.6 cannot take INT8: the first that can is 1.7",
        ),
    ],
)
def test_what_a_release_cannot(change: dict[str, Any], module: str, version: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        lower(dataclasses.replace(PLAIN, **change), module, version)
    assert message in str(caught.value)


@pytest.mark.parametrize("release", ["11.5", "10.17", "9.9"])
def test_a_newer_minor_release_is_told_what_the_newest_known_is(release: str) -> None:
    strong = dataclasses.replace(PLAIN, strongly_typed=True)
    older = {"11.5": "11.4", "10.17": "10.16", "9.9": "9.3"}[release]
    assert lower(strong, "tensorrt", release) == lower(strong, "tensorrt", older)


@pytest.mark.parametrize("release", ["8.5", "10.3", "11.0"])
def test_the_parsers_errors_name_nodes_as_far_as_the_release_does(release: str) -> None:
    said = {"node": 3, "name": "conv", "operator": "Conv", "text": "no such\n  padding"}
    strong = dataclasses.replace(PLAIN, strongly_typed=release == "11.0")
    request = lower(strong, "tensorrt", release) | {"model": None}
    header: dict[str, Any] = {}
    with installed(Surrogate(release, Network(errors=[said]))), pytest.raises(RuntimeError, match="cannot read"):
        tensorrt_child.build(request, b"", header)
    named = {} if release == "8.5" else {"name": "conv", "operator": "Conv"}
    assert header["parser"] == [{"node": 3, "name": None, "operator": None, "text": "no such padding"} | named]


def test_a_table_of_another_release_is_refused_instead_of_calibrated(tmp_path: Path) -> None:
    (tmp_path / "table").write_text("TRT-8502-EntropyCalibration2\nx: 3c008912\n")
    spec = dataclasses.replace(PLAIN, mode="int8", table=str(tmp_path / "table"))
    with pytest.raises(RuntimeError, match="does not take the calibration table and asked for data"):
        build(spec, "10.3")


def test_tensors_without_a_scale_are_told(tmp_path: Path) -> None:
    (tmp_path / "table").write_text(HEADER % number("10.3") + "\nx: 3c008912\n")
    spec = dataclasses.replace(PLAIN, mode="int8", table=str(tmp_path / "table"))
    _, header = build(spec, "10.3", Network(unscaled=["a: b", "x"]))
    assert header["unscaled"] == ["a: b", "x"]


def test_a_timing_cache_of_another_gpu_is_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "timings").write_bytes(b"foreign")
    asked, header = build(dataclasses.replace(PLAIN, timing_cache=str(tmp_path / "timings")), "10.3")
    assert asked["timing_cache"] == b"" and "begun anew" in header["notes"][0]
    assert (tmp_path / "timings").read_bytes() == b" and timings"
    asked, header = build(dataclasses.replace(PLAIN, timing_cache=str(tmp_path / "timings")), "10.3")
    assert asked["timing_cache"] == b" and timings" and header["notes"] == []


def test_what_this_machine_has_not() -> None:
    with pytest.raises(RuntimeError, match="no such DLA core here: this machine has 2"):
        build(dataclasses.replace(PLAIN, dla=Dla(DLA_CORES, True)), "8.5")
    with pytest.raises(RuntimeError, match=r"cannot load the plugin nowhere\.so"):
        build(dataclasses.replace(PLAIN, plugins=("nowhere.so",)), "8.5")
    with pytest.raises(RuntimeError, match="cannot build the engine: no implementation of conv"):
        build(PLAIN, "10.3", Network(fails="no implementation\nof conv"))


def test_ranges_are_one_profile() -> None:
    asked, _ = build(dataclasses.replace(PLAIN, shapes={"x": Shapes((1, 3), (4, 3), (8, 3))}), "8.6")
    assert asked["profile"] == {"x": [[1, 3], [4, 3], [8, 3]]}


def test_surrogates_have_the_names_of_their_release_and_no_other() -> None:
    old, new = Surrogate("8.2", Network()), Surrogate("11.4", Network())
    assert hasattr(old, "IInt8EntropyCalibrator2") and not hasattr(new, "IInt8EntropyCalibrator2")
    assert hasattr(old.BuilderFlag, "FP16") and not hasattr(new.BuilderFlag, "FP16")
    config = new.Builder(new.ILogger()).create_builder_config()
    config.builder_optimization_level = 3
    with pytest.raises(AttributeError):
        config.max_workspace_size = 1
    with pytest.raises(AttributeError):
        old.Builder(old.ILogger()).create_builder_config().builder_optimization_level = 3
    with pytest.raises(AttributeError):
        new.Builder(new.ILogger()).num_DLA_cores = 1
    assert python_api.NEWEST["tensorrt"][-1] == RELEASES[-1]
