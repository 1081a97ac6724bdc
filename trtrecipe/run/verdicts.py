"""What a recipe's targets say of each other: INT8 that is no faster than FP16."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trtrecipe.run.results import TargetResult


def judged(targets: Sequence[TargetResult]) -> tuple[TargetResult, ...]:
    """The targets, those in INT8 with a note where FP16 is faster on the same kind of device with the same batch."""
    measured = [each for target in targets for each in (target.candidates or (target,)) if _p50(each) is not None]
    made = []
    for target in targets:
        notes = tuple(note for mine in target.candidates or (target,) for note in _slower(mine, measured))
        made.append(replace(target, notes=(*target.notes, *notes)) if notes else target)
    return tuple(made)


def _slower(mine: TargetResult, measured: Sequence[TargetResult]) -> Iterator[str]:
    ours = _p50(mine)
    if ours is None or mine.plan.target.mode != "int8":
        return
    rivals = [each for each in measured if each.plan.target.mode == "fp16" and _where(each) == _where(mine)]
    for other in sorted(rivals, key=lambda each: _p50(each) or 0.0)[:1]:
        theirs, name = _p50(other), other.plan.target.id
        if theirs is not None and ours > theirs:
            of = "" if name == mine.plan.target.id else f" of target {name}"
            yield f"INT8 is slower than FP16 here: p50 is {ours:.3f} ms, that{of} in FP16 {theirs:.3f} ms"


def _p50(result: TargetResult) -> float | None:
    latency = result.metrics.get("latency_ms")
    return None if latency is None else float(latency["p50"])


def _where(result: TargetResult) -> tuple[object, ...]:
    """What two latencies must have in common to be compared."""
    target = result.plan.target
    jetpack = target.release.jetpack if target.release else None
    dims = tuple(sorted((name, span.opt) for name, span in target.dims.items()))
    return target.profile.id, jetpack, target.dla, result.metrics.get("batch"), dims
