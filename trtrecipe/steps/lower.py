"""lower: the prepared graph as the target's dialect accepts it, or a message that says what it does not accept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtrecipe.errors import StepError

if TYPE_CHECKING:
    from onnx import ModelProto

VERSION = 1
OUTPUTS = {"onnx": "model.onnx"}
NUMERIC = False


@dataclass(frozen=True)
class Params:
    """`operators_from` names the table of operators (None: the runtime itself is asked, when it compiles).

    `operators_sha256` is that table's digest, so that the key changes with it; `assumed`: it is of an older release.
    """

    dialect: str
    opset_max: int
    operators_from: str | None = None
    operators_sha256: str | None = None
    assumed: bool = False


def tools(params: Params) -> tuple[str, ...]:
    """ONNX and NumPy write the graph, ONNX Runtime must be able to load it."""
    return ("numpy", "onnx", "onnxruntime")


def run(params: Params, inputs: Mapping[str, Path], out: Path) -> Mapping[str, Any]:
    """Write "onnx" for `params.dialect` to `out/model.onnx`. Raises StepError naming the nodes that are in the way."""
    from trtrecipe.graphs import files, sound
    from trtrecipe.graphs.dialect import fit_operators
    from trtrecipe.graphs.opset import to_opset
    from trtrecipe.targets.catalog import operators

    model = files.load(inputs["onnx"])
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
    files.save(lowered, out / OUTPUTS["onnx"])
    return {"notes": notes} if notes else {}


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
