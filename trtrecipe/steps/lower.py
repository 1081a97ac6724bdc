"""lower: the prepared graph as the target's dialect accepts it, or a message that says what it does not accept.

Also which of its nodes the recipe keeps in a higher precision (`graphs.keep`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtrecipe.errors import StepError

if TYPE_CHECKING:
    from onnx import ModelProto

VERSION = 4
OUTPUTS = {"onnx": "model.onnx", "keep": "keep.json"}
NUMERIC = False
PASSES = ("double-to-float", "int64-to-int32", "sort-top-k", "write-out-operators")
"""Names of `preflight.repairs.REPAIRS`, which planning does not import."""


@dataclass(frozen=True)
class Params:
    """`tensorrt` is the release whose parser has to take the graph; `operators_from` the one whose operators are known.

    Without them the runtime itself is asked, when it compiles. `parser_sha256`: digest of what is known of that parser
    (`targets.parser`), so that the key changes with it. `mode`: fp32, fp16 or int8; `fallback`: with int8, the
    precision of what is not quantized, None is fp32. `keep`: the recipe's entries as `graphs.keep.resolve` takes them.
    `without_passes`: those of PASSES that are turned off.
    """

    dialect: str
    opset_max: int
    mode: str
    tensorrt: str | None = None
    operators_from: str | None = None
    parser_sha256: str | None = None
    fallback: str | None = None
    keep: list[dict[str, Any]] = field(default_factory=list)
    without_passes: list[str] = field(default_factory=list)


def tools(params: Params) -> tuple[str, ...]:
    """ONNX and NumPy write the graph, ONNX Runtime must be able to load it."""
    return ("numpy", "onnx", "onnxruntime")


def run(params: Params, inputs: Mapping[str, Path], out: Path) -> Mapping[str, Any]:
    """Write "onnx" for `params.dialect` to `out/model.onnx`, the nodes that `params.keep` matches to `out/keep.json`.

    "layers": what export says of the source model's layers. Raises StepError naming everything that is in the way, and
    where the model's own quantization and the recipe contradict each other.
    """
    from trtrecipe.graphs import files, keep, layers, sound

    model = files.load(inputs["onnx"])
    check_quantization(model, params)
    found = layers.load(inputs["layers"])
    lowered, notes = _lower(model, found, params)
    if lowered is not model:  # else it is what prepare wrote and checked
        sound.check(lowered)
        sound.require_loadable(lowered)
    kept = _kept(lowered, found, params)
    notes += kept_notes(kept)
    (out / OUTPUTS["keep"]).write_bytes(keep.dump(kept))
    files.save(lowered, out / OUTPUTS["onnx"])
    return {"notes": notes} if notes else {}


def _lower(model: ModelProto, layers: Mapping[str, list[str]], params: Params) -> tuple[ModelProto, list[str]]:
    """The graph that the dialect accepts, the model itself where it does; and what was done. Raises StepError."""
    from trtrecipe.graphs.opset import lower_opset, to_opset
    from trtrecipe.preflight import findings
    from trtrecipe.preflight.repairs import repair
    from trtrecipe.targets.parser import parser

    if params.tensorrt is None or params.operators_from is None:
        return to_opset(model, params.opset_max), []
    takes = parser(params.tensorrt, params.operators_from)
    repaired, notes = repair(model, takes, params.opset_max, params.without_passes)
    lowered, obstacles = lower_opset(repaired, params.opset_max)
    found = findings.inspect(lowered, takes, obstacles)
    findings.require(found, takes, layers, params.without_passes)
    notes += findings.notes(found, layers)
    return lowered, notes


def check_quantization(model: ModelProto, params: Params) -> None:
    """Refuse a graph that carries its own quantization where the recipe says otherwise. Raises StepError."""
    from trtrecipe.quant.carried import carries_quantization

    if not carries_quantization(model):
        return
    if params.mode != "int8":
        raise StepError(
            f"the model is quantized already (it carries QuantizeLinear and DequantizeLinear), but precision.mode is "
            f"{params.mode}",
            hint="set precision.mode to int8 with calibration: {model: true}, or start from the float model",
        )
    if params.keep:
        raise StepError(
            "precision.keep has no effect on a model that is quantized already: the pairs that it carries "
            "settle which of its layers are INT8",
            hint="remove precision.keep, or start from the float model",
        )


def _kept(model: ModelProto, layers: Mapping[str, list[str]], params: Params) -> dict[str, str]:
    from trtrecipe.graphs.keep import resolve

    default = (params.fallback or "fp32") if params.mode == "int8" else "fp32"
    return resolve(model, layers, params.keep, default)


def kept_notes(kept: Mapping[str, str]) -> list[str]:
    """A sentence for each precision that nodes are kept in."""
    notes = []
    for precision in sorted(set(kept.values())):
        names = [name for name in kept if kept[name] == precision]
        stay = "node stays" if len(names) == 1 else "nodes stay"
        notes.append(f"precision.keep: {len(names)} {stay} {precision.upper()}: {_some(names)}")
    return notes


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
