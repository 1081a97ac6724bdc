"""What a build made, per target: status, figures and verdicts, read from how its steps ended.

Of a target's candidates the fastest that meets its gates is shipped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from trtrecipe.data.limits import QUALITY
from trtrecipe.plan.graph import Graph, RecipePlan, TargetPlan
from trtrecipe.recipe.findings import listed
from trtrecipe.run.events import Outcome
from trtrecipe.run.gates import Verdict, evaluate
from trtrecipe.run.verdicts import judged
from trtrecipe.store.blobs import Blob

GRAPH_EVALUATED = (
    "accuracy was measured on the graph that was compiled, run by ONNX Runtime on the CPU: "
    "no GPU here can execute the engine itself"
)


@dataclass(frozen=True)
class TargetResult:
    """`status`: "built", "cached", "failed", "gate-failed" or "pending". `steps` pairs step ids with outcomes.

    `kept`: names of the ONNX nodes that stayed in a higher precision; `search`: what a search measured. `candidates`:
    where a recipe names several modes, all of them; the others are what `chosen` among them made, or the first of them
    where there is no choice (`chosen` None), which is then without artifacts. `dla`: what runs on the DLA core and what
    on the GPU, of an engine for DLA.
    """

    plan: TargetPlan
    status: str
    artifacts: Mapping[str, Blob]
    metrics: Mapping[str, Any]
    gates: tuple[Verdict, ...]
    notes: tuple[str, ...]
    steps: tuple[tuple[str, Outcome], ...]
    error: str | None = None  # why what was built could not be placed
    kept: tuple[str, ...] = ()
    search: Mapping[str, Any] | None = None
    candidates: tuple[TargetResult, ...] = ()
    chosen: str | None = None
    dla: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class RecipeResult:
    """A recipe's targets, in its order."""

    plan: RecipePlan
    targets: tuple[TargetResult, ...]


def results(graph: Graph, outcomes: Mapping[str, Outcome]) -> tuple[RecipeResult, ...]:
    """The results of all recipes of a graph."""
    return tuple(RecipeResult(recipe, judged(list(_targets(graph, recipe, outcomes)))) for recipe in graph.recipes)


def _targets(graph: Graph, recipe: RecipePlan, outcomes: Mapping[str, Outcome]) -> Iterator[TargetResult]:
    # A target's candidates stand side by side.
    for _, plans in groupby(recipe.targets, key=lambda plan: plan.target.id):
        made = [_target_result(graph, recipe, plan, outcomes) for plan in plans]
        yield choose(made) if made[0].plan.target.rivals else made[0]


def choose(candidates: Sequence[TargetResult]) -> TargetResult:
    """The target that its candidates make: the fastest of those that meet its gates, if that is known."""
    ended = {candidate.status for candidate in candidates}
    left = [candidate for candidate in candidates if candidate.status in ("built", "cached", "pending")]
    steps = tuple(dict(pair for candidate in candidates for pair in candidate.steps).items())
    every = tuple(candidates)
    notes = tuple(dict.fromkeys(note for candidate in candidates for note in candidate.notes))
    undecided = TargetResult(candidates[0].plan, "", {}, {}, (), notes, steps, candidates=every)
    if "failed" in ended:
        return replace(undecided, status="failed")
    if not left:
        return replace(undecided, status="gate-failed")
    latencies = [candidate.metrics.get("latency_ms", {}).get("p50") for candidate in left]
    if len(left) > 1 and None in latencies:
        names = listed(candidate.plan.target.mode for candidate in left)
        note = f"which of {names} is the fastest has not been measured, so none is shipped"
        return replace(undecided, status="pending", notes=(*notes, note))
    chosen = min(left, key=lambda candidate: candidate.metrics["latency_ms"]["p50"]) if len(left) > 1 else left[0]
    status = "built" if chosen.status == "cached" and "built" in ended else chosen.status
    mode = chosen.plan.target.mode
    return replace(chosen, status=status, steps=steps, candidates=every, chosen=mode)


def search_may_help(result: TargetResult) -> bool:
    """Whether the target misses a gate that keeping layers out of INT8 may meet, and nobody looks for those layers."""
    target = result.plan.target
    missed = {gate.gate.partition(".")[0] for gate in result.gates if gate.status == "missed"}
    return not missed.isdisjoint(QUALITY) and target.quantization == "explicit" and not target.search


def _target_result(graph: Graph, recipe: RecipePlan, plan: TargetPlan, outcomes: Mapping[str, Outcome]) -> TargetResult:
    steps = tuple((step_id, outcomes[step_id]) for step_id in plan.steps)
    artifacts: dict[str, Blob] = {}
    for name, origin in plan.artifacts.items():
        outputs = outcomes[origin.step].resolution.outputs
        if outputs is not None:
            artifacts[name] = outputs[origin.role]
    measured = {graph.steps[step_id].kind: outcome.resolution.measurements or {} for step_id, outcome in steps}
    metrics = _metrics(measured)
    metric = recipe.loaded.recipe.evaluation.metric if recipe.loaded.recipe.evaluation is not None else None
    sized = {**metrics, "size": artifacts["engine"].size} if "engine" in artifacts else metrics
    gates = evaluate(plan.target.gates, plan.target.mode, metric, sized)
    notes = [*plan.target.notes]
    for measurements in measured.values():
        notes += [note for note in measurements.get("notes", ()) if note not in notes]
    if plan.evaluates == "graph" and "cosine" in metrics:
        notes.append(GRAPH_EVALUATED)
    search = measured.get("search")
    return TargetResult(
        plan=plan,
        status=_status(steps, gates),
        artifacts=artifacts,
        metrics=metrics,
        gates=gates,
        notes=tuple(notes),
        steps=steps,
        kept=tuple((search or measured.get("lower", {})).get("kept", ())),
        dla=measured.get("compile", {}).get("dla"),
        search={name: search[name] for name in ("ranking", "evaluations") if name in search} if search else None,
    )


def _metrics(measured: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    verify, benchmark = measured.get("verify", {}), measured.get("benchmark", {})
    reference = measured.get("reference", {})
    metrics: dict[str, Any] = {}
    if "check" in measured.get("export", {}):
        metrics["export"] = measured["export"]["check"]
    if "accuracy" in reference:
        metrics["reference_accuracy"] = reference["accuracy"]
    # On a device the reference is judged anew, on the samples that the device was given.
    for name in (
        "reference_accuracy",
        *("accuracy", "agreement", "cosine", "cosine_worst", "equal", "max_abs_error"),
        *("samples", "evaluated", "evaluated_by"),
    ):
        if name in verify:
            metrics[name] = verify[name]
    for name in ("latency_ms", "compute_ms", "throughput", "batch", "layers", "conditions"):
        if name in benchmark:
            metrics[name] = benchmark[name]
    return metrics


def _status(steps: tuple[tuple[str, Outcome], ...], gates: tuple[Verdict, ...]) -> str:
    ended = {outcome.status for _, outcome in steps}
    if ended & {"failed", "blocked"}:
        return "failed"
    if any(gate.status == "missed" for gate in gates):
        return "gate-failed"
    if "pending" in ended or any(gate.status == "pending" for gate in gates):
        return "pending"
    return "cached" if ended <= {"hit"} else "built"
