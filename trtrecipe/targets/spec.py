"""A target as the planner sees it: one entry of the recipe, resolved against its profile and release."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trtrecipe.targets.buildspec import Dla
from trtrecipe.targets.catalog import Dialect, Profile, Release

if TYPE_CHECKING:  # the recipe's own frozen values pass through; nothing here needs pydantic
    from trtrecipe.recipe.model import DimRange, Gates


@dataclass(frozen=True)
class Target:
    """What to build for one target, overrides applied: all of it, or one of its candidates.

    `id` names its folder under `dist/`. `mode` is "fp32", "fp16" or "int8"; `fallback` the precision of
    whatever is not quantized (int8 only, else None), already what the profile can do. `rivals`: all modes of which the
    fastest is shipped, this one among them; empty where the recipe names one mode. `quantization` is "explicit" or
    "implicit" (int8 only, else None). `keep`: what stays in a higher precision, as the recipe has it; `search`: whether
    more is to be found where a gate is missed. `workspace`: bytes, None where the builder takes none or the recipe sets
    none. `notes`: sentences to read before trusting the figures. `dla`: the DLA core to build for, None for the GPU.
    """

    id: str
    profile: Profile
    release: Release | None
    dialect: Dialect
    mode: str
    fallback: str | None
    rivals: tuple[str, ...]
    quantization: str | None
    keep: tuple[Mapping[str, Any], ...]
    search: bool
    workspace: int | None
    dims: Mapping[str, DimRange]
    gates: Gates | None
    notes: tuple[str, ...]
    dla: Dla | None = None

    @property
    def float_precision(self) -> str:
        """The precision of the floating-point part of the graph: "fp32" or "fp16"."""
        return self.fallback or self.mode

    @property
    def label(self) -> str:
        """What steps of this target alone are called after."""
        return f"{self.id}/{self.mode}" if self.rivals else self.id
