"""Which TensorRT releases take a graph, by its opset, its operators and the forms of quantization in it.

What each release takes is data (`data/qdq.json`, with sources; opsets and operators also in the dialects); a verdict is
"accepted", "refused", or "assumed" where no source settles it. A release for which nothing was published is settled
where the nearest older and the nearest newer one agree.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from trtrecipe.targets.catalog import DATA, load_catalog, operators

ACCEPTED, ASSUMED, REFUSED = "accepted", "assumed", "refused"
_SEVERITY = (ACCEPTED, ASSUMED, REFUSED)
_NAMED = 3


@dataclass(frozen=True)
class Reason:
    """One statement behind a verdict: `about` is a form of quantization, "opset" or "operators"."""

    verdict: str
    about: str
    text: str
    sources: tuple[str, ...]


@dataclass(frozen=True)
class Verdict:
    """What one TensorRT release ("8.2") says of a graph: the worst of its reasons.

    `needs`: what a build of a quantized graph has to ask that release for; None where nothing is quantized.
    """

    release: str
    verdict: str
    needs: str | None
    reasons: tuple[Reason, ...]


@dataclass(frozen=True)
class _Published:
    """What was published for one TensorRT release: its newest opset, and the operators it supports."""

    release: str
    opset_max: int
    supported: Mapping[str, bool]
    source: str


@dataclass(frozen=True)
class _Release:
    """A release, with what was published for it; else for the nearest older release, and for the nearest newer one."""

    id: str
    older: _Published
    newer: _Published


def verdicts(opset: int, used: Mapping[str, Sequence[str]], forms: Mapping[str, Sequence[str]]) -> tuple[Verdict, ...]:
    """A verdict for every TensorRT release that is known, oldest first.

    `used`: operator ("Conv", or "domain.Operator") → names of the nodes that use it; `forms`: form of quantization, one
    of `data/qdq.json` → names of the nodes that have it. Raises KeyError for a form that the data does not know.
    """
    return tuple(_verdict(release, opset, used, forms) for release in _releases())


def _verdict(
    release: _Release, opset: int, used: Mapping[str, Sequence[str]], forms: Mapping[str, Sequence[str]]
) -> Verdict:
    reasons = [*_opset(release, opset), *_operators(release, used)]
    reasons += [_form(release, form, nodes) for form, nodes in forms.items()]
    worst = max((_SEVERITY.index(reason.verdict) for reason in reasons), default=0)
    needs = _at(release.id, _data()["needs"])["text"] if forms else None
    return Verdict(release.id, _SEVERITY[worst], needs, tuple(reasons))


def _form(release: _Release, form: str, nodes: Sequence[str]) -> Reason:
    entry = _data()["forms"][form]
    found = _at(release.id, entry["entries"])
    sources = tuple(_data()["sources"][source] for source in entry["sources"])
    return Reason(found["verdict"], form, f"{entry['means']}: {found['why']} ({some(nodes)})", sources)


def _opset(release: _Release, opset: int) -> Iterator[Reason]:
    older, newer = release.older, release.newer
    if opset > newer.opset_max:
        yield _reason(
            release,
            REFUSED,
            "opset",
            f"opset {opset} is above {newer.opset_max}, the newest published (a build lowers it where it can)",
        )
    elif opset > older.opset_max:
        known = f"{older.opset_max} is the newest published for {older.release}, {newer.opset_max} for {newer.release}"
        yield _reason(release, ASSUMED, "opset", f"opset {opset}: {known}")


def _operators(release: _Release, used: Mapping[str, Sequence[str]]) -> Iterator[Reason]:
    older, newer = release.older, release.newer
    for name, nodes in used.items():
        if not newer.supported.get(name, False):
            text = f"{name} is not among the operators published ({some(nodes)})"
            yield _reason(release, REFUSED, "operators", text)
        elif not older.supported.get(name, False):
            text = f"{name} is among the operators of {newer.release}, not of {older.release} ({some(nodes)})"
            yield _reason(release, ASSUMED, "operators", text)


def _reason(release: _Release, verdict: str, about: str, text: str) -> Reason:
    return Reason(verdict, about, text, tuple(dict.fromkeys((release.older.source, release.newer.source))))


def some(nodes: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(nodes) - _NAMED} more" if len(nodes) > _NAMED else ""
    return ", ".join(nodes[:_NAMED]) + more


@cache
def _releases() -> tuple[_Release, ...]:
    """The releases of the dialects and those that the data of this module adds, oldest first."""
    known = {each.release: each for each in _published()}
    dialects = [each.tensorrt for each in load_catalog().dialects.values() if each.tensorrt is not None]
    ids = sorted({*dialects, *_data()["releases"]}, key=_order)
    published = sorted(known.values(), key=lambda each: _order(each.release))
    return tuple(
        _Release(
            id,
            known.get(id) or [each for each in published if _order(each.release) < _order(id)][-1],
            known.get(id) or next(each for each in published if _order(each.release) > _order(id)),
        )
        for id in ids
    )


def _published() -> Iterator[_Published]:
    for dialect in load_catalog().dialects.values():
        if dialect.operators_from is not None and dialect.opset_max is not None:
            table = operators(dialect.operators_from)
            yield _Published(dialect.operators_from, dialect.opset_max, table, dialect.sources[0])
    for id, entry in _data()["releases"].items():
        table = {**operators(entry["operators_like"]), **dict.fromkeys(entry["operators_also"], True)}
        yield _Published(id, entry["opset_max"], table, entry["source"])


def _at(release: str, entries: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The last entry whose "from" is not after the release."""
    return [entry for entry in entries if _order(entry["from"]) <= _order(release)][-1]


def _order(release: str) -> tuple[int, ...]:
    return tuple(map(int, release.split(".")))


@cache
def _data() -> Any:
    return json.loads((DATA / "qdq.json").read_text("utf-8"))
