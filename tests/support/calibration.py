"""Small graphs and samples as files, and what calibration observes of them."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from trtrecipe.quant.calibrate import Limits, Observed, observe
from trtrecipe.quant.histogram import Histogram
from trtrecipe.quant.sites import find_sites

MEMORY = 1 << 30


def model(weight: float = 1.0, batch: int | str = "n") -> onnx.ModelProto:
    """x → MatMul w → Relu → Abs (not quantized) → MatMul by the unit matrix."""
    node = helper.make_node
    nodes = [
        node("MatMul", ["x", "w"], ["m"], "first"),
        node("Relu", ["m"], ["r"], "relu"),
        node("Abs", ["r"], ["a"], "abs"),
        node("MatMul", ["a", "unit"], ["y"], "second"),
    ]
    constants = [
        numpy_helper.from_array(np.eye(4, dtype=np.float32) * np.float32(weight), "w"),
        numpy_helper.from_array(np.eye(4, dtype=np.float32), "unit"),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "graph",
        [value("x", TensorProto.FLOAT, [batch, 4])],
        [value("y", TensorProto.FLOAT, [batch, 4])],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def with_operator(operator: str, given: onnx.ModelProto | None = None, **attributes: object) -> onnx.ModelProto:
    """The model with `operator` instead of its Abs."""
    given = given or model()
    given.graph.node[2].CopyFrom(helper.make_node(operator, ["r"], ["a"], "abs", **attributes))
    return given


@dataclass(frozen=True)
class Seen:
    """Histograms by tensor, in the order in which they were finished, and the rest."""

    histograms: Mapping[str, Histogram]
    observed: Observed

    def bytes(self) -> dict[str, bytes]:
        """All that can be told of the values."""
        found = {name: histogram.to_bytes() for name, histogram in sorted(self.histograms.items())}
        return found | {f"range of {name}": repr(span).encode() for name, span in self.observed.ranges.items()}


def files_of(folder: Path, given: onnx.ModelProto, x: np.ndarray) -> dict[str, Path]:
    """The step's inputs, written to `folder`."""
    folder.mkdir(exist_ok=True)
    onnx.save(given, folder / "model.onnx")
    np.save(folder / "x.npy", x)
    return {"onnx": folder / "model.onnx", "data.x": folder / "x.npy"}


def observed(
    x: np.ndarray,
    given: onnx.ModelProto | None = None,
    memory: int = MEMORY,
    jobs: int = 1,
    checkpoint: Path | None = None,
    everything: bool = False,
) -> Seen:
    """What calibration sees when the samples `x` run through the model."""
    given = given or model()
    histograms: dict[str, Histogram] = {}
    needed = {site.activation: site.node for site in reversed(find_sites(given).sites)}
    with tempfile.TemporaryDirectory() as folder:
        inputs = files_of(Path(folder), given, x)
        limits = Limits(memory, jobs, checkpoint)
        found = observe(given, inputs, {}, needed, everything, limits, histograms.__setitem__)
    return Seen(histograms, found)
