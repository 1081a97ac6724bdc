"""The inventory's devices, for `trtrecipe devices`: what they show, when they showed it, and what is odd about it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from trtrecipe.cli.fleet import devices_for, fleet_of
from trtrecipe.cli.render import present, size, table
from trtrecipe.errors import InputError
from trtrecipe.targets.catalog import load_catalog
from trtrecipe.targets.devices import as_json, differences, fingerprint, lacks, release_of

if TYPE_CHECKING:
    from trtrecipe.targets.devices import Device, Seen

NEVER = "run `trtrecipe devices probe {name}`"


def devices_here() -> tuple[Device, ...]:
    """The devices of the inventory that counts in the current folder. Raises InputError."""
    return devices_for([Path.cwd()])


def named(name: str) -> Device | None:
    """The device of that name, None where the inventory has none. Raises InputError."""
    return next((device for device in devices_here() if device.name == name), None)


def _device(name: str) -> Device:
    """The device of that name. Raises InputError where the inventory has none."""
    device = named(name)
    if device is None:
        from trtrecipe.recipe.findings import nearest

        known = [each.name for each in devices_here()]
        meant = nearest(name, known)
        hint = f"did you mean {meant}?" if meant else f"there are: {', '.join(known)}" if known else None
        where = "the inventory" if known else "the inventory: no devices.yaml here, above or in your settings names any"
        raise InputError.of(f"no device is called {name} in {where}", hint)
    return device


def probed(name: str) -> dict[str, Any]:
    """Look at a device now; the document of it. Raises InputError, StepError, StoreError."""
    device = _device(name)
    if device.ssh is None:
        text = f"{name} has no ssh destination in the inventory, so nobody can look at it from here"
        raise InputError.of(text, "what it shows is remembered when `trtrecipe import-result` takes in what it made")
    return document(device, fleet_of([device]).look(device))


def cancelled(name: str) -> dict[str, Any]:
    """End what this user's builds run on a device; the document of it. Raises InputError, StepError."""
    from trtrecipe.run.fleet import cancel

    device = _device(name)
    if device.ssh is None:
        raise InputError.of(f"{name} is not reached over SSH", "end there what runs there")
    return {"schema": "trtrecipe/cancelled/v1", "device": name, "cancelled": cancel(device)}


def documents() -> list[dict[str, Any]]:
    """What was last seen of each device of the inventory."""
    devices = devices_here()
    if not devices:
        return []
    fleet = fleet_of(devices)
    return [document(device, fleet.seen(device)) for device in devices]


def document(device: Device, seen: Seen | None) -> dict[str, Any]:
    """A device and what is known of it, as plain data; without "probe" where it was never looked at."""
    described: dict[str, Any] = {
        "schema": "trtrecipe/probe/v1",
        "device": device.name,
        "profile": device.profile,
        "ssh": device.ssh,
        "exec": list(device.exec) or None,
        "labels": list(device.labels) or None,
    }
    if seen is not None:
        from datetime import datetime, timezone

        profile, _ = load_catalog().look_up(device.profile)
        release = release_of(profile, seen.probe)
        described |= {
            "at": datetime.fromtimestamp(seen.at, timezone.utc).isoformat(timespec="seconds"),
            "jetpack": release.jetpack if release else None,
            "fingerprint": as_json(fingerprint(seen.probe)),
            "problems": list(lacks(seen.probe)),
            "differences": list(differences(profile, seen.probe)),
            "probe": {name: value for name, value in seen.probe.items() if name not in ("cache", "packages")},
        }
    return present(described)


def print_list(found: list[dict[str, Any]]) -> None:
    """The inventory as a table."""
    headers = ("DEVICE", "PROFILE", "SSH", "LABELS", "JETPACK", "TENSORRT", "SEEN")
    rows = [
        (
            each["device"],
            each["profile"],
            each.get("ssh", "by bundle"),
            ", ".join(each.get("labels", ())),
            each.get("jetpack", ""),
            each.get("probe", {}).get("tensorrt") or "",
            each.get("at", "never"),
        )
        for each in found
    ]
    typer.echo(table(headers, rows))


def print_device(found: dict[str, Any]) -> None:
    """One device for a person."""
    typer.echo(f"{found['device']}: {found['profile']}{' at ' + found['ssh'] if 'ssh' in found else ', by bundle'}")
    probe = found.get("probe")
    if probe is None:
        first = NEVER.format(name=found["device"]) if "ssh" in found else "`trtrecipe import-result` will tell"
        typer.echo(f"  never looked at: {first}")
        return
    memory, power = probe["memory"], probe["power_mode"]
    trtexec = probe["trtexec"]
    facts = {
        "seen": found["at"],
        "model": probe["model"],
        "compatible": ", ".join(probe["compatible"]),
        "L4T": probe["l4t"],
        "JetPack": found.get("jetpack") or probe["jetpack"],
        "TensorRT": probe["tensorrt"],
        "CUDA": probe["cuda"],
        "trtexec": f"{trtexec['path']} ({trtexec['sha256'][:12]})" if trtexec else None,
        "memory": f"{size(memory['total'])}, {size(memory['available'] or 0)} free" if memory["total"] else None,
        "swap": f"{size(memory['swap_total'])}, {size(memory['swap_free'] or 0)} free"
        if memory["swap_total"]
        else None,
        "disk": f"{size(probe['disk']['free'])} free",
        "power mode": f"{power['id']} {power['name'] or ''}".strip() if power else None,
        "clocks": ", ".join(
            f"{name} {value['cur'] / 1e6:.0f} MHz" for name, value in probe["clocks"].items() if "cur" in value
        ),
        "Python": probe["python"],
    }
    for label, value in facts.items():
        typer.echo(f"  {label:<12}{value or 'not told'}")
    for problem in found["problems"]:
        typer.echo(f"  cannot build: {problem}")
    for difference in found["differences"]:
        typer.echo(f"  differs: {difference}")
