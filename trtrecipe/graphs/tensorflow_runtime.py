"""TensorFlow as it is used here: on the CPU, repeatable, quiet, and with its errors put in words."""

from __future__ import annotations

import logging
import os
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
