"""What devices answer, in form: nothing that comes from one is relied on before it was looked at.

A device may be broken, or another program than the agent may answer. A form is a type, a pattern that text matches
whole, None for null, a tuple of forms of which one fits, [each], {name: form} of what must be there, {str: each}.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

DIGEST = re.compile("[0-9a-f]{64}")
_VERSION = re.compile(r"\d{1,4}\.\d{1,4}\.\d{1,4}")
_NUMBER = (int, float)
_TEXT = (str, None)
_COUNT = (int, None)
_MOST = 1 << 62
"""Larger numbers are no sizes, times or clocks."""

PROBE: dict[str, Any] = {
    "model": _TEXT,
    "l4t": _TEXT,
    "cuda": _TEXT,
    "tensorrt": (_VERSION, None),
    "compatible": [str],
    "jetpack": _TEXT,
    "memory": {"total": _COUNT, "available": _COUNT, "swap_total": _COUNT, "swap_free": _COUNT},
    "disk": {"free": int},
    "power_mode": ({"id": int, "name": _TEXT}, None),
    "clocks": {str: {str: int}},
    "temperatures": {str: _NUMBER},
    "trtexec": ({"path": str, "size": int, "sha256": DIGEST}, None),
    "python": str,
}
_LOOK = {
    "power_mode": ({"id": int, "name": _TEXT}, None),
    "clocks": {str: {str: int}},
    "temperatures": {str: _NUMBER},
    "power": {str: int},
    "events": {str: int},
    "cooling": {str: int},
}
_CONDITIONS = {
    "before": _LOOK,
    "during": {"looks": int, "clocks": {str: [int]}, "power": {str: int}, "cooling": {str: int}},
    "after": _LOOK,
}
_PARTS = {"count": int, "names": [str]}
_ATTEMPTS = [{"workspace": _COUNT, "outcome": str, "seconds": _NUMBER}]
DONE: dict[str, Any] = {
    "outputs": {str: {"sha256": DIGEST, "size": int}},
    "attempts": _ATTEMPTS,
    "seconds": _NUMBER,
    "waited": _NUMBER,
    "layers": int,
    "collected": bool,
    "timing_cache": ({"before": (DIGEST, None), "after": (DIGEST, None)}, None),
    "shown": {
        "model": _TEXT,
        "l4t": _TEXT,
        "cuda": _TEXT,
        "tensorrt": _TEXT,
        "memory": {"total": _COUNT},
        "trtexec": ({"sha256": str}, None),
    },
}
"""A job that was done; with `ASKED`, what is there where it was asked for."""
ASKED: dict[str, Any] = {"placement": {"dla": _PARTS, "gpu": _PARTS}, "conditions": _CONDITIONS}
FAILED: dict[str, Any] = {"reason": str, "message": str, "attempts": (_ATTEMPTS, None), "log": ([str], None)}
REPORT: dict[str, Any] = {
    "tensors": [{"name": str, "dtype": re.compile("bool|u?int8|int32|int64|float(16|32|64)")}],
    "shapes": [[[int]]],
    "module": str,
    "cudart": str,
}
"""What `evaluator.evaluate` reports."""
_MOMENTS = ("startH2dMs", "startInMs", "endComputeMs", "endD2hMs", "endOutMs")
TIMES: list[Any] = [
    dict.fromkeys(("startComputeMs", "latencyMs", "computeMs"), _NUMBER) | dict.fromkeys(_MOMENTS, (*_NUMBER, None))
]
PROFILE: list[Any] = [{"name": _TEXT, "averageMs": (*_NUMBER, None)}]
VALUES: list[Any] = [{"name": str, "dimensions": re.compile(r"(\d{1,9}(x\d{1,9})*)?"), "values": list}]
"""What trtexec exports: times of runs, layers, outputs."""
_ERROR: dict[str, Any] = {"reason": str, "message": str}
_ANSWERS: Mapping[str, Any] = {
    "probe": PROBE,
    "stage": {"missing": [{"sha256": DIGEST, "size": int, "offset": int}]},
    "send": {"size": int, "offset": int},
    "run": {"ok": bool},
    "cancel": {"cancelled": [{"key": DIGEST, "seconds": int}]},
    "gc": {"removed": int, "freed": int, "kept": int},
}
"""By operation."""
PROGRESS: dict[str, Any] = {
    "doing": str,
    "attempt": int,
    "layers": _COUNT,
    "seconds": _COUNT,
    "workspace": _COUNT,
}


def problems(request: Mapping[str, Any], answer: Mapping[str, Any]) -> list[str]:
    """Where an answer to a request is not as the agent gives it."""
    if answer["event"] == "error":
        return [*misshapen(answer, _ERROR)]
    found = [*misshapen(answer, _ANSWERS.get(request["op"], {}))]
    if request["op"] == "run" and not found:
        found += done(answer, request) if answer["ok"] else misshapen(answer, FAILED)
    return found


def done(result: Mapping[str, Any], request: Mapping[str, Any], at: str = "") -> list[str]:
    """Where the result of a job that is said to be done lacks what `request` asked for."""
    found = [*misshapen(result, DONE, at)]
    for name, form in ASKED.items():
        if request.get(name) or result.get(name) is not None:
            found += misshapen(result.get(name), form, f"{at}.{name}".lstrip("."))
    if not found and set(result["outputs"]) != set(request["outputs"]):
        found.append(f"{at}.outputs".lstrip("."))
    if not found and not result["attempts"]:
        found.append(f"{at}.attempts".lstrip("."))
    return found


def misshapen(value: Any, form: Any, at: str = "") -> Iterator[str]:
    """Where a JSON value is not of a form. Text must be printable: terminals do as they are told."""
    if isinstance(form, tuple):
        if all(any(misshapen(value, each, at)) for each in form):
            yield at
    elif isinstance(form, re.Pattern):
        if not isinstance(value, str) or not form.fullmatch(value):
            yield at
    elif form is None or isinstance(form, type):
        if not _is(value, form):
            yield at
    elif not isinstance(value, type(form)):
        yield at
    elif isinstance(form, list):
        for number, each in enumerate(value):
            yield from misshapen(each, form[0], f"{at}.{number}".lstrip("."))
    else:
        for name in value if str in form else form:
            yield from misshapen(value.get(name), form.get(str, form.get(name)), f"{at}.{name}".lstrip("."))


def _is(value: Any, kind: type | None) -> bool:
    if kind is None:
        return value is None
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        return False
    if isinstance(value, str):
        return value.isprintable()
    return not isinstance(value, int | float) or -_MOST <= value <= _MOST  # nor is NaN


def cleaned(value: Any) -> Any:
    """A JSON value whose texts, and names, hold nothing that a terminal would obey."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, list):
        return [cleaned(each) for each in value]
    if isinstance(value, dict):
        return {printable(name): cleaned(each) for name, each in value.items()}
    return value


def printable(text: str) -> str:
    """Text from elsewhere, without what a terminal would obey."""
    return text if text.isprintable() else "".join(each if each.isprintable() else " " for each in text)


def lines(text: str) -> str:
    """`printable` line by line."""
    return "\n".join(printable(line.replace("\t", " ")) for line in text.splitlines())
