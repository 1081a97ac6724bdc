"""doctor --device: whether devices can build, and which engines in a folder of results they can no longer load."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from trtrecipe.cli.fleet import fleet_of
from trtrecipe.cli.inventory import devices_here
from trtrecipe.cli.placed import PlacedEngine, rebuild, under
from trtrecipe.cli.render import present, print_json, short_path, size, table
from trtrecipe.errors import InputError, StepError
from trtrecipe.targets.catalog import load_catalog
from trtrecipe.targets.devices import Device, Seen, as_json, differences, family, fingerprint, lacks
from trtrecipe.targets.engines import changed, is_fingerprint

ALL = "all"
LEAST_FREE = 1 << 30
SMALL = 6 << 30
"""Bytes of memory below which a device is better off with swap while it builds."""
_MARKS = {"ok": "ok", "info": "-", "bad": "BAD"}
UNREACHED = 5
BUNDLED = "not by SSH: as its bundles last showed it"


def doctor_devices(name: str, output: Path, as_json_: bool) -> int:
    """Look at a device, or at all; 1 where one is unfit or an engine is stale, else 5 where one could not be looked
    at, else 0. Raises InputError for a device that there is not, StoreError."""
    found = list(_look_at(_named(name), list(under(output)), output))
    if as_json_:
        print_json({"schema": "trtrecipe/doctor-device/v1", "devices": found})
    else:
        for each in found:
            _print(each)
    bad = any(check["status"] == "bad" for each in found for check in each["checks"])
    stale = any(engine["status"] == "stale" for each in found for engine in each["engines"])
    if bad or stale:
        return 1
    return 0 if all(each["reached"] for each in found) else UNREACHED


def _named(name: str) -> list[Device]:
    devices = devices_here()
    chosen = [device for device in devices if name in (ALL, device.name)]
    if not chosen:
        from trtrecipe.recipe.findings import nearest

        known = [device.name for device in devices]
        meant = nearest(name, known)
        hint = f"did you mean {meant}?" if meant else f"there are: {', '.join([*known, ALL])}" if known else None
        where = "the inventory" if known else "the inventory: no devices.yaml here, above or in your settings names any"
        raise InputError.of(f"no device is called {name} in {where}", hint)
    return chosen


def _look_at(devices: Sequence[Device], engines: Sequence[PlacedEngine], output: Path) -> Iterator[dict[str, Any]]:
    from concurrent.futures import ThreadPoolExecutor

    every = devices_here()
    fleet = fleet_of(every)

    def look(device: Device) -> tuple[Seen | None, str | None]:
        if device.ssh is None:
            return fleet.seen(device), BUNDLED
        try:
            return fleet.look(device), None
        except StepError as error:
            return fleet.seen(device), f"{error.message}{f'; {error.hint}' if error.hint else ''}"

    with ThreadPoolExecutor(16) as pool:
        looks = dict(zip(devices, pool.map(look, devices), strict=True))
    others = {device.name: as_json(fingerprint(seen.probe)) for device in every if (seen := fleet.seen(device))}
    for device in devices:
        seen, problem = looks[device]
        mine = [engine for engine in engines if engine.manifest["profile"] == device.profile]
        yield _document(device, seen, problem, mine, others, output)


def _document(
    device: Device,
    seen: Seen | None,
    problem: str | None,
    engines: Sequence[PlacedEngine],
    others: Mapping[str, Any],
    output: Path,
) -> dict[str, Any]:
    checks = [{"check": "reached", "status": "info" if problem else "ok", "found": problem or "yes"}]
    described: dict[str, Any] = {
        "device": device.name,
        "profile": device.profile,
        "reached": device.ssh is None or problem is None,
    }
    now = None
    if seen is not None:
        from datetime import datetime, timezone

        described["at"] = datetime.fromtimestamp(seen.at, timezone.utc).isoformat(timespec="seconds")
        checks += _checks(device, seen.probe)
        now = as_json(fingerprint(seen.probe))
    judged = [_judge(engine, device, now, others, output) for engine in engines]
    return described | {"checks": checks, "engines": [each for each in judged if each is not None]}


def _checks(device: Device, probe: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What of a device keeps it from building, or makes its figures hard to compare."""
    missing = list(lacks(probe))
    trtexec, memory = probe["trtexec"], probe["memory"]
    shown = f"TensorRT {probe['tensorrt']}, L4T {probe['l4t']}, CUDA {probe['cuda']}"
    where = trtexec["path"] if trtexec else "none"
    yield present({
        "check": "tensorrt", "status": "bad" if missing else "ok", "found": f"{shown}, trtexec {where}",
        "hint": "; ".join(missing) or None,
    })  # fmt: skip
    profile, _ = load_catalog().look_up(device.profile)
    for difference in differences(profile, probe):
        yield {"check": "profile", "status": "info", "found": difference}
    free = probe["disk"]["free"]
    little = free < LEAST_FREE
    yield present({
        "check": "disk", "status": "bad" if little else "ok", "found": f"{size(free)} free",
        "hint": f"builds want {size(LEAST_FREE)} at least: free some" if little else None,
    })  # fmt: skip
    if memory["total"]:
        without = memory["total"] < SMALL and not memory["swap_total"]
        yield present({
            "check": "memory", "status": "bad" if without else "ok",
            "found": f"{size(memory['total'])}, {size(memory['swap_total'] or 0)} of swap",
            "hint": "a build may be killed for memory: add swap" if without else None,
        })  # fmt: skip
    yield from _speed(probe)


def _speed(probe: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    power = probe["power_mode"]
    if power is not None:
        name = power["name"] or "of no known name"
        full = name.startswith("MAXN")
        hint = None if full else "benchmarks are of this mode; MAXN is the one without a limit"
        found = f"{power['id']} {name}"
        yield present({"check": "power mode", "status": "ok" if full else "info", "found": found, "hint": hint})
    moving = [name for name, clock in probe["clocks"].items() if clock.get("min") != clock.get("max")]
    if probe["clocks"]:
        found = f"{', '.join(moving)} not pinned" if moving else "pinned"
        hint = "latencies vary more than they need to" if moving else None
        yield present({"check": "clocks", "status": "info" if moving else "ok", "found": found, "hint": hint})


def _judge(
    engine: PlacedEngine, device: Device, now: Mapping[str, Any] | None, others: Mapping[str, Any], output: Path
) -> dict[str, Any] | None:
    """Whether the device can load an engine: "loads", "stale", "elsewhere" (it is another device's), "unknown"."""
    built_on = engine.manifest.get("device")
    if not is_fingerprint(built_on):
        return None
    told = {"recipe": engine.recipe, "target": engine.target, "path": short_path(engine.path)}
    if now is None:
        return told | {"status": "unknown", "changed": []}
    why = list(changed(built_on, now))
    if not why:
        return told | {"status": "loads", "changed": []}
    there = [name for name, other in others.items() if name != device.name and other == built_on]
    if there:
        return told | {"status": "elsewhere", "changed": why, "loads_on": there}
    command = rebuild(engine, output)
    return told | {"status": "stale", "changed": why, "rebuild": command} | _other_release(engine, built_on, now)


def _other_release(engine: PlacedEngine, built_on: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """What has to change first where the target names a release whose TensorRT the device no longer has."""
    if family(str(built_on["tensorrt"])) == family(str(now["tensorrt"])):
        return {}
    profile, _ = load_catalog().look_up(str(engine.manifest["profile"]))
    served = [
        release.jetpack
        for release in load_catalog().served(profile)
        if now["l4t"] in (entry.version for entry in release.l4t)
    ]
    better = f"{profile.id}@{served[0]}" if served else "the release that it shows now"
    return {"first": f"name {better} in the recipe, where it is a target of TensorRT {built_on['tensorrt']}"}


def _status(engine: Mapping[str, Any]) -> str:
    return f"loads on {', '.join(engine['loads_on'])}" if "loads_on" in engine else str(engine["status"])


def _print(found: Mapping[str, Any]) -> None:
    seen = f", seen {found['at']}" if "at" in found else ""
    typer.echo(f"{found['device']}: {found['profile']}{seen}")
    rows = [(each["check"], _MARKS[each["status"]], each["found"], each.get("hint", "")) for each in found["checks"]]
    typer.echo(table(("CHECK", "", "FOUND", "HINT"), rows))
    if found["engines"]:
        lines = [(each["path"], _status(each), "; ".join(each["changed"])) for each in found["engines"]]
        typer.echo(table(("ENGINE", "STATUS", "CHANGED"), lines))
    for each in found["engines"]:
        if "first" in each:
            typer.echo(f"{each['target']}: {each['first']}")
        if "rebuild" in each:
            typer.echo(f"{each['target']}: {each['rebuild']}")
    typer.echo("")
