"""Stand-ins for the `tensorrt` module of a release: exactly its names, and AttributeError for every other.

They check what a builder says and in which words; an "engine" of theirs is a description of what was asked for, so
nothing that they give is a result. Names: `tensorrt_names.json`, which says where they are from.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

NAMES: dict[str, Any] = json.loads((Path(__file__).parent / "tensorrt_names.json").read_text())
RELEASES: list[str] = NAMES["releases"]
DLA_CORES = 2
HEADER = "TRT-%d-EntropyCalibration2"


@dataclass
class Network:
    """What the network that is parsed has, in TensorRT's terms: layers by name → the types of their outputs."""

    layers: list[tuple[str, list[str]]] = field(default_factory=list)
    inputs: dict[str, list[int]] = field(default_factory=dict)
    outputs: dict[str, list[int]] = field(default_factory=dict)
    errors: list[dict[str, Any]] = field(default_factory=list)  # what the parser has against it
    unscaled: list[str] = field(default_factory=list)  # what TensorRT warns of when it builds with a table
    fails: str | None = None  # what the builder logs when it gives no engine
    most_workspace: int | None = None  # bytes; with more of it the builder runs out of memory
    driver: bool = True


class Surrogate(ModuleType):
    """The module. `asked`: what it has been told, in the order of telling for lists."""

    def __init__(self, release: str, network: Network, name: str = "tensorrt") -> None:
        super().__init__(name)
        self.__dict__.update(_release=release, _network=network, _classes={}, __version__=f"{release}.0.1")
        self.__dict__["asked"] = {
            "network": [],
            "parser": [],
            "set": [],
            "clear": [],
            "config": {},
            "profile": {},
            "layers": {},
        }

    def __getattr__(self, name: str) -> Any:
        release = self.__dict__["_release"]
        classes = self.__dict__["_classes"]
        if name in NAMES["classes"] and _has(NAMES["classes"][name]["in"], release):
            if name not in classes:
                classes[name] = _made(self, name)
            return classes[name]
        if name in _module_names(release):
            return _FUNCTIONS.get(name) or _unmodelled(name)
        raise AttributeError(f"module 'tensorrt' of {release} has no attribute {name!r}")


def _has(spans: str, release: str) -> bool:
    at = RELEASES.index(release)
    for span in spans.split(","):
        first, _, last = span.partition("-")
        low = RELEASES.index(first) if first else 0
        high = RELEASES.index(last) if last else len(RELEASES) - 1
        if low <= at <= high:
            return True
    return False


@cache
def _module_names(release: str) -> frozenset[str]:
    return frozenset(n for spans, names in NAMES["module"].items() if _has(spans, release) for n in names.split(" | "))


@cache
def members(release: str, name: str) -> dict[str, str]:
    """The own members of a class at a release → "()", "ro" or "" for what can be set."""
    entry = NAMES["classes"][name]
    found = {}
    for spans, names in entry["names"].items():
        if _has(spans or entry["in"], release):
            for member in filter(None, names.split(" | ")):
                plain, _, mark = member.partition(" ")
                found[plain.removesuffix("()")] = "()" if plain.endswith("()") else mark
    return found


class Member:
    """Of an enumeration, as pybind11 makes them."""

    def __init__(self, kind: str, name: str, value: int) -> None:
        self.kind, self.name, self.value = kind, name, value

    def __int__(self) -> int:
        return self.value

    def __repr__(self) -> str:
        return f"{self.kind}.{self.name}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Member) and repr(self) == repr(other)

    def __hash__(self) -> int:
        return hash(repr(self))


class _Strict(type):
    """Classes that have the members of their release and no other, on the class and on what is made of it."""

    def __getattr__(cls, name: str) -> Any:
        raise AttributeError(f"{cls.__name__} has no attribute {name!r}")


def _made(module: Surrogate, name: str) -> Any:
    release = module.__dict__["_release"]
    known = members(release, name)
    if NAMES["classes"][name]["kind"] == "enum":
        values = {each: Member(name, each, number) for number, each in enumerate(known)}
        return _Strict(name, (), values)
    body: dict[str, Any] = {"_module": module, "__init__": _INITS.get(name, _plain)}
    for member, mark in known.items():
        if mark == "()" and not member.startswith("__"):
            body[member] = _METHODS.get(f"{name}.{member}") or _unmodelled(f"{name}.{member}")
        elif mark != "()":
            body[member] = _property(name, member, settable=mark != "ro")
    for nested in NAMES["classes"]:
        if nested.startswith(f"{name}.") and _has(NAMES["classes"][nested]["in"], release):
            body[nested.partition(".")[2]] = _made(module, nested)

    def set_attribute(self: Any, attribute: str, value: Any) -> None:
        # A class that Python code derives of it has room for more, as with pybind11.
        if type(self) is made and attribute not in known and not attribute.startswith("_"):
            raise AttributeError(f"{name} of {release} has no attribute {attribute!r}")
        object.__setattr__(self, attribute, value)

    body["__setattr__"] = set_attribute
    if name == "IHostMemory":
        body["__bytes__"] = lambda self: self._data  # the buffer protocol, which Python code cannot give before 3.12
    made = _Strict(name, (), body)
    return made


def _property(owner: str, name: str, settable: bool) -> property:
    def get(self: Any) -> Any:
        if f"{owner}.{name}" in _GETTERS:
            return _GETTERS[f"{owner}.{name}"](self)
        return self.__dict__[f"_{name}"]

    def put(self: Any, value: Any) -> None:
        self.__dict__[f"_{name}"] = value
        if owner == "IBuilderConfig":
            self._module.asked["config"][name] = value
        if owner == "ILayer":
            self._module.asked["layers"].setdefault(self._name, {})[name] = value.name

    return property(get, put if settable else None)


def _unmodelled(name: str) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        raise AssertionError(f"{name} is in the release, and the surrogate does not know what it does")

    return call


def _plain(self: Any, **known: Any) -> None:
    self.__dict__.update({f"_{name}": value for name, value in known.items()})


def _new(self: Any, kind: str, /, **known: Any) -> Any:
    """One of the module's classes, with what its methods know."""
    found = getattr(self._module, kind)
    made = found.__new__(found)
    made.__dict__.update({f"_{key}": value for key, value in known.items()})
    return made


def _log(self: Any, severity: str, text: str) -> None:
    self._log.log(getattr(self._module.ILogger.Severity, severity), text)


def _with_log(self: Any, log: Any) -> None:
    self.__dict__["_log"] = log
    if not self._module._network.driver:
        _log(self, "ERROR", "CUDA initialization failure with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")


def _parser(self: Any, network: Any, log: Any) -> None:
    self.__dict__.update(_log=log, _parsed=network)


def _create_network(self: Any, flags: int = 0) -> Any:
    kinds = self._module.NetworkDefinitionCreationFlag
    known = {int(getattr(kinds, name)): name for name in members(self._module._release, kinds.__name__)}
    told = [bit for bit in range(16) if flags >> bit & 1]
    self._module.asked["network"] = [known[bit] for bit in told]
    return _new(self, "INetworkDefinition", flags=told)


def _parse(self: Any, model: bytes) -> bool:
    version = tuple(map(int, self._module._release.split(".")))
    if version < (10,) and "EXPLICIT_BATCH" not in self._module.asked["network"]:
        _log(self, "ERROR", "The network needs an explicit batch")
        return False
    self._module.asked["model"] = model
    return not self._module._network.errors


def _get_error(self: Any, index: int) -> Any:
    return _new(self, "ParserError", error=self._module._network.errors[index])


def _layers(self: Any) -> list[Any]:
    return [_new(self, "ILayer", name=name, types=types) for name, types in self._module._network.layers]


def _output(self: Any, index: int) -> Any:
    kind = getattr(self._module.DataType, self._types[index])
    return _new(self, "ITensor", dtype=kind)


def _set_output_type(self: Any, index: int, kind: Member) -> None:
    self._module.asked["layers"].setdefault(self._name, {}).setdefault("outputs", {})[index] = kind.name


def _set_pool(self: Any, pool: Member, size: int) -> None:
    self._module.asked["workspace" if pool.name == "WORKSPACE" else pool.name] = size


def _set_shape(self: Any, name: str, low: Any, opt: Any, high: Any) -> None:
    self._module.asked["profile"][name] = [list(low), list(opt), list(high)]


def _timing_cache(self: Any, data: bytes) -> Any:
    return _new(self, "ITimingCache", data=data)


def _set_timing_cache(self: Any, cache: Any, ignore_mismatch: bool) -> bool:
    if cache._data.startswith(b"foreign") and not ignore_mismatch:
        return False
    self._module.asked["timing_cache"] = cache._data
    self.__dict__["_cache"] = cache
    return True


def number(release: str) -> int:
    """As headers of calibration tables have it, for a patch of 0."""
    major, minor = map(int, release.split("."))
    return major * 10_000 + minor * 100 if major >= 10 else major * 1000 + minor * 100


def _build(self: Any, network: Any, config: Any) -> Any:
    module, planned = self._module, self._module._network
    asked = module.asked
    fails = planned.fails
    if planned.most_workspace is not None and asked["workspace"] > planned.most_workspace:
        fails = "Requested amount of GPU memory could not be allocated: out of memory"
    if fails is not None:
        _log(self, "ERROR", fails)
        return None
    calibrator = config.__dict__.get("_int8_calibrator")
    if calibrator is not None:
        table = bytes(calibrator.read_calibration_cache())
        asked["table"] = table
        if not table.startswith((HEADER % number(module._release)).encode()):
            calibrator.get_batch(list(planned.inputs))
            _log(self, "ERROR", "Calibration table does not match calibrator algorithm type.")
            return None
        for tensor in planned.unscaled:
            text = f"Missing scale and zero-point for tensor {tensor}, expect fall back to non-int8 implementation"
            _log(self, "WARNING", text)
    return _new(self, "IHostMemory", data=b"SURROGATE " + module._release.encode())


def _deserialize(self: Any, data: bytes) -> Any:
    if not bytes(data).startswith(b"SURROGATE " + self._module._release.encode()):
        _log(self, "ERROR", "The engine plan file is not compatible with this version of TensorRT")
        return None
    return _new(self, "ICudaEngine", log=self._log)


def _tensors(self: Any) -> list[str]:
    network = self._module._network
    return [*network.inputs, *network.outputs]


def _mode(self: Any, name: str) -> Any:
    modes = self._module.TensorIOMode
    return modes.INPUT if name in self._module._network.inputs else modes.OUTPUT


def _shape_of(self: Any, name: str) -> list[int]:
    network = self._module._network
    batch = next(iter(self._shapes.values()))[0]
    return self._shapes.get(name) or [batch if size < 0 else size for size in network.outputs[name]]


def _set_input_shape(self: Any, name: str, shape: Any) -> bool:
    planned = self._module._network.inputs[name]
    if len(shape) != len(planned) or any(size not in (-1, given) for size, given in zip(planned, shape, strict=True)):
        return False
    self._shapes[name] = list(shape)
    return True


def _execute(self: Any, stream: Any) -> bool:
    self._module.asked["executed"] = dict(self._addresses)
    return True


_INITS = {"Builder": _with_log, "Runtime": _with_log, "OnnxParser": _parser}
_FUNCTIONS = {"init_libnvinfer_plugins": lambda log, namespace: True}
_GETTERS: dict[str, Callable[[Any], Any]] = {
    "Builder.num_DLA_cores": lambda self: DLA_CORES,
    "OnnxParser.num_errors": lambda self: len(self._module._network.errors),
    "INetworkDefinition.num_layers": lambda self: len(self._module._network.layers),
    "ILayer.num_outputs": lambda self: len(self._types),
    "ICudaEngine.num_io_tensors": lambda self: len(_tensors(self)),
}
_METHODS: dict[str, Callable[..., Any]] = {
    "ILogger.log": lambda self, severity, message: None,
    "Builder.create_network": _create_network,
    "Builder.create_builder_config": lambda self: _new(self, "IBuilderConfig"),
    "Builder.create_optimization_profile": lambda self: _new(self, "IOptimizationProfile"),
    "Builder.build_serialized_network": _build,
    "OnnxParser.parse": _parse,
    "OnnxParser.parse_from_file": lambda self, path: _parse(self, Path(path).read_bytes()),
    "OnnxParser.get_error": _get_error,
    "OnnxParser.set_flag": lambda self, flag: self._module.asked["parser"].append(flag.name),
    "ParserError.node": lambda self: self._error["node"],
    "ParserError.node_name": lambda self: self._error["name"],
    "ParserError.node_operator": lambda self: self._error["operator"],
    "ParserError.desc": lambda self: self._error["text"],
    "INetworkDefinition.get_layer": lambda self, index: _layers(self)[index],
    "ILayer.get_output": _output,
    "ILayer.set_output_type": _set_output_type,
    "IBuilderConfig.set_flag": lambda self, flag: self._module.asked["set"].append(flag.name),
    "IBuilderConfig.clear_flag": lambda self, flag: self._module.asked["clear"].append(flag.name),
    "IBuilderConfig.set_memory_pool_limit": _set_pool,
    "IBuilderConfig.add_optimization_profile": lambda self, profile: 0,
    "IBuilderConfig.create_timing_cache": _timing_cache,
    "IBuilderConfig.set_timing_cache": _set_timing_cache,
    "IBuilderConfig.get_timing_cache": lambda self: self._cache,
    "ITimingCache.serialize": lambda self: _new(self, "IHostMemory", data=self._data + b" and timings"),
    "IOptimizationProfile.set_shape": _set_shape,
    "Runtime.deserialize_cuda_engine": _deserialize,
    "ICudaEngine.create_engine_inspector": lambda self: _new(self, "EngineInspector"),
    "EngineInspector.get_engine_information": lambda self, form: f'{{"form": "{form.name}"}}',
    "ICudaEngine.create_execution_context": lambda self: _new(self, "IExecutionContext", shapes={}, addresses={}),
    "ICudaEngine.get_tensor_name": lambda self, index: _tensors(self)[index],
    "ICudaEngine.get_tensor_mode": _mode,
    "ICudaEngine.get_tensor_dtype": lambda self, name: self._module.DataType.FLOAT,
    "ICudaEngine.get_tensor_profile_shape": lambda self, name, profile: ([1, 3], [4, 3], [8, 3]),
    "IExecutionContext.set_input_shape": _set_input_shape,
    "IExecutionContext.infer_shapes": lambda self: [],
    "IExecutionContext.get_tensor_shape": _shape_of,
    "IExecutionContext.set_tensor_address": lambda self, name, at: self._addresses.update({name: at}) is None,
    "IExecutionContext.execute_async_v3": _execute,
}


def install_cuda(folder: Path) -> None:
    """Write a package `cuda.bindings` into the folder whose runtime is HostMemory."""
    (folder / "cuda" / "bindings").mkdir(parents=True)
    (folder / "cuda" / "__init__.py").touch()
    (folder / "cuda" / "bindings" / "__init__.py").write_text(
        "import sys\n"
        f"sys.path.append({str(Path(__file__).parents[1])!r})\n"
        "from support.tensorrt_surrogate import HostMemory\n"
        "runtime = HostMemory()\n"
    )


def install(folder: Path, release: str, network: Network) -> None:
    """Write a package `tensorrt` into the folder that other processes can import, too."""
    (folder / "tensorrt").mkdir(parents=True, exist_ok=True)
    (folder / "tensorrt" / "__init__.py").write_text(
        "import sys\n"
        f"sys.path.append({str(Path(__file__).parents[1])!r})\n"
        "from support.tensorrt_surrogate import Network, Surrogate\n"
        f"found = Surrogate({release!r}, {network!r})\n"
        "found.__dict__.update(__file__=__file__, __path__=__path__, __spec__=__spec__)\n"
        "sys.modules[__name__] = found\n"
    )


class HostMemory:
    """In place of `cuda.bindings.runtime`: its calls on this machine's memory, so that addresses can be looked at."""

    class cudaError_t:
        cudaSuccess = 0

    class cudaMemcpyKind:
        cudaMemcpyHostToDevice = "in"
        cudaMemcpyDeviceToHost = "out"

    def __init__(self, devices: int = 1) -> None:
        self.devices = devices
        self.held: dict[int, Any] = {}
        self.streams = 0

    def cudaGetDeviceCount(self) -> tuple[int, int]:
        if self.devices < 0:
            raise RuntimeError("Failed to dlopen libcuda.so.1")
        return 0, self.devices

    def cudaDriverGetVersion(self) -> tuple[int, int]:
        return 0, 12080

    def cudaGetDeviceProperties(self, device: int) -> tuple[int, Any]:
        return 0, SimpleNamespace(name=b"Surrogate GPU", major=8, minor=9)

    def cudaStreamCreate(self) -> tuple[int, int]:
        self.streams += 1
        return 0, 1

    def cudaStreamDestroy(self, stream: int) -> tuple[int]:
        self.streams -= 1
        return (0,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[int]:
        return (0,)

    def cudaMalloc(self, size: int) -> tuple[int, int]:
        memory = ctypes.create_string_buffer(size)
        self.held[ctypes.addressof(memory)] = memory
        return 0, ctypes.addressof(memory)

    def cudaFree(self, address: int) -> tuple[int]:
        del self.held[address]
        return (0,)

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: str, stream: int) -> tuple[int]:
        assert len(self.held[target if kind == "in" else source]) >= size
        ctypes.memmove(target, source, size)
        return (0,)
