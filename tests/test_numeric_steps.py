"""The numeric steps, one after the other as a build runs them, on the digits recipe and on its edges."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from trtrecipe.data import outputs
from trtrecipe.errors import StepError
from trtrecipe.steps import benchmark, calibrate, compile, convert, export, fetch, prepare, quantize, reference, verify

PREPROCESS = {"image": [{"scale": 0.0625}]}
DIMS = {"batch": {"min": 1, "opt": 8, "max": 32}}


def run(step: ModuleType, out: Path, inputs: dict[str, Path], **params: Any) -> dict[str, Any]:
    """Run a step into a new folder; its measurements. Checks that it wrote its outputs and nothing else."""
    out.mkdir()
    measured = dict(step.run(step.Params(**params), inputs, out))
    assert sorted(path.name for path in out.iterdir()) == sorted(step.OUTPUTS.values())
    json.dumps(measured, allow_nan=False)
    return measured


@pytest.fixture(scope="module")
def digits(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The exported and prepared graph of recipes/digits, its arrays as files."""
    pytest.importorskip("tensorflow", reason="the tensorflow extra is not installed")
    folder = tmp_path_factory.mktemp("digits")
    recipe = repository / "recipes" / "digits"
    run(fetch, folder / "fetch", {"source": recipe / "model"}, format="saved_model")
    shapes = {"image": {"shape": ["batch", 8, 8, 1], "dtype": "float32"}}
    model = {"model": folder / "fetch" / "model"}
    (folder / "export").mkdir()
    export.run(export.Params("saved_model", inputs=shapes, dims=["batch"]), model, folder / "export")
    run(prepare, folder / "prepare", {"onnx": folder / "export" / "model.onnx"})
    data = np.load(recipe / "data.npz")
    for name in data.files:
        np.save(folder / f"{name}.npy", data[name])
    found = {name: folder / f"{name}.npy" for name in data.files}
    return found | {name: folder / name / "model.onnx" for name in ("export", "prepare")}


@pytest.fixture(scope="module")
def judged(digits: dict[str, Path]) -> dict[str, Path]:
    return {"data.image": digits["x_test"], "data.label": digits["y_test"]}


@pytest.fixture(scope="module")
def exact(digits: dict[str, Path], judged: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(outputs.npz, measurements) of the reference."""
    out = tmp_path_factory.mktemp("reference") / "out"
    measured = run(reference, out, {"onnx": digits["export"], **judged}, preprocess=PREPROCESS, metric="top1")
    return out / "outputs.npz", measured


def test_reference_of_digits(digits: dict[str, Path], exact: Any) -> None:
    path, measured = exact
    assert measured["samples"] == 360
    assert measured["accuracy"] >= 0.97
    scores = outputs.read_npz(path)["logits"]
    labels = np.load(digits["y_test"])
    assert measured["accuracy"] == (scores.argmax(axis=1) == labels).mean()
    contract = json.loads((path.parent / "preprocessing.json").read_text())
    assert contract["inputs"]["image"]["operations"] == [{"cast": "float32"}, {"scale": 0.0625}]


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy", "mse"])
def test_int8_of_digits_is_within_a_point_of_fp32(
    method: str, digits: dict[str, Path], judged: dict[str, Path], exact: Any, tmp_path: Path
) -> None:
    graph, out = digits["prepare"], tmp_path
    calibration = {"onnx": graph, "data.image": digits["x_calib"]}
    measured = run(calibrate, out / "calibrate", calibration, method=method, preprocess=PREPROCESS)
    assert measured["samples"] == 512
    run(quantize, out / "quantize", {"onnx": graph, "scales": out / "calibrate" / "scales.json"})
    built = {"onnx": out / "quantize" / "model.onnx", "engine": out / "compile" / "model.engine"}
    run(compile, out / "compile", built, builder="onnxruntime", dims=DIMS)
    inputs = {**built, "reference": exact[0], **judged}
    judging = {"preprocess": PREPROCESS, "metric": "top1", "runtime": "onnxruntime"}
    figures = run(verify, out / "verify", inputs, evaluates="engine", **judging)
    assert figures["accuracy"] >= exact[1]["accuracy"] - 0.01
    assert figures["agreement"] >= 0.98
    assert figures["cosine"] >= 0.99
    assert figures["max_abs_error"] > 0
    run(convert, out / "convert", {"onnx": built["onnx"]}, precision="fp16")
    inputs["onnx"] = out / "convert" / "model.onnx"
    mixed = run(verify, out / "verify16", inputs, evaluates="graph", **judging)
    assert mixed["accuracy"] >= exact[1]["accuracy"] - 0.01
    assert mixed["evaluated"] == "graph"


def test_fp16_of_digits(digits: dict[str, Path], judged: dict[str, Path], exact: Any, tmp_path: Path) -> None:
    run(convert, tmp_path / "convert", {"onnx": digits["prepare"]}, precision="fp16")
    graph = tmp_path / "convert" / "model.onnx"
    inputs = {"onnx": graph, "engine": graph, "reference": exact[0], **judged}
    figures = run(
        verify,
        tmp_path / "verify",
        inputs,
        runtime="onnxruntime",
        evaluates="graph",
        preprocess=PREPROCESS,
        metric="top1",
    )
    assert figures["cosine"] > 0.9999
    assert figures["agreement"] == 1


def test_benchmark_states_what_it_measured(digits: dict[str, Path], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(benchmark, "MEASURE", (20, 0.0))
    run(compile, tmp_path / "compile", {"onnx": digits["prepare"]}, builder="onnxruntime")
    inputs = {"onnx": digits["prepare"], "engine": tmp_path / "compile" / "model.engine"}
    figures = run(benchmark, tmp_path / "benchmark", inputs, runtime="onnxruntime", dims=DIMS)
    assert (figures["batch"], figures["runs"]) == (8, 20)
    latency = figures["latency_ms"]
    assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"]
    assert {"runtime", "version", "device", "threads"} <= figures["conditions"].keys()


def test_benchmark_says_when_the_machine_is_noisy() -> None:
    assert benchmark._figures([0.001] * 50, 4)["notes"] == []
    assert benchmark._figures([0.001] * 50, 4)["throughput"] == 4000
    uneven = benchmark._figures([0.001] * 25 + [0.002] * 25, 4)
    assert uneven["noise"] == 1.0
    assert "100%" in uneven["notes"][0]


def tiny(folder: Path, operator: str = "Exp") -> Path:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node(operator, ["x"], ["y"], "node")],
        "graph",
        [value("x", TensorProto.FLOAT, ["n", 3])],
        [value("y", TensorProto.FLOAT, ["n", 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, folder / f"{operator}.onnx")
    return folder / f"{operator}.onnx"


def test_drawn_samples_need_no_data(tmp_path: Path) -> None:
    graph, drawn = tiny(tmp_path), {"samples": 5, "seed": 1}
    measured = run(reference, tmp_path / "reference", {"onnx": graph}, drawn=drawn)
    assert measured["samples"] == 5
    assert "accuracy" not in measured
    inputs = {"onnx": graph, "engine": graph, "reference": tmp_path / "reference" / "outputs.npz"}
    figures = run(verify, tmp_path / "verify", inputs, runtime="onnxruntime", evaluates="engine", drawn=drawn)
    assert figures["cosine"] == pytest.approx(1)
    assert figures["max_abs_error"] == 0
    assert "agreement" not in figures


def test_reference_is_the_same_bytes_each_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        run(reference, tmp_path / name, {"onnx": tiny(tmp_path)}, drawn={"samples": 5, "seed": 1})
    assert (tmp_path / "a" / "outputs.npz").read_bytes() == (tmp_path / "b" / "outputs.npz").read_bytes()


def test_fp16_overflow_fails_verify(tmp_path: Path) -> None:
    graph = tiny(tmp_path)
    np.save(tmp_path / "x.npy", np.float32([[1, 2, 3], [1, 15, 1]]))
    data = {"data.x": tmp_path / "x.npy"}
    run(reference, tmp_path / "reference", {"onnx": graph, **data})
    run(convert, tmp_path / "convert", {"onnx": graph}, precision="fp16")
    half = tmp_path / "convert" / "model.onnx"
    inputs = {"onnx": half, "engine": half, "reference": tmp_path / "reference" / "outputs.npz", **data}
    with pytest.raises(StepError, match=r"output y is infinite in 1 of 2 samples \(the first is sample 1\)"):
        run(verify, tmp_path / "verify", inputs, runtime="tensorrt-rtx", evaluates="graph")


def test_metric_without_labels(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2, 3), np.float32))
    inputs = {"onnx": tiny(tmp_path), "data.x": tmp_path / "x.npy"}
    with pytest.raises(StepError, match="top1 needs labels"):
        run(reference, tmp_path / "out", inputs, metric="top1")


def test_metric_on_an_output_that_does_not_exist(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2, 3), np.float32))
    np.save(tmp_path / "label.npy", np.zeros(2, np.int64))
    inputs = {"onnx": tiny(tmp_path), "data.x": tmp_path / "x.npy", "data.label": tmp_path / "label.npy"}
    with pytest.raises(StepError, match="reads output z"):
        run(reference, tmp_path / "out", inputs, metric="top1", output="z")


def test_metric_reads_the_first_output(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.float32([[0, 1, 0], [1, 0, 0]]))
    np.save(tmp_path / "label.npy", np.array([1, 2]))
    inputs = {"onnx": tiny(tmp_path), "data.x": tmp_path / "x.npy", "data.label": tmp_path / "label.npy"}
    assert run(reference, tmp_path / "out", inputs, metric="top1")["accuracy"] == 0.5


def test_calibrate_refuses_a_graph_without_anything_to_quantize(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2, 3), np.float32))
    inputs = {"onnx": tiny(tmp_path), "data.x": tmp_path / "x.npy"}
    with pytest.raises(StepError, match="nothing in this graph can be quantized"):
        run(calibrate, tmp_path / "out", inputs, method="minmax")


def test_convert_makes_fp16_only(tmp_path: Path) -> None:
    with pytest.raises(StepError, match="cannot make bf16"):
        run(convert, tmp_path / "out", {"onnx": tiny(tmp_path)}, precision="bf16")


def test_damaged_graph(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"\x00not onnx")
    with pytest.raises(StepError, match="not a readable ONNX file"):
        run(convert, tmp_path / "out", {"onnx": tmp_path / "broken.onnx"}, precision="fp16")


def test_shared_weights_survive_the_files(tmp_path: Path) -> None:
    """quantize on disk: the same bytes for the same inputs, and a graph that loads."""
    weights = numpy_helper.from_array(np.eye(3, dtype=np.float32), "w")
    model = onnx.load(tiny(tmp_path))
    model.graph.node[0].CopyFrom(helper.make_node("MatMul", ["x", "w"], ["y"], "matmul"))
    model.graph.initializer.append(weights)
    onnx.save(model, tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", np.float32([[1, -2, 3]]))
    for name in ("a", "b"):
        out = tmp_path / name
        out.mkdir()
        run(calibrate, out / "c", {"onnx": tmp_path / "m.onnx", "data.x": tmp_path / "x.npy"}, method="minmax")
        run(quantize, out / "q", {"onnx": tmp_path / "m.onnx", "scales": out / "c" / "scales.json"})
    first, second = ((tmp_path / name / "q" / "model.onnx").read_bytes() for name in ("a", "b"))
    assert first == second
    scales = json.loads((tmp_path / "a" / "c" / "scales.json").read_text())
    assert scales["tensors"] == {"x": {"threshold": 3.0, "min": -2.0, "max": 3.0, "values": 3, "clipped": 0}}
