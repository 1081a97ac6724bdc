"""One job on a device: inputs there, a program run by the agent, its outputs back, all by digest.

A connection may break at any point: what arrived stays, the job goes on, and the next try, in this call or in a later
one with the same key, takes it up where it is.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, TypeVar

from trtrecipe.device.link import Dropped, Json, Noted, Refusal, connect
from trtrecipe.digest import sha256_file
from trtrecipe.errors import StepError
from trtrecipe.targets.buildspec import MIB
from trtrecipe.targets.devices import as_json, fingerprint

PAUSES = (0.5, 2.0, 5.0)
"""Seconds before a broken connection is made again."""
BUSY_SECONDS = 180.0
"""How long another connection may hold a file without sending any of it; the agent gives up a dead one sooner."""
SPARE = 256 * MIB
"""Bytes that must be free on the device beside twice the inputs, for outputs and log."""
KEPT_BYTES = 4 << 30
KEPT_SECONDS = 24 * 3600
"""What is kept on the device for next time: so many bytes, and whatever is younger than a day."""

Say = Callable[[str], None]
T = TypeVar("T")


class JobFailed(StepError):
    """A job did not do what it was asked; `reason` is the agent's word, or that of the program that it ran."""

    def __init__(self, reason: str, message: str, hint: str | None) -> None:
        super().__init__(message, hint)
        self.reason = reason


@dataclass(frozen=True)
class Job:
    """What is run: `key` identifies it on the device.

    `files`: name in the job's folder → file here. `arguments`: of trtexec. `outputs`: role → name in the job's folder.
    `more`: what else the agent is to know (`agent.run`).
    """

    key: str
    files: Mapping[str, Path]
    arguments: Sequence[str]
    outputs: Mapping[str, str]
    more: Mapping[str, Any]


class Work:
    """What is done on one device, over one link.

    `device`: "name", "address", "seconds", and the "fingerprint" that the key was made with. Entering the `with` block
    looks at the device; raises StepError where that is not what it was, Unreachable where it cannot be had.
    """

    def __init__(self, device: Mapping[str, Any], say: Say) -> None:
        self.device, self.say = device, say
        self.name: str = device["name"]
        self.probe: Json = {}
        self._link = connect(device["address"])

    def __enter__(self) -> Work:
        self._link.__enter__()
        try:
            self.probe = self._look()
        except BaseException:
            self._link.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._link.__exit__(kind, error, trace)

    def run(self, job: Job, into: Mapping[str, Path]) -> Json:
        """Do the job and write its outputs, role → file here; the agent's result. Raises StepError, Unreachable."""
        try:
            return self._run(job, into)
        except BaseException:
            for path in into.values():
                path.unlink(missing_ok=True)
            raise

    def run_all(self, jobs: Sequence[tuple[Job, Mapping[str, Path]]]) -> list[Json]:
        """`run` each, none of which depends on what another gives: for a bundle all of them are noted."""
        results, noted = [], None
        for job, into in jobs:
            try:
                results.append(self.run(job, into))
            except Noted as each:
                noted = each
        if noted is not None:
            raise noted
        return results

    def _run(self, job: Job, into: Mapping[str, Path]) -> Json:
        digests = {name: sha256_file(path) for name, path in job.files.items()}
        for _ in range(2):
            result = self._result(job, digests)  # which collects what is there, if it is whole
            damaged = [role for role, path in into.items() if not self._fetch(path, role, result["outputs"][role])]
            if not damaged:
                if "untidy" in result:
                    self.say(f"old files on the device could not be removed: {result['untidy']}")
                return result
            self.say(f"the {' and '.join(damaged)} is not what the device said; once more")
        raise StepError(
            f"the {' and '.join(damaged)} from {self.name} is damaged whenever it arrives: its digest is not what the "
            "device says",
            "check the memory, disk and network of both machines",
        )

    def _look(self) -> Json:
        try:
            probe = self._again(lambda: self._link.ask({"op": "probe"}))
        except Refusal as refusal:
            raise self._failed(refusal.reason, refusal.message, []) from None
        if changed := self._changes(probe):
            text = f"{self.name} is no longer what it was when the build was planned: {changed}"
            raise StepError(text, "run the build again once nobody is at work on it")
        return probe

    def _changes(self, probe: Mapping[str, Any]) -> str:
        """What of the fingerprint that the key was made with the device does not show, in words."""
        expected, now = self.device["fingerprint"], as_json(fingerprint(probe)) or {}
        return "; ".join(
            f"{part} {expected[part]} -> {now.get(part)}" for part in expected if now.get(part) != expected[part]
        )

    def _result(self, job: Job, digests: Mapping[str, str]) -> Json:
        request = {
            "op": "run",
            "key": job.key,
            "files": digests,
            "trtexec": self.probe["trtexec"]["path"],
            "trtexec_sha256": self.probe["trtexec"]["sha256"],
            "tensorrt": self.device["fingerprint"]["tensorrt"],
            "arguments": list(job.arguments),
            "outputs": dict(job.outputs),
            "seconds": self.device["seconds"],
            "space": SPARE,
            "keep": {"bytes": KEPT_BYTES, "seconds": KEPT_SECONDS},
            **job.more,
        }
        for _ in range(3):
            self._stage(job, digests)
            try:
                result = self._again(lambda: self._link.ask(request, hear=self._hear))
            except Refusal as refusal:
                if refusal.reason == "missing":  # collected as garbage, or damaged, since it was staged
                    continue
                raise self._failed(refusal.reason, refusal.message, []) from None
            if not result["ok"]:
                raise self._failed(
                    result["reason"], result["message"], result.get("log", []), result.get("attempts", ())
                )
            changed = self._changes(result["shown"])
            if not changed:
                return result
            if not result["collected"]:
                text = f"{self.name} changed while the job ran or waited: {changed}"
                raise StepError(text, "run the build again once nobody is at work on it")
            request["fresh"] = True  # it was done while the device was something else
        raise StepError(f"{self.name} loses its inputs as fast as they arrive", "check that disk, and what cleans it")

    def _stage(self, job: Job, digests: Mapping[str, str]) -> None:
        """Bring over what the device lacks of the inputs, from where an earlier transfer ended."""
        paths = {digests[name]: path for name, path in job.files.items()}
        files = [{"sha256": digest, "size": path.stat().st_size} for digest, path in sorted(paths.items())]
        spare = SPARE + sum(path.stat().st_size for path in paths.values())
        damaged = stuck = 0
        waited = 0.0
        sent: dict[str, int] = {}
        while True:
            try:
                there = self._again(lambda: self._link.ask({"op": "stage", "files": files, "spare": spare}))
            except Refusal as refusal:
                raise self._failed(refusal.reason, refusal.message, []) from None
            whole = True
            if any(not _is_asked(entry, files) for entry in there["missing"]):
                raise self._failed("answer", "it asks for other files than it was offered", [])
            for entry in there["missing"]:
                self.say(f"sending {entry['size'] - entry['offset']:,} bytes")
                try:
                    self._send(paths[entry["sha256"]], entry)
                except Dropped as dropped:
                    # What arrived of it counts: a poor connection may break as often as it likes, if it gets on.
                    stuck = stuck + 1 if entry["offset"] <= sent.get(entry["sha256"], -1) else 0
                    sent[entry["sha256"]] = entry["offset"]
                    if stuck == len(PAUSES):
                        raise
                    self.say(f"{dropped.message}; connecting again")
                    time.sleep(PAUSES[stuck])
                    whole = False
                except Refusal as refusal:
                    whole = False
                    if refusal.reason == "busy" and waited < BUSY_SECONDS:  # another build sends it: wait while it does
                        waited = waited + PAUSES[0] if entry["offset"] <= sent.get(entry["sha256"], -1) else 0.0
                        sent[entry["sha256"]] = entry["offset"]
                        time.sleep(PAUSES[0])
                        continue
                    path = paths[entry["sha256"]]
                    if refusal.reason == "corrupt" and sha256_file(path) != entry["sha256"]:
                        raise StepError(f"{path} was changed while it was sent", "build again") from None
                    if refusal.reason not in ("corrupt", "short", "offset") or damaged == len(PAUSES):
                        raise self._failed(refusal.reason, refusal.message, []) from None
                    time.sleep(PAUSES[damaged])
                    damaged += 1
            if whole:  # each was checked as it arrived, and the job looks once more
                return

    def _send(self, path: Path, entry: Json) -> None:
        with path.open("rb") as source:
            source.seek(entry["offset"])
            self._link.ask({**entry, "op": "receive"}, payload=source)

    def _fetch(self, path: Path, role: str, output: Json) -> bool:
        """An output's bytes, gone on with where the connection broke; whether they are what they should be."""
        self.say(f"fetching {output['size']:,} bytes")
        if output["size"] > (free := shutil.disk_usage(path.parent).free):
            text = f"the {role} of {self.name} has {output['size']:,} bytes, and there is room for {free:,} here"
            raise StepError(text, "free space where the store is")
        with path.open("wb") as out:
            sink = _Limited(out, output["size"])

            def receive() -> None:
                self._link.ask({"op": "send", "sha256": output["sha256"], "offset": out.tell()}, into=sink)
                if out.tell() < output["size"]:
                    raise Dropped(f"{self.name}: the {role} came only in part", "build again")

            try:
                self._again(receive)
            except Refusal as refusal:
                if refusal.reason == "missing":  # removed since: the job is asked for again
                    return False
                raise self._failed(refusal.reason, refusal.message, []) from None
            out.flush()
            os.fsync(out.fileno())
        return (path.stat().st_size, sha256_file(path)) == (output["size"], output["sha256"])

    def _again(self, ask: Callable[[], T]) -> T:
        """Ask; over a new connection where one breaks."""
        return again(ask, self.say)

    def _hear(self, event: Json) -> None:
        text = str(event.get("doing", "at work"))
        if event.get("layers"):
            text += f", {event['layers']} layers timed"
        if event.get("seconds"):
            text += f", {event['seconds']} s"
        if event.get("attempt", 1) > 1:
            text += f", attempt {event['attempt']} with {(event.get('workspace') or 0) // MIB} MiB"
        self.say(text)

    def _failed(self, reason: str, message: str, log: list[str], tries: Any = ()) -> JobFailed:
        tried = [f"{entry['workspace'] // MIB}" for entry in tries if entry["workspace"] is not None]
        if reason == "memory" and tried:
            message += f" with every workspace that was tried: {', '.join(tried)} MiB"
        log = [line for line in log if not line.startswith('{"event"')]  # which has said `message`
        said = [line for line in log if "[E]" in line] or log[-3:]
        words = "; ".join(line.strip() for line in said[-4:])
        text = f"{self.name}: {message}" + (f": {words[-900:]}" if words else "")
        return JobFailed(reason, text, _HINTS.get(reason))


class _Limited:
    """A file that takes so many bytes and no more. Raises Refusal."""

    def __init__(self, out: BinaryIO, size: int) -> None:
        self._out, self._size = out, size

    def write(self, data: bytes, /) -> int:
        if self._out.tell() + len(data) > self._size:
            raise Refusal("corrupt", "it sends more than it has said", {})
        return self._out.write(data)


def _is_asked(entry: Json, files: Sequence[Mapping[str, Any]]) -> bool:
    """Whether what a device lacks is a part of what it was offered."""
    offered = {"sha256": entry["sha256"], "size": entry["size"]}
    return offered in files and 0 <= entry["offset"] <= entry["size"]


def again(ask: Callable[[], T], say: Say) -> T:
    """Ask; over a new connection where one breaks."""
    for pause in PAUSES:
        try:
            return ask()
        except Dropped as dropped:
            say(f"{dropped.message}; connecting again")
            time.sleep(pause)
    return ask()


_HINTS = {
    "memory": "close what else runs on the device, add swap, or set build.workspace to less",
    "timeout": "give the device more `seconds` in the inventory, or look at what else it does",
    "disk": "free space on the device",
    "space": "free space on the device",
    "version": "run `trtrecipe devices probe` for it, then build again",
    "trtexec": "the device's words are those of trtexec; if JetPack was upgraded, build again",
    "died": "the device may have been switched off or be out of memory: build again",
    "dla": "set build.dla.gpu_fallback: true, or build for the GPU (docs/dla.md)",
    "lost": "look at the device's disk and memory, then build again",
    "corrupt": "check the memory and network of both machines",
    "cancelled": "build again if that was not meant",
    "busy": "end the other build, or wait for it",
    "answer": "see what answers there, and whether that machine is sound",
    "device": "look at that path on the device: its cache must be this user's, and writable",
    "lock": "see who else uses that file",
}
