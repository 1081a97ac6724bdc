"""search: which layers to keep out of INT8 so that the gates are met, as few as can be found.

The quantized graph is evaluated as verify evaluates what is built of it. Where it misses a gate, its layers are ranked
by their damage (`quant.damage`) and the fewest to keep are searched (`quant.search`): they are computed in `fallback`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnx import ModelProto

    from trtrecipe.data.batches import Samples
    from trtrecipe.data.limits import Limit
    from trtrecipe.data.preprocess import Array
    from trtrecipe.quant.damage import Damage
    from trtrecipe.quant.scales import Scales

VERSION = 1
OUTPUTS = {"keep": "keep.json", "report": "search.json"}
NUMERIC = True

SCHEMA = "trtrecipe/search/v1"
TOP = 20
"""Rows of the ranking that are measurements, beside those of kept nodes; the report has them all."""
_NAMED = 8


@dataclass(frozen=True)
class Params:
    """`fallback`: "fp32" or "fp16", the precision of what is not quantized; the rest as in verify.

    `runtime`: "onnxruntime" evaluates what the host target compiles; for any other, the graph is run, its FP16 tensors
    rounded to FP16. `gates`: {"accuracy": {"max_drop", "min"}, "agreement", "cosine"}, each absent or None where it is
    no gate.
    """

    fallback: str
    gates: dict[str, Any]
    runtime: str | None = None
    preprocess: dict[str, list[Any]] = field(default_factory=dict)
    metric: str | None = None
    output: str | None = None
    drawn: dict[str, Any] | None = None


def tools(params: Params) -> tuple[str, ...]:
    """The distributions that figures depend on."""
    return ("onnx", "onnxruntime", "numpy")


def run(params: Params, inputs: Mapping[str, Path], out: Path) -> Mapping[str, Any]:
    """With "onnx" (lowered), "scales", "keep" (lower's), "reference", "data.*" → what to keep, and how it was found.

    `keep.json` holds the nodes of "keep" and those found. `search.json`: {"schema", "kept": nodes found, "ranking":
    [{"rank", "node", "operator", "damage", "kept"}], "evaluations": [{"kept": number, "nodes", "met", and the figures
    of verify, or "error"}]}; the ranking is empty where nothing had to be kept. Measures kept, evaluations (number),
    figures (of the graph that was chosen), ranking (its first `TOP` rows and those of kept nodes, for the report), and
    notes; kept names all nodes of `keep.json`. Raises StepError when the gates cannot be met with at least one layer
    quantized.
    """
    from trtrecipe.data import limits
    from trtrecipe.digest import canonical_json
    from trtrecipe.errors import StepError
    from trtrecipe.graphs import keep
    from trtrecipe.quant.carried import carries_quantization
    from trtrecipe.quant.search import fewest

    if not list(limits.quality(params.gates, params.metric, {})):
        raise StepError("precision.search needs a gate to meet", "add gates: accuracy, agreement or cosine")
    trials = _Trials.of(params, inputs)
    if carries_quantization(trials.model):
        raise StepError(
            "precision.search has no effect on a model that is quantized already: the pairs that it carries settle "
            "which of its layers are INT8",
            "remove precision.search, or start from the float model",
        )
    found = None
    ranking: tuple[Damage, ...] = ()
    notes: list[str] = []
    if not trials.meets(()):
        trials.require_reference()
        ranking = trials.rank()
        found = fewest([each.node for each in ranking], trials.meets)
        if found is None or not trials.quantizes(found.kept):
            raise trials.failure(found is not None)
        if not found.complete:
            notes.append("search: fewer layers might do, but the search for them was ended after its share of trials")
    kept = found.kept if found else ()
    notes.insert(0, _summary(kept, len(ranking), params.fallback, bool(trials.base)))
    rows = [
        {"rank": number, "node": each.node, "operator": each.operator, "damage": each.damage, "kept": each.node in kept}
        for number, each in enumerate(ranking, start=1)
    ]
    nodes = {**trials.base, **dict.fromkeys(kept, params.fallback)}
    (out / OUTPUTS["keep"]).write_bytes(keep.dump(nodes))
    evaluations = [evaluation.document() for evaluation in trials.done]
    report = {"schema": SCHEMA, "kept": list(kept), "ranking": rows, "evaluations": evaluations}
    (out / OUTPUTS["report"]).write_bytes(canonical_json(report))
    return {
        "kept": list(nodes),
        "evaluations": len(trials.done),
        "figures": dict(trials.of_kept(kept).figures),
        "ranking": rows[:TOP] + [row for row in rows[TOP:] if row["kept"]],
        "notes": notes,
    }


@dataclass(frozen=True)
class _Evaluation:
    """What a graph with `kept` out of INT8 measured; `error` where its outputs were not finite."""

    kept: tuple[str, ...]
    figures: Mapping[str, float]
    limits: tuple[Limit, ...]
    error: str | None = None

    @property
    def met(self) -> bool:
        return self.error is None and all(limit.status == "met" for limit in self.limits)

    def document(self) -> dict[str, Any]:
        found = {"kept": len(self.kept), "nodes": list(self.kept), "met": self.met, **self.figures}
        return found if self.error is None else {**found, "error": self.error}


@dataclass(frozen=True)
class _Trials:
    """All that an evaluation needs, and those `done`, in order. `base`: what the recipe keeps, node → precision."""

    params: Params
    model: ModelProto
    scales: Scales
    base: Mapping[str, str]
    reference: Mapping[str, Array]
    samples: Samples
    done: list[_Evaluation] = field(default_factory=list)

    @classmethod
    def of(cls, params: Params, inputs: Mapping[str, Path]) -> _Trials:
        from trtrecipe.data import outputs
        from trtrecipe.graphs import files, keep
        from trtrecipe.graphs.interface import interface
        from trtrecipe.quant import scales
        from trtrecipe.steps.evaluation import samples_of

        model = files.load(inputs["onnx"])
        return cls(
            params,
            model,
            scales.load(inputs["scales"]),
            keep.load(inputs["keep"]),
            outputs.read_npz(inputs["reference"]),
            samples_of(params, inputs, interface(model)),
        )

    def meets(self, kept: Sequence[str]) -> bool:
        """Whether the gates are met with `kept` out of INT8."""
        self.done.append(self._evaluate(tuple(kept)))
        return self.done[-1].met

    def of_kept(self, kept: Sequence[str]) -> _Evaluation:
        """The evaluation with exactly `kept` out of INT8."""
        return next(evaluation for evaluation in self.done if evaluation.kept == tuple(kept))

    def rank(self) -> tuple[Damage, ...]:
        """The layers that may be kept, the most harmful first."""
        from trtrecipe.data.batches import Batch, batch_size
        from trtrecipe.graphs.interface import interface
        from trtrecipe.quant import damage
        from trtrecipe.steps.evaluation import batches_of

        graph, total = interface(self.model), self.samples.count
        size = batch_size(graph, damage.BATCH)

        def batch(index: int) -> Batch:
            span = index * size, min((index + 1) * size, total)
            return next(batches_of(self.params, self.samples, graph, size, span))

        return damage.rank(self.model, self.scales.thresholds, self.base, batch, -(-total // size))

    def quantizes(self, kept: Sequence[str]) -> bool:
        """Whether anything is left in INT8."""
        from trtrecipe.quant.sites import OPERATORS, find_sites

        nodes = self.model.graph.node
        sites = find_sites(self.model, self.base).sites
        # Other operators are quantized only beside one of these.
        return any(nodes[site.index].op_type in OPERATORS and nodes[site.index].name not in kept for site in sites)

    def require_reference(self) -> None:
        """Refuse gates that the FP32 reference itself does not meet or has no figure for: nothing kept mends that."""
        from trtrecipe.errors import StepError

        evaluation = self._judged((), self.reference)
        if unknown := [str(limit) for limit in evaluation.limits if limit.status == "pending"]:
            raise StepError(
                f"precision.search needs gates that can be measured: {'; '.join(unknown)}",
                "choose a gate that applies to the model's outputs",
            )
        if not evaluation.met:
            raise StepError(
                f"the FP32 model itself does not meet the gates: {_missed(evaluation)}",
                "correct gates or evaluation in the recipe, or the model",
            )

    def failure(self, only_float: bool) -> Exception:
        """The error when no set of layers does."""
        from trtrecipe.errors import StepError

        if only_float:
            message = "the gates are met only with every layer kept in higher precision"
        else:
            message = f"the gates are not met even with every layer kept in {self.params.fallback.upper()}"
        best = max((each for each in self.done if self.quantizes(each.kept)), key=_margin)
        layers = "1 layer" if len(best.kept) == 1 else f"{len(best.kept) or 'no'} layers"
        return StepError(
            f"{message}; the best of {len(self.done)} trials that leave something in INT8 keeps {layers}: "
            f"{_missed(best)}",
            "use precision.mode fp16 or fp32 for this target, another calibration method or more samples, or lower the "
            "gate",
        )

    def _evaluate(self, kept: tuple[str, ...]) -> _Evaluation:
        import tempfile

        from trtrecipe.data import outputs
        from trtrecipe.engines import ort
        from trtrecipe.graphs.interface import interface
        from trtrecipe.steps.evaluation import batches_of

        graph = interface(self.model)
        with tempfile.TemporaryDirectory() as folder, ort.OrtEngine(self._built(kept, Path(folder))) as engine:
            collected, _ = outputs.collect(engine.run, batches_of(self.params, self.samples, graph))
        return self._judged(kept, collected)

    def _built(self, kept: tuple[str, ...], folder: Path) -> Path:
        """What is run, in a file: there would be more copies of the weights in memory otherwise."""
        from trtrecipe.engines import ort
        from trtrecipe.graphs import files
        from trtrecipe.graphs.rounded import rounded

        graph, engine = folder / "graph.onnx", folder / "engine.onnx"
        if self.params.runtime == "onnxruntime":
            files.save(self._lowered(kept), graph)
            ort.build(graph, engine)
            return engine
        files.save(rounded(self._lowered(kept)), graph)
        return graph

    def _lowered(self, kept: tuple[str, ...]) -> ModelProto:
        """The graph that quantize and convert would make."""
        from trtrecipe.graphs.float16 import to_float16
        from trtrecipe.quant.qdq import insert_qdq

        model = self.model
        if self.quantizes(kept):
            model, _ = insert_qdq(model, self.scales.thresholds, {*self.base, *kept})
        return to_float16(model, self.base, self.scales.ranges)[0] if self.params.fallback == "fp16" else model

    def _judged(self, kept: tuple[str, ...], collected: Mapping[str, Array]) -> _Evaluation:
        from trtrecipe.data import metrics
        from trtrecipe.data.limits import quality
        from trtrecipe.errors import StepError
        from trtrecipe.graphs.interface import interface
        from trtrecipe.steps.evaluation import compare, score

        graph = interface(self.model)
        try:
            metrics.check_comparable(collected, self.reference)
        except StepError as error:
            return _Evaluation(kept, {}, (), error.message)  # what overflowed may be mended by keeping it
        figures = compare(self.params, self.samples, graph, collected, self.reference)
        expected = score(self.params, self.samples, graph, self.reference)
        figures |= {f"reference_{name}": value for name, value in expected.items()}
        return _Evaluation(kept, figures, tuple(quality(self.params.gates, self.params.metric, figures)))


def _margin(evaluation: _Evaluation) -> tuple[bool, float, int]:
    """Orders evaluations by how near they come: by the gate that is missed by most, then by how few are kept."""
    gaps = [
        (limit.value - limit.limit) * (1 if limit.better == ">=" else -1)
        for limit in evaluation.limits
        if limit.value is not None
    ]
    return evaluation.error is None, min(gaps, default=0.0), -len(evaluation.kept)


def _missed(evaluation: _Evaluation) -> str:
    if evaluation.error is not None:
        return evaluation.error
    return "; ".join(str(limit) for limit in evaluation.limits if limit.status != "met")


def _summary(kept: Sequence[str], ranked: int, fallback: str, beside: bool) -> str:
    """`beside`: whether the recipe keeps layers itself."""
    if not kept:
        other, more = ("other ", "more ") if beside else ("", "")
        return f"search: the gates are met with every {other}layer in INT8; nothing {more}is kept"
    stay = "layers is" if len(kept) == 1 else "layers are"
    more = f" and {len(kept) - _NAMED} more" if len(kept) > _NAMED else ""
    return f"search: {len(kept)} of {ranked} {stay} kept in {fallback.upper()}: {', '.join(kept[:_NAMED])}{more}"
