"""What a build tells whoever watches it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from trtrecipe.plan.graph import Step
from trtrecipe.plan.resolve import Resolution


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a step ended. `status`: "ran", "hit", "failed", "blocked" or "pending".

    `resolution` is that of a hit for steps that ran or hit. `why` says why it ran. `error` and `hint` are for a
    person; `log` is the file with what the step's tools said.
    """

    status: str
    resolution: Resolution
    seconds: float = 0.0
    why: Resolution | None = None
    error: str | None = None
    hint: str | None = None
    log: str | None = None


@dataclass(frozen=True, slots=True)
class Started:
    """A process was started for the step."""

    step: Step
    resolution: Resolution


@dataclass(frozen=True, slots=True)
class Waiting:
    """Another build is working on the same key."""

    step: Step


@dataclass(frozen=True, slots=True)
class Progress:
    """The step says how far it is."""

    step: Step
    text: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The step has ended."""

    step: Step
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Damaged:
    """A file in the store is not what it should be; it was set aside, and the step that made it runs again."""

    step: Step | None
    sha256: str


Event = Started | Waiting | Progress | Finished | Damaged
Listener = Callable[[Event], None]
