"""ONNX → engine; for TFLite, the source model → its file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trtrecipe.targets.buildspec import BuildSpec

VERSION = 2
OUTPUTS = {"engine": "model.engine"}
NUMERIC = True
_TOOLS = {
    "onnxruntime": ("onnxruntime",),
    "tensorrt": ("tensorrt", "onnx"),
    "tensorrt-rtx": ("tensorrt-rtx", "onnx"),
    "tflite": ("numpy", "onnx", "tensorflow"),
}


@dataclass(frozen=True)
class Params:
    """`dims`: name → {"min", "opt", "max"}. `workspace`: bytes that tactics may use. Both for TensorRT alone.

    `mode` as `Target` has it, not for tensorrt-rtx. trtexec and tensorrt only: `fallback` as `Target` has it, and
    whether the network is `strongly_typed`. tflite only: `quantization` as `Target` has it, `source`: which graph of
    the source model, as the parameters of export say it, `source_version`: of export, which reads that graph here too,
    and `preprocess` of the samples that ranges are taken from. trtexec only: `dla`, the core to build for and whether
    layers may run on the GPU ("core", "gpu_fallback"), None for the GPU.
    """

    builder: str
    dims: dict[str, dict[str, int]] = field(default_factory=dict)
    workspace: int | None = None
    mode: str | None = None
    quantization: str | None = None
    source: dict[str, Any] = field(default_factory=dict)
    source_version: int | None = None
    preprocess: dict[str, list[Any]] = field(default_factory=dict)
    fallback: str | None = None
    strongly_typed: bool | None = None
    dla: dict[str, Any] | None = None


def tools(params: Params) -> tuple[str, ...]:
    """The distributions that the engine's bytes depend on."""
    form = params.source.get("format")
    if form == "tflite":
        return ()
    return (*_TOOLS.get(params.builder, ()), *(("h5py", "keras", "tf-keras") if form in ("keras", "h5") else ()))


def run(
    params: Params,
    inputs: Mapping[str, Path],
    out: Path,
    *,
    device: Mapping[str, Any] | None = None,
    key: str = "",
    say: Callable[[str], None] = print,
) -> Mapping[str, Any]:
    """With "onnx" → the engine; tflite takes "model" (what fetch made) too, and "data.*" where samples give the ranges;
    trtexec and tensorrt take "keep" and "table"; trtexec builds on `device`.

    Measures the engine's size in bytes, and notes; trtexec more (`device.build`). Raises Unreachable where the device
    cannot be had.
    """
    engine, notes = out / OUTPUTS["engine"], list[str]()
    if params.builder == "onnxruntime":
        from trtrecipe.engines import ort

        ort.build(inputs["onnx"], engine)
    elif params.builder == "tensorrt-rtx":
        from trtrecipe.engines import tensorrt_build
        from trtrecipe.graphs import files

        notes = tensorrt_build.build_for_rtx(files.load(inputs["onnx"]), engine, params.dims, params.workspace)
    elif params.builder == "tensorrt":
        notes = _tensorrt(params, inputs, engine)
    elif params.builder == "trtexec":
        import tempfile

        from trtrecipe import parted
        from trtrecipe.device import build

        assert device is not None  # the plan gives a step with this builder a device
        with tempfile.TemporaryDirectory(prefix="trtrecipe-") as folder:
            given = parted.unpack(inputs["onnx"], Path(folder), "model.onnx")
            if "table" in inputs:
                given["calibration.table"] = inputs["table"]
            return build.build(device, key, _spec(params, inputs), given, engine, say)
    elif params.builder == "tflite":
        notes = _tflite(params, inputs, engine)
    else:
        from trtrecipe.errors import StepError

        names = [*_TOOLS, "trtexec"]
        raise StepError(f"no engine builder is called {params.builder}", f"builders: {', '.join(names)}")
    return {"size": engine.stat().st_size, "notes": notes}


def _spec(params: Params, inputs: Mapping[str, Path]) -> BuildSpec:
    """What trtexec or TensorRT's Python API is told: shapes from the graph, the layers that stay in another precision
    than their network."""
    from trtrecipe.engines.tensorrt_build import shapes
    from trtrecipe.graphs import files, keep
    from trtrecipe.targets.buildspec import BuildSpec, Dla

    assert params.mode is not None
    model = files.load(inputs["onnx"])
    quantized = any(node.op_type == "QuantizeLinear" for node in model.graph.node)
    spec = BuildSpec(
        onnx="model.onnx",
        engine=OUTPUTS["engine"],
        workspace=params.workspace,
        mode=params.mode,
        fallback=params.fallback,
        quantized=quantized,
        table="calibration.table" if "table" in inputs else None,
        strongly_typed=bool(params.strongly_typed),
        shapes=shapes(model, params.dims),
        timing_cache="timing.cache",
        dla=Dla(**params.dla) if params.dla is not None else None,
        verbose=True,
    )
    if not spec.strongly_typed:
        default = spec.float_precision
        kept = keep.load(inputs["keep"])
        # Q/DQ nodes say what is quantized; a table does not, so there every kept layer needs a word.
        layers = {name: each for name, each in kept.items() if "table" in inputs or each != default}
        spec = replace(spec, layers=layers)
    return spec


def _tensorrt(params: Params, inputs: Mapping[str, Path], engine: Path) -> list[str]:
    """By the installed tensorrt, whose version the calibration table is made out to: its scales suit any."""
    import tempfile

    from trtrecipe.engines import tensorrt_build
    from trtrecipe.engines.tensorrt_library import library, version
    from trtrecipe.graphs import files
    from trtrecipe.quant import table

    spec = replace(_spec(params, inputs), engine=str(engine), timing_cache=None, verbose=False)
    with tempfile.TemporaryDirectory(prefix="trtrecipe-") as folder:
        if spec.table is not None:
            spec = replace(spec, table=str(Path(folder) / spec.table))
            release = ".".join(map(str, version(library("tensorrt"))[:3]))
            made_out = replace(table.read(inputs["table"]), tensorrt=release)
            Path(str(spec.table)).write_bytes(table.dump(made_out))
        return tensorrt_build.build("tensorrt", files.load(inputs["onnx"]), spec)


def _tflite(params: Params, inputs: Mapping[str, Path], engine: Path) -> list[str]:
    """The TFLite file of the source model; the source itself where it is one already."""
    import tempfile

    from trtrecipe.data import batches
    from trtrecipe.data.preprocess import Array
    from trtrecipe.engines import tflite_build, tflite_kind
    from trtrecipe.graphs import files
    from trtrecipe.graphs.interface import interface
    from trtrecipe.steps import export

    source = export.Params(**params.source)
    assert params.mode is not None
    if source.format == "tflite":
        changed = source.rename or source.outputs or any(given.get("layout") for given in source.inputs.values())
        tflite_kind.require(inputs["model"], params.mode, params.quantization, bool(changed))
        engine.write_bytes(inputs["model"].read_bytes())
        return ["the model is a TFLite file already, which is left as it is"]
    graph = interface(files.load(inputs["onnx"]))
    samples = (
        batches.load(inputs, graph, params.preprocess) if any(role.startswith("data") for role in inputs) else None
    )

    def feeds() -> Iterator[Mapping[str, Array]]:
        assert samples is not None
        # The last sample of the last batch comes several times, which is nothing to a range.
        return (batch.feeds for batch in batches.batches(samples, graph, params.preprocess))

    with tempfile.TemporaryDirectory(prefix="trtrecipe-") as folder:
        frozen, side = export.frozen_source(source, inputs["model"], Path(folder))
        if frozen.weights:
            from trtrecipe.errors import StepError

            raise StepError(
                "the model has more than 2 GiB of weights, and a TFLite file holds less",
                "leave this target out, or give a smaller model",
            )
        given = tflite_build.Source(frozen, graph.inputs, side.perms)
        chosen = feeds if samples is not None else None
        return tflite_build.build(given, engine, params.mode, params.quantization, chosen)
