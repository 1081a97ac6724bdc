"""Steps and how they hang together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trtrecipe.plan.devices import Need
from trtrecipe.plan.sources import Source

if TYPE_CHECKING:  # the recipe's own frozen values pass through; nothing here needs pydantic
    from trtrecipe.recipe.load import Loaded
    from trtrecipe.targets.spec import Target


@dataclass(frozen=True, slots=True)
class StepOutput:
    """The output `role` of the step `step` (its id)."""

    step: str
    role: str


@dataclass(frozen=True, slots=True)
class Step:
    """One unit of work.

    `id` is unique in a graph, as "recipe:kind" or "recipe:kind@what it is for". `params` has every field of the kind's
    Params; `pending` says why it cannot run here. `resources` says what it may use (keywords of the kind's `run`):
    outputs do not depend on them, and so neither does the key. `device`: what it runs on, whose fingerprint is in the
    key.
    """

    id: str
    kind: str
    params: Mapping[str, Any]
    inputs: Mapping[str, Source | StepOutput]
    pending: str | None = None
    resources: Mapping[str, Any] = field(default_factory=dict)
    device: Need | None = None

    @property
    def name(self) -> str:
        """The id without the recipe."""
        return self.id.partition(":")[2]


@dataclass(frozen=True)
class TargetPlan:
    """A target's steps (ids, in order) and where its artifacts come from.

    `evaluates` is what verify runs: the "engine", or the "graph" it was compiled from.
    """

    target: Target
    steps: tuple[str, ...]
    artifacts: Mapping[str, StepOutput]
    evaluates: str


@dataclass(frozen=True)
class RecipePlan:
    """A recipe's targets, in its order."""

    loaded: Loaded
    targets: tuple[TargetPlan, ...]

    @property
    def name(self) -> str:
        """The recipe's name."""
        return self.loaded.recipe.name


@dataclass(frozen=True)
class Graph:
    """All steps of all recipes by id, each after those it reads from."""

    recipes: tuple[RecipePlan, ...]
    steps: Mapping[str, Step]
