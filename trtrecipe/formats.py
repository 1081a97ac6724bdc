"""What kind of model a file or folder is: told from its content, never from its name.

Light, as it is asked whenever a build is planned: a few bytes are read, and of protobuf files the outermost fields,
whose contents are skipped. Field numbers: onnx/onnx.proto (ModelProto) at v1.18.0; graph.proto (GraphDef) and
node_def.proto in tensorflow/core/framework, saved_model.proto in tensorflow/core/protobuf at v2.21.0.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO

FORMATS = ("saved_model", "keras", "h5", "frozen_graph", "tflite", "onnx")

LARGEST_PROTOBUF = (1 << 31) - 1
"""Bytes; what any reader of protobuf takes in one message."""
_FIELDS = 64  # of a protobuf file that are looked at before it counts as unknown
_LFS = b"version https://git-lfs"
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5  # wire types
_IN_WORDS = {
    "saved_model": "a SavedModel",
    "keras": "a Keras file (.keras)",
    "h5": "an HDF5 file, as Keras wrote models before version 3",
    "frozen_graph": "a TensorFlow graph (GraphDef)",
    "tflite": "a TFLite model",
    "onnx": "an ONNX model",
}
_OTHERS = (  # bytes at the start, what begins so, what to do
    (b"ftrt", "a TensorRT engine", "give the model that it was built from"),
    (b"\x93NUMPY", "a NumPy array", "name the model's file"),
    (b"\x1f\x8b", "a gzip file", "unpack it first"),
    (b"BZh", "a bzip2 file", "unpack it first"),
    (b"\xfd7zXZ", "an xz file", "unpack it first"),
    (b"\x7fELF", "a program or library", "name the model's file"),
    (b"%PDF", "a PDF document", "name the model's file"),
)
_TEXTS = (
    (b"<", "a web page or XML, as some servers send instead of a file", "download the model again"),
    (b"node {", "a TensorFlow graph written as text", "write it in binary form: graph_def.SerializeToString()"),
    (b"saved_model_schema_version", "a SavedModel written as text", "save it in binary form"),
    (b"ir_version:", "an ONNX model written as text", "write it in binary form: onnx.save(model, 'model.onnx')"),
)
_BINARY = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_PICKLE = "a Python pickle, which runs code when it is read, so it never is"


class FormatError(Exception):
    """A model that cannot be read, or (`contradicts`) is not what it is said to be: in words, with what to do."""

    def __init__(self, message: str, hint: str, contradicts: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.contradicts = contradicts


def model_format(path: Path, declared: str | None = None) -> str:
    """One of FORMATS. `declared` is what the recipe says; it decides only where the content does not tell.

    Raises FormatError where neither tells, where the two contradict each other, and for what cannot be a whole model:
    Git LFS pointers, and files beyond what protobuf can hold. Raises OSError.
    """
    found = _folder(path) if path.is_dir() else _file(path)
    if declared is not None and declared != found:
        if found is not None:
            raise FormatError(
                f"{path} is {_IN_WORDS[found]}, and model.format says {declared}",
                f"write format: {found}, or leave it out",
                contradicts=True,
            )
        found = declared
    if found == "saved_model" and not path.is_dir():
        raise FormatError(
            f"{path} is a file, and model.format says saved_model",
            "name the folder that holds saved_model.pb",
            contradicts=True,
        )
    if found is None:
        raise FormatError(
            f"{path} is no model of a form that is known: SavedModel, Keras, HDF5, GraphDef, TFLite, ONNX",
            "check model.source; the file may be damaged or cut short",
        )
    if found in ("onnx", "frozen_graph", "saved_model"):
        _require_readable_size(path / "saved_model.pb" if found == "saved_model" else path)
    return found


def is_lfs_pointer(start: bytes) -> bool:
    """Whether a file that begins so stands for one that Git LFS keeps elsewhere."""
    return start.startswith(_LFS)


def _folder(path: Path) -> str:
    if (path / "saved_model.pb").is_file():
        with (path / "saved_model.pb").open("rb") as file:
            if is_lfs_pointer(file.read(len(_LFS))):
                raise FormatError(f"{path / 'saved_model.pb'} is a Git LFS pointer, not the model", "run: git lfs pull")
        return "saved_model"
    if (path / "saved_model.pbtxt").is_file():
        raise FormatError(f"{path} is a SavedModel written as text (saved_model.pbtxt)", "save it in binary form")
    if any(path.glob("*.meta")) or any(path.glob("*.index")):
        raise FormatError(
            f"{path} is a checkpoint of TensorFlow: it holds values and says no inputs", "export a SavedModel from it"
        )
    inside = sorted(found.parent.name for found in path.glob("*/saved_model.pb"))
    raise FormatError(
        f"{path} is a folder without saved_model.pb, so it is no SavedModel",
        f"a folder inside it is one: {inside[0]}" if inside else "name the folder that holds saved_model.pb",
    )


def _file(path: Path) -> str | None:
    with path.open("rb") as file:
        start = file.read(256)
        if not start:
            raise FormatError(f"{path} is empty", "it may not have been copied whole")
        if is_lfs_pointer(start):
            raise FormatError(f"{path} is a Git LFS pointer, not the model", "run: git lfs pull")
        if start.startswith(b"\x89HDF\r\n\x1a\n"):
            return "h5"
        if start[4:8] == b"TFL3":
            return "tflite"
        if start.startswith(b"PK\x03\x04"):
            return _archive(path)
        if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
            raise FormatError(f"{path} is {_PICKLE}", "save the model with its framework's own function, and give that")
        for magic, what, hint in _OTHERS:
            if start.startswith(magic):
                raise FormatError(f"{path} is {what}", hint)
        for begin, what, hint in _TEXTS if _BINARY.search(start) is None else ():
            if start.lstrip().startswith(begin):
                raise FormatError(f"{path} is {what}", hint)
        return _protobuf(file, path)


def _archive(path: Path) -> str:
    import zipfile

    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError) as error:
        raise FormatError(
            f"{path} begins like a Keras file and is cut short or damaged: {error}",
            "compare its size with the original's",
        ) from None
    if "config.json" in names:
        return "keras"
    if any(name.endswith(("data.pkl", ".pickle", ".pkl")) for name in names):
        raise FormatError(f"{path} is an archive around {_PICKLE}", "PyTorch: export it with torch.onnx.export")
    if any(name.endswith("saved_model.pb") for name in names):
        raise FormatError(f"{path} is an archive with a SavedModel in it", "unpack it and name the folder")
    if names and all(name.endswith(".npy") for name in names):
        raise FormatError(f"{path} is a file of NumPy arrays (npz)", "name the model's file")
    raise FormatError(f"{path} is an archive without config.json, so it is no Keras file", "save the model again")


def _protobuf(file: IO[bytes], path: Path) -> str | None:
    """Which message the outermost fields are of, the first few at least."""
    kinds: dict[int, int] = {}
    for number, kind, content in _fields(file):
        kinds.setdefault(number, kind)
        if number == 1 and kind == _LENGTH:
            return "frozen_graph" if _is_node(content) else None
        if number in (7, 8, 14, 20, 25) and kind == _LENGTH:  # graph, opset_import and others of ModelProto
            return "onnx"
        if number == 2 and kind == _LENGTH and kinds.get(1) == _VARINT and content[:1] == b"\n":
            # In ONNX that is the producer's name; here it is a message that begins with another.
            raise FormatError(f"{path} is a SavedModel's graph alone", "name its folder, which holds the values too")
    return "onnx" if kinds.get(1) == _VARINT else None


def _is_node(content: bytes) -> bool:
    """Whether a field's first bytes are a NodeDef's: a name, then an operator's name."""
    length, start = _varint(content, 1)
    return content[:1] == b"\x0a" and length is not None and content[start + length :][:1] == b"\x12"


def _fields(file: IO[bytes]) -> Iterator[tuple[int, int, bytes]]:
    """(number, wire type, first bytes) of the outermost fields from the file's start; ends at what is no field."""
    at = 0
    for _ in range(_FIELDS):
        file.seek(at)
        head = file.read(20)
        tag, at_value = _varint(head, 0)
        if tag is None or not tag >> 3:
            return
        kind = tag & 7
        content = b""
        if kind == _VARINT:
            value, length = _varint(head, at_value)
            if value is None:
                return
        elif kind == _LENGTH:
            value, start = _varint(head, at_value)
            if value is None:
                return
            file.seek(at + start)
            content = file.read(min(value, 2048))
            length = start + value
        elif kind in (_FIXED64, _FIXED32):
            length = at_value + (8 if kind == _FIXED64 else 4)
        else:
            return
        yield tag >> 3, kind, content
        at += length


def _varint(data: bytes, at: int) -> tuple[int | None, int]:
    """A number and where the next byte is; None where the bytes are no number."""
    value = 0
    for shift, byte in enumerate(data[at : at + 10]):
        value |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            return value, at + shift + 1
    return None, at


def _require_readable_size(path: Path) -> None:
    size = path.stat().st_size
    if size > LARGEST_PROTOBUF:
        raise FormatError(
            f"{path} has {size:,} bytes, and no reader of protobuf takes more than {LARGEST_PROTOBUF:,}",
            "it may be damaged; weights in 16 bits take half as much",
        )
