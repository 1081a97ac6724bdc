"""Runs what the steps build: one module per runtime, one shape of engine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Protocol

from trtrecipe.data.preprocess import Array
from trtrecipe.errors import StepError


class Engine(Protocol):
    """A loaded engine; a context manager that frees what it holds."""

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Output name → array, for one array per input in the engine's dtype. Raises StepError."""
        ...

    def conditions(self) -> dict[str, str | int]:
        """What a measurement depends on: runtime, version, device, threads."""
        ...

    def __enter__(self) -> Engine: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_engine(runtime: str, path: Path) -> Engine:
    """Load the engine in `path` for measuring: all threads (LiteRT: one), the GPU if the runtime uses one.

    Raises StepError.
    """
    if runtime == "onnxruntime":
        from trtrecipe.engines import ort

        return ort.OrtEngine(path, threads=0)
    if runtime in ("tensorrt", "tensorrt-rtx"):
        from trtrecipe.engines import tensorrt_run

        return tensorrt_run.TensorRtEngine(path, runtime.replace("-", "_"))
    if runtime == "litert":
        from trtrecipe.engines import tflite

        return tflite.TfliteEngine(path)
    raise StepError(f"no runtime is called {runtime}", "runtimes: onnxruntime, tensorrt, tensorrt-rtx, litert")
