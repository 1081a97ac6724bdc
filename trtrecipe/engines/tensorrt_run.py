"""Engines of TensorRT and of TensorRT for RTX on a GPU, by tensors' names, as every release from 8.5 on has it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from trtrecipe.data.preprocess import Array
from trtrecipe.engines.tensorrt_library import EXTRAS, library, new_log
from trtrecipe.errors import InputError, StepError
from trtrecipe.targets.python_api import PRODUCTS, served

_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "UINT8": "uint8",
    "BOOL": "bool",
}
"""Members of DataType → NumPy's names."""


def unavailable(module: str) -> str | None:
    """Why no engine of "tensorrt" or "tensorrt_rtx" can run on this machine, in words; None when one can be tried."""
    try:
        library(module)
        _cuda(module)
    except StepError as error:
        return error.message
    return None


class TensorRtEngine:
    """A deserialized engine with one execution context, one stream, and device buffers that grow as needed."""

    def __init__(self, path: Path, module: str) -> None:
        self._trt = library(module)
        self._product = f"{PRODUCTS[module]} {self._trt.__version__}"
        self._module = module
        try:
            served(module, self._trt.__version__)
        except InputError as error:
            raise StepError(error.problems[0].message, error.problems[0].hint) from None
        self._cuda = _cuda(module)
        self._buffers: dict[str, tuple[int, int]] = {}  # tensor → address, bytes
        self._stream: Any = None
        self._log = new_log(self._trt)
        self._runtime = self._trt.Runtime(self._log)
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise StepError(
                f"{self._product} cannot load the engine on {self._device()}: {self._log.last_words()}",
                "engines run only with the version that built them, on the GPU or GPUs that they were built for",
            )
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise StepError(
                f"{self._product} cannot prepare the engine on {self._device()}: {self._log.last_words()}",
                "free GPU memory, or build for a smaller range of model.dims",
            )
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        is_input = self._trt.TensorIOMode.INPUT
        self._inputs = [name for name in names if self._engine.get_tensor_mode(name) == is_input]
        self._outputs = [name for name in names if name not in self._inputs]
        self._stream = self._call("cudaStreamCreate")

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Copy the feeds in, run, copy the outputs out. Raises StepError."""
        hosts = {name: self._feed(name, feeds) for name in self._inputs}
        waiting = self._context.infer_shapes()
        if waiting:
            raise StepError(f"the engine does not know the shape of {', '.join(waiting)}", "build it again")
        results = {name: self._result(name) for name in self._outputs}
        if not self._context.execute_async_v3(self._stream):
            raise StepError(f"the engine failed on {self._device()}: {self._log.last_words()}")
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        for name, result in results.items():
            self._copy(result.ctypes.data, self._buffers[name][0], result.nbytes, kind)
        self._call("cudaStreamSynchronize", self._stream)
        del hosts  # copies from these were under way until now
        return results

    def conditions(self) -> dict[str, str | int]:
        """Runtime, version and GPU. A run includes the copies to the GPU and back."""
        return {
            "runtime": self._module.replace("_", "-"),
            "version": str(self._trt.__version__),
            "device": self._device(),
            "driver_cuda": int(self._call("cudaDriverGetVersion")),
            "includes": "copies of inputs and outputs",
        }

    def __enter__(self) -> TensorRtEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for address, _ in self._buffers.values():
            self._call("cudaFree", address)
        self._buffers.clear()
        if self._stream is not None:
            self._call("cudaStreamDestroy", self._stream)
            self._stream = None
        # In this order: each needs the one after it.
        del self._context, self._engine, self._runtime

    def _feed(self, name: str, feeds: Mapping[str, Array]) -> Array:
        if name not in feeds:
            raise StepError(f"the engine has an input {name} that no data is given for", f"given: {', '.join(feeds)}")
        host = np.ascontiguousarray(feeds[name], self._dtype(name)).reshape(np.shape(feeds[name]))
        if not self._context.set_input_shape(name, host.shape):
            low, _, high = (tuple(shape) for shape in self._engine.get_tensor_profile_shape(name, 0))
            raise StepError(
                f"the engine refuses shape {list(host.shape)} for input {name}: it takes {list(low)} to {list(high)}",
                "widen the range under model.dims, or give samples within it",
            )
        self._bind(name, host.nbytes)
        self._copy(
            self._buffers[name][0], host.ctypes.data, host.nbytes, self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        )
        return host

    def _result(self, name: str) -> Array:
        shape = tuple(self._context.get_tensor_shape(name))
        if any(axis < 0 for axis in shape):
            raise StepError(
                f"the shape of output {name} depends on the values of the input, which cannot be run here",
                "give the model an output of fixed shape, e.g. the scores before non-maximum suppression",
            )
        result = np.empty(shape, self._dtype(name))
        self._bind(name, result.nbytes)
        return result

    def _dtype(self, name: str) -> Any:
        kind = self._engine.get_tensor_dtype(name).name
        if kind not in _DTYPES:
            raise StepError(f"tensor {name} is {kind}, which NumPy has no type for", "cast it to float32 in the model")
        return np.dtype(_DTYPES[kind])

    def _bind(self, name: str, size: int) -> None:
        """Give tensor `name` a device buffer of at least `size` bytes."""
        address, held = self._buffers.get(name, (0, 0))
        if held < max(size, 1):
            if held:
                self._call("cudaStreamSynchronize", self._stream)
                self._call("cudaFree", address)
                del self._buffers[name]
            address = int(self._call("cudaMalloc", max(size, 1)))
            self._buffers[name] = address, max(size, 1)
        if not self._context.set_tensor_address(name, address):
            raise StepError(f"the engine refuses memory for tensor {name}: {self._log.last_words()}")

    def _copy(self, target: int, source: int, size: int, kind: Any) -> None:
        self._call("cudaMemcpyAsync", target, source, size, kind, self._stream)

    def _device(self) -> str:
        properties = self._call("cudaGetDeviceProperties", 0)
        name = properties.name.decode() if isinstance(properties.name, bytes) else str(properties.name)
        return f"{name} (compute capability {properties.major}.{properties.minor})"

    def _call(self, function: str, *arguments: Any) -> Any:
        return _checked(self._cuda, function, *arguments)


def _cuda(module: str) -> Any:
    """The CUDA runtime with at least one GPU. Raises StepError saying what is missing."""
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise StepError(
            f"running the engine needs CUDA's Python bindings: {error}",
            f"install them with: pip install 'trtrecipe[{EXTRAS[module]}]'",
        ) from error
    if not _checked(runtime, "cudaGetDeviceCount"):
        raise StepError("this machine has no NVIDIA GPU", "the engine can be run on a machine that has one")
    return runtime


def _checked(runtime: Any, function: str, *arguments: Any) -> Any:
    """Call a CUDA runtime function; its result. Raises StepError with CUDA's words for the error it returns."""
    try:
        status, *results = getattr(runtime, function)(*arguments)
    except RuntimeError as error:  # bindings of CUDA 11 without a driver (seen of 11.8.7)
        raise StepError(f"{function} failed: {error}", "check the NVIDIA driver with nvidia-smi") from error
    if status != runtime.cudaError_t.cudaSuccess:
        _, words = runtime.cudaGetErrorString(status)
        said = words.decode() if isinstance(words, bytes) else status.name
        raise StepError(f"{function} failed: {said}", "check the NVIDIA driver with nvidia-smi")
    return results[0] if results else None
