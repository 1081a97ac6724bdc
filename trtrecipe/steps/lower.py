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

VERSION = 2
OUTPUTS = {"onnx": "model.onnx", "keep": "keep.json"}
NUMERIC = False


@dataclass(frozen=True)
class Params:
    """`operators_from` names the table of operators (None: the runtime itself is asked, when it compiles).

    `operators_sha256` is that table's digest, so that the key changes with it; `assumed`: it is of an older release.
    `mode`: fp32, fp16 or int8; `fallback`: with int8, the precision of what is not quantized, None is fp32. `keep`: the
    recipe's entries as `graphs.keep.resolve` takes them.
    """

    dialect: str
    opset_max: int
    mode: str
    operators_from: str | None = None
    operators_sha256: str | None = None
    assumed: bool = False
    fallback: str | None = None
    keep: list[dict[str, Any]] = field(default_factory=list)


def tools(params: Params) -> tuple[str, ...]:
    """ONNX and NumPy write the graph, ONNX Runtime must be able to load it."""
    return ("numpy", "onnx", "onnxruntime")


def run(params: Params, inputs: Mapping[str, Path], out: Path) -> Mapping[str, Any]:
    """Write "onnx" for `params.dialect` to `out/model.onnx`, the nodes that `params.keep` matches to `out/keep.json`.

    "layers": what export says of the source model's layers. Raises StepError naming the nodes that are in the way, and
    where the model's own quantization and the recipe contradict each other.
    """
    from trtrecipe.graphs import files, keep, layers, sound
    from trtrecipe.graphs.dialect import fit_operators
    from trtrecipe.graphs.opset import to_opset
    from trtrecipe.targets.catalog import operators

    model = files.load(inputs["onnx"])
    check_quantization(model, params)
    notes: list[str] = []
    if params.operators_from is not None:
        release = f"TensorRT {params.operators_from}"
        supported = operators(params.operators_from)
        notes += fit_operators(model, supported)
        check_operators(model, supported, release, params.assumed)
        if params.assumed:
            notes.append(f"no list of operators is known for {params.dialect}: that of {release} was assumed")
    lowered = to_opset(model, params.opset_max)
    sound.check(lowered)
    sound.require_loadable(lowered)
    kept = _kept(lowered, layers.load(inputs["layers"]), params)
    notes += kept_notes(kept)
    (out / OUTPUTS["keep"]).write_bytes(keep.dump(kept))
    files.save(lowered, out / OUTPUTS["onnx"])
    return {"notes": notes, "kept": list(kept)}


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


def check_operators(model: ModelProto, supported: Mapping[str, bool], release: str, assumed: bool) -> None:
    """Refuse nodes whose operator `supported` does not list as True. Raises StepError that names them all."""
    from trtrecipe.graphs.edit import all_nodes
    from trtrecipe.graphs.sound import listed

    nodes: dict[str, list[str]] = {}
    for node in all_nodes(model.graph):
        if node.domain or not supported.get(node.op_type, False):
            operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
            nodes.setdefault(operator, []).append(node.name or node.output[0])
    if nodes:
        lines = [f"{operator}: {_some(names)}" for operator, names in nodes.items()]
        source = f"{release}, the nearest release with a published list," if assumed else release
        raise StepError(
            f"the model uses operators that {source} does not support:\n" + listed(lines),
            hint="replace these layers in the model, or leave this target out",
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
