"""What is wrong in a recipe, by place: keys and list indices, which the document turns into line and column."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

MAX_WORD = 64
MAX_KNOWN = 200


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong at `loc`; `at_key` points at the key there instead of its value."""

    loc: tuple[Any, ...]
    message: str
    hint: str | None = None
    at_key: bool = False


def dotted(loc: Iterable[Any]) -> str:
    """`loc` as people write it: model.inputs.image.shape[0]."""
    path = ""
    for item in loc:
        path += f"[{item}]" if isinstance(item, int) else f".{short(item)}" if path else short(item)
    return path or "the recipe"


def short(text: str, limit: int = MAX_WORD) -> str:
    """`text` on one line, cut to `limit` characters."""
    text = " ".join(text[: limit + 1].split())
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def listed(words: Iterable[str], last: str = "and") -> str:
    """`a, b and c`."""
    words = list(words)
    return f" {last} ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The one of `known` that `word` most likely means, whatever its case; None when none is near."""
    from difflib import get_close_matches

    if len(word) > MAX_WORD:
        return None
    by_lower = {name.lower(): name for name in sorted(islice(known, MAX_KNOWN), reverse=True) if len(name) <= MAX_WORD}
    close = get_close_matches(word.lower(), by_lower, n=1)
    return by_lower[close[0]] if close else None
