"""What was last seen of each device, kept in the store. Nothing here is a result: it may be deleted at any time.

<store>/v1/devices/<SHA-256 of the way there>.json: {"at": seconds since the epoch, "probe": the agent's answer}
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trtrecipe.digest import canonical_json, sha256_json
from trtrecipe.store.blobs import explain_oserror
from trtrecipe.store.store import BUCKET


def read(root: Path, address: Mapping[str, Any]) -> tuple[float, dict[str, Any]] | None:
    """When and what; None where nothing readable is kept."""
    try:
        value = json.loads(_path(root, address).read_bytes())
        at, probe = float(value["at"]), value["probe"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return (at, probe) if isinstance(probe, dict) and {"memory", "l4t", "trtexec", "tensorrt"} <= set(probe) else None


def write(root: Path, address: Mapping[str, Any], at: float, probe: Mapping[str, Any]) -> None:
    """Keep what was seen. Raises StoreError."""
    path = _path(root, address)
    temporary = path.with_name(f".{os.urandom(8).hex()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(canonical_json({"at": at, "probe": probe}))
        temporary.replace(path)
    except OSError as error:
        raise explain_oserror(error, root, "store") from error


def forget(root: Path, address: Mapping[str, Any]) -> None:
    """Let the next build look again."""
    _path(root, address).unlink(missing_ok=True)


def _path(root: Path, address: Mapping[str, Any]) -> Path:
    return root / BUCKET / "devices" / f"{sha256_json(address)}.json"
