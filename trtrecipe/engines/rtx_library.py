"""The tensorrt_rtx package and its messages, for building and for running."""

from __future__ import annotations

import re
from typing import Any

from trtrecipe.errors import StepError


def library() -> Any:
    """The tensorrt_rtx module. Raises StepError when it is not installed."""
    try:
        import tensorrt_rtx
    except ImportError as error:
        raise StepError(
            f"TensorRT for RTX is not installed: {error}", "install it with: pip install 'trtrecipe[rtx]'"
        ) from error
    return tensorrt_rtx


def version(trt: Any) -> tuple[int, ...]:
    """The package's version as numbers, e.g. (1, 7, 1, 116)."""
    return tuple(int(part) for part in re.findall(r"\d+", trt.__version__)[:4])


def new_log(trt: Any) -> Any:
    """A logger for `trt` that keeps errors and warnings; `.last_words()` gives them as one line."""

    class Log(trt.ILogger):  # type: ignore[misc]  # the package has no types
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.warnings: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.errors.append(" ".join(message.split()))
            elif severity == trt.ILogger.WARNING:
                self.warnings.append(" ".join(message.split()))

        def last_words(self) -> str:
            """The errors, else the warnings, at most 800 characters of their end."""
            return "; ".join(self.errors or self.warnings or ["it gave no reason"])[-800:]

    return Log()
