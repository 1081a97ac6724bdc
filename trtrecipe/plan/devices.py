"""Which device a step runs on, as the planner sees it: what is needed, and what was found for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from trtrecipe.digest import sha256_json
from trtrecipe.targets.devices import Device, Fingerprint
from trtrecipe.targets.trtexec import record


@dataclass(frozen=True, slots=True)
class Need:
    """A device of the profile (its id) whose TensorRT is of that family, such as "8.5", with that DLA core, if any."""

    profile: str
    tensorrt: str
    dla_core: int | None = None


@dataclass(frozen=True, slots=True)
class Assigned:
    """What a need comes to.

    `fingerprint`: as last seen, None where no device that fits was ever seen. `problem`: why nothing can run there now.
    `settings`: what a measurement there depends on besides (`targets.devices.settings`).
    """

    device: Device | None
    fingerprint: Fingerprint | None
    problem: str | None
    settings: Mapping[str, Any] = field(default_factory=dict)


class Devices(Protocol):
    """Who knows the devices."""

    def assigned(self, need: Need) -> Assigned:
        """What there is for `need`; the same each time, unless a device is looked at again in between."""


PACK = "for one that SSH does not reach, `trtrecipe bundle` packs what it is to do"


class NoDevices:
    """Without an inventory."""

    def assigned(self, need: Need) -> Assigned:
        """Nothing."""
        return Assigned(None, None, missing(need))


def missing(need: Need) -> str:
    """What to say where the inventory names no device for a need."""
    return (
        f"needs a {need.profile}: no devices.yaml beside the recipe, above it or in the user's settings names one, and "
        f"nothing was imported from one; {PACK}"
    )


def by_bundle(need: Need) -> Device:
    """The device that stands for what was imported for a need, where the inventory names none without `ssh`."""
    return Device(f"{need.profile}:{need.tensorrt}", need.profile)


def in_key(found: Fingerprint) -> dict[str, Any]:
    """What of a device is in a step's key: its fingerprint, and what its trtexec is known to accept."""
    known = record(found.tensorrt)
    return {
        "model": found.model,
        "memory": found.memory,
        "l4t": found.l4t,
        "cuda": found.cuda,
        "tensorrt": found.tensorrt,
        "trtexec": found.trtexec,
        "accepts": sha256_json({"flags": known.flags, "values": known.values, "means": known.means}),
    }


def resource(assigned: Assigned) -> Mapping[str, Any]:
    """What a step is given of its device."""
    from dataclasses import asdict

    assert assigned.device is not None and assigned.fingerprint is not None
    return {
        "name": assigned.device.name,
        "address": assigned.device.address,
        "seconds": assigned.device.seconds,
        "fingerprint": asdict(assigned.fingerprint),
        "settings": dict(assigned.settings),
    }
