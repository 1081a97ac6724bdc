"""inspect, for models that are not ONNX yet, and for manifests."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtrecipe.cli.render import present, size, table
from trtrecipe.errors import InputError, Problem, StepError

if TYPE_CHECKING:
    from trtrecipe.graphs.describe import Description
    from trtrecipe.graphs.interface import TensorSpec

_SHOWN = 40  # operators


def format_of(path: Path) -> str:
    """One of `formats.FORMATS`. Raises InputError for what is no model, OSError."""
    from trtrecipe import formats

    try:
        return formats.model_format(path)
    except formats.FormatError as error:
        raise _wrong(path, error.message, error.hint) from None


def read_model(path: Path) -> tuple[str, Description]:
    """The format and what the model says of itself. Raises InputError."""
    from trtrecipe.graphs.describe import describe

    try:
        kind = format_of(path)
        with _quiet():
            return kind, describe(path, kind)
    except StepError as error:
        raise _wrong(path, error.message, error.hint) from None
    except OSError as error:
        raise _wrong(path, f"cannot be read: {error.strerror}", None) from None


def _wrong(path: Path, message: str, hint: str | None) -> InputError:
    # The path stands in front of the message anyway.
    return InputError([Problem(message.removeprefix(f"{path} "), file=str(path), hint=hint)])


def show_model(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Signatures, operators and what else the model says. Raises InputError."""
    kind, found = read_model(path)
    described = present({
        "signatures": [
            present({
                "name": each.name or None,
                "tags": list(each.tags) or None,
                "inputs": [_tensor(spec) for spec in each.inputs],
                "outputs": [_tensor(spec) for spec in each.outputs],
            })
            for each in found.signatures
        ],
        "operators": dict(found.operators),
        "written_by": found.written_by,
        "carries_quantization": found.carries_quantization,
        "bytes": _bytes(path),
        "notes": list(found.notes),
    })  # fmt: skip
    lines = [f"{size(_bytes(path))}{f', written by {found.written_by}' if found.written_by else ''}"]
    for each in found.signatures:
        tags = f" [{', '.join(each.tags)}]" if each.tags else ""
        lines.append(f"signature {each.name}{tags}" if each.name else "the model")
        lines += [f"  input     {spec}" for spec in each.inputs]
        lines += [f"  output    {spec}" for spec in each.outputs]
    counts = [f"{name} {count}" for name, count in found.operators.items()]
    more = f" and {len(counts) - _SHOWN} more kinds" if len(counts) > _SHOWN else ""
    of_what = "layers" if kind in ("keras", "h5") else "operators"
    lines.append(f"{of_what}: {', '.join(counts[:_SHOWN]) or 'none'}{more}")
    if found.carries_quantization:
        lines.append("quantized: its own scales are kept with calibration: {model: true}")
    lines += found.notes
    lines.append("which devices take it is known once it is exported: trtrecipe init writes a recipe, build exports it")
    return described, lines


def show_manifest(path: Path, manifest: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """What a manifest.json says was built, and whether the files beside it are still those. Raises StepError."""
    from trtrecipe.digest import sha256_file

    try:
        rows = []
        for name, entry in manifest["artifacts"].items():
            file = path.parent / Path(entry["file"]).name
            state = "missing"
            if file.is_file():
                state = "as built" if sha256_file(file) == entry["sha256"] else "altered"
            rows.append([name, str(entry["file"]), size(int(entry["size"])), str(entry["sha256"])[:12], state])
        precision = manifest["precision"]["mode"]
        figures = [f"{name} {value}" for name, value in manifest["metrics"].items() if isinstance(value, int | float)]
        tools = [f"{tool} {version}" for tool, version in manifest["tools"].items()]
        gates = [f"{gate['gate']} {gate['better']} {gate['limit']:g}: {gate['status']}" for gate in manifest["gates"]]
        what = f"{manifest['recipe']} for {manifest['target']} ({manifest['dialect']})"
        head = f"{what}, {precision}, {manifest['status']}"
        lines = [head, "", table(("ARTIFACT", "FILE", "SIZE", "SHA-256", "STATE"), rows), ""]
        lines += [f"figures: {', '.join(figures) or 'none'}", f"gates: {', '.join(gates) or 'none'}"]
        lines += [f"tools: {', '.join(tools)}", *map(str, manifest["notes"])]
        states = {row[0]: row[4] for row in rows}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise StepError(f"the manifest is damaged: {type(error).__name__}: {error}", "build again") from None
    return {"manifest": manifest, "files": states}, lines


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)}


def _bytes(path: Path) -> int:
    """Of the file, or of all files of the folder."""
    if not path.is_dir():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file() and not file.is_symlink())


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what TensorFlow's C++ prints while it is imported off the terminal; an error carries its own words."""
    kept = os.dup(2)
    with tempfile.TemporaryFile() as sink:
        os.dup2(sink.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
