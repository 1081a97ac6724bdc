"""One engine, built on a device: inputs there, trtexec under the agent, the engine back, all by digest.

A connection may break at any point: what arrived stays, the build goes on, and the next try, in this call or in a later
one with the same key, takes it up where it is.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from trtrecipe.device.ssh import Dropped, Refusal, Session
from trtrecipe.digest import sha256_file
from trtrecipe.errors import StepError
from trtrecipe.targets.buildspec import MIB, BuildSpec
from trtrecipe.targets.devices import as_json, fingerprint
from trtrecipe.targets.trtexec import SMALLEST_WORKSPACE, attempts

PAUSES = (0.5, 2.0, 5.0)
"""Seconds before a broken connection is made again."""
SPARE = 256 * MIB
"""Bytes that must be free on the device beside twice the inputs, for engine and log."""
KEPT_BYTES = 4 << 30
KEPT_SECONDS = 24 * 3600
"""What is kept on the device for next time: so many bytes, and whatever is younger than a day."""

Say = Callable[[str], None]
Json = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Job:
    """What is built: `spec` speaks of the names in `files`; `key` identifies it on the device."""

    key: str
    spec: BuildSpec
    files: Mapping[str, Path]


def build(device: Mapping[str, Any], job: Job, engine: Path, say: Say) -> Json:
    """Write the engine; its measurements.

    `device`: "name", "address", "seconds", and the "fingerprint" that the key was made with. A spec without a
    workspace, 0, is given the largest half, quarter, ... of the device's memory that is no more than half of what is
    free, and smaller ones where the build runs out of memory. Raises StepError, Unreachable.
    """
    with Session(**device["address"]) as session:
        return _Build(device, job, session, say).run(engine)


class _Build:
    def __init__(self, device: Mapping[str, Any], job: Job, session: Session, say: Say) -> None:
        self.device, self.job, self.session, self.say = device, job, session, say
        self.name = device["name"]
        self.digests = {name: sha256_file(path) for name, path in job.files.items()}

    def run(self, engine: Path) -> Json:
        probe = self.again(lambda: self.session.ask({"op": "probe"}))
        expected = self.device["fingerprint"]
        found = as_json(fingerprint(probe))
        if found != expected:
            now = found or {}
            changed = [
                f"{part} {expected[part]} -> {now.get(part)}" for part in expected if now.get(part) != expected[part]
            ]
            text = f"{self.name} is no longer what it was when the build was planned: {'; '.join(changed)}"
            raise StepError(text, "run the build again once nobody is at work on it")
        for _ in range(2):
            result = self.build(probe)  # which collects what is there, if it is whole
            output = result["outputs"]["engine"]
            if self.fetch(engine, output):
                self.tidy()
                return self.measurements(result, output)
            self.say("the engine is not what the device said; once more")
        engine.unlink()
        raise StepError(
            f"the engine from {self.name} is damaged whenever it arrives: its digest is not what the device says",
            "check the memory, disk and network of both machines",
        )

    def build(self, probe: Json) -> Json:
        request = self.request(probe)
        for _ in range(3):
            self.stage()
            try:
                result = self.again(lambda: self.session.ask(request, hear=self.hear))
            except Refusal as refusal:
                if refusal.reason == "missing":  # collected as garbage, or damaged, since it was staged
                    continue
                raise self.failed(refusal.reason, refusal.message, []) from None
            if not result["ok"]:
                raise self.failed(
                    result["reason"], result["message"], result.get("log", []), result.get("attempts", ())
                )
            return result
        raise StepError(f"{self.name} loses its inputs as fast as they arrive", "check that disk, and what cleans it")

    def request(self, probe: Json) -> Json:
        tensorrt = self.device["fingerprint"]["tensorrt"]
        spec = self.job.spec
        if not spec.workspace:
            spec = replace(
                spec, workspace=workspace(self.device["fingerprint"]["memory"], probe["memory"]["available"])
            )
        tries = [{"workspace": size, "arguments": argv} for size, argv in attempts(spec, tensorrt)]
        timing = None
        if spec.timing_cache is not None:
            timing = {"name": timing_name(self.device["fingerprint"]), "file": spec.timing_cache}
        return {
            "op": "build",
            "key": self.job.key,
            "files": self.digests,
            "trtexec": probe["trtexec"]["path"],
            "trtexec_sha256": probe["trtexec"]["sha256"],
            "tensorrt": tensorrt,
            "attempts": tries,
            "outputs": {"engine": spec.engine},
            "table": spec.table,
            "timing_cache": timing,
            "seconds": self.device["seconds"],
            "space": SPARE,
        }

    def stage(self) -> None:
        """Bring over what the device lacks of the inputs, from where an earlier transfer ended."""
        paths = {self.digests[name]: path for name, path in self.job.files.items()}
        files = [{"sha256": digest, "size": path.stat().st_size} for digest, path in sorted(paths.items())]
        spare = SPARE + sum(path.stat().st_size for path in paths.values())
        damaged = stuck = 0
        sent: dict[str, int] = {}
        while True:
            try:
                there = self.again(lambda: self.session.ask({"op": "stage", "files": files, "spare": spare}))
            except Refusal as refusal:
                raise self.failed(refusal.reason, refusal.message, []) from None
            whole = True
            for entry in there["missing"]:
                self.say(f"sending {entry['size'] - entry['offset']:,} bytes")
                try:
                    self.send(paths[entry["sha256"]], entry)
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
                    if refusal.reason not in ("corrupt", "short", "busy", "offset") or damaged == len(PAUSES):
                        raise self.failed(refusal.reason, refusal.message, []) from None
                    time.sleep(PAUSES[damaged])
                    damaged += 1
                    whole = False
            if whole:  # each was checked as it arrived, and the build looks once more
                return

    def send(self, path: Path, entry: Json) -> None:
        with path.open("rb") as source:
            source.seek(entry["offset"])
            self.session.ask({**entry, "op": "receive"}, payload=source)

    def fetch(self, engine: Path, output: Json) -> bool:
        """The engine's bytes, gone on with where the connection broke; whether they are what they should be."""
        self.say(f"fetching {output['size']:,} bytes")
        with engine.open("wb") as out:

            def receive() -> None:
                self.session.ask({"op": "send", "sha256": output["sha256"], "offset": out.tell()}, into=out)
                if out.tell() < output["size"]:
                    raise Dropped(f"{self.name}: the engine came only in part", "build again")

            try:
                self.again(receive)
            except Refusal as refusal:
                raise self.failed(refusal.reason, refusal.message, []) from None
            out.flush()
            os.fsync(out.fileno())
        return (engine.stat().st_size, sha256_file(engine)) == (output["size"], output["sha256"])

    def tidy(self) -> None:
        """Garbage collection must not cost a good engine."""
        try:
            self.session.ask({"op": "gc", "keep_bytes": KEPT_BYTES, "keep_seconds": KEPT_SECONDS})
        except StepError as error:
            self.say(f"old files on the device could not be removed: {error.message}")

    def again(self, ask: Callable[[], T]) -> T:
        """Ask; over a new connection where one breaks."""
        for pause in PAUSES:
            try:
                return ask()
            except Dropped as dropped:
                self.say(f"{dropped.message}; connecting again")
                time.sleep(pause)
        return ask()

    def hear(self, event: Json) -> None:
        text = str(event.get("doing", "at work"))
        if event.get("layers"):
            text += f", {event['layers']} layers timed"
        if event.get("seconds"):
            text += f", {event['seconds']} s"
        if event.get("attempt", 1) > 1:
            text += f", attempt {event['attempt']} with {event.get('workspace', 0) // MIB} MiB"
        self.say(text)

    def failed(self, reason: str, message: str, log: list[str], tries: Any = ()) -> StepError:
        hint = _HINTS.get(reason)
        if reason == "memory" and tries:
            sizes = ", ".join(f"{entry['workspace'] // MIB}" for entry in tries)
            message += f" with every workspace that was tried: {sizes} MiB"
        said = [line for line in log if "[E]" in line] or log[-3:]
        words = "; ".join(line.strip() for line in said[-4:])
        return StepError(f"{self.name}: {message}" + (f": {words[-900:]}" if words else ""), hint)

    def measurements(self, result: Json, output: Json) -> Json:
        tries = result["attempts"]
        notes = []
        if len(tries) > 1:
            sizes = [f"{entry['workspace'] // MIB} MiB" for entry in tries]
            notes.append(
                f"{self.name} ran out of memory with a workspace of {', '.join(sizes[:-1])}; "
                f"the engine was built with {sizes[-1]}"
            )
        return {
            "size": output["size"],
            "workspace": tries[-1]["workspace"],
            "attempts": tries,
            "build_seconds": result["seconds"],
            "waited": result["waited"],
            "layers_timed": result["layers"],
            "timing_cache": result["timing_cache"],
            "collected": result["collected"],
            "notes": notes,
        }


_HINTS = {
    "memory": "close what else runs on the device, add swap, or set build.workspace to less",
    "timeout": "give the device more `seconds` in the inventory, or look at what else it does",
    "disk": "free space on the device",
    "space": "free space on the device",
    "version": "run `trtrecipe devices probe` for it, then build again",
    "trtexec": "the device's words are those of trtexec; if JetPack was upgraded, build again",
    "died": "the device may have been switched off or be out of memory: build again",
    "lost": "look at the device's disk and memory, then build again",
    "corrupt": "check the memory and network of both machines",
    "lock": "see who else uses that file",
}


def workspace(memory: int, available: int | None) -> int:
    """Bytes: the largest of a half, a quarter, ... of all memory that is at most half of what is free."""
    size = memory // 2
    while size > SMALLEST_WORKSPACE and size > (available or memory) // 2:
        size //= 2
    return max(size // MIB * MIB, SMALLEST_WORKSPACE)


def timing_name(found: Mapping[str, Any]) -> str:
    """What may share measurements: the same module and the same TensorRT."""
    module = re.sub("[^a-z0-9]+", "-", (found["model"] or "unknown").lower()).strip("-")[:100]
    return f"{found['tensorrt']}-{module}-{found['memory'] >> 30}g"
