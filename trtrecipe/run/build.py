"""A whole build: resolve, run what is missing, place the results, remember the keys."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtrecipe.errors import InputError
from trtrecipe.plan.graph import Graph
from trtrecipe.plan.machine import Machine
from trtrecipe.plan.resolve import Resolver
from trtrecipe.plan.sources import ModelSource, SampleSource, Source, digest_sources
from trtrecipe.run.events import Listener, Outcome
from trtrecipe.run.place import place
from trtrecipe.run.results import RecipeResult, results
from trtrecipe.run.scheduler import Scheduler
from trtrecipe.store.blobs import DamagedBlobError
from trtrecipe.store.store import Store


@dataclass(frozen=True)
class Built:
    """Results per recipe, and where each target's artifacts were placed, by (recipe, target)."""

    recipes: tuple[RecipeResult, ...]
    placed: Mapping[tuple[str, str], Mapping[str, Path]]


def resolver_for(graph: Graph, store: Store, machine: Machine) -> tuple[Resolver, dict[Source, str]]:
    """A resolver that knows the sources' digests and the keys of the last build. Raises InputError."""
    given = (source for step in graph.steps.values() for source in step.inputs.values())
    sources = digest_sources((s for s in given if isinstance(s, (ModelSource, SampleSource))), store.stat)
    last = {recipe.name: last_keys(store.read_last(recipe.loaded.path)) for recipe in graph.recipes}
    return Resolver(store, sources, machine, last), sources


def last_keys(last: Mapping[str, Any]) -> dict[str, str]:
    """Step name → key, from what `remember` kept."""
    return {name: entry["key"] for name, entry in last.items()}


def build(graph: Graph, store: Store, machine: Machine, jobs: int, output: Path, listener: Listener) -> Built:
    """Build and place everything that can be. Raises InputError, StoreError; KeyboardInterrupt passes through."""
    _check_output(output)
    outcomes: dict[str, Outcome] = {}
    for last_try in (False, True):
        resolver, sources = resolver_for(graph, store, machine)
        outcomes = _merge(outcomes, Scheduler(graph, resolver, store, sources, jobs, listener).run())
        made = results(graph, outcomes)
        try:
            placed = {
                (recipe.plan.name, target.plan.target.id): place(graph, recipe.plan, target, store, output)
                for recipe in made
                for target in recipe.targets
            }
            break
        except DamagedBlobError as damage:
            # Its stat was in order, its bytes were not: set it aside, and the steps that made it run again.
            store.blobs.set_aside(damage.blob.sha256)
            if last_try:
                raise
    for recipe in graph.recipes:
        remember(store, recipe.loaded.path, graph, outcomes, recipe.name)
    return Built(made, placed)


def _merge(first: Mapping[str, Outcome], second: Mapping[str, Outcome]) -> dict[str, Outcome]:
    """What a second pass only served again counts as it ended in the first."""
    return {
        step_id: first[step_id] if outcome.status == "hit" and step_id in first else outcome
        for step_id, outcome in second.items()
    }


def remember(store: Store, path: Path, graph: Graph, outcomes: Mapping[str, Outcome], recipe: str) -> None:
    """Keep each finished step's key, and why it last ran, for the next `explain`. Raises StoreError."""
    before = store.read_last(path)
    now = dict(before)
    for step_id, outcome in outcomes.items():
        step = graph.steps[step_id]
        key = outcome.resolution.key
        if step_id.partition(":")[0] != recipe or outcome.status not in ("ran", "hit"):
            continue
        if outcome.status == "ran" and outcome.why is not None:
            why = [[reason.text, reason.cascade] for reason in outcome.why.reasons]
        else:
            why = before.get(step.name, {}).get("why", [])
        now[step.name] = {"key": key, "why": why}
    if now != before:
        store.write_last(path, now)


def _check_output(output: Path) -> None:
    """Find out before an hour of work that results could not be placed."""
    folder = output.absolute()
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise InputError.of(f"the output folder {output} cannot be made: {folder} is a file", "use --output FOLDER")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError.of(f"the output folder {output} cannot be written to", "use --output FOLDER")
