"""`docs/devices.md`: what people need to know of devices, and a table made from the package's own data.

Run as a program to write the table anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from trtrecipe.targets.catalog import Catalog, Profile, Release, load_catalog
from trtrecipe.targets.trtexec import record

PAGE = Path(__file__).parents[2] / "docs" / "devices.md"
BEGIN, END = "<!-- table: made by tests/support/devices_page.py -->", "<!-- end of table -->"


def table() -> str:
    """The part of the page between the marks."""
    catalog = load_catalog()
    releases = [(profile, release) for profile in _jetsons(catalog) for release in catalog.served(profile)]
    lines = [
        "| Profile | JetPack | L4T | TensorRT | Precisions | Opset | DLA cores | Typing | trtexec |",
        "|---|---|---|---|---|---|---|---|---|",
        *(_row(catalog, profile, release) for profile, release in releases),
        "",
        "Sources of each row are shown by `trtrecipe devices show PROFILE@JETPACK`. All of them:",
        "",
    ]
    return "\n".join([*lines, *(f"- {source}" for source in dict.fromkeys(_sources(catalog)))]) + "\n"


def _row(catalog: Catalog, profile: Profile, release: Release) -> str:
    dialect = catalog.dialect(profile, release)
    cores = {v.id: v.dla_cores if dialect.dla else 0 for v in profile.variants if v.id in release.variants}
    precisions = ", ".join(each for each in profile.precisions if each in dialect.precisions)
    opset = f"{dialect.opset_max} (assumed)" if dialect.assumed else str(dialect.opset_max)
    cells = (
        profile.id,
        release.jetpack,
        ", ".join(entry.version for entry in release.l4t),
        ", ".join(release.tensorrt),
        precisions,
        opset,
        " or ".join(str(count) for count in sorted(set(cores.values()))),
        "strong" if dialect.strongly_typed else "weak",
        f"as {record(release.tensorrt[-1]).tensorrt}",
    )
    return f"| {' | '.join(cells)} |"


def _jetsons(catalog: Catalog) -> list[Profile]:
    """The profiles with JetPack releases."""
    return [profile for profile in catalog.profiles if profile.family == "jetson"]


def _sources(catalog: Catalog) -> Iterator[str]:
    for profile in _jetsons(catalog):
        for release in catalog.served(profile):
            yield from profile.sources
            yield from release.sources
            yield from catalog.dialect(profile, release).sources
            yield from record(release.tensorrt[-1]).sources


def page(text: str) -> str:
    """`text` with the table that is right."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{table()}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
