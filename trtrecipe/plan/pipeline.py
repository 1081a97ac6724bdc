"""Recipes and targets → steps. What is planned depends on recipes, profiles and this machine, never on a result."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any

from trtrecipe.data.sampling import Sampling
from trtrecipe.errors import InputError
from trtrecipe.plan.devices import Need
from trtrecipe.plan.graph import Graph, RecipePlan, Step, StepOutput, TargetPlan
from trtrecipe.plan.machine import Machine, rtx_runs_on, tensorrt_lacks
from trtrecipe.plan.samples import sample_sources
from trtrecipe.plan.sources import ModelSource, Source, model_format
from trtrecipe.plan.tools import version
from trtrecipe.recipe.load import Loaded
from trtrecipe.steps import lower, prepare
from trtrecipe.steps.registry import STEPS
from trtrecipe.targets import parser
from trtrecipe.targets.catalog import load_catalog
from trtrecipe.targets.spec import Target

Inputs = dict[str, Source | StepOutput]

# Without evaluation data, results are compared on this many samples.
DEFAULT_SAMPLES = 32

BUILDERS = {"host": "onnxruntime", "cuda": "tensorrt", "rtx": "tensorrt-rtx", "jetson": "trtexec"}

_DECIDES_THE_GRAPH = ("format", "signature", "inputs", "dims", "tags", "outputs", "rename")
"""Parameters of export that say which graph of the source it is, and what that takes and gives."""


def build_graph(
    recipes: Sequence[tuple[Loaded, Sequence[Target]]], machine: Machine, only: Collection[str] = ()
) -> Graph:
    """The steps of the targets, or of those with an id in `only`.

    All targets are planned even then, as what a step is called depends on which targets share it. Raises InputError
    where the format of a model cannot be told.
    """
    steps: dict[str, Step] = {}
    planned = []
    for loaded, targets in recipes:
        shared = _Shared.of(loaded)
        plans = [_plan_target(shared, target, machine, steps) for target in targets]
        kept = tuple(plan for plan in plans if not only or plan.target.id in only)
        if kept:
            planned.append(RecipePlan(loaded, kept))
    used = {step_id for recipe in planned for plan in recipe.targets for step_id in plan.steps}
    return Graph(tuple(planned), {step_id: step for step_id, step in steps.items() if step_id in used})


@dataclass(frozen=True)
class _Shared:
    """What all targets of a recipe have in common: the model, preprocessing, and what results are judged on."""

    loaded: Loaded
    model: ModelSource
    model_format: str
    preprocess: Mapping[str, Any]
    judged_on: Inputs
    metric: Mapping[str, Any]

    @classmethod
    def of(cls, loaded: Loaded) -> _Shared:
        recipe = loaded.recipe
        model = ModelSource(loaded.file(recipe.model.source), loaded.problem(("model", "source"), ""))
        preprocess = {name: [op.model_dump(exclude_none=True) for op in ops] for name, ops in recipe.preprocess.items()}
        judged_on, metric = _evaluation(loaded)
        return cls(
            loaded=loaded,
            model=model,
            model_format=model_format(model, recipe.model.format, loaded.problem(("model", "format"), "")),
            preprocess=preprocess,
            judged_on=judged_on,
            metric=metric,
        )

    def on_device(self) -> dict[str, Any]:
        """How many samples a device is given at most, and the seed that chooses them."""
        evaluation = self.loaded.recipe.evaluation
        if evaluation is None:
            return {"samples": DEFAULT_SAMPLES, "seed": 0}
        return {"samples": evaluation.device_samples, "seed": evaluation.seed}

    def judging(self, target: Target) -> dict[str, Any]:
        """The parameters of reference and verify that say how outputs are judged."""
        drawn = None
        if not self.judged_on:
            sizes = {name: span.opt for name, span in target.dims.items()}
            drawn = {"samples": DEFAULT_SAMPLES, "seed": 0, "dims": sizes}
        return {"preprocess": self.preprocess, **self.metric, "drawn": drawn}


@dataclass(frozen=True)
class _Adder:
    """Adds a target's steps to the graph. A step that is there already, the same in all, is used again."""

    recipe: str
    target: str
    steps: dict[str, Step]
    used: list[str] = field(default_factory=list)

    def add(
        self,
        kind: str,
        scope: str,
        inputs: Inputs,
        params: Mapping[str, Any],
        pending: str | None = None,
        resources: Mapping[str, Any] = MappingProxyType({}),
        device: Need | None = None,
    ) -> str:
        """The id of the step, which all targets of `scope` can share ("": all that use the model)."""
        filled = asdict(STEPS[kind].Params(**params))
        # Two targets of a scope may still differ, in their dimensions say: the second then has a step of its own.
        # Ids hold no slash, so that no target's name is taken for a dialect's.
        for name in dict.fromkeys((scope, "/".join(filter(None, dict.fromkeys((scope, self.target)))))):
            step_id = f"{self.recipe}:{kind}{'@' + name if name else ''}"
            step = Step(step_id, kind, filled, inputs, pending, dict(resources), device)
            if self.steps.setdefault(step.id, step) == step:
                self.used.append(step.id)
                return step.id
        raise AssertionError(f"two different steps have the id {step.id}")


def _plan_target(shared: _Shared, target: Target, machine: Machine, steps: dict[str, Step]) -> TargetPlan:
    add = _Adder(shared.loaded.recipe.name, target.label, steps)
    if target.profile.family == "tflite":
        return _plan_tflite(add, shared, target)
    exported, layers, prepared = _plan_model(add, shared, target)
    lowered, keep = _plan_lower(add, shared, target, prepared, layers)
    judging = shared.judging(target)
    reference = add.add("reference", "", {"onnx": exported, **shared.judged_on}, judging)
    artifacts = {"preprocessing": StepOutput(reference, "preprocessing")}
    scales = _plan_calibrate(add, shared, target, prepared)
    judged_on: Inputs = {"reference": StepOutput(reference, "outputs"), **shared.judged_on}
    artifacts["onnx"] = lowered
    if target.mode == "int8":
        assert scales is not None  # a rule of the recipe: int8 needs calibration
        artifacts["scales"] = scales
        if target.quantization == "implicit":
            artifacts["calibration_table"] = _plan_table(add, target, lowered, scales)
        else:
            if target.search:
                keep = _plan_search(add, target, artifacts, keep, judged_on, judging)
            quantized = add.add("quantize", target.dialect.id, {"onnx": lowered, "scales": scales, "keep": keep}, {})
            artifacts["onnx"] = StepOutput(quantized, "onnx")
    if target.dialect.strongly_typed and target.float_precision == "fp16":
        ranges: Inputs = {"scales": scales} if scales is not None else {}
        inputs = {"onnx": artifacts["onnx"], "keep": keep, **ranges}
        artifacts["onnx"] = StepOutput(add.add("convert", target.dialect.id, inputs, {"precision": "fp16"}), "onnx")
    evaluates = _plan_engine(add, shared, target, machine, artifacts, keep, judged_on, judging)
    return TargetPlan(target, tuple(add.used), artifacts, evaluates)


def _plan_model(add: _Adder, shared: _Shared, target: Target) -> tuple[StepOutput, StepOutput, StepOutput]:
    """fetch, export and prepare; the exported graph, its layers, and the prepared graph."""
    export = _plan_export(add, shared, target)[2]
    exported = StepOutput(export, "onnx")
    without = {"without_passes": _without(shared, prepare.PASSES)}
    prepared = StepOutput(add.add("prepare", "", {"onnx": exported}, without), "onnx")
    return exported, StepOutput(export, "layers"), prepared


def _plan_export(add: _Adder, shared: _Shared, target: Target) -> tuple[StepOutput, dict[str, Any], str]:
    """fetch and export; the fetched model, the parameters of export, and its id."""
    model = shared.loaded.recipe.model
    fetched = add.add("fetch", "", {"source": shared.model}, {"format": shared.model_format})
    params = {
        "format": shared.model_format,
        "signature": model.signature,
        "inputs": {name: spec.model_dump() for name, spec in model.inputs.items()},
        "dims": sorted(target.dims),
        "opset": model.opset,
        "tags": model.tags,
        "outputs": model.outputs or [],
        "rename": model.rename,
        "tolerance": model.tolerance,
    }
    source = StepOutput(fetched, "model")
    # The recipe's own sizes before those of a target, so that targets with other ranges share the export.
    sizes = {name: model.dims.get(name, span).opt for name, span in sorted(target.dims.items())}
    return source, params, add.add("export", "", {"model": source}, params, resources={"sizes": sizes})


def _plan_tflite(add: _Adder, shared: _Shared, target: Target) -> TargetPlan:
    """A TFLite file is made of the source model itself; its ONNX form is what that is judged against.

    Raises InputError where the source is an ONNX model.
    """
    loaded, calibration = shared.loaded, shared.loaded.recipe.calibration
    if shared.model_format == "onnx":
        raise InputError(
            [
                loaded.problem(
                    ("model", "source"),
                    f"target {target.id} cannot be made of an ONNX model: TensorFlow's converter makes TFLite files",
                    "give the SavedModel or Keras file that the ONNX model was made from, or leave this target out",
                )
            ]
        )
    fetched, given, export = _plan_export(add, shared, target)
    exported = StepOutput(export, "onnx")
    judging = shared.judging(target)
    reference = add.add("reference", "", {"onnx": exported, **shared.judged_on}, judging)
    inputs: Inputs = {"model": fetched, "onnx": exported}
    quantizes = target.quantization == "explicit" and shared.model_format != "tflite"
    if quantizes and calibration is not None and calibration.data is not None:
        inputs |= sample_sources(loaded, "calibration", Sampling(calibration.samples, calibration.seed))
    params: dict[str, Any] = {
        "builder": "tflite",
        "mode": target.mode,
        "quantization": target.quantization,
        "source": {name: given[name] for name in _DECIDES_THE_GRAPH},
        "source_version": STEPS["export"].VERSION,
        "preprocess": shared.preprocess if len(inputs) > 2 else {},
    }
    engine = StepOutput(add.add("compile", target.label, inputs, params), "engine")
    built: Inputs = {"onnx": exported, "engine": engine}
    judged_on: Inputs = {"reference": StepOutput(reference, "outputs"), **shared.judged_on}
    params = {"runtime": "litert", "evaluates": "engine", "dims": {}, **judging}
    add.add("verify", target.label, built | judged_on, params)
    opt = {name: {"opt": span.opt} for name, span in target.dims.items()}
    add.add("benchmark", target.label, built, {"runtime": "litert", "dims": opt})
    artifacts = {"preprocessing": StepOutput(reference, "preprocessing"), "engine": engine}
    return TargetPlan(target, tuple(add.used), artifacts, "engine")


def _without(shared: _Shared, passes: Collection[str]) -> list[str]:
    """Those of a step's passes that the recipe turns off, in one order however it lists them."""
    return sorted(set(passes).intersection(shared.loaded.recipe.model.without_passes))


def _plan_lower(
    add: _Adder, shared: _Shared, target: Target, prepared: StepOutput, layers: StepOutput
) -> tuple[StepOutput, StepOutput]:
    """The graph in the target's dialect, and which of its nodes stay in a higher precision."""
    dialect = target.dialect
    params = {
        "dialect": dialect.id,
        "opset_max": dialect.opset_max,
        "operators_from": dialect.operators_from,
        "tensorrt": dialect.tensorrt,
        "parser_sha256": parser.sha256(dialect),
        "mode": target.mode,
        "fallback": target.fallback if target.keep else None,  # what is kept is all that it says something of
        "keep": [
            {key: entry.get(key) for key in ("layers", "operators", "between", "precision")} for entry in target.keep
        ],
        "without_passes": _without(shared, lower.PASSES),
    }
    lowered = add.add("lower", dialect.id, {"onnx": prepared, "layers": layers}, params)
    return StepOutput(lowered, "onnx"), StepOutput(lowered, "keep")


def _plan_calibrate(add: _Adder, shared: _Shared, target: Target, prepared: StepOutput) -> StepOutput | None:
    """The scales. Where FP16 is baked into a graph without INT8, they serve for their ranges: only those of samples."""
    loaded, calibration = shared.loaded, shared.loaded.recipe.calibration
    bakes = target.mode == "fp16" and target.dialect.strongly_typed
    if calibration is None or not (target.mode == "int8" or (bakes and calibration.data is not None)):
        return None
    inputs: Inputs = {"onnx": prepared}
    resources = {}
    source = "model"
    if calibration.data is not None:
        source = "data"
        inputs |= sample_sources(loaded, "calibration", Sampling(calibration.samples, calibration.seed))
        resources = {"memory": calibration.memory}
    elif calibration.table is not None:
        source = "table"
        inputs["table"] = ModelSource(loaded.file(calibration.table), loaded.problem(("calibration", "table"), ""))
    # Candidates of one target share a calibration.
    quantizes = "int8" in (target.mode, *target.rivals)
    tensors = "all" if target.quantization == "implicit" else "quantized" if quantizes else "ranges"
    params = {
        "method": calibration.method if quantizes else None,
        "preprocess": shared.preprocess,
        "tensors": tensors,
        "source": source,
    }
    scope = {"all": "implicit", "quantized": "", "ranges": "ranges"}[tensors]
    return StepOutput(add.add("calibrate", scope, inputs, params, resources=resources), "scales")


def _plan_table(add: _Adder, target: Target, lowered: StepOutput, scales: StepOutput) -> StepOutput:
    """The calibration table for the newest TensorRT that the target's release is known to ship."""
    assert target.release is not None and target.release.tensorrt  # only Jetsons of a known TensorRT quantize so
    params = {"tensorrt": target.release.tensorrt[-1]}
    return StepOutput(add.add("table", target.label, {"onnx": lowered, "scales": scales}, params), "table")


def _plan_search(
    add: _Adder,
    target: Target,
    artifacts: Mapping[str, StepOutput],
    keep: StepOutput,
    judged_on: Inputs,
    judging: Mapping[str, Any],
) -> StepOutput:
    """Which nodes stay in the fallback: those of `keep`, and those that the gates need."""
    assert target.gates is not None  # a rule of the recipe: a search needs a gate
    gates = target.gates.model_dump()
    params = {
        **judging,
        "fallback": target.float_precision,
        "runtime": BUILDERS[target.profile.family],
        "gates": {name: gates[name] for name in ("accuracy", "agreement", "cosine")},
    }
    inputs = {"onnx": artifacts["onnx"], "scales": artifacts["scales"], "keep": keep, **judged_on}
    return StepOutput(add.add("search", target.dialect.id, inputs, params), "keep")


def _plan_engine(
    add: _Adder,
    shared: _Shared,
    target: Target,
    machine: Machine,
    artifacts: dict[str, StepOutput],
    keep: StepOutput,
    judged_on: Inputs,
    judging: Mapping[str, Any],
) -> str:
    """compile, verify and benchmark; what verify evaluates."""
    family, builder = target.profile.family, BUILDERS[target.profile.family]
    dims = {name: span.model_dump() for name, span in target.dims.items()}
    waits, device = None, None
    if family == "jetson":
        assert target.release is not None and target.release.family is not None  # only such targets are served
        core = target.dla.core if target.dla is not None else None
        device = Need(target.profile.id, target.release.family, core)
    elif family == "cuda":
        waits = _cuda_lacks(target, machine)
    # ONNX Runtime neither builds nor verifies for a range, so that no range may be in its keys.
    ranges = {} if family == "host" else dims
    params: dict[str, Any] = {"builder": builder, "dims": ranges, "workspace": target.workspace}
    sources: Inputs = {"onnx": artifacts["onnx"]}
    if family in ("jetson", "cuda"):
        typed = target.dialect.strongly_typed
        dla = None if target.dla is None else asdict(target.dla)
        params |= {"mode": target.mode, "fallback": target.fallback, "strongly_typed": typed, "dla": dla}
        sources |= {} if typed else {"keep": keep}  # a strongly typed graph holds its precisions
    if "calibration_table" in artifacts:
        sources["table"] = artifacts["calibration_table"]
    compiled = add.add("compile", target.label, sources, params, waits if device is None else None, device=device)
    artifacts["engine"] = StepOutput(compiled, "engine")
    runs = family != "rtx" or rtx_runs_on(machine.gpu, version("tensorrt-rtx"))
    built: Inputs = {"onnx": artifacts["onnx"], "engine": artifacts["engine"]}
    if runs:
        params = {"runtime": builder, "evaluates": "engine", "dims": ranges, **judging}
        if device is not None:
            params["device"] = {**shared.on_device(), "dla_core": device.dla_core}
        add.add("verify", target.label, built | judged_on, params, waits, device=device)
    else:
        # Nothing here can execute the engine: its graph is judged instead, and the report says so.
        params = {"runtime": "onnxruntime", "evaluates": "graph", "dims": {}, **judging}
        add.add("verify", target.label, {"onnx": artifacts["onnx"], **judged_on}, params, waits)
        waits = "needs a GPU that TensorRT for RTX can run on; this machine has none"
    if runs or (target.gates is not None and target.gates.latency_ms is not None):
        opt = {name: {"opt": span.opt} for name, span in target.dims.items()}
        params = {"runtime": builder, "dims": opt} | ({} if device is None else {"dla_core": device.dla_core})
        add.add("benchmark", target.label, built, params, waits, device=device)
    return "engine" if runs else "graph"


def _cuda_lacks(target: Target, machine: Machine) -> str | None:
    """What keeps this machine from building for a target of profile cuda."""
    assert target.release is not None  # such targets always have one
    installed = version("tensorrt")
    served_as = None if installed is None else load_catalog().installed(target.profile, installed)
    return tensorrt_lacks(machine.gpu, installed, target.release.jetpack, served_as)


def _evaluation(loaded: Loaded) -> tuple[Inputs, dict[str, Any]]:
    """What results are judged on, and by which metric: evaluation data, else calibration data, else nothing."""
    recipe = loaded.recipe
    if recipe.evaluation is not None:
        sampling = Sampling(recipe.evaluation.samples, recipe.evaluation.seed)
        metric = {"metric": recipe.evaluation.metric, "output": recipe.evaluation.output}
        return sample_sources(loaded, "evaluation", sampling), metric
    if recipe.calibration is not None and recipe.calibration.data is not None:
        sampling = Sampling(DEFAULT_SAMPLES, recipe.calibration.seed, at_most=True)
        return sample_sources(loaded, "calibration", sampling), {"metric": None, "output": None}
    return {}, {"metric": None, "output": None}
