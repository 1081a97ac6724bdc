"""A step whose code changed must not serve what the old code made."""

from __future__ import annotations

import json

import pytest
from support import step_sources

from trtrecipe.steps.registry import STEPS


@pytest.mark.parametrize("kind", STEPS)
def test_a_changed_step_was_looked_at(kind: str) -> None:
    recorded = json.loads(step_sources.RECORD.read_text())
    assert step_sources.current()[kind] == recorded.get(kind), (
        f"the sources of {kind} changed: raise its VERSION if any output can differ, "
        "then run: python tests/support/step_sources.py"
    )


def test_sources_are_followed_through_the_package() -> None:
    names = {path.name for path in step_sources.sources("quantize")}
    assert {"quantize.py", "qdq.py", "sites.py", "scales.py", "files.py"} <= names
    assert "scheduler.py" not in names
    assert {"tensorrt_build.py", "tensorrt_child.py"} <= {path.name for path in step_sources.sources("compile")}


def test_every_kind_has_what_the_protocol_asks() -> None:
    for module in STEPS.values():
        assert module.VERSION >= 1 and isinstance(module.NUMERIC, bool)
        assert all(isinstance(name, str) for pair in module.OUTPUTS.items() for name in pair)
