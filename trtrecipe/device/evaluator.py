"""What a device runs to evaluate an engine: JetPack's own `tensorrt` and CUDA's runtime, one process for all samples.

Standard library, Python 3.6, nothing of trtrecipe: the file is an input of the job that runs it, `python3 evaluator.py
request.json`. Its one line of answer is as the agent's: {"event": "result", ...}, or {"event": "error", "reason",
"message"} and exit status 1. Names of the module: github.com/NVIDIA/TensorRT python/src at release/8.0 to 11.1;
functions of libcudart: CUDA's own cuda_runtime_api.h, the same in 10.2 to 13.
"""

import array
import ctypes
import glob
import json
import re
import sys
from typing import Any, Dict, Iterator, List, Optional, Tuple

Json = Dict[str, Any]

SIZES = {"bool": 1, "int8": 1, "uint8": 1, "float16": 2, "int32": 4, "float32": 4, "int64": 8, "float64": 8}
"""Bytes of a value, by NumPy's name of the type."""
TYPES = {
    "BOOL": "bool", "INT8": "int8", "UINT8": "uint8", "HALF": "float16", "INT32": "int32", "FLOAT": "float32",
    "INT64": "int64",
}  # fmt: skip
"""Members of TensorRT's DataType → NumPy's name."""
NARROWER = {("int64", "int32"): "qi", ("float64", "float32"): "df"}
"""What a model takes and its engine takes instead → the codes of both in `array`."""
TO_DEVICE, TO_HOST = 1, 2
OUT_OF_MEMORY = 2
"""cudaMemcpyKind and cudaError of CUDA's driver_types.h."""
MEMORY = re.compile("OutOfMemory|out of memory|cudaErrorMemoryAllocation|Requested amount of GPU memory|bad_alloc")


class Failure(Exception):
    """Why there are no outputs: a word that programs read, and a sentence for people."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason, self.message = reason, message


def evaluate(request: Json) -> Json:
    """Run an engine on batches of samples.

    "engine", "inputs": files; the second holds the values of all batches, in each those of the "tensors" [{"name",
    "dtype", "shape"}] in their order, little-endian; "batches": how many; "outputs": file to be written in the same
    way, as "report", a JSON file, says: {"tensors": [{"name", "dtype"}], "shapes": [[shape of each] of each batch],
    "module": its version, "cudart": the library that was loaded}; "dla_core": or null.

    → "module", "cudart". Errors "module" (it cannot be imported, or CUDA's runtime not be loaded), "engine", "memory",
    "cuda", "short" (of values).
    """
    try:
        import tensorrt as trt  # type: ignore[import-not-found,unused-ignore]
    except Exception as error:  # a module whose libraries are missing or of another version may raise anything
        raise Failure("module", "{}: {}".format(type(error).__name__, error)) from error
    cuda = Cuda()
    engine = Engine(trt, cuda, request["engine"], request.get("dla_core"))
    shapes = []
    with open(request["inputs"], "rb") as source, open(request["outputs"], "wb") as out:
        for _ in range(request["batches"]):
            given = {}
            for tensor in request["tensors"]:
                data = source.read(bytes_of(tensor["dtype"], tensor["shape"]))
                if len(data) < bytes_of(tensor["dtype"], tensor["shape"]):
                    raise Failure("short", "the file of inputs ends within {}".format(tensor["name"]))
                given[tensor["name"]] = (tensor["dtype"], tensor["shape"], data)
            results = engine.run(given)
            shapes.append([shape for shape, _ in results])
            for _, values in results:
                out.write(values)
    engine.close()
    tensors = [{"name": name, "dtype": engine.dtypes[name]} for name in engine.outputs]
    by = {"module": str(trt.__version__), "cudart": cuda.path}
    with open(request["report"], "w") as report:
        json.dump(dict(by, tensors=tensors, shapes=shapes), report)
    return by


def bytes_of(dtype: str, shape: List[int]) -> int:
    size = SIZES[dtype]
    for axis in shape:
        size *= axis
    return size


class Cuda:
    """CUDA's runtime library, each of whose answers is looked at."""

    def __init__(self) -> None:
        # The one that tensorrt has brought, those that the loader knows, those of a toolkit; the newest first.
        with open("/proc/self/maps") as maps:
            loaded = re.findall(r"\s(/\S*/libcudart\.so[.\d]*)$", maps.read(), re.MULTILINE)
        names = ["libcudart.so"] + ["libcudart.so." + version for version in ("13", "12", "11.0", "10.2")]
        found = glob.glob("/usr/local/cuda*/lib64/libcudart.so*")
        found += glob.glob("/usr/local/cuda*/targets/*/lib/libcudart.so*")
        problems = []
        for path in loaded[:1] + names + sorted(found, reverse=True):
            try:
                self.library, self.path = ctypes.CDLL(path), path
                self.library.cudaGetErrorString.restype = ctypes.c_char_p
                return
            except (OSError, AttributeError) as error:
                problems.append(str(error))
        raise Failure("module", "CUDA's runtime library cannot be loaded: {}".format(problems[0]))

    def call(self, name: str, *arguments: Any) -> None:
        status = getattr(self.library, name)(*arguments)
        if status:
            words = self.library.cudaGetErrorString(status) or b"error %d" % status
            reason = "memory" if status == OUT_OF_MEMORY else "cuda"
            raise Failure(reason, "{} failed: {}".format(name, words.decode("utf-8", "replace")))


class Engine:
    """A finished engine in one execution context, by tensors' names (from TensorRT 8.5 on) or by bindings."""

    def __init__(self, trt: Any, cuda: Cuda, path: str, dla_core: Optional[int]) -> None:
        self.cuda, self.said = cuda, []  # type: Cuda, List[str]
        self.log, self.buffers = logger(trt, self.said), {}  # type: Any, Dict[str, Tuple[int, int]]
        if hasattr(trt, "init_libnvinfer_plugins"):
            trt.init_libnvinfer_plugins(self.log, "")
        self.runtime = trt.Runtime(self.log)
        if dla_core is not None:
            self.runtime.DLA_core = dla_core
        with open(path, "rb") as source:
            self.engine = engine = self.runtime.deserialize_cuda_engine(source.read())
        if engine is None:
            raise Failure("engine", "TensorRT {} cannot load it: {}".format(trt.__version__, self.words()))
        self.context = engine.create_execution_context()
        if self.context is None:
            reason = "memory" if MEMORY.search(self.words()) else "engine"
            raise Failure(reason, "TensorRT {} cannot prepare it: {}".format(trt.__version__, self.words()))
        self.named = hasattr(engine, "num_io_tensors")
        tensors = list(self.tensors(trt))
        for name, _, where, kind in tensors:
            if where != trt.TensorLocation.DEVICE:
                raise Failure("engine", "tensor {} decides shapes and is not on the GPU".format(name))
            if kind.name not in TYPES:
                raise Failure("engine", "tensor {} is {}, which cannot be exchanged".format(name, kind.name))
        self.names = [name for name, _, _, _ in tensors]
        self.inputs = [name for name, is_input, _, _ in tensors if is_input]
        self.outputs = [name for name in self.names if name not in self.inputs]
        self.dtypes = {name: TYPES[kind.name] for name, _, _, kind in tensors}
        self.stream = ctypes.c_void_p()
        self.cuda.call("cudaStreamCreate", ctypes.byref(self.stream))

    def tensors(self, trt: Any) -> Iterator[Tuple[str, bool, Any, Any]]:
        """Name, whether it is an input, where it lies and its type of each input and output."""
        engine = self.engine
        for index in range(engine.num_io_tensors if self.named else engine.num_bindings):
            if self.named:
                name = engine.get_tensor_name(index)
                is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
                yield name, is_input, engine.get_tensor_location(name), engine.get_tensor_dtype(name)
            else:
                name, is_input = engine.get_binding_name(index), engine.binding_is_input(index)
                yield name, is_input, engine.get_location(index), engine.get_binding_dtype(index)

    def run(self, given: Dict[str, Tuple[str, List[int], bytes]]) -> List[Tuple[List[int], bytes]]:
        """Input → its dtype, shape and values; shape and values of each output."""
        if sorted(self.inputs) != sorted(given):
            raise Failure("engine", "its inputs are {}, the model's {}".format(self.inputs, sorted(given)))
        for name in self.inputs:
            dtype, shape, values = given[name]
            self.shape_input(name, shape)
            values = self.fit(name, dtype, values)
            address, size = ctypes.c_void_p(self.room(name, len(values))), ctypes.c_size_t(len(values))
            self.cuda.call("cudaMemcpy", address, values, size, TO_DEVICE)
        shapes = {name: self.shape_of(name) for name in self.outputs}
        for name, shape in shapes.items():
            if min([0, *shape]) < 0:
                raise Failure("engine", "the shape of output {} depends on the values of the input".format(name))
            self.room(name, bytes_of(self.dtypes[name], shape))
        if self.named:
            done = all(self.context.set_tensor_address(name, self.buffers[name][0]) for name in self.names)
            done = done and self.context.execute_async_v3(self.stream.value)
            self.cuda.call("cudaStreamSynchronize", self.stream)
        else:
            done = self.context.execute_v2([self.buffers[name][0] for name in self.names])
        if not done:
            raise Failure("engine", "it does not run: {}".format(self.words()))
        return [(shapes[name], self.fetch(name, shapes[name])) for name in self.outputs]

    def shape_input(self, name: str, shape: List[int]) -> None:
        """Say the shape of an input; one that the engine has no choice about must be that."""
        index = self.names.index(name)
        own = self.engine.get_tensor_shape(name) if self.named else self.engine.get_binding_shape(index)
        if -1 not in tuple(own):
            fits = list(own) == shape
        elif self.named:
            fits = self.context.set_input_shape(name, tuple(shape))
        else:
            fits = self.context.set_binding_shape(index, tuple(shape))
        if not fits:
            raise Failure("engine", "it refuses shape {} for input {} of {}: {}".format(
                shape, name, list(own), self.words()))  # fmt: skip

    def shape_of(self, name: str) -> List[int]:
        if self.named:
            return list(self.context.get_tensor_shape(name))
        return list(self.context.get_binding_shape(self.names.index(name)))

    def fit(self, name: str, dtype: str, values: bytes) -> bytes:
        """The values in the engine's own type, where that is the narrower form of the model's."""
        own = self.dtypes[name]
        codes = NARROWER.get((dtype, own))
        if own != dtype and codes is None:
            raise Failure("engine", "input {} is {} and the model's {}".format(name, own, dtype))
        if codes is None:
            return values
        wide = array.array(codes[0])
        wide.frombytes(values)
        try:
            return array.array(codes[1], wide).tobytes()
        except OverflowError as error:
            raise Failure("engine", "input {} has values that {} does not hold".format(name, own)) from error

    def room(self, name: str, size: int) -> int:
        """The address of as much of the device's memory as a tensor has ever needed."""
        address, held = self.buffers.get(name, (0, 0))
        if held < max(size, 1):
            if held:
                del self.buffers[name]
                self.cuda.call("cudaFree", ctypes.c_void_p(address))
            made = ctypes.c_void_p()
            self.cuda.call("cudaMalloc", ctypes.byref(made), ctypes.c_size_t(max(size, 1)))
            self.buffers[name] = made.value or 0, max(size, 1)
        return self.buffers[name][0]

    def fetch(self, name: str, shape: List[int]) -> bytes:
        size = bytes_of(self.dtypes[name], shape)
        values = ctypes.create_string_buffer(max(size, 1))
        self.cuda.call("cudaMemcpy", values, ctypes.c_void_p(self.buffers[name][0]), ctypes.c_size_t(size), TO_HOST)
        return values.raw[:size]

    def close(self) -> None:
        """Give the device's memory back."""
        for address, _ in self.buffers.values():
            self.cuda.call("cudaFree", ctypes.c_void_p(address))
        self.buffers.clear()
        self.cuda.call("cudaStreamDestroy", self.stream)

    def words(self) -> str:
        return "; ".join(self.said)[-800:] or "it gave no reason"


def logger(trt: Any, said: List[str]) -> Any:
    """A logger that adds errors to `said`."""

    class Logger(trt.ILogger):  # type: ignore[misc]  # the module has no types
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity.name in ("INTERNAL_ERROR", "ERROR"):
                said.append(" ".join(message.split()))

    return Logger()


def main(path: str) -> int:
    """Answer the request in the file `path`."""
    try:
        with open(path) as source:
            answer = dict(evaluate(json.load(source)), event="result")
    except Failure as failure:
        answer = {"event": "error", "reason": failure.reason, "message": failure.message}
    except EnvironmentError as error:
        answer = {"event": "error", "reason": "disk", "message": str(error)}
    except (AttributeError, TypeError) as error:  # a module whose names are none of those that are known
        words = "{}: {}".format(type(error).__name__, error)
        answer = {"event": "error", "reason": "module", "message": "it is not as any that is known: " + words}
    except MemoryError:
        answer = {"event": "error", "reason": "memory", "message": "the device ran out of memory"}
    sys.stdout.write(json.dumps(answer, sort_keys=True) + "\n")
    sys.stdout.flush()
    return 0 if answer["event"] == "result" else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
