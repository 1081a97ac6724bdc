"""inspect, for engines: who built them, and what can load them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trtrecipe.cli.placed import PlacedEngine, beside
from trtrecipe.cli.render import present, table
from trtrecipe.digest import sha256_file
from trtrecipe.targets.engines import LENGTH, Header, changed, header, is_fingerprint

_MANY = 12  # releases that a line names
RUNTIMES = {"host": "ONNX Runtime", "tflite": "LiteRT", "rtx": "TensorRT for RTX"}
_UNTOLD = "whether it is version or hardware compatible is not told by its header"


def header_of(file: Path) -> Header | None:
    """What a file's first bytes say of an engine in it."""
    with file.open("rb") as opened:
        return header(opened.read(LENGTH))


def show_engine(file: Path) -> tuple[dict[str, Any], list[str]]:
    """An engine by its header, by the manifest beside it, or by both."""
    head, engine = header_of(file), beside(file)
    described = {"header": _header(head, file), **engine_of(file, engine)}
    notes = described.pop("notes")
    size = file.stat().st_size
    if head is None:
        notes.append("its header is none that is known, as that of a plan of TensorRT 8 may be: the manifest tells")
    elif head.builder == "tensorrt" and engine is None:
        notes.append(_UNTOLD)
    if head is not None and head.why:
        notes.append(f"the header does not tell the release: {head.why}")
    if head is not None and head.length not in (None, size):
        notes.append(f"it has {size} bytes, and its header says {head.length}: it is damaged")
    loads = _loads(head, engine)
    described |= {"loads": loads, "notes": notes}
    return present(described), [*_lines(head, described), *_loads_lines(loads), *notes]


def engine_of(file: Path, engine: PlacedEngine | None) -> dict[str, Any]:
    """What the manifest beside a file says of it as an engine: "engine", and "notes"; no "engine" without one."""
    if engine is None:
        return {"engine": None, "notes": []}
    manifest = engine.manifest
    as_built = sha256_file(file) == engine.sha256
    notes = [] if as_built else ["it is not what the manifest beside it was written for: it was altered since"]
    told = {
        "as_built": as_built,
        "recipe": engine.recipe,
        "target": engine.target,
        "profile": manifest["profile"],
        "jetpack": manifest.get("jetpack"),
        "device": manifest.get("device"),
        "dialect": manifest.get("dialect"),
        "precision": manifest["precision"],
        "dla": manifest.get("dla"),
        "gates": manifest.get("gates"),
        "status": manifest.get("status"),
        "tools": manifest.get("tools"),
    }
    return {"engine": present(told), "notes": notes}


def engine_lines(described: dict[str, Any]) -> list[str]:
    """What `engine_of` found, for a person."""
    told = described.get("engine")
    if not told:
        return []
    precision = told["precision"]
    fallback = precision.get("fallback")
    ways = [precision["mode"], precision.get("quantization"), f"else {fallback}" if fallback else None]
    by = RUNTIMES.get(told["profile"])
    jetpack = f", JetPack {told['jetpack']}" if told.get("jetpack") else ""
    lines = [
        f"recipe {told['recipe']}, target {told['target']} ({told['profile']}{jetpack}{f', for {by}' if by else ''})",
        f"precision {', '.join(filter(None, ways))}",
    ]
    device = told.get("device")
    if is_fingerprint(device):
        lines.append(
            f"built on {device['model']}: TensorRT {device['tensorrt']}, L4T {device['l4t']}, CUDA {device['cuda']}, "
            f"trtexec {str(device['trtexec'])[:12]}"
        )
    if told.get("dla"):
        dla = told["dla"]
        lines.append(f"DLA core {dla['core']}: {len(dla['on_dla'])} parts on it, {len(dla['on_gpu'])} on the GPU")
    gates = [f"{gate['gate']} {gate['better']} {gate['limit']:g}: {gate['status']}" for gate in told.get("gates") or ()]
    return [*lines, f"gates: {', '.join(gates) or 'none'}"]


def _header(head: Header | None, file: Path) -> dict[str, Any] | None:
    if head is None:
        return None
    whole = None if head.length is None else head.length == file.stat().st_size
    return present({"builder": head.builder, "release": head.release, "whole": whole})


def _lines(head: Header | None, described: dict[str, Any]) -> list[str]:
    name = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT for RTX"}
    built = [f"built by {name[head.builder]} {head.release or '(release not told)'}"] if head is not None else []
    return [*built, *engine_lines(described)]


def _loads(head: Header | None, engine: PlacedEngine | None) -> list[dict[str, Any]]:
    """Which devices of the inventory, else which releases of the catalog, can load the engine, as far as is known."""
    built_on = engine.manifest.get("device") if engine is not None else None
    if head is not None and head.builder == "tensorrt-rtx":
        return []
    if built_on is not None and not is_fingerprint(built_on):
        return []  # a GPU of the machine that built it
    if not is_fingerprint(built_on) and (head is None or head.release is None):
        return []
    return [*_devices(head, engine, built_on), *_releases(head, built_on)]


def _devices(head: Header | None, engine: PlacedEngine | None, built_on: Any) -> list[dict[str, Any]]:
    from trtrecipe.cli.fleet import fleet_of
    from trtrecipe.cli.inventory import devices_here
    from trtrecipe.targets.devices import as_json, fingerprint

    devices = [each for each in devices_here() if engine is None or each.profile == engine.manifest["profile"]]
    fleet = fleet_of(devices) if devices else None
    found = []
    for device in devices:
        seen = fleet.seen(device) if fleet is not None else None
        now = as_json(fingerprint(seen.probe)) if seen is not None else None
        if now is None:
            loads, why = None, ["it was never looked at" if seen is None else "what it is was not told"]
        elif is_fingerprint(built_on):
            why = list(changed(built_on, now))
            loads = not why
        else:
            release = head.release if head is not None and head.release else ""
            same = release.split(".")[:3] == now["tensorrt"].split(".")[:3]
            loads = None if same else False
            why = ["its GPU may be another one"] if same else [f"tensorrt {release} -> {now['tensorrt']}"]
        found.append({"device": device.name, "loads": loads, "why": why})
    return found


def _releases(head: Header | None, built_on: Any) -> list[dict[str, Any]]:
    """Where no manifest names a device: the profiles whose TensorRT it is."""
    from trtrecipe.targets.catalog import load_catalog

    if is_fingerprint(built_on) or head is None or head.release is None:
        return []
    wanted = head.release.split(".")[:3]
    return [
        {"profile": f"{profile.id}@{release.jetpack}", "loads": None, "why": ["its TensorRT; the GPU is not told"]}
        for profile in load_catalog().profiles
        if profile.family == "jetson"
        for release in profile.releases
        if any(tensorrt.split(".")[:3] == wanted for tensorrt in release.tensorrt)
    ]


def _loads_lines(loads: list[dict[str, Any]]) -> list[str]:
    words = {True: "yes", False: "no", None: "not known"}
    rows = [(each["device"], words[each["loads"]], "; ".join(each["why"])) for each in loads if "device" in each]
    lines = ["", table(("DEVICE", "LOADS IT", "WHY"), rows), ""] if rows else []
    profiles = [each["profile"] for each in loads if "profile" in each]
    more = f" and {len(profiles) - _MANY} more" if len(profiles) > _MANY else ""
    return [*lines, f"its TensorRT is that of {', '.join(profiles[:_MANY])}{more}"] if profiles else lines
