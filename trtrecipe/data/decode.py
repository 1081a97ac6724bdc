"""A file's bytes → one sample: images by Pillow, .npy files, raw values of an input's type and shape.

Images become uint8 [height, width, 3], RGB. What has no one meaning is refused: more than 8 bits a channel, CMYK,
transparency, animations. Colour profiles and EXIF orientation are ignored, as TensorFlow's decoders ignore them.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from trtrecipe.data.preprocess import Array
from trtrecipe.errors import StepError
from trtrecipe.graphs.interface import TensorSpec

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("BMP", "JPEG", "PNG", "PPM", "WEBP")
MAX_PIXELS = 89_478_485
"""Pillow's own limit against decompression bombs: a quarter of a GiB as RGB."""

_NUMPY = b"\x93NUMPY"
_PNG = b"\x89PNG\r\n\x1a\n"
_GRAY_OR_RGB = ("1", "L", "P", "RGB")
_ALPHA = ("LA", "PA", "RGBA", "La", "RGBa")
_ORIENTATION = 0x0112
Described = tuple[tuple[int, ...], str]
"""Shape and dtype of a sample."""


def image(data: bytes, name: str) -> Array:
    """An encoded image as uint8 [height, width, 3], RGB. Raises StepError that names it."""
    with _opened(data, name) as opened:
        opened.load()
        if opened.mode in _ALPHA or "transparency" in opened.info:
            opaque = opened.convert("RGBA")
            if opaque.getchannel("A").getextrema() != (255, 255):
                raise StepError(
                    f"{name} is transparent in places, and what is behind it is not known",
                    "save it without an alpha channel",
                )
            opened = opaque
        return np.asarray(opened.convert("RGB"))


def image_shape(data: bytes, name: str) -> Described:
    """What `image` gives, read from the file's header alone. Raises StepError that names it."""
    with _opened(data, name) as opened:
        return (opened.height, opened.width, 3), "uint8"


def is_turned(data: bytes, spec: TensorSpec, name: str) -> bool:
    """Whether the bytes are an image with an EXIF orientation, which is ignored, that asks to turn or mirror it."""
    if _kind(data, spec) != "image":
        return False
    with _opened(data, name) as opened:
        return "exif" in opened.info and opened.getexif().get(_ORIENTATION, 1) != 1


def raw(data: bytes, spec: TensorSpec, name: str) -> Array:
    """Values of the input's type, little-endian, in C order, one sample; an open axis is as long as they make it.

    Raises StepError.
    """
    shape, dtype = raw_shape(len(data), spec, name)
    if dtype == "bool" and max(data) > 1:
        raise StepError(f"{name} holds bytes other than 0 and 1, and input {spec.name} is bool", "write 0 and 1")
    return np.frombuffer(data, np.dtype(dtype).newbyteorder("<")).reshape(shape)


def raw_shape(size: int, spec: TensorSpec, name: str) -> Described:
    """What `raw` gives of so many bytes. Raises StepError when they do not make a sample."""
    if spec.dtype in ("bfloat16", "string"):
        raise StepError(f"input {spec} cannot be read from raw bytes", "give the samples as npz or npy")
    each = np.dtype(spec.dtype).itemsize
    known = math.prod(axis for axis in spec.shape[1:] if isinstance(axis, int))
    still_open = sum(not isinstance(axis, int) for axis in spec.shape[1:])
    if still_open > 1:
        raise StepError(
            f"a sample of input {spec} has several open axes, whose sizes raw bytes do not tell",
            "give the samples as npz or npy, or fix axes under model.inputs",
        )
    if size == 0 or size % (each * known) or (not still_open and size != each * known):
        wanted = f"{each * known} bytes{' or a multiple' if still_open else ''}"
        raise StepError(
            f"{name} has {size} bytes, and a sample of input {spec} takes {wanted}",
            "a raw file holds the values of one sample in the input's type, little-endian, and nothing else",
        )
    left = size // (each * known)
    return tuple(axis if isinstance(axis, int) else left for axis in spec.shape[1:]), spec.dtype


def content(data: bytes, spec: TensorSpec, name: str) -> Array:
    """One sample from a .npy file, an encoded image or raw values, by what the bytes are. Raises StepError."""
    kind = _kind(data, spec)
    if kind == "npy":
        return _npy(data, name)
    return image(data, name) if kind == "image" else raw(data, spec, name)


def content_shape(data: bytes, spec: TensorSpec, name: str) -> Described:
    """What `content` gives, with as little decoding as tells it. Raises StepError."""
    kind = _kind(data, spec)
    if kind == "npy":
        array = _npy(data, name)
        return array.shape, array.dtype.name
    return image_shape(data, name) if kind == "image" else raw_shape(len(data), spec, name)


def _is_image(data: bytes) -> bool:
    """Whether the bytes begin as one of FORMATS does, or as an image of another kind, to be refused as such."""
    known = (_PNG, b"\xff\xd8\xff", b"BM", b"P4", b"P5", b"P6", b"GIF8", b"II*\0", b"MM\0*")
    return data.startswith(known) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")


def _kind(data: bytes, spec: TensorSpec) -> str:
    if data.startswith(_NUMPY):
        return "npy"
    if not _is_image(data):
        return "raw"
    # Two letters are too little to tell a BMP or PPM file from values that happen to begin so.
    weak = data[:2] in (b"BM", b"P4", b"P5", b"P6")
    sizes = [axis for axis in spec.shape[1:] if isinstance(axis, int)]
    fits = len(sizes) == len(spec.shape) - 1 and len(data) == math.prod(sizes) * np.dtype(spec.dtype).itemsize
    return "raw" if weak and fits else "image"


def _npy(data: bytes, name: str) -> Array:
    try:
        array: Array = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise StepError(f"{name} is no readable .npy file: {error}", "write it again with numpy.save") from None
    if array.dtype.kind not in "biuf":
        raise StepError(f"{name} holds {array.dtype}, not numbers", "convert it to numbers")
    return array


@contextmanager
def _opened(data: bytes, name: str) -> Iterator[Image]:
    from PIL import Image, UnidentifiedImageError

    hint = "convert it to PNG or JPEG with 8 bits a channel"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about size, which is checked here, and about metadata
            with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
                if opened.width * opened.height > MAX_PIXELS:
                    raise Image.DecompressionBombError
                _check_kind(opened, data, name, hint)
                yield opened
    except StepError:
        raise
    except UnidentifiedImageError:
        raise StepError(f"{name} is no image of a kind that is read: {', '.join(FORMATS)}", hint) from None
    except Image.DecompressionBombError:
        raise StepError(f"{name} has more than {MAX_PIXELS} pixels", "reduce it before use") from None
    except MemoryError:
        raise
    # Damaged files make Pillow's decoders raise SyntaxError, ValueError, struct.error and more beside OSError.
    except Exception as error:
        raise StepError(f"{name} is damaged: {error}", "copy or write the file again") from None


def _check_kind(opened: Image, data: bytes, name: str, hint: str) -> None:
    # Pillow would cut 16 bits of colour to 8; the depth stands in the header's first chunk.
    if data.startswith(_PNG) and data[24] > 8:
        raise StepError(f"{name} has {data[24]} bits a channel; 8 are supported", hint)
    if opened.mode not in _GRAY_OR_RGB + _ALPHA:
        raise StepError(f"{name} is an image of mode {opened.mode}, which is not supported", hint)
    # A camera's JPEG with further pictures (MPO) counts as its first.
    if getattr(opened, "n_frames", 1) > 1 and opened.format != "MPO":
        raise StepError(f"{name} is an animation", "save one frame of it")
