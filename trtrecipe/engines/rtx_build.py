"""ONNX → engine with TensorRT for RTX. No GPU is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx

from trtrecipe.engines.rtx_library import library, new_log, version
from trtrecipe.errors import StepError
from trtrecipe.graphs.interface import TensorSpec, interface

_INT8_SINCE = (1, 7)
Dims = Mapping[str, Mapping[str, int]]


def build(model: onnx.ModelProto, engine: Path, dims: Dims, workspace: int | None) -> None:
    """Write the engine of `model` to `engine`; `workspace` in bytes.

    The ranges of `dims` (name → min, opt, max) become one optimization profile. Raises StepError with the parser's or
    builder's own words.
    """
    trt = library()
    _check_int8(trt, model)
    ranges = [(spec, profile(spec, dims)) for spec in interface(model).inputs if _open_axes(spec)]
    log = new_log(trt)
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    if not parser.parse(model.SerializeToString(deterministic=True)):
        raise _parse_error(parser, log)
    config = builder.create_builder_config()
    if workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace)
    if ranges:
        chosen = builder.create_optimization_profile()
        for spec, (low, opt, high) in ranges:
            chosen.set_shape(spec.name, low, opt, high)
        if config.add_optimization_profile(chosen) < 0:
            raise StepError(f"TensorRT for RTX refuses the ranges of model.dims: {log.last_words()}", _RANGES)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise StepError(f"TensorRT for RTX cannot build the engine: {log.last_words()}", _RANGES if ranges else None)
    engine.write_bytes(memoryview(plan))


_RANGES = "check that the model works over the whole range of model.dims; a range that it cannot take fails like this"


def profile(spec: TensorSpec, dims: Dims) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """The least, most usual and largest shape of an input. Raises StepError for an open axis without a range."""
    low, opt, high = ([_bound(spec, axis, dims, bound) for axis in spec.shape] for bound in ("min", "opt", "max"))
    return tuple(low), tuple(opt), tuple(high)


def _bound(spec: TensorSpec, axis: int | str, dims: Dims, bound: str) -> int:
    if isinstance(axis, int):
        return axis
    if axis not in dims:
        raise StepError(
            f"axis {axis} of input {spec} is open and has no range",
            f"give model.dims an entry for {axis}: {{min: …, opt: …, max: …}}, or fix the axis under model.inputs",
        )
    return int(dims[axis][bound])


def _open_axes(spec: TensorSpec) -> Sequence[str]:
    return [axis for axis in spec.shape if isinstance(axis, str)]


def _check_int8(trt: Any, model: onnx.ModelProto) -> None:
    if version(trt)[:2] >= _INT8_SINCE or not any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        return
    raise StepError(
        f"TensorRT for RTX {trt.__version__} cannot build INT8 convolutions; version 1.7 is the first that can",
        "install it with: pip install 'trtrecipe[rtx]'; or use precision.mode fp16 for this target",
    )


def _parse_error(parser: Any, log: Any) -> StepError:
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    said = [f"node {e.node_name() or e.node()} ({e.node_operator()}): {' '.join(e.desc().split())}" for e in errors]
    return StepError(
        f"TensorRT for RTX cannot read the graph: {'; '.join(said)[:800] or log.last_words()}",
        "replace the operator in the model, or leave this target out",
    )
