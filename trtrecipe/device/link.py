"""The way to a device, whatever it is: requests there, the agent's answers back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, BinaryIO, Protocol

from trtrecipe.errors import StepError, Unreachable

Json = dict[str, Any]
Hear = Callable[[Json], None]


class Dropped(Unreachable):
    """The connection ended in the middle of a request: asking again may help."""


class Noted(Unreachable):
    """The request was noted for a bundle: what it gives comes another day."""


class Refusal(StepError):
    """The agent's answer to a request is an error; `reason` is its word for it, `more` what else it says."""

    def __init__(self, reason: str, message: str, more: Mapping[str, Any], hint: str | None = None) -> None:
        super().__init__(message, hint)
        self.reason, self.more = reason, more


class Sink(Protocol):
    """What takes bytes."""

    def write(self, data: bytes, /) -> Any: ...


class Link(Protocol):
    """Requests to one device, inside a `with` block."""

    def ask(
        self,
        request: Mapping[str, Any],
        payload: BinaryIO | None = None,
        hear: Hear | None = None,
        into: Sink | None = None,
    ) -> Json:
        """The agent's result. `payload` follows the request, progress goes to `hear`, bytes after the result to `into`.

        Raises Refusal for an error of the agent's, Dropped where the connection ended early, Unreachable.
        """
        ...

    def __enter__(self) -> Link: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def connect(address: Mapping[str, Any]) -> Link:
    """The link that an address (`targets.devices.Device.address`) stands for; nothing is asked of it yet.

    Raises Unreachable where there is none.
    """
    if "record" in address:
        from trtrecipe.device.recorder import Recorder

        return Recorder(**address)
    if "result" in address:
        from trtrecipe.device.results import Results

        return Results(**address)
    if "bundle" in address:
        text = f"{address['bundle']} has no ssh destination"
        raise Unreachable(text, "`trtrecipe bundle` packs what it is to do")
    from trtrecipe.device.ssh import Session

    return Session(**address)
