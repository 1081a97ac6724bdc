"""cache info and cache verify."""

from __future__ import annotations

import typer

from trtrecipe.cli.recipes import Json
from trtrecipe.cli.render import print_json, size, table

app = typer.Typer(rich_markup_mode=None)


@app.command("info")
def info(as_json: Json = False) -> None:
    """Show where the store is and how much it holds."""
    from trtrecipe.store.blobs import explain_oserror
    from trtrecipe.store.inspect import survey
    from trtrecipe.store.store import Store, default_root

    with Store(default_root()) as store:
        try:
            found = survey(store)
        except OSError as error:
            raise explain_oserror(error, store.root, "store") from error
    document = {
        "schema": "trtrecipe/cache-info/v1",
        "path": str(store.root),
        "blobs": found.blobs,
        "blob_bytes": found.blob_bytes,
        "records": found.records,
        "set_aside": found.set_aside,
        "free_bytes": found.free_bytes,
    }
    if as_json:
        print_json(document)
        return
    typer.echo(table(("STORE", str(store.root)), [
        ["results", f"{found.records} steps"],
        ["bytes", f"{size(found.blob_bytes)} in {found.blobs} files"],
        ["damaged, set aside", str(found.set_aside)],
        ["free on that disk", size(found.free_bytes)],
    ]))  # fmt: skip


@app.command("verify")
def verify(as_json: Json = False) -> int:
    """Hash everything in the store; set aside what is damaged, so that the next build makes it again."""
    from trtrecipe.store.blobs import explain_oserror
    from trtrecipe.store.inspect import verify_all
    from trtrecipe.store.store import Store, default_root

    with Store(default_root()) as store:
        try:
            checked, damaged = verify_all(store)
        except OSError as error:
            raise explain_oserror(error, store.root, "store") from error
    if as_json:
        print_json({
            "schema": "trtrecipe/cache-verify/v1",
            "path": str(store.root),
            "checked": checked,
            "damaged": [{"kind": item.kind, "name": item.name, "state": item.state} for item in damaged],
        })  # fmt: skip
    else:
        for item in damaged:
            typer.echo(f"{item.kind} {item.name}: {item.state}" + (f"; {item.kept}" if item.kept else ""))
        kept = sum(item.kept is not None for item in damaged)
        aside = f", set aside but for {kept}" if kept else ", set aside" if damaged else ""
        typer.echo(f"{checked} files hashed, {len(damaged)} damaged{aside}")
    return 1 if damaged else 0
