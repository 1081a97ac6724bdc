"""plan: what a build would do, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from trtrecipe.cli.recipes import Chosen, Json, Recipes, Targets, load_all
from trtrecipe.cli.render import KEY_PREFIX, present, print_json, table

if TYPE_CHECKING:
    from trtrecipe.plan.graph import Graph, RecipePlan
    from trtrecipe.plan.resolve import Resolution


def plan(paths: Recipes, targets: Targets = None, devices: Chosen = None, as_json: Json = False) -> None:
    """Show which steps the store can serve and which have to run, without running any."""
    from trtrecipe.cli.fleet import fleet_for
    from trtrecipe.plan.machine import this_machine
    from trtrecipe.plan.pipeline import build_graph
    from trtrecipe.plan.resolve import resolve_all
    from trtrecipe.run.build import resolver_for
    from trtrecipe.store.store import Store, default_root

    machine = this_machine()
    graph = build_graph(load_all(paths, targets, devices or ()), machine, targets or ())
    with Store(default_root()) as store:
        known = resolve_all(graph, resolver_for(graph, store, machine, fleet_for(graph, paths, devices or ()))[0])
    if as_json:
        documents = [_document(graph, recipe, known) for recipe in graph.recipes]
        print_json(documents[0] if len(paths) == 1 else {"schema": "trtrecipe/plans/v1", "recipes": documents})
        return
    for recipe in graph.recipes:
        if len(graph.recipes) > 1:
            typer.echo(f"{recipe.name}:")
        typer.echo(table(("STEP", "TARGET", "STATUS", "KEY", "REASON"), _rows(graph, recipe, known)))
    counts = [f"{count} {status}" for status, count in _count(known).items()]
    typer.echo(f"{len(known)} steps: {', '.join(counts)}")


def _status(resolution: Resolution) -> str:
    return "unknown" if resolution.status == "unable" else resolution.status


def _count(known: dict[str, Resolution]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for resolution in known.values():
        counts[_status(resolution)] = counts.get(_status(resolution), 0) + 1
    return counts


def _rows(graph: Graph, recipe: RecipePlan, known: dict[str, Resolution]) -> list[list[str]]:
    users: dict[str, list[str]] = {}
    for target in recipe.targets:
        for step_id in target.steps:
            users.setdefault(step_id, []).append(target.target.label)
    rows = []
    for step_id, step in graph.steps.items():
        if step_id not in users:
            continue
        resolution = known[step_id]
        everyone = len(users[step_id]) == len(recipe.targets) and len(recipe.targets) > 1
        rows.append([
            step.kind,
            "all" if everyone else ", ".join(users[step_id]),
            _status(resolution),
            (resolution.key or "")[:KEY_PREFIX],
            resolution.reason,
        ])  # fmt: skip
    return rows


def _document(graph: Graph, recipe: RecipePlan, known: dict[str, Resolution]) -> dict[str, Any]:
    return {
        "schema": "trtrecipe/plan/v1",
        "recipe": recipe.name,
        "targets": [
            {
                "target": target.target.id,
                "precision": target.target.mode,
                "steps": [
                    present({
                        "kind": graph.steps[step_id].kind,
                        "key": known[step_id].key,
                        "status": _status(known[step_id]),
                        "reason": known[step_id].reason or None,
                    })
                    for step_id in target.steps
                ],
            }
            for target in recipe.targets
        ],
    }  # fmt: skip
