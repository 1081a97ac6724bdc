"""What a device that SSH does not reach is to do, packed: inputs, jobs, and the programs that do them there.

The host part of the build runs as in `build`. The steps of the device then run up to the point where they ask a device
for something (`device.recorder`), and what they ask is the bundle. An input that a step before them makes there does
not exist yet: a file of our own stands for it, and where its digest is asked for, the job that makes it is named.

    README.txt build.py agent.py bundle.json files/<sha256>

Equal plans, inputs and releases of trtrecipe give equal bytes, wherever and whenever they are packed.
"""

from __future__ import annotations

import gzip
import io
import os
import re
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trtrecipe.data.sources import to_json
from trtrecipe.device.recorder import take_jobs
from trtrecipe.digest import canonical_json, sha256_bytes, sha256_file, sha256_json
from trtrecipe.errors import InputError, StepError
from trtrecipe.plan.devices import Assigned, Need, resource
from trtrecipe.plan.graph import Graph, RecipePlan, Step, StepOutput
from trtrecipe.plan.machine import Machine
from trtrecipe.plan.resolve import Resolution, Resolver
from trtrecipe.plan.sources import SampleSource, Source
from trtrecipe.run.build import resolver_for
from trtrecipe.run.events import Listener, Outcome
from trtrecipe.run.process import WorkerProcess
from trtrecipe.run.scheduler import Scheduler
from trtrecipe.steps.registry import STEPS
from trtrecipe.store.blobs import Blob
from trtrecipe.store.store import BUCKET, Store
from trtrecipe.targets.devices import Device, Fingerprint

SCHEMA = "trtrecipe/bundle/v1"
PROGRAMS = {"agent.py": "agent.py", "build.py": "bundled.py"}
"""Name in a bundle → module of `device`."""
INSTEAD = "module"
"""What a job of the device's Python fails with where it lacks TensorRT's module: the step may have another way."""
_NOBODY = Fingerprint(model=None, memory=8 << 30, l4t=None, cuda=None, tensorrt="", trtexec="0" * 64)
Json = dict[str, Any]


@dataclass(frozen=True)
class Packed:
    """`jobs`: their ids. `size`: bytes of the archive."""

    path: Path
    sha256: str
    size: int
    profile: str
    tensorrt: str
    jobs: tuple[str, ...]


def bundle(graph: Graph, store: Store, machine: Machine, jobs: int, listener: Listener, path: Path) -> Packed:
    """Build what is built here, and write the archive. `graph`: targets of one recipe, for one device.

    Raises InputError, StepError, StoreError, OSError; KeyboardInterrupt passes through.
    """
    [recipe] = graph.recipes
    profile, tensorrt = _device_of(recipe, graph)
    with _scratch(store) as scratch:
        here = host_part(graph, store, machine, jobs, listener)
        done = _Recording(graph, store, here, scratch).jobs()
        content: Json = {
            "schema": SCHEMA,
            "recipe": recipe.name,
            "targets": list(dict.fromkeys(plan.target.id for plan in recipe.targets)),
            "profile": profile,
            "modules": _modules(recipe),
            "tensorrt": tensorrt,
            "programs": {name: {"sha256": sha256_bytes(data), "size": len(data)} for name, data in programs().items()},
            "files": {file.name: file.stat().st_size for file in sorted((scratch / "files").iterdir())},
            "steps": documents(graph, here),
            "jobs": done,
        }
        content["sha256"] = sha256_json(content)
        written = _write(content, scratch, path)
    return Packed(path, written.sha256, written.size, profile, tensorrt, tuple(job["id"] for job in done))


def _device_of(recipe: RecipePlan, graph: Graph) -> tuple[str, str]:
    """Profile and TensorRT of the one device that all targets need. Raises InputError."""
    found: dict[tuple[str, str], str] = {}
    for plan in recipe.targets:
        needs = {step.device for step_id in plan.steps if (step := graph.steps[step_id]).device is not None}
        if not needs:
            raise InputError.of(f"target {plan.target.id} needs no device", "`trtrecipe build` makes it here")
        for need in needs:
            assert need is not None
            found.setdefault((need.profile, need.tensorrt), plan.target.id)
    if len(found) > 1:
        text = " and ".join(
            f"{target} needs a {name} with TensorRT {version}" for (name, version), target in found.items()
        )
        raise InputError.of(f"a bundle is for one device: {text}", "make a bundle for each, with --target")
    return next(iter(found))


def _modules(recipe: RecipePlan) -> list[str]:
    """What one of a device's compatible strings names, if it is of the profile."""
    variants = recipe.targets[0].target.profile.variants
    return sorted({module.split()[0] for variant in variants for module in variant.modules})


@dataclass(frozen=True)
class HostPart:
    """What needs no device, built. `resolver` takes each device for one of which nothing is known."""

    resolver: Resolver
    sources: Mapping[Source, str]
    known: Mapping[str, Resolution]


def host_part(graph: Graph, store: Store, machine: Machine, jobs: int, listener: Listener) -> HostPart:
    """Build everything that needs no device. Raises InputError, StoreError, StepError where a step cannot be done."""
    resolver, sources = resolver_for(graph, store, machine)
    scheduler = Scheduler(graph, resolver, store, sources, jobs, listener)
    scheduler.run()
    known = {}
    for step_id, outcome in scheduler.outcomes.items():
        if graph.steps[step_id].device is None and not _follows_a_device(graph, step_id):
            if outcome.resolution.outputs is None:
                raise StepError(f"{step_id}: {_why(outcome)}", outcome.hint)
            known[step_id] = outcome.resolution
    return HostPart(Resolver(store, sources, machine, {}, _Anyone()), sources, known)


def _follows_a_device(graph: Graph, step_id: str) -> bool:
    needs = (source.step for source in graph.steps[step_id].inputs.values() if isinstance(source, StepOutput))
    return any(graph.steps[each].device is not None or _follows_a_device(graph, each) for each in needs)


def _why(outcome: Outcome) -> str:
    return outcome.error or outcome.resolution.reason or outcome.status


class _Anyone:
    """`plan.devices.Devices`: for each need a device of which nothing is known."""

    def assigned(self, need: Need) -> Assigned:
        """That device."""
        shown = Fingerprint(**{**asdict(_NOBODY), "tensorrt": f"{need.tensorrt}.0"})
        return Assigned(Device("the device", need.profile), shown, None)


def documents(graph: Graph, here: HostPart) -> dict[str, Json]:
    """Step → what its key is made of but for the device, for each step of a device."""
    found = {}
    for step, resolution, _ in _on_device(graph, here):
        assert resolution.key_document is not None
        found[step.name] = {name: value for name, value in resolution.key_document.items() if name != "device"}
    return found


def _on_device(graph: Graph, here: HostPart) -> Iterator[tuple[Step, Resolution, dict[str, Resolution]]]:
    """Each step that a device does, what it comes to, and what is known before it."""
    now = dict(here.known)
    for step in graph.steps.values():
        if step.device is None:
            continue
        resolution = here.resolver.resolve(step, now)
        if resolution.key_document is None:
            raise StepError(f"{step.id}: {resolution.reason or resolution.status}")
        yield step, resolution, dict(now)
        outputs = {role: _blob(stand_in(step, role)) for role in STEPS[step.kind].OUTPUTS}
        now[step.id] = Resolution("hit", resolution.key, outputs=outputs)


def stand_in(step: Step, role: str) -> bytes:
    """The file that stands for an output which the device makes."""
    return f"the {role} that {step.name} makes\n".encode()


def _blob(data: bytes) -> Blob:
    return Blob(sha256_bytes(data), len(data))


@dataclass(frozen=True)
class _Recording:
    """The device's steps of a graph, and the folder where what they ask for is collected."""

    graph: Graph
    store: Store
    here: HostPart
    folder: Path

    def jobs(self) -> list[Json]:
        """The jobs, in order."""
        made: dict[str, Json] = {}
        jobs: list[Json] = []
        (self.folder / "stand-ins").mkdir()
        for step, resolution, known in _on_device(self.graph, self.here):
            mine = self._ask(step, resolution, known, made, [])
            if not mine:
                raise StepError(f"{step.id} asks nothing of a device", "this is a defect of trtrecipe")
            only: Json = {}
            if mine[-1].get("program") == "python":
                failed = {"ok": False, "reason": INSTEAD, "message": "", "log": [], "attempts": []}
                others = self._ask(step, resolution, known, made, [failed])
                only = {"unless": {"job": _job_id(step, len(mine)), "reason": INSTEAD}}
            else:
                others = []
            for number, request in enumerate(mine + others, 1):
                jobs.append({"id": _job_id(step, number), "request": request, **(only if number > len(mine) else {})})
            for role in STEPS[step.kind].OUTPUTS:
                data = stand_in(step, role)
                (self.folder / "stand-ins" / sha256_bytes(data)).write_bytes(data)
                made[sha256_bytes(data)] = {"job": step.name, "output": role}
        return jobs

    def _ask(
        self,
        step: Step,
        resolution: Resolution,
        known: Mapping[str, Resolution],
        made: Mapping[str, Json],
        answers: Sequence[Json],
    ) -> list[Json]:
        """The jobs that a step asks for, once the device has given it `answers`."""
        assert step.device is not None and resolution.key is not None
        device = resource(self.here.resolver.devices.assigned(step.device))
        address = {
            "record": str(self.folder),
            "fingerprint": device["fingerprint"],
            "made": made,
            "answers": list(answers),
        }
        request = {
            "store": str(self.store.root),
            "kind": step.kind,
            "params": step.params,
            "resources": {**step.resources, "device": {**device, "address": address}},
            "key": resolution.key,
            "key_document": resolution.key_document,
            "inputs": {role: self._input(source, known) for role, source in step.inputs.items()},
        }
        worker = WorkerProcess(request, self.store.log_path(resolution.key), self.store.root)
        try:
            while worker.read():
                pass
            answer = worker.finish()
        except BaseException:
            worker.kill()
            raise
        finally:
            worker.log.unlink(missing_ok=True)
        jobs = take_jobs(self.folder)
        if not jobs and not answers:
            if answer["status"] == "damaged":
                raise StepError("a file in the store was damaged, and is set aside", "run the command again")
            raise StepError(f"{step.id}: {answer.get('error', answer['status'])}", answer.get("hint"))
        return jobs

    def _input(self, source: Source | StepOutput, known: Mapping[str, Resolution]) -> Json:
        if isinstance(source, StepOutput):
            outputs = known[source.step].outputs
            assert outputs is not None
            blob = outputs[source.role]
            if self.graph.steps[source.step].device is not None:
                return {"path": str(self.folder / "stand-ins" / blob.sha256), "sha256": blob.sha256}
            return {"blob": asdict(blob)}
        sha256 = self.here.sources[source]
        if isinstance(source, SampleSource):
            return {"data": to_json(source.data), "sampling": asdict(source.sampling), "sha256": sha256}
        return {"path": str(source.path.absolute()), "sha256": sha256}


def _job_id(step: Step, number: int) -> str:
    """The first job of a step is called like it."""
    return step.name if number == 1 else f"{step.name}:{number}"


def programs() -> dict[str, bytes]:
    """What runs on the device, by its name in a bundle."""
    from trtrecipe.device.ssh import AGENT

    return {name: AGENT.with_name(module).read_bytes() for name, module in PROGRAMS.items()}


@contextmanager
def _scratch(store: Store) -> Iterator[Path]:
    """A folder on the store's disk, where there is room for models."""
    with tempfile.TemporaryDirectory(prefix="bundle-", dir=store.root / BUCKET / "tmp") as folder:
        yield Path(folder)


def folder_name(recipe: str, targets: Sequence[str]) -> str:
    """What the bundle of these targets unpacks to."""
    return re.sub("[^A-Za-z0-9._-]+", "-", "-".join((recipe, *targets)))[:100]


def _write(content: Json, folder: Path, path: Path) -> Blob:
    """The archive: sorted names, no times, no owners, and no name in its header."""
    top = folder_name(content["recipe"], content["targets"])
    texts = {"README.txt": _readme(content).encode(), "bundle.json": canonical_json(content), **programs()}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}")
    try:
        with (
            temporary.open("wb") as raw,
            gzip.GzipFile(filename="", fileobj=raw, mode="wb", compresslevel=1, mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive,
        ):
            for name, data in sorted(texts.items()):
                archive.addfile(_member(f"{top}/{name}", len(data)), io.BytesIO(data))
            for digest, size in sorted(content["files"].items()):
                with (folder / "files" / digest).open("rb") as source:
                    archive.addfile(_member(f"{top}/files/{digest}", size), source)
        found = Blob(sha256_file(temporary), temporary.stat().st_size)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return found


def _member(name: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o644
    return member


def _readme(content: Json) -> str:
    targets, jobs = ", ".join(content["targets"]), "".join(f"    {job['id']}\n" for job in content["jobs"])
    return _README.format(**{**content, "targets": targets, "jobs": jobs, "archive": "result.tar.gz"})


_README = """\
What a {profile} with TensorRT {tensorrt} is to do for the recipe {recipe}: {targets}

On the device, in this folder:

    python3 build.py

It needs nothing but what JetPack brings: Python 3.6 or later and TensorRT with its trtexec. It looks first whether this
is the device that the bundle is for and whether everything arrived whole, and builds nothing otherwise. Then it does

{jobs}
one after the other, and never while another build of trtrecipe uses the device. It may be interrupted at any time:
started again it goes on with what is not finished yet.

    --trtexec PATH    use this trtexec instead of JetPack's own
    --output FOLDER   write there and not here, where this folder cannot be written to
    --seconds N       how long one job may take

Bring back {archive} and, where the recipe is:

    trtrecipe import-result RECIPE.yaml {archive}

Everything that it writes is in this folder, or in the one that --output names: `work`, which may be deleted once
nothing is to be done again, `result`, and {archive}, which is the same as one file.
"""
