"""Samples → scales: the threshold of every activation that is quantized, and what was seen of every other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx

    from trtrecipe.quant.histogram import Histogram
    from trtrecipe.quant.scales import Scales

VERSION = 4
OUTPUTS = {"scales": "scales.json"}
NUMERIC = True


@dataclass(frozen=True)
class Params:
    """`method`: minmax, percentile, entropy or mse; None where no thresholds are wanted.

    `tensors`, of which there are thresholds: "quantized", those that get a Q/DQ pair; "all", every FP32 activation, as
    implicit quantization needs; "ranges", none, as FP16 needs the ranges alone.
    `source` of the scales: "data", a calibration "table", or the "model" that carries them; the method is of "data".
    """

    method: str | None
    preprocess: dict[str, list[Any]] = field(default_factory=dict)
    tensors: str = "quantized"
    source: str = "data"


def tools(params: Params) -> tuple[str, ...]:
    """The distributions that values depend on."""
    return ("onnx", "onnxruntime", "numpy")


MEMORY = 512 << 20
"""Bytes that observing may take beside the model, when nothing else is said."""


def run(
    params: Params,
    inputs: Mapping[str, Path],
    out: Path,
    *,
    memory: int = MEMORY,
    jobs: int = 1,
    checkpoint: Path | None = None,
) -> Mapping[str, Any]:
    """With "onnx" (prepared) and "data.*" or "table" → scales.json; measures samples, tensors, passes and processes.

    `memory`: bytes that observing may take beside the model, for all of at most `jobs` processes. `checkpoint`: a
    folder of this work alone, in which an earlier attempt may have left what it counted. The result is the same.
    """
    from trtrecipe.graphs import files
    from trtrecipe.quant import scales
    from trtrecipe.quant.carried import carries_quantization

    model = files.load(inputs["onnx"])
    if carries_quantization(model):
        found, measured = _of_model(params, model)
    elif params.source == "model":
        raise _error(
            "calibration.model says that the model carries its own scales, and it has no Q/DQ pair or FakeQuant",
            "give calibration data or a table, or start from the quantized model",
        )
    elif params.source == "table":
        found, measured = _of_table(params, model, inputs["table"])
    else:
        from trtrecipe.quant.calibrate import Limits

        found, measured = _of_data(params, model, inputs, Limits(memory, jobs, checkpoint))
    (out / OUTPUTS["scales"]).write_bytes(scales.dump(found))
    return {"samples": found.samples, "tensors": len(found.thresholds), **measured}


def _of_model(params: Params, model: onnx.ModelProto) -> tuple[Scales, dict[str, Any]]:
    """What the model carries, whatever the recipe says about data."""
    from trtrecipe.quant.carried import carried_thresholds
    from trtrecipe.quant.scales import Scales

    if params.source == "table":
        raise _error(
            "calibration.table gives scales, and the model carries its own",
            "write calibration: {model: true}, or start from the float model",
        )
    if params.tensors == "all":
        raise _error(
            "precision.quantization is implicit, and the model carries Q/DQ pairs, which are explicit quantization",
            "remove precision.quantization, or start from the float model",
        )
    note = "calibration skipped: the model carries its own scales"
    unused = "; the calibration data was not used" if params.source == "data" else ""
    return Scales("model", 0, carried_thresholds(model)), {"notes": [note + unused]}


def _of_table(params: Params, model: onnx.ModelProto, path: Path) -> tuple[Scales, dict[str, Any]]:
    from trtrecipe.quant import activations, table
    from trtrecipe.quant.scales import LIMIT, Scales
    from trtrecipe.quant.sites import find_sites

    given = table.read(path).scales
    names, notes = activations.names(model), list[str]()
    wanted = names
    if params.tensors == "quantized":
        wanted = list(dict.fromkeys(site.activation for site in find_sites(model).sites))
    if missing := [name for name in wanted if name not in given]:
        raise _error(
            f"the calibration table has no scale for {len(missing)} of the {len(wanted)} tensors that need one: it is "
            f"from another network, or from another export of this one. It lacks {_some(missing)}; it has "
            f"{_some(list(given)) or 'none'}",
            "calibrate this network: give calibration.data, or the table that was made for this ONNX graph",
        )
    if foreign := sorted(set(given) - set(names)):
        notes.append(f"the calibration table also has {len(foreign)} tensors that this graph lacks: {_some(foreign)}")
    # A float32 scale times 127 is exact in a double.
    return Scales("table", 0, {name: LIMIT * given[name] for name in wanted}), {"notes": notes}


def _of_data(params: Params, model: onnx.ModelProto, inputs: Mapping[str, Path], limits: Any) -> tuple[Scales, Any]:
    import numpy as np

    from trtrecipe.quant.calibrate import observe
    from trtrecipe.quant.methods import METHODS
    from trtrecipe.quant.scales import Scales
    from trtrecipe.quant.sites import find_sites

    # Refused here, before a sample runs, where there is nothing to quantize.
    sites = find_sites(model).sites if params.tensors != "ranges" else ()
    thresholds: dict[str, float] = {}
    values: dict[str, int] = {}
    clipped: dict[str, int] = {}

    def finish(name: str, histogram: Histogram) -> None:
        assert params.method is not None  # only ranges are wanted then, and nothing is counted
        thresholds[name] = float(np.float32(METHODS[params.method](histogram)))
        values[name], clipped[name] = histogram.count, histogram.above(thresholds[name])

    readers = {site.activation: site.node for site in reversed(sites)}
    observed = observe(model, inputs, params.preprocess, readers, params.tensors == "all", limits, finish)
    found = Scales(params.method or "ranges", observed.samples, thresholds, observed.ranges, values, clipped)
    return found, {
        "passes": observed.passes,
        "processes": observed.processes,
        "runs": observed.runs,
        "resumed": observed.resumed,
        "notes": list(observed.notes),
    }


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(names[:10]) + more


def _error(message: str, hint: str) -> Exception:
    from trtrecipe.errors import StepError

    return StepError(message, hint)
