"""explain: why steps would run now, or why they last ran, root causes first."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trtrecipe.cli.recipes import Json, load_all
from trtrecipe.cli.render import present, print_json
from trtrecipe.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trtrecipe.plan.reason import Reason
    from trtrecipe.plan.resolve import Resolution


def explain(
    path: Annotated[Path, typer.Argument(help="Recipe file.", show_default=False)],
    step: Annotated[
        str | None, typer.Argument(help="One step, such as export or compile@host.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Say which ingredient of a step's key changed since the last build, or why it last ran."""
    from trtrecipe.plan.machine import this_machine
    from trtrecipe.plan.pipeline import build_graph
    from trtrecipe.plan.resolve import resolve_all
    from trtrecipe.run.build import resolver_for
    from trtrecipe.store.store import Store, default_root

    machine = this_machine()
    graph = build_graph(load_all([path]), machine)
    with Store(default_root()) as store:
        known = resolve_all(graph, resolver_for(graph, store, machine)[0])
        last = store.read_last(path)
    names = {planned.name: known[planned.id] for planned in graph.steps.values()}
    if step is not None and step not in names:
        raise InputError.of(f"the recipe has no step {step}", f"its steps: {', '.join(names)}")
    entries = [_entry(name, names[name], last) for name in names if step in (None, name)]
    # Root causes first: a step with a reason of its own stands before those that follow from others.
    entries.sort(key=lambda entry: _RANK[entry["status"]] + (0 if entry["root"] else 1))
    if as_json:
        print_json({"schema": "trtrecipe/explain/v1", "recipe": graph.recipes[0].name, "steps": entries})
        return
    for entry in entries:
        for line in _lines(entry):
            typer.echo(line)


_RANK = {"run": 0, "unable": 0, "unknown": 2, "pending": 4, "hit": 6}


def _entry(name: str, resolution: Resolution, last: Mapping[str, Any]) -> dict[str, Any]:
    reasons = [_reason(reason) for reason in resolution.reasons]
    why = [present({"text": text, "follows_from": cascade}) for text, cascade in last.get(name, {}).get("why", [])]
    return {
        "step": name,
        "status": resolution.status,
        "root": any("follows_from" not in reason for reason in (reasons or why)),
        "reasons": reasons,
        "last_ran_because": why,
    }


def _reason(reason: Reason) -> dict[str, Any]:
    return present({"text": reason.text, "follows_from": reason.cascade})


def _lines(entry: dict[str, Any]) -> list[str]:
    if entry["status"] == "hit":
        if not entry["last_ran_because"]:
            return [f"{entry['step']}: unchanged"]
        return [
            f"{entry['step']}: unchanged; it last ran because",
            *(f"  {reason['text']}" for reason in entry["last_ran_because"]),
        ]
    says = {"run": "will run because", "unknown": "cannot be known yet", "pending": "pending", "unable": "cannot run"}
    return [f"{entry['step']}: {says[entry['status']]}", *(f"  {reason['text']}" for reason in entry["reasons"])]
