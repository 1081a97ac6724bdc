"""build: everything, and the report of it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trtrecipe.cli.recipes import Chosen, Json, Recipes, Targets, load_all
from trtrecipe.cli.render import present, print_json, said_once, short_path, size, table

if TYPE_CHECKING:
    from trtrecipe.plan.graph import Graph
    from trtrecipe.run.build import Built
    from trtrecipe.run.events import Event, Listener, Outcome
    from trtrecipe.run.fleet import Fleet
    from trtrecipe.run.results import RecipeResult, TargetResult

# DESIGN: with several targets the worst counts, in this order.
_CODES = (("failed", 1), ("gate-failed", 3), ("pending", 5), ("built", 0), ("cached", 0))


def build(
    paths: Recipes,
    targets: Targets = None,
    devices: Chosen = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where results are placed.")] = Path("dist"),
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Steps at a time.")] = len(os.sched_getaffinity(0)),
    as_json: Json = False,
) -> int:
    """Build recipes: run what the store lacks, verify, and place engines with their manifests."""
    from trtrecipe.cli.fleet import fleet_for
    from trtrecipe.cli.progress import watch
    from trtrecipe.plan.machine import this_machine
    from trtrecipe.plan.pipeline import build_graph
    from trtrecipe.run.build import build as run_build
    from trtrecipe.store.store import Store, default_root

    started = time.monotonic()
    machine = this_machine()
    graph = build_graph(load_all(paths, targets, devices or ()), machine, targets or ())
    fleet = fleet_for(graph, paths, devices or ())
    at_work: dict[str, str] = {}  # step → the device that it runs on
    try:
        with Store(default_root()) as store, watch(sys.stderr) as listener:
            built = run_build(graph, store, machine, jobs, output, _noting(listener, fleet, at_work), fleet)
    except KeyboardInterrupt:
        for name in sorted(set(at_work.values())):
            sys.stderr.write(
                f"what was begun on {name} goes on there, and the next build collects it; "
                f"`trtrecipe devices cancel {name}` ends it\n"
            )
        raise
    return report(graph, built, len(paths), as_json, round(time.monotonic() - started, 3))


def _noting(listener: Listener, fleet: Fleet | None, at_work: dict[str, str]) -> Listener:
    """The listener, with a note of which devices are at work."""
    from trtrecipe.run.events import Finished, Started

    def hear(event: Event) -> None:
        if isinstance(event, Started) and event.step.device is not None and fleet is not None:
            device = fleet.assigned(event.step.device).device
            at_work[event.step.id] = device.name if device is not None else ""
        elif isinstance(event, Finished):
            at_work.pop(event.step.id, None)
        listener(event)

    return hear


def report(graph: Graph, built: Built, recipes: int, as_json: bool, seconds: float) -> int:
    """Print what was built, of so many recipe files; the exit code."""
    if as_json:
        documents = [_document(graph, built, recipe, seconds) for recipe in built.recipes]
        several = {"schema": "trtrecipe/builds/v1", "recipes": documents, "seconds": seconds}
        print_json(documents[0] if recipes == 1 else several)
    else:
        for recipe in built.recipes:
            if len(built.recipes) > 1:
                typer.echo(f"{recipe.plan.name}:")
            _print(built, recipe)
    statuses = {target.status for recipe in built.recipes for target in recipe.targets}
    return next(code for status, code in _CODES if status in statuses)


def _document(graph: Graph, built: Built, recipe: RecipeResult, seconds: float) -> dict[str, Any]:
    return {
        "schema": "trtrecipe/build/v1",
        "recipe": recipe.plan.name,
        "targets": [_target_document(graph, built, recipe, target) for target in recipe.targets],
        "seconds": seconds,
    }


def _target_document(graph: Graph, built: Built, recipe: RecipeResult, result: TargetResult) -> dict[str, Any]:
    from dataclasses import asdict

    placed = built.placed[recipe.plan.name, result.plan.target.id]
    artifacts = {name: {"path": short_path(each.path), **asdict(each.blob)} for name, each in placed.items()}
    return present({
        "target": result.plan.target.id,
        "status": result.status,
        "error": result.error,
        "artifacts": artifacts,
        "metrics": result.metrics,
        "gates": [present(asdict(gate)) for gate in result.gates],
        "precision": result.chosen if result.candidates else result.plan.target.mode,
        "kept": list(result.kept) or None,
        "search": result.search,
        "dla": result.dla,
        "candidates": [
            {
                "precision": each.plan.target.mode,
                "status": each.status,
                "metrics": each.metrics,
                "gates": [present(asdict(gate)) for gate in each.gates],
            }
            for each in result.candidates
        ] or None,
        "notes": list(result.notes),
        "steps": [
            present({
                "kind": graph.steps[step_id].kind,
                "key": outcome.resolution.key,
                "status": outcome.status,
                "seconds": outcome.seconds,
                "reason": _reason(outcome),
                "outputs": {role: blob.sha256 for role, blob in (outcome.resolution.outputs or {}).items()},
                "error": outcome.error if outcome.status == "failed" else None,
                "hint": outcome.hint,
                "log": outcome.log,
            })
            for step_id, outcome in result.steps
        ],
    })  # fmt: skip


def _reason(outcome: Outcome) -> str | None:
    if outcome.why is not None:
        return outcome.why.reason
    return outcome.resolution.reason or outcome.error


_HEADERS = (
    "TARGET", "STATUS", "PRECISION", "SIZE", "ACCURACY", "FP32", "AGREEMENT", "COSINE", "P50 MS", "P99 MS", "ENGINE"
)  # fmt: skip


def _print(built: Built, recipe: RecipeResult) -> None:
    typer.echo(table(_HEADERS, [row for target in recipe.targets for row in _rows(built, recipe, target)]))
    for target in recipe.targets:
        name = target.plan.target.id
        if target.search and target.search["ranking"]:  # none where the gates were met at once
            headers = ("RANK", "NODE", "OPERATOR", "DAMAGE", "DECISION")
            typer.echo(f"{name}: what INT8 does to each node, and which stay in {target.plan.target.float_precision}:")
            typer.echo(table(headers, _ranking(target.search["ranking"])))
    remarks = (remark for target in recipe.targets for remark in _remarks(target))
    for line in said_once(remarks, [target.plan.target.id for target in recipe.targets]):
        typer.echo(line)


def _remarks(result: TargetResult) -> Iterator[tuple[str, str]]:
    """What is to be said of a target: of whom, and what."""
    from trtrecipe.run.results import search_may_help

    name = result.plan.target.id
    for candidate in result.candidates or (result,):
        for gate in candidate.gates:
            # A target that failed has said why; its gates were never reached.
            if gate.status != "met" and candidate.status != "failed":
                yield candidate.plan.target.label, f"gate {gate.status}: {gate}"
        if search_may_help(candidate):
            yield candidate.plan.target.label, "precision.search: true finds the layers that INT8 harms, and keeps them"
    for note in result.notes:
        yield name, note
    if result.error:
        yield name, f"failed: {result.error}"
    pending = (outcome.resolution for _, outcome in result.steps if outcome.resolution.status == "pending")
    reasons = [reason for reason in dict.fromkeys(resolution.reason for resolution in pending) if reason]
    if result.status == "pending" and reasons:
        yield name, f"pending: {'; '.join(reasons)}"


def _ranking(ranking: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    return [
        [
            str(entry["rank"]),
            entry["node"],
            entry["operator"],
            f"{entry['damage']:.3g}",
            "kept" if entry["kept"] else "int8",
        ]
        for entry in ranking
    ]


def _rows(built: Built, recipe: RecipeResult, result: TargetResult) -> list[list[str]]:
    """A row for a target, or one for each of its candidates."""
    engine = built.placed[recipe.plan.name, result.plan.target.id].get("engine")
    rows = []
    for each in result.candidates or (result,):
        is_chosen = not result.candidates or each.plan.target.mode == result.chosen
        lost = result.chosen is not None and not is_chosen and each.status in ("built", "cached")
        status = result.status if is_chosen else "slower" if lost else each.status
        rows.append(_row(each, status, short_path(engine.path) if engine and is_chosen else ""))
    return rows


def _row(result: TargetResult, status: str, engine: str) -> list[str]:
    target, metrics = result.plan.target, result.metrics
    latency = metrics.get("latency_ms", {})

    def figure(value: float | None, digits: int) -> str:
        return "" if value is None else f"{value:.{digits}f}"

    return [
        target.id,
        status,
        f"{target.mode} dynamic" if target.quantization == "dynamic" else target.mode,
        size(result.artifacts["engine"].size) if "engine" in result.artifacts else "",
        figure(metrics.get("accuracy"), 4),
        figure(metrics.get("reference_accuracy"), 4),
        figure(metrics.get("agreement"), 4),
        figure(metrics.get("cosine"), 6),
        figure(latency.get("p50"), 3),
        figure(latency.get("p99"), 3),
        engine,
    ]
