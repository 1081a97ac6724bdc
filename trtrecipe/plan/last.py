"""What is kept of a recipe's last build, so that `explain` has something to compare with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trtrecipe.data.sources import in_words
from trtrecipe.plan.graph import Step
from trtrecipe.plan.reason import Reason
from trtrecipe.plan.sources import SampleSource


@dataclass(frozen=True, slots=True)
class LastStep:
    """A step of the last build: its key, why it last ran, and in words where its samples came from (by role)."""

    key: str
    why: tuple[Reason, ...]
    sources: Mapping[str, str]


def parse(raw: Mapping[str, Any]) -> dict[str, LastStep]:
    """Step name → what was kept. Entries that are not as `dump` writes them are passed over: they only inform."""
    steps: dict[str, LastStep] = {}
    for name, entry in raw.items():
        try:
            why = tuple(Reason(text, cascade) for text, cascade in entry["why"])
            steps[name] = LastStep(entry["key"], why, entry["sources"])
        except (KeyError, TypeError, ValueError):
            continue
    return steps


def dump(last: LastStep) -> dict[str, Any]:
    """As `parse` reads it."""
    return {
        "key": last.key,
        "why": [[reason.text, reason.cascade] for reason in last.why],
        "sources": dict(last.sources),
    }


def sources_in_words(step: Step) -> dict[str, str]:
    """Role → which samples it is made of. None of this is in a key: only the samples themselves are."""
    return {
        role: f"{source.sampling} of {in_words(source.data)}"
        for role, source in step.inputs.items()
        if isinstance(source, SampleSource)
    }
