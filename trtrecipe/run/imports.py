"""Results that a bundle gave on its device: they enter store and dist as if that device had been reached.

The build runs as ever, with devices whose way there (`device.results`) leads to what was recorded. What it does not
find there it does not get, so that a result of another recipe, model or release is an error, never an engine.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trtrecipe.device.forms import printable
from trtrecipe.errors import InputError
from trtrecipe.plan.devices import Need, by_bundle
from trtrecipe.plan.graph import Graph
from trtrecipe.plan.machine import Machine
from trtrecipe.plan.reason import changes
from trtrecipe.plan.resolve import origins
from trtrecipe.run.build import Built, build
from trtrecipe.run.bundle import HostPart, documents, host_part
from trtrecipe.run.events import Listener
from trtrecipe.run.fleet import Fleet
from trtrecipe.store import devices as state
from trtrecipe.store.store import Store
from trtrecipe.targets.devices import Device, Seen, family, fingerprint, lacks

Json = dict[str, Any]


@dataclass(frozen=True)
class Given:
    """A result: what the command line calls it, the folder it is in, and its list."""

    name: str
    folder: Path
    content: Json


def read(path: Path, into: Path) -> Given:
    """A result folder or archive, the latter unpacked to `into`. Raises InputError."""
    from trtrecipe.device import results

    folder, content = results.read(path, into)
    return Given(str(path), folder.absolute(), content)


def targets_of(given: Sequence[Given]) -> list[str]:
    """The ids of the targets that results are for."""
    return list(dict.fromkeys(target for each in given for target in each.content["bundle"]["targets"]))


def import_results(
    graph: Graph,
    given: Sequence[Given],
    devices: Sequence[Device],
    store: Store,
    machine: Machine,
    jobs: int,
    output: Path,
    listener: Listener,
) -> Built:
    """Build `graph`, the targets of the results, by what these hold, and remember the devices that they show.

    `devices`: those of the inventory that they may be of. Raises InputError, StoreError.
    """
    known = _known(graph, given, devices)
    changed = tuple(sorted(_changed(graph, given, host_part(graph, store, machine, jobs, listener)).items()))
    seen = {device.name: Seen(time.time(), mine[0].content["probe"]) for device, mine in known.items()}
    ways = [
        replace(device, result=tuple(str(each.folder) for each in mine), changed=changed)
        for device, mine in known.items()
    ]
    built = build(graph, store, machine, jobs, output, listener, Fleet(ways, store.root, 0.0, seen=seen))
    for device in known:
        state.write(store.root, device.address, seen[device.name].at, seen[device.name].probe)
    return built


def _known(graph: Graph, given: Sequence[Given], devices: Sequence[Device]) -> dict[Device, list[Given]]:
    """The devices that results are of. Raises InputError for a result that is not of what its targets need."""
    [recipe] = graph.recipes
    found: dict[Device, list[Given]] = {}
    for each in given:
        bundle, probe = each.content["bundle"], each.content["probe"]
        if bundle["recipe"] != recipe.name:
            raise InputError.of(f"{each.name} is of the recipe {bundle['recipe']}, not of {recipe.name}")
        shows = fingerprint(probe)
        if shows is None:
            raise InputError.of(f"{each.name}: {'; '.join(lacks(probe))}")
        steps = (graph.steps[id] for plan in recipe.targets if plan.target.id in bundle["targets"] for id in plan.steps)
        for need in dict.fromkeys(step.device for step in steps if step.device is not None):
            if (bundle["profile"], family(shows.tensorrt)) != (need.profile, need.tensorrt):
                wants = f"a {need.profile} with TensorRT {need.tensorrt}"
                text = (
                    f"{each.name} is of a {bundle['profile']} with TensorRT {shows.tensorrt}; its target is for {wants}"
                )
                raise InputError.of(text, "make a bundle for the recipe as it is now")
            mine = found.setdefault(_stands_for(need, devices), [])
            if mine and fingerprint(mine[0].content["probe"]) != shows:
                text = f"{mine[0].name} and {each.name} are of devices that differ"
                raise InputError.of(text, "import one of them: an engine is for one kind of device")
            if each not in mine:
                mine.append(each)
    return found


def _stands_for(need: Need, devices: Sequence[Device]) -> Device:
    """The device that results of a need are of, where there is but one; else one that stands for whichever it was."""
    mine = [device for device in devices if device.profile == need.profile]
    return mine[0] if len(mine) == 1 else by_bundle(need)


def _changed(graph: Graph, given: Sequence[Given], here: HostPart) -> dict[str, str]:
    """Step → what is different now from when the bundle was made. Whether that matters, the step's jobs will tell: a
    step whose work is another now is refused here. Raises InputError."""
    names = {step.name: step for step in graph.steps.values()}
    found = {}
    for name, now in documents(graph, here).items():
        for each in given:
            before = each.content["bundle"]["steps"].get(name)
            if before is None or before == now:
                continue
            if before.get("version") != now["version"] or before.get("kind") != now["kind"]:
                text = f"{each.name} was made by another release of trtrecipe, whose {name} does other work"
                raise InputError.of(text, "make the bundle again, and run that")
            found[name] = printable("; ".join(reason.text for reason in changes(before, now, origins(names[name]))))
    return found
