"""The packages of TensorRT and TensorRT for RTX and their messages, for building and for running."""

from __future__ import annotations

import importlib
import re
from typing import Any

from trtrecipe.errors import StepError
from trtrecipe.targets.python_api import PRODUCTS

EXTRAS = {"tensorrt": "cuda", "tensorrt_rtx": "rtx"}
"""Module → the extra of trtrecipe that installs it."""


def library(module: str) -> Any:
    """The module "tensorrt" or "tensorrt_rtx". Raises StepError when it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        hint = f"install it with: pip install 'trtrecipe[{EXTRAS[module]}]'"
        raise StepError(f"{PRODUCTS[module]} is not installed: {error}", hint) from error


def version(trt: Any) -> tuple[int, ...]:
    """The package's version as numbers, e.g. (1, 7, 1, 116) or (10, 3, 0, 26)."""
    return tuple(int(part) for part in re.findall(r"\d+", trt.__version__)[:4])


def new_log(trt: Any) -> Any:
    """A logger for `trt` that keeps errors and warnings; `.last_words()` gives them as one line."""

    class Log(trt.ILogger):  # type: ignore[misc]  # the package has no types
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.warnings: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                self.errors.append(" ".join(message.split()))
            elif severity == trt.ILogger.Severity.WARNING:
                self.warnings.append(" ".join(message.split()))

        def last_words(self) -> str:
            """The errors, else the warnings, at most 800 characters of their end."""
            return "; ".join(self.errors or self.warnings or ["it gave no reason"])[-800:]

    return Log()
