"""The recipe: closed, frozen pydantic models. The JSON Schema in `schemas/` is generated from them."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
_SIZE = re.compile(r"^([1-9][0-9]{0,11})\s*(B|KiB|MiB|GiB)$")
_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def _size(value: Any) -> Any:
    if isinstance(value, str):
        match = _SIZE.match(value)
        if not match:
            raise ValueError("is not a size; write a whole number and its unit: B, KiB, MiB or GiB, as in 512MiB")
        return int(match[1]) * _UNITS[match[2]]
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("is not a size; write a whole number and its unit, as in 512MiB")
    return value


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


Name = Annotated[str, Field(pattern=NAME)]
Size = Annotated[
    int,
    BeforeValidator(_size, json_schema_input_type=Annotated[str, Field(pattern=_SIZE.pattern)] | int),
    Field(gt=0),
]
"""Bytes; written as 512MiB or 1GiB."""
Dtype = Literal["float32", "float16", "int8", "uint8", "int32", "int64", "bool"]
Samples = Annotated[int, Field(ge=1, le=10_000_000)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class InputSpec(_Closed):
    """What the recipe says of one model input; the model itself says the rest."""

    shape: list[Annotated[int, Field(gt=0)] | Name] | None = Field(
        None, description="One entry per axis: a number fixes an open axis, a name makes it a dimension of model.dims."
    )
    dtype: Dtype | None = Field(None, description="Checked against the model.")


class DimRange(_Closed):
    """The range of a named dimension: one optimization profile."""

    min: int = Field(ge=1)
    opt: int = Field(ge=1)
    max: int = Field(ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> DimRange:
        if not self.min <= self.opt <= self.max:
            raise ValueError("needs min <= opt <= max")
        return self


class Model(_Closed):
    """Where the model is and what it leaves open."""

    source: str = Field(min_length=1, description="A path relative to the recipe.")
    format: Literal["saved_model", "keras", "onnx"] | None = Field(None, description="Inferred when absent.")
    signature: str | None = Field(None, description="SavedModel only; serving_default when absent.")
    opset: int | None = Field(None, ge=13, le=21, description="ONNX opset of the export; 13 when absent.")
    inputs: dict[str, InputSpec] = Field(default_factory=dict)
    dims: dict[Name, DimRange] = Field(default_factory=dict)


class Precision(_Closed):
    """The arithmetic of the engine."""

    mode: Literal["fp32", "fp16", "int8"]
    fallback: Literal["fp32", "fp16"] = Field("fp32", description="Precision of whatever is not quantized (int8 only).")

    @model_validator(mode="after")
    def _fallback_only_for_int8(self) -> Precision:
        if self.mode != "int8" and "fallback" in self.model_fields_set:
            raise ValueError(f"fallback goes with mode int8 only, here the mode is {self.mode}")
        return self


class Scale(_Closed):
    """value * scale"""

    scale: float

    @model_validator(mode="after")
    def _not_zero(self) -> Scale:
        if self.scale == 0 or not math.isfinite(self.scale):
            raise ValueError("scale must be a finite number other than 0")
        return self


class MeanStd(_Closed):
    """(value - mean) / std, one figure each or one per entry of the last axis"""

    mean: list[float] = Field(min_length=1)
    std: list[Annotated[float, Field(gt=0)]] = Field(min_length=1)

    @model_validator(mode="after")
    def _same_length(self) -> MeanStd:
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} entries and std {len(self.std)}")
        return self


class Normalize(_Closed):
    """(value - mean) / std"""

    normalize: MeanStd


PreprocessOp = Scale | Normalize


class NpzData(_Closed):
    """Arrays of one .npz file."""

    npz: str = Field(min_length=1)
    arrays: dict[str, str] = Field(min_length=1, description="Input name (or label) → array name.")


class NpyData(_Closed):
    """One .npy file per input."""

    npy: dict[str, str] = Field(min_length=1, description="Input name (or label) → file.")


Data = NpzData | NpyData


class Calibration(_Closed):
    """The samples that scales are computed from."""

    data: Data
    samples: Samples | None = Field(None, description="How many; all when absent.")
    seed: Seed = Field(0, description="Selects which samples.")
    method: Literal["minmax", "percentile", "entropy"] = "entropy"


class Evaluation(_Closed):
    """The samples that results are judged by."""

    data: Data
    samples: Samples | None = Field(None, description="How many; all when absent.")
    seed: Seed = Field(0, description="Selects which samples.")
    metric: Literal["top1", "top5", "mse", "cosine", "snr"] | None = None
    output: str | None = Field(None, description="The output that the metric reads; the first when absent.")


class AccuracyGate(_Closed):
    """Limits on the task metric."""

    max_drop: float | None = Field(None, ge=0, description="How much worse than the FP32 reference it may be.")
    min: float | None = Field(None, description="How low (for mse: how high) it may be.")

    @model_validator(mode="after")
    def _something(self) -> AccuracyGate:
        if self.max_drop is None and self.min is None:
            raise ValueError("needs max_drop, min or both")
        return self


class LatencyGate(_Closed):
    """Upper limits in milliseconds."""

    p50: float | None = Field(None, gt=0)
    p90: float | None = Field(None, gt=0)
    p99: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _something(self) -> LatencyGate:
        if self.p50 is None and self.p90 is None and self.p99 is None:
            raise ValueError("needs p50, p90 or p99")
        return self


class Gates(_Closed):
    """Limits that fail the build (exit code 3)."""

    accuracy: AccuracyGate | None = None
    agreement: float | None = Field(None, ge=0, le=1, description="Least share of samples with the reference's top-1.")
    cosine: float | None = Field(None, ge=-1, le=1, description="Least cosine similarity with the reference's outputs.")
    latency_ms: LatencyGate | None = None
    size: Size | None = Field(None, description="Largest engine file.")


class Build(_Closed):
    """Settings of the engine builder."""

    workspace: Size | None = Field(None, description="Memory that tactics may use.")


class TargetModel(_Closed):
    """What a target may replace of the model block."""

    dims: dict[Name, DimRange]


class TargetEntry(_Closed):
    """A target that differs from the recipe in whole blocks."""

    profile: str = Field(min_length=1, description="profile or profile@JetPack.")
    name: Name | None = Field(None, description="Target id; the profile as written when absent.")
    precision: Precision | None = None
    model: TargetModel | None = Field(None, description="Replaces model.dims.")
    build: Build | None = None
    gates: Gates | None = None


class Recipe(_Closed):
    """A trtrecipe/v1 recipe."""

    schema_: Literal["trtrecipe/v1"] = Field(alias="schema")
    name: Name
    model: Model
    precision: Precision
    preprocess: dict[str, list[PreprocessOp]] = Field(default_factory=dict, description="Input name → operations.")
    calibration: Calibration | None = None
    evaluation: Evaluation | None = None
    gates: Gates | None = None
    targets: list[Annotated[str, Field(min_length=1)] | TargetEntry] = Field(min_length=1)
    build: Build = Field(default_factory=lambda: Build(workspace=None))
