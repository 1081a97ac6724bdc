"""What the ONNX parser of a TensorRT release takes: operators, element types, and what each operator may look like.

Operators and the types that they compute on are in `data/operators-<release>.json`, all else in `data/preflight.json`,
with sources. A rule there holds from a release up to, without it, another.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from trtrecipe.digest import sha256_json
from trtrecipe.targets.catalog import DATA, Dialect, load_catalog, operators

NOTE = "note"
"""The verdict of a rule that a person should know of, but that refuses nothing."""


@dataclass(frozen=True)
class Rule:
    """What `takes` says in words, and the `check` (a function of preflight.checks) that finds what it does not.

    `given` are that function's arguments; `do`: what to change; `until`: the release that lifted the rule.
    """

    rule: str
    operators: tuple[str, ...]
    until: str | None
    check: str
    given: Mapping[str, Any]
    takes: str
    do: str | None
    verdict: str


@dataclass(frozen=True)
class Parser:
    """The parser of one release. `operators_from` names the release whose table of operators serves.

    `supported`: operator → whether; `types`: operator → types of its data, as the table writes them ("FP32");
    `tensors`: NumPy's names of element types that tensors may have, `interface`: of those that only inputs and outputs
    may, `converted`: of those that the parser turns into another.
    """

    release: str
    operators_from: str
    supported: Mapping[str, bool]
    types: Mapping[str, tuple[str, ...]]
    tensors: tuple[str, ...]
    interface: tuple[str, ...]
    converted: Mapping[str, str]
    rules: tuple[Rule, ...]

    @property
    def assumed(self) -> bool:
        """Whether the table of operators is that of another release."""
        return self.release != self.operators_from


@cache
def parser(release: str, table: str) -> Parser:
    """The parser of `release` ("8.2"), with the table of operators of release `table`. Raises OSError without one."""
    types = _element_types(release)
    return Parser(
        release=release,
        operators_from=table,
        supported=operators(table),
        types={name: tuple(written.split()) for name, written in _read(f"operators-{table}.json")["types"].items()},
        tensors=tuple(types["tensors"]),
        interface=tuple(types["interface"]),
        converted=types["converted"],
        rules=tuple(_rule(entry) for entry in _read("preflight.json")["rules"] if _holds(entry, release)),
    )


def sha256(dialect: Dialect) -> str | None:
    """Digest of everything that `parser` says of the dialect, for keys; None where it has no table of operators."""
    if dialect.tensorrt is None or dialect.operators_from is None:
        return None
    return sha256_json(asdict(parser(dialect.tensorrt, dialect.operators_from)))


def supported_from(operator: str, release: str) -> str | None:
    """The first release after `release` whose published table supports the operator; None when there is none."""
    tables = {dialect.operators_from for dialect in load_catalog().dialects.values()} - {None}
    later = sorted((str(table) for table in tables if order(str(table)) > order(release)), key=order)
    return next((table for table in later if operators(table).get(operator, False)), None)


def order(release: str) -> tuple[int, ...]:
    """Releases compare by their numbers: 8.6 is before 10.1."""
    return tuple(map(int, release.split(".")))


def _holds(entry: Mapping[str, Any], release: str) -> bool:
    until = entry["until"]
    return order(entry["from"]) <= order(release) and (until is None or order(release) < order(until))


def _rule(entry: Mapping[str, Any]) -> Rule:
    return Rule(
        rule=entry["rule"],
        operators=tuple(entry["operators"]),
        until=entry["until"],
        check=entry["check"],
        given=entry["with"],
        takes=entry["takes"],
        do=entry["do"],
        verdict=entry["verdict"],
    )


def _element_types(release: str) -> Mapping[str, Any]:
    entries: list[Mapping[str, Any]] = _read("preflight.json")["types"]
    return [entry for entry in entries if order(entry["from"]) <= order(release)][-1]


@cache
def _read(name: str) -> Any:
    return json.loads((DATA / name).read_text("utf-8"))
