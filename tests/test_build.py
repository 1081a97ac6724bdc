"""Whole builds of a small project: what runs, what is served, and why."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.projects import Project, make_project

from trtrecipe.cli.app import run
from trtrecipe.run import scheduler
from trtrecipe.store.records import Record
from trtrecipe.store.store import Store

STEPS = [
    "fetch", "export", "prepare", "lower", "reference", "calibrate", "quantize", "compile", "verify", "benchmark"
]  # fmt: skip

Command = Callable[..., tuple[int, Any]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """Runs a command with --json in an empty working directory; exit code and document."""
    (tmp_path / "work").mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path / "work")

    def call(*arguments: object) -> tuple[int, Any]:
        capsys.readouterr()
        code = run([*map(str, arguments), "--json"])
        return code, json.loads(capsys.readouterr().out)

    return call


@pytest.fixture
def project(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """The built project in a folder, with a store, of the test's own."""
    # Keys of the last build go by the recipe's path, so the copy is built once more, all from the store.
    shutil.copytree(built / "project", tmp_path / "project")
    shutil.copytree(built / "store", tmp_path / "store")
    monkeypatch.setenv("TRTRECIPE_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    assert run(["build", str(tmp_path / "project" / "recipe.yaml"), "-o", str(tmp_path / "work" / "dist")]) == 0
    return Project(tmp_path / "project")


def statuses(document: Any, target: int = 0) -> dict[str, str]:
    return {step["kind"]: step["status"] for step in document["targets"][target]["steps"]}


def ran(document: Any) -> set[str]:
    return {kind for kind, status in statuses(document).items() if status == "ran"}


def store_of_test(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_a_first_build_runs_everything_and_places_it(command: Command, tmp_path: Path) -> None:
    project = make_project(tmp_path / "project")
    code, document = command("build", project.recipe)
    assert code == 0
    assert document["schema"] == "trtrecipe/build/v1" and document["recipe"] == "small"
    [target] = document["targets"]
    assert (target["target"], target["status"]) == ("host", "built")
    assert list(statuses(document)) == STEPS and set(statuses(document).values()) == {"ran"}
    assert all(step["reason"] == "never built before" or "from" in step["reason"] for step in target["steps"])
    folder = tmp_path / "work" / "dist" / "small" / "host"
    names = {"model.engine", "model.onnx", "scales.json", "preprocessing.json", "manifest.json"}
    assert {path.name for path in folder.iterdir()} == names
    assert {Path(entry["path"]).name for entry in target["artifacts"].values()} == names
    metrics = target["metrics"]
    assert 0 <= metrics["accuracy"] <= 1 and metrics["cosine"] > 0.9 and metrics["latency_ms"]["p50"] > 0
    manifest = json.loads((folder / "manifest.json").read_bytes())
    assert manifest["metrics"] == metrics and manifest["evaluated"] == "engine"


def test_a_second_build_starts_no_process_and_writes_nothing(
    project: Project, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(scheduler, "WorkerProcess", refuse)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    code, document = command("build", project.recipe)
    assert code == 0
    assert set(statuses(document).values()) == {"hit"} and document["targets"][0]["status"] == "cached"
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    changed = {path.name for path in after if after[path] != before.get(path)}
    assert not {name for name in changed if not name.startswith("stat.sqlite")}


def plan_and_explain(command: Command, project: Project) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Statuses by kind, and for each step that will run the texts of its reasons."""
    _, plan = command("plan", project.recipe)
    _, explained = command("explain", project.recipe)
    reasons = {s["step"]: [r["text"] for r in s["reasons"]] for s in explained["steps"] if s["status"] == "run"}
    assert list(reasons) == [s["step"] for s in explained["steps"]][: len(reasons)], "root causes stand first"
    return statuses(plan), reasons


def test_calibration_memory_limits_the_step_and_is_no_part_of_its_key(
    project: Project, command: Command, tmp_path: Path
) -> None:
    project.change_recipe(lambda recipe: recipe["calibration"].update(memory="1B"))
    _, plan = command("plan", project.recipe)
    assert set(statuses(plan).values()) == {"hit"}
    project.change_recipe(lambda recipe: recipe["calibration"].update(method="mse"))
    code, document = command("build", project.recipe)
    assert code == 0 and "calibrate" in ran(document)
    [step] = [step for step in document["targets"][0]["steps"] if step["kind"] == "calibrate"]
    record = store_of_test(tmp_path).lookup(step["key"])
    assert isinstance(record, Record) and record.measurements["passes"] == 3


def test_one_calibration_value(project: Project, command: Command) -> None:
    def edit(array: Any) -> None:
        array[:] += 0.25

    project.change_data("calib", edit)
    status, reasons = plan_and_explain(command, project)
    assert [kind for kind, value in status.items() if value == "run"] == ["calibrate"]
    assert len(reasons["calibrate"]) == 1 and reasons["calibrate"][0].startswith("the samples of 'image' changed: ")
    _, document = command("build", project.recipe)
    assert ran(document) == {"calibrate", "quantize", "compile", "verify", "benchmark"}


def test_one_calibration_value_that_no_sample_uses(project: Project, command: Command) -> None:
    from trtrecipe.data.sampling import Sampling, select

    unused = next(index for index in range(64) if index not in select(64, Sampling(32, 0)))

    def edit(array: Any) -> None:
        array[unused, 0, 0, 0] += 9

    project.change_data("calib", edit)
    assert ran(command("build", project.recipe)[1]) == set()


def test_one_weight(project: Project, command: Command) -> None:
    project.change_weight()
    status, reasons = plan_and_explain(command, project)
    assert [kind for kind, value in status.items() if value == "run"] == ["fetch"]
    assert reasons["fetch"][0].startswith("the model changed: ")
    _, document = command("build", project.recipe)
    assert ran(document) == set(STEPS)
    _, explained = command("explain", project.recipe, "prepare")
    [why] = explained["steps"][0]["last_ran_because"]
    assert why["follows_from"] == "export" and why["text"].startswith("'onnx' from export changed: ")


def test_one_evaluation_label(project: Project, command: Command) -> None:
    def edit(array: Any) -> None:
        array[3] = (array[3] + 1) % 4

    project.change_data("label", edit)
    _, reasons = plan_and_explain(command, project)
    assert reasons["reference"][0].startswith("the labels changed: ")
    _, document = command("build", project.recipe)
    assert ran(document) == {"reference", "verify"}


def test_one_recipe_field(project: Project, command: Command) -> None:
    def edit(recipe: dict[str, Any]) -> None:
        recipe["calibration"]["method"] = "percentile"

    project.change_recipe(edit)
    _, reasons = plan_and_explain(command, project)
    assert reasons == {"calibrate": ["method: minmax -> percentile"]}
    _, document = command("build", project.recipe)
    assert "calibrate" in ran(document) <= {"calibrate", "quantize", "compile", "verify", "benchmark"}


def test_a_field_and_back_again_costs_nothing(project: Project, command: Command) -> None:
    text = project.recipe.read_text()
    project.change_recipe(lambda recipe: recipe["model"]["dims"]["batch"].update(opt=2))
    assert ran(command("build", project.recipe)[1]) == {"benchmark"}, "host is built for no range"
    project.recipe.write_text(text)
    assert ran(command("build", project.recipe)[1]) == set()


def test_one_comment(project: Project, command: Command) -> None:
    project.recipe.write_text("# a comment\n" + project.recipe.read_text())
    assert plan_and_explain(command, project)[1] == {}
    assert ran(command("build", project.recipe)[1]) == set()


@pytest.mark.parametrize("kind", ["calibrate", "export", "compile"])
def test_one_byte_of_a_stored_artifact(kind: str, project: Project, command: Command, tmp_path: Path) -> None:
    _, before = command("build", project.recipe)
    outputs = next(step["outputs"] for step in before["targets"][0]["steps"] if step["kind"] == kind)
    role, sha256 = sorted(outputs.items())[-1]  # of export the graph, which more depends on than on the layers
    with Store(tmp_path / "store") as store:
        path = store.blobs.path(sha256)
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    _, reasons = plan_and_explain(command, project)
    name = f"{kind}@host" if kind == "compile" else kind
    assert reasons == {name: [f"its stored output '{role}' is damaged"]}
    code, document = command("build", project.recipe)
    assert code == 0 and kind in ran(document)
    # The step gives the same bytes again, so what follows is still served.
    assert ran(document) == {kind}
    assert document["targets"][0]["artifacts"]["engine"] == before["targets"][0]["artifacts"]["engine"]


def test_damage_that_only_shows_when_bytes_leave_the_store(project: Project, command: Command, tmp_path: Path) -> None:
    import os

    _, before = command("build", project.recipe)
    outputs = {step["kind"]: step["outputs"] for step in before["targets"][0]["steps"]}
    with Store(tmp_path / "store") as store:
        for sha256 in (outputs["prepare"]["onnx"], outputs["compile"]["engine"]):
            path = store.blobs.path(sha256)
            stat = path.stat()
            path.chmod(0o644)
            path.write_bytes(path.read_bytes()[:-1] + b"\xff")
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    # `prepare` is found out when calibrate reads its output, `compile` when the engine is placed again.
    project.change_recipe(lambda recipe: recipe["calibration"].update(method="percentile"))
    (tmp_path / "work" / "dist" / "small" / "host" / "model.engine").unlink()
    code, document = command("build", project.recipe)
    assert code == 0
    assert {"prepare", "calibrate"} <= ran(document)
    engine = document["targets"][0]["artifacts"]["engine"]
    from trtrecipe.digest import sha256_file

    assert sha256_file(Path(engine["path"])) == engine["sha256"]


def test_results_are_put_back_and_foreign_files_left_alone(project: Project, command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "work" / "dist" / "small" / "host"
    contents = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / "model.engine").write_bytes(b"altered")
    (folder / "scales.json").unlink()
    (folder / "mine.txt").write_text("mine")
    _, document = command("build", project.recipe)
    assert ran(document) == set()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == contents | {"mine.txt": b"mine"}


def test_what_is_no_longer_made_is_removed(project: Project, command: Command, tmp_path: Path) -> None:
    project.change_recipe(lambda recipe: recipe["precision"].update(mode="fp32"))
    code, _ = command("build", project.recipe)
    assert code == 0
    names = {path.name for path in (tmp_path / "work" / "dist" / "small" / "host").iterdir()}
    assert names == {"model.engine", "model.onnx", "preprocessing.json", "manifest.json"}


@pytest.mark.parametrize(
    ("gates", "missed"),
    [
        ({"accuracy": {"min": 1.0}}, "accuracy.min"),
        ({"cosine": 1.0}, "cosine"),
        ({"latency_ms": {"p99": 1e-9}}, "latency_ms.p99"),
        ({"size": "1B"}, "size"),
    ],
)
def test_a_missed_gate_leaves_dist_as_it_was(
    gates: dict[str, Any], missed: str, project: Project, command: Command, tmp_path: Path
) -> None:
    folder = tmp_path / "work" / "dist" / "small" / "host"
    contents = {path.name: path.read_bytes() for path in folder.iterdir()}
    project.change_recipe(lambda recipe: recipe.update(gates=gates))
    project.change_recipe(lambda recipe: recipe["calibration"].update(samples=16))
    code, document = command("build", project.recipe)
    assert code == 3
    [target] = document["targets"]
    assert target["status"] == "gate-failed" and target["artifacts"] == {}
    assert [(gate["gate"], gate["status"]) for gate in target["gates"]] == [(missed, "missed")]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == contents


def test_jetson_targets_are_built_as_far_as_possible(project: Project, command: Command, tmp_path: Path) -> None:
    targets = ["host", "jetson-xavier-nx@5.1.4", {"profile": "jetson-tx2@4.6.4", "precision": {"mode": "fp16"}}]
    project.change_recipe(lambda recipe: recipe.update(targets=targets))
    code, document = command("build", project.recipe)
    assert code == 5
    assert [target["status"] for target in document["targets"]] == ["cached", "pending", "pending"]
    # Two dialects, one graph: lowering gives the bytes that host has quantized already.
    assert statuses(document, 1) == dict.fromkeys(STEPS, "pending") | {
        "fetch": "hit", "export": "hit", "prepare": "hit", "lower": "ran", "reference": "hit", "calibrate": "hit",
        "quantize": "hit",
    }  # fmt: skip
    assert set(document["targets"][1]["artifacts"]) == {"onnx", "scales", "preprocessing", "manifest"}
    assert set(document["targets"][2]["artifacts"]) == {"onnx", "preprocessing", "manifest"}
    import onnx

    for target, ceiling in ((1, 17), (2, 13)):
        model = onnx.load(document["targets"][target]["artifacts"]["onnx"]["path"])
        assert next(entry.version for entry in model.opset_import if entry.domain == "") <= ceiling


def test_one_target_of_several(project: Project, command: Command) -> None:
    project.change_recipe(lambda recipe: recipe.update(targets=["host", "jetson-orin-nx@6.2"]))
    code, document = command("build", project.recipe, "--target", "host")
    assert code == 0 and [target["target"] for target in document["targets"]] == ["host"]
    code, document = command("build", project.recipe, "--target", "hots")
    assert code == 2 and document["errors"][0]["hint"] == "did you mean host?"


def test_several_recipes_share_their_steps(project: Project, command: Command) -> None:
    second = project.folder / "second.yaml"
    second.write_text(project.recipe.read_text().replace("name: small", "name: other"))
    code, document = command("build", project.recipe, second)
    assert code == 0 and document["schema"] == "trtrecipe/builds/v1"
    assert [recipe["recipe"] for recipe in document["recipes"]] == ["small", "other"]
    assert ran(document["recipes"][1]) == set()
    second.write_text(project.recipe.read_text())
    code, document = command("build", project.recipe, second)
    assert code == 2 and "the recipe name small is taken" in document["errors"][0]["message"]


def test_a_failed_step_blocks_only_what_depends_on_it(command: Command, tmp_path: Path) -> None:
    import onnx
    from onnx import helper

    project = make_project(
        tmp_path / "project", {"targets": ["host", "jetson-xavier-nx@5.1.4"], "precision": {"mode": "fp32"}}
    )
    model = onnx.load(project.folder / "model.onnx")
    # TensorRT 8.5 has no Unique; ONNX Runtime has.
    node = helper.make_node("Unique", ["logits"], ["unique"], name="unique")
    model.graph.node.append(node)
    model.graph.output.append(helper.make_tensor_value_info("unique", onnx.TensorProto.FLOAT, ["n"]))
    onnx.save(model, project.folder / "model.onnx")
    code, document = command("build", project.recipe)
    assert code == 1
    assert [target["status"] for target in document["targets"]][1] == "failed"
    steps = {step["kind"]: step for step in document["targets"][1]["steps"]}
    assert steps["lower"]["status"] == "failed" and "Unique" in steps["lower"]["error"]
    assert steps["compile"]["status"] in ("blocked", "pending")
    assert statuses(document, 0)["lower"] == "ran"


def test_without_an_extra_the_rest_is_built(
    project: Project, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trtrecipe.plan import resolve

    installed = resolve.version
    monkeypatch.setattr(resolve, "version", lambda tool: None if tool == "tensorrt-rtx" else installed(tool))
    project.change_recipe(lambda recipe: recipe.update(targets=["host", "rtx"]))
    _, plan = command("plan", project.recipe)
    assert statuses(plan, 1)["compile"] == "unknown"
    code, document = command("build", project.recipe)
    assert code == 1
    assert [target["status"] for target in document["targets"]] == ["cached", "failed"]
    error = next(step["error"] for step in document["targets"][1]["steps"] if step["kind"] == "compile")
    assert error == "needs tensorrt-rtx, which is not installed; run: pip install 'trtrecipe[rtx]'"


def test_a_gate_that_was_not_measured_is_pending(project: Project, command: Command) -> None:
    project.change_recipe(lambda recipe: recipe.update(gates={"agreement": 0.5}))
    project.change_recipe(lambda recipe: recipe["evaluation"].update(metric="top1"))
    assert command("build", project.recipe)[0] == 0
    from trtrecipe.run import results

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "_metrics", lambda measured: {"cosine": 1.0})
        code, document = command("build", project.recipe)
    assert code == 5 and document["targets"][0]["status"] == "pending"


def test_going_back_is_explained_as_such(project: Project, command: Command) -> None:
    text = project.recipe.read_text()
    project.change_recipe(lambda recipe: recipe["calibration"].update(method="percentile"))
    command("build", project.recipe)
    project.recipe.write_text(text)
    _, explained = command("explain", project.recipe, "calibrate")
    [step] = explained["steps"]
    assert step["status"] == "hit" and [reason["text"] for reason in step["reasons"]] == [
        "method: percentile -> minmax"
    ]
    command("build", project.recipe)
    _, explained = command("explain", project.recipe, "calibrate")
    [step] = explained["steps"]
    assert step["reasons"] == []
    assert [reason["text"] for reason in step["last_ran_because"]] == ["method: percentile -> minmax"]


def test_another_sample_is_named_by_the_recipe_field(project: Project, command: Command) -> None:
    project.change_recipe(lambda recipe: recipe["calibration"].update(samples=16))
    _, reasons = plan_and_explain(command, project)
    expected = "the samples of 'image': 32 samples by seed 0 of calib -> 16 samples by seed 0 of calib"
    assert reasons == {"calibrate": [expected]}


def test_only_the_size_that_is_timed_is_in_the_key(project: Project, command: Command) -> None:
    project.change_recipe(lambda recipe: recipe["model"]["dims"]["batch"].update(max=9))
    assert ran(command("build", project.recipe)[1]) == set()


def test_a_target_may_be_called_like_a_dialect(project: Project, command: Command) -> None:
    wide = {"batch": {"min": 1, "opt": 2, "max": 64}, "unused": {"min": 1, "opt": 1, "max": 1}}
    targets = ["jetson-xavier-nx@5.1.4", "host", {"profile": "host", "name": "trt-8.5", "model": {"dims": wide}}]
    project.change_recipe(lambda recipe: recipe.update(targets=targets))
    code, document = command("plan", project.recipe)
    assert code == 0 and len(document["targets"]) == 3


def test_one_obstacle_fails_one_target(project: Project, command: Command, tmp_path: Path) -> None:
    project.change_recipe(lambda recipe: recipe.update(targets=["host", {"profile": "host", "name": "two"}]))
    folder = tmp_path / "work" / "dist" / "small" / "host"
    (folder / "scales.json").unlink()
    (folder / "scales.json").mkdir()
    code, document = command("build", project.recipe)
    assert code == 1
    assert [target["status"] for target in document["targets"]] == ["failed", "cached"]
    assert "scales.json is a folder" in document["targets"][0]["error"]
    assert set(document["targets"][1]["artifacts"]) == {"engine", "onnx", "scales", "preprocessing", "manifest"}


@pytest.mark.parametrize("content", ["[" * 100_000, "{}", '{"artifacts": 3}', ""])
def test_a_manifest_that_is_none_is_written_again(
    content: str, project: Project, command: Command, tmp_path: Path
) -> None:
    manifest = tmp_path / "work" / "dist" / "small" / "host" / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(content)
    assert command("build", project.recipe)[0] == 0
    assert manifest.read_text() == text


def test_a_link_or_pipe_in_place_of_a_result_is_replaced(project: Project, command: Command, tmp_path: Path) -> None:
    import os

    folder = tmp_path / "work" / "dist" / "small" / "host"
    (folder / "manifest.json").rename(tmp_path / "elsewhere.json")
    (folder / "manifest.json").symlink_to(tmp_path / "elsewhere.json")
    (folder / "scales.json").unlink()
    os.mkfifo(folder / "scales.json")
    assert command("build", project.recipe)[0] == 0
    assert all(path.is_file() and not path.is_symlink() for path in folder.iterdir())


def test_no_module_beside_the_store_reaches_a_step(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = make_project(tmp_path / "project", {"precision": {"mode": "fp32"}})
    store = tmp_path / "trap"
    store.mkdir()
    for name in ("json", "numpy", "secrets", "os"):
        (store / f"{name}.py").write_text("raise SystemExit('this ran')")
    monkeypatch.setenv("TRTRECIPE_STORE", str(store))
    assert command("build", project.recipe)[0] == 0


def test_an_error_of_ours_is_a_message_too(project: Project, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise ZeroDivisionError("no reason")

    monkeypatch.setattr("trtrecipe.plan.pipeline.build_graph", fail)
    code, document = command("plan", project.recipe)
    assert code == 1
    [error] = document["errors"]
    assert error["message"] == "unexpected ZeroDivisionError: no reason" and "--debug" in error["hint"]


def test_a_damaged_input_of_many_steps_is_made_again_once(project: Project, command: Command, tmp_path: Path) -> None:
    import os

    _, before = command("build", project.recipe)
    [sha256] = [step["outputs"]["onnx"] for step in before["targets"][0]["steps"] if step["kind"] == "prepare"]
    with Store(tmp_path / "store") as store:
        path = store.blobs.path(sha256)
    stat = path.stat()
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    # Four steps now want it, of which two start at once and two are still waiting when the damage is found.
    targets = ["host", "jetson-xavier-nx@5.1.4", "jetson-orin-nx@6.2", "jetson-orin-nx@6.0"]
    project.change_recipe(lambda recipe: recipe.update(targets=targets))
    project.change_recipe(lambda recipe: recipe["calibration"].update(method="percentile"))
    code, document = command("build", project.recipe, "-j", 2)
    assert code == 5
    assert [target["status"] for target in document["targets"]] == ["built", "pending", "pending", "pending"]
    assert statuses(document)["prepare"] == "ran"


def test_what_is_true_of_several_targets_is_said_once(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    def lines(*more: object) -> list[str]:
        half = {"mode": "int8", "fallback": "fp16"}
        targets = ["host", {"profile": "host", "name": "other"}, *more]
        project.change_recipe(lambda recipe: recipe.update(targets=targets, precision=half))
        capsys.readouterr()
        assert run(["build", str(project.recipe), "-o", str(project.folder / "dist")]) == 0
        return [line for line in capsys.readouterr().out.splitlines() if "fallback fp16" in line]

    assert [line.split(": ")[0] for line in lines()] == ["all"]
    plain = {"profile": "host", "name": "plain", "precision": {"mode": "fp32"}}
    assert [line.split(": ")[0] for line in lines(plain)] == ["host, other"]
