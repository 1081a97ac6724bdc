"""What of a CPU and a GPU can change a result."""

from __future__ import annotations

import pytest

from trtrecipe.plan.machine import Gpu, _cpu_level, rtx_runs_on, this_machine

V2 = {"cx16", "lahf_lm", "popcnt", "sse4_1", "sse4_2", "ssse3"}
V3 = V2 | {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"}
V4 = V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}


@pytest.mark.parametrize(
    ("flags", "level"),
    [
        (set(), "x86-64"),
        (V2, "x86-64-v2"),
        (V3, "x86-64-v3"),
        (V4, "x86-64-v4"),
        (V4 - {"movbe"}, "x86-64-v2"),  # a level counts only with all below it
        (V3 | {"avx_vnni"}, "x86-64-v3+avx_vnni"),
        (V4 | {"amx_int8", "avx512_vnni"}, "x86-64-v4+avx512_vnni+amx_int8"),
    ],
)
def test_x86_levels(flags: set[str], level: str) -> None:
    assert _cpu_level("x86_64", flags) == level


def test_arm() -> None:
    assert _cpu_level("aarch64", {"fp", "asimd", "asimddp", "i8mm"}) == "aarch64+asimddp+i8mm"


@pytest.mark.parametrize(
    ("capability", "release", "runs"),
    [
        ("9.0", "1.6.1.120", True),
        ("9.0", "1.7.1.116", False),
        ("8.9", "1.7.1.116", True),
        ("12.0", "1.7.1.116", True),
        ("12.1", "1.10.0.1", True),
        ("7.5", "1.6.1.120", False),
        ("8.9", None, False),
    ],
)
def test_where_tensorrt_for_rtx_runs(capability: str, release: str | None, runs: bool) -> None:
    assert rtx_runs_on(Gpu("a GPU", capability, "13.0"), release) is runs
    assert not rtx_runs_on(None, release)


def test_this_machine_is_known() -> None:
    machine = this_machine()
    assert machine.cpu.startswith(("x86-64", "aarch64"))
    assert not machine.model.endswith("x 0")
