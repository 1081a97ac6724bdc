"""Recipes against profiles: what each entry resolves to, and what is refused where."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from trtrecipe.errors import InputError
from trtrecipe.recipe.document import MAX_PROBLEMS
from trtrecipe.recipe.load import Loaded, load
from trtrecipe.recipe.rules import resolve_targets, target_findings
from trtrecipe.targets.catalog import load_catalog
from trtrecipe.targets.spec import Target

CATALOG = load_catalog()
HEAD = """\
schema: trtrecipe/v1
name: digits
model:
  source: model
  dims:
    batch: {min: 1, opt: 8, max: 32}
"""
CALIBRATION = "calibration: {data: {npz: data.npz, arrays: {image: x}}}\n"
INT8 = HEAD + "precision: {mode: int8, fallback: fp16}\n" + CALIBRATION
FP16 = HEAD + "precision: {mode: fp16}\n"


def _write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, "utf-8")
    return path


def _load(folder: Path, text: str) -> Loaded:
    return load(_write(folder, text))


def _targets(folder: Path, text: str) -> list[Target]:
    targets, problems = resolve_targets(_load(folder, text), CATALOG)
    assert problems == []
    return targets


def _problems(folder: Path, text: str) -> list[tuple[str, str, str | None]]:
    """What `load` reports when it is given the rules: (line:column, message, hint)."""
    with pytest.raises(InputError) as caught:
        load(_write(folder, text), also=target_findings)
    return [(f"{p.line}:{p.column}", p.message, p.hint) for p in caught.value.problems]


def test_targets_keep_the_recipes_order_and_are_called_as_written(tmp_path: Path) -> None:
    text = INT8 + "targets: [rtx, jetson-xavier-nx@5.1.4, host, {profile: host, name: again}]\n"
    targets = _targets(tmp_path, text)
    assert [target.id for target in targets] == ["rtx", "jetson-xavier-nx@5.1.4", "host", "again"]
    assert [target.dialect.id for target in targets] == ["rtx", "trt-8.5", "ort", "ort"]
    assert [target.release.jetpack if target.release else None for target in targets] == [None, "5.1.4", None, None]


@pytest.mark.parametrize(
    ("evaluation", "same"),
    [
        ("{npz: data.npz, arrays: {image: x, label: y}}", True),
        ("{npz: data.npz, arrays: {image: x_test, label: y}}", False),
        ("{npy: {image: x.npy}}", False),
    ],
)
def test_judging_by_what_was_calibrated_with_is_said(tmp_path: Path, evaluation: str, same: bool) -> None:
    text = (
        INT8
        + f"evaluation: {{data: {evaluation}}}\ntargets: [rtx, {{profile: rtx, name: b, precision: {{mode: fp16}}}}]\n"
    )
    int8, fp16 = _targets(tmp_path, text)
    assert any("calibration and evaluation name the same data" in note for note in int8.notes) is same
    assert fp16.notes == ()


def test_int8_falls_back_as_asked_except_on_host(tmp_path: Path) -> None:
    rtx, jetson, host = _targets(tmp_path, INT8 + "targets: [rtx, jetson-orin-nx@6.2, host]\n")
    assert (rtx.mode, rtx.fallback, rtx.float_precision) == ("int8", "fp16", "fp16")
    assert (jetson.mode, jetson.fallback) == ("int8", "fp16")
    assert (host.mode, host.fallback, host.float_precision) == ("int8", "fp32", "fp32")
    assert any(note.startswith("fallback fp16: ") and "FP32" in note for note in host.notes)
    assert not any("fallback" in note for note in (*rtx.notes, *jetson.notes))


def test_fp16_on_host_says_how_it_computes(tmp_path: Path) -> None:
    host, rtx = _targets(tmp_path, FP16 + "targets: [host, rtx]\n")
    assert (host.mode, host.fallback, host.float_precision) == ("fp16", None, "fp16")
    assert any("compute in FP32" in note for note in host.notes)
    assert rtx.notes == ()


def test_assumed_dialect_is_noted(tmp_path: Path) -> None:
    assumed, known = _targets(tmp_path, FP16 + "targets: [jetson-orin-nx@6.2, jetson-orin-nx@6.0]\n")
    assert assumed.notes == ("assumed: TensorRT 10.3 takes the opsets and operators published for 10.1",)
    assert known.notes == ()


def test_a_target_replaces_blocks_as_a_whole(tmp_path: Path) -> None:
    text = (
        INT8
        + "gates: {cosine: 0.9, size: 1MiB}\n"
        + "build: {workspace: 1GiB}\n"
        + "targets:\n"
        + "  - rtx\n"
        + "  - profile: jetson-tx2@4.6.4\n"
        + "    name: tx2-fp16\n"
        + "    precision: {mode: fp16}\n"
        + "    model: {dims: {batch: {min: 1, opt: 1, max: 1}}}\n"
        + "    build: {workspace: 16MiB}\n"
        + "    gates: {cosine: 0.99}\n"
    )
    rtx, tx2 = _targets(tmp_path, text)
    assert (rtx.workspace, rtx.dims["batch"].max) == (1 << 30, 32)
    assert rtx.gates is not None
    assert (rtx.gates.cosine, rtx.gates.size) == (0.9, 1 << 20)
    assert (tx2.id, tx2.mode, tx2.fallback, tx2.workspace) == ("tx2-fp16", "fp16", None, 16 << 20)
    assert tx2.dims["batch"].max == 1
    assert tx2.gates is not None
    assert (tx2.gates.cosine, tx2.gates.size) == (0.99, None)


def test_recipe_wide_workspace_is_not_applicable_on_host(tmp_path: Path) -> None:
    host, rtx = _targets(tmp_path, FP16 + "build: {workspace: 1GiB}\ntargets: [host, rtx]\n")
    assert host.workspace is None
    assert any("build.workspace does not apply to host" in note for note in host.notes)
    assert rtx.workspace == 1 << 30


def test_workspace_in_a_host_target_is_an_error(tmp_path: Path) -> None:
    text = FP16 + "targets:\n  - profile: host\n    build: {workspace: 1GiB}\n"
    (problem,) = _problems(tmp_path, text)
    assert problem == (
        "10:13",
        "host takes no workspace: onnxruntime has no such limit",
        "remove it from this target",
    )


@pytest.mark.parametrize("profile", ["jetson-nano", "jetson-tx2", "jetson-tx2-nx"])
def test_int8_is_refused_where_the_gpu_lacks_it(tmp_path: Path, profile: str) -> None:
    (problem,) = _problems(tmp_path, INT8 + f"targets:\n  - host\n  - {profile}@4.6.4\n")
    at, message, hint = problem
    assert at == "11:5"
    assert message.startswith(f"{profile} does not compute int8: ")
    assert hint == f"write {{profile: {profile}@4.6.4, precision: {{mode: fp16}}}}"


def test_the_hint_for_a_refused_precision_is_a_recipe_that_loads(tmp_path: Path) -> None:
    ((_, _, hint),) = _problems(tmp_path, INT8 + "targets: [jetson-tx2@4.6.4]\n")
    (target,) = _targets(tmp_path, INT8 + f"targets: [{str(hint).removeprefix('write ')}]\n")
    assert (target.id, target.mode) == ("jetson-tx2@4.6.4", "fp16")


def test_a_targets_own_precision_is_refused_where_it_is_written(tmp_path: Path) -> None:
    text = FP16 + CALIBRATION + "targets:\n  - profile: jetson-tx2@4.6.4\n    precision:\n      mode: int8\n"
    ((at, message, hint),) = _problems(tmp_path, text)
    assert at == "12:13"
    assert "does not compute int8" in message
    assert hint == "give this target precision: {mode: fp16}"


def test_inherited_precision_is_refused_at_the_profile(tmp_path: Path) -> None:
    ((at, _, _),) = _problems(tmp_path, INT8 + "targets:\n  - name: old\n    profile: jetson-nano@4.6.6\n")
    assert at == "11:14"


def test_int8_without_calibration_is_refused_with_the_rules_of_the_device(tmp_path: Path) -> None:
    problems = _problems(tmp_path, HEAD + "precision: {mode: int8}\ntargets: [jetson-tx2@4.6.4]\n")
    assert [at for at, _, _ in problems] == ["7:19", "8:11"]
    assert "calibration" in problems[0][1]
    assert "jetson-tx2" in problems[1][1]


def test_unknown_profiles_are_reported_beside_the_schemas_problems(tmp_path: Path) -> None:
    text = (
        "schema: trtrecipe/v1\n"
        "name: digits\n"
        "modle: {source: model}\n"
        "precision: {mode: fp16}\n"
        "targets:\n"
        "  - jetson-nx@5.1.4\n"
        "  - profile: hots\n"
        "    nmae: mine\n"
        "  - 7\n"
        "  - jetson-nano\n"
        "  - jetson-xavier-nx@5.1.7\n"
    )
    problems = _problems(tmp_path, text)
    by_place = {at: (message, hint) for at, message, hint in problems}
    assert "jetson-xavier-nx or jetson-orin-nx" in by_place["6:5"][0]
    assert by_place["7:14"][0] == "unknown profile 'hots'"
    assert str(by_place["7:14"][1]).startswith("did you mean host? ")
    assert "4.6, 4.6.1" in str(by_place["10:5"][1])
    assert "TensorRT JetPack 5.1.7 ships is not known" in by_place["11:5"][0]
    assert {"3:1", "8:5", "9:5"} <= set(by_place)  # modle, nmae and 7 are the schema's


@pytest.mark.parametrize(
    "recipe",
    [
        None,
        [],
        "host",
        {},
        {"targets": None},
        {"targets": "host"},
        {"targets": [None, 3, True, [], {}, ["host"], {"profile": 7}, {"profile": ["host"]}, ""]},
        {"targets": ["host"], "precision": "int8"},
        {"targets": ["host"], "precision": {"mode": ["int8"]}},
        {"targets": ["jetson-tx2@4.6.4"], "precision": {"mode": {"int8": 1}}},
        {"targets": [{"profile": "host", "precision": 5, "build": []}]},
        {"targets": [{"profile": "host", "precision": {"mode": "int9"}, "build": {"workspace": None}}]},
    ],
)
def test_what_is_malformed_is_passed_over(recipe: object) -> None:
    assert list(target_findings(recipe)) == []


def test_thousands_of_unknown_profiles_are_answered_in_bounded_time() -> None:
    names = [f"jetson-{'orin-nano-xavier-' * 3}{index}" for index in range(15_000)]
    start = time.process_time()
    findings = list(target_findings({"targets": names}))
    assert len(findings) == MAX_PROBLEMS
    assert time.process_time() - start < 5


def test_entries_with_a_problem_have_no_target(tmp_path: Path) -> None:
    loaded = _load(tmp_path, INT8 + "targets: [host, jetson-tx2@4.6.4, nowhere, rtx]\n")
    targets, problems = resolve_targets(loaded, CATALOG)
    assert [target.id for target in targets] == ["host", "rtx"]
    assert [(p.line, p.column) for p in problems] == [(9, 17), (9, 35)]
    assert {p.file for p in problems} == {str(tmp_path / "recipe.yaml")}


@pytest.mark.parametrize("profile", CATALOG.profiles, ids=lambda profile: profile.id)
def test_every_served_release_of_every_profile_makes_a_target(tmp_path: Path, profile) -> None:  # type: ignore[no-untyped-def]
    served = CATALOG.served(profile)
    specs = [f"{profile.id}@{release.jetpack}" for release in served] or [profile.id]
    targets = _targets(tmp_path, FP16 + "".join(["targets:\n", *(f"  - {spec}\n" for spec in specs)]))
    assert [target.id for target in targets] == specs
    assert all(target.profile is profile for target in targets)
    if served:
        assert {f"trt-{release.family}" for release in served} == {target.dialect.id for target in targets}
