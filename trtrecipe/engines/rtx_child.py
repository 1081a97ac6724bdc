"""Runs alone in a process of its own (see `rtx_build`): the standard library and tensorrt_rtx, nothing of ours.

Standard input: one line of JSON {"folder", "profile": {input: [min, opt, max]}, "workspace"}, then the ONNX model.
Standard output: one line of JSON, {} or {"error"}, then the engine.
"""

import json
import os
import sys
from typing import Any


def main() -> None:
    """Answer the one request on standard input."""
    answer = os.dup(1)
    os.dup2(2, 1)  # what the library prints must not get between answer and reader
    request = json.loads(sys.stdin.buffer.readline())
    sys.path.append(request["folder"])
    try:
        engine = build(request, sys.stdin.buffer.read())
        header: dict[str, str] = {}
    except RuntimeError as error:
        engine, header = b"", {"error": str(error)}
    with os.fdopen(answer, "wb") as out:
        out.write(json.dumps(header).encode() + b"\n")
        out.write(engine)


def build(request: dict[str, Any], model: bytes) -> bytes:
    """The serialized engine. Raises RuntimeError with the parser's or builder's own words."""
    import tensorrt_rtx as trt

    errors: list[str] = []

    class Log(trt.ILogger):  # type: ignore[misc]  # the package has no types
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                errors.append(" ".join(message.split()))

    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    if not parser.parse(model):
        raise RuntimeError(f"cannot read the graph: {_said(parser) or _last_words(errors)}")
    config = builder.create_builder_config()
    if request["workspace"] is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request["workspace"])
    if request["profile"]:
        profile = builder.create_optimization_profile()
        for name, (low, opt, high) in request["profile"].items():
            profile.set_shape(name, low, opt, high)
        if config.add_optimization_profile(profile) < 0:
            raise RuntimeError(f"refuses the ranges of model.dims: {_last_words(errors)}")
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise RuntimeError(f"cannot build the engine: {_last_words(errors)}")
    return bytes(engine)


def _said(parser: Any) -> str:
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    said = [f"node {e.node_name() or e.node()} ({e.node_operator()}): {' '.join(e.desc().split())}" for e in errors]
    return "; ".join(said)[:800]


def _last_words(errors: list[str]) -> str:
    return "; ".join(errors or ["it gave no reason"])[-800:]


if __name__ == "__main__":
    main()
