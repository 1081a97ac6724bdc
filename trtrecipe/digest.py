"""Canonical JSON and SHA-256 digests: the bytes that keys are made of."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

CHUNK = 1 << 20


def canonical_json(value: Any) -> bytes:
    """`value` as UTF-8 JSON with sorted keys and no spaces; floats in Python's shortest round-trip form.

    Raises ValueError for NaN and infinities, TypeError for what JSON cannot hold.
    """
    return _encode(value).encode()


_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode


def sha256_bytes(data: bytes) -> str:
    """Lower-case hexadecimal SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def sha256_json(value: Any) -> str:
    """Lower-case hexadecimal SHA-256 of `canonical_json(value)`."""
    return sha256_bytes(canonical_json(value))


def sha256_file(path: Path) -> str:
    """Lower-case hexadecimal SHA-256 of the file's content, read in 1 MiB pieces. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
