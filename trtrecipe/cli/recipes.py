"""validate, show and schema; and loading recipes for every other command."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trtrecipe.cli.render import print_json, said_once, short_path, table
from trtrecipe.errors import InputError, Problem

if TYPE_CHECKING:
    from trtrecipe.recipe.load import Loaded
    from trtrecipe.targets.spec import Target

Recipes = Annotated[list[Path], typer.Argument(help="Recipe files.", show_default=False)]
Targets = Annotated[
    list[str] | None, typer.Option("--target", "-t", help="Only this target; may be given again.", show_default=False)
]
Chosen = Annotated[
    list[str] | None,
    typer.Option(
        "--device",
        "-d",
        help="Only this device of the inventory, or with label=WORD those with that label; may be given again.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


def load_all(
    paths: Sequence[Path], only: Sequence[str] | None = None, devices: Sequence[str] = ()
) -> list[tuple[Loaded, list[Target]]]:
    """Every recipe with its targets. `devices`: which of the inventory may be used, where not all. Raises InputError
    with the problems of all, or an id in `only` that none has, or a device that is none."""
    from functools import partial

    from trtrecipe.cli.fleet import check_devices, shown_for
    from trtrecipe.recipe.files import check_files
    from trtrecipe.recipe.load import load
    from trtrecipe.recipe.rules import resolve_targets, target_findings
    from trtrecipe.targets.catalog import load_catalog

    check_devices(paths, devices)
    problems: list[Problem] = []
    found: list[tuple[Loaded, list[Target]]] = []
    catalog = load_catalog()
    for path in {path.resolve(): path for path in paths}.values():
        try:
            shown = shown_for(path, devices)
            loaded = load(path, also=partial(target_findings, shown=shown))
        except InputError as error:
            problems += error.problems
            continue
        targets, wrong = resolve_targets(loaded, catalog, shown)
        problems += [*wrong, *check_files(loaded)]
        for other, _ in found:
            if other.recipe.name == loaded.recipe.name:
                text = f"the recipe name {loaded.recipe.name} is taken by {other.path}"
                problems.append(loaded.problem(("name",), text, "names of recipes built together must differ"))
        found.append((loaded, targets))
    if problems:
        raise InputError(problems)
    _check_ids(found, only or ())
    return found


def _check_ids(found: list[tuple[Loaded, list[Target]]], only: Sequence[str]) -> None:
    from trtrecipe.recipe.findings import nearest

    known = [name for _, targets in found for name in _ids(targets)]
    for name in only:
        if name not in known:
            meant = nearest(name, known)
            hint = f"did you mean {meant}?" if meant else f"there are: {', '.join(known)}"
            raise InputError.of(f"no target has the id {name}", hint)


def validate(paths: Recipes, as_json: Json = False) -> None:
    """Check recipes without reading models or data."""
    found = load_all(paths)
    if as_json:
        recipes = [
            {"file": short_path(loaded.path), "recipe": loaded.recipe.name, "targets": _ids(targets)}
            for loaded, targets in found
        ]
        print_json({"schema": "trtrecipe/validate/v1", "recipes": recipes})
        return
    for loaded, targets in found:
        typer.echo(f"{short_path(loaded.path)}: valid, targets: {', '.join(_ids(targets))}")


def _ids(targets: Sequence[Target]) -> list[str]:
    return list(dict.fromkeys(target.id for target in targets))


def show(path: Annotated[Path, typer.Argument(help="Recipe file.", show_default=False)], as_json: Json = False) -> None:
    """Show a recipe with all defaults filled in, and what each target comes to."""
    [(loaded, targets)] = load_all([path])
    described = [_describe(target) for target in targets]
    recipe = loaded.recipe.model_dump(by_alias=True, exclude_none=True)
    if as_json:
        print_json({"schema": "trtrecipe/show/v1", "recipe": recipe, "targets": described})
        return
    import yaml

    typer.echo(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True).rstrip())
    typer.echo()
    columns = ("target", "profile", "jetpack", "dialect", "opset", "precision", "fallback")
    headers = ["RELEASE" if name == "jetpack" else name.upper() for name in columns]
    typer.echo(table(headers, [[str(row.get(name) or "") for name in columns] for row in described]))
    remarks = ((target.id, note) for target in targets for note in target.notes)
    for line in said_once(remarks, list(dict.fromkeys(target.id for target in targets))):
        typer.echo(line)


def _describe(target: Target) -> dict[str, Any]:
    described: dict[str, Any] = {
        "target": target.id,
        "profile": target.profile.id,
        "dialect": target.dialect.id,
        "opset": target.dialect.opset_max,
        "precision": target.mode,
        "notes": list(target.notes),
    }
    if target.release is not None:
        described["jetpack"] = target.release.jetpack
    if target.fallback is not None:
        described["fallback"] = target.fallback
    if target.quantization is not None:
        described["quantization"] = target.quantization
    return described


def schema() -> None:
    """Print the JSON Schema of recipes, for editors."""
    from trtrecipe.recipe.schema import text

    typer.echo(text(), nl=False)
