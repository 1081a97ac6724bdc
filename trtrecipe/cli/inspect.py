"""inspect: what is in a file, by its content and not by its name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from trtrecipe.cli.placed import beside
from trtrecipe.cli.recipes import Json
from trtrecipe.cli.render import print_json, short_path, size
from trtrecipe.errors import InputError, Problem, StepError
from trtrecipe.targets.engines import header

_LARGEST_JSON = 256 << 20
_LARGEST_GRAPH = 2 << 30  # of any protobuf file
_KNOWN = (
    "inspect shows models (ONNX, SavedModel, Keras, GraphDef, TFLite), engines, scales.json, manifest.json, "
    "calibration tables"
)
_OTHERS = (  # offset, bytes, what starts so
    (0, b"\x93NUMPY", "a NumPy array"),
    (0, b"\x1f\x8b", "a gzip file"),
    (0, b"\x7fELF", "a program or library"),
)


def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A model, an engine, scales, a manifest, …")],
    as_json: Json = False,
) -> None:
    """Show what is in a file: a model and which TensorRT releases take it, an engine and what can load it, scales, a
    manifest, a calibration table."""
    try:
        kind, show = _recognise(file)
        described, lines = show(file)
    except OSError as error:
        raise InputError([Problem(f"cannot be read: {error.strerror}", file=str(file))]) from None
    except StepError as error:
        raise InputError([Problem(error.message, file=str(file), hint=error.hint)]) from None
    except (KeyError, TypeError, AttributeError, ValueError):
        if beside(file) is None:
            raise
        message = "is an engine, and the manifest.json beside it is damaged"
        raise InputError([Problem(message, file=str(file), hint="build again")]) from None
    count = file.stat().st_size
    if as_json:
        document = {"schema": "trtrecipe/inspect/v1", "file": short_path(file), "kind": kind, "size": count}
        print_json(document | described)
        return
    typer.echo(f"{short_path(file)}: {kind.replace('_', ' ')}, {size(count)}")
    for line in lines:
        typer.echo(line)


Shown = tuple[dict[str, Any], list[str]]
"""What a kind adds to the document, and its lines for a person."""


def _recognise(file: Path) -> tuple[str, Callable[[Path], Shown]]:
    """The kind of file, and what shows it. Raises InputError with what is known of a file of no such kind."""
    if file.is_dir():
        return "saved_model", _model
    if file.exists() and not file.is_file():
        raise _unknown(file, "is no regular file")
    with file.open("rb") as opened:
        head = opened.read(64)
    if not head:
        raise _unknown(file, "is empty")
    if head.startswith(b"TRT-"):
        return "calibration_table", _table
    if header(head) is not None:
        return "engine", _engine
    for offset, magic, what in _OTHERS:
        if head[offset:].startswith(magic):
            raise _unknown(file, f"is {what}")
    if head.lstrip().startswith((b"{", b"[")):
        return _document(file)
    from trtrecipe.cli.inspect_models import format_of

    try:
        kind = format_of(file)
    except InputError:
        if beside(file) is None:
            raise
        return "engine", _engine  # of TensorRT 8, say, which the manifest alone knows
    show = _graph if kind == "onnx" else _model
    return kind, _built(show) if beside(file) is not None else show


def _engine(file: Path) -> Shown:
    from trtrecipe.cli.inspect_engine import show_engine

    return show_engine(file)


def _built(show: Callable[[Path], Shown]) -> Callable[[Path], Shown]:
    """A model that is an engine, too: of ONNX Runtime or TFLite, as the manifest beside it says."""

    def both(file: Path) -> Shown:
        from trtrecipe.cli.inspect_engine import engine_lines, engine_of

        described, lines = show(file)
        built = engine_of(file, beside(file))
        notes = [*described.get("notes", ()), *built["notes"]]
        described |= {"engine": built["engine"]} | ({"notes": notes} if notes else {})
        return described, [*engine_lines(built), *built["notes"], *lines]

    return both


def _model(file: Path) -> Shown:
    from trtrecipe.cli.inspect_models import show_model

    return show_model(file)


def _table(file: Path) -> Shown:
    from trtrecipe.cli.inspect_scales import show_table

    return show_table(file)


def _document(file: Path) -> tuple[str, Callable[[Path], Shown]]:
    """Which of our JSON documents it is."""
    if file.stat().st_size > _LARGEST_JSON:
        raise _unknown(file, f"starts like JSON, but has more than {_LARGEST_JSON >> 20} MiB")
    try:
        document = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        raise _unknown(file, "starts like JSON and is not") from None
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema == "trtrecipe/scales/v1":
        return "scales", _scales
    if schema == "trtrecipe/manifest/v1":
        return "manifest", lambda path: _manifest(path, document)
    named = f"is a JSON document with the schema {str(schema)[:80]!r}" if schema else "is a JSON document"
    raise _unknown(file, f"{named}, neither scales nor a manifest")


def _scales(file: Path) -> Shown:
    from trtrecipe.cli.inspect_scales import show_scales

    return show_scales(file)


def _manifest(file: Path, document: dict[str, Any]) -> Shown:
    from trtrecipe.cli.inspect_models import show_manifest

    return show_manifest(file, document)


def _graph(file: Path) -> Shown:
    from trtrecipe.cli.inspect_onnx import read, show_graph

    model = read(file) if file.stat().st_size <= _LARGEST_GRAPH else None
    if model is None:
        raise _unknown(file, "is neither of the kinds that are known by their first bytes nor an ONNX graph")
    return show_graph(model)


def _unknown(file: Path, what: str) -> InputError:
    return InputError([Problem(f"{what}: nothing to show", file=str(file), hint=_KNOWN)])
