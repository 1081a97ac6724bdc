"""init: a commented recipe from what a model says of itself."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trtrecipe.cli.recipes import Json
from trtrecipe.cli.render import print_json, short_path
from trtrecipe.errors import InputError, Problem, StepError

if TYPE_CHECKING:
    from trtrecipe.graphs.describe import Description, Signature
    from trtrecipe.graphs.interface import TensorSpec

_NAME = re.compile(r"[^A-Za-z0-9._-]+")
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
_OPEN = "?"
_DATA = "{npz: data.npz, arrays: {%s}}"


def init(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model's file or folder.", show_default=False)],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The recipe to write; NAME.yaml when absent.")
    ] = None,
    signature: Annotated[str | None, typer.Option("--signature", help="The signature to build.")] = None,
    as_json: Json = False,
) -> None:
    """Write a commented recipe for a model: its inputs, open axes, and the targets that may take it."""
    from trtrecipe.cli.inspect_models import read_model
    from trtrecipe.graphs.describe import require_signature

    kind, described = read_model(model)
    try:
        chosen = require_signature(described, signature)
    except StepError as error:
        raise InputError([Problem(error.message, file=str(model), hint=error.hint)]) from None
    _require_elements(model, chosen)
    name = _NAME.sub("-", model.resolve().stem).strip("-._")[:64] or "model"
    target = output or Path(f"{name}.yaml")
    source = os.path.relpath(model.resolve(), target.resolve().parent)
    text = recipe_text(name, Path(source).as_posix(), kind, described, chosen)
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise InputError.of(f"{target} exists already", "name another file: --output FILE") from None
    except OSError as error:
        raise InputError.of(
            f"{target} cannot be written: {error.strerror}", "name another file: --output FILE"
        ) from None
    if as_json:
        print_json({"schema": "trtrecipe/init/v1", "recipe": short_path(target), "name": name, "format": kind})
        return
    typer.echo(f"{short_path(target)}: written; look through its comments, then: trtrecipe build {short_path(target)}")


def recipe_text(name: str, source: str, kind: str, described: Description, chosen: Signature) -> str:
    """The recipe as YAML with comments. It is valid as it stands, save for data that it does not name."""
    dims, inputs = _inputs(chosen.inputs)
    lines = [
        "schema: trtrecipe/v1",
        f"name: {_scalar(name)}",
        "model:",
        f"  source: {_scalar(source)}",
        f"  format: {kind}",
    ]
    if kind in ("saved_model", "tflite") and chosen.name:
        others = [each.name for each in described.signatures if each.name != chosen.name]
        also = f"   # also: {', '.join(others)}" if others else ""
        lines.append(f"  signature: {_scalar(chosen.name)}{also}")
    if chosen.tags and chosen.tags != ("serve",):
        lines.append(f"  tags: [{', '.join(map(_scalar, chosen.tags))}]")
    if kind == "frozen_graph":
        lines.append(f"  outputs: [{', '.join(_scalar(each.name) for each in chosen.outputs)}]   # keep those you want")
    if inputs:
        lines += ["  inputs:", *inputs]
    if dims:
        lines += ["  dims:   # one optimization profile: the smallest, the usual and the largest size", *dims]
    lines += [f"  # {line}" for line in _outputs(chosen)]
    lines += ["", *_precision(described, chosen), "", *_targets(described, kind)]
    return "\n".join(lines) + "\n"


def _require_elements(model: Path, chosen: Signature) -> None:
    """Refuse inputs with an axis of size 0, which no recipe can say. Raises InputError."""
    from trtrecipe.graphs.shapes import empty

    found = [empty(spec, spec.shape.index(0)) for spec in chosen.inputs if 0 in spec.shape]
    if found:
        raise InputError([Problem(message, file=str(model), hint=hint) for message, hint in found])


def _inputs(specs: tuple[TensorSpec, ...]) -> tuple[list[str], list[str]]:
    """Lines of model.dims and of model.inputs: open axes get names, the first of all inputs the same one."""
    dims: dict[str, str] = {}
    inputs = []
    for spec in specs:
        shape: list[str] = []
        for axis, size in enumerate(spec.shape):
            if isinstance(size, int):
                shape.append(str(size))
                continue
            name = size if size not in (_OPEN, "...") else "batch" if axis == 0 else f"{_word(spec.name)}_{axis}"
            name = _word(name)
            common = "{min: 1, opt: 1, max: 8}" if axis == 0 else "{min: 1, opt: 64, max: 256}   # a guess: set it"
            dims.setdefault(name, common)
            shape.append(name)
        known = "..." not in spec.shape
        said = (
            f"{{shape: [{', '.join(shape)}]}}" if known else "{shape: [batch]}   # its shape is not known: write it out"
        )
        inputs.append(f"    {_scalar(spec.name)}: {said}   # {spec.dtype}")
    return [f"    {name}: {span}" for name, span in dims.items()], inputs


def _outputs(chosen: Signature) -> list[str]:
    return [f"gives {spec}" for spec in chosen.outputs]


def _precision(described: Description, chosen: Signature) -> list[str]:
    arrays = ", ".join(f"{_scalar(spec.name)}: {_scalar(_word(spec.name))}" for spec in chosen.inputs) or "input: x"
    if described.carries_quantization:
        return [
            "precision:",
            "  mode: int8   # the model is quantized already: its own scales are kept",
            "  fallback: fp16",
            "calibration: {model: true}",
            "# evaluation:",
            f"#   data: {_DATA % f'{arrays}, label: y'}",
            "#   metric: top1",
            "# gates: {accuracy: {max_drop: 0.01}}",
        ]
    return [
        "precision:",
        "  mode: fp16   # fp32 | fp16 | int8; for int8 fill in what follows",
        "#  fallback: fp16   # precision of what is not quantized",
        "# calibration:   # a few hundred samples as the model meets them",
        f"#   data: {_DATA % arrays}   # or images, raw, csv, tfrecord, npy",
        "#   samples: 256",
        "# evaluation:   # other samples, with labels",
        f"#   data: {_DATA % f'{arrays}, label: y'}",
        "#   metric: top1",
        "# gates: {accuracy: {max_drop: 0.01}}",
    ]


def _targets(described: Description, kind: str) -> list[str]:
    """Targets that work anywhere, a TFLite file where TensorFlow can make one, and every Jetson, newest release first,
    that may take the model."""
    from trtrecipe.targets.catalog import load_catalog, operators

    catalog = load_catalog()
    lines = [
        "targets:",
        "  - host   # ONNX Runtime on this machine's CPU",
        "  - rtx    # TensorRT for RTX, no GPU needed",
        "  # - cuda   # TensorRT, on a machine with an NVIDIA GPU and the tensorrt package",
    ]
    if kind == "tflite":
        lines.append("  # - tflite   # the file as it is, run by LiteRT; takes the precision that the file has")
    elif kind != "onnx":
        lines.append("  # - tflite   # a TFLite file of the same model, run by LiteRT")
    for profile in catalog.profiles:
        if profile.family != "jetson":
            continue
        for release in reversed(profile.releases):
            spec = f"{profile.id}@{release.jetpack}"
            try:
                dialect = catalog.dialect(profile, release)
            except InputError:  # a release that is not served
                continue
            lacking = []
            if described.opset is not None and dialect.operators_from is not None:
                table = operators(dialect.operators_from)
                lacking = [name for name in described.operators if not table.get(name, False)]
            why = f"   # has no {', '.join(lacking[:3])}" if lacking else ""
            if described.carries_quantization and "int8" not in profile.precisions:
                why = "   # computes no INT8"
            lines.append(f"  # - {spec}{why}")
            break
    return lines


def _word(text: str) -> str:
    """As a dimension or array may be called."""
    return _NAME.sub("_", text).strip("._-")[:64] or "x"


def _scalar(text: Any) -> str:
    """Text as YAML reads it back: in quotes unless it is plain."""
    import json

    reserved = str(text).lower() in ("null", "true", "false", "yes", "no", "on", "off", "y", "n", "~")
    return str(text) if _PLAIN.fullmatch(str(text)) and not reserved else json.dumps(str(text), ensure_ascii=False)
