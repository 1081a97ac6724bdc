"""TensorFlow as it is used here: on the CPU, repeatable, quiet, and with its errors put in words."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trtrecipe.errors import StepError

_WORDS = 400
"""Most characters of a tool's own words in one message."""


def tensorflow() -> Any:
    """TensorFlow, kept to the CPU, to its plain kernels (their results are repeatable) and to few words.

    Raises StepError where it, or tf2onnx, is not installed.
    """
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    try:
        with _without_keras():
            import tensorflow as tf
        import tf2onnx
    except ImportError as error:
        raise StepError(
            f"a TensorFlow model needs the package {error.name}, which is not installed",
            hint='run: pip install "trtrecipe[tensorflow]"',
        ) from error
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    logging.getLogger(tf2onnx.__name__).setLevel(logging.ERROR)
    return tf


@contextmanager
def _without_keras() -> Iterator[None]:
    """Let TensorFlow be imported without Keras, a quarter of the time it takes, which nothing but a Keras file needs.

    TensorFlow imports it to register its optimizers and passes over it when it is not there (the end of
    tensorflow/__init__.py at v2.21.0); None in its place in sys.modules says that to Python.
    """
    if "keras" in sys.modules or "tensorflow" in sys.modules:
        yield
        return
    sys.modules["keras"] = None  # type: ignore[assignment]  # allowed by Python's import system
    try:
        yield
    finally:
        del sys.modules["keras"]


@contextmanager
def explained(what: str, hint: str | None = None, folder: Path | None = None) -> Iterator[None]:
    """Turn whatever TensorFlow, Keras or tf2onnx raise about a model into a StepError with their own last words.

    Paths in `folder`, which is ours and temporary, are shown relative to it.
    """
    try:
        yield
    except StepError:
        raise
    except Exception as error:  # they share no base class, and any may come out of a damaged or unusual model
        words = " ".join(str(error).replace(f"{folder}/", "").split())
        raise StepError(f"{what}: {type(error).__name__}: {words[:_WORDS]}", hint=hint) from error
