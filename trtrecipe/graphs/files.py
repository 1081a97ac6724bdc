"""ONNX files: read with a clear error, written so that equal graphs are equal bytes."""

from __future__ import annotations

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # protobuf ships no types

from trtrecipe.errors import StepError


def load(path: Path) -> onnx.ModelProto:
    """The model in `path`. Raises StepError when it is no ONNX file."""
    try:
        return onnx.load_model(str(path), format="protobuf")
    except (DecodeError, onnx.checker.ValidationError) as error:
        raise StepError(f"{path.name} is not a readable ONNX file: {error}", "export the model again") from None


def save(model: onnx.ModelProto, path: Path) -> None:
    """Write `model` in one file, map entries in a fixed order. Raises StepError beyond protobuf's 2 GiB."""
    try:
        data = model.SerializeToString(deterministic=True)
    except ValueError as error:
        raise StepError(
            f"the graph cannot be written in one file: {error}", "models beyond 2 GiB are not supported"
        ) from None
    path.write_bytes(data)


def opset(model: onnx.ModelProto) -> int:
    """Version of the default operator set that `model` is written in."""
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)
