"""Preprocessing: what is done to a sample before the model sees it, and the document that says so.

`preprocessing.json` is the contract for whoever runs the engine: {"schema": "trtrecipe/preprocessing/v1", "inputs":
{NAME: {"dtype": …, "shape": […], "operations": […]}}} as canonical JSON. `dtype` and `shape` are the model input's; an
entry of `shape` is a size or the name of an open dimension, and the first is the batch. `operations` are applied in
order to the raw values, each to the result of the one before:

- {"cast": DTYPE}: convert each value to that type.
- {"scale": x}: value * x, in float32.
- {"normalize": {"mean": [...], "std": [...]}}: (value - mean) / std, in float32; one figure for all, or one per entry
  of the last axis.

Figures are rounded to float32 first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from trtrecipe.digest import canonical_json
from trtrecipe.errors import StepError
from trtrecipe.graphs.interface import Interface, TensorSpec

SCHEMA = "trtrecipe/preprocessing/v1"

Operations = Sequence[Mapping[str, Any]]
Array = npt.NDArray[Any]


def document(interface: Interface, preprocess: Mapping[str, Operations]) -> bytes:
    """The contract as canonical JSON. Raises StepError when `preprocess` does not fit the model."""
    check(interface, preprocess)
    inputs = {
        spec.name: {"dtype": spec.dtype, "shape": list(spec.shape), "operations": _spelled_out(spec, preprocess)}
        for spec in interface.inputs
    }
    return canonical_json({"schema": SCHEMA, "inputs": inputs})


def check(interface: Interface, preprocess: Mapping[str, Operations]) -> None:
    """Raise StepError when `preprocess` names no input of the model, or an input or length that it cannot apply to."""
    specs = {spec.name: spec for spec in interface.inputs}
    for name, operations in preprocess.items():
        if name not in specs:
            raise StepError(f"preprocess names input {name}, which the model lacks", f"its inputs: {', '.join(specs)}")
        spec = specs[name]
        if operations and not spec.dtype.startswith("float"):
            raise StepError(
                f"preprocess of input {name} computes in float32, and the model takes {spec.dtype}",
                f"remove preprocess.{name} and give values that are {spec.dtype} already",
            )
        for operation in operations:
            length = len(operation["normalize"]["mean"]) if "normalize" in operation else 1
            last = spec.shape[-1] if spec.shape else None
            if length > 1 and isinstance(last, int) and last != length:
                raise StepError(
                    f"normalize of input {name} has {length} entries, and the last axis of {spec} has {last}",
                    f"give one figure, or {last}",
                )


def apply(raw: Array, spec: TensorSpec, operations: Operations) -> Array:
    """`raw` samples → the model input's dtype. Values must fit that dtype: `batches.load` has seen to it."""
    with np.errstate(over="ignore", invalid="ignore"):  # an infinity is reported with its sample by the caller
        if not operations:
            return raw.astype(spec.dtype)
        values: Array = raw.astype(np.float32)
        for operation in operations:
            if "scale" in operation:
                values = values * np.float32(operation["scale"])
            else:
                figures = operation["normalize"]
                values = (values - np.asarray(figures["mean"], np.float32)) / np.asarray(figures["std"], np.float32)
        return values.astype(spec.dtype)


def _spelled_out(spec: TensorSpec, preprocess: Mapping[str, Operations]) -> list[Mapping[str, Any]]:
    operations = preprocess.get(spec.name) or ()
    if not operations:
        return [{"cast": spec.dtype}]
    last = [] if spec.dtype == "float32" else [{"cast": spec.dtype}]
    return [{"cast": "float32"}, *operations, *last]
