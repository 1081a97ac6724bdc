"""Runs alone in a process of its own (see `tensorrt_build`): the standard library and TensorRT, nothing of ours.

Standard input: one line of JSON, what `targets.python_api.lower` makes with "folder" (where the module is) and "model"
(an ONNX file to read, None: it follows on standard input). Standard output: one line of JSON, {"error", "parser",
"missing", "unscaled", "notes"} as far as they apply, then the engine. No release of TensorRT is known here: whatever is
named is named by the request, or is in all of them.
"""

import ctypes
import importlib
import json
import os
import re
import sys
from typing import Any

UNSCALED = re.compile("Missing scale and zero-point for tensor (.+?), expect")


def main() -> None:
    """Answer the one request on standard input."""
    answer = os.dup(1)
    os.dup2(2, 1)  # what the library prints must not get between answer and reader
    request = json.loads(sys.stdin.buffer.readline())
    sys.path.append(request["folder"])
    header: dict[str, Any] = {}
    try:
        engine = build(request, sys.stdin.buffer.read(), header)
    except RuntimeError as error:
        engine, header["error"] = b"", str(error)
    with os.fdopen(answer, "wb") as out:
        out.write(json.dumps(header).encode() + b"\n")
        out.write(engine)


def build(request: dict[str, Any], model: bytes, header: dict[str, Any]) -> bytes:
    """The serialized engine; more of it in `header`. Raises RuntimeError with the parser's or builder's own words."""
    trt = importlib.import_module(request["module"])
    errors: list[str] = []
    unscaled: list[str] = []
    notes: list[str] = []
    header.update(unscaled=unscaled, notes=notes, missing=[])

    class Log(trt.ILogger):  # type: ignore[misc,name-defined]  # the package has no types
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                errors.append(" ".join(message.split()))
            elif severity == trt.ILogger.Severity.WARNING:
                unscaled.extend(UNSCALED.findall(message))
            if request["verbose"]:
                sys.stderr.write(f"{message}\n")

    log = Log()
    _load_plugins(trt, log, request)
    builder = _made(lambda: trt.Builder(log), errors, "cannot start")
    flags = sum(1 << int(getattr(trt.NetworkDefinitionCreationFlag, name)) for name in request["network"])
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, log)
    for name in request["parser"]:
        parser.set_flag(getattr(trt.OnnxParserFlag, name))
    if not (parser.parse(model) if request["model"] is None else parser.parse_from_file(request["model"])):
        header["parser"] = _said(parser)
        raise RuntimeError(f"cannot read the graph: {_last_words(errors)}")
    config = builder.create_builder_config()
    _configure(trt, config, request)
    if request["dla"] and request["config"]["DLA_core"] >= builder.num_DLA_cores:
        raise RuntimeError(f"has no such DLA core here: this machine has {builder.num_DLA_cores}")
    header["missing"] = _set_precisions(trt, network, request["layers"])
    calibrator = None
    if request["calibrator"] is not None:
        calibrator = _calibrator(trt, request)
        config.int8_calibrator = calibrator
    if request["profile"]:
        profile = builder.create_optimization_profile()
        for name, (low, opt, high) in request["profile"].items():
            profile.set_shape(name, low, opt, high)
        if config.add_optimization_profile(profile) < 0:
            raise RuntimeError(f"refuses the ranges of model.dims: {_last_words(errors)}")
    if request["timing_cache"] is not None:
        _bring_timings(config, request["timing_cache"], notes)
    engine = builder.build_serialized_network(network, config)
    if calibrator is not None and calibrator.asked:
        raise RuntimeError(f"does not take the calibration table and asked for data: {_last_words(errors)}")
    if engine is None:
        raise RuntimeError(f"cannot build the engine: {_last_words(errors)}")
    built = bytes(engine)
    if request["timing_cache"] is not None:
        with open(request["timing_cache"], "wb") as file:  # noqa: PTH123 - pathlib would move what lies in memory
            file.write(bytes(config.get_timing_cache().serialize()))
    if request["layer_info"] is not None:
        _describe(trt, log, built, request["layer_info"], errors)
    return built


def _load_plugins(trt: Any, log: Any, request: dict[str, Any]) -> None:
    if request["standard_plugins"]:
        trt.init_libnvinfer_plugins(log, "")
    for path in request["plugins"]:
        try:
            ctypes.CDLL(path)  # its plugins register themselves, as for trtexec
        except OSError as error:
            raise RuntimeError(f"cannot load the plugin {path}: {error}") from error


def _configure(trt: Any, config: Any, request: dict[str, Any]) -> None:
    for name in request["set"]:
        config.set_flag(getattr(trt.BuilderFlag, name))
    for name in request["clear"]:
        config.clear_flag(getattr(trt.BuilderFlag, name))
    if request["workspace"] is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request["workspace"])
    for name, value in request["config"].items():
        setattr(config, name, getattr(getattr(trt, value[0]), value[1]) if isinstance(value, list) else value)


def _set_precisions(trt: Any, network: Any, wanted: dict[str, str]) -> list[str]:
    """Names of `wanted` that no layer has: the parser folded them away, or joined them with others."""
    left = dict(wanted)
    floats = (trt.DataType.FLOAT, trt.DataType.HALF)
    for index in range(network.num_layers if wanted else 0):
        layer = network.get_layer(index)
        if layer.name not in wanted:
            continue
        left.pop(layer.name, None)
        outputs = [each for each in range(layer.num_outputs) if layer.get_output(each).dtype in floats]
        if outputs:  # what computes indices, shapes or truth has no such precision
            layer.precision = getattr(trt.DataType, wanted[layer.name])
        for each in outputs:
            layer.set_output_type(each, getattr(trt.DataType, wanted[layer.name]))
    return list(left)


def _calibrator(trt: Any, request: dict[str, Any]) -> Any:
    """Gives the table and never data: TensorRT asks for data where it does not take the table."""
    with open(request["table"], "rb") as file:  # noqa: PTH123
        table = file.read()

    class Table(getattr(trt, request["calibrator"])):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.asked = False

        def get_batch_size(self) -> int:
            return 1

        def get_batch(self, names: Any) -> None:
            self.asked = True

        def read_calibration_cache(self) -> bytes:
            return table

        def write_calibration_cache(self, cache: Any) -> None:
            pass

    return Table()


def _bring_timings(config: Any, path: str, notes: list[str]) -> None:
    held = b""
    if os.path.exists(path):  # noqa: PTH110
        with open(path, "rb") as file:  # noqa: PTH123
            held = file.read()
    cache = config.create_timing_cache(held)
    if cache is None or not config.set_timing_cache(cache, False):
        notes.append("the timing cache is of another release or GPU, so it was begun anew")
        config.set_timing_cache(config.create_timing_cache(b""), False)


def _describe(trt: Any, log: Any, engine: bytes, path: str, errors: list[str]) -> None:
    """Write what TensorRT says of the engine's layers; it has to load the engine for that."""
    runtime = _made(lambda: trt.Runtime(log), errors, "cannot start")
    loaded = runtime.deserialize_cuda_engine(engine)
    if loaded is None:
        raise RuntimeError(f"cannot load the engine to describe its layers: {_last_words(errors)}")
    inspector = loaded.create_engine_inspector()
    with open(path, "w", encoding="utf-8") as file:  # noqa: PTH123
        file.write(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def _made(make: Any, errors: list[str], otherwise: str) -> Any:
    """What a constructor gives; it raises TypeError where the library gives it nothing, as it does without a driver."""
    try:
        return make()
    except TypeError as error:
        raise RuntimeError(f"{otherwise}: {_last_words(errors or [str(error)])}") from error


def _said(parser: Any) -> list[dict[str, Any]]:
    """Every error of the parser; the names of nodes only where this release tells them."""
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    return [
        {
            "node": error.node(),
            "name": error.node_name() if hasattr(error, "node_name") else None,
            "operator": error.node_operator() if hasattr(error, "node_operator") else None,
            "text": " ".join(error.desc().split())[:800],
        }
        for error in errors[:20]
    ]


def _last_words(errors: list[str]) -> str:
    return "; ".join(errors or ["it gave no reason"])[-800:]


if __name__ == "__main__":
    main()
