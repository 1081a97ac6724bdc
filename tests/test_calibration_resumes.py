"""Calibrations that are stopped, and go on with what they had counted; in one process and in several."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.calibration import Seen, model, observed
from support.projects import Project, make_project

from trtrecipe.cli.app import run
from trtrecipe.engines.ort import OrtEngine
from trtrecipe.errors import StepError
from trtrecipe.quant import calibrate, counting, parts
from trtrecipe.run.process import WorkerProcess
from trtrecipe.run.scheduler import Scheduler
from trtrecipe.steps import calibrate as step
from trtrecipe.store.store import Store

RNG = np.random.default_rng(3)
X = RNG.standard_normal((40, 4)).astype(np.float32)
SECONDS = 2.0  # of calibration in a real build: four times as long as until the first counts are kept


class Interrupted(Exception):
    """Stands for the end of the process."""


@pytest.fixture
def every_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was counted is kept after every batch."""
    monkeypatch.setattr(counting, "EVERY", 0.0)
    monkeypatch.setattr(counting, "_SHARE", 0)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The first value of every batch that is run from now on."""
    seen: list[float] = []

    def watched(self: OrtEngine, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        seen.append(float(feeds["x"][0, 0]))
        return run_for_real(self, feeds)

    run_for_real = OrtEngine.run
    monkeypatch.setattr(OrtEngine, "run", watched)
    return seen


def stopped(after: int, monkeypatch: pytest.MonkeyPatch, calibration: Callable[[], Seen]) -> None:
    """Run the calibration until so many batches were counted."""

    def add(*arguments: Any) -> None:
        if arguments[1] == "x":
            left[0] -= 1
            if left[0] < 0:
                raise Interrupted
        add_for_real(*arguments)

    left, add_for_real = [after], counting._add
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(counting, "_add", add)
        calibration()


@pytest.mark.parametrize("batch", ["n", 4])
def test_what_was_counted_is_not_run_again(
    batch: int | str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every_batch: None, runs: list[float]
) -> None:
    """Interrupted twice; the result is that of a run without."""
    size = 1 if batch == "n" else 4
    whole = observed(X, model(batch=batch)).bytes()

    def again() -> Seen:
        return observed(X, model(batch=batch), checkpoint=tmp_path)

    stopped(3, monkeypatch, again)
    stopped(2, monkeypatch, again)
    runs.clear()
    seen = again()
    assert runs == [float(X[at, 0]) for at in range(5 * size, 40, size)]
    assert (seen.observed.runs, seen.observed.resumed) == (40 - 5 * size, 5 * size)
    assert seen.bytes() == whole
    runs.clear()
    assert observed(X[:20], model(batch=batch), checkpoint=tmp_path).observed.resumed == 0, "other samples"


def test_groups_that_were_done_are_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every_batch: None
) -> None:
    """The second group counts tensor a; a calibration with more memory has other groups."""
    whole = observed(X, everything=True).bytes()

    def again(memory: int = 1) -> Seen:
        return observed(X, memory=memory, checkpoint=tmp_path, everything=True)

    passes = again().observed.passes
    for path in tmp_path.glob(f"{passes - 1:04}-*"):
        path.unlink()
    seen = again()
    assert (passes, seen.observed.runs, seen.observed.resumed) == (5, 40, 4 * 40)
    assert seen.bytes() == whole
    assert again(1 << 30).observed.resumed == 0 and again(1 << 30).bytes() == whole


def test_counts_that_cannot_be_trusted_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every_batch: None
) -> None:
    whole = observed(X).bytes()

    def again(folder: str) -> Seen:
        return observed(X, checkpoint=tmp_path / folder)

    (tmp_path / "one").mkdir()
    stopped(7, monkeypatch, lambda: again("one"))
    [path] = (tmp_path / "one").iterdir()
    sound = path.read_bytes()
    assert again("one").observed.resumed == 7
    (tmp_path / "one").rename(tmp_path / "other")
    assert again("other").observed.resumed == 0, "the folder's name is the work's"
    (tmp_path / "other").rename(tmp_path / "one")
    for damaged in (sound[:-1], sound[:100], b"", sound[:200] + b"\0" + sound[201:], b"\xff" * 300):
        for other in (tmp_path / "one").iterdir():
            other.unlink()
        path.write_bytes(damaged)
        seen = again("one")
        assert (seen.observed.resumed, seen.bytes()) == (0, whole)


def test_processes_go_on_where_one_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every_batch: None) -> None:
    whole = observed(X).bytes()
    stopped(7, monkeypatch, lambda: observed(X, checkpoint=tmp_path))
    monkeypatch.setattr(calibrate, "WORTH", 1e-9)
    seen = observed(X, jobs=2, checkpoint=tmp_path)
    assert (seen.observed.processes, seen.observed.resumed, seen.bytes()) == (2, 7, whole)
    seen = observed(X, checkpoint=tmp_path)
    assert (seen.observed.runs, seen.observed.resumed, seen.bytes()) == (0, 40, whole)


def test_a_process_that_fails_fails_the_calibration_with_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "WORTH", 1e-9)
    x = X.copy()
    x[33] *= 1e30
    with pytest.raises(StepError, match=r"tensor a, the input of MatMul second, becomes infinite .* sample 33"):
        observed(x, model(weight=1e30), jobs=2)


def test_a_process_that_dies_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "WORTH", 1e-9)
    for program, ended in (
        ("import os; os.kill(os.getpid(), 9)", "by SIGKILL"),
        ("raise SystemExit(3)", "exit code 3"),
    ):
        monkeypatch.setattr(parts, "_PROGRAM", program)
        with pytest.raises(StepError, match=ended):
            observed(X, jobs=2)


def test_little_work_is_not_worth_a_process() -> None:
    assert observed(X, jobs=8).observed.processes == 1


def heavy() -> onnx.ModelProto:
    """The classifier of 1x6x6 images of the other tests, with convolutions that take some milliseconds."""
    weights = {
        "repeats": np.int64([1, 16, 24, 24]),
        "conv.W": RNG.normal(size=(16, 16, 3, 3)).astype(np.float32) / 12,
        "gemm.W": RNG.normal(size=(4, 16)).astype(np.float32),
    }
    nodes = [helper.make_node("Tile", ["image", "repeats"], ["c0"], "tile")]
    nodes += [
        helper.make_node("Conv", [f"c{n}", "conv.W"], [f"c{n + 1}"], f"conv{n}", pads=[1, 1, 1, 1]) for n in range(3)
    ]
    nodes += [
        helper.make_node("GlobalAveragePool", ["c3"], ["pooled"], "pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], "flatten"),
        helper.make_node("Gemm", ["flat", "gemm.W"], ["logits"], "gemm", transB=1),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "heavy",
        [value("image", TensorProto.FLOAT, ["batch", 1, 6, 6])],
        [value("logits", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def seconds(engine: OrtEngine) -> float:
    started = time.monotonic()
    engine.run({"image": np.ones((1, 1, 6, 6), np.float32)})
    return time.monotonic() - started


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose calibration takes SECONDS or more on one core."""
    made = make_project(tmp_path_factory.mktemp("project"))
    onnx.save(heavy(), made.folder / "model.onnx")
    with OrtEngine(made.folder / "model.onnx") as engine:
        count = int(SECONDS / min(seconds(engine) for _ in range(10)))
    arrays = dict(np.load(made.folder / "data.npz"))
    arrays["calib"] = RNG.normal(size=(count, 1, 6, 6)).astype(np.float32)
    np.savez(made.folder / "data.npz", **arrays)
    made.change_recipe(lambda recipe: recipe["calibration"].update(samples=count, method="entropy"))
    return made


def processes_in(folder: Path) -> list[int]:
    """Processes whose working folder it is: of a store, workers and their children."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").resolve() == folder.resolve():
                found.append(int(process.name))
        except OSError:
            continue
    return found


def wait_for(what: Callable[[], Any]) -> None:
    for _ in range(6000):
        if what():
            return
        time.sleep(0.02)
    raise AssertionError("it never came")


class Build:
    """A build in a folder and a store of its own."""

    def __init__(self, project: Project, folder: Path) -> None:
        self.folder, self.store, self.data = folder, folder / "store", project.folder / "data.npz"
        command = [sys.executable, "-m", "trtrecipe", "build", str(project.recipe), "--json", "-j", "1"]
        environment = os.environ | {"TRTRECIPE_STORE": str(self.store)}
        self.process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )

    def kept(self) -> list[Path]:
        return list((self.store / "v1" / "checkpoints").glob("*/*.counts"))

    def calibration(self) -> tuple[dict[str, Path], dict[str, Any], bytes]:
        """Inputs of the calibrate step, what it measured, and its scales."""
        with Store(self.store) as store:
            records = [record for key, _ in store.records.all() if (record := store.records.read(key))]
            kinds = {(store.records.key_document(record.key) or {})["kind"]: record for record in records}
            found = kinds["calibrate"]
            prepared = store.blobs.path(kinds["prepare"].outputs["onnx"].sha256)
            document = store.blobs.path(found.outputs["scales"].sha256).read_bytes()
        np.save(self.folder / "image.npy", np.load(self.data)["calib"])
        return {"onnx": prepared, "data.image": self.folder / "image.npy"}, dict(found.measurements), document


def test_a_killed_calibration_goes_on(project: Project, tmp_path: Path) -> None:
    first = Build(project, tmp_path)
    wait_for(lambda: first.kept() or first.process.poll() is not None)
    first.process.kill()
    first.process.communicate(timeout=120)
    wait_for(lambda: not processes_in(first.store))
    assert first.kept()
    second = Build(project, tmp_path)
    second.process.communicate(timeout=120)
    inputs, measured, document = second.calibration()
    assert measured["resumed"] > 0
    assert not list((second.store / "v1" / "checkpoints").iterdir()), "what is done needs no checkpoint"
    whole = step.run(step.Params("entropy"), inputs, tmp_path)
    assert (whole["runs"], whole["resumed"]) == (measured["resumed"] + measured["runs"], 0)
    assert (tmp_path / "scales.json").read_bytes() == document


def test_processes_end_with_the_calibration_that_started_them(project: Project, tmp_path: Path) -> None:
    """Killed, it cannot end them itself; what they had counted is there for the next."""
    x = np.load(project.folder / "data.npz")["calib"]
    np.save(tmp_path / "image.npy", x)
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    inputs = {"onnx": str(project.folder / "model.onnx"), "data.image": str(tmp_path / "image.npy")}
    program = f"""
from pathlib import Path
from trtrecipe.quant import calibrate
from trtrecipe.steps import calibrate as step
calibrate.WORTH = 1e-9
inputs = {{role: Path(path) for role, path in {inputs!r}.items()}}
step.run(step.Params("minmax"), inputs, Path("."), jobs=2, checkpoint=Path("checkpoint"))
"""
    running = subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path)
    wait_for(lambda: list(checkpoint.glob("*.counts")) or running.poll() is not None)
    assert len(processes_in(tmp_path)) == 3
    running.kill()
    running.wait()
    wait_for(lambda: not processes_in(tmp_path))
    paths = {role: Path(path) for role, path in inputs.items()}
    again = step.run(step.Params("minmax"), paths, tmp_path, checkpoint=checkpoint)
    assert again["resumed"] > 0 and again["resumed"] + again["runs"] == len(x)


def test_calibrate_is_told_how_many_jobs_the_build_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no step is started beside it: it has the machine."""
    requests: dict[str, dict[str, Any]] = {}
    beside: list[set[str]] = []

    class Watched(WorkerProcess):
        def __init__(self, request: dict[str, Any], *rest: Any) -> None:
            requests[request["kind"]] = request
            super().__init__(request, *rest)

    def start(self: Scheduler, step: Any) -> Any:
        beside.append({self._graph.steps[step_id].kind for step_id in self._running})
        return started(self, step)

    started = Scheduler._start
    monkeypatch.setattr(Scheduler, "_start", start)
    monkeypatch.setattr("trtrecipe.run.scheduler.WorkerProcess", Watched)
    monkeypatch.chdir(tmp_path)
    assert run(["build", str(make_project(tmp_path / "project").recipe), "-j", "3"]) == 0
    assert requests["calibrate"]["resources"]["jobs"] == 3
    assert requests["calibrate"]["resources"]["memory"] == 512 << 20
    assert "jobs" not in requests["lower"]["resources"]
    assert all("calibrate" not in kinds for kinds in beside)
