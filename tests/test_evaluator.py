"""What a device runs to evaluate an engine, as a job runs it, under the Pythons that JetPacks ship."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support import jetpack_python
from support.pythons import interpreter

from trtrecipe.device import evaluator

PROGRAM = Path(__file__).parent.parent / "trtrecipe" / "device" / "evaluator.py"
RELEASES = ("8.2", "8.4", "8.5", "8.6", "10.3", "10.16", "11.0")
BATCH, BATCHES = 3, 4
SHAPE = [BATCH, 4]


def network() -> onnx.ModelProto:
    """x [batch, 4] float, i [batch] int64 → y = x @ w + i, n = i + 1."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["f", "axis"], ["c"]),
        helper.make_node("Add", ["h", "c"], ["y"]),
        helper.make_node("Add", ["i", "one"], ["n"]),
    ]
    constants = {"w": np.eye(4, 2, dtype=np.float32), "axis": np.asarray([1]), "one": np.asarray([1])}
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [info("x", TensorProto.FLOAT, ["batch", 4]), info("i", TensorProto.INT64, ["batch"])],
        [info("y", TensorProto.FLOAT, ["batch", 2]), info("n", TensorProto.INT64, ["batch"])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def engine_of(model: onnx.ModelProto) -> bytes:
    """As the trtexec surrogate writes it."""
    told = {"--minShapes": {"x": [1, 4], "i": [1]}, "--maxShapes": {"x": [8, 4], "i": [8]}}
    return b"SURROGATE ENGINE\n" + json.dumps(told).encode() + b"\nhex\n" + model.SerializeToString()


class Job:
    """The folder of one job."""

    def __init__(self, folder: Path, engine: bytes) -> None:
        self.folder = folder
        folder.mkdir()
        random = np.random.default_rng(0)
        self.x = random.normal(size=(BATCHES, *SHAPE)).astype("<f4")
        self.i = random.integers(-5, 5, size=(BATCHES, BATCH)).astype("<i8")
        (folder / "model.engine").write_bytes(engine)
        pairs = zip(self.x, self.i, strict=True)
        (folder / "inputs.bin").write_bytes(b"".join(x.tobytes() + i.tobytes() for x, i in pairs))
        shutil.copy(PROGRAM, folder / "evaluator.py")
        self.request: dict[str, Any] = {
            "engine": "model.engine",
            "inputs": "inputs.bin",
            "outputs": "outputs.bin",
            "report": "report.json",
            "dla_core": None,
            "batches": BATCHES,
            "tensors": [
                {"name": "x", "dtype": "float32", "shape": SHAPE},
                {"name": "i", "dtype": "int64", "shape": [BATCH]},
            ],
        }

    def run(self, variables: dict[str, str], python: str = sys.executable) -> tuple[int, dict[str, Any]]:
        (self.folder / "request.json").write_text(json.dumps(self.request))
        done = subprocess.run(
            [python, "evaluator.py", "request.json"],
            cwd=self.folder,
            env={"PATH": os.environ["PATH"], **variables},
            capture_output=True,
            text=True,
            timeout=60,
        )
        lines = done.stdout.splitlines()
        assert len(lines) == 1 or done.returncode < 0, done.stdout + done.stderr
        return done.returncode, json.loads(lines[0]) if lines else {}

    def outputs(self) -> list[dict[str, np.ndarray[Any, Any]]]:
        """Of each batch."""
        report = json.loads((self.folder / "report.json").read_text())
        raw, found = (self.folder / "outputs.bin").read_bytes(), []
        for shapes in report["shapes"]:
            batch = {}
            for tensor, shape in zip(report["tensors"], shapes, strict=True):
                size = int(np.prod(shape)) * np.dtype(tensor["dtype"]).itemsize
                batch[tensor["name"]] = np.frombuffer(raw[:size], tensor["dtype"]).reshape(shape)
                raw = raw[size:]
            found.append(batch)
        assert raw == b""
        return found


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path / "job", engine_of(network()))


@pytest.mark.parametrize("release", RELEASES)
def test_every_batch_is_what_the_network_computes(job: Job, tmp_path: Path, release: str) -> None:
    status, answer = job.run(jetpack_python.install(tmp_path / "python", release))
    assert (status, answer["event"], answer["module"]) == (0, "result", f"{release}.0.1")
    assert answer["cudart"] == "libcudart.so"
    found = job.outputs()
    assert len(found) == BATCHES
    narrow = int(release.partition(".")[0]) < 10  # which has no INT64
    for batch, x, i in zip(found, job.x, job.i, strict=True):
        np.testing.assert_allclose(batch["y"], x[:, :2] + i[:, None], rtol=1e-6)
        np.testing.assert_array_equal(batch["n"], i + 1)
        assert batch["n"].dtype == ("int32" if narrow else "int64")


@pytest.mark.parametrize("release", ["8.2", "10.3"])
@pytest.mark.parametrize(
    ("variables", "reason", "said"),
    [
        ({"TENSORRT_FAULTS": '{"import": "libnvinfer.so.8: cannot open"}'}, "module", "ImportError: libnvinfer.so.8"),
        ({"TENSORRT_FAULTS": '{"refuse": "wrong version tag"}'}, "engine", "cannot load it: wrong version tag"),
        ({"TENSORRT_FAULTS": '{"no_context": "no scratch"}'}, "engine", "cannot prepare it: no scratch"),
        ({"TENSORRT_FAULTS": '{"no_context": "OutOfMemory (x)"}'}, "memory", "cannot prepare it: OutOfMemory"),
        ({"TENSORRT_FAULTS": '{"run_fails": "cask error"}'}, "engine", "it does not run: cask error"),
        ({"CUDART_LIMIT": "16"}, "memory", "cudaMalloc failed: out of memory"),
        ({"CUDART_FAIL": "cudaMalloc"}, "cuda", "cudaMalloc failed: an illegal memory access"),
        ({"CUDART_FAIL": "cudaMemcpy"}, "cuda", "cudaMemcpy failed"),
        ({"CUDART_FAIL": "cudaFree"}, "cuda", "cudaFree failed"),
        ({"CUDART_FAIL": "cudaStreamCreate"}, "cuda", "cudaStreamCreate failed"),
    ],
)
def test_what_fails_is_said(
    job: Job, tmp_path: Path, release: str, variables: dict[str, str], reason: str, said: str
) -> None:
    status, answer = job.run(jetpack_python.install(tmp_path / "python", release) | variables)
    assert (status, answer["event"], answer["reason"]) == (1, "error", reason)
    assert said in answer["message"]
    assert not (job.folder / "report.json").exists()


def test_without_cudas_runtime_the_module_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine has."""
    asked = []

    def missing(name: str) -> None:
        asked.append(name)
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(evaluator.ctypes, "CDLL", missing)
    with pytest.raises(evaluator.Failure) as failure:
        evaluator.Cuda()
    assert failure.value.reason == "module"
    assert "libcudart.so: cannot open" in failure.value.message
    assert {"libcudart.so", "libcudart.so.10.2", "libcudart.so.11.0", "libcudart.so.12"} <= set(asked)


def test_a_stream_that_fails_to_run_is_said(job: Job, tmp_path: Path) -> None:
    """Errors of a kernel show when the host waits for it."""
    variables = jetpack_python.install(tmp_path / "python", "8.5") | {"CUDART_FAIL": "cudaStreamSynchronize"}
    assert job.run(variables)[1]["message"].startswith("cudaStreamSynchronize failed")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tensors": [{"name": "x", "dtype": "float32", "shape": [9, 4]}]}, "its inputs are"),
        ({"batches": BATCHES + 1}, "the file of inputs ends within x"),
    ],
)
def test_a_request_that_does_not_fit_the_engine(job: Job, tmp_path: Path, change: dict[str, Any], said: str) -> None:
    job.request |= change
    status, answer = job.run(jetpack_python.install(tmp_path / "python", "8.5"))
    assert status == 1
    assert said in answer["message"]


@pytest.mark.parametrize("release", ["8.2", "8.5"])
def test_a_batch_outside_the_profile_is_refused(job: Job, tmp_path: Path, release: str) -> None:
    job.request["tensors"] = [
        {"name": "x", "dtype": "float32", "shape": [12, 4]},
        {"name": "i", "dtype": "int64", "shape": [12]},
    ]
    (job.folder / "inputs.bin").write_bytes(bytes(12 * 24 * BATCHES))
    status, answer = job.run(jetpack_python.install(tmp_path / "python", release))
    assert (status, answer["reason"]) == (1, "engine")
    assert "it refuses shape [12, 4] for input x of [-1, 4]: supplied dimensions are out of range" in answer["message"]


def test_an_integer_that_the_engine_has_no_room_for_is_refused(job: Job, tmp_path: Path) -> None:
    job.i[0, 0] = 2**40
    pairs = zip(job.x, job.i, strict=True)
    (job.folder / "inputs.bin").write_bytes(b"".join(x.tobytes() + i.tobytes() for x, i in pairs))
    _, answer = job.run(jetpack_python.install(tmp_path / "python", "8.5"))
    assert answer["message"] == "input i has values that int32 does not hold"


def test_a_module_with_other_names_is_as_good_as_none(job: Job, tmp_path: Path) -> None:
    variables = jetpack_python.install(tmp_path / "python", "8.5")
    (tmp_path / "python" / "tensorrt.py").write_text("__version__ = '99.0'")
    status, answer = job.run(variables)
    assert (status, answer["reason"]) == (1, "module")
    assert "AttributeError: module 'tensorrt' has no attribute 'ILogger'" in answer["message"]


def test_a_process_that_dies_leaves_no_answer(job: Job, tmp_path: Path) -> None:
    variables = jetpack_python.install(tmp_path / "python", "8.5")
    status, answer = job.run(variables | {"TENSORRT_FAULTS": json.dumps({"die": signal.SIGSEGV})})
    assert (status, answer) == (-signal.SIGSEGV, {})


def test_the_program_is_python_3_6_and_imports_the_standard_library_alone() -> None:
    command = [sys.executable, "-c", "from vermin import main; main()", "-t=3.6-", "--violations", "--no-tips"]
    done = subprocess.run([*command, str(PROGRAM)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    tops = [node for node in ast.parse(PROGRAM.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = [node.module or "." if isinstance(node, ast.ImportFrom) else node.names[0].name for node in tops]
    assert set(names) <= sys.stdlib_module_names


PLAIN = """
import ctypes, enum
DataType = enum.Enum("DataType", "FLOAT HALF INT8 INT32 BOOL")
TensorLocation = enum.Enum("TensorLocation", "DEVICE HOST")
__version__ = "8.2.1.8"
class ILogger(object): pass
def init_libnvinfer_plugins(log, namespace): return True
class Runtime(object):
    def __init__(self, log): pass
    def deserialize_cuda_engine(self, data): return Engine()
class Engine(object):
    num_bindings = 2
    def get_binding_name(self, index): return "xy"[index]
    def binding_is_input(self, index): return index == 0
    def get_location(self, index): return TensorLocation.DEVICE
    def get_binding_dtype(self, index): return DataType.FLOAT
    def get_binding_shape(self, index): return (-1, 4)
    def create_execution_context(self): return Context()
class Context(object):
    def set_binding_shape(self, index, shape): self.shape = shape; return True
    def get_binding_shape(self, index): return self.shape
    def execute_v2(self, bindings):
        count = self.shape[0] * self.shape[1]
        x, y = [(ctypes.c_float * count).from_address(address) for address in bindings]
        for index in range(count): y[index] = 2 * x[index]
        return True
"""
"""A `tensorrt` for Pythons that have no NumPy here: y = 2 x."""


@pytest.mark.parametrize("version", ["3.6", "3.8", "3.10", "3.12"])
def test_under_a_jetpacks_python(job: Job, tmp_path: Path, version: str) -> None:
    python = interpreter(version)
    variables = jetpack_python.install(tmp_path / "python", "8.2")
    job.request["tensors"] = job.request["tensors"][:1]
    (job.folder / "inputs.bin").write_bytes(job.x.tobytes())
    (tmp_path / "python" / "tensorrt.py").unlink()
    assert job.run(variables, python)[1]["reason"] == "module"
    (tmp_path / "python" / "tensorrt.py").write_text(PLAIN)
    status, answer = job.run(variables, python)
    assert (status, answer["module"]) == (0, "8.2.1.8"), answer
    np.testing.assert_array_equal(np.stack([batch["y"] for batch in job.outputs()]), job.x * 2)


@pytest.mark.gpu
def test_the_real_thing(tmp_path: Path) -> None:
    """TensorRT for RTX under TensorRT's name, and CUDA's own runtime library."""
    found = importlib.util.find_spec("tensorrt_rtx")
    if found is None or found.origin is None:
        pytest.skip("needs tensorrt_rtx")
    from trtrecipe.engines import tensorrt_build, tensorrt_run

    if reason := tensorrt_run.unavailable("tensorrt_rtx"):
        pytest.skip(reason)
    dims = {"batch": {"min": 1, "opt": BATCH, "max": 8}}
    tensorrt_build.build_for_rtx(network(), tmp_path / "made.engine", dims, None)
    job = Job(tmp_path / "job", (tmp_path / "made.engine").read_bytes())
    (tmp_path / "python").mkdir()
    (tmp_path / "python" / "tensorrt.py").write_text(
        "from tensorrt_rtx import *\nfrom tensorrt_rtx import __version__\n"
    )
    libraries = [str(path.parent) for entry in sys.path for path in Path(entry).glob("nvidia/*/lib/libcudart.so*")]
    folder = tmp_path / "library"
    folder.mkdir()
    for path in libraries[:1]:
        for library in Path(path).glob("libcudart.so*"):
            (folder / "libcudart.so").symlink_to(library)
    inherited = os.environ.get("LD_LIBRARY_PATH", "")
    packages = Path(found.origin).parents[1]
    variables = {"PYTHONPATH": f"{tmp_path / 'python'}:{packages}", "LD_LIBRARY_PATH": f"{folder}:{inherited}"}
    status, answer = job.run(variables)
    assert (status, answer["event"]) == (0, "result"), answer
    for batch, x, i in zip(job.outputs(), job.x, job.i, strict=True):
        np.testing.assert_allclose(batch["y"], x[:, :2] + i[:, None], rtol=1e-2, atol=1e-2)
        np.testing.assert_array_equal(batch["n"], i + 1)
    (job.folder / "model.engine").write_bytes(b"no engine")
    status, answer = job.run(variables)
    assert (status, answer["reason"]) == (1, "engine")
    assert answer["message"].split(": ", 1)[1] not in ("", "it gave no reason")
