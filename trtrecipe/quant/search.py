"""The fewest layers to keep out of INT8 so that a condition is met, in few trials.

Layers are given the most harmful first. Trials keep the first 1, 2, 4, … of them until the condition is met, then halve
the gap to the last that failed: the result is a prefix of the ranking that meets the condition where the one shorter by
one does not. A ranking is an estimate, so what stands in the prefix without need is then put back: all but the last at
once, and where that fails, halves of it, quarters and so on, the least harmful first, in at most `PRUNING` trials.

About 2 log2(answer) trials find the prefix, whatever the number of layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

PRUNING = 16

Kept = tuple[str, ...]
Meets = Callable[[Kept], bool]


@dataclass(frozen=True)
class Found:
    """`kept`: in the order of the ranking. `complete`: False when more might have been put back in further trials."""

    kept: Kept
    complete: bool


def fewest(ranking: Sequence[str], meets: Meets) -> Found | None:
    """The members of `ranking` to keep; None when not even all of them meet the condition.

    `meets` is called with members in the order of the ranking, never twice with the same, and never with none of them:
    that is the caller's first question.
    """
    known: dict[Kept, bool] = {}

    def ask(kept: Kept) -> bool:
        if kept not in known:
            known[kept] = meets(kept)
        return known[kept]

    prefix = _shortest_prefix(tuple(ranking), ask)
    return None if prefix is None else _pruned(prefix, ask, known)


def _shortest_prefix(ranking: Kept, ask: Meets) -> Kept | None:
    failed, size = 0, 1
    while not ask(ranking[:size]):
        if size >= len(ranking):
            return None
        failed, size = size, min(2 * size, len(ranking))
    while size - failed > 1:
        middle = (failed + size) // 2
        if ask(ranking[:middle]):
            size = middle
        else:
            failed = middle
    return ranking[:size]


def _pruned(prefix: Kept, ask: Meets, known: dict[Kept, bool]) -> Found:
    kept, before = prefix, len(known)
    groups = [prefix[:-1]] if len(prefix) > 1 else []  # without the last, the condition is known to fail
    while groups:
        group = groups.pop()
        rest = tuple(name for name in kept if name not in group)
        if rest not in known and len(known) - before >= PRUNING:
            return Found(kept, False)
        if ask(rest):
            kept = rest
        elif len(group) > 1:
            groups += [group[: len(group) // 2], group[len(group) // 2 :]]
    return Found(kept, True)
