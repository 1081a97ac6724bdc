"""TFLite files run by LiteRT on the CPU: verify's and benchmark's runtime of the target tflite.

LiteRT is the package ai-edge-litert. TensorFlow 2.21 still has an interpreter of its own (tf.lite.Interpreter), which
says of itself that it is to be deleted in favour of this one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from trtrecipe.data.preprocess import Array
from trtrecipe.engines.ort import cpu_model
from trtrecipe.errors import StepError
from trtrecipe.graphs import from_tflite, tflite_file
from trtrecipe.graphs.tflite_file import Tensor

PACKAGE = "ai-edge-litert"
THREADS = 1
"""As is usual for figures of phones and small boards; and how a sum is split over threads can change its rounding."""


class TfliteEngine:
    """The file in LiteRT with its default delegate for CPUs (XNNPACK), which is what applications get.

    Inputs and outputs go by the names of the file's signature, else by those of its tensors. Where the file itself
    takes or gives 8-bit integers, floats are rounded to their scale on the way in, and come out again.
    """

    def __init__(self, path: Path) -> None:
        """Raises StepError for a file that is damaged or that LiteRT cannot run."""
        chosen = from_tflite.choose(tflite_file.read(path), None)
        self._inputs = {name: (number, chosen.graph.tensors[number]) for name, number in chosen.inputs.items()}
        self._outputs = {name: (number, chosen.graph.tensors[number]) for name, number in chosen.outputs.items()}
        self._shapes: dict[str, tuple[int, ...]] = {}
        try:
            self._interpreter = _package().Interpreter(model_path=str(path), num_threads=THREADS)
        except (RuntimeError, ValueError) as error:
            raise StepError(f"LiteRT cannot load the model: {_last_words(error)}") from error

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Output name → array, state reset before. Raises StepError with LiteRT's own words."""
        if missing := sorted(self._inputs.keys() - feeds.keys()):
            raise StepError(
                f"the engine has an input {missing[0]} that no data is given for", f"given: {', '.join(feeds)}"
            )
        try:
            self._fit({name: np.shape(feeds[name]) for name in self._inputs})
            for name, (number, tensor) in self._inputs.items():
                self._interpreter.set_tensor(number, _given(tensor, np.ascontiguousarray(feeds[name])))
            self._interpreter.invoke()
            return {
                name: _made(tensor, self._interpreter.get_tensor(number))
                for name, (number, tensor) in self._outputs.items()
            }
        except (RuntimeError, ValueError) as error:
            raise StepError(f"LiteRT cannot run the model: {_last_words(error)}") from error

    def conditions(self) -> dict[str, str | int]:
        """Runtime, version, CPU and threads. A run includes the copies of inputs and outputs."""
        return {
            "runtime": "litert",
            "version": _version(),
            "device": cpu_model(),
            "cores": os.cpu_count() or 1,
            "threads": THREADS,
            "delegate": "xnnpack",
            "includes": "copies of inputs and outputs",
        }

    def __enter__(self) -> TfliteEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del self._interpreter

    def _fit(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Give inputs these shapes and everything else its memory, where that has changed."""
        if shapes == self._shapes:
            self._interpreter.reset_all_variables()
            return
        for name, shape in shapes.items():
            if shape != self._shapes.get(name):
                self._interpreter.resize_tensor_input(self._inputs[name][0], shape, strict=True)
        self._interpreter.allocate_tensors()
        self._shapes = shapes


def _given(tensor: Tensor, values: Array) -> Array:
    if tensor.quantization is None or values.dtype.kind != "f" or tensor.kind not in ("INT8", "UINT8", "INT16"):
        return values
    limits = np.iinfo(tensor.kind.lower())
    steps = np.rint(values / tensor.quantization.scale[0]) + tensor.quantization.zero[0]
    integers: Array = np.clip(steps, limits.min, limits.max).astype(limits.dtype)
    return integers


def _made(tensor: Tensor, values: Array) -> Array:
    if tensor.quantization is None or tensor.kind not in ("INT8", "UINT8", "INT16"):
        return values
    return tensor.quantization.dequantize(values)


def _package() -> Any:
    try:
        from ai_edge_litert import interpreter
    except ImportError as error:
        raise StepError(
            f"running TFLite files needs the package {PACKAGE}: {error}",
            "install it with: pip install 'trtrecipe[tensorflow]'",
        ) from error
    return interpreter


def _version() -> str:
    from importlib import metadata

    return metadata.version(PACKAGE)


def _last_words(error: Exception) -> str:
    return " ".join(str(error).split())[-400:]
