"""What became of the quantization that a model carried, in sentences."""

from __future__ import annotations

from dataclasses import dataclass, field

_NAMED = 3
"""Names in one note."""


@dataclass
class Report:
    """What changed. `wider`: (how much coarser, tensor, range before, threshold after)."""

    activations: int = 0
    weights: int = 0
    floats: list[str] = field(default_factory=list)
    wider: list[tuple[float, str, tuple[float, float], float]] = field(default_factory=list)
    open_ends: list[str] = field(default_factory=list)
    bounded: list[str] = field(default_factory=list)

    def notes(self) -> list[str]:
        """Sentences for people."""
        if not self.activations + self.weights + len(self.floats):
            return []
        notes = [
            f"the model carries its own quantization: pairs on {_count(self.activations, 'activation')} and on "
            f"{_count(self.weights, 'weight tensor')}"
        ]
        if self.wider:
            ratio, tensor, (low, high), threshold = max(self.wider, key=lambda entry: entry[0])
            names = _some([name for _, name, _, _ in self.wider])
            notes.append(
                f"changed: {_count(len(self.wider), 'tensor')} had ranges that are not symmetric, and TensorRT takes "
                f"no others: max(|min|, |max|) counts for both sides now ({names}). "
                f"The worst is {tensor}: {low:.6g} to {high:.6g} became ±{threshold:.6g}, its steps are {ratio:.3g} "
                "times as wide"
            )
        if self.open_ends:
            notes.append(
                f"changed: in {_count(len(self.open_ends), 'activation')} of these, values beyond the nearer end of "
                f"the model's range no longer saturate there ({_some(self.open_ends)})"
            )
        if self.bounded:
            notes.append(
                f"{_count(len(self.bounded), 'activation')} got a Relu or Clip in front of the pair, as the end of the "
                f"model's range stood for it ({_some(self.bounded)})"
            )
        if self.floats:
            notes.append(
                f"{_count(len(self.floats), 'constant')} that no INT8 operator takes as weights, biases for example, "
                f"became the floats they stood for ({_some(self.floats)})"
            )
        return notes


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
