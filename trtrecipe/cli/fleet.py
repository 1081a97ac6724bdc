"""Finding the inventory for a command."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trtrecipe.errors import InputError

if TYPE_CHECKING:
    from trtrecipe.plan.graph import Graph
    from trtrecipe.recipe.rules import Shown
    from trtrecipe.run.fleet import Fleet
    from trtrecipe.targets.devices import Device


FILE = "devices.yaml"


def find(folder: Path) -> Path | None:
    """The inventory that counts in a folder: the nearest `devices.yaml` in it or above it, up to the top of a checkout,
    else that in the user's settings."""
    folder = folder.absolute()
    for each in (folder, *folder.parents):
        if os.path.isfile(each / FILE):  # noqa: PTH113 - as below
            return each / FILE
        if os.path.exists(each / ".git"):  # noqa: PTH110
            break
    settings = os.environ.get("XDG_CONFIG_HOME", "")
    base = Path(settings) if Path(settings).is_absolute() else Path(os.path.expanduser("~"), ".config")  # noqa: PTH111
    path = base / "trtrecipe" / FILE
    return path if os.path.isfile(path) else None  # noqa: PTH113 - it raises where a folder may not be looked into


LABEL = "label="


def devices_for(folders: Iterable[Path]) -> tuple[Device, ...]:
    """The devices of the inventories that count in these folders. Raises InputError."""
    paths = dict.fromkeys(path.resolve() for folder in folders if (path := find(folder)) is not None)
    if not paths:
        return ()
    from trtrecipe.recipe.inventory import load
    from trtrecipe.targets.catalog import load_catalog

    found: dict[str, tuple[Device, Path]] = {}
    for path in paths:
        for device in load(path, load_catalog()):
            other = found.setdefault(device.name, (device, path))
            if other[0] != device:
                text = f"the device {device.name} of {path} is another one in {other[1]}"
                raise InputError.of(text, "build these recipes one after the other, or rename it")
    return tuple(device for device, _ in found.values())


def is_chosen(device: Device, only: Sequence[str]) -> bool:
    """Whether a device is one of those that `only` says, by name or label=WORD; without words all are."""
    return not only or any(_is(device, word) for word in only)


def _is(device: Device, word: str) -> bool:
    """Whether a device is meant by its name, or by one of its labels."""
    return word.removeprefix(LABEL) in device.labels if word.startswith(LABEL) else word == device.name


def check_devices(paths: Sequence[Path], only: Sequence[str]) -> None:
    """Each word of `only` means a device of the recipes' inventories. Raises InputError."""
    if not only:
        return
    from trtrecipe.recipe.findings import nearest

    devices = devices_for(path.absolute().parent for path in paths)
    if not devices:
        raise InputError.of("--device: no devices.yaml beside the recipe, above it or in the user's settings")
    words = dict.fromkeys(device.name for device in devices)
    words |= dict.fromkeys(f"{LABEL}{label}" for device in devices for label in device.labels)
    for word in only:
        if word not in words:
            meant = nearest(word, list(words))
            hint = f"did you mean {meant}?" if meant else f"there are: {', '.join(words)}"
            raise InputError.of(f"--device {word}: no device of the inventory has that name or label", hint)


def fleet_for(graph: Graph, paths: Sequence[Path], only: Sequence[str] = ()) -> Fleet | None:
    """The devices for these recipes, of which `only` may choose; None where none of their steps needs one. Raises
    InputError."""
    if not any(step.device for step in graph.steps.values()):
        return None
    every = devices_for(path.absolute().parent for path in paths)
    return fleet_of(tuple(device for device in every if is_chosen(device, only)), only, every)


def fleet_of(devices: Sequence[Device], only: Sequence[str] = (), others: Sequence[Device] = ()) -> Fleet:
    """These devices, as they were last seen. `only`: the words that they were chosen by, from among `others`."""
    from trtrecipe.run.fleet import Fleet, age_from_environment
    from trtrecipe.store.store import default_root

    return Fleet(devices, default_root(), age_from_environment(), only=only, others=others)


def shown_for(path: Path, only: Sequence[str] = ()) -> Shown:
    """The JetPack release that the device of a profile last showed, by the inventory that counts for a recipe; of cuda
    the TensorRT release that is installed here."""

    def shown(profile_id: str) -> str | None:
        from trtrecipe.targets.catalog import load_catalog
        from trtrecipe.targets.devices import release_of

        if profile_id == "cuda":
            from trtrecipe.plan.tools import version

            installed = version("tensorrt")
            return installed and load_catalog().installed(load_catalog().look_up(profile_id)[0], installed)
        mine = [device for device in devices_for([path.absolute().parent]) if device.profile == profile_id]
        # Where none of them was chosen, what another made is served.
        mine = [device for device in mine if is_chosen(device, only)] or mine
        if not mine:
            return None
        fleet, (profile, _) = fleet_of(mine), load_catalog().look_up(profile_id)
        for device in mine:
            seen = fleet.seen(device)
            release = None if seen is None else release_of(profile, seen.probe)
            if release is not None:
                return release.jetpack
        return None

    return shown
