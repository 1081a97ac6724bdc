"""Keys and hits: what of a graph the store can serve, and why the rest has to run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trtrecipe.digest import sha256_json
from trtrecipe.plan.devices import Assigned, Devices, NoDevices, in_key
from trtrecipe.plan.graph import Graph, Step, StepOutput
from trtrecipe.plan.last import LastStep, sources_in_words
from trtrecipe.plan.machine import Machine
from trtrecipe.plan.reason import NEW, Reason, changes, lost, waits_for
from trtrecipe.plan.sources import SampleSource, Source
from trtrecipe.plan.tools import install_hint, version
from trtrecipe.steps.registry import STEPS
from trtrecipe.store.blobs import Blob
from trtrecipe.store.records import DamagedRecordError, Record
from trtrecipe.store.store import Store

KEY_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Resolution:
    """What is known of a step before it runs.

    `status`: "hit" (the store serves it), "run", "unknown" (its key waits for another step), "pending" (it cannot run
    here, see the reason) or "unable" (a tool is not installed). `key_document` is kept for steps that will run.
    """

    status: str
    key: str | None = None
    reasons: tuple[Reason, ...] = ()
    key_document: Mapping[str, Any] | None = None
    outputs: Mapping[str, Blob] | None = None
    measurements: Mapping[str, Any] | None = None

    @property
    def reason(self) -> str:
        """All reasons in one line."""
        return "; ".join(reason.text for reason in self.reasons)


class Resolver:
    """Resolves steps against a store. `last` maps recipe name → step name → what is kept of the last build."""

    def __init__(
        self,
        store: Store,
        sources: Mapping[Source, str],
        machine: Machine,
        last: Mapping[str, Mapping[str, LastStep]],
        devices: Devices | None = None,
    ) -> None:
        self._store = store
        self._sources = sources
        self._machine = machine
        self._last = last
        self.devices = devices or NoDevices()

    def resolve(self, step: Step, known: Mapping[str, Resolution]) -> Resolution:
        """The step's key and whether the store has it, given what is `known` of the steps before it."""
        if step.pending is not None:
            return Resolution("pending", reasons=(Reason(step.pending),))
        assigned = None if step.device is None else self.devices.assigned(step.device)
        if assigned is not None and assigned.fingerprint is None:
            return Resolution("pending", reasons=(Reason(assigned.problem or "waits for a device"),))
        inputs: dict[str, str] = {}
        for role, source in step.inputs.items():
            if isinstance(source, StepOutput):
                outputs = known[source.step].outputs
                if outputs is None:
                    return Resolution("unknown", reasons=(waits_for(source.step.partition(":")[2]),))
                inputs[role] = outputs[source.role].sha256
            else:
                inputs[role] = self._sources[source]
        tools = {tool: version(tool) for tool in tools_of(step)}
        if None in tools.values():
            missing = [tool for tool, found in tools.items() if found is None]
            text = f"needs {' and '.join(missing)}, which is not installed; {install_hint(missing[0])}"
            return Resolution("unable", reasons=(Reason(text),))
        document = self._key_document(step, inputs, tools, assigned)
        found = self._look_up(step, document)
        if assigned is not None and assigned.problem is not None and found.status == "run":
            return Resolution("pending", found.key, (Reason(assigned.problem), *found.reasons))
        return found

    def _key_document(
        self,
        step: Step,
        inputs: Mapping[str, str],
        tools: Mapping[str, str | None],
        assigned: Assigned | None,
    ) -> dict[str, Any]:
        module = STEPS[step.kind]
        document: dict[str, Any] = {
            "format": KEY_FORMAT,
            "kind": step.kind,
            "version": module.VERSION,
            "params": step.params,
            "inputs": inputs,
            "tools": tools,
        }
        if assigned is not None:
            assert assigned.fingerprint is not None
            document["device"] = in_key(assigned.fingerprint)
            if step.kind == "benchmark":
                document["settings"] = dict(assigned.settings)
        elif module.NUMERIC:
            document["platform"] = {"cpu": self._machine.cpu}
        gpu = self._machine.gpu
        if gpu is not None and _depends_on_gpu(step):
            document["gpu"] = {"name": gpu.name, "compute_capability": gpu.compute_capability, "driver": gpu.driver}
        if step.kind == "benchmark" and assigned is None:
            document["machine"] = self._machine.model
        return document

    def _look_up(self, step: Step, document: Mapping[str, Any]) -> Resolution:
        key = sha256_json(document)
        found = self._store.lookup(key)
        if isinstance(found, Record):
            return Resolution("hit", key, outputs=found.outputs, measurements=found.measurements)
        if found.what != "none":
            return Resolution("run", key, (lost(found.what, found.output),), document)
        return Resolution("run", key, tuple(self._why(step, key, document)), document)

    def _why(self, step: Step, key: str, document: Mapping[str, Any]) -> list[Reason]:
        last = self.last(step)
        if last is None:
            return [NEW]
        if last.key == key:
            return [Reason("the store no longer has its result")]
        before = self._key_document_of(last.key)
        if before is None:
            return [Reason("changed since its last run, of which the store no longer has the record")]
        return changes(before, document, origins(step), (last.sources, sources_in_words(step)))

    def last(self, step: Step) -> LastStep | None:
        """What is kept of the step's part in the recipe's last build."""
        return self._last.get(step.id.partition(":")[0], {}).get(step.name)

    def changed(self, step: Step, key: str) -> list[Reason]:
        """What is different from the last build for a step that the store can serve all the same."""
        last = self.last(step)
        if last is None or last.key == key:
            return []
        document = self._key_document_of(key)
        return [] if document is None else self._why(step, key, document)

    def _key_document_of(self, key: str) -> Mapping[str, Any] | None:
        try:
            return self._store.records.key_document(key)
        except DamagedRecordError:
            return None


def _depends_on_gpu(step: Step) -> bool:
    """Whether it runs an engine on this machine's GPU, or builds one that is for that GPU alone."""
    if step.kind == "compile":
        return bool(step.params["builder"] == "tensorrt")
    return step.kind in ("verify", "benchmark") and step.params["runtime"] in ("tensorrt", "tensorrt-rtx")


def tools_of(step: Step) -> tuple[str, ...]:
    """The distributions that decide the step's outputs: those of its kind, and those that its samples need."""
    module = STEPS[step.kind]
    needed = dict.fromkeys(module.tools(module.Params(**step.params)))
    for source in step.inputs.values():
        if isinstance(source, SampleSource):
            needed |= dict.fromkeys(source.tools)
    return tuple(needed)


def origins(step: Step) -> dict[str, str]:
    """Input role → name of the step it comes from, "" for what comes from outside."""
    return {
        role: source.step.partition(":")[2] if isinstance(source, StepOutput) else ""
        for role, source in step.inputs.items()
    }


def resolve_all(graph: Graph, resolver: Resolver) -> dict[str, Resolution]:
    """Resolve every step, in the graph's order, without running anything."""
    known: dict[str, Resolution] = {}
    for step in graph.steps.values():
        known[step.id] = resolver.resolve(step, known)
    return known
