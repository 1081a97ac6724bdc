"""ONNX → engine with TensorRT for RTX. No GPU is needed.

The builder runs in a process of its own. It numbers parts of the engine in the order of their addresses in memory
(seen in 1.7.1.116 for graphs with an open axis), so its bytes repeat only where memory is laid out alike: same
environment, same arguments, no address randomization. A crash of the library also ends as a message that way.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx

from trtrecipe.engines import rtx_child
from trtrecipe.engines.rtx_library import library, version
from trtrecipe.errors import StepError
from trtrecipe.graphs.interface import TensorSpec, interface

Dims = Mapping[str, Mapping[str, int]]
Shape = list[int]

_INT8_SINCE = (1, 7)
_NO_RANDOM_ADDRESSES = 0x0040000  # ADDR_NO_RANDOMIZE in Linux's sys/personality.h
_ASK = 0xFFFFFFFF
_NOTE = "this system does not allow a fixed memory layout, so the engine's bytes may differ when it is built again"


def build(model: onnx.ModelProto, engine: Path, dims: Dims, workspace: int | None) -> list[str]:
    """Write the engine of `model` to `engine`; `workspace` in bytes. Returns notes.

    The ranges of `dims` (name → min, opt, max) become one optimization profile. Raises StepError with the parser's or
    builder's own words.
    """
    trt = library()
    _check_int8(trt, model)
    shapes = {spec.name: profile(spec, dims) for spec in interface(model).inputs if _is_open(spec)}
    # The folder is given because the process starts without PYTHONPATH.
    request = {"folder": str(Path(trt.__file__).parents[1]), "profile": shapes, "workspace": workspace}
    with _fixed_addresses() as fixed:
        header, data = _ask(json.dumps(request).encode() + b"\n" + model.SerializeToString(deterministic=True))
    if "error" in header:
        hint = "check that the model works over the whole range of model.dims" if shapes else None
        raise StepError(f"TensorRT for RTX {trt.__version__} {header['error']}", hint)
    engine.write_bytes(data)
    return [] if fixed else [_NOTE]


def profile(spec: TensorSpec, dims: Dims) -> tuple[Shape, Shape, Shape]:
    """The least, most usual and largest shape of an input. Raises StepError for an open axis without a range."""
    low, opt, high = ([_bound(spec, axis, dims, bound) for axis in spec.shape] for bound in ("min", "opt", "max"))
    return low, opt, high


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


def _check_int8(trt: Any, model: onnx.ModelProto) -> None:
    if version(trt)[:2] >= _INT8_SINCE or not any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        return
    raise StepError(
        f"TensorRT for RTX {trt.__version__} cannot build INT8 convolutions; version 1.7 is the first that can",
        "install it with: pip install 'trtrecipe[rtx]'; or use precision.mode fp16 for this target",
    )


def _ask(request: bytes) -> tuple[dict[str, str], bytes]:
    """Send `request` to a fresh builder process; header and engine that it answers."""
    source = Path(rtx_child.__file__).read_text(encoding="utf-8")
    done = subprocess.run(
        # The text of the program, not its path: the length of a path moves everything behind it in memory.
        [sys.executable, "-B", "-c", source],
        input=request,
        capture_output=True,
        env=_environment(),
        cwd=Path(sys.executable).anchor,
    )
    if done.returncode != 0:
        said = " ".join(done.stderr.decode(errors="replace").split())[-600:]
        raise StepError(f"the builder of TensorRT for RTX ended with status {done.returncode}: {said or 'no message'}")
    header, _, data = done.stdout.partition(b"\n")
    return json.loads(header), data


def _environment() -> dict[str, str]:
    """What the system needs, and settings that make Python lay out its memory the same way each time."""
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "SYSTEMROOT", "PATH") if name in os.environ}
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
