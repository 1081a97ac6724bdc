"""Which sources each step's outputs depend on, and whether they changed since they were last looked at.

Run as a program to write `tests/step_sources.json` anew, once you have decided for every changed step whether its
outputs can differ (then its VERSION goes up, or old results would be served) or not.
"""

from __future__ import annotations

import ast
import hashlib
import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
RECORD = ROOT / "tests" / "step_sources.json"
# What every step shares and what cannot change an output: wording of errors, the protocol, the registry.
_LEFT_OUT = {"trtrecipe.errors", "trtrecipe.steps.protocol", "trtrecipe.steps.registry", "trtrecipe"}


def _path(module: str) -> Path | None:
    base = ROOT.joinpath(*module.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return path
    return None


def _imported(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("trtrecipe"):
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("trtrecipe")}
    return {module for module in found if _path(module) is not None and module not in _LEFT_OUT}


def sources(kind: str) -> list[Path]:
    """Every module of the package that the step imports, directly or not, in order of path."""
    seen: set[str] = set()
    waiting = [f"trtrecipe.steps.{kind}"]
    while waiting:
        module = waiting.pop()
        path = _path(module)
        if module not in seen and path is not None:
            seen.add(module)
            waiting += _imported(path)
    return sorted({path for module in seen if (path := _path(module))})


def digest(kind: str) -> str:
    """SHA-256 over the names and bytes of the step's sources."""
    total = hashlib.sha256()
    for path in sources(kind):
        total.update(f"{path.relative_to(ROOT).as_posix()}\n".encode() + path.read_bytes())
    return total.hexdigest()


def current() -> dict[str, dict[str, object]]:
    """Kind → its version and the digest of its sources."""
    sys.path.insert(0, str(ROOT))
    from trtrecipe.steps.registry import STEPS

    return {kind: {"version": module.VERSION, "sources": digest(kind)} for kind, module in STEPS.items()}


if __name__ == "__main__":
    RECORD.write_text(json.dumps(current(), indent=2) + "\n")
