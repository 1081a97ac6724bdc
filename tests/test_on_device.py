"""verify and benchmark on a device: a real SSH server, the agent, stand-ins for trtexec and for JetPack's Python."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from onnx import TensorProto, helper, numpy_helper
from support import jetpack_python
from support.projects import make_project
from support.pythons import interpreter
from support.sshd import ORIN_NX, TX2, XAVIER_NX, Lab, TestDevice, lab

from trtrecipe.cli.app import run
from trtrecipe.data import outputs
from trtrecipe.device import agent, forms, jobs, measure
from trtrecipe.device.ssh import Session
from trtrecipe.errors import StepError, Unreachable
from trtrecipe.steps import benchmark, on_device, verify
from trtrecipe.targets.devices import Device, fingerprint

COUNT = 50
DIMS = {"batch": {"min": 1, "opt": 4, "max": 8}}
RELEASES = {"8.2": TX2, "8.5": XAVIER_NX, "10.3": ORIN_NX}
GIVEN = {"samples": 20, "seed": 7, "dla_core": None}


def network() -> onnx.ModelProto:
    """x [batch, 4], i [batch] int64 → y = x @ w + i."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], "product"),
        helper.make_node("Cast", ["i"], ["f"], "cast", to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["f", "axis"], ["c"], "unsqueeze"),
        helper.make_node("Add", ["h", "c"], ["y"], "sum"),
    ]
    constants = {"w": np.eye(4, 3, dtype=np.float32), "axis": np.asarray([1])}
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [info("x", TensorProto.FLOAT, ["batch", 4]), info("i", TensorProto.INT64, ["batch"])],
        [info("y", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What verify is given: an engine as the stand-in for trtexec writes it, samples, outputs of the reference."""
    folder, random = tmp_path_factory.mktemp("inputs"), np.random.default_rng(3)
    model = network()
    onnx.save(model, folder / "model.onnx")
    told = {"--minShapes": {"x": [1, 4], "i": [1]}, "--maxShapes": {"x": [8, 4], "i": [8]}}
    engine = b"SURROGATE ENGINE\n" + json.dumps(told).encode() + b"\nhex\n" + model.SerializeToString()
    (folder / "model.engine").write_bytes(engine)
    x, i = random.normal(size=(COUNT, 4)).astype(np.float32), random.integers(0, 3, COUNT)
    y = x[:, :3] + i[:, None].astype(np.float32)
    np.save(folder / "x.npy", x)
    np.save(folder / "i.npy", i)
    np.save(folder / "label.npy", np.where(np.arange(COUNT) % 2, y.argmax(axis=1), 0))
    outputs.write_npz(folder / "outputs.npz", {"y": y})
    roles = {"engine": "model.engine", "onnx": "model.onnx", "reference": "outputs.npz"}
    return {role: folder / name for role, name in roles.items()} | {
        f"data.{name}": folder / f"{name}.npy" for name in ("x", "i", "label")
    }


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    monkeypatch.setattr(jobs, "PAUSES", (0.01, 0.02, 0.03))
    with lab(tmp_path / "lab") as made:
        yield made


def add(bench: Lab, release: str, **faults: Any) -> TestDevice:
    """A device of that TensorRT, with its Python module. `cudart`: variables; others: faults of the module."""
    folder = bench.folder / f"python-{release}"
    variables = jetpack_python.install(folder, release) | faults.pop("cudart", {})
    faults = {"calls": str(folder / "calls.jsonl"), **faults}
    quoted = json.dumps(faults).replace('"', '\\"')
    return bench.add(f"d{len(bench.devices)}", RELEASES[release], {**variables, "TENSORRT_FAULTS": quoted})


def target(device: TestDevice) -> dict[str, Any]:
    """The device as a step is given it."""
    with Session(device.host) as session:
        found = fingerprint(session.ask({"op": "probe"}))
    assert found is not None
    address = Device(device.name, device.kind.profile, device.host).address
    return {"name": device.name, "address": address, "seconds": 30, "fingerprint": asdict(found)}


def evaluate(device: TestDevice, inputs: Mapping[str, Path], key: str = "a", **given: Any) -> Mapping[str, Any]:
    params = verify.Params("trtexec", "engine", metric="top1", dims=DIMS, device=GIVEN | given)
    return verify.run(params, inputs, Path(), device=target(device), key=key, say=lambda text: None)


@pytest.mark.parametrize("release", RELEASES)
def test_the_module_runs_the_samples(bench: Lab, inputs: Mapping[str, Path], release: str) -> None:
    found = evaluate(add(bench, release), inputs)
    assert (found["samples"], found["evaluated_by"], found["evaluated"]) == (20, "tensorrt", "engine")
    assert found["cosine"] > 1 - 1e-9
    assert found["agreement"] == 1
    # The device's own samples are what both are judged on: all 50 are right in another share.
    rows = on_device._rows(COUNT, 20, 7)
    labels, y = np.load(inputs["data.label"]), outputs.read_npz(inputs["reference"])["y"]
    assert found["accuracy"] == found["reference_accuracy"] == np.mean(y[rows].argmax(axis=1) == labels[rows])
    assert found["accuracy"] != np.mean(y.argmax(axis=1) == labels)
    assert found["notes"] == ["judged on 20 of 50 samples, which is what the device was given"]


@pytest.mark.parametrize(("release", "samples", "expected"), [("8.2", 6, 6), ("10.3", 256, 32)])
def test_without_the_module_trtexec_does(
    bench: Lab, inputs: Mapping[str, Path], release: str, samples: int, expected: int
) -> None:
    device = add(bench, release, **{"import": "libnvinfer.so.8: cannot open shared object file"})
    found = evaluate(device, inputs, samples=samples)
    assert (found["samples"], found["evaluated_by"]) == (expected, "trtexec")
    assert found["cosine"] > 1 - 1e-9
    assert found["max_abs_error"] < 1e-4
    assert found["notes"][0] == f"judged on {expected} of 50 samples, which is what the device was given"
    assert "ImportError: libnvinfer.so.8" in found["notes"][1]
    shapes = [flag for call in device.calls() for flag in call["argv"] if flag.startswith("--shapes")]
    # The largest batch that the engine takes, and no larger than what there is.
    assert shapes == (["--shapes=x:6x4,i:6"] if samples == 6 else ["--shapes=x:8x4,i:8"] * 4)


def test_fewer_samples_are_among_more() -> None:
    rows = [set(on_device._rows(1000, count, 3)) for count in (10, 256, 2000)]
    assert rows[0] < rows[1] < rows[2]
    assert [len(each) for each in rows] == [10, 256, 1000]


@pytest.mark.parametrize(
    ("faults", "said"),
    [
        ({"refuse": "wrong version tag"}, "cannot load it: wrong version tag"),
        ({"run_fails": "Error Code 1: Cask"}, "it does not run: Error Code 1: Cask"),
        ({"cudart": {"CUDART_LIMIT": "8"}}, "cudaMalloc failed: out of memory"),
        ({"cudart": {"CUDART_FAIL": "cudaMemcpy"}}, "cudaMemcpy failed: an illegal memory access"),
        ({"nan": True}, "output y is NaN in 20 of 20 samples"),
        ({"shape": 2}, "output y has shape"),
        ({"die": int(signal.SIGSEGV)}, "python was ended by signal 11"),
        ({"die": int(signal.SIGKILL)}, "the device ran out of memory"),
    ],
)
def test_an_engine_that_does_not_run_well_is_an_error(
    bench: Lab, inputs: Mapping[str, Path], faults: dict[str, Any], said: str
) -> None:
    with pytest.raises(StepError) as error:
        evaluate(add(bench, "8.5", **faults), inputs)
    if "out of memory" in said:
        assert "smaller opt under model.dims" in (error.value.hint or "")
    assert not isinstance(error.value, Unreachable)
    assert said in error.value.message


def test_what_trtexec_does_badly_is_an_error(bench: Lab, inputs: Mapping[str, Path]) -> None:
    device = add(bench, "8.5", **{"import": "none"})
    device.trtexec_fault(nan=True)
    with pytest.raises(StepError, match="output y is NaN in 8 of 8 samples"):
        evaluate(device, inputs, samples=8)
    device.trtexec_fault(run_fail="Cuda failure: out of memory")
    with pytest.raises(StepError, match=r"ran out of memory.*Cuda failure"):
        evaluate(device, inputs, key="b", samples=8)


def test_a_connection_that_breaks_in_the_middle_costs_no_second_run(bench: Lab, inputs: Mapping[str, Path]) -> None:
    device = add(bench, "8.5", wait=0.3)
    for operation, at in (("run", 0), ("run", 60), ("send", 90)):
        (bench.folder / "python-8.5/calls.jsonl").unlink(missing_ok=True)
        device.fault(drop={"op": operation, "at": at})
        assert evaluate(device, inputs, key=f"{operation} {at}")["cosine"] > 1 - 1e-9
        assert len(runs(bench, "8.5")) == 2  # it came once, and went
        assert not (device.folder / "faults.json").read_text().strip("{}")


def runs(bench: Lab, release: str) -> list[dict[str, Any]]:
    """When the module was imported, and when its process ended."""
    path = bench.folder / f"python-{release}/calls.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_two_steps_on_one_device_never_overlap(bench: Lab, inputs: Mapping[str, Path]) -> None:
    device = add(bench, "8.5", wait=0.1)
    where = target(device)

    def time_it() -> None:
        params = benchmark.Params("trtexec", {"batch": {"opt": 4}})
        benchmark.run(params, inputs, Path(), device=where, key="c", say=lambda text: None)

    threads = [threading.Thread(target=evaluate, args=(device, inputs, key)) for key in "ab"]
    threads += [threading.Thread(target=time_it)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    events = [*runs(bench, "8.5"), *device.calls("start"), *device.calls("end")]
    assert len(events) == 8  # two by the module, two by trtexec
    order = [event["event"] for event in sorted(events, key=lambda event: event["time"])]
    assert order == ["start", "end"] * 4


SYSFS = {
    "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "1420800",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_min_freq": "1420800",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_max_freq": "1420800",
    "sys/class/devfreq/17000000.gv11b/cur_freq": "114750000",
    "sys/class/devfreq/17000000.gv11b/min_freq": "114750000",
    "sys/class/devfreq/17000000.gv11b/max_freq": "1109250000",
    "sys/class/thermal/thermal_zone0/type": "GPU-therm",
    "sys/class/thermal/thermal_zone0/temp": "41500",
    "sys/class/thermal/cooling_device0/type": "pwm-fan",
    "sys/class/thermal/cooling_device0/cur_state": "3",
    "sys/class/thermal/cooling_device1/type": "thermal-cpufreq-0",
    "sys/class/thermal/cooling_device1/cur_state": "0",
    "sys/class/hwmon/hwmon2/oc1_event_cnt": "0",
    "sys/class/hwmon/hwmon2/oc3_event_cnt": "5",
}
HWMON = {
    "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3/in1_label": "VDD_IN",
    "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3/in1_input": "5000",
    "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3/curr1_input": "812",
    "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3/in7_label": "Sum of shunt voltages",
}
IIO = {
    "sys/bus/i2c/drivers/ina3221x/0-0041/iio:device1/rail_name_0": "VDD_IN",
    "sys/bus/i2c/drivers/ina3221x/0-0041/iio:device1/in_power0_input": "4060",
}
TEGRASTATS = {
    "usr/bin/tegrastats": "#!/bin/sh\necho 'RAM 2507/7771MB (lfb 2x4MB) SWAP 0/3885MB CPU [1%@1420] EMC_FREQ 0% "
    "GR3D_FREQ 0% VDD_IN 4060mW/4060mW VDD_SOC 1100/1100'\nsleep 60\n",
}


def show(root: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
        (root / name).chmod(0o755)


@pytest.mark.parametrize("rails", [HWMON, IIO, TEGRASTATS])
def test_conditions_are_read_where_each_l4t_has_them(tmp_path: Path, rails: Mapping[str, str]) -> None:
    show(tmp_path, SYSFS | rails)
    found = agent.conditions(str(tmp_path))
    assert found["power"]["VDD_IN"] == 4060
    assert set(found["power"]) <= {"VDD_IN", "VDD_SOC"}
    assert found["clocks"]["17000000.gv11b"] == {"cur": 114750000, "min": 114750000, "max": 1109250000}
    assert found["temperatures"] == {"GPU-therm": 41.5}
    assert (found["cooling"], found["events"]) == ({}, {"oc1": 0, "oc3": 5})
    if rails is TEGRASTATS:
        assert agent.conditions(str(tmp_path), ask=False)["power"] == {}


@pytest.mark.parametrize("version", ["3.6", "3.8"])
def test_conditions_under_a_jetpacks_python(tmp_path: Path, version: str) -> None:
    python = interpreter(version)
    show(tmp_path, SYSFS | TEGRASTATS)
    code = "import agent, json, sys; c = agent.conditions(sys.argv[1]); print(json.dumps([c, agent.summary([c, c])]))"
    variables = {"PYTHONPATH": str(Path(agent.__file__).parent), "PATH": os.environ["PATH"]}
    command = [python, "-B", "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=variables)
    assert done.returncode == 0, done.stderr
    here = agent.conditions(str(tmp_path))
    assert json.loads(done.stdout) == [here, agent.summary([here, here])]


def test_a_device_that_tells_nothing_has_no_conditions(tmp_path: Path) -> None:
    found = agent.conditions(str(tmp_path))
    assert found == {
        "power_mode": None, "clocks": {}, "temperatures": {}, "power": {}, "events": {}, "cooling": {},
    }  # fmt: skip
    assert list(measure.remarks({"before": found, "during": agent.summary([]), "after": found})) == []


def test_a_run_is_watched_and_remarked_upon(tmp_path: Path) -> None:
    show(tmp_path, SYSFS | HWMON)
    before = agent.conditions(str(tmp_path))
    hot = {
        "sys/class/devfreq/17000000.gv11b/cur_freq": "905000000",
        "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "1190400",
        "sys/class/thermal/thermal_zone0/temp": "58000",
        "sys/class/thermal/cooling_device1/cur_state": "2",
        "sys/class/hwmon/hwmon2/oc3_event_cnt": "7",
        "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3/curr1_input": "2000",
    }
    show(tmp_path, hot)
    after = agent.conditions(str(tmp_path))
    during = agent.summary([before, after])
    assert during["clocks"]["17000000.gv11b"] == [114750000, 905000000]
    assert (during["power"], during["cooling"], during["looks"]) == ({"VDD_IN": 7030}, {"thermal-cpufreq-0": 2}, 2)
    said = list(measure.remarks({"before": before, "during": during, "after": after}))
    assert len(said) == 5
    for part in (
        "the GPU may run at 115 to 1,109 MHz, and ran at 115 to 905 MHz",
        "the clock of policy0 changed from 1,421 to 1,190 MHz",
        "GPU-therm rose from 41.5 to 58 °C",
        "slowed down for its heat: thermal-cpufreq-0",
        "slowed down 2 times for the current",
    ):
        assert any(part in sentence for sentence in said), part


@pytest.mark.parametrize("release", ["8.2", "10.3"])
def test_a_benchmark_has_latency_layers_and_conditions(bench: Lab, inputs: Mapping[str, Path], release: str) -> None:
    device = add(bench, release)
    show(device.root, SYSFS | HWMON)
    device.trtexec_fault(milliseconds={"float": 2.0})
    params = benchmark.Params("trtexec", {"batch": {"opt": 4}})
    found = benchmark.run(params, inputs, Path(), device=target(device), key="a", say=lambda text: None)
    assert (found["batch"], found["runs"]) == (4, measure.ITERATIONS)
    # Of 2 ms, 1.6 to 1.78 are computing, and 0.2 are copies (`trtexec_surrogate.times`).
    assert found["compute_ms"] == {"p50": 1.69, "p90": 1.762, "p99": 1.78}
    assert found["latency_ms"] == {"p50": 1.89, "p90": 1.962, "p99": 1.98}
    assert found["throughput"] == pytest.approx(4 * 50 / (49 * 2.0 + 1.98) * 1e3, abs=0.01)
    assert found["layers"]["count"] == 4
    assert [layer["name"] for layer in found["layers"]["slowest"]] == ["sum", "unsqueeze", "cast", "product"]
    assert sum(layer["share"] for layer in found["layers"]["slowest"]) == pytest.approx(1, abs=1e-3)
    conditions = found["conditions"]
    assert conditions["version"] == device.kind.tensorrt
    assert conditions["device"] == device.kind.model
    assert conditions["before"]["power_mode"] == {"id": 2, "name": "MODE_15W_6CORE"}
    assert conditions["before"]["power"] == conditions["after"]["power"] == {"VDD_IN": 4060}
    assert any("the clocks are not pinned" in note for note in found["notes"])
    assert any(flag.startswith("--exportTimes") for flag in device.calls()[0]["argv"])
    assert any(flag.startswith("--exportProfile") for flag in device.calls()[1]["argv"])


def test_a_benchmark_under_other_settings_than_its_keys_is_no_result(bench: Lab, inputs: Mapping[str, Path]) -> None:
    device = add(bench, "8.5")
    params = benchmark.Params("trtexec", {"batch": {"opt": 4}})
    given = target(device) | {"settings": {"power_mode": "MODE_15W_6CORE", "gpu_clock": []}}

    def measured() -> Mapping[str, Any]:
        return benchmark.run(params, inputs, Path(), device=given, key="a", say=lambda text: None)

    (device.root / "var/lib/nvpmodel/status").write_text("pmode:0000\n")
    with pytest.raises(StepError, match="power_mode MODE_15W_6CORE -> 0"):
        measured()
    device.show()
    assert measured()["conditions"]["before"]["power_mode"]["id"] == 2  # what is on the device is not collected
    (device.root / "var/lib/nvpmodel/status").write_text("pmode:0000\n")
    assert measured()["conditions"]["before"]["power_mode"]["id"] == 2  # and this is


def test_a_benchmark_that_fails_is_an_error(bench: Lab, inputs: Mapping[str, Path]) -> None:
    device = add(bench, "8.5")
    device.trtexec_fault(run_fail="engine deserialization failed")
    params = benchmark.Params("trtexec", {"batch": {"opt": 4}})
    with pytest.raises(StepError, match="engine deserialization failed"):
        benchmark.run(params, inputs, Path(), device=target(device), key="a", say=lambda text: None)


def test_bytes_that_are_not_what_the_report_says_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "outputs.bin").write_bytes(bytes(44))
    report = {"tensors": [{"name": "y", "dtype": "float32"}], "shapes": [[[2, 3]], [[2, 3]]]}
    with pytest.raises(StepError, match="nx gave 44 bytes of outputs where 48 belong"):
        list(on_device._unpacked(report, tmp_path / "outputs.bin", "nx"))


def test_numbers_that_json_has_no_words_for_are_read(tmp_path: Path) -> None:
    text = '[ { "name" : "nan, inf"\n , "dimensions" : "1x4"\n , "values" : [ nan, -inf, inf, -nan ]\n } ]'
    (tmp_path / "x.json").write_text(text.replace("nan, inf", "y"))
    [entry] = measure._read(tmp_path / "x.json", forms.VALUES)
    np.testing.assert_array_equal(entry["values"], [np.nan, -np.inf, np.inf, np.nan])
    found = on_device._exported(entry, {"y": "float32"}, "nx")
    assert (found.shape, found.dtype) == ((1, 4), np.float32)
    (tmp_path / "x.json").write_text('[ { "name"')
    with pytest.raises(StepError, match="not readable"):
        measure._read(tmp_path / "x.json", forms.VALUES)


@pytest.mark.parametrize(
    ("form", "text", "said"),
    [
        (forms.REPORT, "{}", "tensors, shapes, module, cudart"),
        (forms.REPORT, '{"tensors": [{"name": "y", "dtype": "O"}], "shapes": [], "module": "", "cudart": ""}', "dtype"),
        (forms.REPORT, '{"tensors": [], "shapes": [[["a"]]], "module": "", "cudart": ""}', "shapes.0.0.0"),
        (forms.TIMES, "{}", "all of it"),
        (forms.TIMES, '[{"startComputeMs": "x", "latencyMs": 1, "computeMs": 1}]', "0.startComputeMs"),
        (forms.TIMES, '[{"startComputeMs": 1, "latencyMs": nan, "computeMs": 1}]', "0.latencyMs"),
        (forms.PROFILE, '[{"count": 1}, {"name": "l", "averageMs": "x"}]', "1.averageMs"),
        (forms.VALUES, '[{"name": "y", "dimensions": "-2x-1", "values": []}]', "0.dimensions"),
        (forms.VALUES, '[{"name": "y", "dimensions": "1"}]', "0.values"),
        (forms.VALUES, "[" * 100_000, "readable"),
    ],
)
def test_a_file_of_a_device_that_is_not_as_it_should_be_is_an_error(
    tmp_path: Path, form: object, text: str, said: str
) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(StepError, match=f"came from the device as x.json is not .*{re.escape(said)}"):
        measure._read(tmp_path / "x.json", form)


@pytest.mark.parametrize("values", [["a", "b"], [[1], 2], [None, 1]])
def test_outputs_that_are_no_numbers_are_an_error(values: list[object]) -> None:
    with pytest.raises(StepError, match="no numbers as output y"):
        on_device._exported({"name": "y", "dimensions": "2", "values": values}, {}, "nx")


@pytest.mark.parametrize("shapes", [[[]], [[[11], [1]]], [[[-1, -11]]]])
def test_outputs_of_odd_shapes_are_an_error(tmp_path: Path, shapes: list[list[list[int]]]) -> None:
    (tmp_path / "outputs.bin").write_bytes(bytes(44))
    report = {"tensors": [{"name": "y", "dtype": "float32"}], "shapes": shapes}
    with pytest.raises(StepError, match="nx gave outputs of shapes"):
        list(on_device._unpacked(report, tmp_path / "outputs.bin", "nx"))


def test_an_output_of_another_size_than_it_says_is_an_error() -> None:
    with pytest.raises(StepError, match="exported 2 values of output y with shape \\[1, 3\\]"):
        on_device._exported({"name": "y", "dimensions": "1x3", "values": [1, 2]}, {}, "nx")


def test_a_whole_build_judges_what_the_device_measured(
    bench: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRTRECIPE_STORE", str(tmp_path / "store"))
    device = add(bench, "8.5")
    device.trtexec_fault(milliseconds={"int8": 3.0, "float": 1.0})
    profile = "jetson-xavier-nx@5.1.4"
    precisions = {"int8": {"mode": "int8", "fallback": "fp16"}, "fp16": {"mode": "fp16"}}
    data = {"npz": "data.npz", "arrays": {"image": "test", "label": "label"}}
    recipe = {
        "targets": [{"profile": profile, "name": name, "precision": how} for name, how in precisions.items()],
        "evaluation": {"data": data, "metric": "top1", "device_samples": 8},
        "gates": {"accuracy": {"max_drop": 0.2}, "latency_ms": {"p99": 2}},
    }
    project = make_project(tmp_path / "project", recipe)
    devices = {"nx": {"profile": "jetson-xavier-nx", "ssh": device.host}}
    text = yaml.safe_dump({"schema": "trtrecipe/inventory/v1", "devices": devices})
    (project.folder / "devices.yaml").write_text(text)
    command = ["build", str(project.recipe), "--json", "--output", str(tmp_path / "dist")]
    code = run(command)
    out, err = capsys.readouterr()
    assert code == 3, out + err
    int8, fp16 = json.loads(out)["targets"]
    assert (int8["status"], fp16["status"]) == ("gate-failed", "built")
    assert int8["notes"][-1] == "INT8 is slower than FP16 here: p50 is 2.735 ms, that of target fp16 in FP16 1.045 ms"
    assert [gate["gate"] for gate in int8["gates"] if gate["status"] == "missed"] == ["latency_ms.p99"]
    metrics = fp16["metrics"]
    assert (metrics["samples"], metrics["evaluated_by"]) == (8, "tensorrt")
    assert metrics["latency_ms"] == {"p50": 1.045, "p90": 1.081, "p99": 1.09}
    assert len(runs(bench, "8.5")) == 4  # a process for each target's samples
    manifest = json.loads((tmp_path / "dist/small/fp16/manifest.json").read_text())
    assert manifest["status"] == "complete"
    assert manifest["metrics"] == metrics
    assert manifest["metrics"]["conditions"]["before"]["power_mode"] == {"id": 2, "name": "MODE_15W_6CORE"}
    assert manifest["metrics"]["layers"]["slowest"][0]["share"] > 0
    # How many samples a device is given is in no other step's key, and nothing runs twice.
    keys = {step["kind"]: step["key"] for step in fp16["steps"]}
    assert run(command) == 3
    capsys.readouterr()
    assert len(device.calls("end")) == 6  # two builds, two runs for times and two for profiles
    project.change_recipe(lambda value: value["evaluation"].update(device_samples=4))
    assert run(["plan", str(project.recipe), "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)["targets"][1]["steps"]
    assert [step["kind"] for step in planned if step["status"] != "hit"] == ["verify"]
    assert {step["kind"] for step in planned if step["key"] == keys[step["kind"]]} == set(keys) - {"verify"}
    # Another power mode asks for another measurement, and for nothing else.
    project.change_recipe(lambda value: value["evaluation"].update(device_samples=8))
    (device.root / "var/lib/nvpmodel/status").write_text("pmode:0000\n")
    monkeypatch.setenv("TRTRECIPE_PROBE_AGE", "0")
    assert run(["plan", str(project.recipe), "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)["targets"][1]["steps"]
    [changed] = [step for step in planned if step["status"] != "hit"]
    assert (changed["kind"], changed["reason"]) == ("benchmark", "settings.power_mode: MODE_15W_6CORE -> 0")
