"""What this machine is, as far as it can change a result: the CPU's instruction sets and the GPU."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

# The x86-64 psABI's levels, by flags of /proc/cpuinfo (lahf_lm and abm stand for LAHF/SAHF and LZCNT there).
_X86_LEVELS = (
    ("x86-64-v4", {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}),
    ("x86-64-v3", {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"}),
    ("x86-64-v2", {"cx16", "lahf_lm", "popcnt", "sse4_1", "sse4_2", "ssse3"}),
)
# Instruction sets beyond the level for which ONNX Runtime's kernels have code paths of their own.
_EXTRAS = ("avx_vnni", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "asimddp", "i8mm", "bf16", "sve")

# Of the driver on a PC, in WSL, and on Jetsons (the last two: PyPI jetson-stats jtop/core/gpu.py, find_igpu).
_GPU_NODES = ("/dev/nvidiactl", "/dev/dxg", "/dev/nvhost-gpu", "/dev/nvhost-power-gpu")


@dataclass(frozen=True)
class Gpu:
    """The first CUDA device: its name, compute capability such as "8.9" and the driver's CUDA version, "13.0"."""

    name: str
    compute_capability: str
    driver: str


@dataclass(frozen=True)
class Machine:
    """`cpu`: the instruction-set level that numeric steps depend on. `model`: the CPU's name and the usable cores."""

    cpu: str
    model: str
    gpu: Gpu | None


@cache
def this_machine() -> Machine:
    """Read once per process; takes about a millisecond without a GPU."""
    fields = _cpuinfo()
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    architecture = os.uname().machine
    name = fields.get("model name") or architecture
    return Machine(_cpu_level(architecture, flags), f"{name} x {len(os.sched_getaffinity(0))}", _gpu())


def _cpu_level(architecture: str, flags: set[str]) -> str:
    level = architecture
    if architecture == "x86_64":
        # A level counts only if all lower ones do, so the highest is the one below the first that fails.
        level = "x86-64"
        for name, needs in reversed(_X86_LEVELS):
            if not needs <= flags:
                break
            level = name
    return "+".join([level, *(extra for extra in _EXTRAS if extra in flags)])


def _cpuinfo() -> dict[str, str]:
    """The fields of the first processor; empty where the system has no such file."""
    fields: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
    except OSError:
        return {}
    return fields


def _gpu() -> Gpu | None:
    if not any(Path(node).exists() for node in _GPU_NODES):
        return None
    import ctypes

    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    count, device, major, minor, driver = (ctypes.c_int() for _ in range(5))
    name = ctypes.create_string_buffer(256)
    # CUDA driver API: 75 and 76 are CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR.
    calls = (
        lambda: cuda.cuInit(0),
        lambda: cuda.cuDeviceGetCount(ctypes.byref(count)),
        lambda: 0 if count.value else 1,
        lambda: cuda.cuDeviceGet(ctypes.byref(device), 0),
        lambda: cuda.cuDeviceGetName(name, 256, device),
        lambda: cuda.cuDeviceGetAttribute(ctypes.byref(major), 75, device),
        lambda: cuda.cuDeviceGetAttribute(ctypes.byref(minor), 76, device),
        lambda: cuda.cuDriverGetVersion(ctypes.byref(driver)),
    )
    if any(call() != 0 for call in calls):
        return None
    version = f"{driver.value // 1000}.{driver.value % 1000 // 10}"
    return Gpu(name.value.decode(errors="replace"), f"{major.value}.{minor.value}", version)


def tensorrt_lacks(gpu: Gpu | None, installed: str | None, wanted: str, served_as: str | None) -> str | None:
    """What this machine lacks to build and run engines of TensorRT release `wanted` ("10.3"), None where it has it.

    `installed`: the version of its tensorrt package, `served_as`: the release that it is taken for.
    """
    needs = f"needs a machine with an NVIDIA GPU and TensorRT {wanted}; this one has "
    if gpu is None:
        return needs + "no GPU that the driver shows"
    if installed is None:
        return needs + "no tensorrt package"
    return None if served_as == wanted else f"{needs}TensorRT {installed}"


def rtx_runs_on(gpu: Gpu | None, release: str | None) -> bool:
    """Whether TensorRT for RTX `release` (as "1.7.1.116") executes engines on `gpu`.

    Observed: 1.4 to 1.6 run on a compute capability 9.0 GPU; 1.7 refuses it and logs that it takes 8.0, 8.6, 8.9, 12.0,
    12.1 and later. 7.5 needs an engine built for it by name, which is not offered.
    """
    if gpu is None or release is None:
        return False
    major, minor = (int(part) for part in gpu.compute_capability.split("."))
    if (major, minor) < (8, 0):
        return False
    if tuple(int(part) for part in release.split(".")[:2]) < (1, 7):
        return True
    return (major, minor) in {(8, 0), (8, 6), (8, 9)} or (major, minor) >= (12, 0)
