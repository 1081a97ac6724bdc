"""What a step is: a module with these names. `registry.STEPS` lists them all.

A step knows nothing of the store, the scheduler or the command line. Its module may import only light things at the
top (it is imported while planning); `run` imports what it needs, inside the function.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Protocol


class Step(Protocol):
    """A step module."""

    @property
    def VERSION(self) -> int:
        """Raised whenever the step's outputs may change for the same inputs; part of the key."""

    @property
    def Params(self) -> Callable[..., Any]:
        """The frozen dataclass of the step's parameters, whose fields hold plain JSON values.

        All of them, defaults filled in, are part of the key.
        """

    @property
    def OUTPUTS(self) -> Mapping[str, str]:
        """Role of each output → the file name under `out` that `run` must write."""

    @property
    def NUMERIC(self) -> bool:
        """Whether outputs depend on the CPU's instruction sets (they are then part of the key)."""

    def tools(self, params: Any, /) -> tuple[str, ...]:
        """The Python distributions whose versions are part of the key, e.g. ("onnx", "numpy")."""

    def run(self, params: Any, inputs: Mapping[str, Path], out: Path, /) -> Mapping[str, Any]:
        """Do the work: read `inputs` (role → file, never written to), write every output under `out`.

        Returns measurements: JSON values that may differ from run to run and are no one's input. The key "notes" holds
        a list of sentences that a person should read. Raises `StepError` for what a person can mend.
        A kind may take further keywords, which limit the resources it uses (`plan.graph.Step.resources`): its outputs
        must not depend on them. Some are given without being planned: `jobs`, how many processes it may use;
        `checkpoint`, a folder of this key alone, where it may keep what it has done so far until it is repeated; `key`,
        the step's key; `say`, which takes a line of progress for a person; and for a step of a device `device`, how to
        get there and what it is (`run.fleet`).
        """


def keywords(step: Step) -> Collection[str]:
    """The further keywords that the step's `run` takes."""
    return getattr(step.run, "__kwdefaults__", None) or ()
