"""The devices of an inventory during one command: what was last seen of them, and looking at them again.

A device that was looked at within TRTRECIPE_PROBE_AGE seconds (600 unless set) is taken as it was, unless something is
to run on it. One that cannot be reached is taken as it was last seen, which serves finished work; so is one that only
bundles reach, whose results were imported.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from trtrecipe.device.forms import PROBE, misshapen
from trtrecipe.errors import InputError, StepError
from trtrecipe.plan.devices import PACK, Assigned, Need, by_bundle, missing
from trtrecipe.store import devices as state
from trtrecipe.targets.catalog import load_catalog
from trtrecipe.targets.devices import Device, Fingerprint, Seen, dla_cores, family, fingerprint, lacks, settings

AGE = "TRTRECIPE_PROBE_AGE"
DEFAULT_AGE = 600.0
AT_ONCE = 16

Probe = Callable[[Device], dict[str, Any]]


def probe(device: Device) -> dict[str, Any]:
    """Look at a device. Raises StepError, of which Unreachable is one."""
    from trtrecipe.device.jobs import again
    from trtrecipe.device.link import connect

    with connect(device.address) as link:
        answer = again(lambda: link.ask({"op": "probe"}), lambda text: None)
    answer.pop("event")
    return answer


def cancel(device: Device) -> Any:
    """End what this user's builds run on a device; what the agent tells of that. Raises StepError."""
    from trtrecipe.device.link import connect

    with connect(device.address) as link:
        return link.ask({"op": "cancel"})["cancelled"]


def age_from_environment() -> float:
    """How old a look may be, in seconds. Raises InputError."""
    text = os.environ.get(AGE, "")
    try:
        age = float(text) if text else DEFAULT_AGE
    except ValueError:
        age = -1.0
    if not age >= 0:
        raise InputError.of(f"{AGE} is {text!r}, which is no number of seconds", "set it to 0 to look every time")
    return age


class Fleet:
    """`plan.devices.Devices` of an inventory."""

    def __init__(
        self,
        devices: Sequence[Device],
        root: Path,
        age: float,
        look: Probe = probe,
        seen: Mapping[str, Seen] = MappingProxyType({}),
        only: Sequence[str] = (),
        others: Sequence[Device] = (),
    ) -> None:
        """`seen`: what this command knows of devices, by name, without looking at them. `only`: the words that the
        devices were chosen by, where they were, from among `others` too, whose finished work is served."""
        self._devices, self._root, self._age, self._look = tuple(devices), root, age, look
        self._only, self._others = ", ".join(only), tuple(others)
        self._seen: dict[str, Seen | None] = dict(seen)
        self._fresh: set[str] = set(seen)
        """Names of devices that this command has looked at."""
        self._problems: dict[str, str] = {}

    def assigned(self, need: Need) -> Assigned:
        """The first device that fits and can be had, else one that was seen to fit; by what is known now."""
        mine = self._candidates(need)
        if not mine and self._only:
            return self._passed_over(need)
        if not mine:
            return Assigned(None, None, missing(need))
        judged = [(device, *self._judge(device, need)) for device in mine]
        best = [one for one in judged if one[1] is not None and one[2] is None]
        # Of those out of reach the one last heard of: what was imported from it is what there is.
        best += sorted((one for one in judged if one[1] is not None), key=lambda one: -self._at(one[0]))
        if best:
            seen = self.seen(best[0][0])
            return Assigned(*best[0], settings(seen.probe) if seen is not None else {})
        problems = [problem for _, _, problem in judged if problem]
        return Assigned(None, None, "; ".join(problems) or f"{mine[0].name} was never looked at")

    def _passed_over(self, need: Need) -> Assigned:
        """A device that was not chosen, as it was last seen: what it made stays, and nothing runs there."""
        text = f"needs a {need.profile}, and --device {self._only} is none"
        devices = [device for device in self._others if device.profile == need.profile] + [by_bundle(need)]
        for device in sorted(devices, key=self._at, reverse=True):
            seen = self.seen(device)
            found = None if seen is None else self._judge(device, need)[0]
            if seen is not None and found is not None:
                return Assigned(device, found, text, settings(seen.probe))
        return Assigned(None, None, text)

    def settle(self, needs: Iterable[Need]) -> None:
        """Look at devices until each need has one or none is left; those seen lately are taken as they were."""
        wanted = list(dict.fromkeys(needs))
        with ThreadPoolExecutor(AT_ONCE) as pool:
            while True:
                waiting = [device for need in wanted if (device := self._next(need)) is not None]
                if not waiting:
                    return
                list(pool.map(self._look_at, dict.fromkeys(waiting)))

    def confirm(self, needs: Iterable[Need]) -> bool:
        """Look at the devices that would run something, if that was not done yet; whether any was looked at."""
        before = len(self._fresh)
        wanted = list(dict.fromkeys(needs))
        devices = [device for need in wanted if (device := self.assigned(need).device) is not None]
        devices = [device for device in dict.fromkeys(devices) if device in self._devices and not _is_bundled(device)]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            unseen = (device for device in devices if device.name not in self._fresh)
            list(pool.map(self._look_at, unseen))
        self.settle(wanted)
        return len(self._fresh) > before

    def seen(self, device: Device) -> Seen | None:
        """What is known of a device, from this command or an earlier one."""
        if device.name not in self._seen:
            kept = state.read(self._root, device.address)
            whole = kept is not None and not any(misshapen(kept[1], PROBE))
            self._seen[device.name] = Seen(*kept) if kept is not None and whole else None
        return self._seen[device.name]

    def look(self, device: Device) -> Seen:
        """Look at a device now, and remember it. Raises StepError, StoreError."""
        found = Seen(time.time(), self._look(device))
        state.write(self._root, device.address, found.at, found.probe)
        self._seen[device.name] = found
        return found

    def _candidates(self, need: Need) -> list[Device]:
        """Devices of the profile: those last seen to fit first, then those never seen, in the inventory's order."""
        mine = [device for device in self._devices if device.profile == need.profile]
        if not self._only and self.seen(imported := by_bundle(need)) is not None:
            mine.append(imported)
        return sorted(mine, key=lambda device: self._rank(device, need))

    def _rank(self, device: Device, need: Need) -> int:
        seen = self.seen(device)
        if seen is None:
            return 1
        found = fingerprint(seen.probe)
        return 0 if found is not None and family(found.tensorrt) == need.tensorrt else 2

    def _next(self, need: Need) -> Device | None:
        """The device to look at next for a need, None where that is settled."""
        for device in self._candidates(need):
            if not self._is_recent(device):
                return device
            found, problem = self._judge(device, need)
            if found is not None and problem is None:
                return None
        return None

    def _at(self, device: Device) -> float:
        seen = self.seen(device)
        return 0.0 if seen is None else seen.at

    def _is_recent(self, device: Device) -> bool:
        if device.name in self._fresh or _is_bundled(device):
            return True
        seen = self.seen(device)
        return seen is not None and 0 <= time.time() - seen.at < self._age

    def _look_at(self, device: Device) -> None:
        self._fresh.add(device.name)
        try:
            self.look(device)
        except StepError as error:
            self._problems[device.name] = f"{error.message}{f'; {error.hint}' if error.hint else ''}"

    def _judge(self, device: Device, need: Need) -> tuple[Fingerprint | None, str | None]:
        """The fingerprint where it fits, and what keeps work from running there now."""
        seen = self.seen(device)
        away = self._problems.get(device.name)
        if away is not None:
            away = f"{device.name} cannot be used now: {away}; {PACK}"
        elif _is_bundled(device):
            away = f"{device.name} is not reached over SSH: `trtrecipe bundle` packs what it is to do"
        if seen is None:
            return None, away
        found = fingerprint(seen.probe)
        if found is None:
            return None, f"{device.name}: {'; '.join(lacks(seen.probe))}"
        if family(found.tensorrt) != need.tensorrt:
            shows = f"{device.name} shows TensorRT {found.tensorrt}, L4T {found.l4t}"
            text = f"{shows}; this target is for TensorRT {need.tensorrt}: name the device's JetPack release"
            return None, text + (f"; {away}" if away else "")
        if need.dla_core is not None:
            profile, _ = load_catalog().look_up(need.profile)
            cores = dla_cores(profile, found.memory)
            if cores is not None and cores <= need.dla_core:
                return None, f"{device.name} has {cores} DLA cores, so no core {need.dla_core}"
        if away is not None:
            away += f"; last seen {when(seen.at)} with TensorRT {found.tensorrt}, L4T {found.l4t}"
        return found, away


def _is_bundled(device: Device) -> bool:
    """Whether nothing but a bundle gets there."""
    return device.ssh is None and not device.result


def when(at: float) -> str:
    """A time for people, in the local zone."""
    return datetime.fromtimestamp(at).astimezone().isoformat(sep=" ", timespec="minutes")
