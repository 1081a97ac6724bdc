"""bundle: what a device that SSH does not reach is to do, in one file."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from trtrecipe.cli.recipes import Json, Targets, load_all
from trtrecipe.cli.render import print_json, short_path, size
from trtrecipe.errors import InputError


def bundle(
    path: Annotated[Path, typer.Argument(metavar="RECIPE", help="Recipe file.", show_default=False)],
    targets: Targets = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="The bundle, a .tar.gz.", show_default=False)
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Steps at a time.")] = len(os.sched_getaffinity(0)),
    as_json: Json = False,
) -> None:
    """Pack what is left to do on a device that SSH does not reach, after building all else here."""
    from trtrecipe.cli.progress import watch
    from trtrecipe.plan.machine import this_machine
    from trtrecipe.plan.pipeline import build_graph
    from trtrecipe.run.bundle import bundle as pack
    from trtrecipe.run.bundle import folder_name
    from trtrecipe.store.store import Store, default_root

    machine = this_machine()
    graph = build_graph(load_all([path], targets), machine, targets or ())
    [recipe] = graph.recipes
    ids = list(dict.fromkeys(plan.target.id for plan in recipe.targets))
    if output is None:
        output = Path(f"{folder_name(recipe.name, ids)}.tar.gz")
    if output.is_dir():
        raise InputError.of(f"{output} is a folder", "name the file to write with --output FILE")
    with Store(default_root()) as store, watch(sys.stderr) as listener:
        packed = pack(graph, store, machine, jobs, listener, output)
    if as_json:
        print_json(
            {
                "schema": "trtrecipe/bundled/v1",
                "recipe": recipe.name,
                "targets": ids,
                "profile": packed.profile,
                "tensorrt": packed.tensorrt,
                "jobs": list(packed.jobs),
                "path": short_path(packed.path),
                "sha256": packed.sha256,
                "size": packed.size,
            }
        )
        return
    typer.echo(f"{short_path(packed.path)}: {size(packed.size)}, {len(packed.jobs)} jobs for a {packed.profile}")
    typer.echo("unpack it there, run `python3 build.py`, bring back result.tar.gz, then:")
    typer.echo(f"trtrecipe import-result {short_path(path)} result.tar.gz")
