"""The recipe: closed, frozen pydantic models. The JSON Schema in `schemas/` is generated from them.

What a validator raises completes the sentence "<where> is <value>: it ...", or "<where> ..." for a whole block.
"""

from __future__ import annotations

import os
import re
from typing import Annotated, Any, Literal

# No pydantic plugins: they are code of other packages, and looking for them opens the metadata of every package there.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
_SIZE = re.compile(r"^([1-9][0-9]{0,11})\s*(B|KiB|MiB|GiB)$")
_LARGEST = 1 << 50
_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def _size(value: Any) -> Any:
    if isinstance(value, str):
        match = _SIZE.fullmatch(value)
        if not match:
            raise ValueError("must be a whole number and its unit: B, KiB, MiB or GiB, as in 512MiB")
        value = int(match[1]) * _UNITS[match[2]]
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("must be a whole number and its unit, as in 512MiB")
    if not 0 < value <= _LARGEST:
        raise ValueError(f"must be between 1B and {_LARGEST >> 30}GiB")
    return value


class _Context(dict[str, Any]):
    """What an error message may use. An annotation that may also be None has to be hashable, and a dict is not."""

    __hash__ = object.__hash__  # type: ignore[assignment]  # a dict declares that it has none


def _keyed(*keys: str) -> Discriminator:
    """Chooses the form of a mapping by which one of `keys` it has; the tag of a form is "|" and its key."""

    def tag(value: Any) -> str | None:
        if isinstance(value, BaseModel):
            value = type(value).model_fields
        found = [key for key in keys if key in value] if isinstance(value, dict) else []
        return f"|{found[0]}" if len(found) == 1 else None

    names = " or ".join((", ".join(keys[:-1]), keys[-1]))
    return Discriminator(tag, "form", f"must be a mapping with the key {names}", _Context(keys=" ".join(keys)))


def _shape_entry(value: Any) -> str | None:
    return "|size" if isinstance(value, int) else "|name" if isinstance(value, str) else None


def _target_form(value: Any) -> str | None:
    return "|profile" if isinstance(value, str) else "|entry" if isinstance(value, dict | BaseModel) else None


class _Closed(BaseModel):
    # Deferred: each model is built once, inside Recipe, when the first recipe is validated.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, defer_build=True)


Text = Annotated[str, Field(min_length=1)]
Name = Annotated[str, Field(pattern=NAME)]
Size = Annotated[
    int,
    BeforeValidator(
        _size,
        json_schema_input_type=Annotated[str, Field(pattern=_SIZE.pattern)] | Annotated[int, Field(ge=1, le=_LARGEST)],
    ),
]
"""Bytes; written as 512MiB or 1GiB."""
Extent = Annotated[int, Field(ge=1, lt=2**31)]
"""The length of one axis."""
Dtype = Literal["float32", "float16", "int8", "uint8", "int32", "int64", "bool"]
Samples = Annotated[int, Field(ge=1, le=10_000_000)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


ShapeEntry = Annotated[
    Annotated[Extent, Tag("|size")] | Annotated[Name, Tag("|name")],
    Discriminator(_shape_entry, "form", "must be a whole number, or the name of a dimension in model.dims"),
]


class InputSpec(_Closed):
    """What the recipe says of one model input; the model itself says the rest."""

    shape: list[ShapeEntry] | None = Field(
        None, description="One entry per axis: a number fixes an open axis, a name makes it a dimension of model.dims."
    )
    dtype: Dtype | None = Field(None, description="Checked against the model.")
    layout: Literal["nchw", "nhwc"] | None = Field(
        None,
        description="Where the engine takes the channels of images; as in the model when absent. The shape is in it.",
    )


class DimRange(_Closed):
    """The range of a named dimension: one optimization profile."""

    min: Extent
    opt: Extent
    max: Extent

    @model_validator(mode="after")
    def _ordered(self) -> DimRange:
        if not self.min <= self.opt <= self.max:
            raise ValueError(f"must have min <= opt <= max, not {self.min}, {self.opt} and {self.max}")
        return self


PassName = Literal[
    "affine",
    "batch-normalizations",
    "constants",
    "dimensions",
    "double-to-float",
    "duplicates",
    "identities",
    "int64-to-int32",
    "mean-to-pool",
    "merge-transposes",
    "move-transposes",
    "shapes",
    "sort-top-k",
    "unused-outputs",
    "write-out-operators",
    "zero-states",
]
"""The passes of prepare and lower: a test compares them with the passes themselves."""


class Model(_Closed):
    """Where the model is and what it leaves open."""

    source: Text = Field(description="A path relative to the recipe.")
    format: Literal["saved_model", "keras", "h5", "frozen_graph", "tflite", "onnx"] | None = Field(
        None, description="Told from the content when absent."
    )
    signature: Text | None = Field(None, description="SavedModel and TFLite; serving_default when absent.")
    tags: list[Text] | None = Field(
        None, min_length=1, description="SavedModel only: all tags of one of its graphs; [serve] when absent."
    )
    opset: int | None = Field(None, ge=13, le=21, description="ONNX opset of the export; 13 when absent.")
    outputs: list[Text] | None = Field(
        None,
        min_length=1,
        description="Where the graph ends: outputs, tensors, nodes or layers of the model. A frozen_graph needs them.",
    )
    rename: dict[Text, Name] = Field(
        default_factory=dict, description="The model's name of an input or output → its name everywhere else."
    )
    inputs: dict[Text, InputSpec] = Field(default_factory=dict)
    dims: dict[Name, DimRange] = Field(default_factory=dict)
    tolerance: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Largest error allowed between the source and its export, as a part of an output's largest "
        "magnitude; 0.001 when absent, 0.01 for models in 16 bits, 0.02 for those that quantize.",
    )
    without_passes: list[PassName] = Field(
        default_factory=list,
        description="Passes over the graph that are turned off; docs/passes.md says what each does.",
    )


Mode = Literal["fp32", "fp16", "int8"]
Float = Literal["fp32", "fp16"]


class KeepLayers(_Closed):
    """Layers of the source model, or ONNX nodes, by name."""

    layers: Text = Field(description="A name or a shell pattern: logits, or block3*.")
    precision: Float | None = Field(None, description="The fallback in int8, fp32 in fp16, when absent.")


class KeepOperators(_Closed):
    """Nodes by ONNX operator."""

    operators: list[Text] = Field(min_length=1)
    precision: Float | None = None


class KeepBetween(_Closed):
    """All nodes on the paths from one layer or node to another, both included."""

    between: list[Text] = Field(min_length=2, max_length=2, description="[FROM, TO]")
    precision: Float | None = None


Keep = Annotated[
    Annotated[KeepLayers, Tag("|layers")]
    | Annotated[KeepOperators, Tag("|operators")]
    | Annotated[KeepBetween, Tag("|between")],
    _keyed("layers", "operators", "between"),
]


def _mode_form(value: Any) -> str | None:
    return "|one" if isinstance(value, str) else "|several" if isinstance(value, list | tuple) else None


ModeForm = Annotated[
    Annotated[Mode, Tag("|one")] | Annotated[list[Mode], Field(min_length=1), Tag("|several")],
    Discriminator(_mode_form, "form", "must be fp32, fp16 or int8, or a list of them"),
]


class Precision(_Closed):
    """The arithmetic of the engine."""

    mode: ModeForm = Field(description="Of a list, the fastest that meets the gates is shipped.")
    fallback: Float = Field("fp32", description="Precision of whatever is not quantized (int8 only).")
    quantization: Literal["explicit", "implicit", "dynamic"] = Field(
        "explicit",
        description="Q/DQ nodes, or a calibration table with which TensorRT chooses the layers, or weights alone, for "
        "TFLite (int8 only).",
    )
    keep: list[Keep] = Field(default_factory=list, description="What stays in a higher precision.")
    search: bool = Field(
        False, description="Where INT8 misses a gate, find the fewest layers that have to stay in the fallback."
    )

    @property
    def modes(self) -> tuple[Mode, ...]:
        """One mode, or the candidates in the recipe's order."""
        return (self.mode,) if isinstance(self.mode, str) else tuple(self.mode)

    @model_validator(mode="after")
    def _fits_the_mode(self) -> Precision:
        modes = self.modes
        if len(set(modes)) < len(modes):
            raise ValueError("must not name a mode twice")
        if "int8" not in modes:
            for key in ("fallback", "quantization", "search"):
                if key in self.model_fields_set:
                    raise ValueError(f"may have {key} only with mode int8, and the mode is {' or '.join(modes)}")
        if self.keep and modes == ("fp32",):
            raise ValueError("may have keep only with mode fp16 or int8: nothing is higher than fp32")
        if self.quantization != "explicit":
            who = "TensorRT" if self.quantization == "implicit" else "TensorFlow's converter"
            for key, given in (("keep", self.keep), ("search", self.search)):
                if given:
                    how = f"{self.quantization} quantization"
                    raise ValueError(f"cannot have {key} with {how}: {who} chooses its layers")
        for entry in self.keep:
            if entry.precision == "fp16" and (self.fallback == "fp32" or modes == ("fp16",)):
                why = "the fallback is fp32" if "int8" in modes else "the mode is fp16 anyway"
                raise ValueError(f"cannot keep layers in fp16: {why}")
        return self


Figure = Annotated[float, Field(ge=-1e30, le=1e30)]
"""A number that float32 holds with room for arithmetic."""


class Scale(_Closed):
    """value * scale"""

    scale: Figure

    @model_validator(mode="after")
    def _not_zero(self) -> Scale:
        if abs(self.scale) < 1e-30:
            raise ValueError("must have a scale other than 0")
        return self


class MeanStd(_Closed):
    """(value - mean) / std, one figure each or one per channel (the last axis, unless layout says nchw)"""

    mean: list[Figure] = Field(min_length=1)
    std: list[Annotated[float, Field(ge=1e-30, le=1e30)]] = Field(min_length=1)

    @model_validator(mode="after")
    def _same_length(self) -> MeanStd:
        if len(self.mean) != len(self.std):
            raise ValueError(f"must have as many entries in std as in mean, not {len(self.std)} and {len(self.mean)}")
        return self


class Normalize(_Closed):
    """(value - mean) / std"""

    normalize: MeanStd


def _size_alone(value: Any) -> Any:
    return {"size": value} if isinstance(value, list) else value


HeightWidth = Annotated[list[Annotated[int, Field(ge=1, le=32768)]], Field(min_length=2, max_length=2)]


class ResizeTo(_Closed):
    """The size, and the filter by Pillow's name for it."""

    size: HeightWidth | None = Field(None, description="[height, width]; the shape may change.")
    short_side: int | None = Field(None, ge=1, le=32768, description="Of the shorter side; the shape stays.")
    filter: Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"] = "bilinear"

    @model_validator(mode="after")
    def _one_size(self) -> ResizeTo:
        if (self.size is None) == (self.short_side is None):
            raise ValueError("must have either size or short_side")
        return self


class Resize(_Closed):
    """Another height and width, by Pillow's resampling"""

    resize: Annotated[ResizeTo, BeforeValidator(_size_alone, json_schema_input_type=HeightWidth | ResizeTo)] = Field(
        description="[height, width], or a mapping."
    )


class Crop(_Closed):
    """The middle"""

    crop: HeightWidth = Field(description="[height, width]")


class Colour(_Closed):
    """Another order of the colours, or gray; values are RGB before"""

    colour: Literal["rgb", "bgr", "gray"]


class Layout(_Closed):
    """Channels to the front (nchw) or the back (nhwc)"""

    layout: Literal["nchw", "nhwc"]


class Cast(_Closed):
    """Another type; to integers rounded and held in range"""

    cast: Literal["float32", "float16", "int8", "uint8", "int32", "int64"]


PreprocessOp = Annotated[
    Annotated[Scale, Tag("|scale")]
    | Annotated[Normalize, Tag("|normalize")]
    | Annotated[Resize, Tag("|resize")]
    | Annotated[Crop, Tag("|crop")]
    | Annotated[Colour, Tag("|colour")]
    | Annotated[Layout, Tag("|layout")]
    | Annotated[Cast, Tag("|cast")],
    _keyed("scale", "normalize", "resize", "crop", "colour", "layout", "cast"),
]


class NpzData(_Closed):
    """Arrays of one .npz file."""

    npz: Text = Field(description="A path relative to the recipe.")
    arrays: dict[Text, Text] = Field(min_length=1, description="Input name (or label) → array name.")


class NpyData(_Closed):
    """One .npy file per input."""

    npy: dict[Text, Text] = Field(min_length=1, description="Input name (or label) → file.")


class ImagesData(_Closed):
    """One encoded image per sample, for the model's only input."""

    images: Text = Field(description="A pattern of files relative to the recipe: photos/**/*.jpg.")
    labels: Text | None = Field(None, description="A text file: a file name and a number a line, or a number a line.")


class RawData(_Closed):
    """One file per sample and input, which holds the input's values and nothing else."""

    raw: dict[Text, Text] = Field(min_length=1, description="Input name → a pattern of files relative to the recipe.")
    labels: Text | None = Field(None, description="A text file: a file name and a number a line, or a number a line.")


class TfrecordData(_Closed):
    """Records of tf.train.Example, read by TensorFlow."""

    tfrecord: Text = Field(description="A pattern of files relative to the recipe.")
    features: dict[Text, Text] = Field(min_length=1, description="Input name (or label) → feature name.")


class CsvData(_Closed):
    """A list of files, one line per sample."""

    csv: Text = Field(description="A path relative to the recipe; its first line names the columns.")
    columns: dict[Text, Text] = Field(
        min_length=1, description="Input name → column of file names, relative to the list; label → column of numbers."
    )


Data = Annotated[
    Annotated[NpzData, Tag("|npz")]
    | Annotated[NpyData, Tag("|npy")]
    | Annotated[ImagesData, Tag("|images")]
    | Annotated[RawData, Tag("|raw")]
    | Annotated[TfrecordData, Tag("|tfrecord")]
    | Annotated[CsvData, Tag("|csv")],
    _keyed("npz", "npy", "images", "raw", "tfrecord", "csv"),
]


class Calibration(_Closed):
    """Where scales come from: samples, a calibration table, or the model itself."""

    data: Data | None = None
    table: Text | None = Field(None, description="A TensorRT calibration table, relative to the recipe.")
    model: Literal[True] | None = Field(None, description="true: the model carries Q/DQ or FakeQuant nodes.")
    samples: Samples | None = Field(None, description="How many; all when absent.")
    seed: Seed = Field(0, description="Selects which samples.")
    method: Literal["minmax", "percentile", "entropy", "mse"] = "entropy"
    memory: Size = Field(512 << 20, description="Memory for observed values; it cannot change the result.")

    @model_validator(mode="after")
    def _one_origin(self) -> Calibration:
        given = [key for key in ("data", "table", "model") if getattr(self, key) is not None]
        if len(given) != 1:
            raise ValueError(f"must have one of data, table and model, not {' and '.join(given) or 'none'}")
        if self.data is None:
            for key in ("samples", "seed", "method", "memory"):
                if key in self.model_fields_set:
                    raise ValueError(f"may have {key} only with data: with {given[0]} no sample is run")
        return self


class Evaluation(_Closed):
    """The samples that results are judged by."""

    data: Data
    samples: Samples | None = Field(None, description="How many; all when absent.")
    seed: Seed = Field(0, description="Selects which samples.")
    metric: Literal["top1", "top5", "mse", "cosine", "snr"] | None = None
    output: Text | None = Field(None, description="The output that the metric reads; the first when absent.")
    device_samples: Samples = Field(
        256, description="How many of the samples, at most, are run on a device; 32 where only trtexec can run them."
    )


class AccuracyGate(_Closed):
    """Limits on the task metric."""

    max_drop: float | None = Field(None, ge=0, description="How much worse than the FP32 reference it may be.")
    min: float | None = Field(None, description="How low (for mse: how high) it may be.")

    @model_validator(mode="after")
    def _something(self) -> AccuracyGate:
        if self.max_drop is None and self.min is None:
            raise ValueError("must have max_drop, min or both")
        return self


class LatencyGate(_Closed):
    """Upper limits in milliseconds."""

    p50: float | None = Field(None, gt=0)
    p90: float | None = Field(None, gt=0)
    p99: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _something(self) -> LatencyGate:
        if self.p50 is None and self.p90 is None and self.p99 is None:
            raise ValueError("must have p50, p90 or p99")
        return self


class Gates(_Closed):
    """Limits that fail the build (exit code 3)."""

    accuracy: AccuracyGate | None = None
    agreement: float | None = Field(None, ge=0, le=1, description="Least share of samples with the reference's top-1.")
    cosine: float | None = Field(None, ge=-1, le=1, description="Least cosine similarity with the reference's outputs.")
    latency_ms: LatencyGate | None = None
    size: Size | None = Field(None, description="Largest engine file.")


class DlaCore(_Closed):
    """A core of the deep learning accelerator that Xavier and Orin have beside their GPU."""

    core: int = Field(ge=0, le=15, description="Which core; they count from 0.")
    gpu_fallback: bool = Field(True, description="Whether layers that DLA does not take may run on the GPU.")


class Build(_Closed):
    """Settings of the engine builder."""

    workspace: Size | None = Field(None, description="Memory that tactics may use.")
    dla: DlaCore | None = Field(
        None, description="Build for DLA: precision fp16 or int8, dimensions with one size, INT8 by calibration table."
    )


class TargetModel(_Closed):
    """What a target may replace of the model block."""

    dims: dict[Name, DimRange]


class TargetEntry(_Closed):
    """A target that differs from the recipe in whole blocks."""

    profile: Text = Field(description="profile or profile@JetPack.")
    name: Name | None = Field(None, description="Target id; the profile as written when absent.")
    precision: Precision | None = None
    model: TargetModel | None = Field(None, description="Replaces model.dims.")
    build: Build | None = None
    gates: Gates | None = None


TargetForm = Annotated[
    Annotated[Text, Tag("|profile")] | Annotated[TargetEntry, Tag("|entry")],
    Discriminator(_target_form, "form", "must be a profile, as in jetson-xavier-nx@5.1.4, or a mapping that names one"),
]


class Recipe(_Closed):
    """A trtrecipe/v1 recipe."""

    schema_: Literal["trtrecipe/v1"] = Field(alias="schema")
    name: Name
    model: Model
    precision: Precision
    preprocess: dict[Text, list[PreprocessOp]] = Field(default_factory=dict, description="Input name → operations.")
    calibration: Calibration | None = None
    evaluation: Evaluation | None = None
    gates: Gates | None = None
    targets: list[TargetForm] = Field(min_length=1)
    build: Build = Field(default_factory=lambda: Build(workspace=None, dla=None))
