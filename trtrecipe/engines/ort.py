"""ONNX Runtime on the CPU: exact runs for reference and calibration, the host target's engine."""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import onnxruntime as ort
from onnx import ModelProto

from trtrecipe import parted
from trtrecipe.data.preprocess import Array
from trtrecipe.errors import StepError
from trtrecipe.graphs import files

_VALUES_FILE = "session.optimized_model_external_initializers_file_name"
_QUIET = 3  # errors only: warnings go to stderr otherwise, and most are about ONNX Runtime's own optimizations


class OrtEngine:
    """A graph as it stands: nothing is optimized, so what is computed is what the file says.

    `threads` 0 takes one per core, for timing. 1 is for values: how a sum is split over threads can change its
    rounding.
    """

    def __init__(self, model: Path | ModelProto, threads: int = 1) -> None:
        options = _options(ort.GraphOptimizationLevel.ORT_DISABLE_ALL, threads)
        self._session = _session(model, options)
        self._outputs = [output.name for output in self._session.get_outputs()]
        self._threads = threads

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Output name → array. Raises StepError with ONNX Runtime's own words."""
        try:
            return dict(zip(self._outputs, self._session.run(self._outputs, dict(feeds)), strict=True))
        except Exception as error:  # ONNX Runtime's errors have no common base
            raise StepError(f"ONNX Runtime cannot run the graph: {_last_words(error)}") from error

    def outputs(self) -> list[tuple[str, str, list[int | str | None]]]:
        """Name, ONNX Runtime's word for the type, and shape of every output: a size, a name or None for each axis."""
        return [(output.name, output.type, output.shape) for output in self._session.get_outputs()]

    def conditions(self) -> dict[str, str | int]:
        """Runtime, version, CPU and threads."""
        return {
            "runtime": "onnxruntime",
            "version": ort.__version__,
            "device": cpu_model(),
            "cores": os.cpu_count() or 1,
            "threads": self._threads or "one per core",
        }

    def __enter__(self) -> OrtEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del self._session


def build(model: Path, engine: Path) -> None:
    """Write the graph as ONNX Runtime's extended optimizations leave it. Raises StepError.

    The full level is not used: it lays tensors out for the CPU at hand, and its bytes differ from machine to machine.
    """
    options = _options(ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED, 1)
    if parted.files(model) is not None:
        _build_large(model, engine, options)
        return
    options.optimized_model_filepath = str(engine)
    # Without this, a large graph's weights would go to a second file, named by its path.
    options.add_session_config_entry(_VALUES_FILE, "")
    _session(model, options)


def _build_large(model: Path, engine: Path, options: ort.SessionOptions) -> None:
    """The same where the values do not fit into the graph's file: written as two files, which become `engine`."""
    with tempfile.TemporaryDirectory() as folder:
        graph, values = Path(folder) / "model.onnx", parted.data_name("model.onnx")
        options.optimized_model_filepath = str(graph)
        options.add_session_config_entry(_VALUES_FILE, values)
        options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "4096")
        _session(model, options)
        files.save(files.load_in_folder(graph), engine)


def cpu_model() -> str:
    """The processor's name as the system gives it."""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux: the portable name below is all there is
    return platform.processor() or platform.machine()


def _options(level: ort.GraphOptimizationLevel, threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.use_deterministic_compute = True
    options.log_severity_level = _QUIET
    return options


def _session(model: Path | ModelProto, options: ort.SessionOptions) -> ort.InferenceSession:
    if isinstance(model, Path) and parted.files(model) is None:
        return _loaded(str(model), options)
    model = files.load(model) if isinstance(model, Path) else model
    found = files.beside(model)
    if found is not None:
        # For models in memory since 1.21 (microsoft/onnxruntime pull request 23557).
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(found[1]))
        return _loaded(found[0], options)
    if (whole := files.in_one(model)) is not None:
        return _loaded(whole, options)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        files.save(model, path)
        return _session(path, options)


def _loaded(source: str | bytes, options: ort.SessionOptions) -> ort.InferenceSession:
    try:
        return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors have no common base
        raise StepError(
            f"ONNX Runtime cannot load the graph: {_last_words(error)}",
            "the operator or type may be missing in this version; upgrade onnxruntime or change the model",
        ) from error


def _last_words(error: Exception) -> str:
    return " ".join(str(error).split())[-600:]
