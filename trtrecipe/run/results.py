"""What a build made, per target: status, figures and verdicts, read from how its steps ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trtrecipe.plan.graph import Graph, RecipePlan, TargetPlan
from trtrecipe.run.events import Outcome
from trtrecipe.run.gates import Verdict, evaluate
from trtrecipe.store.blobs import Blob

GRAPH_EVALUATED = (
    "accuracy was measured on the graph that was compiled, run by ONNX Runtime on the CPU: "
    "no GPU here can execute the engine itself"
)


@dataclass(frozen=True)
class TargetResult:
    """`status`: "built", "cached", "failed", "gate-failed" or "pending". `steps` pairs step ids with outcomes."""

    plan: TargetPlan
    status: str
    artifacts: Mapping[str, Blob]
    metrics: Mapping[str, Any]
    gates: tuple[Verdict, ...]
    notes: tuple[str, ...]
    steps: tuple[tuple[str, Outcome], ...]
    error: str | None = None  # why what was built could not be placed


@dataclass(frozen=True)
class RecipeResult:
    """A recipe's targets, in its order."""

    plan: RecipePlan
    targets: tuple[TargetResult, ...]


def results(graph: Graph, outcomes: Mapping[str, Outcome]) -> tuple[RecipeResult, ...]:
    """The results of all recipes of a graph."""
    return tuple(
        RecipeResult(recipe, tuple(_target_result(graph, recipe, target, outcomes) for target in recipe.targets))
        for recipe in graph.recipes
    )


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
    return TargetResult(plan, _status(steps, gates), artifacts, metrics, gates, tuple(notes), steps)


def _metrics(measured: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    verify, benchmark = measured.get("verify", {}), measured.get("benchmark", {})
    reference = measured.get("reference", {})
    metrics: dict[str, Any] = {}
    if "accuracy" in reference:
        metrics["reference_accuracy"] = reference["accuracy"]
    for name in ("accuracy", "agreement", "cosine", "cosine_worst", "equal", "max_abs_error", "samples", "evaluated"):
        if name in verify:
            metrics[name] = verify[name]
    for name in ("latency_ms", "throughput", "batch", "conditions"):
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
