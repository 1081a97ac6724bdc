"""What a file says of the engine in it, without TensorRT; and whether a device can still load what was built.

TensorRT's plans begin with "ftrt", a serialization version of 0 at byte 4, and their release at bytes 24 to 27, from
9.0 on (github.com/NVIDIA/TensorRT samples/common/sampleEngines.cpp at v10.3.0, printPlanVersion); whether plans of 8.x
have that header is not known. Engines of TensorRT for RTX begin with "vtrt" ("vgtrt" has been reported), have their
size at bytes 16 to 23 and their release where plans have it: seen of 1.7.1.116. Neither is known to tell in its header
whether it is version or hardware compatible.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

LENGTH = 32
"""Bytes from the start that `header` looks at."""
_PLAN, _RTX = b"ftrt", (b"vtrt", b"vgtrt")
_OLDEST_TOLD = 9
FACTS = ("tensorrt", "l4t", "cuda", "trtexec", "model", "memory")
"""Of a fingerprint, what comes first decides most."""


@dataclass(frozen=True)
class Header:
    """`builder`: "tensorrt" or "tensorrt-rtx"; `release`: major.minor.patch.build of it, None where that is not told;
    `length`: bytes that the whole file should have, None where that is not told; `why`: why there is no release."""

    builder: str
    release: str | None
    length: int | None
    why: str | None = None


def header(start: bytes) -> Header | None:
    """What the first LENGTH bytes of a file say; None where they begin like no engine that is known."""
    rtx = start.startswith(_RTX)
    if not rtx and not start.startswith(_PLAN):
        return None
    builder = "tensorrt-rtx" if rtx else "tensorrt"
    if len(start) < LENGTH:
        return Header(builder, None, None, f"it ends after {len(start)} bytes, within the header")
    version, length = struct.unpack_from("<I", start, 4)[0], struct.unpack_from("<Q", start, 16)[0]
    release = tuple(start[24:28])
    told = ".".join(map(str, release))
    if version != 0:
        return Header(builder, None, None, f"its serialization version is {version}, and only that of 0 is known")
    if rtx:
        return Header(builder, told, length)
    if release[0] < _OLDEST_TOLD:
        return Header(builder, None, None, "plans before TensorRT 9.0 are not known to tell it")
    return Header(builder, told, None)


def is_fingerprint(device: Any) -> TypeGuard[dict[str, Any]]:
    """Whether the "device" of a manifest is one that trtexec built on, not a GPU of the machine that built it."""
    return isinstance(device, dict) and set(FACTS) <= set(device)


def changed(built_on: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """What keeps an engine from being that device's: each part of the fingerprint that is another one, old and new."""
    for part in FACTS:
        if built_on.get(part) != now.get(part):
            old, new = (_shown(part, each.get(part)) for each in (built_on, now))
            yield f"{part} {old} -> {new}"


def _shown(part: str, value: Any) -> str:
    if part == "trtexec" and isinstance(value, str):
        return value[:12]
    if part == "memory" and isinstance(value, int):
        return f"{value >> 30} GiB"
    return str(value)
