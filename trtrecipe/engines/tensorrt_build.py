"""ONNX → engine by the Python API of TensorRT, or of TensorRT for RTX, which needs no GPU.

The builder runs in a process of its own. TensorRT for RTX numbers parts of the engine in the order of their addresses
in memory (seen in 1.7.1.116 for graphs with an open axis), so its bytes repeat only where memory is laid out alike:
same environment, same arguments, no address randomization. A crash of the library also ends as a message that way.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx

from trtrecipe.engines import tensorrt_child
from trtrecipe.engines.tensorrt_library import library
from trtrecipe.errors import InputError, StepError
from trtrecipe.graphs import files
from trtrecipe.graphs.interface import TensorSpec, interface
from trtrecipe.targets.buildspec import MIB, BuildSpec, Shapes
from trtrecipe.targets.python_api import PRODUCTS, lower

Dims = Mapping[str, Mapping[str, int]]

SMALLEST_WORKSPACE = 32 * MIB
"""Where the retries of a build that ran out of memory end."""

_NO_RANDOM_ADDRESSES = 0x0040000  # ADDR_NO_RANDOMIZE in Linux's sys/personality.h
_ASK = 0xFFFFFFFF
_NOTE = "this system does not allow a fixed memory layout, so the engine's bytes may differ when it is built again"
_MEMORY = re.compile(
    "cudaErrorMemoryAllocation|OutOfMemory|out of memory|std::bad_alloc|cudaErrorOutOfMemory"
    "|Requested amount of GPU memory|Cannot allocate memory"
)
_KILLED = -9
_NAMED = 3


def build(module: str, model: onnx.ModelProto, spec: BuildSpec, file: Path | None = None) -> list[str]:
    """Build `spec` with `module`, "tensorrt" or "tensorrt_rtx", and write its engine. Returns notes.

    `model` is what to build; where it is too large for one message, it is read from `file`, made here. A build that
    runs out of memory is tried again with half the workspace, as long as there is one. Raises StepError with the
    parser's or builder's own words, or with what the installed release cannot do.
    """
    if file is None and files.in_one(model) is None:
        with tempfile.TemporaryDirectory(prefix="trtrecipe-") as folder:
            return build(module, model, spec, files.lay_out(model, Path(folder)))
    trt = library(module)
    product = f"{PRODUCTS[module]} {trt.__version__}"
    try:
        request = lower(spec, module, trt.__version__)
    except InputError as error:
        hint = next((problem.hint for problem in error.problems if problem.hint), None)
        raise StepError("; ".join(problem.message for problem in error.problems), hint) from None
    # The folder is given because the process starts without PYTHONPATH.
    request |= {"folder": str(Path(trt.__file__).parents[1]), "model": None if file is None else str(file.absolute())}
    given = b"" if file is not None else model.SerializeToString(deterministic=True)
    notes: list[str] = []
    for workspace in _workspaces(request["workspace"]):
        request["workspace"] = workspace
        with _fixed_addresses() as fixed:
            status, header, engine, said = _ask(module, json.dumps(request).encode() + b"\n" + given, spec.verbose)
        short = status == _KILLED or _MEMORY.search(f"{header.get('error')} {said}") is not None
        if engine or not short or workspace is None or workspace <= SMALLEST_WORKSPACE:
            break
        notes.append(f"the build ran out of memory with a workspace of {workspace // MIB} MiB and was tried with half")
    if status != 0:
        raise StepError(f"the builder of {product} ended with status {status}: {said or 'no message'}")
    _check(header, product, model, spec, short)
    Path(spec.engine).write_bytes(engine)
    if missing := header["missing"]:
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        notes.append(
            f"TensorRT's network has no layer called {', '.join(missing[:_NAMED])}{more}, so these nodes, which were "
            "joined with others or folded, have no precision of their own"
        )
    # Other builders time what they choose from, so that their bytes differ anyway.
    return [*header["notes"], *notes, *([_NOTE] if module == "tensorrt_rtx" and not fixed else [])]


def build_for_rtx(model: onnx.ModelProto, engine: Path, dims: Dims, workspace: int | None) -> list[str]:
    """Write the engine of `model` for TensorRT for RTX to `engine`; `workspace` in bytes. As `build`.

    The ranges of `dims` (name → min, opt, max) become one optimization profile.
    """
    quantized = any(node.op_type == "QuantizeLinear" for node in model.graph.node)
    spec = BuildSpec(
        onnx="model.onnx",
        engine=str(engine),
        workspace=workspace,
        mode="int8" if quantized else "fp32",
        quantized=quantized,
        strongly_typed=True,
        shapes=shapes(model, dims),
    )
    return build("tensorrt_rtx", model, spec)


def shapes(model: onnx.ModelProto, dims: Dims) -> dict[str, Shapes]:
    """The least, most usual and largest shape of every input with an open axis.

    Raises StepError for an open axis without a range.
    """
    return {spec.name: _shapes(spec, dims) for spec in interface(model).inputs if _is_open(spec)}


def _shapes(spec: TensorSpec, dims: Dims) -> Shapes:
    low, opt, high = (tuple(_bound(spec, axis, dims, end) for axis in spec.shape) for end in ("min", "opt", "max"))
    return Shapes(low, opt, high)


def _bound(spec: TensorSpec, axis: int | str, dims: Dims, bound: str) -> int:
    if isinstance(axis, int):
        return axis
    if axis not in dims:
        raise StepError(
            f"axis {axis} of input {spec} is open and has no range",
            f"give model.dims an entry for {axis}: {{min: …, opt: …, max: …}}, or fix the axis under model.inputs",
        )
    return int(dims[axis][bound])


def _is_open(spec: TensorSpec) -> bool:
    return any(isinstance(axis, str) for axis in spec.shape)


def _workspaces(first: int | None) -> Iterator[int | None]:
    """The workspace, then its halves, in bytes."""
    yield first
    while first is not None and first > SMALLEST_WORKSPACE:
        first = max(first // 2 // MIB * MIB, SMALLEST_WORKSPACE)
        yield first


def _check(header: Mapping[str, Any], product: str, model: onnx.ModelProto, spec: BuildSpec, short: bool) -> None:
    """Raise StepError for what the child could not do, and for what it did otherwise than it was asked."""
    if "error" in header:
        hint = "check that the model works over the whole range of model.dims" if spec.shapes else None
        if short:
            hint = (
                "free memory of the GPU, or build for a smaller range of model.dims or with a smaller build.workspace"
            )
        if header.get("parser"):
            said = "; ".join(_parser_error(error, model) for error in header["parser"])[:800]
            raise StepError(f"{product} cannot read the graph: {said}", hint)
        raise StepError(f"{product} {header['error']}", hint)
    if spec.table is not None:
        scaled = {line.rpartition(": ")[0] for line in Path(spec.table).read_text("utf-8").splitlines()[1:]}
        if unscaled := [name for name in header["unscaled"] if name in scaled]:
            raise StepError(
                f"{product} finds no scale of {', '.join(unscaled[:_NAMED])}, which the calibration table has",
                "the table belongs to another form of the graph; calibrate again",
            )


def _parser_error(error: Mapping[str, Any], model: onnx.ModelProto) -> str:
    """TensorRT tells the number of a node, from 9.1 on its name too."""
    nodes: Sequence[onnx.NodeProto] = model.graph.node
    number = error["node"]
    node = nodes[number] if 0 <= number < len(nodes) else None
    name = error["name"] or (node.name if node is not None else None) or number
    operator = error["operator"] or (node.op_type if node is not None else "no operator")
    return f"node {name} ({operator}): {error['text']}"


def _ask(module: str, request: bytes, verbose: bool) -> tuple[int, dict[str, Any], bytes, str]:
    """Send `request` to a fresh builder process; its status, header and engine, and the last words of its log."""
    source = Path(tensorrt_child.__file__).read_text(encoding="utf-8")
    with tempfile.TemporaryFile() as log:
        done = subprocess.run(
            # The text of the program, not its path: the length of a path moves everything behind it in memory.
            [sys.executable, "-B", "-c", source],
            input=request,
            stdout=subprocess.PIPE,
            stderr=None if verbose else log,
            env=_environment(module),
            cwd=Path(sys.executable).anchor,
        )
        log.seek(max(0, log.seek(0, os.SEEK_END) - (16 << 10)))
        said = " ".join(log.read().decode(errors="replace").split())[-600:]
    header, _, engine = done.stdout.partition(b"\n")
    return done.returncode, json.loads(header) if done.returncode == 0 else {}, engine, said


def _environment(module: str) -> dict[str, str]:
    """What the system needs, and settings that make Python lay out its memory the same way each time."""
    names = ["LD_LIBRARY_PATH", "SYSTEMROOT", "PATH"]
    if module == "tensorrt":  # the other one needs no GPU
        names += ["CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"]
    kept = {name: os.environ[name] for name in names if name in os.environ}
    if os.name == "posix":
        kept.pop("PATH", None)
    # Compiled files may or may not be there yet: a folder that does not exist hides them either way.
    return {**kept, "PYTHONHASHSEED": "0", "PYTHONPYCACHEPREFIX": "/nonexistent"}


@contextmanager
def _fixed_addresses() -> Iterator[bool]:
    """Processes started inside have no random addresses; yields whether the system agreed."""
    personality = getattr(ctypes.CDLL(None), "personality", None) if sys.platform == "linux" else None
    if personality is None:
        yield False
        return
    personality.argtypes, personality.restype = [ctypes.c_ulong], ctypes.c_int
    before = personality(_ASK)
    fixed = before >= 0 and personality(before | _NO_RANDOM_ADDRESSES) >= 0
    try:
        yield fixed
    finally:
        if fixed:
            personality(before)
