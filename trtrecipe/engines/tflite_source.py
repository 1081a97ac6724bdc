"""A TFLite file run by LiteRT's interpreter, as something that its export is compared with."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trtrecipe.data.preprocess import Array
from trtrecipe.errors import StepError
from trtrecipe.graphs import from_tflite, tflite_file
from trtrecipe.graphs.flatbuffer import Damaged
from trtrecipe.graphs.from_tflite import Interface
from trtrecipe.graphs.tflite_file import Tensor

_BYTES = ("INT8", "UINT8")


class TfliteSource:
    """What `from_tflite.read` converts with the same arguments, run as the file says.

    Inputs and outputs are called and typed as in the export: floats in the place of 8 bit integers, rounded on their
    way in to the integers' scale. Weights that are stored in 8 bits for activations that are floats (dynamic range) are
    made floats first: the interpreter would round the activations as well, by rules of each kernel's own.

    Only what `from_tflite.choose` took for sound is given to the interpreter, and no operator without a conversion.
    """

    def __init__(self, path: Path, signature: str | None = None, outputs: Sequence[str] = ()) -> None:
        """Raises StepError for files that cannot be read."""
        interface = from_tflite.choose(tflite_file.read(path), signature).cut(outputs)
        self._inputs = [(name, interface.graph.tensors[number]) for name, number in interface.used_inputs().items()]
        self._outputs = [(name, interface.graph.tensors[number]) for name, number in interface.outputs.items()]
        self._steps = _steps(interface)
        try:
            self._content = _rewritten(path, interface)
        except Damaged as error:
            raise tflite_file.damaged(error) from None
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, struct.error) as error:
            # LiteRT's own reader checks nothing, and reads parts of the file that the export has no use for.
            raise tflite_file.damaged(
                Damaged(f"LiteRT's reader fails on it ({' '.join(str(error).split())})")
            ) from None

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what `run` gives."""
        return tuple(name for name, _ in self._outputs)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Output name → array, from one array per input. State starts at zero in each run. Raises StepError."""
        # A fresh interpreter each time: that is what resets the state of an LSTM, and it takes about a millisecond.
        interpreter = _interpreter(self._content)
        try:
            details = interpreter.get_input_details()
            for (name, _), detail in zip(self._inputs, details, strict=True):
                if list(detail["shape"]) != list(feeds[name].shape):
                    interpreter.resize_tensor_input(detail["index"], feeds[name].shape, strict=True)
            interpreter.allocate_tensors()
            for (name, tensor), detail in zip(self._inputs, details, strict=True):
                interpreter.set_tensor(detail["index"], _quantized(tensor, feeds[name]))
            interpreter.invoke()
            made = [interpreter.get_tensor(detail["index"]) for detail in interpreter.get_output_details()]
        except (RuntimeError, ValueError) as error:
            words = " ".join(str(error).split())[:400]
            raise StepError(f"LiteRT cannot run the model: {words}") from None
        return {name: _floats(tensor, values) for (name, tensor), values in zip(self._outputs, made, strict=True)}

    def steps(self) -> dict[str, float]:
        """Output → the distance of its neighbouring values, of outputs that are computed in 8 bits.

        Integer kernels round in places where Q/DQ do not: a result may be a step off, inside the model a few.
        """
        return dict(self._steps)


def run_tflite(path: Path, feeds: Mapping[str, Array], signature: str | None = None) -> dict[str, Array]:
    """What the file gives for `feeds`, once. Names, types and errors are TfliteSource's."""
    return TfliteSource(path, signature).run(feeds)


def _interpreter(content: bytes) -> Any:
    from ai_edge_litert import interpreter

    # LiteRT's own kernels, on one thread: delegates split and round by the processor at hand.
    plain = interpreter.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    try:
        return interpreter.Interpreter(model_content=content, num_threads=1, experimental_op_resolver_type=plain)
    except (RuntimeError, ValueError) as error:
        words = " ".join(str(error).split())[:400]
        raise StepError(f"LiteRT cannot load the model: {words}") from None


def _rewritten(path: Path, interface: Interface) -> bytes:
    """The file with this graph alone, ended at its outputs, with floats for weights that only are stored in 8 bits."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as bindings

    model = bindings.ModelT.InitFromPackedBuf(bytearray(path.read_bytes()), 0)
    graph = model.subgraphs[interface.index]
    model.subgraphs, model.signatureDefs = [graph], None
    graph.inputs, graph.outputs = list(interface.used_inputs().values()), list(interface.outputs.values())
    graph.operators = [graph.operators[index] for index in interface.needed()]
    for number in _stored(interface):
        tensor = interface.graph.tensors[number]
        if tensor.quantization is None:
            continue
        values = tensor.quantization.dequantize(tensor.values())
        content = bindings.BufferT()
        content.data = np.frombuffer(values.tobytes(), np.uint8)
        graph.tensors[number].type = bindings.TensorType.FLOAT32
        graph.tensors[number].quantization = None
        graph.tensors[number].buffer = len(model.buffers)
        model.buffers.append(content)
    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(model.Pack(builder), file_identifier=tflite_file.IDENTIFIER)
    return bytes(builder.Output())


def _stored(interface: Interface) -> list[int]:
    """Constants of 8 bits with a scale that only operators on floats read."""
    graph = interface.graph
    found: dict[int, bool] = {}
    for index in interface.needed():
        operator = graph.operators[index]
        floats = operator.name != "DEQUANTIZE" and graph.tensors[operator.outputs[0]].kind == "FLOAT32"
        for number in operator.inputs:
            if number >= 0 and graph.tensors[number].kind in _BYTES and graph.tensors[number].data is not None:
                found[number] = found.get(number, True) and floats
    return [number for number, floats in found.items() if floats]


def _steps(interface: Interface) -> dict[str, float]:
    made = {number: operator for operator in interface.graph.operators for number in operator.outputs}
    found: dict[str, float] = {}
    for name, number in interface.outputs.items():
        if number in made and made[number].name == "DEQUANTIZE":
            number = made[number].inputs[0]
        tensor = interface.graph.tensors[number]
        if tensor.kind in _BYTES and tensor.quantization is not None:
            found[name] = float(tensor.quantization.scale[0])
    return found


def _quantized(tensor: Tensor, values: Array) -> Array:
    """The integers that QuantizeLinear makes of floats, where the tensor has any."""
    if tensor.kind not in _BYTES or tensor.quantization is None:
        return values
    info = np.iinfo(tensor.kind.lower())
    steps = np.rint(values / tensor.quantization.scale[0]) + tensor.quantization.zero[0]
    integers: Array = np.clip(steps, info.min, info.max).astype(info.dtype)
    return integers


def _floats(tensor: Tensor, values: Array) -> Array:
    if tensor.kind not in _BYTES or tensor.quantization is None:
        return values
    return tensor.quantization.dequantize(values)
