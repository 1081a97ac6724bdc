"""A link to what was done on a device that nobody reaches: its answers are those that a bundle's build.py recorded."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from trtrecipe.device.forms import FAILED, PROBE, done, misshapen, printable
from trtrecipe.device.link import Hear, Json, Sink
from trtrecipe.device.recorder import PIECE, portable
from trtrecipe.device.unpack import LIST, unpack
from trtrecipe.errors import InputError, StepError

_FORM: dict[str, Any] = {
    "bundle": {
        "recipe": str,
        "targets": [str],
        "profile": str,
        "tensorrt": str,
        "steps": {str: dict},
    },
    # One that lacked any of this has built nothing.
    "probe": PROBE
    | {"tensorrt": str, "trtexec": {"path": str, "size": int, "sha256": str}}
    | {"memory": {"total": int, "available": int, "swap_total": (int, None), "swap_free": (int, None)}},
    "jobs": [{"id": str, "request": dict, "result": {"ok": bool}}],
}
"""What of result.json is relied on, in forms of `device.forms`."""
_REQUEST = {"files": {str: str}, "arguments": [str], "outputs": {str: str}, "tensorrt": str, "trtexec_sha256": str}
_FAILED = {name: FAILED[name] for name in ("reason", "attempts")}  # its words are made printable, whatever they are
_NEVER = "the result has no outcome of this"
_SHOWN = 160
"""Characters of a difference that a message repeats."""


def read(path: Path, into: Path) -> tuple[Path, Json]:
    """As `unpack`, of a content that is as build.py writes it, and holds what its jobs gave. Raises InputError."""
    folder, content = unpack(path, into)
    wrong = [*misshapen(content, _FORM, "")]
    for number, job in enumerate(content["jobs"] if not wrong else ()):
        at = f"jobs.{number}"
        wrong += misshapen(job["request"], _REQUEST, f"{at}.request") if job["result"].get("reason") != "needs" else ()
        if not job["result"]["ok"]:
            wrong += misshapen(job["result"], _FAILED, f"{at}.result")
        elif not wrong:
            wrong += done(job["result"], job["request"], f"{at}.result")
        if not wrong and job["result"]["ok"]:
            made = job["result"]["outputs"].values()
            wrong += [f"{at}.result.outputs" for each in made if content["files"].get(each["sha256"]) != each["size"]]
    if wrong:
        text = f"{path}: its {LIST} is not as build.py writes it: {', '.join(wrong[:4])}"
        raise InputError.of(text, "bring over what build.py wrote, as it is")
    return folder, content


class Results:
    """`result`: folders as `unpack` leaves them, of one device. `changed`: id of a job → what was different when the
    bundle was made, in words."""

    def __init__(self, result: Sequence[str], changed: Mapping[str, str]) -> None:
        self._folders, self._changed = [Path(folder) for folder in result], changed
        self._jobs: list[Json] = []
        self._probe: Json = {}

    def __enter__(self) -> Results:
        for folder in self._folders:
            content = json.loads((folder / LIST).read_bytes())
            self._jobs += content["jobs"]
            self._probe = self._probe or content["probe"]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def ask(
        self,
        request: Mapping[str, Any],
        payload: BinaryIO | None = None,
        hear: Hear | None = None,
        into: Sink | None = None,
    ) -> Json:
        """What the agent answered there. Raises StepError for a `run` that was not done there."""
        if request["op"] == "probe":
            return dict(self._probe)
        if request["op"] == "stage":
            return {"missing": []}
        if request["op"] == "run":
            return self._run(request)
        if request["op"] == "send":
            assert into is not None
            return self._send(request, into)
        return {}

    def _run(self, request: Mapping[str, Any]) -> Json:
        asked = portable(request)
        if request.get("fresh"):
            text = "the device became something else while it was at work: another JetPack, or another trtexec"
            raise StepError(text, "run build.py there again, and import what it writes then")
        found = [job for job in self._jobs if portable(job["request"]) == asked]
        for job in sorted(found, key=lambda job: not job["result"]["ok"]):
            mine = (job["request"]["tensorrt"], job["request"]["trtexec_sha256"])
            if mine != (self._probe["tensorrt"], self._probe["trtexec"]["sha256"]):
                raise StepError(f"{job['id']} was not done by the trtexec that the result shows", _REDO)
            return _printable(job["result"])
        alike = [job for job in self._jobs if job["request"].get("outputs") == asked.get("outputs")]
        alike = [job for job in alike if job["request"].get("program") == asked.get("program")]
        if not alike:
            raise StepError(_NEVER, "run build.py there to its end, and import what it writes then")
        told = [(list(differences(portable(job["request"]), asked)), job["id"]) for job in alike]
        words, job = min(told, key=lambda each: len(each[0]))
        why = self._changed.get(job.partition(":")[0])
        text = "; ".join(words) + (f"; since the bundle was made: {why}" if why else "")
        raise StepError(f"this result is of another build: {printable(text)}", _REDO)

    def _send(self, request: Mapping[str, Any], into: Sink) -> Json:
        for folder in self._folders:
            path = folder / "files" / request["sha256"]
            if path.is_file() and not path.is_symlink():
                with path.open("rb") as source:
                    source.seek(request["offset"])
                    while piece := source.read(PIECE):
                        into.write(piece)
                return {"size": path.stat().st_size, "offset": request["offset"]}
        raise StepError(f"the result does not hold {request['sha256']}, which it names", _REDO)


_REDO = "make the bundle again, and run that"


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Where two portable requests differ, in words."""
    for name in sorted({*then, *now}):
        old, new = then.get(name), now.get(name)
        if old == new:
            continue
        if name == "files" and isinstance(old, Mapping) and isinstance(new, Mapping):
            for file in sorted({*old, *new}):
                if old.get(file) != new.get(file):
                    yield f"its {file} is {_short(old.get(file))}, here it is {_short(new.get(file))}"
        elif name == "arguments" and isinstance(old, list) and isinstance(new, list):
            gone = [each for each in old if each not in new]
            come = [each for each in new if each not in old]
            yield f"its arguments {_short(' '.join(gone))} are {_short(' '.join(come))} here"
        else:
            yield f"its {name} {_short(old)} is {_short(new)} here"


def _printable(result: Mapping[str, Any]) -> Json:
    """A job's result, whose words are for people."""
    log = result.get("log")
    lines = [printable(line) for line in log if isinstance(line, str)] if isinstance(log, list) else []
    return {**result, "message": printable(str(result.get("message", ""))), "log": lines}


def _short(value: Any) -> str:
    if not value:
        return "none"
    text = value if isinstance(value, str) else json.dumps(value)
    if re.fullmatch("[0-9a-f]{64}", text):
        return text[:12]
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
