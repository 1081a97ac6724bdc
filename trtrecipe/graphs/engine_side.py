"""What the engine takes and gives against what the model does: other names, channels elsewhere, fewer outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy.typing as npt
from onnx import ModelProto

from trtrecipe.errors import StepError
from trtrecipe.graphs import input_layout
from trtrecipe.graphs.interface import TensorSpec, interface, new_names
from trtrecipe.graphs.layouts import Perm, inverse
from trtrecipe.graphs.names import rename_interface
from trtrecipe.graphs.shapes import Shape


@dataclass(frozen=True)
class EngineSide:
    """`inputs` and `outputs`: the model's name → the engine's. `layouts`: engine's input → what the recipe asks for.

    `perms`: engine's input → what Transpose makes what the model takes of it; inputs that stay are absent.
    """

    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    layouts: Mapping[str, str]
    perms: Mapping[str, Perm]

    @property
    def changes(self) -> bool:
        """Whether anything is different for who feeds the model."""
        pairs = (*self.inputs.items(), *self.outputs.items())
        return bool(self.perms) or any(old != new for old, new in pairs)

    def specs(self, specs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
        """The model's inputs as the engine has them; names are the engine's already."""
        perms = {name: inverse(perm) for name, perm in self.perms.items()}
        return tuple(replace(spec, shape=input_layout.permuted(spec.shape, perms.get(spec.name))) for spec in specs)

    def shapes(self, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        """Shapes of the engine's inputs as the model has them, by the engine's names."""
        return {name: input_layout.permuted(shape, self.perms.get(name)) for name, shape in shapes.items()}

    def arrays(self, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """What the engine is fed as the model takes it, by the engine's names."""
        return {
            name: array.transpose(self.perms[name]) if name in self.perms else array for name, array in feeds.items()
        }


def of(
    inputs: Sequence[TensorSpec],
    outputs: Sequence[str],
    asked: Mapping[str, Mapping[str, Any]],
    rename: Mapping[str, str],
    own_layout: Callable[[str], str],
) -> EngineSide:
    """What the recipe asks for. `asked`: model.inputs, by the engine's names. `own_layout`: of an input, by the model's
    name.

    Raises StepError for names that are not there or would be there twice, and layouts that cannot be decided.
    """
    names = new_names([spec.name for spec in inputs], outputs, rename)
    for name in asked:
        if name in rename and name not in rename.values():
            raise StepError(
                f"model.inputs names {name}, which model.rename calls {rename[name]}",
                hint=f"write model.inputs.{rename[name]}: outside model.rename and model.outputs the new names count",
            )
    layouts: dict[str, str] = {}
    perms: dict[str, Perm] = {}
    for spec in inputs:
        name = names[spec.name]
        layout = (asked.get(name) or {}).get("layout")
        if layout is not None:
            input_layout.require_image(name, len(spec.shape))
            layouts[name] = layout
            perm = input_layout.PERMS.get((layout, own_layout(spec.name)))
            if perm is not None:
                perms[name] = perm
    return EngineSide(
        {spec.name: names[spec.name] for spec in inputs}, {name: names[name] for name in outputs}, layouts, perms
    )


def of_graph(
    model: ModelProto, asked: Mapping[str, Mapping[str, Any]], rename: Mapping[str, str]
) -> tuple[ModelProto, EngineSide]:
    """The graph with the engine's names and layouts, and what is different; `model` stays as it is.

    Transposes that layouts bring stay until `input_layout.settle`. Raises as `of`.
    """
    found = interface(model)
    outputs = [spec.name for spec in found.outputs]
    side = of(found.inputs, outputs, asked, rename, lambda name: input_layout.of_graph(model, name))
    if not side.changes:
        return model, side
    result = ModelProto()
    result.CopyFrom(model)
    rename_interface(result, side.inputs, {new: old for old, new in side.outputs.items()})
    for name, perm in side.perms.items():
        input_layout.transpose(result, name, perm)
    return result, side
