"""Several modes for one target: all are built, and the fastest that meets the gates is shipped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.projects import make_project

from trtrecipe.cli.app import run
from trtrecipe.plan.graph import TargetPlan
from trtrecipe.recipe.load import load
from trtrecipe.recipe.rules import resolve_targets, target_findings
from trtrecipe.run.gates import Verdict
from trtrecipe.run.results import TargetResult, choose, search_may_help
from trtrecipe.store.blobs import Blob
from trtrecipe.targets.catalog import load_catalog
from trtrecipe.targets.spec import Target

RECIPE = """\
schema: trtrecipe/v1
name: small
model: {source: model.onnx}
precision: {mode: [int8, fp16]}
calibration: {data: {npz: data.npz, arrays: {image: calib}}}
gates: {cosine: 0.9}
targets: [host, jetson-tx2@4.6.4]
"""


@pytest.fixture
def targets(tmp_path: Path) -> list[Target]:
    (tmp_path / "r.yaml").write_text(RECIPE)
    found, problems = resolve_targets(load(tmp_path / "r.yaml", also=target_findings), load_catalog())
    assert problems == []
    return found


def _result(target: Target, status: str, p50: float | None) -> TargetResult:
    metrics: dict[str, Any] = {} if p50 is None else {"latency_ms": {"p50": p50}}
    plan = TargetPlan(target, (), {}, "engine")
    return TargetResult(plan, status, {"engine": Blob("0" * 64, 1)}, metrics, (), (), ())


def test_a_target_has_the_modes_that_its_device_computes(targets: list[Target]) -> None:
    assert [(target.id, target.mode, target.rivals) for target in targets] == [
        ("host", "int8", ("int8", "fp16")),
        ("host", "fp16", ("int8", "fp16")),
        ("jetson-tx2@4.6.4", "fp16", ()),
    ]
    assert any(note.startswith("int8 is no candidate: ") for note in targets[2].notes)


@pytest.mark.parametrize(
    ("int8", "fp16", "status", "chosen"),
    [
        (("built", 1.0), ("built", 2.0), "built", "int8"),
        (("built", 2.0), ("cached", 1.0), "built", "fp16"),
        (("cached", 2.0), ("cached", 1.0), "cached", "fp16"),
        (("gate-failed", 1.0), ("built", 2.0), "built", "fp16"),
        (("gate-failed", 1.0), ("built", None), "built", "fp16"),
        (("gate-failed", 1.0), ("pending", None), "pending", "fp16"),
        (("gate-failed", 1.0), ("gate-failed", 2.0), "gate-failed", None),
        (("built", None), ("built", None), "pending", None),
        (("built", 1.0), ("pending", None), "pending", None),
        (("failed", None), ("built", 1.0), "failed", None),
    ],
)
def test_the_choice(targets: list[Target], int8: Any, fp16: Any, status: str, chosen: str | None) -> None:
    result = choose([_result(targets[0], *int8), _result(targets[1], *fp16)])
    assert (result.status, result.chosen) == (status, chosen)
    assert [each.plan.target.mode for each in result.candidates] == ["int8", "fp16"]
    assert bool(result.artifacts) == (chosen is not None)


@pytest.mark.parametrize(
    ("gate", "value", "change", "helps"),
    [
        ("accuracy.max_drop", 0.5, {}, True),
        ("cosine", 0.5, {}, False),
        ("size", 0.5, {}, False),
        ("accuracy.max_drop", 0.5, {"search": True}, False),
        ("accuracy.max_drop", 0.5, {"quantization": "implicit"}, False),
        ("accuracy.max_drop", 0.5, {"mode": "fp16", "quantization": None}, False),
    ],
)
def test_a_search_is_proposed_where_it_may_help(
    targets: list[Target], gate: str, value: float, change: dict[str, Any], helps: bool
) -> None:
    verdict = Verdict(gate, "met" if gate == "cosine" else "missed", 0.1, "<=", value)
    result = replace(_result(replace(targets[0], **change), "gate-failed", None), gates=(verdict,))
    assert search_may_help(result) is helps


def test_where_nothing_is_chosen_the_notes_of_all_are_told(targets: list[Target]) -> None:
    made = [
        replace(_result(target, "built", None), notes=("of both", note))
        for target, note in zip(targets, ("of int8", "of fp16"), strict=False)
    ]
    assert choose(made).notes[:3] == ("of both", "of int8", "of fp16")


def _built(project: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, Any]:
    capsys.readouterr()
    code = run(["build", str(project), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_both_are_built_and_one_is_placed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    precision = {"mode": ["int8", "fp32"]}
    project = make_project(tmp_path / "p", {"precision": precision, "gates": {"cosine": 0.9}})
    code, document = _built(project.recipe, capsys)
    [target] = document["targets"]
    assert code == 0 and target["status"] == "built"
    latency = {each["precision"]: each["metrics"]["latency_ms"]["p50"] for each in target["candidates"]}
    assert sorted(latency) == ["fp32", "int8"]
    assert target["precision"] == min(latency, key=latency.__getitem__)
    manifest = json.loads((tmp_path / "dist/small/host/manifest.json").read_bytes())
    assert manifest["precision"]["mode"] == target["precision"]
    assert [each["mode"] for each in manifest["candidates"]] == ["int8", "fp32"]
    assert sum(step["kind"] == "compile" for step in target["steps"]) == 2
    assert sum(step["kind"] == "compile" for step in manifest["steps"]) == 1
    assert (tmp_path / "dist/small/host/scales.json").exists() == (target["precision"] == "int8")
    assert run(["build", str(project.recipe)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("host ")]
    assert sorted((row[1], row[2]) for row in rows) == sorted(
        ("cached" if mode == target["precision"] else "slower", mode) for mode in latency
    )


def test_the_one_that_misses_its_gate_is_out_of_the_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    precision = {"mode": ["int8", "fp32"]}
    project = make_project(tmp_path / "p", {"precision": precision, "gates": {"cosine": 1.0}})
    code, document = _built(project.recipe, capsys)
    [target] = document["targets"]
    assert (code, target["status"], target["precision"]) == (0, "built", "fp32")
    assert [each["status"] for each in target["candidates"]] == ["gate-failed", "built"]


def test_no_choice_leaves_results_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a GPU that runs the engines, nothing can say which is faster."""
    pytest.importorskip("tensorrt_rtx")
    from trtrecipe.plan.machine import this_machine

    if this_machine().gpu is not None:
        pytest.skip("a GPU here can measure latencies")
    monkeypatch.chdir(tmp_path)
    blocks = {"precision": {"mode": ["int8", "fp32"]}, "gates": {"cosine": 0.9}, "targets": ["rtx"]}
    project = make_project(tmp_path / "p", blocks)
    code, document = _built(project.recipe, capsys)
    [target] = document["targets"]
    assert (code, target["status"]) == (5, "pending")
    assert "precision" not in target and target["artifacts"] == {}
    assert any("which of int8 and fp32 is the fastest has not been measured" in note for note in target["notes"])
    assert not (tmp_path / "dist/small/rtx").exists()
