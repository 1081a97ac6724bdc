"""Bundles: packed here, done on a device that nobody reaches, taken in as if it had been reached."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from support import bundles, jetpack_python
from support.bundles import Carried
from support.projects import Project, make_project
from support.pythons import interpreter
from support.sshd import TX2, XAVIER_NX, lab

from trtrecipe.cli.app import run
from trtrecipe.device import results, unpack
from trtrecipe.device.results import Results
from trtrecipe.digest import sha256_bytes, sha256_json
from trtrecipe.errors import InputError, StepError

TARGET = "jetson-tx2@4.6.4"
JUDGED = {"data": {"npz": "data.npz", "arrays": {"image": "test", "label": "label"}}, "metric": "top1", "samples": 8}
RECIPE: dict[str, Any] = {
    "targets": [TARGET],
    "precision": {"mode": "fp16"},
    "calibration": None,
    "evaluation": JUDGED,
}
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `store`, in which all of TARGET is that needs no device, and its `bundle.tar.gz`."""
    folder = tmp_path_factory.mktemp("packed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRTRECIPE_STORE", str(folder / "store"))
        recipe = make_project(folder / "project", RECIPE).recipe
        assert run(["bundle", str(recipe), "--output", str(folder / "bundle.tar.gz")]) == 0
    return folder


@pytest.fixture
def project(tmp_path: Path, packed: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """The project of `packed`, in a store of its own."""
    shutil.copytree(packed / "store", tmp_path / "store")
    monkeypatch.setenv("TRTRECIPE_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    return make_project(tmp_path / "project", RECIPE)


@pytest.fixture
def carried(tmp_path: Path, packed: Path) -> Carried:
    """The bundle of `packed` on a device that it is for."""
    device = bundles.device(tmp_path / "device", TX2)
    device.trtexec_fault(repeats=True)
    return bundles.carry(packed / "bundle.tar.gz", tmp_path / "there", device)


@pytest.fixture
def compiled(carried: Carried) -> Carried:
    """`carried`, of which only the first job is left."""
    path = carried.folder / "bundle.json"
    content = json.loads(path.read_bytes())
    path.write_bytes(sealed({**content, "jobs": content["jobs"][:1]}))
    return carried


@pytest.fixture(scope="module")
def done(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder `result` of a bundle that was done."""
    folder = tmp_path_factory.mktemp("done")
    there = bundles.carry(packed / "bundle.tar.gz", folder / "there", bundles.device(folder / "device", TX2))
    there.run()
    return there.folder / "result"


def command(capsys: Capture, *arguments: object, expected: int = 0) -> dict[str, Any]:
    """The JSON document of a command, and under "" what it said beside that."""
    capsys.readouterr()
    code = run([*map(str, arguments), "--json"])
    out, err = capsys.readouterr()
    assert code == expected, out + err
    return {**json.loads(out), "": err}


def steps(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {step["kind"]: step for step in document["targets"][0]["steps"]}


def unreached(project: Project, name: str = "tx2") -> None:
    """An inventory with a device that SSH does not reach."""
    entry = {"schema": "trtrecipe/inventory/v1", "devices": {name: {"profile": "jetson-tx2"}}}
    (project.folder / "devices.yaml").write_text(yaml.safe_dump(entry))


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("version", ["3.6", "3.8", "here"])
def test_a_bundle_is_done_by_the_python_of_a_jetpack(version: str, compiled: Carried) -> None:
    carried = compiled
    said = carried.run(python=sys.executable if version == "here" else interpreter(version))
    assert said.startswith(f"[1/1] compile@{TARGET}: ")
    assert said.splitlines()[-1] == f"bring back {carried.archive}"
    [job] = carried.list()["jobs"]
    assert (job["id"], job["result"]["ok"]) == (f"compile@{TARGET}", True)
    folder, _ = results.read(carried.archive, carried.folder / "unpacked")
    assert files(folder) == files(carried.folder / "result")
    text = (carried.folder / "result/result.json").read_text()
    for private in (str(carried.folder), os.uname().nodename):
        assert private not in text


def test_what_is_imported_is_what_ssh_would_have_brought(
    project: Project, carried: Carried, packed: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    unreached(project)
    waits = command(capsys, "build", project.recipe, expected=5)
    assert "tx2 is not reached over SSH: `trtrecipe bundle`" in steps(waits)["compile"]["reason"]
    variables = jetpack_python.install(tmp_path / "python", "8.2")
    carried.environment = variables
    carried.run()
    imported = command(capsys, "import-result", project.recipe, carried.archive)
    assert imported["schema"] == "trtrecipe/build/v1"
    assert imported["targets"][0]["status"] == "built"
    mine = {kind: (step["key"], step["outputs"]) for kind, step in steps(imported).items()}
    # From now on a plain build serves it, whoever asks.
    again = command(capsys, "build", project.recipe)
    assert {step["status"] for step in steps(again).values()} == {"hit"}
    assert again["targets"][0]["metrics"] == imported["targets"][0]["metrics"]
    placed = files(tmp_path / "dist")
    monkeypatch.chdir(project.folder)
    assert command(capsys, "devices", "show", "tx2")["fingerprint"]["tensorrt"] == "8.2.1"
    monkeypatch.chdir(tmp_path)

    shutil.rmtree(tmp_path / "store")
    shutil.copytree(packed / "store", tmp_path / "store")
    with lab(tmp_path / "lab") as bench:
        device = bench.add("tx2", TX2, variables)
        device.trtexec_fault(repeats=True)
        entry = {"schema": "trtrecipe/inventory/v1", "devices": {"tx2": {"profile": "jetson-tx2", "ssh": device.host}}}
        (project.folder / "devices.yaml").write_text(yaml.safe_dump(entry))
        reached = command(capsys, "build", project.recipe, "--output", "over-ssh")
    assert {kind: (step["key"], step["outputs"]) for kind, step in steps(reached).items()} == mine
    assert files(tmp_path / "over-ssh").keys() == placed.keys()
    theirs = files(tmp_path / "over-ssh")
    manifests = [json.loads(each.pop(f"small/{TARGET}/manifest.json")) for each in (placed, theirs)]
    assert theirs == placed
    for manifest in manifests:
        for figure in ("latency_ms", "throughput", "conditions"):  # measured, and on one machine not twice the same
            manifest["metrics"].pop(figure, None)
    assert manifests[0] == manifests[1]


def test_without_an_inventory_the_device_is_remembered(project: Project, done: Path, capsys: Capture) -> None:
    waits = command(capsys, "build", project.recipe, expected=5)
    assert "`trtrecipe bundle`" in steps(waits)["compile"]["reason"]
    command(capsys, "import-result", project.recipe, done)
    again = command(capsys, "build", project.recipe)
    assert {step["status"] for step in steps(again).values()} == {"hit"}
    # What is not there yet waits again, for a device that is known by now.
    project.change_weight()
    waits = command(capsys, "build", project.recipe, expected=5)
    assert "jetson-tx2:8.2 is not reached over SSH" in steps(waits)["compile"]["reason"]
    assert "last seen" in steps(waits)["compile"]["reason"]


def test_where_jetpack_has_its_python_module_no_other_way_is_gone(
    project: Project, carried: Carried, tmp_path: Path, capsys: Capture
) -> None:
    carried.environment = jetpack_python.install(tmp_path / "python", "8.2")
    said = carried.run()
    assert f"verify@{TARGET}:2: not needed" in said
    assert "failed" not in said
    document = command(capsys, "import-result", project.recipe, carried.archive)
    assert document["targets"][0]["metrics"]["evaluated_by"] == "tensorrt"
    assert document["targets"][0]["notes"] == []


def test_targets_of_one_device_share_a_bundle(
    project: Project, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = [TARGET, {"profile": "jetson-tx2@4.6.4", "name": "exact", "precision": {"mode": "fp32"}}]
    project.change_recipe(lambda recipe: recipe.update(targets=both))
    made = command(capsys, "bundle", project.recipe, "-o", "both.tar.gz")
    assert made["schema"] == "trtrecipe/bundled/v1"
    assert made["targets"] == [TARGET, "exact"]
    assert [job for job in made["jobs"] if job.startswith("compile")] == [f"compile@{TARGET}", "compile@exact"]
    there = bundles.carry(tmp_path / "both.tar.gz", tmp_path / "there", bundles.device(tmp_path / "device", TX2))
    there.environment = jetpack_python.install(tmp_path / "python", "8.2")
    there.run()
    # Of two such devices of the inventory, the one that it was.
    entries = {name: {"profile": "jetson-tx2"} for name in ("one", "two")}
    text = yaml.safe_dump({"schema": "trtrecipe/inventory/v1", "devices": entries})
    (project.folder / "devices.yaml").write_text(text)
    document = command(capsys, "import-result", project.recipe, there.archive, "--device", "two")
    assert [target["status"] for target in document["targets"]] == ["built", "built"]
    assert steps(command(capsys, "plan", project.recipe, "--device", "one"))["compile"]["status"] == "pending"
    # What it shows stands for a release that the recipe does not name.
    project.change_recipe(lambda recipe: recipe.update(targets=["jetson-tx2"]))
    plan = command(capsys, "plan", project.recipe, "--device", "two")
    assert {step["status"] for step in steps(plan).values()} == {"hit"}
    said = command(capsys, "import-result", project.recipe, there.archive, "--device", "three", expected=2)
    assert "three" in said["errors"][0]["message"]


def test_equal_bundles_are_equal_bytes(packed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "a folder of another name"
    recipe = make_project(folder, RECIPE).recipe
    (folder / "devices.yaml").write_text(
        "schema: trtrecipe/inventory/v1\ndevices: {a: {profile: jetson-tx2, ssh: nowhere}}\n"
    )
    environment = {**os.environ, "TRTRECIPE_STORE": str(folder / "store"), "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"}
    arguments = ["bundle", str(recipe), "--output", "other.tar.gz", "--jobs", "1"]
    program = "import sys; from trtrecipe.cli.app import run; sys.exit(run(sys.argv[1:]))"
    subprocess.run([sys.executable, "-c", program, *arguments], env=environment, cwd=folder, check=True, stdout=-3)
    first, second = (packed / "bundle.tar.gz").read_bytes(), (folder / "other.tar.gz").read_bytes()
    assert first == second
    data = gzip.decompress(first)
    for private in (str(packed), os.uname().nodename, "pytest"):
        assert private.encode() not in data


def test_what_is_packed(packed: Path, repository: Path) -> None:
    with tarfile.open(packed / "bundle.tar.gz") as archive:
        members = archive.getmembers()
        opened = {member.name.partition("/")[2]: archive.extractfile(member) for member in members}
        texts = {name: file.read() for name, file in opened.items() if file is not None}
    assert len(texts) == len(members), "something in it is no plain file"
    assert [member.name for member in members][:3] == [
        f"small-jetson-tx2-4.6.4/{name}" for name in ("README.txt", "agent.py", "build.py")
    ]
    assert {(member.uid, member.gid, member.mtime, member.mode, member.uname) for member in members} == {
        (0, 0, 0, 0o644, "")
    }
    assert texts["agent.py"] == (repository / "trtrecipe/device/agent.py").read_bytes()
    assert texts["build.py"] == (repository / "trtrecipe/device/bundled.py").read_bytes()
    bundle = json.loads(texts["bundle.json"])
    assert (bundle["profile"], bundle["tensorrt"], bundle["targets"]) == ("jetson-tx2", "8.2", [TARGET])
    assert bundle["jobs"][0]["id"] == f"compile@{TARGET}"
    assert {"compile", "verify", "benchmark"} == {job["id"].partition("@")[0] for job in bundle["jobs"]}
    named = {digest for job in bundle["jobs"] for digest in job["request"]["files"].values() if isinstance(digest, str)}
    assert named == set(bundle["files"]) == {name[6:] for name in texts if name.startswith("files/")}
    assert f"compile@{TARGET}" in texts["README.txt"].decode()


def test_what_runs_there_is_python_3_6(repository: Path) -> None:
    vermin = [sys.executable, "-c", "from vermin import main; main()"]
    path = repository / "trtrecipe/device/bundled.py"
    command = [*vermin, "-t=3.6-", "--violations", "--no-tips", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_wrong_device_is_refused_and_nothing_is_made(tmp_path: Path, packed: Path) -> None:
    for name, device, message in (
        ("xavier", bundles.device(tmp_path / "nx", XAVIER_NX), "this device is NVIDIA Jetson Xavier NX"),
        (
            "old",
            bundles.device(tmp_path / "old", TX2),
            "this device has TensorRT 8.0.1; the bundle is for TensorRT 8.2",
        ),
    ):
        if name == "old":
            device.show(tensorrt="8.0.1")
        carried = bundles.carry(packed / "bundle.tar.gz", tmp_path / "there" / name, device)
        before = files(carried.folder)
        said = carried.run(expected=2)
        assert message in said
        assert "is for jetson-tx2 (p3310-1000" in said or name == "old"
        assert files(carried.folder) == before
        assert {path.name for path in carried.folder.iterdir()} == {
            "README.txt", "agent.py", "build.py", "bundle.json", "files"
        }  # fmt: skip
        assert device.calls() == []


def test_a_bundle_that_arrived_damaged_is_refused(carried: Carried) -> None:
    content = [path for path in carried.folder.rglob("*") if path.is_file() and path.name != "README.txt"]
    for path in content:
        whole = path.read_bytes()
        for broken in (whole[: len(whole) // 2], bytes([whole[0] ^ 1]) + whole[1:], None):
            if path.name == "build.py" and broken != whole[: len(whole) // 2] and broken is not None:
                broken = whole + b"\n# another\n"
            if path.name == "build.py" and broken is None:
                continue
            if broken is None:
                path.unlink()
            else:
                path.write_bytes(broken)
            child = carried.start()
            _, err = child.communicate(timeout=60)
            assert child.returncode != 0, path
            if path.name != "build.py":
                assert child.returncode == 2, err
                assert "bring the bundle over again" in err
            path.write_bytes(whole)
    assert carried.device.calls() == []


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def builds(carried: Carried, event: str = "start") -> list[dict[str, Any]]:
    return [call for call in carried.device.calls(event) if any("--onnx" in each for each in call["argv"])]


def test_interrupted_it_gives_the_device_back_and_goes_on_later(compiled: Carried) -> None:
    carried = compiled
    carried.device.trtexec_fault(seconds=20)
    child = carried.start()
    wait_for(lambda: builds(carried))
    os.killpg(child.pid, signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert child.returncode == 130, out + err
    assert "run the same command again" in err
    pid = builds(carried)[0]["pid"]
    wait_for(lambda: not Path(f"/proc/{pid}/cmdline").exists() or not Path(f"/proc/{pid}/cmdline").read_bytes())
    assert not carried.archive.exists()
    carried.device.trtexec_fault()
    carried.run()
    assert len(builds(carried, "end")) == 1
    # What is finished is not done again, also where everything but the work folder is gone.
    shutil.rmtree(carried.folder / "result")
    before = len(carried.device.calls())
    carried.run()
    assert len(carried.device.calls()) == before
    assert all(job["result"]["collected"] for job in carried.list()["jobs"] if job["result"]["ok"])


def test_killed_it_leaves_a_build_that_the_next_run_collects(compiled: Carried) -> None:
    carried = compiled
    carried.device.trtexec_fault(seconds=1)
    child = carried.start()
    wait_for(lambda: builds(carried))
    child.kill()
    child.wait()
    carried.run()
    assert len(builds(carried)) == len(builds(carried, "end")) == 1


def test_a_job_that_fails_is_told_here_and_tried_again_there(
    project: Project, carried: Carried, capsys: Capture
) -> None:
    carried.device.trtexec_fault(fail="[TRT] no such luck")
    said = carried.run(expected=1)
    assert "no such luck" in said
    assert "it needs compile@" in said
    failed = command(capsys, "import-result", project.recipe, carried.archive, expected=1)
    assert "no such luck" in steps(failed)["compile"]["error"]
    assert steps(failed)["verify"]["status"] == "blocked"
    carried.device.trtexec_fault()
    carried.run()
    assert command(capsys, "import-result", project.recipe, carried.archive)["targets"][0]["status"] == "built"


def test_carried_on_to_another_device_it_begins_anew(compiled: Carried, tmp_path: Path) -> None:
    carried = compiled
    carried.run()
    first = carried.list()
    other = bundles.device(tmp_path / "other", TX2)
    other.show(l4t="32.7.1", jetpack="4.6.1")
    Carried(carried.folder, other).run()
    assert builds(Carried(carried.folder, other))
    second = carried.list()
    assert first["probe"]["l4t"] != second["probe"]["l4t"]
    assert first["jobs"][0]["request"]["key"] != second["jobs"][0]["request"]["key"]


def test_where_the_bundle_cannot_be_written_to_another_folder_takes_it_all(compiled: Carried, tmp_path: Path) -> None:
    carried = compiled
    before = files(carried.folder)
    carried.run("--output", str(tmp_path / "elsewhere"), "--trtexec", str(carried.device.trtexec), "--seconds", "60")
    assert files(carried.folder) == before
    assert {path.name for path in (tmp_path / "elsewhere").iterdir()} == {"work", "result", "result.tar.gz"}
    listed = json.loads((tmp_path / "elsewhere/result/result.json").read_bytes())
    assert {job["request"]["seconds"] for job in listed["jobs"]} == {60.0}


@pytest.mark.parametrize("change", ["weight", "workspace"])
def test_a_recipe_that_changed_since(change: str, project: Project, done: Path, capsys: Capture) -> None:
    if change == "weight":
        project.change_weight()
    else:
        project.change_recipe(lambda recipe: recipe.update(build={"workspace": "64MiB"}))
    document = command(capsys, "import-result", project.recipe, done, expected=1)
    error = steps(document)["compile"]["error"]
    assert "this result is of another build: its " in error
    if change == "weight":
        assert "since the bundle was made: 'onnx' from lower" in error
    else:
        assert "since the bundle was made: workspace: " in error
    assert not Path("dist").exists()
    assert steps(command(capsys, "build", project.recipe, expected=5))["compile"]["status"] == "pending"


def test_a_result_of_another_recipe_or_target(
    project: Project, done: Path, tampered: Callable[[Callable[[Any], object]], Path], capsys: Capture
) -> None:
    def errors(expected: str, result: Path = done) -> None:
        document = command(capsys, "import-result", project.recipe, result, expected=2)
        assert expected in document["errors"][0]["message"]

    project.change_recipe(lambda recipe: recipe.update(name="other"))
    errors("is of the recipe small, not of other")
    project.change_recipe(lambda recipe: recipe.update(name="small", targets=["jetson-tx2@4.6.1"]))
    errors(f"no target has the id {TARGET}")
    other = "jetson-xavier-nx@4.6.4"
    project.change_recipe(lambda recipe: recipe.update(targets=[TARGET, other]))
    wrong = tampered(lambda content: content["bundle"].update(targets=[other]))
    errors("is of a jetson-tx2 with TensorRT 8.2.1; its target is for a jetson-xavier-nx with TensorRT 8.2", wrong)
    upgraded = tampered(lambda content: content["probe"].update(tensorrt="8.5.2"))
    errors("is of a jetson-tx2 with TensorRT 8.5.2; its target is for a jetson-tx2 with TensorRT 8.2", upgraded)
    blind = tampered(lambda content: content["probe"]["memory"].update(total=0))
    errors("does not tell its memory", blind)


def test_what_cannot_be_bundled(project: Project, capsys: Capture) -> None:
    for targets, message in (
        (["host"], "target host needs no device"),
        (["jetson-tx2@4.6.4", "jetson-xavier-nx@5.1.4"], "a bundle is for one device"),
    ):
        project.change_recipe(partial(dict.update, targets=targets))
        document = command(capsys, "bundle", project.recipe, expected=2)
        assert message in document["errors"][0]["message"]
    document = command(capsys, "bundle", project.recipe, "--target", "jetson-tx2@4.6.4", "-o", ".", expected=2)
    assert "is a folder" in document["errors"][0]["message"]


def test_devices_without_ssh_are_listed(project: Project, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    unreached(project)
    monkeypatch.chdir(project.folder)
    assert command(capsys, "devices", "show", "tx2").get("ssh") is None
    assert "has no ssh destination" in command(capsys, "devices", "probe", "tx2", expected=2)["errors"][0]["message"]
    capsys.readouterr()
    assert run(["devices", "list"]) == 0
    assert "by bundle" in capsys.readouterr().out


# Results are from elsewhere


def sealed(content: dict[str, Any]) -> bytes:
    """result.json with the digest that it should have."""
    content = {name: value for name, value in content.items() if name != "sha256"}
    return json.dumps({**content, "sha256": sha256_json(content)}).encode()


def archive(path: Path, members: list[tuple[tarfile.TarInfo, bytes]], mode: Literal["w", "w:gz"] = "w:gz") -> Path:
    with tarfile.open(path, mode) as out:
        for member, data in members:
            member.size = len(data) if member.isreg() else 0
            out.addfile(member, io.BytesIO(data))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, link
    return made


def whole(done: Path) -> list[tuple[tarfile.TarInfo, bytes]]:
    return [(member(f"result/{name}"), data) for name, data in files(done).items()]


def refused(path: Path, into: Path) -> str:
    with pytest.raises(InputError) as caught:
        results.read(path, into)
    return caught.value.problems[0].message


@pytest.mark.parametrize("form", ["w:gz", "w"])
def test_archives_made_by_other_tools_are_read(form: str, done: Path, tmp_path: Path) -> None:
    members = whole(done)
    random.Random(3).shuffle(members)
    members = [(member("./result/", tarfile.DIRTYPE), b""), (member("./result/._result.json"), b"mac"), *members]
    for each, _ in members[2:]:
        each.name, each.mtime, each.uname = "./" + each.name, 1.5, "somebody"
        each.pax_headers = {"comment": "x" * 100}
    folder, content = results.read(archive(tmp_path / "r.tar", members, form), tmp_path / "into")
    assert files(folder) == files(done)
    assert results.read(done, tmp_path / "unused") == (done, content)


def test_archives_that_are_refused(done: Path, tmp_path: Path) -> None:
    listed = next(entry for entry in whole(done) if entry[0].name.endswith("result.json"))
    digest = "ab" * 32
    outside = tmp_path / "outside"
    cases = {
        "absolute": [(member(f"{outside}/result.json"), b"x")],
        "parent": [(member("../result.json"), b"x")],
        "deep": [(member(f"result/../../files/{digest}"), b"x")],
        "other name": [(member("result/run.sh"), b"x")],
        "symlink": [(member(f"result/files/{digest}", tarfile.SYMTYPE, str(outside)), b"")],
        "hard link": [(member(f"result/files/{digest}", tarfile.LNKTYPE, "/etc/passwd"), b"")],
        "device": [(member(f"result/files/{digest}", tarfile.CHRTYPE), b"")],
        "fifo": [(member("result/result.json", tarfile.FIFOTYPE), b"")],
        "digest": [(member(f"result/files/{digest}"), b"x")],
        "twice": [listed, listed],
        "empty": [],
        "long name": [(member("result/" + "x" * 300), b"x")],
    }
    for number, (name, members) in enumerate(cases.items()):
        message = refused(archive(tmp_path / f"{number}.tar.gz", members), tmp_path / f"into-{number}")
        assert f"{number}.tar.gz" in message, name
    assert not outside.exists()
    assert "is damaged" in refused(archive(tmp_path / "d.tar.gz", cases["digest"]), tmp_path / "into-d")
    (tmp_path / "text").write_text("no archive at all" * 100)
    assert "is no result of a bundle" in refused(tmp_path / "text", tmp_path / "into-t")
    data = archive(tmp_path / "whole.tar.gz", whole(done)).read_bytes()
    for cut in (0, 1, 10, len(data) // 2, len(data) * 9 // 10):
        (tmp_path / "cut.tar.gz").write_bytes(data[:cut])
        assert "cut.tar.gz" in refused(tmp_path / "cut.tar.gz", tmp_path / f"into-cut-{cut}")
    assert "cannot be read" in refused(tmp_path / "nowhere.tar.gz", tmp_path / "into-n")


def test_an_archive_that_swells_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.tar.gz"
    head = member("result/files/" + "00" * 32)
    head.size = 200 << 20
    with gzip.open(path, "wb", 9) as out:
        out.write(head.tobuf(tarfile.USTAR_FORMAT))
        for _ in range(200):
            out.write(bytes(1 << 20))
    assert path.stat().st_size < 1 << 20
    assert "unpacks to more" in refused(path, tmp_path / "into")
    many = [(member("._x"), b"") for _ in range(unpack.MOST_MEMBERS + 1)]
    assert "unpacks to more" in refused(archive(tmp_path / "many.tar", many, "w"), tmp_path / "into-2")


NAMES = st.one_of(
    st.lists(
        st.sampled_from(["..", ".", "", "result", "files", "result.json", "ab" * 32, "/", "~", "x", "\\", "a\nb", "é"]),
        max_size=6,
    ).map("/".join),
    st.text(max_size=120),
)
KINDS = st.sampled_from([tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, b"7"])


@given(st.lists(st.tuples(NAMES, KINDS, st.binary(max_size=20)), max_size=5), st.sampled_from(["w", "w:gz"]))
def test_no_member_is_written_anywhere_else(
    tmp_path_factory: pytest.TempPathFactory, entries: list[tuple[str, bytes, bytes]], form: str
) -> None:
    folder = tmp_path_factory.mktemp("any")
    members = [(member(name, kind, "../../escaped"), data) for name, kind, data in entries]
    with pytest.raises(InputError):  # the list is never what it should be
        results.read(archive(folder / "r.tar", members, form), folder / "in" / "to")
    raise_nothing = [path for path in folder.rglob("*") if path.is_symlink()]
    assert raise_nothing == []
    into = folder / "in/to"
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - {"r.tar"}
    assert all(path == "in/to/result.json" or path.startswith("in/to/files/") for path in found)
    for path in into.glob("files/*"):
        assert len(path.name) == 64


@given(st.binary(max_size=2000))
def test_any_bytes_are_refused_in_words(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.mktemp("bytes")
    (folder / "r").write_bytes(data)
    with pytest.raises(InputError):
        results.read(folder / "r", folder / "into")


@pytest.fixture
def tampered(done: Path, tmp_path: Path) -> Iterator[Callable[[Callable[[Any], object]], Path]]:
    """A copy of `done` whose list was changed and sealed again."""
    count = iter(range(100))

    def change(how: Callable[[Any], object]) -> Path:
        folder = tmp_path / f"tampered-{next(count)}"
        shutil.copytree(done, folder)
        content = json.loads((folder / "result.json").read_bytes())
        how(content)
        (folder / "result.json").write_bytes(sealed(content))
        return folder

    yield change


def test_lists_that_are_not_as_they_were_written(
    tampered: Callable[[Callable[[Any], object]], Path], done: Path, tmp_path: Path
) -> None:
    def first(content: Any) -> Any:
        return content["jobs"][0]

    for how, words in (
        (lambda c: c.update(schema="trtrecipe/result/v2"), "trtrecipe/result/v1 is what this release reads"),
        (lambda c: c.pop("bundle"), "is not as build.py writes it: bundle"),
        (lambda c: c["bundle"].update(targets="tx2"), "bundle.targets"),
        (lambda c: c["probe"].update(memory=None), "probe.memory"),
        (lambda c: c["probe"]["trtexec"].pop("sha256"), "probe.trtexec.sha256"),
        (lambda c: c.update(jobs={}), "jobs"),
        (lambda c: first(c)["result"].update(ok=1), "jobs.0.result.ok"),
        (lambda c: first(c)["result"].update(attempts=[{"workspace": "much"}]), "jobs.0.result.attempts.0.workspace"),
        (lambda c: first(c)["result"].pop("seconds"), "jobs.0.result.seconds"),
        (lambda c: first(c)["result"].update(attempts=[]), "jobs.0.result.attempts"),
        (lambda c: first(c)["result"].update(ok=False, reason="memory", attempts=7), "jobs.0.result.attempts"),
        (lambda c: first(c)["result"]["outputs"].clear(), "jobs.0.result.outputs"),
        (lambda c: c["probe"].update(power_mode={"id": "x"}), "probe.power_mode"),
        (lambda c: c["jobs"][-2]["result"].update(conditions={"before": 1}), "result.conditions"),
        (lambda c: c["probe"].update(model="a\x1b[2J"), "probe.model"),
        (lambda c: first(c)["request"].update(files=[]), "jobs.0.request.files"),
        (lambda c: c["files"].update({"../x": 3}), "its list names the file"),
        (lambda c: c["files"].update({"ab" * 32: 3}), "is missing"),
        (lambda c: c["files"].clear(), "jobs.0.result.outputs"),
        (lambda c: c["files"].update(dict.fromkeys(c["files"], 7)), "is damaged"),
    ):
        assert words in refused(tampered(how), tmp_path / "unused")
    folder = tampered(lambda c: None)
    (folder / "result.json").write_bytes((folder / "result.json").read_bytes().replace(b"8.2.1", b"8.2.9"))
    assert "its result.json is damaged" in refused(folder, tmp_path / "unused")
    folder = tampered(lambda c: None)
    [engine, *_] = (folder / "files").iterdir()
    engine.chmod(0o600)
    engine.write_bytes(bytes([engine.read_bytes()[0] ^ 1]) + engine.read_bytes()[1:])
    assert "is damaged" in refused(folder, tmp_path / "unused")
    engine.unlink()
    engine.symlink_to(done / "files" / engine.name)
    assert "is missing" in refused(folder, tmp_path / "unused")
    assert "has no result.json" in refused(done.parent, tmp_path / "unused")


def test_results_that_do_not_belong_together(
    tampered: Callable[[Callable[[Any], object]], Path], project: Project, capsys: Capture
) -> None:
    def errors(how: Callable[[Any], object], kind: str) -> str:
        document = command(capsys, "import-result", project.recipe, tampered(how), expected=1)
        assert not Path("dist").exists()
        return str(steps(document)[kind]["error"])

    def another_engine(content: Any) -> None:
        for job in content["jobs"][1:]:
            if "model.engine" in job["request"]["files"]:
                job["request"]["files"]["model.engine"] = "cd" * 32

    def missing(content: Any) -> None:
        del content["jobs"][0]

    def another_program(content: Any) -> None:
        content["jobs"][0]["request"]["trtexec_sha256"] = "0" * 64

    def failed(content: Any) -> None:
        content["jobs"][0]["result"] = {"ok": False, "reason": "trtexec", "message": "\x1b[2Jgone", "log": ["\x07[E]"]}

    assert errors(failed, "compile") == "jetson-tx2:8.2:  [2Jgone: [E]"
    assert "was not done by the trtexec that the result shows" in errors(another_program, "compile")
    assert "the result has no outcome of this" in errors(missing, "compile")
    assert "this result is of another build: its model.engine is cdcdcdcdcdcd" in errors(another_engine, "verify")


def test_the_link_answers_what_was_recorded(done: Path) -> None:
    listed = json.loads((done / "result.json").read_bytes())
    with Results([str(done)], {}) as link:
        assert link.ask({"op": "probe"})["l4t"] == TX2.l4t
        assert link.ask({"op": "stage", "files": [{"sha256": "0" * 64, "size": 1}]}) == {"missing": []}
        job = listed["jobs"][0]
        found = link.ask({**job["request"], "op": "run", "key": "another", "seconds": 1.0})
        engine = found["outputs"]["engine"]
        out = io.BytesIO()
        link.ask({"op": "send", "sha256": engine["sha256"], "offset": 0}, into=out)
        assert sha256_bytes(out.getvalue()) == engine["sha256"]
        with pytest.raises(StepError, match="does not hold"):
            link.ask({"op": "send", "sha256": "0" * 64, "offset": 0}, into=out)
        with pytest.raises(StepError, match=r"its arguments .*--fp16 are --fp32"):
            words = [each.replace("--fp16", "--fp32") for each in job["request"]["arguments"]]
            link.ask({**job["request"], "op": "run", "arguments": words})
