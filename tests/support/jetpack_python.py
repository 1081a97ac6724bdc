"""What JetPack brings for its Python, made up: a `tensorrt` module and CUDA's runtime library. For tests alone.

`install(folder, "8.5")` writes both and returns the variables with which a device's Python finds them. The module has
exactly the names of its release, of the classes that running an engine takes (`tensorrt_names.json`), and runs the
engines of `trtexec_surrogate` by ONNX Runtime. The library is a few lines of C around malloc and memcpy. Variables make
them fail:

    TENSORRT_FAULTS: JSON: import: text of an ImportError   refuse, no_context, run_fails: what TensorRT logs
                     nan: true      die: a signal     wait: seconds that a run takes    shape: first axis that is told
                     calls: file to which each process adds when it came and went, as JSON lines
    CUDART_LIMIT: bytes that one cudaMalloc gives at most     CUDART_FAIL: the function that fails
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from support.tensorrt_surrogate import NAMES, members

CLASSES = ("Runtime", "ICudaEngine", "IExecutionContext", "ILogger", "DataType", "TensorIOMode", "TensorLocation")

_CUDART = r"""
#include <stdlib.h>
#include <string.h>
static long live;
static int fails(const char *name) {
    const char *told = getenv("CUDART_FAIL");
    return told && !strcmp(told, name) ? 700 : 0;
}
int cudaMalloc(void **address, size_t size) {
    const char *limit = getenv("CUDART_LIMIT");
    if (limit && size > strtoul(limit, 0, 10)) return 2;
    *address = malloc(size);
    live++;
    return fails("cudaMalloc");
}
int cudaFree(void *address) { free(address); live--; return fails("cudaFree"); }
int cudaMemcpy(void *to, const void *from, size_t size, int kind) {
    if (kind != 1 && kind != 2) return 21;
    memcpy(to, from, size);
    return fails("cudaMemcpy");
}
int cudaStreamCreate(void **stream) { *stream = &live; return fails("cudaStreamCreate"); }
int cudaStreamSynchronize(void *stream) { return stream == &live ? fails("cudaStreamSynchronize") : 400; }
int cudaStreamDestroy(void *stream) { return live ? 719 : fails("cudaStreamDestroy"); }
const char *cudaGetErrorString(int status) {
    return status == 2 ? "out of memory" : status == 700 ? "an illegal memory access was encountered" : "made up";
}
"""

_MODULE = '''
"""A stand-in for tensorrt of {release}: runs engines of the trtexec surrogate, and no others."""
import atexit
import ctypes
import enum
import json
import os
import time

import numpy as np
import onnxruntime

NAMES = json.loads({names!r})
OLD = {old}
FAULTS = json.loads(os.environ.get("TENSORRT_FAULTS", "{{}}"))
__version__ = {release!r} + ".0.1"


def note(event):
    if "calls" in FAULTS:
        with open(FAULTS["calls"], "a") as calls:
            calls.write(json.dumps({{"event": event, "time": time.time()}}) + "\\n")


note("start")
atexit.register(note, "end")
if "import" in FAULTS:
    raise ImportError(FAULTS["import"])
KINDS = {{"float": "FLOAT", "float16": "HALF", "int8": "INT8", "int32": "INT32", "bool": "BOOL", "uint8": "UINT8"}}
KINDS["int64"] = "INT32" if OLD else "INT64"
NUMPY = {{"FLOAT": "float32", "HALF": "float16", "BOOL": "bool"}}


def strict(made):
    """The class without what its release lacks."""
    for name in [name for name in vars(made) if not name.startswith("_") and name not in NAMES[made.__name__]]:
        delattr(made, name)
    return made


for name in ("DataType", "TensorIOMode", "TensorLocation"):
    if name in NAMES:
        globals()[name] = enum.Enum(name, sorted(NAMES[name]))


@strict
class ILogger:
    def __init__(self):
        pass

    def log(self, severity, message):
        raise NotImplementedError  # as the real one: whoever derives from it has to say what is done


ILogger.Severity = enum.Enum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE")


def say(logger, text):
    logger.log(ILogger.Severity.WARNING, "nothing of note")
    logger.log(ILogger.Severity.ERROR, text)


def init_libnvinfer_plugins(logger, namespace):
    assert isinstance(logger, ILogger) and namespace == ""
    return True


@strict
class Runtime:
    def __init__(self, logger):
        assert isinstance(logger, ILogger)
        self._logger, self.DLA_core = logger, -1

    def deserialize_cuda_engine(self, data):
        mark = b"SURROGATE ENGINE\\n"
        if "refuse" in FAULTS or mark not in data:
            say(self._logger, FAULTS.get("refuse", "magicTagRead == kMAGIC_TAG failed"))
            return None
        told, _, network = data.partition(mark)[2].split(b"\\n", 2)
        return ICudaEngine(self._logger, json.loads(told), network)


@strict
class ICudaEngine:
    def __init__(self, logger, told, network):
        self._logger, self._told = logger, told
        self._session = onnxruntime.InferenceSession(network)
        self._inputs = [value.name for value in self._session.get_inputs()]
        values = [*self._session.get_inputs(), *self._session.get_outputs()]
        self._values = {{value.name: value for value in values}}
        self._names = list(self._values)

    def create_execution_context(self):
        if "no_context" in FAULTS:
            say(self._logger, FAULTS["no_context"])
            return None
        return IExecutionContext(self)

    @property
    def num_io_tensors(self):
        return len(self._names)

    num_bindings = num_io_tensors

    def get_tensor_name(self, index):
        return self._names[index]

    get_binding_name = get_tensor_name

    def get_tensor_mode(self, name):
        return TensorIOMode.INPUT if name in self._inputs else TensorIOMode.OUTPUT

    def binding_is_input(self, index):
        return self._names[index] in self._inputs

    def get_tensor_location(self, name):
        assert name in self._names
        return TensorLocation.DEVICE

    def get_location(self, index):
        assert index < len(self._names)
        return TensorLocation.DEVICE

    def get_tensor_dtype(self, name):
        return DataType[KINDS[self._values[name].type[7:-1]]]

    def get_binding_dtype(self, index):
        return DataType[KINDS[self._values[self._names[index]].type[7:-1]]]

    def get_tensor_shape(self, name):
        return tuple(-1 if isinstance(axis, str) else axis for axis in self._values[name].shape)

    def get_binding_shape(self, index):
        return tuple(-1 if isinstance(axis, str) else axis for axis in self._values[self._names[index]].shape)


@strict
class IExecutionContext:
    def __init__(self, engine):
        self._engine, self._shapes, self._addresses = engine, {{}}, {{}}

    def _dtype(self, name):
        kind = KINDS[self._engine._values[name].type[7:-1]]
        return np.dtype(NUMPY.get(kind, kind.lower()))

    def _set(self, name, shape):
        told = self._engine._told
        low, high = (told.get(flag, {{}}).get(name) for flag in ("--minShapes", "--maxShapes"))
        fits = low is None or all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True))
        if fits:
            self._shapes[name] = tuple(shape)
        else:
            say(self._engine._logger, "supplied dimensions are out of range of the optimization profile")
        return fits

    def _feeds(self, read):
        return {{name: read(name, self._shape(name)) for name in self._engine._inputs}}

    def _shape(self, name):
        if name in self._engine._inputs:
            fixed = tuple(self._engine._values[name].shape)
            return self._shapes.get(name, None if any(isinstance(axis, str) for axis in fixed) else fixed)
        # What TensorRT infers, a run shows.
        kinds = {{n: self._engine._values[n].type[7:-1] for n in self._engine._inputs}}
        zeros = {{
            n: np.zeros(self._shape(n), {{"float": "float32", "double": "float64"}}.get(kind, kind))
            for n, kind in kinds.items()
        }}
        shape = self._engine._session.run([name], zeros)[0].shape
        return (FAULTS["shape"], *shape[1:]) if "shape" in FAULTS else shape

    def set_input_shape(self, name, shape):
        return self._set(name, shape)

    def set_binding_shape(self, index, shape):
        return self._set(self._engine._names[index], shape)

    def get_tensor_shape(self, name):
        return self._shape(name)

    def get_binding_shape(self, index):
        return self._shape(self._engine._names[index])

    def set_tensor_address(self, name, address):
        assert isinstance(address, int) and address
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream_handle):
        assert isinstance(stream_handle, int)
        return self._execute()

    def execute_v2(self, bindings):
        assert len(bindings) == len(self._engine._names)
        self._addresses = dict(zip(self._engine._names, bindings, strict=True))
        return self._execute()

    def _execute(self):
        if "run_fails" in FAULTS:
            say(self._engine._logger, FAULTS["run_fails"])
            return False
        if "die" in FAULTS:
            os.kill(os.getpid(), FAULTS["die"])
        time.sleep(FAULTS.get("wait", 0))
        feeds = {{}}
        for name in self._engine._inputs:
            shape, dtype = self._shape(name), self._dtype(name)
            raw = ctypes.string_at(self._addresses[name], int(np.prod(shape)) * dtype.itemsize)
            kind = self._engine._values[name].type[7:-1]
            feeds[name] = np.frombuffer(raw, dtype).reshape(shape)
            feeds[name] = feeds[name].astype("int64") if kind == "int64" else feeds[name]
        outputs = [name for name in self._engine._names if name not in self._engine._inputs]
        for name, value in zip(outputs, self._engine._session.run(outputs, feeds), strict=True):
            value = np.full_like(value, np.nan) if FAULTS.get("nan") else value
            raw = np.ascontiguousarray(value, self._dtype(name)).tobytes()
            shape = self._shape(name)
            raw = raw[: int(np.prod(shape)) * self._dtype(name).itemsize]
            ctypes.memmove(self._addresses[name], raw, len(raw))
        return True
'''


def install(folder: Path, release: str) -> dict[str, str]:
    """Write the module of a release and the library into `folder`; the variables that lead there."""
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler")
    folder.mkdir(parents=True, exist_ok=True)
    known = {name: sorted(members(release, name)) for name in CLASSES if name in NAMES["classes"]}
    known = {name: found for name, found in known.items() if found}
    old = int(release.partition(".")[0]) < 10
    (folder / "tensorrt.py").write_text(_MODULE.format(release=release, names=json.dumps(known), old=old))
    (folder / "cudart.c").write_text(_CUDART)
    command = ["cc", "-shared", "-fPIC", "-O1", "-o", str(folder / "libcudart.so"), str(folder / "cudart.c")]
    subprocess.run(command, check=True)
    return {"PYTHONPATH": str(folder), "LD_LIBRARY_PATH": str(folder)}
