"""Keys hold everything that can change a result, and nothing else."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.projects import Project, make_project

from trtrecipe.cli.recipes import load_all
from trtrecipe.cli.render import said_once
from trtrecipe.errors import Problem
from trtrecipe.plan import resolve
from trtrecipe.plan.graph import Step, StepOutput
from trtrecipe.plan.machine import Gpu, Machine
from trtrecipe.plan.pipeline import build_graph
from trtrecipe.plan.reason import changes
from trtrecipe.plan.resolve import Resolver
from trtrecipe.plan.sources import ModelSource
from trtrecipe.store.store import Missing

MACHINE = Machine("x86-64-v3", "a CPU x 2", None)
SOURCES = [ModelSource(Path(name), Problem("")) for name in ("a.onnx", "elsewhere/b.onnx")]


class EmptyStore:
    """A store without anything in it, and without a folder."""

    def lookup(self, key: str) -> Missing:
        return Missing("none")


# What a key may depend on, as far as a caller can vary it: kind, parameter, content, tool version, CPU.
ingredients = st.tuples(
    st.sampled_from(["prepare", "convert", "fetch"]),
    st.sampled_from(["fp16", "bf16"]),
    st.sampled_from(["0" * 64, "1" * 64]),
    st.sampled_from(["1.0", "1.1"]),
    st.sampled_from(["x86-64-v3", "x86-64-v4"]),
)


def key_of(what: tuple[str, str, str, str, str], name: str, source: ModelSource) -> str:
    kind, precision, content, version, cpu = what
    params = {"convert": {"precision": precision}, "fetch": {"format": precision}, "prepare": {}}[kind]
    step = Step(f"{name}:{kind}", kind, params, {"source": source})
    with mock.patch.object(resolve, "version", lambda tool: version):
        resolver = Resolver(EmptyStore(), {source: content}, replace(MACHINE, cpu=cpu), {})  # type: ignore[arg-type]
        key = resolver.resolve(step, {}).key
    assert key is not None and len(key) == 64
    return key


def effective(what: tuple[str, str, str, str, str]) -> tuple[object, ...]:
    """`what` without the ingredients that its step does not use."""
    kind, precision, content, version, cpu = what
    numeric, tools = kind != "fetch", kind != "fetch"
    return (
        kind,
        precision if kind != "prepare" else None,
        content,
        version if tools else None,
        cpu if numeric and resolve.STEPS[kind].NUMERIC else None,
    )


@given(ingredients, ingredients, st.sampled_from(SOURCES), st.sampled_from(SOURCES))
def test_keys_are_equal_exactly_when_all_ingredients_are(
    first: tuple[str, str, str, str, str],
    second: tuple[str, str, str, str, str],
    here: ModelSource,
    there: ModelSource,
) -> None:
    # Recipe name and path differ: neither may matter.
    equal = key_of(first, "one", here) == key_of(second, "another", there)
    assert equal is (effective(first) == effective(second))


def test_a_gpu_is_part_of_what_runs_on_it() -> None:
    params = {"runtime": "tensorrt-rtx", "dims": {}}
    source = SOURCES[0]
    step = Step("r:benchmark@rtx", "benchmark", params, {"onnx": source})
    keys = set()
    for machine in (
        replace(MACHINE, gpu=Gpu("A", "8.9", "13.0")),
        replace(MACHINE, gpu=Gpu("B", "8.9", "13.0")),
        replace(MACHINE, gpu=Gpu("A", "8.9", "13.1")),
        replace(MACHINE, gpu=Gpu("A", "8.9", "13.0"), model="another CPU x 2"),
    ):
        with mock.patch.object(resolve, "version", lambda tool: "1.0"):
            keys.add(Resolver(EmptyStore(), {source: "0" * 64}, machine, {}).resolve(step, {}).key)  # type: ignore[arg-type]
    assert len(keys) == 4


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return make_project(tmp_path / "project")


def steps_of(project: Project) -> dict[str, Step]:
    return dict(build_graph(load_all([project.recipe]), MACHINE).steps)


def describe(steps: dict[str, Step]) -> dict[str, Any]:
    return {name: (step.kind, step.params, step.inputs) for name, step in steps.items()}


def test_adding_a_target_changes_no_step_of_the_others(project: Project) -> None:
    before = describe(steps_of(project))
    more = [
        "jetson-xavier-nx@5.1.4",
        "host",
        "rtx",
        {"profile": "host", "name": "wide", "model": {"dims": {"batch": {"min": 1, "opt": 8, "max": 64}}}},
        {"profile": "jetson-tx2@4.6.4", "precision": {"mode": "fp16"}},
    ]
    project.change_recipe(lambda recipe: recipe.update(targets=more))
    after = describe(steps_of(project))
    assert before.items() <= after.items()
    assert len(after) > len(before)


def test_a_step_is_called_the_same_whichever_targets_are_chosen(project: Project) -> None:
    dims = {"other": {"min": 1, "opt": 2, "max": 2}}
    other = {"profile": "host", "name": "two", "model": {"dims": dims}}
    project.change_recipe(lambda recipe: recipe.update(targets=["host", other]))
    found = load_all([project.recipe])
    everything, chosen = build_graph(found, MACHINE), build_graph(found, MACHINE, {"two"})
    assert chosen.steps and describe(dict(chosen.steps)).items() < describe(dict(everything.steps)).items()
    assert "small:export@two" in chosen.steps
    assert [plan.target.id for plan in chosen.recipes[0].targets] == ["two"]


def test_a_pass_that_is_turned_off_changes_its_own_step(project: Project) -> None:
    project.change_recipe(lambda recipe: recipe.update(targets=["host", "jetson-tx2@4.6.4"]))
    project.change_recipe(lambda recipe: recipe.update(precision={"mode": "fp32"}))
    before = steps_of(project)
    for names, changed in ((["write-out-operators"], "lower"), (["shapes", "affine", "shapes"], "prepare")):
        project.change_recipe(lambda recipe, names=names: recipe["model"].update(without_passes=names))
        after = steps_of(project)
        assert {after[name].kind for name in after if after[name].params != before[name].params} == {changed}
        told = [step.params["without_passes"] for step in after.values() if step.kind == changed]
        assert all(found == sorted(set(names)) for found in told)


def test_the_folder_is_in_no_step(project: Project, tmp_path: Path) -> None:
    shutil.copytree(project.folder, tmp_path / "moved" / "far")
    first, second = steps_of(project), steps_of(Project(tmp_path / "moved" / "far"))
    assert {name: (step.kind, step.params) for name, step in first.items()} == {
        name: (step.kind, step.params) for name, step in second.items()
    }
    assert str(tmp_path) not in str([step.params for step in first.values()])


def test_fp16_takes_the_ranges_alone_unless_int8_is_a_candidate_beside_it(project: Project) -> None:
    half, both = {"mode": "fp16"}, {"mode": ["int8", "fp16"]}
    gates = {"cosine": 0.9}
    entries = [
        {"profile": "rtx", "name": "half", "precision": half},
        {"profile": "rtx", "name": "both", "precision": both, "gates": gates},
    ]
    project.change_recipe(lambda recipe: recipe.update(targets=entries))
    steps = steps_of(project)
    ranges = steps["small:calibrate@ranges"]
    assert (ranges.params["tensors"], ranges.params["method"]) == ("ranges", None)
    assert steps["small:calibrate"].params["tensors"] == "quantized"
    scales = [step.inputs["scales"] for step in steps.values() if step.kind == "convert"]
    assert set(scales) >= {StepOutput("small:calibrate", "scales"), StepOutput("small:calibrate@ranges", "scales")}


def test_the_fallback_is_nothing_to_lower_where_nothing_is_kept(project: Project) -> None:
    def lowered(**precision: Any) -> Any:
        project.change_recipe(lambda recipe: recipe.update(targets=["rtx"], precision={"mode": "int8", **precision}))
        return steps_of(project)["small:lower@rtx"].params

    assert lowered(fallback="fp16") == lowered(fallback="fp32")
    keep = [{"operators": ["Conv"]}]
    assert lowered(fallback="fp16", keep=keep) != lowered(fallback="fp32", keep=keep)


def test_an_int8_target_without_gpu_is_judged_by_its_graph_and_not_timed(project: Project) -> None:
    project.change_recipe(lambda recipe: recipe.update(targets=["rtx"]))
    steps = steps_of(project)
    assert "small:benchmark@rtx" not in steps
    assert steps["small:verify@rtx"].params["evaluates"] == "graph" and "engine" not in steps["small:verify@rtx"].inputs
    with mock.patch("trtrecipe.plan.pipeline.version", lambda tool: "1.6.1.120"):
        graph = build_graph(load_all([project.recipe]), replace(MACHINE, gpu=Gpu("H100", "9.0", "13.0")))
    assert graph.steps["small:verify@rtx"].params["evaluates"] == "engine"
    assert graph.steps["small:benchmark@rtx"].params["runtime"] == "tensorrt-rtx"


def test_a_latency_gate_that_nothing_here_can_measure_is_pending(project: Project) -> None:
    project.change_recipe(lambda recipe: recipe.update(targets=["rtx"], gates={"latency_ms": {"p99": 1.0}}))
    assert "needs a GPU" in (steps_of(project)["small:benchmark@rtx"].pending or "")


def test_what_changed_is_said_as_recipes_have_it() -> None:
    """Whatever the order of keys, which a record does not keep, and without what is not set."""
    old: dict[str, Any] = {"params": {"keep": [{"between": None, "layers": None, "operators": ["Add", "Mul"]}]}}
    new = {"params": {"keep": [{"operators": ["Add"], "layers": None, "precision": "fp32"}], "dims": {"n": {"max": 4}}}}
    assert [reason.text for reason in changes(old, new, {})] == [
        "dims: not set -> {n: {max: 4}}",
        "keep: [{operators: [Add, Mul]}] -> [{operators: [Add], precision: fp32}]",
    ]


@pytest.mark.parametrize(
    ("remarks", "lines"),
    [
        ([("a", "x"), ("b", "x")], ["all: x"]),
        ([("a", "x"), ("a", "x")], ["a: x"]),
        ([("a", "y"), ("b", "x"), ("a", "x"), ("c", "y")], ["a, c: y", "b, a: x"]),
    ],
)
def test_what_holds_for_several_is_said_once(remarks: list[tuple[str, str]], lines: list[str]) -> None:
    assert list(said_once(remarks, ["a", "b"])) == lines
