"""What reference and verify share: the samples, and the task metric on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from trtrecipe.data import batches, draw, metrics, outputs
from trtrecipe.data.preprocess import Array
from trtrecipe.errors import StepError
from trtrecipe.graphs.interface import Interface


class Judging(Protocol):
    """The parameters that say how outputs are judged."""

    @property
    def preprocess(self) -> dict[str, list[Any]]: ...
    @property
    def metric(self) -> str | None: ...
    @property
    def output(self) -> str | None: ...
    @property
    def drawn(self) -> dict[str, Any] | None: ...


def samples_of(params: Judging, inputs: Mapping[str, Path], graph: Interface) -> batches.Samples:
    """The evaluation data, or drawn samples. Raises StepError when the data does not fit the graph or the metric."""
    if params.drawn is not None:
        return draw.draw(graph, params.drawn)
    samples = batches.load(inputs, graph, params.preprocess)
    if params.metric and samples.label is None:
        raise StepError(
            f"the metric {params.metric} needs labels, and the evaluation data has none",
            "name the array of labels as label under evaluation.data, or remove evaluation.metric",
        )
    return samples


def batches_of(
    params: Judging,
    samples: batches.Samples,
    graph: Interface,
    size: int = batches.BATCH,
    span: tuple[int, int] | None = None,
) -> Iterator[batches.Batch]:
    """The samples, or those of `span`, as feeds. Drawn ones are what the model is given: they are not preprocessed."""
    return batches.batches(samples, graph, {} if params.drawn is not None else params.preprocess, size, span)


def score(
    params: Judging, samples: batches.Samples, graph: Interface, collected: Mapping[str, Array]
) -> dict[str, float]:
    """{"accuracy": …} when there is a metric, else nothing. Raises StepError when outputs and labels do not fit."""
    if not params.metric or samples.label is None:
        return {}
    name = outputs.pick(collected, graph.outputs[0].name, params.output)
    return {"accuracy": metrics.evaluate(params.metric, collected[name], samples.label, name)}


def compare(
    params: Judging,
    samples: batches.Samples,
    graph: Interface,
    collected: Mapping[str, Array],
    reference: Mapping[str, Array],
) -> dict[str, float]:
    """The figures of outputs against the reference's.

    cosine and cosine_worst, max_abs_error, equal (`metrics.Closeness`), with a metric also accuracy, with top1 or top5
    also agreement. Raises StepError for outputs that are not finite where the reference is.
    """
    metrics.check_comparable(collected, reference)
    figures = metrics.closeness(collected, reference).measurements() | score(params, samples, graph, collected)
    if params.metric in metrics.CLASSIFIERS:
        name = outputs.pick(reference, graph.outputs[0].name, params.output)
        figures["agreement"] = metrics.agreement(collected[name], reference[name], name)
    return figures
