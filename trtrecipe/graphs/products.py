"""Sizes that are products of named dimensions: `16*batch`."""

from __future__ import annotations

from collections.abc import Iterable

Size = int | str
"""A number, the name of a dimension, or a product: factors joined by `*`, the number first, then names in order."""

_SIGN = "*"


def product(sizes: Iterable[Size]) -> Size:
    """The sizes multiplied; 1 for none."""
    number, names = 1, []
    for size in sizes:
        factor, own = _factors(size)
        number *= factor
        names += own
    return _written(number, names)


def quotient(whole: Size, part: Size) -> Size | None:
    """What `part` has to be multiplied with to be `whole`; None where that is no product of known factors."""
    number, names = _factors(whole)
    factor, own = _factors(part)
    if factor == 0 or number % factor:
        return None
    for name in own:
        if name not in names:
            return None
        names.remove(name)
    return _written(number // factor, names)


def names_in(size: Size) -> list[str]:
    """The dimensions that the size is made of."""
    return _factors(size)[1]


def _factors(size: Size) -> tuple[int, list[str]]:
    if isinstance(size, int):
        return size, []
    names = size.split(_SIGN)
    return (int(names[0]), names[1:]) if names[0].isdigit() else (1, names)


def _written(number: int, names: list[str]) -> Size:
    if not names or number == 0:
        return number
    return _SIGN.join([*([str(number)] if number != 1 else []), *sorted(names)])
