"""Progress of a build on standard error: a live line on a terminal, plain lines otherwise."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, TextIO

from trtrecipe.cli.render import KEY_PREFIX
from trtrecipe.run.events import Damaged, Event, Finished, Listener, Progress, Started

if TYPE_CHECKING:
    from rich.status import Status


@contextlib.contextmanager
def watch(stream: TextIO) -> Iterator[Listener]:
    """A listener that tells a person on `stream` what happens."""
    if not stream.isatty():
        yield lambda event: _write(stream, event)
        return
    live = _Live(stream)
    try:
        yield live.hear
    finally:
        live.stop()


def _write(stream: TextIO, event: Event) -> None:
    said = lines(event)
    if not said:
        return
    # A reader that went away must not stop the build.
    with contextlib.suppress(OSError):
        stream.write("".join(f"{line}\n" for line in said))
        stream.flush()


def lines(event: Event) -> list[str]:
    """What an event is to a person. Hits say nothing, or a no-op would be a wall of text."""
    if isinstance(event, Damaged):
        return [f"a stored file was damaged and is set aside: {event.sha256[:KEY_PREFIX]}; it will be made again"]
    name = event.step.id
    if isinstance(event, Started):
        return [f"{name}: running ({event.resolution.reason})"]
    if isinstance(event, Progress):
        return [f"{name}: {event.text}"]
    if not isinstance(event, Finished):
        return [f"{name}: another build is working on it; waiting"]
    outcome = event.outcome
    if outcome.status == "ran":
        return [f"{name}: done in {outcome.seconds:.1f} s"]
    if outcome.status != "failed":
        return []
    said = [f"{name}: failed: {outcome.error}"]
    if outcome.hint:
        said.append(f"  hint: {outcome.hint}")
    if outcome.log:
        said.append(f"  log: {outcome.log}")
    return said


class _Live:
    """Finished steps scroll by and running ones stay on the last line, from the first step that runs."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._running: dict[str, str] = {}
        self._status: Status | None = None

    def hear(self, event: Event) -> None:
        """Take in an event."""
        if isinstance(event, Started):
            self._running[event.step.id] = ""
        elif isinstance(event, Progress):
            self._running[event.step.id] = f" ({event.text})"
        elif event.step is not None and event.step.id in self._running:
            del self._running[event.step.id]
        said = [] if isinstance(event, Started | Progress) else lines(event)
        if not self._running and not said and self._status is None:
            return
        if self._status is None:
            from rich.console import Console

            self._status = Console(file=self._stream).status("")
            self._status.start()
        for line in said:
            self._status.console.print(line, highlight=False, markup=False, soft_wrap=True)
        self._status.update(", ".join(name + text for name, text in self._running.items()))

    def stop(self) -> None:
        """Clear the live line."""
        if self._status is not None:
            self._status.stop()
