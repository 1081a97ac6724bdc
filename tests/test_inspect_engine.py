"""inspect of engines: by header, by the manifest beside them, by both."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.projects import classifier, make_project
from support.sshd import ORIN_NX, XAVIER_NX, Kind, lab
from test_fleet import write_inventory

from trtrecipe.cli.app import run
from trtrecipe.digest import sha256_file
from trtrecipe.targets.engines import LENGTH, Header, changed, header

BUILT_ON = {
    "model": "NVIDIA Jetson Orin NX", "memory": 15 << 30, "l4t": "36.4.3", "cuda": "12.6.68", "tensorrt": "10.3.0",
    "trtexec": "0" * 64,
}  # fmt: skip


def plan(*release: int, version: int = 0, magic: bytes = b"ftrt", length: int = 64) -> bytes:
    start = magic + struct.pack("<I", version) + bytes(8) + struct.pack("<Q", length) + bytes(release)
    return start.ljust(64, b"\0")


def manifest(engine: Path, **changes: Any) -> None:
    text = {
        "schema": "trtrecipe/manifest/v1",
        "recipe": "digits",
        "target": "orin",
        "profile": "jetson-orin-nx",
        "jetpack": "6.2",
        "device": BUILT_ON,
        "dialect": "trt-10.3",
        "precision": {"mode": "int8", "fallback": "fp16", "quantization": "explicit", "kept": []},
        "status": "complete",
        "artifacts": {"engine": {"file": engine.name, "sha256": sha256_file(engine), "size": engine.stat().st_size}},
        "gates": [{"gate": "cosine", "status": "met", "limit": 0.9, "better": ">=", "value": 0.99}],
        "notes": [],
        "tools": {"trtrecipe": "1"},
    } | changes
    (engine.parent / "manifest.json").write_text(json.dumps(text))


def shown(path: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert run(["inspect", str(path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["schema"], document["size"]) == ("trtrecipe/inspect/v1", path.stat().st_size)
    return document  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        (plan(10, 3, 0, 30), Header("tensorrt", "10.3.0.30", None)),
        (plan(11, 4, 0, 106), Header("tensorrt", "11.4.0.106", None)),
        (plan(1, 7, 1, 116, magic=b"vtrt"), Header("tensorrt-rtx", "1.7.1.116", 64)),
        (b"ONNX" + bytes(60), None),
        (b"", None),
    ],
)
def test_headers(start: bytes, expected: Header | None) -> None:
    assert header(start[:LENGTH]) == expected


@pytest.mark.parametrize(
    ("start", "why"),
    [
        (plan(8, 5, 2, 2), "before TensorRT 9.0"),
        (plan(10, 3, 0, 30, version=1), "its serialization version is 1"),
        (plan(10, 3, 0, 30)[:20], "it ends after 20 bytes"),
        (b"vtrt", "it ends after 4 bytes"),
    ],
)
def test_headers_that_do_not_tell(start: bytes, why: str) -> None:
    found = header(start[:LENGTH])
    assert found is not None
    assert found.release is None
    assert why in (found.why or "")


def test_what_changed_in_words() -> None:
    now = BUILT_ON | {"l4t": "36.5.0", "memory": 7 << 30, "trtexec": "f" * 64}
    assert list(changed(BUILT_ON, now)) == [
        "l4t 36.4.3 -> 36.5.0", "trtexec 000000000000 -> ffffffffffff", "memory 15 GiB -> 7 GiB"
    ]  # fmt: skip


def test_a_plan_without_a_manifest_is_placed_by_its_release(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "found.bin"
    path.write_bytes(plan(10, 3, 0, 30))
    document = shown(path, capsys)
    assert document["kind"] == "engine"
    assert document["header"] == {"builder": "tensorrt", "release": "10.3.0.30"}
    profiles = [each["profile"] for each in document["loads"]]
    assert "jetson-orin-nx@6.2" in profiles
    assert "jetson-orin-nx@6.0" not in profiles
    assert {each.get("loads") for each in document["loads"]} == {None}
    assert any("is not told by its header" in note for note in document["notes"])
    assert run(["inspect", str(path)]) == 0
    assert "built by TensorRT 10.3.0.30" in capsys.readouterr().out


def test_an_engine_of_tensorrt_8_is_known_by_its_manifest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.engine"
    path.write_bytes(b"\x01\x02whatever TensorRT 8.2 writes")
    assert run(["inspect", str(path)]) == 2
    capsys.readouterr()
    manifest(path, device=BUILT_ON | {"tensorrt": "8.2.1"})
    document = shown(path, capsys)
    assert "header" not in document
    assert document["engine"]["as_built"] is True
    assert document["engine"]["device"]["tensorrt"] == "8.2.1"
    assert run(["inspect", str(path)]) == 0
    said = capsys.readouterr().out
    for words in ("recipe digits, target orin", "precision int8, explicit, else fp16", "cosine >= 0.9: met"):
        assert words in said
    path.write_bytes(path.read_bytes() + b"!")
    document = shown(path, capsys)
    assert document["engine"]["as_built"] is False
    assert any("altered since" in note for note in document["notes"])


@pytest.mark.parametrize("text", ["{", '{"schema": "trtrecipe/manifest/v1"}', "[]", '{"schema": 1}'])
def test_a_damaged_manifest_is_no_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    path = tmp_path / "model.engine"
    path.write_bytes(plan(10, 3, 0, 30))
    (tmp_path / "manifest.json").write_text(text)
    assert "engine" not in shown(path, capsys)


def test_a_manifest_that_lacks_what_it_should_have(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.engine"
    path.write_bytes(plan(10, 3, 0, 30))
    manifest(path, precision="int8")
    assert run(["inspect", str(path)]) == 2
    assert "the manifest.json beside it is damaged" in capsys.readouterr().err


def test_an_engine_of_tensorrt_for_rtx(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rtx = pytest.importorskip("tensorrt_rtx")
    from trtrecipe.engines import tensorrt_build

    path = tmp_path / "model.engine"
    dims = {"batch": {"min": 1, "opt": 4, "max": 8}}
    tensorrt_build.build_for_rtx(classifier(np.random.default_rng(5)), path, dims, None)
    document = shown(path, capsys)
    assert document["header"] == {"builder": "tensorrt-rtx", "release": rtx.__version__, "whole": True}
    path.write_bytes(path.read_bytes()[:-1])
    document = shown(path, capsys)
    assert document["header"]["whole"] is False
    assert any("it is damaged" in note for note in document["notes"])


def test_what_onnx_runtime_runs_is_an_engine_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRTRECIPE_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    project = make_project(tmp_path / "project", {"precision": {"mode": "fp32"}, "calibration": None})
    assert run(["build", str(project.recipe)]) == 0
    document = shown(tmp_path / "dist/small/host/model.engine", capsys)
    assert document["kind"] == "onnx"
    assert (document["engine"]["target"], document["engine"]["as_built"]) == ("host", True)
    assert "engine" not in shown(tmp_path / "dist/small/host/model.onnx", capsys)
    assert run(["inspect", "dist/small/host/model.engine"]) == 0
    assert "for ONNX Runtime" in capsys.readouterr().out


@pytest.mark.parametrize(("kind", "start"), [(XAVIER_NX, b"unknown"), (ORIN_NX, plan(10, 3, 0, 30))])
def test_which_devices_load_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, kind: Kind, start: bytes
) -> None:
    monkeypatch.setenv("TRTRECIPE_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.engine"
    path.write_bytes(start)
    with lab(tmp_path / "lab") as bench:
        device, other = bench.add("one", kind), bench.add("other", kind)
        other.show(l4t="99.1.0")
        write_inventory(tmp_path, [device, other])
        for name in ("one", "other"):
            assert run(["devices", "probe", name, "--json"]) == 0
            probed = json.loads(capsys.readouterr().out)
            if name == "one":
                manifest(path, profile=kind.profile, device=probed["fingerprint"])
    document = shown(path, capsys)
    assert {each["device"]: (each["loads"], each["why"]) for each in document["loads"]} == {
        "one": (True, []),
        "other": (False, [f"l4t {kind.l4t} -> 99.1.0"]),
    }
    assert run(["inspect", str(path)]) == 0
    assert f"l4t {kind.l4t} -> 99.1.0" in capsys.readouterr().out
