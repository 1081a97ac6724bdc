"""A whole build: resolve, run what is missing, place the results, remember the keys."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from trtrecipe.errors import InputError, StoreError
from trtrecipe.plan.devices import NoDevices
from trtrecipe.plan.graph import Graph, RecipePlan
from trtrecipe.plan.last import LastStep, dump, parse, sources_in_words
from trtrecipe.plan.machine import Machine
from trtrecipe.plan.resolve import Resolver, resolve_all
from trtrecipe.plan.sources import ModelSource, SampleSource, Source, digest_sources
from trtrecipe.run.events import Damaged, Listener, Outcome
from trtrecipe.run.place import Placed, place
from trtrecipe.run.results import RecipeResult, results
from trtrecipe.run.scheduler import Scheduler
from trtrecipe.store.blobs import DamagedBlobError
from trtrecipe.store.store import Store

if TYPE_CHECKING:
    from trtrecipe.run.fleet import Fleet

MANY = 1000  # steps from which on reading all stat rows of the store is cheaper than asking for each
PASSES = 3  # a pass after each that found a damaged file while placing


@dataclass(frozen=True)
class Built:
    """Results per recipe, and where each target's artifacts were placed, by (recipe, target)."""

    recipes: tuple[RecipeResult, ...]
    placed: Mapping[tuple[str, str], Mapping[str, Placed]]


def resolver_for(
    graph: Graph, store: Store, machine: Machine, fleet: Fleet | None = None
) -> tuple[Resolver, dict[Source, str]]:
    """A resolver that knows the sources' digests, the recipes' last builds and the devices, which are looked at where
    they have not been lately. Raises InputError."""
    if len(graph.steps) >= MANY:
        store.stat.preload()
    given = (source for step in graph.steps.values() for source in step.inputs.values())
    sources = digest_sources((s for s in given if isinstance(s, (ModelSource, SampleSource))), store.stat)
    last = {recipe.name: parse(store.read_last(recipe.loaded.path)) for recipe in graph.recipes}
    if fleet is not None:
        fleet.settle(step.device for step in graph.steps.values() if step.device is not None)
    return Resolver(store, sources, machine, last, fleet or NoDevices()), sources


def build(
    graph: Graph,
    store: Store,
    machine: Machine,
    jobs: int,
    output: Path,
    listener: Listener,
    fleet: Fleet | None = None,
) -> Built:
    """Build and place everything that can be. Raises InputError, StoreError; KeyboardInterrupt passes through."""
    _check_output(graph, output)
    store.sweep()
    outcomes: dict[str, Outcome] = {}
    for _ in range(PASSES):
        resolver, sources = resolver_for(graph, store, machine, fleet)
        if fleet is not None:
            _confirm(graph, resolver, fleet)
        scheduler = Scheduler(graph, resolver, store, sources, jobs, listener)
        try:
            scheduler.run()
        finally:
            # What finished is explained later, also if the rest was interrupted or cannot be placed.
            outcomes = _merge(outcomes, scheduler.outcomes)
            for recipe in graph.recipes:
                _remember(store, resolver, graph, outcomes, recipe)
        try:
            return _place_all(graph, results(graph, outcomes), store, output)
        except DamagedBlobError as damage:
            # Its stat was in order, its bytes were not: set it aside, and the step that made it runs again.
            store.blobs.set_aside(damage.blob.sha256)
            listener(Damaged(None, damage.blob.sha256))
    raise StoreError(
        f"files in the store {store.root} are damaged as fast as they are made",
        "check that disk, or set TRTRECIPE_STORE to a folder on another",
    )


def _confirm(graph: Graph, resolver: Resolver, fleet: Fleet) -> None:
    """Nothing runs on a device by what an earlier command saw of it."""
    on_device = [step for step in graph.steps.values() if step.device is not None]
    if on_device:
        known = resolve_all(graph, resolver)
        fleet.confirm(step.device for step in on_device if step.device and known[step.id].status != "hit")


def _place_all(graph: Graph, made: tuple[RecipeResult, ...], store: Store, output: Path) -> Built:
    """Place every target; one that cannot be placed has failed, and the others are none the worse for it."""
    placed: dict[tuple[str, str], Mapping[str, Placed]] = {}
    recipes = []
    for recipe in made:
        targets = []
        for target in recipe.targets:
            where = recipe.plan.name, target.plan.target.id
            try:
                placed[where] = place(graph, recipe.plan, target, store, output)
                targets.append(target)
            except StoreError as error:
                placed[where] = {}
                targets.append(replace(target, status="failed", error=f"{error.message}; {error.hint}"))
        recipes.append(replace(recipe, targets=tuple(targets)))
    return Built(tuple(recipes), placed)


def _merge(first: Mapping[str, Outcome], second: Mapping[str, Outcome]) -> dict[str, Outcome]:
    """What a second pass only served again counts as it ended in the first."""
    return {
        step_id: first[step_id] if outcome.status == "hit" and step_id in first else outcome
        for step_id, outcome in second.items()
    }


def _remember(
    store: Store, resolver: Resolver, graph: Graph, outcomes: Mapping[str, Outcome], recipe: RecipePlan
) -> None:
    """Keep each finished step's key, and why it last ran, for the next `explain`. Raises StoreError."""
    raw = store.read_last(recipe.loaded.path)
    now = parse(raw)
    for step_id, outcome in outcomes.items():
        step, key = graph.steps[step_id], outcome.resolution.key
        if step_id.partition(":")[0] != recipe.name or outcome.status not in ("ran", "hit") or key is None:
            continue
        before = now.get(step.name)
        if outcome.why is not None:
            why = outcome.why.reasons
        elif before is not None and before.key != key:
            why = tuple(resolver.changed(step, key))
        else:
            why = before.why if before is not None else ()
        now[step.name] = LastStep(key, why, sources_in_words(step))
    value = {name: dump(last) for name, last in now.items()}
    if value != raw:
        store.write_last(recipe.loaded.path, value)


def _check_output(graph: Graph, output: Path) -> None:
    """Find out before an hour of work that results could not be placed. Raises InputError."""
    for recipe in graph.recipes:
        for target in recipe.targets:
            folder = output.absolute() / recipe.name / target.target.id
            try:
                while not os.path.lexists(folder):
                    folder = folder.parent
                usable, writable = folder.is_dir(), os.access(folder, os.W_OK | os.X_OK)
            except OSError as error:
                raise InputError.of(f"the output folder {output}: {error.strerror}", "use --output FOLDER") from None
            if not usable:
                raise InputError.of(f"results cannot be placed in {output}: {folder} is no folder", "move it away")
            if not writable:
                raise InputError.of(f"the output folder {folder} cannot be written to", "use --output FOLDER")
