"""The device's agent, run as it is on a device: read from standard input, under the Pythons that JetPacks ship."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import fcntl
import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from support import trtexec_surrogate
from support.pythons import interpreter

from trtrecipe.device import agent
from trtrecipe.targets.buildspec import MIB, BuildSpec, Shapes
from trtrecipe.targets.trtexec import arguments, workspace_flag
from trtrecipe.targets.trtexec_run import RunSpec, run_arguments

SOURCE = (Path(__file__).parent.parent / "trtrecipe" / "device" / "agent.py").read_bytes()
PYTHONS = ("3.6", "3.8", "3.10", "3.12")  # of JetPack 4, 5, 6 and 7
KEY = "ab" * 32
POINTS = int(os.environ.get("TRTRECIPE_DROP_POINTS", "4"))


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def model(opset: int = 13, operator: str = "Relu") -> bytes:
    """x [batch, 4] → operator → MatMul → y."""
    nodes = [
        helper.make_node(operator, ["x"], ["h"], "activation"),
        helper.make_node("MatMul", ["h", "w"], ["y"], "product"),
    ]
    weights = numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", value[:1], value[1:], [weights])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return made.SerializeToString(deterministic=True)


SPEC = BuildSpec(
    "model.onnx",
    "model.engine",
    256 * MIB,
    "fp16",
    shapes={"x": Shapes((1, 4), (8, 4), (32, 4))},
    timing_cache="timing.cache",
    layer_info="layers.json",
    verbose=True,
)


@dataclasses.dataclass
class Device:
    """A device: a cache, a trtexec, and the agent under one interpreter."""

    folder: Path
    python: str
    tensorrt: str = "8.5.2"
    children: list[subprocess.Popen[bytes]] = dataclasses.field(default_factory=list)

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    @property
    def trtexec(self) -> Path:
        return self.folder / "trtexec"

    def start(self, request: dict[str, Any], payload: bytes = b"") -> subprocess.Popen[bytes]:
        command = [self.python, "-c", f"import sys;exec(sys.stdin.buffer.read({len(SOURCE)}))"]
        child = subprocess.Popen(
            command, stdin=-1, stdout=-1, stderr=-1, cwd="/", env={"PATH": os.environ["PATH"]}, start_new_session=True
        )
        assert child.stdin is not None
        line = json.dumps({"cache": str(self.cache), **request}).encode() + b"\n"
        with contextlib.suppress(BrokenPipeError):  # an error may come before the payload is taken
            child.stdin.write(SOURCE + line + payload)
            child.stdin.close()
        child.stdin = None
        self.children.append(child)
        return child

    def end(self, child: subprocess.Popen[bytes]) -> list[dict[str, Any]]:
        out, err = child.communicate(timeout=60)
        assert err == b"", err.decode()
        events = [json.loads(line) for line in out.splitlines()]
        assert child.returncode == (0 if events[-1]["event"] == "result" else 1)
        return events

    def ask(self, request: dict[str, Any], payload: bytes = b"") -> dict[str, Any]:
        """The last answer."""
        return self.end(self.start(request, payload))[-1]

    def put(self, data: bytes) -> str:
        """As if it had been received."""
        stored = self.cache / "cas" / sha256(data)
        stored.parent.mkdir(parents=True, exist_ok=True)
        stored.unlink(missing_ok=True)
        stored.write_bytes(data)
        return stored.name

    def request(self, data: bytes | None = None, spec: BuildSpec = SPEC, **more: Any) -> dict[str, Any]:
        """A build of the model, which is staged."""
        return {
            "op": "run",
            "key": KEY,
            "files": {"model.onnx": self.put(model() if data is None else data)},
            "trtexec": str(self.trtexec),
            "tensorrt": self.tensorrt,
            "arguments": arguments(dataclasses.replace(spec, workspace=None), self.tensorrt),
            "workspace": {"flag": workspace_flag(self.tensorrt), "bytes": spec.workspace},
            "outputs": {"engine": "model.engine", "layers": "layers.json"},
            "timing_cache": {"name": "orin-8.5.2", "file": "timing.cache"},
            "seconds": 60,
            "lock": str(self.folder / "device.lock"),
            **more,
        }  # fmt: skip

    def faults(self, **faults: Any) -> None:
        Path(f"{self.trtexec}.faults.json").write_text(json.dumps(faults))

    def calls(self, event: str = "start") -> list[dict[str, Any]]:
        path = Path(f"{self.trtexec}.calls.jsonl")
        lines = path.read_text().splitlines() if path.exists() else []
        return [call for call in map(json.loads, lines) if call["event"] == event]

    def stored(self, digest: str) -> bytes:
        return (self.cache / "cas" / digest).read_bytes()


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    """A device with the Python of these tests."""
    made = Device(tmp_path, sys.executable)
    trtexec_surrogate.install(made.trtexec, made.tensorrt)
    yield made
    for child in made.children:
        if child.poll() is None:
            child.kill()
        child.wait()
        for stream in (child.stdout, child.stderr):
            if stream is not None:
                stream.close()
    if len(made.calls()) > len(made.calls("end")):
        made.ask({"op": "cancel", "key": KEY})


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie that nobody has collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(condition: Callable[[], object]) -> None:
    ends = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.02)


def test_the_agent_is_python_3_6_and_imports_the_standard_library_alone() -> None:
    path = Path(__file__).parent.parent / "trtrecipe" / "device" / "agent.py"
    vermin = [sys.executable, "-c", "from vermin import main; main()"]
    command = [*vermin, "-t=3.6-", "--violations", "--no-tips", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    imported = {
        name.partition(".")[0]
        for node in ast.walk(ast.parse(SOURCE))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or "."])
    }
    assert imported <= sys.stdlib_module_names


@pytest.mark.parametrize("version", PYTHONS)
def test_a_whole_build_under_a_jetpacks_python(version: str, tmp_path: Path) -> None:
    made = Device(tmp_path, interpreter(version))
    trtexec_surrogate.install(made.trtexec, made.tensorrt)
    assert made.ask({"op": "probe"})["python"].startswith(version)
    data = model()
    entry = {"sha256": sha256(data), "size": len(data)}
    assert made.ask({"op": "stage", "files": [entry]})["missing"] == [{**entry, "offset": 0}]
    assert made.ask({"op": "receive", **entry}, data)["sha256"] == entry["sha256"]
    assert made.ask({"op": "stage", "files": [entry]})["missing"] == []
    request = made.request(data)
    made.faults(seconds=0.3)
    events = made.end(made.start(request))
    result = events[-1]
    assert result["ok"] and not result["collected"]
    assert events[0]["event"] == "progress"
    assert result["layers"] == 2 and [attempt["outcome"] for attempt in result["attempts"]] == ["built"]
    engine = result["outputs"]["engine"]
    assert sha256(made.stored(engine["sha256"])) == engine["sha256"]
    assert json.loads(made.stored(result["outputs"]["layers"]["sha256"]))["Layers"] == ["activation", "product"]
    # The bytes come back, in whole and from an offset.
    for offset in (0, 10):
        child = made.start({"op": "send", "sha256": engine["sha256"], "offset": offset})
        out, _ = child.communicate()
        head, _, sent = out.partition(b"\n")
        assert json.loads(head)["size"] == engine["size"]
        assert sent == made.stored(engine["sha256"])[offset:]
    # Asked again, it is collected, not built.
    again = made.ask(request)
    assert again["collected"] and again["outputs"] == result["outputs"]
    assert len(made.calls()) == 1
    assert made.ask({"op": "gc"})["removed"] == 3
    assert made.ask({"op": "send", "sha256": engine["sha256"]})["reason"] == "missing"


def test_probe_reads_what_an_l4t_shows(device: Device) -> None:
    root = device.folder / "root"
    files = {
        "etc/nv_tegra_release": "# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: t186ref, EABI: aarch64, DATE\n",
        "proc/device-tree/model": "NVIDIA Jetson Xavier NX Developer Kit\0",
        "proc/device-tree/compatible": "nvidia,p3509-0000+p3668-0000\0nvidia,tegra194\0",
        "proc/meminfo": "MemTotal:        7135236 kB\nMemAvailable:    5000000 kB\nSwapTotal: 3567616 kB\n",
        "usr/local/cuda/version.json": '{"cuda": {"name": "CUDA SDK", "version": "11.4.315"}}',
        "var/lib/nvpmodel/status": "pmode:0008",
        "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=MODE_15W_2CORE >\n< POWER_MODEL ID=8 NAME=MODE_20W_6CORE >\n",
        "sys/class/devfreq/17000000.gv11b/cur_freq": "114750000\n",
        "sys/class/devfreq/17000000.gv11b/max_freq": "1109250000\n",
        "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "1190400\n",
        "sys/class/thermal/thermal_zone1/type": "GPU-therm\n",
        "sys/class/thermal/thermal_zone1/temp": "38500\n",
        "var/lib/dpkg/status": "Package: nvidia-jetpack\nStatus: install ok installed\nVersion: 5.1.2-b104\n\n"
        "Package: libnvinfer-bin\nStatus: install ok installed\nVersion: 8.5.2-1+cuda11.4\n\n"
        "Package: libnvinfer7\nStatus: deinstall ok config-files\nVersion: 7.1.3-1+cuda10.2\n\n"
        "Package: bash\nStatus: install ok installed\nVersion: 5.0\n",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    trtexec_surrogate.install(root / "usr/src/tensorrt/bin/trtexec", "8.5.2")
    found = device.ask({"op": "probe", "root": str(root)})
    assert found["l4t"] == "35.4.1" and found["jetpack"] == "5.1.2" and found["tensorrt"] == "8.5.2"
    assert found["model"] == "NVIDIA Jetson Xavier NX Developer Kit"
    assert found["compatible"] == ["nvidia,p3509-0000+p3668-0000", "nvidia,tegra194"]
    assert found["cuda"] == "11.4.315"
    assert found["memory"] == {
        "total": 7135236 << 10,
        "available": 5000000 << 10,
        "swap_total": 3567616 << 10,
        "swap_free": None,
    }
    assert found["power_mode"] == {"id": 8, "name": "MODE_20W_6CORE"}
    assert found["clocks"] == {
        "17000000.gv11b": {"cur": 114750000, "max": 1109250000},
        "policy0": {"cur": 1190400000},
    }
    assert found["temperatures"] == {"GPU-therm": 38.5}
    trtexec = root / "usr/src/tensorrt/bin/trtexec"
    assert found["trtexec"] == {
        "path": str(trtexec.resolve()),
        "size": trtexec.stat().st_size,
        "sha256": sha256(trtexec.read_bytes()),
    }
    assert found["packages"] == {"libnvinfer-bin": "8.5.2-1+cuda11.4", "nvidia-jetpack": "5.1.2-b104"}


@pytest.mark.parametrize(
    ("line", "layer"),
    [
        ("[07/31/2022-10:41:46] [V] [TRT] --------------- Timing Runner: Conv_42 (CaskConvolution)", "Conv_42"),
        ("[V] [TRT] --------------- Timing Runner: {ForeignNode[a...b]} (Myelin[0x80000023])", "{ForeignNode[a...b]}"),
        (
            "[V] [TRT] --------------- Timing Runner: (Unnamed Layer* 6) [Fully Connected] (CaskFullyConnected)",
            "(Unnamed Layer* 6) [Fully Connected]",
        ),
        (
            "[V] [TRT] --------------- Timing Runner: PWN(PWN(a + (Unnamed Layer* 2) [Shuffle], b), c) (PointWise)",
            "PWN(PWN(a + (Unnamed Layer* 2) [Shuffle], b), c)",
        ),
        (
            "[V] [TRT] --------------- Timing Runner: Optimizer Reformat(<in> -> (Unnamed Layer* 689) [Shuffle]_output)"
            " (Reformat)",
            "Optimizer Reformat(<in> -> (Unnamed Layer* 689) [Shuffle]_output)",
        ),
    ],
)
def test_the_layer_that_is_timed_is_read_from_the_log(line: str, layer: str) -> None:
    """Lines as they are quoted in public reports of 8.x and 10.x builds."""
    found = agent.TIMING.search(line)
    assert found is not None and found.group(1) == layer


def test_probe_without_packages_reads_the_header(device: Device) -> None:
    root = device.folder / "root"
    header = root / "usr/include/aarch64-linux-gnu/NvInferVersion.h"
    header.parent.mkdir(parents=True)
    for text in (
        "#define NV_TENSORRT_MAJOR 10 //!< x\n#define NV_TENSORRT_MINOR 3\n#define NV_TENSORRT_PATCH 0\n",
        "#define TRT_MAJOR_ENTERPRISE 10\n#define TRT_MINOR_ENTERPRISE 3\n#define TRT_PATCH_ENTERPRISE 0\n",
    ):
        header.write_text(text)
        assert device.ask({"op": "probe", "root": str(root)})["tensorrt"] == "10.3.0"


def test_a_transfer_that_breaks_goes_on_where_it_stopped(device: Device) -> None:
    data = os.urandom(3 << 20)
    entry = {"sha256": sha256(data), "size": len(data)}
    cut = device.ask({"op": "receive", **entry}, data[: 1 << 20])
    assert (cut["reason"], cut["event"]) == ("short", "error")
    assert device.ask({"op": "stage", "files": [entry]})["missing"] == [{**entry, "offset": 1 << 20}]
    assert device.ask({"op": "receive", **entry, "offset": 2 << 20}, data[2 << 20 :])["reason"] == "offset"
    assert device.ask({"op": "receive", **entry, "offset": 1 << 20}, data[1 << 20 :])["sha256"] == entry["sha256"]
    assert device.stored(entry["sha256"]) == data


def test_a_transfer_that_is_damaged_is_thrown_away(device: Device) -> None:
    data = os.urandom(1000)
    entry = {"sha256": sha256(data), "size": len(data)}
    incoming = device.cache / "incoming" / entry["sha256"]
    damaged = data[:-1] + bytes([data[-1] ^ 1])
    assert device.ask({"op": "receive", **entry}, damaged)["reason"] == "corrupt"
    assert not incoming.exists() and not (device.cache / "cas" / entry["sha256"]).exists()
    assert device.ask({"op": "receive", **entry}, data) == {"event": "result", "sha256": entry["sha256"]}


def test_what_does_not_fit_is_refused_before_it_is_sent(device: Device) -> None:
    answer = device.ask({"op": "stage", "files": [{"sha256": KEY, "size": 1 << 60}], "spare": 5})
    assert answer["reason"] == "space" and answer["needed"] == (1 << 60) + 5
    assert device.ask(device.request(space=1 << 60))["reason"] == "space"


@pytest.mark.parametrize(
    "request_",
    [
        {"op": "dance"},
        {"op": "run"},
        {"op": "send", "sha256": "../../etc/passwd"},
        {"op": "receive", "sha256": "x", "size": 1},
        {"op": "cancel", "key": "a/b"},
        {"op": "stage", "files": [{"sha256": KEY}]},
    ],
)
def test_a_request_that_makes_no_sense_is_an_error(device: Device, request_: dict[str, Any]) -> None:
    assert device.ask(request_)["reason"] == "request"


def test_a_name_that_leaves_the_folder_is_refused(device: Device) -> None:
    request = device.request()
    request["files"]["../evil.onnx"] = request["files"].pop("model.onnx")
    assert device.ask(request)["reason"] == "request"
    request = device.request(outputs={"engine": "../../x"})
    assert device.ask(request)["reason"] == "request"
    assert device.calls() == []


def test_inputs_that_are_missing_or_damaged_are_named(device: Device) -> None:
    request = device.request()
    digest = request["files"]["model.onnx"]
    stored = device.cache / "cas" / digest
    stored.chmod(0o600)
    stored.write_bytes(model() + b"\0")
    answer = device.ask(request)
    assert (answer["reason"], answer["missing"]) == ("missing", [digest])
    assert device.ask(request)["missing"] == [digest]
    assert device.ask(device.request())["ok"]


def test_another_trtexec_than_the_probed_one_is_refused(device: Device) -> None:
    digest = device.ask({"op": "probe", "trtexec": str(device.trtexec)})["trtexec"]["sha256"]
    assert device.ask(device.request(trtexec_sha256=digest))["ok"]
    answer = device.ask(device.request(trtexec_sha256="0" * 64, fresh=True))
    assert answer["reason"] == "trtexec" and "JetPack upgraded" in answer["message"]
    assert device.ask(device.request(trtexec="/nowhere/trtexec", fresh=True))["reason"] == "trtexec"


@pytest.mark.parametrize("fault", ["memory", "out_of_memory_killer"])
def test_a_build_that_runs_out_of_memory_is_tried_with_less(device: Device, fault: str) -> None:
    device.faults(**{fault: 100 * MIB})
    result = device.ask(device.request())
    assert result["ok"]
    assert [(attempt["workspace"] // MIB, attempt["outcome"]) for attempt in result["attempts"]] == [
        (256, "memory"),
        (128, "memory"),
        (64, "built"),
    ]
    signals = [attempt["signal"] for attempt in result["attempts"]]
    assert signals == ([None] * 3 if fault == "memory" else [9, 9, None])
    assert b'"workspace": 67108864' in device.stored(result["outputs"]["engine"]["sha256"])


@pytest.mark.parametrize(
    ("asked", "total", "available", "first"),
    [
        (None, 8 << 30, 7 << 30, 2048),
        (None, 8 << 30, 8 << 30, 4096),
        (None, (4 << 30) - 5, 1 << 30, 512),
        (None, 4 << 30, None, 2048),
        (None, 1 << 30, 1, 32),
        (1 * MIB, 8 << 30, 8 << 30, 1),
        (300 * MIB, 1 << 30, 1, 300),
    ],
)
def test_the_workspaces_that_are_tried(asked: int | None, total: int, available: int | None, first: int) -> None:
    found = [size for size in agent.sizes({"bytes": asked, "total": total, "available": available}) if size is not None]
    assert found[0] == first * MIB
    assert all(after == max(before // 2 // MIB * MIB, 32 * MIB) for before, after in itertools.pairwise(found))
    assert found[-1] == min(found[0], 32 * MIB)


@given(st.integers(1, 1 << 40))
def test_a_workspace_is_told_exactly(size: int) -> None:
    assert Fraction(agent.in_mib(size)) * MIB == size


def test_a_build_that_never_fits_fails_for_memory(device: Device) -> None:
    device.faults(memory=0)
    result = device.ask(device.request())
    assert not result["ok"] and result["reason"] == "memory"
    assert [attempt["workspace"] // MIB for attempt in result["attempts"]] == [256, 128, 64, 32]
    assert any("Requested amount of GPU memory" in line for line in result["log"])


def test_a_tactic_skipped_for_memory_is_no_failure(device: Device) -> None:
    """Nor does it make another failure one of memory."""
    device.faults(memory=1 << 40)
    result = device.ask(device.request())
    assert result["ok"] and len(result["attempts"]) == 1
    device.faults(memory=1 << 40, fail="[TRT] something else")
    result = device.ask(device.request(fresh=True))
    assert result["reason"] == "trtexec" and len(result["attempts"]) == 1


@pytest.mark.parametrize(
    ("faults", "reason", "message"),
    [
        ({"signal": signal.SIGSEGV}, "trtexec", "signal 11"),
        ({"fail": "[TRT] Could not find any implementation for node product."}, "trtexec", "status 1"),
        ({"full_disk": True}, "trtexec", "status 1"),
        ({"silent_disk": True}, "trtexec", "wrote no engine"),
        ({"banner": 8600}, "version", "TensorRT 8600, not 8.5.2"),
    ],
)
def test_a_build_that_fails_says_why_and_is_not_retried(
    device: Device, faults: dict[str, Any], reason: str, message: str
) -> None:
    device.faults(**faults)
    result = device.ask(device.request())
    assert (result["ok"], result["reason"]) == (False, reason) and message in result["message"]
    assert len(device.calls()) == 1 and "outputs" not in result
    assert not (device.cache / "jobs" / KEY / "model.engine").exists()
    # It is told once; asked again, it is built.
    device.faults()
    assert device.ask(device.request())["ok"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (model(opset=18), "opset 18 is not supported"),
        (model(operator="Det"), "No importer registered for op: Det"),
        (b"nonsense", "Failed to parse ONNX model"),
    ],
)
def test_what_the_releases_parser_refuses_fails(device: Device, data: bytes, message: str) -> None:
    result = device.ask(device.request(data))
    assert result["reason"] == "trtexec"
    assert any(message in line for line in result["log"])


def test_a_shape_that_trtexec_makes_up_is_no_success(device: Device) -> None:
    result = device.ask(device.request(spec=dataclasses.replace(SPEC, shapes={})))
    assert (result["ok"], result["reason"]) == (False, "spoiled")
    assert "Dynamic dimensions required for input: x" in result["message"]


def test_a_build_that_takes_too_long_is_ended(device: Device) -> None:
    device.faults(seconds=30)
    result = device.ask(device.request(seconds=0.7))
    assert result["reason"] == "timeout" and result["attempts"][0]["signal"] == signal.SIGTERM
    assert not alive(device.calls()[0]["pid"])


def test_the_log_is_bounded(device: Device) -> None:
    device.faults(lines=30_000)
    assert device.ask(device.request())["ok"]
    log = (device.cache / "jobs" / KEY / "build.log").read_text()
    assert len(log) < 700_000 and "lines left out" in log
    assert "RUNNING" in log.splitlines()[0] and "PASSED" in log.splitlines()[-1]
    assert "Timing Runner" not in log


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGHUP])
def test_a_build_outlives_the_connection_and_is_collected(device: Device, end: signal.Signals) -> None:
    device.faults(seconds=0.5)
    child = device.start(device.request())
    wait_for(device.calls)
    os.killpg(child.pid, end)
    child.wait()
    result = device.ask(device.request())
    assert result["ok"] and result["collected"]
    assert len(device.calls()) == len(device.calls("end")) == 1


def test_a_connection_dropped_at_any_point_costs_no_second_build(device: Device) -> None:
    """From before the agent has its request to after the engine is stored."""
    device.faults(seconds=0.3)
    for point in range(POINTS):
        key = f"{point:064x}"
        child = device.start(device.request(key=key))
        assert child.stdout is not None
        child.stdout.close()  # as when ssh goes: the next line goes nowhere
        child.stdout = None
        time.sleep(point * 1.2 / POINTS)
        child.kill()
        child.wait()
        began = len(device.calls())
        assert device.ask(device.request(key=key))["ok"]
        assert len(device.calls()) == point + 1 >= began


def test_two_who_ask_for_one_build_share_it(device: Device) -> None:
    device.faults(seconds=0.5)
    request = device.request()
    results = [device.end(child)[-1] for child in [device.start(request), device.start(request)]]
    assert len(device.calls()) == 1
    assert results[0]["outputs"] == results[1]["outputs"]


def test_a_failure_while_nobody_listens_is_told_to_the_next(device: Device) -> None:
    device.faults(seconds=0.3, fail="no luck")
    child = device.start(device.request())
    wait_for(device.calls)
    child.kill()
    wait_for((device.cache / "jobs" / KEY / "result.json").exists)
    device.faults()
    result = device.ask(device.request())
    assert result["collected"] and not result["ok"]
    assert device.ask(device.request())["ok"]


def test_builds_of_one_device_never_overlap(device: Device) -> None:
    device.faults(seconds=0.3)
    requests = [device.request(key=f"{number:064x}") for number in range(3)]
    for child in [device.start(request) for request in requests]:
        assert device.end(child)[-1]["ok"]
    spans = sorted(zip((c["time"] for c in device.calls()), (c["time"] for c in device.calls("end")), strict=True))
    assert len(spans) == 3
    assert all(ended <= began for (_, ended), (began, _) in itertools.pairwise(spans))


def test_a_runner_that_is_killed_leaves_no_trtexec_behind(device: Device) -> None:
    device.faults(hang=True)
    child = device.start(device.request())
    job = device.cache / "jobs" / KEY
    wait_for(lambda: device.calls("hang"))
    state = json.loads((job / "state.json").read_text())
    child.kill()  # and with it the connection: nobody sees what follows
    child.communicate()
    os.kill(state["runner"], signal.SIGKILL)
    wait_for(lambda: not alive(state["runner"]))
    assert alive(state["trtexec"])
    with (device.folder / "device.lock").open() as lock, pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    # The orphan still holds the device; another build ends it and goes on.
    device.faults()
    result = device.ask(device.request(key="cd" * 32))
    assert result["ok"]
    assert not alive(state["trtexec"])


def test_who_follows_a_runner_that_is_killed_is_told_and_ends_its_trtexec(device: Device) -> None:
    device.faults(hang=True)
    child = device.start(device.request())
    wait_for(lambda: device.calls("hang"))
    state = json.loads((device.cache / "jobs" / KEY / "state.json").read_text())
    os.kill(state["runner"], signal.SIGKILL)
    assert device.end(child)[-1]["reason"] == "died"
    wait_for(lambda: not alive(state["trtexec"]))


def test_a_process_that_has_the_number_of_an_earlier_boots_is_left_alone(device: Device) -> None:
    """After a power cut: notes of processes whose numbers others have by now, and half of a file."""
    bystander = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        job = device.cache / "jobs" / KEY
        other = device.cache / "jobs" / ("ef" * 32)
        start = "00000000-0000-0000-0000-000000000000 1234"
        state = {"runner": bystander.pid, "runner_start": start, "trtexec": bystander.pid, "trtexec_start": start}
        for folder in (job, other):
            folder.mkdir(parents=True)
            (folder / "runner.lock").touch()
            (folder / "state.json").write_text(json.dumps(state))
        (job / "result.json").write_text('{"ok": true, "outp')
        (job / "progress.json").write_text("")
        assert device.ask(device.request())["ok"]
        assert alive(bystander.pid)
    finally:
        bystander.kill()
        bystander.wait()


RUBBISH = {
    "a folder for a stored file": ("cas/{engine}", None),
    "a folder for an arriving file": ("incoming/{model}", None),
    "a folder for the timing cache": ("timing/orin-8.5.2", None),
    "a file for the job's folder": ("jobs/{key}", b"rubbish"),
    "a folder for the job's lock": ("jobs/{key}/runner.lock", None),
    "a folder for the result": ("jobs/{key}/result.json", None),
    "a file among the jobs": ("jobs/notes.txt", b"rubbish"),
    "a result without outputs": ("jobs/{key}/result.json", b'{"ok": true}'),
    "a result of another form": ("jobs/{key}/result.json", b'{"ok": true, "outputs": {"engine": [1]}}'),
    "a failure without a reason": ("jobs/{key}/result.json", b'{"ok": false}'),
    "half a state": ("jobs/{key}/state.json", b'{"runner": 1, "runner_st'),
    "a state of another form": ("jobs/{key}/state.json", b'{"runner_start": "x", "trtexec": "y"}'),
}


@pytest.mark.parametrize("what", RUBBISH)
def test_rubbish_in_the_cache_is_cleared_away(device: Device, what: str) -> None:
    name, data = RUBBISH[what]
    path = device.cache / name.format(key=KEY, model="ab" * 32, engine="cd" * 32)
    path.parent.mkdir(parents=True, exist_ok=True)
    if data is None:
        (path / "deeper").mkdir(parents=True)
    else:
        path.write_bytes(data)
    assert device.ask(device.request() | {"keep": {"bytes": 0, "seconds": 3600}})["ok"]
    assert "untidy" not in device.ask(device.request())
    assert device.ask({"op": "gc", "keep_seconds": 3600}).get("event") == "result"
    if what == "a folder for an arriving file":
        data = b"a model"
        entry = {"sha256": sha256(data), "size": len(data)}
        (device.cache / "incoming" / entry["sha256"]).mkdir()
        (device.cache / "cas" / entry["sha256"]).mkdir()
        assert device.ask({"op": "receive", **entry}, data)["sha256"] == entry["sha256"]


def test_a_timing_cache_that_trtexec_refuses_is_made_anew(device: Device) -> None:
    assert device.ask(device.request())["ok"]
    stored = device.cache / "timing" / "orin-8.5.2"
    stored.write_bytes(b"rubbish")
    device.faults(refuse_timing=True)
    result = device.ask(device.request(key="cd" * 32))
    assert [entry["outcome"] for entry in result["attempts"]] == ["trtexec", "built"]
    assert result["timing_cache"]["before"] is None
    assert stored.read_bytes() == b"timed\n"


def test_who_waits_for_the_device_is_told(device: Device) -> None:
    device.faults(seconds=0.5)
    first = device.start(device.request())
    wait_for(device.calls)
    events = device.end(device.start(device.request(key="cd" * 32)))
    assert [event["doing"] for event in events[:-1]][:2] == ["waiting for the device", "building"]
    assert events[-1]["ok"] and events[-1]["waited"] > 0
    assert device.end(first)[-1]["ok"]


def test_a_file_is_sent_by_one_connection_at_a_time(device: Device) -> None:
    data = os.urandom(1000)
    entry = {"sha256": sha256(data), "size": len(data)}
    assert device.ask({"op": "stage", "files": [entry]})["missing"] == [{**entry, "offset": 0}]
    with (device.cache / "incoming" / entry["sha256"]).open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert device.ask({"op": "receive", **entry}, data)["reason"] == "busy"
        assert device.ask({"op": "gc"})["removed"] == 0
    assert device.ask({"op": "receive", **entry}, data)["sha256"] == entry["sha256"]


def test_a_build_can_be_cancelled(device: Device) -> None:
    device.faults(hang=True)
    child = device.start(device.request())
    wait_for(device.calls)
    again = device.start(device.request())  # a second follower, as after a dropped connection, begins nothing anew
    assert again.stdout is not None and again.stdout.readline()
    [ended] = device.ask({"op": "cancel"})["cancelled"]
    assert ended["key"] == KEY and ended["seconds"] >= 0
    assert {device.end(each)[-1]["reason"] for each in (child, again)} == {"cancelled"}
    wait_for(lambda: not alive(device.calls()[0]["pid"]))
    assert len(device.calls()) == 1
    assert device.ask({"op": "cancel", "key": KEY})["cancelled"] == device.ask({"op": "cancel"})["cancelled"] == []
    device.faults()
    assert device.ask(device.request())["ok"]


def test_a_timing_cache_is_kept_and_its_digests_are_told(device: Device) -> None:
    first = device.ask(device.request())["timing_cache"]
    second = device.ask(device.request(key="cd" * 32))["timing_cache"]
    assert first["before"] is None and first["after"] == second["before"] != second["after"]
    assert (device.cache / "timing" / "orin-8.5.2").read_bytes() == b"timed\ntimed\n"


def test_an_engine_that_was_damaged_is_built_again(device: Device) -> None:
    engine = device.ask(device.request())["outputs"]["engine"]["sha256"]
    stored = device.cache / "cas" / engine
    stored.chmod(0o600)
    stored.write_bytes(stored.read_bytes()[:-1])
    result = device.ask(device.request())
    assert result["ok"] and not result["collected"] and len(device.calls()) == 2


def test_gc_keeps_what_is_young_or_used(device: Device) -> None:
    digests = [device.put(os.urandom(1000)) for _ in range(3)]
    for age, digest in enumerate(digests):
        os.utime(device.cache / "cas" / digest, (1000 - age, 1000 - age))
    assert device.ask({"op": "gc", "keep_bytes": 2000})["removed"] == 1
    assert not (device.cache / "cas" / digests[2]).exists()
    assert device.ask({"op": "gc", "keep_seconds": 3600})["removed"] == 2
    kept = device.put(b"young")
    assert device.ask({"op": "gc", "keep_seconds": 3600})["removed"] == 0
    assert device.stored(kept) == b"young"


def test_a_lock_that_another_user_made_is_enough(device: Device) -> None:
    lock = device.folder / "device.lock"
    lock.touch(mode=0o444)
    assert device.ask(device.request())["ok"]
    lock.unlink()
    lock.symlink_to("/etc/passwd")
    assert device.ask(device.request(fresh=True))["reason"] == "lock"
    lock.unlink()
    os.mkfifo(lock)
    assert device.ask(device.request(fresh=True))["reason"] == "lock"


def test_a_calibration_table_must_fit_the_network_and_the_release(device: Device) -> None:
    spec = dataclasses.replace(SPEC, mode="int8", fallback="fp16", table="calibration.table")
    header, wrong = "TRT-8502-EntropyCalibration2\n", "TRT-8201-EntropyCalibration2\n"
    for text, ok in ((header + "x: 3c008912\ny: 3c008912\n", True), (header + "z: 3c008912\n", False), (wrong, False)):
        request = device.request(spec=spec, fresh=True)
        request["files"]["calibration.table"] = device.put(text.encode())
        result = device.ask(request)
        assert result["ok"] == ok, result["log"]


@pytest.mark.parametrize(("tensor", "ok"), [("y", False), ("of/no:interest", True)])
def test_a_calibrated_tensor_without_a_scale_is_no_success(device: Device, tensor: str, ok: bool) -> None:
    warning = f"Missing scale and zero-point for tensor {tensor}, expect fall back to non-int8 implementation for any"
    device.faults(says=[warning + " layer consuming or producing given tensor"])
    spec = dataclasses.replace(SPEC, mode="int8", fallback="fp16", table="calibration.table")
    request = device.request(spec=spec, table="calibration.table")
    table = b"TRT-8502-EntropyCalibration2\nx: 3c008912\ny: 3c008912\n"
    request["files"]["calibration.table"] = device.put(table)
    result = device.ask(request)
    assert result["ok"] == ok, result["log"]
    assert ok or (result["reason"] == "spoiled" and warning in result["message"])


def test_a_real_engine_where_tensorrt_for_rtx_is_installed(device: Device) -> None:
    pytest.importorskip("tensorrt_rtx")
    device.faults(real=True)
    result = device.ask(device.request())
    assert result["ok"], result["log"]
    assert b"SURROGATE" not in device.stored(result["outputs"]["engine"]["sha256"])
    assert onnx.load_from_string(model()).graph.node[0].op_type == "Relu"


def test_the_surrogates_engine_runs_as_its_network_does(device: Device) -> None:
    engine = device.folder / "model.engine"
    engine.write_bytes(device.stored(device.ask(device.request())["outputs"]["engine"]["sha256"]))
    samples = np.arange(-8, 8, dtype=np.float32).reshape(4, 4)
    samples.tofile(device.folder / "x.bin")
    spec = RunSpec("model.engine", {"x": (4, 4)}, {"x": "x.bin"}, output="out.json", times="times.json", iterations=7)
    subprocess.run([device.trtexec, *run_arguments(spec, "8.5.2")], cwd=device.folder, check=True, capture_output=True)
    (output,) = json.loads((device.folder / "out.json").read_text())
    assert (output["name"], output["dimensions"]) == ("y", "4x4")
    assert output["values"] == np.maximum(samples, 0).flatten().tolist()
    assert len(json.loads((device.folder / "times.json").read_text())) == 7
