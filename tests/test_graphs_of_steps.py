"""Large graphs, and the direction of imports."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from trtrecipe.digest import sha256_json
from trtrecipe.errors import Problem
from trtrecipe.plan.graph import Graph, Step, StepOutput
from trtrecipe.plan.machine import Machine
from trtrecipe.plan.resolve import Resolver, resolve_all
from trtrecipe.plan.sources import ModelSource, Source
from trtrecipe.run.events import Event
from trtrecipe.run.scheduler import Scheduler
from trtrecipe.store.store import Store

COUNT = 10_000
MACHINE = Machine("x86-64-v3", "a CPU x 2", None)


def source(number: int) -> ModelSource:
    return ModelSource(Path(f"model-{number}.onnx"), Problem(""))


def chain(count: int) -> tuple[Graph, dict[Source, str]]:
    steps: dict[str, Step] = {}
    for number in range(count):
        given = StepOutput(f"r:prepare@{number - 1}", "onnx") if number else source(0)
        steps[f"r:prepare@{number}"] = Step(f"r:prepare@{number}", "prepare", {}, {"onnx": given})
    return Graph((), steps), {source(0): sha256_json(0)}


def independent(count: int) -> tuple[Graph, dict[Source, str]]:
    steps = {
        f"r:prepare@{number}": Step(f"r:prepare@{number}", "prepare", {}, {"onnx": source(number)})
        for number in range(count)
    }
    return Graph((), steps), {source(number): sha256_json(number) for number in range(count)}


@pytest.mark.parametrize("make", [chain, independent])
def test_ten_thousand_steps_resolve_without_recursion(make: object, tmp_path: Path) -> None:
    assert callable(make)
    graph, sources = make(COUNT)
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(150)
    try:
        with Store(tmp_path / "store") as store:
            known = resolve_all(graph, Resolver(store, sources, MACHINE, {}))
    finally:
        sys.setrecursionlimit(limit)
    statuses = [known[step_id].status for step_id in graph.steps]
    assert statuses == (["run"] + ["unknown"] * (COUNT - 1) if make is chain else ["run"] * COUNT)


def test_a_failure_at_the_head_of_a_long_chain_settles_all_of_it(tmp_path: Path) -> None:
    graph, sources = chain(COUNT)
    events: list[Event] = []
    limit = sys.getrecursionlimit()
    with Store(tmp_path / "store") as store:
        resolver = Resolver(store, sources, MACHINE, {})
        sys.setrecursionlimit(200)
        try:
            scheduler = Scheduler(graph, resolver, store, sources, 2, events.append)
            scheduler.run()
        finally:
            sys.setrecursionlimit(limit)
    outcomes = scheduler.outcomes
    statuses = [outcomes[step_id].status for step_id in graph.steps]
    assert statuses == ["failed"] + ["blocked"] * (COUNT - 1)
    assert "model-0.onnx" in (outcomes["r:prepare@0"].error or "")


# What each part of the package may import of the others (DESIGN: imports go one way).
ALLOWED = {
    "cli": {"run", "plan", "recipe", "targets", "store", "quant", "graphs"},  # the last two for inspect
    "run": {"plan", "recipe", "targets", "store", "steps", "data", "device"},
    "plan": {"recipe", "targets", "store", "steps", "data"},
    "recipe": {"targets"},
    "targets": {"recipe"},  # for typing alone
    "store": set(),
    "steps": {"graphs", "data", "quant", "targets", "engines", "preflight", "truth", "device"},
    "quant": {"engines", "data", "graphs"},
    "engines": {"data", "graphs", "targets"},
    "truth": {"engines", "data", "graphs"},
    "preflight": {"graphs", "targets"},
    "graphs": set(),
    "data": {"graphs"},
    "device": {"targets"},
}


def imported_parts(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        found |= {name.split(".")[1] for name in names if name.startswith("trtrecipe.") and name.count(".") > 1}
        if isinstance(node, ast.ImportFrom) and node.module == "trtrecipe.steps":
            found.add("steps")
    return found


@pytest.mark.parametrize("part", ALLOWED)
def test_imports_go_one_way(part: str, repository: Path) -> None:
    for path in (repository / "trtrecipe" / part).rglob("*.py"):
        others = imported_parts(path) - {part}
        assert others <= ALLOWED[part], path


def test_every_part_of_the_package_is_listed(repository: Path) -> None:
    parts = {path.name for path in (repository / "trtrecipe").iterdir() if (path / "__init__.py").exists()}
    assert parts == set(ALLOWED)
