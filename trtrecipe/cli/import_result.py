"""import-result: what a bundle gave on its device, verified and placed as if that device had been reached."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from trtrecipe.cli.recipes import Json, load_all


def import_result(
    path: Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe that was bundled.", show_default=False)],
    results: Annotated[
        list[Path], typer.Argument(metavar="RESULT...", help="result.tar.gz, or the folder result.", show_default=False)
    ],
    device: Annotated[
        str | None,
        typer.Option("--device", "-d", help="The device of the inventory that it was done on.", show_default=False),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where results are placed.")] = Path("dist"),
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Steps at a time.")] = len(os.sched_getaffinity(0)),
    as_json: Json = False,
) -> int:
    """Take in what `python3 build.py` of a bundle wrote: verify it, judge gates, and place engines and manifests."""
    from trtrecipe.cli.build import report
    from trtrecipe.cli.fleet import check_devices, devices_for, is_chosen
    from trtrecipe.cli.progress import watch
    from trtrecipe.plan.machine import this_machine
    from trtrecipe.plan.pipeline import build_graph
    from trtrecipe.run.imports import import_results, read, targets_of
    from trtrecipe.store.store import BUCKET, Store, default_root

    started = time.monotonic()
    machine = this_machine()
    with (
        Store(default_root()) as store,
        tempfile.TemporaryDirectory(prefix="import-", dir=store.root / BUCKET / "tmp") as folder,
    ):
        given = [read(result, Path(folder, str(number))) for number, result in enumerate(results)]
        targets, only = targets_of(given), [] if device is None else [device]
        check_devices([path], only)
        graph = build_graph(load_all([path], targets, only), machine, targets)
        devices = tuple(each for each in devices_for([path.absolute().parent]) if is_chosen(each, only))
        if device is None:
            devices = tuple(each for each in devices if each.ssh is None)
        with watch(sys.stderr) as listener:
            built = import_results(graph, given, devices, store, machine, jobs, output, listener)
        return report(graph, built, 1, as_json, round(time.monotonic() - started, 3))
