"""Preprocessing: what is done to a sample before the model sees it, and the document that says so.

`docs/preprocessing.md` defines every operation exactly, for whoever has to do the same on a device. In short, and each
on the result of the one before; H, W and C are the axes of one sample, which is [H, W, C] until `layout` says else:

- {"resize": {"size": [H, W]} or {"short_side": n}, "filter": NAME}}: Pillow's resampling; uint8 stays, else float32.
- {"crop": [H, W]}: the middle, rounded towards the first row and column.
- {"colour": rgb, bgr or gray}: of three channels that are RGB.
- {"layout": nchw or nhwc}: channels to the front or the back.
- {"scale": x}: value * x, in float32.
- {"normalize": {"mean": [...], "std": [...]}}: (value - mean) / std, in float32; one figure for all, or one a channel.
- {"cast": DTYPE}: to that type; to integers rounded to the nearest, ties to even, and held within the type's range.

Figures are rounded to float32 first. In the end values become the model input's type.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from trtrecipe.digest import canonical_json
from trtrecipe.errors import StepError
from trtrecipe.graphs.interface import Interface, TensorSpec

SCHEMA = "trtrecipe/preprocessing/v2"

Operations = Sequence[Mapping[str, Any]]
Array = npt.NDArray[Any]

_GRAY = (19595, 38470, 7471)  # 0.299, 0.587 and 0.114 of 65536: Pillow's and ITU-R BT.601's luma
_ON_IMAGES = ("resize", "crop", "colour", "layout")


def document(
    interface: Interface,
    preprocess: Mapping[str, Operations],
    raw: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> bytes:
    """The contract as canonical JSON. Raises StepError when `preprocess` does not fit the model.

    {"schema", "inputs": {NAME: {"dtype", "shape", "operations", "raw"}}}. `dtype` and `shape` are the model input's; an
    entry of `shape` is a size or the name of an open dimension, and the first is the batch. `operations` are applied in
    order to the raw values. `raw`, where there is data: the dtype and shape of a sample, with null for what varies.
    """
    check(interface, preprocess)
    inputs: dict[str, dict[str, Any]] = {}
    for spec in interface.inputs:
        operations = _spelled_out(spec, preprocess)
        inputs[spec.name] = {"dtype": spec.dtype, "shape": list(spec.shape), "operations": operations}
        if spec.name in raw:
            inputs[spec.name]["raw"] = dict(raw[spec.name])
    return canonical_json({"schema": SCHEMA, "inputs": inputs})


def check(interface: Interface, preprocess: Mapping[str, Operations]) -> None:
    """Raise StepError when `preprocess` names no input of the model, or cannot apply to it whatever the samples are."""
    specs = {spec.name: spec for spec in interface.inputs}
    for name, operations in preprocess.items():
        if name not in specs:
            raise StepError(f"preprocess names input {name}, which the model lacks", f"its inputs: {', '.join(specs)}")
        spec = specs[name]
        dtype = _dtype(operations, None)
        if dtype is not None and not np.can_cast(dtype, spec.dtype, "same_kind"):
            raise StepError(
                f"preprocess of input {name} computes in {dtype}, and the model takes {spec.dtype}",
                f"remove preprocess.{name} and give values that are {spec.dtype} already, or end with "
                f"{{cast: {spec.dtype}}}",
            )
        for number, (operation, first) in enumerate(_walk(operations)):
            length = len(operation["normalize"]["mean"]) if "normalize" in operation else 1
            moved = any("colour" in after or "layout" in after for after in operations[number + 1 :])
            axis = _size_of_channels(spec, first)
            if length > 1 and not moved and isinstance(axis, int) and axis != length:
                raise StepError(
                    f"normalize of input {name} has {length} entries, and the {'first' if first else 'last'} axis of a "
                    f"sample of {spec} has {axis}",
                    f"give one figure, or {axis}",
                )


def result(shape: tuple[int, ...], dtype: str, operations: Operations, what: str) -> tuple[tuple[int, ...], str]:
    """Shape and type of what becomes of a sample (without a batch axis). Raises StepError, calling it `what`."""
    for operation, first in _walk(operations):
        [(name, argument)] = operation.items()
        if name in _ON_IMAGES or (name == "normalize" and first):
            _check_image(shape, name, what)
        height, width, channels = _axes(shape, first) if len(shape) == 3 else (0, 0, shape[-1] if shape else 0)
        if name == "resize":
            height, width = resized(height, width, argument)
        elif name == "crop":
            if height < argument[0] or width < argument[1]:
                raise StepError(
                    f"{what} is {height} x {width} where it is to be cropped to {argument[0]} x {argument[1]}",
                    "resize before, or crop to less",
                )
            height, width = argument
        elif name == "colour":
            if channels != 3:
                raise StepError(f"{what} has {channels} channels, and colour needs 3", "remove colour from preprocess")
            channels = 1 if argument == "gray" else 3
        elif name == "layout":
            first = argument == "nchw"
        elif name == "normalize" and len(argument["mean"]) not in (1, channels):
            raise StepError(
                f"{what} has {channels} channels, and normalize has {len(argument['mean'])} entries",
                f"give one figure, or {channels}",
            )
        if name in _ON_IMAGES:
            shape = (channels, height, width) if first else (height, width, channels)
    return shape, _dtype(operations, dtype) or dtype


def apply(raw: Array, spec: TensorSpec, operations: Operations) -> Array:
    """`raw` samples, of equal shape, along the first axis → the model input's dtype.

    They fit: `result` was asked, and what is cast in the end is in range.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # an infinity is reported with its sample by the caller
        values = raw
        for operation, first in _walk(operations):
            [(name, argument)] = operation.items()
            values = _APPLY[name](values, argument, first)
        converted: Array = values.astype(spec.dtype)
        return converted


def resized(height: int, width: int, argument: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width after resize."""
    if argument.get("size") is not None:
        return argument["size"][0], argument["size"][1]
    short = argument["short_side"]
    return (short, short * width // height) if height <= width else (short * height // width, short)


def _walk(operations: Operations) -> Iterator[tuple[Mapping[str, Any], bool]]:
    """Each operation, and whether the channels of the values it is given are the first axis of a sample."""
    layouts = [operation["layout"] for operation in operations if "layout" in operation]
    first = bool(layouts) and layouts[0] == "nhwc"
    for operation in operations:
        yield operation, first
        if "layout" in operation:
            first = operation["layout"] == "nchw"


def _dtype(operations: Operations, dtype: str | None) -> str | None:
    """The type of what comes out; None where that depends on one that is not known."""
    for operation in operations:
        if "scale" in operation or "normalize" in operation:
            dtype = "float32"
        elif "cast" in operation:
            dtype = operation["cast"]
        elif dtype is not None and ("resize" in operation or operation.get("colour") == "gray"):
            dtype = dtype if dtype == "uint8" else "float32"
    return dtype


def _size_of_channels(spec: TensorSpec, first: bool) -> int | str | None:
    sample = spec.shape[1:]
    if first:
        return sample[0] if len(sample) == 3 else None
    return sample[-1] if sample else None


def _check_image(shape: tuple[int, ...], name: str, what: str) -> None:
    if len(shape) != 3:
        raise StepError(
            f"{what} has shape [{', '.join(map(str, shape))}], and {name} needs height, width and channels",
            "give samples with three axes, or remove the operation from preprocess",
        )


def _axes(shape: tuple[int, ...], first: bool) -> tuple[int, int, int]:
    """Height, width and channels."""
    return (shape[1], shape[2], shape[0]) if first else (shape[0], shape[1], shape[2])


def _scale(values: Array, factor: float, first: bool) -> Array:
    scaled: Array = values.astype(np.float32) * np.float32(factor)
    return scaled


def _normalize(values: Array, figures: Mapping[str, Any], first: bool) -> Array:
    mean, std = (np.asarray(figures[name], np.float32) for name in ("mean", "std"))
    if first:
        mean, std = mean[:, None, None], std[:, None, None]
    normalized: Array = (values.astype(np.float32) - mean) / std
    return normalized


def _cast(values: Array, dtype: str, first: bool) -> Array:
    if np.dtype(dtype).kind not in "iu":
        floats: Array = values.astype(dtype)
        return floats
    limits = np.iinfo(dtype)
    if values.dtype.kind != "f":
        return np.clip(values, max(limits.min, _least(values)), min(limits.max, _most(values))).astype(dtype)
    # The largest float64 that int64 holds is not its maximum, which rounds up.
    most = min(float(limits.max), float(np.nextafter(2.0**63, 0)))
    return np.clip(np.rint(values.astype(np.float64)), float(limits.min), most).astype(dtype)


def _least(values: Array) -> int:
    return 0 if values.dtype.kind == "b" else int(np.iinfo(values.dtype).min)


def _most(values: Array) -> int:
    return 1 if values.dtype.kind == "b" else int(np.iinfo(values.dtype).max)


def _crop(values: Array, size: Sequence[int], first: bool) -> Array:
    rows, columns = (2, 3) if first else (1, 2)
    top, left = (values.shape[rows] - size[0]) // 2, (values.shape[columns] - size[1]) // 2
    inside = slice(top, top + size[0]), slice(left, left + size[1])
    return values[:, :, inside[0], inside[1]] if first else values[:, inside[0], inside[1]]


def _layout(values: Array, layout: str, first: bool) -> Array:
    if first == (layout == "nchw"):
        return values
    order = (0, 3, 1, 2) if layout == "nchw" else (0, 2, 3, 1)
    moved: Array = values.transpose(order)
    return moved


def _colour(values: Array, colour: str, first: bool) -> Array:
    axis = 1 if first else 3
    if colour == "rgb":
        return values
    if colour == "bgr":
        return np.flip(values, axis)
    red, green, blue = (np.take(values, channel, axis) for channel in range(3))
    if values.dtype == np.uint8:
        total = sum(c.astype(np.uint32) * weight for c, weight in zip((red, green, blue), _GRAY, strict=True))
        gray: Array = ((total + 0x8000) >> 16).astype(np.uint8)
    else:
        red, green, blue = (channel.astype(np.float32) for channel in (red, green, blue))
        gray = red * np.float32(0.299) + green * np.float32(0.587) + blue * np.float32(0.114)
    return np.expand_dims(gray, axis)


def _resize(values: Array, argument: Mapping[str, Any], first: bool) -> Array:
    from PIL import Image

    if values.dtype != np.uint8:
        values = values.astype(np.float32)
    planes = values if first else values.transpose(0, 3, 1, 2)
    height, width = resized(planes.shape[2], planes.shape[3], argument)
    taken = Image.Resampling[argument["filter"].upper()]
    resampled = np.empty((*planes.shape[:2], height, width), values.dtype)
    for sample in range(len(planes)):
        for channel in range(planes.shape[1]):
            plane = Image.fromarray(np.ascontiguousarray(planes[sample, channel]))
            resampled[sample, channel] = np.asarray(plane.resize((width, height), taken))
    return resampled if first else resampled.transpose(0, 2, 3, 1)


_APPLY: Mapping[str, Callable[[Array, Any, bool], Array]] = {
    "scale": _scale,
    "normalize": _normalize,
    "cast": _cast,
    "crop": _crop,
    "layout": _layout,
    "colour": _colour,
    "resize": _resize,
}


def _spelled_out(spec: TensorSpec, preprocess: Mapping[str, Operations]) -> list[Mapping[str, Any]]:
    """The operations with every change of type that they only imply."""
    operations: list[Mapping[str, Any]] = []
    dtype = None
    for operation in preprocess.get(spec.name) or ():
        if ("scale" in operation or "normalize" in operation) and dtype != "float32":
            operations.append({"cast": "float32"})
        operations.append(operation)
        dtype = _dtype([operation], dtype)
    return operations if dtype == spec.dtype else [*operations, {"cast": spec.dtype}]
