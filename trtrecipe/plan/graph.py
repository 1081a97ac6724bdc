"""Recipes × targets → steps. The shape depends on recipes, profiles and this machine only, never on a result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from trtrecipe.data.sampling import Sampling
from trtrecipe.plan.machine import Machine, rtx_runs_on
from trtrecipe.plan.sources import ModelSource, SampleSource, Source, model_format
from trtrecipe.plan.tools import version
from trtrecipe.recipe.load import Loaded
from trtrecipe.recipe.model import NpzData
from trtrecipe.steps.registry import STEPS
from trtrecipe.targets.catalog import load_catalog
from trtrecipe.targets.spec import Target

# Without evaluation data, results are compared on this many samples.
DEFAULT_SAMPLES = 32


@dataclass(frozen=True, slots=True)
class StepOutput:
    """The output `role` of the step `step` (its id)."""

    step: str
    role: str


@dataclass(frozen=True, slots=True)
class Step:
    """One unit of work. `params` has every field of the kind's Params; `pending` says why it cannot run here."""

    id: str
    kind: str
    params: Mapping[str, Any]
    inputs: Mapping[str, Source | StepOutput]
    pending: str | None = None

    @property
    def name(self) -> str:
        """The id without the recipe."""
        return self.id.partition(":")[2]


@dataclass(frozen=True)
class TargetPlan:
    """A target's steps (ids, in order) and where its artifacts come from."""

    target: Target
    steps: tuple[str, ...]
    artifacts: Mapping[str, StepOutput]
    evaluates: str  # what verify runs: "engine" or "graph"


@dataclass(frozen=True)
class RecipePlan:
    """A recipe's targets."""

    loaded: Loaded
    targets: tuple[TargetPlan, ...]

    @property
    def name(self) -> str:
        return self.loaded.recipe.name


@dataclass(frozen=True)
class Graph:
    """All steps of all recipes by id, each after those it reads from."""

    recipes: tuple[RecipePlan, ...]
    steps: Mapping[str, Step]


def build_graph(recipes: Sequence[tuple[Loaded, Sequence[Target]]], machine: Machine) -> Graph:
    """The steps of the given targets. Raises InputError where the model's format cannot be told."""
    steps: dict[str, Step] = {}
    return Graph(tuple(_plan_recipe(loaded, targets, machine, steps) for loaded, targets in recipes), steps)


class _Adder:
    """Adds steps to a graph; a step that is there already under a name that says what it is shared by is used again."""

    def __init__(self, recipe: str, target: str, steps: dict[str, Step]) -> None:
        self._recipe, self._target, self._steps = recipe, target, steps
        self.used: list[str] = []

    def add(
        self,
        kind: str,
        scope: str,
        inputs: Mapping[str, Source | StepOutput],
        params: Mapping[str, Any],
        pending: str | None = None,
    ) -> str:
        """Add a step shared within `scope` ("" the model, a dialect, a target); its id."""
        filled = asdict(STEPS[kind].Params(**params))
        for name in dict.fromkeys((scope, self._target)):
            step = Step(f"{self._recipe}:{kind}{'@' + name if name else ''}", kind, filled, inputs, pending)
            if self._steps.setdefault(step.id, step) == step:
                self.used.append(step.id)
                return step.id
        raise AssertionError(f"two different steps {step.id}")


def _plan_recipe(
    loaded: Loaded, targets: Sequence[Target], machine: Machine, steps: dict[str, Step]
) -> RecipePlan:
    return RecipePlan(loaded, tuple(_plan_target(loaded, target, machine, steps) for target in targets))


def _plan_target(loaded: Loaded, target: Target, machine: Machine, steps: dict[str, Step]) -> TargetPlan:
    recipe = loaded.recipe
    adder = _Adder(recipe.name, target.id, steps)
    dims = {name: span.model_dump() for name, span in target.dims.items()}
    preprocess = {name: [op.model_dump() for op in ops] for name, ops in recipe.preprocess.items()}
    model_format = recipe.model.format or model_format(loaded.folder / recipe.model.source, loaded.problem(("model", "source"), ""))
    judged_by, judging = _evaluation(loaded)
    judging = {"preprocess": preprocess, **judging}

    source = ModelSource(loaded.folder / recipe.model.source, loaded.problem(("model", "source"), ""))
    fetch = adder.add("fetch", "", {"source": source}, {"format": model_format})
    export = adder.add("export", "", {"model": StepOutput(fetch, "model")}, {
        "format": model_format,
        "signature": recipe.model.signature,
        "inputs": {name: spec.model_dump() for name, spec in recipe.model.inputs.items()},
        "dims": sorted(dims),
        "opset": recipe.model.opset,
    })
    prepare = adder.add("prepare", "", {"onnx": StepOutput(export, "onnx")}, {})
    dialect = target.dialect
    graph = StepOutput(adder.add("lower", dialect.id, {"onnx": StepOutput(prepare, "onnx")}, {
        "dialect": dialect.id,
        "opset_max": dialect.opset_max,
        "operators_from": dialect.operators_from,
        "operators_sha256": load_catalog().operators_sha256(dialect),
        "assumed": dialect.assumed,
    }), "onnx")
    reference = adder.add("reference", "", {"onnx": StepOutput(export, "onnx"), **judged_by}, judging)
    artifacts = {"preprocessing": StepOutput(reference, "preprocessing")}
    if target.mode == "int8":
        assert recipe.calibration is not None  # a rule of the recipe
        samples = _samples(loaded, "calibration", Sampling(recipe.calibration.samples, recipe.calibration.seed))
        scales = StepOutput(adder.add(
            "calibrate", "",
            {"onnx": StepOutput(prepare, "onnx")} | {k: v for k, v in samples.items() if k != "data.label"},
            {"method": recipe.calibration.method, "preprocess": preprocess},
        ), "scales")
        artifacts["scales"] = scales
        graph = StepOutput(adder.add("quantize", dialect.id, {"onnx": graph, "scales": scales}, {}), "onnx")
    float_precision = target.fallback if target.mode == "int8" else target.precision_mode
    if dialect.strongly_typed and target.float_precision == "fp16":
        graph = StepOutput(adder.add("convert", dialect.id, {"onnx": graph}, {"precision": "fp16"}), "onnx")
    artifacts["onnx"] = graph
    evaluates = _plan_build(adder, target, machine, graph, dims, artifacts, {
        "inputs": {"reference": StepOutput(reference, "outputs"), **judged_by}, "params": judging,
    })
    return TargetPlan(target, tuple(adder.used), artifacts, evaluates)


def _plan_build(
    adder: _Adder,
    target: Target,
    machine: Machine,
    graph: StepOutput,
    dims: Mapping[str, Any],
    artifacts: dict[str, StepOutput],
    judging: Mapping[str, Mapping[str, Any]],
) -> str:
    """compile, verify and benchmark of a target; what verify evaluates."""
    family = target.profile.family
    pending = None
    if family == "jetson":
        pending = f"is done on the device; no {target.profile.id} can be reached by this release of trtrecipe"
    builder = "onnxruntime" if family == "host" else "tensorrt-rtx" if family == "rtx" else "trtexec"
    compiled = adder.add(
        "compile", target.id, {"onnx": graph},
        {"builder": builder, "dims": dims, "workspace": target.workspace}, pending,
    )
    engine = StepOutput(compiled, "engine")
    artifacts["engine"] = engine
    runs = family != "rtx" or rtx_runs_on(machine.gpu, version("tensorrt-rtx"))
    # An engine that nothing here can execute is judged by the graph it was built from.
    evaluated: dict[str, Source | StepOutput] = {"onnx": graph, "engine": engine} if runs else {"onnx": graph}
    adder.add("verify", target.id, evaluated | judging["inputs"], {
        "runtime": builder if runs else "onnxruntime",
        "evaluates": "engine" if runs else "graph",
        "dims": dims,
        **judging["params"],
    }, pending)
    needs_latency = target.gates is not None and target.gates.latency_ms is not None
    if runs or needs_latency:
        if not runs:
            pending = "needs a GPU that TensorRT for RTX can run on; this machine has none"
        adder.add("benchmark", target.id, {"onnx": graph, "engine": engine}, {"runtime": builder, "dims": dims}, pending)
    return "engine" if runs else "graph"


def _evaluation(loaded: Loaded) -> tuple[dict[str, Source | StepOutput], dict[str, Any]]:
    """The data that results are judged on, and how: evaluation data, else calibration data, else drawn samples."""
    recipe = loaded.recipe
    plain = {"metric": None, "output": None, "drawn": None}
    if recipe.evaluation is not None:
        sampling = Sampling(recipe.evaluation.samples, recipe.evaluation.seed)
        judged = plain | {"metric": recipe.evaluation.metric, "output": recipe.evaluation.output}
        return _samples(loaded, "evaluation", sampling), judged
    if recipe.calibration is not None:
        sampling = Sampling(DEFAULT_SAMPLES, recipe.calibration.seed, at_most=True)
        samples = _samples(loaded, "calibration", sampling)
        return {role: source for role, source in samples.items() if role != "data.label"}, plain
    return {}, plain | {"drawn": {"samples": DEFAULT_SAMPLES, "seed": 0}}


def _samples(loaded: Loaded, block: str, sampling: Sampling) -> dict[str, Source | StepOutput]:
    """Role "data.INPUT" → samples, for the data of the recipe's block "calibration" or "evaluation"."""
    data = getattr(loaded.recipe, block).data
    samples_at = loaded.problem((block, "samples"), "")
    if isinstance(data, NpzData):
        path = loaded.folder / data.npz
        return {
            f"data.{name}": SampleSource(
                path, member, sampling, loaded.problem((block, "data", "arrays", name), ""), samples_at
            )
            for name, member in sorted(data.arrays.items())
        }
    return {
        f"data.{name}": SampleSource(
            loaded.folder / file, None, sampling, loaded.problem((block, "data", "npy", name), ""), samples_at
        )
        for name, file in sorted(data.npy.items())
    }
