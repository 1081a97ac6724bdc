"""`devices list` and `devices show`: the documents that scripts rely on, and the text that people read."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any

import pytest
from typer.testing import CliRunner

from trtrecipe.cli.devices import app
from trtrecipe.targets.catalog import TargetError, load_catalog

PROFILES = [profile.id for profile in load_catalog().profiles]


def _run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def _json(*arguments: str) -> Any:
    return json.loads(_run(*arguments, "--json"))


def test_list_json() -> None:
    document = _json("list")
    assert list(document) == ["schema", "devices"]
    assert document["schema"] == "trtrecipe/devices/v1"
    assert [device["profile"] for device in document["devices"]] == PROFILES
    by_id = {device["profile"]: device for device in document["devices"]}
    assert by_id["jetson-orin-nx"] == {
        "profile": "jetson-orin-nx",
        "name": "Jetson Orin NX",
        "family": "jetson",
        "compute_capabilities": ["8.7"],
        "precisions": ["fp32", "fp16", "int8"],
        "dla_cores": {"jetson-orin-nx-8gb": 1, "jetson-orin-nx-16gb": 2},
        "releases": [
            "5.1",
            "5.1.1",
            "5.1.2",
            "5.1.3",
            "5.1.4",
            "5.1.5",
            "5.1.6",
            "6.0-dp",
            "6.0",
            "6.1",
            "6.2",
            "6.2.1",
            "6.2.2",
            "7.2",
        ],
    }
    assert by_id["host"]["releases"] == []


def test_list_for_people_has_one_line_per_profile() -> None:
    lines = _run("list").splitlines()
    assert [line.split()[0] for line in lines[1:]] == PROFILES
    assert "4.6 to 5.1.6" in lines[2 + PROFILES.index("jetson-xavier-nx")]


def test_show_json_of_one_release() -> None:
    document = _json("show", "jetson-orin-nx@6.2")
    assert document["schema"] == "trtrecipe/device/v1"
    (release,) = document["releases"]
    assert release["jetpack"] == "6.2"
    assert release["l4t"] == [{"version": "36.4.3", "tensorrt": "10.3.0"}]
    assert release["refused"] is None
    assert release["dla_cores"] == {"jetson-orin-nx-8gb": 1, "jetson-orin-nx-16gb": 2}
    accepts = release["accepts"]
    assert accepts | {"notes": [], "sources": []} == {
        "dialect": "trt-10.3",
        "opset_max": 20,
        "operators_from": "10.1",
        "assumed": True,
        "strongly_typed": False,
        "precisions": ["fp32", "fp16", "int8"],
        "workspace": True,
        "notes": [],
        "sources": [],
    }
    assert accepts["sources"]
    assert release["sources"]
    assert document["sources"]


def test_show_json_counts_only_the_dla_cores_that_the_release_reaches() -> None:
    (before,) = _json("show", "jetson-orin-nx@5.1")["releases"]
    (after,) = _json("show", "jetson-orin-nx@7.2")["releases"]
    assert before["dla_cores"] == {"jetson-orin-nx-16gb": 2}  # the 8 GB module came with 5.1.1
    assert after["dla_cores"] == {"jetson-orin-nx-8gb": 0, "jetson-orin-nx-16gb": 0}


@pytest.mark.parametrize("profile", PROFILES)
def test_show_json_has_every_release_or_what_is_accepted(profile: str) -> None:
    document = _json("show", profile)
    catalog = load_catalog()
    found, _ = catalog.look_up(profile)
    if not found.releases:
        assert "releases" not in document
        assert document["accepts"]["dialect"] in ("ort", "rtx", "tflite")
        return
    assert [release["jetpack"] for release in document["releases"]] == [r.jetpack for r in found.releases]
    assert all((release["accepts"] is None) == bool(release["refused"]) for release in document["releases"])
    for release in document["releases"]:
        if release["accepts"]:
            assert release["accepts"]["precisions"] == document["precisions"]


def test_show_for_people_says_what_a_release_accepts() -> None:
    text = _run("show", "jetson-tx2@4.6.4")
    row = next(line for line in text.splitlines() if line.startswith("4.6.4"))
    assert re.split(r"\s{2,}", row.strip()) == ["4.6.4", "8.2.1", "trt-8.2", "13", "fp32, fp16", "weak", "8.2", "0"]
    assert "int8: Compute capability 6.2 has no INT8" in text
    assert "github.com/onnx/onnx-tensorrt docs/operators.md" in text


def test_show_for_people_marks_what_is_assumed_unknown_and_refused() -> None:
    text = _run("show", "jetson-thor")
    rows = {line.split()[0]: line for line in text.splitlines() if re.match(r"7\.", line)}
    assert "10.13.2 (38.2.0), 10.13.3 (38.2.1), unknown (38.2.2)" in rows["7.0"]
    assert "10.1, assumed" in rows["7.0"]
    assert "refused" in rows["7.2.1"]
    assert "JetPack 7.2.1 is refused: which TensorRT JetPack 7.2.1 ships is not known" in text
    assert "`trtrecipe devices show jetson-thor@7.2` adds the sources" in text


def test_show_for_people_without_releases() -> None:
    text = _run("show", "host")
    assert "ort, opset up to 21" in text
    assert "no table, the builder is asked" in text


def test_show_of_a_refused_release_says_why() -> None:
    (release,) = _json("show", "jetson-nano@4.4")["releases"]
    assert release["accepts"] is None
    assert release["refused"].startswith("TensorRT 7.1 takes opset 11 at most")


@pytest.mark.parametrize("spec", ["jetson-nx", "toaster", "jetson-nano@9.9", "host@1"])
def test_show_of_what_does_not_exist_is_an_error_for_the_one_door(spec: str) -> None:
    result = CliRunner().invoke(app, ["show", spec])
    assert isinstance(result.exception, TargetError)
    assert result.stdout == ""


def test_json_needs_no_table_library() -> None:
    code = (
        "import sys; from trtrecipe.cli.devices import list_devices; list_devices(as_json=True);"
        "heavy = {'rich', 'pydantic', 'numpy', 'onnx'} & set(sys.modules); assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert json.loads(done.stdout)["schema"] == "trtrecipe/devices/v1"


def test_a_pipe_gets_whole_lines() -> None:
    code = "from trtrecipe.cli.devices import app; app(['show', 'jetson-thor@7.0'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    row = next(line for line in done.stdout.splitlines() if line.startswith("7.0 "))
    assert row.rstrip().endswith("10.1, assumed  0")
    assert "\x1b" not in done.stdout
