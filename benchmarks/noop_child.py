"""The process that `noop_graph.py` measures: trtrecipe's resolver, scheduler and store on a graph of its own.

A file apart, so that what the benchmark itself imports is not in its time.
"""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path


def main(what: str, folder: Path, shape: str, size: int) -> None:
    """Fill the store of `folder`, or build its graph and exit unless every step is a hit."""
    from trtrecipe.__main__ import COLLECT_AFTER

    gc.set_threshold(COLLECT_AFTER)
    from trtrecipe.cli.progress import watch
    from trtrecipe.plan.graph import Graph
    from trtrecipe.plan.machine import this_machine
    from trtrecipe.run.build import resolver_for
    from trtrecipe.run.scheduler import Scheduler
    from trtrecipe.store.store import Store

    graph = Graph((), _steps(folder, shape, size))
    with Store(folder / "store") as store:
        resolver, sources = resolver_for(graph, store, this_machine())
        if what == "fill":
            _fill(graph, resolver, store, folder)
            return
        with watch(sys.stderr) as listener:
            scheduler = Scheduler(graph, resolver, store, sources, 1, listener)
            scheduler.run()
    hits = sum(outcome.status == "hit" for outcome in scheduler.outcomes.values())
    if hits != size:
        sys.exit(f"{hits} of {size} steps are hits")


def _steps(folder: Path, shape: str, size: int):  # type: ignore[no-untyped-def]  # types of what is imported late
    """Step id → step. The imports are the measured process's own."""
    from trtrecipe.errors import Problem
    from trtrecipe.plan.graph import Step, StepOutput
    from trtrecipe.plan.sources import ModelSource

    steps, nowhere, inputs = {}, Problem(""), folder / "in"
    for number in range(size):
        outside = number == 0 or shape == "independent"
        source = ModelSource(inputs / str(number), nowhere) if outside else StepOutput(f"r:{number - 1}", "onnx")
        steps[f"r:{number}"] = Step(f"r:{number}", "prepare", {}, {"onnx": source})
    return steps


def _fill(graph, resolver, store, folder: Path) -> None:  # type: ignore[no-untyped-def]  # types of what is imported late
    """Publish a small output for every step. Nothing here is timed, so nothing is synced to the disk either."""
    os.fsync = lambda fd: None
    known: dict[str, object] = {}
    for number, step in enumerate(graph.steps.values()):
        resolution = resolver.resolve(step, known)
        file = folder / "output"
        file.write_text(f"output {number}\n")
        record = store.publish(resolution.key, resolution.key_document, {"onnx": file}, {})
        known[step.id] = type(resolution)("hit", resolution.key, outputs=record.outputs)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
