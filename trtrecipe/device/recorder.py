"""A link to no device: it notes what a step would ask of one, for a bundle to carry there."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from trtrecipe.device.link import Hear, Json, Noted, Sink
from trtrecipe.digest import canonical_json

_AT_THE_DEVICE = {"op", "key", "trtexec", "trtexec_sha256", "tensorrt", "lock", "root", "cache"}
_IN_THIS_COMMAND = {"seconds", "space", "keep", "every", "fresh"}
_THERE = _AT_THE_DEVICE | _IN_THIS_COMMAND
"""Fields of a `run` that depend on the device, or on how it is reached, and not on what is built."""
PIECE = 1 << 20


def portable(request: Mapping[str, Any]) -> Json:
    """What of the agent's `run` is the same wherever and however it runs."""
    found = {name: value for name, value in request.items() if name not in _THERE}
    if found.get("workspace"):
        found["workspace"] = {name: found["workspace"][name] for name in ("flag", "bytes")}
    if found.get("timing_cache"):
        found["timing_cache"] = {"file": found["timing_cache"]["file"]}
    return {name: value for name, value in found.items() if value is not None}


class Recorder:
    """Takes what is staged into `record`/files, by digest, and notes each `run` that `answers` has no result for in
    `record`/jobs, portable, with its limit of seconds and the space it needs.

    `fingerprint`: that of the device that it stands for. `made`: digest of a file that stands for one that an earlier
    job makes → {"job", "output"}, which takes the digest's place.
    """

    def __init__(
        self,
        record: str,
        fingerprint: Mapping[str, Any],
        made: Mapping[str, Mapping[str, str]],
        answers: Sequence[Mapping[str, Any]],
    ) -> None:
        self._folder, self._made, self._fingerprint = Path(record), made, fingerprint
        self._answers = list(answers)

    def __enter__(self) -> Recorder:
        (self._folder / "files").mkdir(parents=True, exist_ok=True)
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
        """As the agent would answer; raises Noted for a `run` that is."""
        if request["op"] == "probe":
            return _probe(self._fingerprint)
        if request["op"] == "stage":
            return {"missing": [{**entry, "offset": 0} for entry in request["files"] if self._lacks(entry["sha256"])]}
        if request["op"] == "receive":
            assert payload is not None
            with (self._folder / "files" / request["sha256"]).open("wb") as out:
                while piece := payload.read(PIECE):
                    out.write(piece)
            return {"sha256": request["sha256"]}
        if request["op"] == "run":
            if self._answers:
                return dict(self._answers.pop(0))
            files = {name: self._made.get(digest, digest) for name, digest in request["files"].items()}
            there = {name: request[name] for name in ("seconds", "space")}
            job = {**portable(request), **there, "files": files}
            with (self._folder / "jobs").open("ab") as out:
                out.write(canonical_json(job) + b"\n")
            raise Noted("noted for a bundle")
        return {}

    def _lacks(self, digest: str) -> bool:
        return digest not in self._made and not (self._folder / "files" / digest).exists()


def take_jobs(folder: Path) -> list[Json]:
    """What a Recorder noted in `folder`; it is gone from there then."""
    path = folder / "jobs"
    if not path.exists():
        return []
    jobs = [json.loads(line) for line in path.read_bytes().splitlines()]
    path.unlink()
    return jobs


def _probe(fingerprint: Mapping[str, Any]) -> Json:
    """What a device of that fingerprint shows, as far as anyone asks."""
    memory = {"total": fingerprint["memory"], "available": fingerprint["memory"], "swap_total": 0, "swap_free": 0}
    return {
        **{name: fingerprint[name] for name in ("model", "l4t", "cuda", "tensorrt")},
        "compatible": [],
        "jetpack": None,
        "packages": {},
        "memory": memory,
        "disk": {"free": 1 << 40},
        "power_mode": None,
        "clocks": {},
        "temperatures": {},
        "trtexec": {"path": "trtexec", "size": 0, "sha256": fingerprint["trtexec"]},
        "python": "3.6.0",
        "machine": "aarch64",
        "cache": "",
    }
