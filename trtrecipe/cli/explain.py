"""explain: why steps would run now, or why they last ran, root causes first."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trtrecipe.cli.recipes import Json, load_all
from trtrecipe.cli.render import present, print_json
from trtrecipe.errors import InputError

if TYPE_CHECKING:
    from trtrecipe.plan.graph import Step
    from trtrecipe.plan.reason import Reason
    from trtrecipe.plan.resolve import Resolution, Resolver


def explain(
    path: Annotated[Path, typer.Argument(help="Recipe file.", show_default=False)],
    step: Annotated[
        str | None, typer.Argument(help="One step, such as export or compile@host.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Say which ingredient of a step's key changed since the last build, or why it last ran."""
    from trtrecipe.cli.fleet import fleet_for
    from trtrecipe.plan.machine import this_machine
    from trtrecipe.plan.pipeline import build_graph
    from trtrecipe.plan.resolve import resolve_all
    from trtrecipe.run.build import resolver_for
    from trtrecipe.store.store import Store, default_root

    machine = this_machine()
    graph = build_graph(load_all([path]), machine)
    with Store(default_root()) as store:
        resolver = resolver_for(graph, store, machine, fleet_for(graph, [path]))[0]
        known = resolve_all(graph, resolver)
        entries = [_entry(planned, known[planned.id], resolver) for planned in graph.steps.values()]
    names = [entry["step"] for entry in entries]
    if step is not None and step not in names:
        raise InputError.of(f"the recipe has no step {step}", f"its steps: {', '.join(names)}")
    entries = [entry for entry in entries if step in (None, entry["step"])]
    # Root causes first: a step with a reason of its own stands before those that follow from others.
    entries.sort(key=lambda entry: _RANK[entry["status"]] + (0 if entry["root"] else 1))
    if as_json:
        print_json({"schema": "trtrecipe/explain/v1", "recipe": graph.recipes[0].name, "steps": entries})
        return
    for entry in entries:
        for line in _lines(entry):
            typer.echo(line)


_RANK = {"run": 0, "unable": 0, "unknown": 2, "pending": 4, "hit": 6}


def _entry(step: Step, resolution: Resolution, resolver: Resolver) -> dict[str, Any]:
    last = resolver.last(step)
    reasons = list(resolution.reasons)
    if resolution.status == "hit" and resolution.key is not None:
        reasons = resolver.changed(step, resolution.key)
    # Why it last ran is of interest only where nothing has changed since.
    why = last.why if last is not None and not reasons else ()
    return {
        "step": step.name,
        "status": resolution.status,
        "root": any(reason.cascade is None for reason in (reasons or why)),
        "reasons": [_reason(reason) for reason in reasons],
        "last_ran_because": [_reason(reason) for reason in why],
    }


def _reason(reason: Reason) -> dict[str, Any]:
    return present({"text": reason.text, "follows_from": reason.cascade})


def _lines(entry: dict[str, Any]) -> list[str]:
    says = {
        "run": "will run because",
        "unknown": "cannot be known yet",
        "pending": "pending",
        "unable": "cannot run",
        "hit": "served from the store, though since the last build",
    }
    reasons, says_hit = entry["reasons"], says[entry["status"]]
    if entry["status"] == "hit" and not reasons:
        reasons = entry["last_ran_because"]
        says_hit = "unchanged; it last ran because" if reasons else "unchanged"
    return [f"{entry['step']}: {says_hit}", *(f"  {reason['text']}" for reason in reasons)]
