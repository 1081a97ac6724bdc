"""Runs what the store cannot serve: independent steps in parallel, each in its own process."""

from __future__ import annotations

import heapq
import selectors
import time
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import asdict, replace
from typing import Any

from trtrecipe.data.sources import to_json
from trtrecipe.plan.devices import resource
from trtrecipe.plan.graph import Graph, Step, StepOutput
from trtrecipe.plan.reason import Reason
from trtrecipe.plan.resolve import Resolution, Resolver
from trtrecipe.plan.sources import SampleSource, Source
from trtrecipe.run.events import Damaged, Finished, Listener, Outcome, Progress, Started, Waiting
from trtrecipe.run.process import WorkerProcess
from trtrecipe.steps.protocol import keywords
from trtrecipe.steps.registry import STEPS
from trtrecipe.store.records import Record
from trtrecipe.store.store import Store

BUSY_RETRY = 0.1  # seconds until a key that someone else works on is looked at again
_ORDER = {kind: number for number, kind in enumerate(STEPS)}
# A latency taken while other steps use the machine is no latency. They come last in the order, so nothing waits.
_ALONE = {"benchmark"}
# TensorRT times what it chooses from on this machine's GPU while it builds.
_ALONE_BUILDERS = {"tensorrt"}
# Kinds that use several processes themselves. While one runs, no other step is started.
_SPREADS = {kind for kind, module in STEPS.items() if "jobs" in keywords(module)}


def _measures(step: Step) -> bool:
    """Whether it takes times on this machine that others would disturb."""
    return step.kind in _ALONE or (step.kind == "compile" and step.params["builder"] in _ALONE_BUILDERS)


class Scheduler:
    """One build of a graph. `run` may be called once."""

    def __init__(
        self,
        graph: Graph,
        resolver: Resolver,
        store: Store,
        sources: Mapping[Source, str],
        jobs: int,
        listener: Listener,
    ) -> None:
        self._graph = graph
        self._resolver = resolver
        self._store = store
        self._sources = sources
        self._jobs = jobs
        self._listener = listener
        self._known: dict[str, Resolution] = {}
        self._outcomes: dict[str, Outcome] = {}
        self._ready: list[tuple[int, int, str]] = []
        self._ready_on: dict[str, list[tuple[int, int, str]]] = {}  # by the device's name
        self._later: list[tuple[float, str]] = []
        self._running: dict[str, WorkerProcess] = {}
        self._repeated: set[tuple[str, str]] = set()
        self._waited: set[str] = set()
        self._incomplete = False  # whether any step ended without a result
        self._index = {step_id: number for number, step_id in enumerate(graph.steps)}
        self._needs: dict[str, set[str]] = {}
        self._needed_by: dict[str, list[str]] = {step_id: [] for step_id in graph.steps}
        for step in graph.steps.values():
            self._needs[step.id] = {s.step for s in step.inputs.values() if isinstance(s, StepOutput)}
            for before in self._needs[step.id]:
                self._needed_by[before].append(step.id)

    @property
    def outcomes(self) -> Mapping[str, Outcome]:
        """How steps ended so far."""
        return self._outcomes

    def run(self) -> None:
        """Build everything that can be built. KeyboardInterrupt stops the workers and passes."""
        selector = selectors.DefaultSelector()
        try:
            self._resolve(deque(step_id for step_id, needs in self._needs.items() if not needs))
            while self._ready or any(self._ready_on.values()) or self._running or self._later:
                self._wake()
                while (step_id := self._next()) is not None:
                    if not self._is_still_to_run(step_id):
                        continue
                    worker = self._start(self._graph.steps[step_id])
                    if worker is not None:
                        selector.register(worker, selectors.EVENT_READ, step_id)
                timeout = max(0.0, self._later[0][0] - time.monotonic()) if self._later else None
                if not self._running:
                    time.sleep(timeout or 0.0)
                    continue
                for event, _ in selector.select(timeout):
                    if not self._running[event.data].read():
                        selector.unregister(event.fileobj)
                        self._finish(self._graph.steps[event.data], self._running.pop(event.data))
        finally:
            for worker in self._running.values():
                worker.kill()
                worker.log.unlink(missing_ok=True)
            selector.close()

    def _resolve(self, open_steps: deque[str]) -> None:
        """Settle every step whose inputs are known, as far as hits carry."""
        while open_steps:
            step = self._graph.steps[open_steps.popleft()]
            resolution = self._resolver.resolve(step, self._known)
            self._known[step.id] = resolution
            if resolution.status == "run":
                self._make_ready(step)
            elif resolution.status == "hit":
                self._settle(step, Outcome("hit", resolution), open_steps)
            elif resolution.status == "pending":
                self._settle(step, Outcome("pending", resolution), open_steps)
            else:
                self._settle(step, Outcome("failed", resolution, error=resolution.reason), open_steps)

    def _settle(self, step: Step, outcome: Outcome, open_steps: deque[str]) -> None:
        """Note how a step ended; what waited for it alone is opened, or settled too if an input will not come."""
        # A queue instead of recursion: chains may be 10,000 steps long.
        settled = deque([(step, outcome)])
        while settled:
            step, outcome = settled.popleft()
            self._outcomes[step.id] = outcome
            self._known[step.id] = outcome.resolution
            self._incomplete |= outcome.status not in ("hit", "ran")
            self._listener(Finished(step, outcome))
            for after in self._needed_by[step.id]:
                needs = self._needs[after]
                if step.id not in needs:
                    continue
                needs.remove(step.id)
                if needs:
                    continue
                without = self._cannot_run(self._graph.steps[after]) if self._incomplete else None
                if without is None:
                    open_steps.append(after)
                else:
                    settled.append((self._graph.steps[after], without))

    def _cannot_run(self, step: Step) -> Outcome | None:
        """ "blocked" or "pending" when an input will not come in this build."""
        froms = [source.step for source in step.inputs.values() if isinstance(source, StepOutput)]
        for status, kinds in (("blocked", ("failed", "blocked")), ("pending", ("pending",))):
            for before in froms:
                if self._outcomes[before].status in kinds:
                    text = f"{'needs' if status == 'blocked' else 'waits for'} {before.partition(':')[2]}"
                    return Outcome(status, Resolution(status), error=text)
        return None

    def _start(self, step: Step) -> WorkerProcess | None:
        resolution = self._known[step.id]
        assert resolution.key is not None
        resources: dict[str, Any] = {**step.resources, **({"jobs": self._jobs} if step.kind in _SPREADS else {})}
        if step.device is not None:
            resources["device"] = resource(self._resolver.devices.assigned(step.device))
        request = {
            "store": str(self._store.root),
            "kind": step.kind,
            "params": step.params,
            "resources": resources,
            "key": resolution.key,
            "key_document": resolution.key_document,
            "inputs": {role: self._request_input(source) for role, source in step.inputs.items()},
        }
        try:
            log = self._store.log_path(resolution.key)
            worker = WorkerProcess(request, log, self._store.root, lambda text: self._listener(Progress(step, text)))
        except OSError as error:
            text = f"its process cannot be started: {error.strerror or error}"
            self._fail(step, Outcome("failed", Resolution("failed", resolution.key), error=text))
            return None
        self._running[step.id] = worker
        self._listener(Started(step, resolution))
        return worker

    def _request_input(self, source: Source | StepOutput) -> dict[str, Any]:
        if isinstance(source, StepOutput):
            outputs = self._known[source.step].outputs
            assert outputs is not None
            return {"blob": asdict(outputs[source.role])}
        sha256 = self._sources[source]
        if isinstance(source, SampleSource):
            return {"data": to_json(source.data), "sampling": asdict(source.sampling), "sha256": sha256}
        return {"path": str(source.path.absolute()), "sha256": sha256}

    def _finish(self, step: Step, worker: WorkerProcess) -> None:
        answer = worker.finish()
        before = self._known[step.id]
        assert before.key is not None
        status = answer["status"]
        if status in ("ran", "hit"):
            worker.log.unlink(missing_ok=True)
            found = self._store.lookup(before.key)
            if isinstance(found, Record):
                done = Resolution("hit", before.key, outputs=found.outputs, measurements=found.measurements)
                opened: deque[str] = deque()
                self._settle(step, Outcome(status, done, answer.get("seconds", 0.0), before), opened)
                self._resolve(opened)
                return
            answer = {"error": "its result was damaged in the store as soon as it was written"}
        elif status == "busy":
            worker.log.unlink(missing_ok=True)
            self._wait_for_another_build(step)
            return
        elif status == "pending":
            worker.log.unlink(missing_ok=True)
            text = answer["error"] + (f"; {answer['hint']}" if answer.get("hint") else "")
            waits = Resolution("pending", before.key, (Reason(text),))
            self._fail(step, Outcome("pending", waits, why=before, error=text))
            return
        elif status == "damaged":
            self._listener(Damaged(step, answer["sha256"]))
            if self._repeat_producer(step, answer["sha256"]):
                worker.log.unlink(missing_ok=True)
                return
        error = answer.get("error", "an input in the store is damaged, also after it was made again")
        log = worker.keep_log()
        failed = Resolution("failed", before.key)
        self._fail(step, Outcome("failed", failed, why=before, error=error, hint=answer.get("hint"), log=log))

    def _fail(self, step: Step, outcome: Outcome) -> None:
        opened: deque[str] = deque()
        self._settle(step, outcome, opened)
        self._resolve(opened)

    def _repeat_producer(self, step: Step, sha256: str) -> bool:
        """Make `step` wait until the step whose stored output turned out damaged has made it again; once each."""
        for source in step.inputs.values():
            if not isinstance(source, StepOutput) or (step.id, source.step) in self._repeated:
                continue
            outputs = self._known[source.step].outputs
            if outputs is None or outputs[source.role].sha256 == sha256:
                self._repeated.add((step.id, source.step))
                self._needs[step.id] = {source.step}
                if self._outcomes.pop(source.step, None) is not None:
                    self._resolve(deque([source.step]))
                return True
        return False

    def _make_ready(self, step: Step) -> None:
        entry = _ORDER[step.kind], self._index[step.id], step.id
        heapq.heappush(self._ready if step.device is None else self._ready_on.setdefault(self._device(step), []), entry)

    def _device(self, step: Step) -> str:
        """The name of the device that a step runs on."""
        assert step.device is not None
        device = self._resolver.devices.assigned(step.device).device
        return "" if device is None else device.name

    def _next(self) -> str | None:
        """The step to start now, no longer among those that are ready."""
        on_devices = [step_id for step_id in self._running if self._graph.steps[step_id].device is not None]
        busy = {self._device(self._graph.steps[step_id]) for step_id in on_devices}
        for device, ready in self._ready_on.items():
            if ready and device not in busy:
                return heapq.heappop(ready)[2]
        # What runs on a device takes next to nothing of this machine.
        here = [step_id for step_id in self._running if step_id not in on_devices]
        return heapq.heappop(self._ready)[2] if self._may_start(here) else None

    def _may_start(self, running: Collection[str]) -> bool:
        """Whether the first of the ready steps may start now, while those `running` do on this machine."""
        used = sum(self._jobs if self._graph.steps[step_id].kind in _SPREADS else 1 for step_id in running)
        if not self._ready or used >= self._jobs:
            return False
        steps = [self._graph.steps[step_id] for step_id in (*running, self._ready[0][2])]
        return not running or not any(_measures(step) for step in steps)

    def _is_still_to_run(self, step_id: str) -> bool:
        """Look at a ready step once more; if it need not or cannot start now, see to it that it is looked after."""
        step, before = self._graph.steps[step_id], self._known[step_id]
        assert before.key is not None
        # An input may be being made again since the step became ready, or have been, to other bytes.
        again = {s.step for s in step.inputs.values() if isinstance(s, StepOutput) and s.step not in self._outcomes}
        if again:
            self._needs[step_id] = again
            return False
        if self._repeated and self._resolver.resolve(step, self._known).key != before.key:
            self._resolve(deque([step_id]))
            return False
        # Someone may have made it: another build, or a step of this one with the same key.
        found = self._store.lookup(before.key)
        if isinstance(found, Record):
            done = replace(before, status="hit", outputs=found.outputs, measurements=found.measurements)
            opened: deque[str] = deque()
            self._settle(step, Outcome("hit", done, why=before), opened)
            self._resolve(opened)
            return False
        if self._is_running(before.key):
            self._look_again_at(step_id)
            return False
        if self._is_locked(before.key):
            self._wait_for_another_build(step)
            return False
        return True

    def _is_running(self, key: str | None) -> bool:
        """Whether another step of this build, with the same key, is at work: two dialects may need the same graph."""
        return any(self._known[step_id].key == key for step_id in self._running)

    def _look_again_at(self, step_id: str) -> None:
        heapq.heappush(self._later, (time.monotonic() + BUSY_RETRY, step_id))

    def _wait_for_another_build(self, step: Step) -> None:
        if step.id not in self._waited:
            self._waited.add(step.id)
            self._listener(Waiting(step))
        self._look_again_at(step.id)

    def _wake(self) -> None:
        """Look again at the keys that someone else was working on."""
        now = time.monotonic()
        while self._later and self._later[0][0] <= now:
            step_id = heapq.heappop(self._later)[1]
            self._make_ready(self._graph.steps[step_id])

    def _is_locked(self, key: str) -> bool:
        lock = self._store.lock(key)
        free = lock.acquire()
        lock.release()
        return not free
