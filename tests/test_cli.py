"""The command line's own manners."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from support.projects import make_project

from trtrecipe.cli.app import run
from trtrecipe.digest import sha256_json
from trtrecipe.recipe.schema import recipe_schema

COMMANDS = ("validate", "show", "plan", "build", "explain", "inspect", "schema", "doctor", "devices", "cache")
HEAVY = ("numpy", "onnx", "onnxruntime", "tensorflow", "tensorrt_rtx", "rich")


def run_json(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, Any]:
    capsys.readouterr()
    code = run([*map(str, arguments), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_help_names_every_command_and_the_readme_too(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    said = capsys.readouterr().out
    readme = (repository / "README.md").read_text()
    for command in COMMANDS:
        assert f"  {command} " in said
        assert f"`{command}" in readme
        assert run([command, "--help"]) == 0


@pytest.mark.parametrize("arguments", [["--help"], ["validate", "recipes/digits/digits.yaml"], ["schema"], ["plan"]])
def test_light_commands_import_nothing_heavy(arguments: list[str], repository: Path) -> None:
    if arguments == ["plan"]:
        arguments = ["plan", "recipes/digits/digits.yaml"]
    code = (
        "import sys; from trtrecipe.cli.app import run; code = run(sys.argv[1:]); "
        f"print([name for name in {HEAVY!r} if name in sys.modules], code, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=repository, capture_output=True, text=True, check=True
    )
    assert done.stderr.splitlines()[-1] == "[] 0"


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["validat"], "No such command 'validat'", "trtrecipe --help"),
        (["build"], "Missing argument", "trtrecipe build --help"),
        (["build", "x.yaml", "--jobs", "none"], "--jobs", "trtrecipe build --help"),
        (["build", "no-such.yaml"], "no-such.yaml", ""),
    ],
)
def test_a_wrong_command_line(
    arguments: list[str], message: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and message in captured.err and hint in captured.err
    code, document = run_json(capsys, *arguments)
    assert code == 2 and document["schema"] == "trtrecipe/error/v1"
    [error] = document["errors"]
    assert message in error["message"] or message == error["file"]


def test_all_problems_of_all_recipes_are_reported_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    good = make_project(tmp_path / "good")
    bad = make_project(tmp_path / "bad", {"name": "bad", "targets": ["hots", "jetson-nano@4.6.5"]})
    code, document = run_json(capsys, "build", good.recipe, bad.recipe)
    assert code == 2 and len(document["errors"]) == 2
    assert {error["file"] for error in document["errors"]} == {str(bad.recipe)}
    assert not (tmp_path / "dist").exists()


def test_every_included_recipe_is_valid(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipes = sorted((repository / "recipes").glob("*/*.yaml"))
    assert len(recipes) >= 2
    assert run(["validate", *map(str, recipes)]) == 0
    for path in recipes:
        jsonschema.validate(yaml.safe_load(path.read_text()), recipe_schema())


def test_the_recipe_in_the_readme_is_valid(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(repository / "recipes" / "digits", tmp_path / "digits")
    [text] = re.findall(r"```yaml\n(.*?)```", (repository / "README.md").read_text(), re.DOTALL)
    (tmp_path / "digits" / "readme.yaml").write_text(text)
    code, document = run_json(capsys, "validate", tmp_path / "digits" / "readme.yaml")
    assert code == 0
    assert document["recipes"][0]["targets"] == ["host", "rtx", "cuda@10.3", "jetson-xavier-nx@5.1.4", "tx2-fp16"]


def test_show(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, document = run_json(capsys, "show", repository / "recipes" / "digits" / "digits.yaml")
    assert code == 0 and document["schema"] == "trtrecipe/show/v1"
    assert document["recipe"]["calibration"]["seed"] == 0, "defaults are filled in"
    host, rtx = document["targets"]
    assert (host["precision"], host["fallback"], rtx["fallback"]) == ("int8", "fp32", "fp16")
    assert host["notes"] and not rtx["notes"]


def test_doctor(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    code, document = run_json(capsys, "doctor")
    checks = {check["check"]: check for check in document["checks"]}
    assert code == 0 and checks["onnxruntime"]["status"] == "ok"
    monkeypatch.setattr("trtrecipe.plan.tools.version", lambda tool: None)
    code, document = run_json(capsys, "doctor")
    checks = {check["check"]: check for check in document["checks"]}
    assert code == 1 and checks["onnxruntime"]["status"] == "bad" and checks["tensorflow"]["status"] == "absent"
    assert checks["tensorflow"]["hint"] == "run: pip install 'trtrecipe[tensorflow]'"
    monkeypatch.setenv("TRTRECIPE_STORE", "/dev/null/store")
    code, document = run_json(capsys, "doctor")
    assert next(check for check in document["checks"] if check["check"] == "store")["status"] == "bad"


def test_cache(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from trtrecipe.store.store import Store

    monkeypatch.setenv("TRTRECIPE_STORE", str(tmp_path / "store"))
    key = sha256_json({})
    with Store(tmp_path / "store") as store, store.work_folder(key) as folder:
        (folder / "file").write_bytes(b"12345")
        record = store.publish(key, {}, {"onnx": folder / "file"}, {})
        path = store.blobs.path(record.outputs["onnx"].sha256)
    code, info = run_json(capsys, "cache", "info")
    assert code == 0 and (info["blobs"], info["blob_bytes"], info["records"]) == (1, 5, 1)
    code, found = run_json(capsys, "cache", "verify")
    assert code == 0 and found["checked"] == 2 and found["damaged"] == []
    path.chmod(0o644)
    path.write_bytes(b"12346")
    code, found = run_json(capsys, "cache", "verify")
    assert code == 1 and {item["kind"] for item in found["damaged"]} == {"blob", "record"}
    assert run_json(capsys, "cache", "verify")[0] == 0


def test_a_reader_that_goes_away_is_no_traceback(repository: Path) -> None:
    command = [sys.executable, "-m", "trtrecipe", "schema"]
    with subprocess.Popen(command, cwd=repository, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()
