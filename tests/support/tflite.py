"""TFLite files for tests: those of tests/fixtures/tflite, changed copies of them, and files of one operator."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

FOLDER = Path(__file__).parent.parent / "fixtures" / "tflite"


@dataclass(frozen=True)
class Spec:
    """A tensor: its type and shape from `values`; a constant unless `given`. `scale`, `zero`: one or one per `axis`."""

    values: Any
    given: bool = False
    scale: Sequence[float] = ()
    zero: Sequence[int] = ()
    axis: int = 0


@dataclass(frozen=True)
class Call:
    """One operator: inputs and outputs are names of tensors, "" for an input that is absent.

    `table`: the kind of its options; `options`: their fields as the bindings call them.
    """

    name: str
    inputs: Sequence[str]
    outputs: Sequence[str]
    table: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)


def fixture(name: str) -> Path:
    """A committed file."""
    return FOLDER / f"{name}.tflite"


def changed(name: str, path: Path, change: Callable[[Any], None]) -> Path:
    """A copy of a committed file at `path`, after `change` of its content as the bindings' objects."""
    model = schema.ModelT.InitFromPackedBuf(bytearray(fixture(name).read_bytes()), 0)
    change(model)
    return write(model, path)


def write(model: Any, path: Path) -> Path:
    """Write the bindings' objects to a file."""
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path


def operators(path: Path, tensors: Mapping[str, Spec], calls: Sequence[Call], outputs: Sequence[str]) -> Path:
    """A file with these operators, without a signature. Inputs are the tensors that are `given` and not made."""
    model, graph = schema.ModelT(), schema.SubGraphT()
    model.version, model.subgraphs, model.operatorCodes = 3, [graph], []
    model.buffers, graph.tensors, graph.operators = [schema.BufferT()], [], []
    makers = {name for call in calls for name in call.outputs}
    numbers = {name: number for number, name in enumerate(tensors)}
    for name, spec in tensors.items():
        graph.tensors.append(_tensor(name, spec, model.buffers, spec.given or name in makers))
    for call in calls:
        graph.operators.append(_operator(call, numbers, model.operatorCodes))
    graph.inputs = [numbers[name] for name, spec in tensors.items() if spec.given and name not in makers]
    graph.outputs = [numbers[name] for name in outputs]
    return write(model, path)


def _tensor(name: str, spec: Spec, buffers: list[Any], computed: bool) -> Any:
    values = np.asarray(spec.values)
    tensor = schema.TensorT()
    kind = {"bool": "BOOL"}.get(values.dtype.name, values.dtype.name.upper())
    tensor.name, tensor.type = name, getattr(schema.TensorType, kind)
    tensor.shape, tensor.buffer, tensor.hasRank = list(values.shape), 0, True
    if not computed:
        content = schema.BufferT()
        content.data = np.frombuffer(values.tobytes(), np.uint8)
        tensor.buffer = len(buffers)
        buffers.append(content)
    if spec.scale:
        quantization = schema.QuantizationParametersT()
        quantization.scale = np.array(spec.scale, np.float32)
        quantization.zeroPoint = np.array(spec.zero or [0] * len(spec.scale), np.int64)
        quantization.quantizedDimension = spec.axis
        tensor.quantization = quantization
    return tensor


def _operator(call: Call, numbers: Mapping[str, int], codes: list[Any]) -> Any:
    code, operator = schema.OperatorCodeT(), schema.OperatorT()
    known = getattr(schema.BuiltinOperator, call.name, None)
    code.builtinCode = schema.BuiltinOperator.CUSTOM if known is None else known
    code.deprecatedBuiltinCode, code.version = min(code.builtinCode, 127), 1
    code.customCode = call.name if known is None else None
    operator.opcodeIndex = len(codes)
    codes.append(code)
    operator.inputs = [numbers[name] if name else -1 for name in call.inputs]
    operator.outputs = [numbers[name] for name in call.outputs]
    if call.table:
        options = getattr(schema, f"{call.table}T")()
        for key, value in call.options.items():
            assert hasattr(options, key), (call.table, key)
            setattr(options, key, value)
        operator.builtinOptionsType = getattr(schema.BuiltinOptions, call.table)
        operator.builtinOptions = options
    return operator
