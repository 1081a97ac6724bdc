"""Why a step has to run, as values made where it is decided; `plan`, `build` and `explain` show the same ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from trtrecipe.data.sources import ALL_INPUTS


@dataclass(frozen=True, slots=True)
class Reason:
    """`text` for a person. `cascade` names the step whose changed output is the cause; None is a root cause."""

    text: str
    cascade: str | None = None


NEW = Reason("never built before")


def waits_for(step: str) -> Reason:
    """The step's key is not known until `step` has run."""
    return Reason(f"waits for {step}", cascade=step)


def lost(what: str, output: str | None) -> Reason:
    """The store's record of the step cannot be served, as `Missing` says."""
    if output is None:
        return Reason("its record in the store is damaged")
    return Reason(f"its stored output '{output}' is {what.removeprefix('blob ')}")


def changes(
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    origins: Mapping[str, str],
    sources: tuple[Mapping[str, str], Mapping[str, str]] = ({}, {}),
) -> list[Reason]:
    """What differs between two key documents of a step, root causes first.

    `origins` maps each input role to the name of the step it comes from, or to "" for what comes from outside;
    `sources` says of both documents, in words, where samples came from.
    """
    found = list(_changes(before, now, origins, sources))
    return sorted(found, key=lambda reason: reason.cascade is not None)


def _changes(
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    origins: Mapping[str, str],
    sources: tuple[Mapping[str, str], Mapping[str, str]],
) -> Iterator[Reason]:
    for path, old, new in _differences(before, now):
        section, *rest = path
        name = ".".join(rest)
        if section == "inputs":
            origin = origins.get(name, "")
            if origin:
                yield Reason(f"'{name}' from {origin} changed: {_digest(old)} -> {_digest(new)}", cascade=origin)
            elif (said := sources[0].get(name)) != (says := sources[1].get(name)) and said and says:
                yield Reason(f"{_outside(name)}: {said} -> {says}")
            else:
                yield Reason(f"{_outside(name)} changed: {_digest(old)} -> {_digest(new)}")
        elif section == "tools":
            yield Reason(f"{name} {_value(old)} -> {_value(new)}")
        elif section == "version":
            yield Reason(f"this step of trtrecipe changed: version {_value(old)} -> {_value(new)}")
        elif section == "params":
            yield Reason(f"{name}: {_value(old)} -> {_value(new)}")
        else:
            yield Reason(f"{'.'.join(path)}: {_value(old)} -> {_value(new)}")


def _differences(before: Any, now: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for name in sorted({*before, *now}):
            yield from _differences(before.get(name), now.get(name), (*path, name))
    elif before != now or isinstance(before, bool) is not isinstance(now, bool):
        yield path, before, now


def _outside(role: str) -> str:
    if role == "source":
        return "the model"
    if role == "data.label":
        return "the labels"
    if role == ALL_INPUTS:
        return "the samples"
    return f"the samples of '{role.removeprefix('data.')}'"


def _digest(value: Any) -> str:
    return "absent" if value is None else str(value)[:12]


def _value(value: Any) -> str:
    """As a recipe has it, whatever the order of keys, and without those that say nothing."""
    if isinstance(value, Mapping):
        said = (f"{name}: {_value(value[name])}" for name in sorted(value) if value[name] is not None)
        return f"{{{', '.join(said)}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    return "not set" if value is None else str(value)
