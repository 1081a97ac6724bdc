"""`trtrecipe devices`: the device types that recipes can name, and what each release of theirs accepts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any

import typer

from trtrecipe.cli.recipes import Json
from trtrecipe.cli.render import KEY_PREFIX, present, print_json, table
from trtrecipe.targets.catalog import Catalog, Dialect, Profile, Release, dla_cores, load_catalog

app = typer.Typer(help="The devices that recipes can name.")

Spec = Annotated[str, typer.Argument(metavar="PROFILE[@JETPACK] or DEVICE", show_default=False)]


@app.command("list")
def list_devices(as_json: Json = False) -> None:
    """List the device profiles and their releases, and the devices of the inventory."""
    from trtrecipe.cli import inventory

    catalog, here = load_catalog(), inventory.documents()
    if as_json:
        devices = [_summary(catalog, profile) for profile in catalog.profiles]
        print_json(present({"schema": "trtrecipe/devices/v1", "devices": devices, "inventory": here or None}))
        return
    rows = [
        (
            profile.id,
            ", ".join(profile.compute_capabilities) or "-",
            ", ".join(profile.precisions),
            _dla(profile),
            _span(catalog.served(profile)),
        )
        for profile in catalog.profiles
    ]
    typer.echo(table(("PROFILE", "COMPUTE CAPABILITY", "PRECISIONS", "DLA CORES", "RELEASES"), rows))
    if here:
        typer.echo("")
        inventory.print_list(here)


@app.command("probe")
def probe_device(
    name: Annotated[str, typer.Argument(metavar="DEVICE", show_default=False)], as_json: Json = False
) -> None:
    """Look at a device of the inventory now, remember what it shows, and compare that with its profile."""
    from trtrecipe.cli import inventory

    document = inventory.probed(name)
    if as_json:
        print_json(document)
    else:
        inventory.print_device(document)


@app.command("cancel")
def cancel(name: Annotated[str, typer.Argument(metavar="DEVICE", show_default=False)], as_json: Json = False) -> None:
    """End what your builds run on a device of the inventory. A build that waits for it fails; another begins anew."""
    from trtrecipe.cli import inventory

    document = inventory.cancelled(name)
    if as_json:
        print_json(document)
        return
    for job in document["cancelled"]:
        typer.echo(f"{name}: ended {job['key'][:KEY_PREFIX]}, begun {job['seconds']} s ago")
    if not document["cancelled"]:
        typer.echo(f"{name}: nothing of yours runs there")


@app.command("show")
def show_device(spec: Spec, as_json: Json = False) -> None:
    """Show one profile, or one release of it: what it accepts, and the sources of each statement. A device of the
    inventory is shown as it was last seen."""
    from trtrecipe.cli import inventory
    from trtrecipe.cli.fleet import fleet_of

    device = inventory.named(spec)
    if device is not None:
        found = inventory.document(device, fleet_of([device]).seen(device))
        if as_json:
            print_json(found)
        else:
            inventory.print_device(found)
        return
    catalog = load_catalog()
    profile, release = catalog.look_up(spec)
    document = _device(catalog, profile, release)
    if as_json:
        print_json(document)
    else:
        _print_device(document)


def _summary(catalog: Catalog, profile: Profile) -> dict[str, Any]:
    return {
        "profile": profile.id,
        "name": profile.name,
        "family": profile.family,
        "compute_capabilities": list(profile.compute_capabilities),
        "precisions": list(profile.precisions),
        "dla_cores": {variant.id: variant.dla_cores for variant in profile.variants},
        "releases": [release.jetpack for release in catalog.served(profile)],
    }


def _device(catalog: Catalog, profile: Profile, only: Release | None) -> dict[str, Any]:
    """The trtrecipe/device/v1 document, with one release or all of them."""
    document: dict[str, Any] = {
        "schema": "trtrecipe/device/v1",
        "profile": profile.id,
        "name": profile.name,
        "family": profile.family,
        "gpu": profile.gpu,
        "compute_capabilities": list(profile.compute_capabilities),
        "precisions": list(profile.precisions),
        "fallbacks": list(profile.fallbacks),
        "builder": profile.builder,
        "variants": [
            {
                "id": variant.id,
                "name": variant.name,
                "memory_gb": list(variant.memory_gb),
                "dla_cores": variant.dla_cores,
                "modules": list(variant.modules),
            }
            for variant in profile.variants
        ],
        "notes": [*profile.notes, *(f"{name}: {note}" for name, note in profile.precision_notes.items())],
        "sources": list(profile.sources),
    }
    if profile.releases:
        releases = profile.releases if only is None else (only,)
        return document | {"releases": [_release(catalog, profile, release) for release in releases]}
    return document | {"accepts": _accepts(profile, catalog.dialect(profile, None))}


def _release(catalog: Catalog, profile: Profile, release: Release) -> dict[str, Any]:
    reason = catalog.refusal(release)
    dialect = None if reason else catalog.dialect(profile, release)
    return {
        "jetpack": release.jetpack,
        "status": release.status,
        "l4t": [{"version": entry.version, "tensorrt": entry.tensorrt} for entry in release.l4t],
        "cuda": release.cuda,
        "python": release.python,
        "refused": reason,
        "accepts": dialect and _accepts(profile, dialect),
        "dla_cores": dialect and dla_cores(profile, release, dialect),
        "notes": list(release.notes),
        "sources": list(release.sources),
    }


def _accepts(profile: Profile, dialect: Dialect) -> dict[str, Any]:
    return {
        "dialect": dialect.id,
        "opset_max": dialect.opset_max,
        "operators_from": dialect.operators_from,
        "assumed": dialect.assumed,
        "strongly_typed": dialect.strongly_typed,
        "precisions": [precision for precision in profile.precisions if precision in dialect.precisions],
        "workspace": dialect.workspace,
        "notes": list(dialect.notes),
        "sources": list(dialect.sources),
    }


def _dla(profile: Profile) -> str:
    counts = sorted({variant.dla_cores for variant in profile.variants})
    return " or ".join(map(str, counts)) or "-"


def _span(releases: Sequence[Release]) -> str:
    return f"{releases[0].jetpack} to {releases[-1].jetpack}" if releases else "-"


def _print_device(document: dict[str, Any]) -> None:
    typer.echo(f"{document['profile']}: {document['name']}")
    facts = {
        "GPU": document["gpu"] or "none",
        "compute capability": ", ".join(document["compute_capabilities"]) or "-",
        "precisions": ", ".join(document["precisions"]),
        "beside int8": ", ".join(document["fallbacks"]),
        "engines made by": document["builder"],
    }
    for label, value in facts.items():
        typer.echo(f"  {label:<20}{value}")
    for variant in document["variants"]:
        memory = "/".join(map(str, variant["memory_gb"]))
        typer.echo(f"  {'variant':<20}{variant['name']}: {memory} GB, {variant['dla_cores']} DLA cores")
    releases = document.get("releases", [])
    if releases:
        typer.echo("")
        columns = ("RELEASE", "TENSORRT", "DIALECT", "OPSET", "PRECISIONS", "TYPING", "OPERATORS", "DLA CORES")
        typer.echo(table(columns, [_row(release) for release in releases]))
    else:
        accepts = document["accepts"]
        typer.echo(f"  {'dialect':<20}{accepts['dialect']}, {_opset(accepts)}")
        typer.echo(f"  {'operators':<20}{_operators(accepts)}")
    _print_list("Notes", _notes(document))
    _print_list("Sources", _sources(document))
    if len(releases) > 1:
        newest = next((release for release in reversed(releases) if release["accepts"]), releases[-1])
        example = f"{document['profile']}@{newest['jetpack']}"
        typer.echo(f"\n`trtrecipe devices show {example}` adds the sources of that release.")


def _row(release: dict[str, Any]) -> tuple[str, ...]:
    # A release of the tensorrt package is itself the version.
    versions = dict.fromkeys([entry["tensorrt"] or "unknown" for entry in release["l4t"]] or [release["jetpack"]])
    if len(versions) > 1:
        tensorrt = ", ".join(f"{entry['tensorrt'] or 'unknown'} ({entry['version']})" for entry in release["l4t"])
    else:
        tensorrt = next(iter(versions))
    accepts = release["accepts"]
    if accepts is None:
        return (release["jetpack"], tensorrt, "refused", "-", "-", "-", "-", "-")
    return (
        release["jetpack"],
        tensorrt,
        accepts["dialect"],
        str(accepts["opset_max"]),
        ", ".join(accepts["precisions"]),
        _typing(accepts),
        _operators(accepts),
        " or ".join(map(str, sorted(set(release["dla_cores"].values())))),
    )


def _opset(accepts: dict[str, Any]) -> str:
    if accepts["opset_max"] is None:
        return "made of the source model, not of ONNX"
    return f"opset up to {accepts['opset_max']}, {_typing(accepts)} typing"


def _typing(accepts: dict[str, Any]) -> str:
    return "strong" if accepts["strongly_typed"] else "weak"


def _operators(accepts: dict[str, Any]) -> str:
    table = accepts["operators_from"]
    if table is None:
        return "no table, the builder is asked"
    return f"{table}, assumed" if accepts["assumed"] else str(table)


def _notes(document: dict[str, Any]) -> Iterator[str]:
    """Notes of the profile, then of its releases and dialects, each with what it belongs to."""
    yield from document["notes"]
    yield from document.get("accepts", {}).get("notes", ())
    for release in document.get("releases", ()):
        yield from (f"JetPack {release['jetpack']}: {note}" for note in release["notes"])
        if release["refused"]:
            yield f"JetPack {release['jetpack']} is refused: {release['refused']}"
    for accepts in (release["accepts"] for release in document.get("releases", ()) if release["accepts"]):
        yield from (f"{accepts['dialect']}: {note}" for note in accepts["notes"])


def _sources(document: dict[str, Any]) -> Iterator[str]:
    """Sources of the profile and, where one release or none is shown, of that and its dialect."""
    yield from document["sources"]
    yield from document.get("accepts", {}).get("sources", ())
    releases = document.get("releases", ())
    if len(releases) == 1:
        yield from releases[0]["sources"]
        yield from (releases[0]["accepts"] or {}).get("sources", ())


def _print_list(title: str, lines: Iterable[str]) -> None:
    unique = list(dict.fromkeys(lines))
    if unique:
        typer.echo(f"\n{title}:")
    for line in unique:
        typer.echo(f"  - {line}")
