"""What an exported graph is compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from trtrecipe.data.preprocess import Array

Run = Callable[[Mapping[str, Array]], Mapping[str, Array]]
"""Input name → array, for all inputs of the source; output name → array. Raises StepError."""


@dataclass(frozen=True)
class Source:
    """`what`: in words, to follow "the exported graph does not compute what". `run` None: it cannot be run, as `notes`
    say. `steps`: output → the distance of its neighbouring values, of outputs that the source computes in 8 bits."""

    what: str
    run: Run | None
    notes: tuple[str, ...] = ()
    steps: Mapping[str, float] = field(default_factory=dict)
