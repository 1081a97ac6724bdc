"""doctor: whether this machine, or a device, has what builds need."""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from trtrecipe.cli.recipes import Json
from trtrecipe.cli.render import print_json, size, table

_TOOLS = (
    "onnx",
    "onnxruntime",
    "numpy",
    "pillow",
    "tensorflow",
    "tf2onnx",
    "ai-edge-litert",
    "tensorrt",
    "tensorrt-rtx",
)
_LEAST_FREE = 1 << 30


def doctor(
    device: Annotated[
        str | None,
        typer.Option("--device", metavar="NAME", help="Look at this device of the inventory instead, or at `all`."),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Where results were placed, whose engines are judged.")
    ] = Path("dist"),
    as_json: Json = False,
) -> int:
    """Check tools, store and machine; exit 1 when something that every build needs is missing. With --device, check a
    device, and list the engines that it can no longer load."""
    if device is not None:
        from trtrecipe.cli.doctor_device import doctor_devices

        return doctor_devices(device, output, as_json)
    checks = [*_tools(), _store(), *_machine()]
    if as_json:
        print_json({"schema": "trtrecipe/doctor/v1", "checks": checks})
    else:
        marks = {"ok": "ok", "absent": "-", "bad": "BAD"}
        rows = [[check["check"], marks[check["status"]], check["found"], check.get("hint", "")] for check in checks]
        typer.echo(table(("CHECK", "", "FOUND", "HINT"), rows))
    return 1 if any(check["status"] == "bad" for check in checks) else 0


def _tools() -> list[dict[str, Any]]:
    from trtrecipe.plan.tools import EXTRAS, install_hint, version

    checks: list[dict[str, Any]] = [{"check": "python", "status": "ok", "found": platform.python_version()}]
    for tool in _TOOLS:
        found = version(tool)
        if found is not None:
            checks.append({"check": tool, "status": "ok", "found": found})
            continue
        # An extra is only needed by recipes that use it.
        status = "absent" if tool in EXTRAS else "bad"
        checks.append({"check": tool, "status": status, "found": "not installed", "hint": install_hint(tool)})
    return checks


def _store() -> dict[str, Any]:
    from trtrecipe.errors import StoreError
    from trtrecipe.store.store import Store, default_root

    root = default_root()
    hint = "set TRTRECIPE_STORE to a folder that you can write to"
    try:
        Store(root).close()
    except StoreError as error:
        return {"check": "store", "status": "bad", "found": error.message, "hint": hint}
    if not os.access(root, os.W_OK):
        return {"check": "store", "status": "bad", "found": f"{root} cannot be written to", "hint": hint}
    free = shutil.disk_usage(root).free
    found = f"{root}, {size(free)} free"
    if free < _LEAST_FREE:
        return {"check": "store", "status": "bad", "found": found, "hint": "free some space, or set TRTRECIPE_STORE"}
    return {"check": "store", "status": "ok", "found": found}


def _machine() -> list[dict[str, Any]]:
    from trtrecipe.plan.machine import rtx_runs_on, this_machine
    from trtrecipe.plan.tools import version

    machine = this_machine()
    checks: list[dict[str, Any]] = [{"check": "cpu", "status": "ok", "found": f"{machine.model}, {machine.cpu}"}]
    gpu = machine.gpu
    if gpu is None:
        hint = "rtx engines are built here but not run; they are judged by their graph"
        checks.append({"check": "gpu", "status": "absent", "found": "none", "hint": hint})
        return checks
    found = f"{gpu.name}, compute capability {gpu.compute_capability}, driver for CUDA {gpu.driver}"
    runs = rtx_runs_on(gpu, version("tensorrt-rtx"))
    check = {"check": "gpu", "status": "ok" if runs or version("tensorrt") else "absent", "found": found}
    return [*checks, check if runs else check | {"hint": "the installed tensorrt-rtx does not run engines on it"}]
