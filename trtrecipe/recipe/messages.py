"""pydantic's errors in a person's words."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, Tag, ValidationError

from trtrecipe.recipe.document import MAX_PROBLEMS, Document
from trtrecipe.recipe.findings import Finding, dotted, listed, nearest, short
from trtrecipe.recipe.model import Recipe

EXAMPLES = {
    "schema": "schema: trtrecipe/v1",
    "name": "name: digits",
    "model": "model: {source: PATH}",
    "source": "source: PATH",
    "precision": "precision: {mode: fp16}",
    "mode": "mode: fp16",
    "targets": "targets: [host]",
    "profile": "profile: host",
    "devices": "devices: {NAME: {profile: jetson-orin-nx, ssh: USER@HOST}}",
    "ssh": "ssh: USER@HOST",
    "data": "data: {npz: FILE, arrays: {INPUT: ARRAY}}",
    "arrays": "arrays: {INPUT: ARRAY}",
    "npz": "npz: FILE",
    "npy": "npy: {INPUT: FILE}",
    "images": "images: photos/*.jpg",
    "raw": "raw: {INPUT: values/*.bin}",
    "tfrecord": "tfrecord: data/*.tfrecord",
    "features": "features: {INPUT: FEATURE}",
    "csv": "csv: FILE",
    "columns": "columns: {INPUT: COLUMN}",
    "dims": "dims: {batch: {min: 1, opt: 8, max: 32}}",
    "min": "min: 1",
    "opt": "opt: 8",
    "max": "max: 32",
    "scale": "scale: 0.0625",
    "layers": "layers: logits",
    "operators": "operators: [Softmax]",
    "between": "between: [FROM, TO]",
    "resize": "resize: [224, 224]",
    "crop": "crop: [224, 224]",
    "colour": "colour: bgr",
    "layout": "layout: nchw",
    "cast": "cast: float32",
    "normalize": "normalize: {mean: [0.5], std: [0.5]}",
    "mean": "mean: [0.5]",
    "std": "std: [0.5]",
    "core": "core: 0",
}
"""How each required key may look."""

_NAME_RULE = "must begin with a letter or digit and hold only letters, digits, '.', '_' and '-', at most 64 in all"
_BOUNDS = {
    "greater_than": ("gt", "more than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}
_Words = tuple[str, str | None]


def explain(error: ValidationError, document: Document, root: type[BaseModel] = Recipe) -> Iterator[Finding]:
    """One finding per error, in pydantic's order; `document` is what was validated as a `root`."""
    errors = error.errors(include_url=False)
    unknown: dict[tuple[Any, ...], list[str]] = {}
    for item in errors:
        if item["type"] == "extra_forbidden":
            words = unknown.setdefault(item["loc"][:-1], [])
            if len(words) < MAX_PROBLEMS:
                words.append(str(item["loc"][-1]))
    for item in errors:
        loc, kind = item["loc"], item["type"]
        here = document.path(loc)
        if kind == "missing":
            name = str(loc[-1])
            if not any(nearest(word, [name]) for word in unknown.get(loc[:-1], ())):  # said by the unknown key
                yield Finding((*here, name), f"{dotted(here)} lacks the key {name}", f"add {EXAMPLES[name]}")
        elif kind == "extra_forbidden":
            yield _unknown_key(loc, here, root)
        elif loc[-1:] == ("[key]",) and here[-1:] != ("[key]",):
            message = f"the key '{short(str(here[-1]))}' in {dotted(here[:-1])} {_key_rule(item)}"
            yield Finding(here, message, at_key=True)
        else:
            value = item["input"]
            rule, hint = _RULES.get(kind, _other)({**item, "root": root}, loc, document.text(here))
            shown = (
                ""
                if isinstance(value, dict) and not _wants_other_shape(kind)
                else f" is {_shown(value, document.text(here))}: it"
            )
            yield Finding(here, f"{dotted(here)}{shown} {rule}", hint)


def fields(loc: Iterable[Any], root: type[BaseModel] = Recipe) -> dict[str, Any]:
    """The fields, by the key that the recipe uses, of the model at a pydantic `loc`; empty when there is none."""
    kind: Any = root
    for item in loc:
        kind = _child(kind, item)
    kind = _bare(kind)
    if not _is_model(kind):
        return {}
    return {field.alias or name: field for name, field in kind.model_fields.items()}


def _is_model(kind: Any) -> bool:
    # Python 3.10 calls dict[str, int] a type, too.
    return get_origin(kind) is None and isinstance(kind, type) and issubclass(kind, BaseModel)


def _bare(kind: Any) -> Any:
    while True:
        members = [member for member in get_args(kind) if member is not NoneType]
        if get_origin(kind) is Annotated or (get_origin(kind) in (Union, UnionType) and len(members) == 1):
            kind = members[0]
        else:
            return kind


def _child(kind: Any, item: Any) -> Any:
    kind = _bare(kind)
    if get_origin(kind) in (Union, UnionType):
        return next((member for member in get_args(kind) if Tag(item) in get_args(member)[1:]), None)
    if get_origin(kind) in (list, dict):
        return get_args(kind)[-1]
    if _is_model(kind):
        return next((f.annotation for name, f in kind.model_fields.items() if (f.alias or name) == item), None)
    return None


def _unknown_key(loc: tuple[Any, ...], here: tuple[Any, ...], root: type[BaseModel]) -> Finding:
    word, known = str(loc[-1]), list(fields(loc[:-1], root))
    meant = nearest(word, known)
    keys = f"the keys here are {listed(known)}" if len(known) > 1 else f"the only key here is {listed(known)}"
    hint = f"did you mean {meant}?" if meant else keys
    return Finding(here, f"unknown key '{short(word)}' in {dotted(here[:-1])}", hint, at_key=True)


def _key_rule(item: Any) -> str:
    return _NAME_RULE if item["type"] == "string_pattern_mismatch" else "must not be empty"


def _wants_other_shape(kind: str) -> bool:
    return kind.endswith("_type") or kind == "literal_error"


def _shown(value: Any, text: str | None) -> str:
    if isinstance(value, dict | list):
        return f"a {'mapping' if isinstance(value, dict) else 'list'}" if value else "empty"
    if isinstance(value, str):
        return f"'{short(value)}'"
    return short(text or "") or "empty"


def _literal(item: Any, loc: tuple[Any, ...], text: str | None) -> _Words:
    allowed = re.findall(r"'([^']*)'", item["ctx"]["expected"]) or [item["ctx"]["expected"].lower()]
    meant = nearest(item["input"], allowed) if isinstance(item["input"], str) else None
    return f"must be {listed(allowed, 'or')}", f"did you mean {meant}?" if meant else None


def _string(item: Any, loc: tuple[Any, ...], text: str | None) -> _Words:
    scalar = text and isinstance(item["input"], bool | int | float)
    return "must be text", f'put it in quotes: "{short(text)}"' if scalar and text else None


def _whole(item: Any, loc: tuple[Any, ...], text: str | None) -> _Words:
    value = item["input"]
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return "must be a whole number", f"write {int(value)}"
    return "must be a whole number", _unquote(value)


def _number(item: Any, loc: tuple[Any, ...], text: str | None) -> _Words:
    return "must be a number", _unquote(item["input"])


def _unquote(value: Any) -> str | None:
    numeric = isinstance(value, str) and re.fullmatch(r"[-+]?[0-9.]+", value)
    return "remove the quotes" if numeric else None


def _list(item: Any, loc: tuple[Any, ...], text: str | None) -> _Words:
    return "must be a list", f"write [{short(text)}]" if text else "write it as [a, b, c], or one '- item' a line"


def _mapping(item: Any, loc: tuple[Any, ...], text: str | None) -> _Words:
    known = fields(loc, item["root"])
    return (
        "must be a mapping",
        f"it takes the key{'s' * (len(known) > 1)} {listed(known)}" if known else "write key: value, one a line",
    )


def _bound(item: Any, loc: tuple[Any, ...], text: str | None) -> _Words:
    name, words = _BOUNDS[item["type"]]
    limit = item["ctx"][name]
    return f"must be {words} {limit:g}" if isinstance(limit, float) else f"must be {words} {limit}", None


def _length(item: Any, loc: tuple[Any, ...], text: str | None) -> _Words:
    if item["type"] == "too_long":
        return f"must hold at most {item['ctx']['max_length']} items", None
    least = item["ctx"]["min_length"]
    return f"must hold at least {'one item' if least == 1 else f'{least} items'}", None


def _form(item: Any, loc: tuple[Any, ...], text: str | None) -> _Words:
    keys = item.get("ctx", {}).get("keys", "").split()
    if not keys or not isinstance(item["input"], dict):
        return item["msg"], None
    if any(key in item["input"] for key in keys):
        return f"must have only one of the keys {listed(keys)}", None
    meant = [nearest(str(word), keys) for word in list(item["input"])[:8]]
    return f"must have one of the keys {listed(keys)}", next((f"did you mean {key}?" for key in meant if key), None)


def _raised(item: Any, loc: tuple[Any, ...], text: str | None) -> _Words:
    return str(item["ctx"]["error"]), None


def _other(item: Any, loc: tuple[Any, ...], text: str | None) -> _Words:
    return f"is not accepted: {item['msg']}", None


def _says(rule: str, hint: str | None = None) -> Callable[[Any, tuple[Any, ...], str | None], _Words]:
    return lambda item, loc, text: (rule, hint)


_RULES: dict[str, Callable[[Any, tuple[Any, ...], str | None], _Words]] = {
    "literal_error": _literal,
    "string_type": _string,
    "int_type": _whole,
    "float_type": _number,
    "bool_type": _says("must be true or false"),
    "list_type": _list,
    "dict_type": _mapping,
    "model_type": _mapping,
    "form": _form,
    "value_error": _raised,
    "finite_number": _says("must be a finite number"),
    "string_too_short": _says("must not be empty"),
    "string_pattern_mismatch": _says(_NAME_RULE),
    "too_short": _length,
    "too_long": _length,
    **dict.fromkeys(_BOUNDS, _bound),
}
