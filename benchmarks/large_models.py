"""What an ONNX model over 2 GiB costs, step by step: seconds, and memory beside what the system may drop again.

Writes a model of --gib GiB of FP32 weights beside its graph, builds it with an empty store, one step at a time, and
looks at the processes of each step twenty times a second. `anonymous` is the most that they had of memory that nothing
but swap could take from them, `resident` the most including pages of files, such as weights that were only read.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import measure

CASES = (
    ("host, fp32", "host", {"mode": "fp32"}),
    ("host, int8", "host", {"mode": "int8"}),
    ("rtx, fp32", "rtx", {"mode": "fp32"}),
    ("rtx, fp16", "rtx", {"mode": "fp16"}),
    ("rtx, int8 and fp16", "rtx", {"mode": "int8", "fallback": "fp16"}),
)
WIDTH = 8192


def main() -> None:
    """Measure, print, and write if asked to."""
    parser = measure.parser(__doc__, runs=1)
    parser.add_argument("--gib", type=float, default=2.3, metavar="X", help="of weights (default: 2.3)")
    parser.add_argument("--cases", type=int, nargs="*", default=range(len(CASES)), help="which of them, from 0 on")
    options = parser.parse_args()
    program, env = measure.trtrecipe_program(), measure.environment()
    parts = []
    with measure.work_folder(options.work) as work:
        size = write_model(work, options.gib)
        for number in options.cases:
            name, target, precision = CASES[number]
            shutil.rmtree(work / "store", ignore_errors=True)
            recipe = write_recipe(work, target, precision)
            parts.append(f"{name}:\n\n{build(program, recipe, work, {**env, 'TRTRECIPE_STORE': str(work / 'store')})}")
    body = "\n\n".join([f"A model of {size / 2**30:.2f} GiB.", *parts])
    measure.report("large_models", f"{body}\n\n{measure.machine('trtrecipe', 'onnx', 'onnxruntime')}.", options.write)


def write_model(folder: Path, gib: float) -> int:
    """Products of WIDTH by WIDTH in `model.onnx` and `weights.bin`, and a few samples; bytes of the weights."""
    import numpy as np
    from onnx import ModelProto, TensorProto, helper

    random = np.random.default_rng(7)
    depth = math.ceil(gib * 2**30 / (4 * WIDTH**2))
    nodes, constants = [], []
    with (folder / "weights.bin").open("wb") as file:
        for number in range(depth):
            weights = random.standard_normal((WIDTH, WIDTH), np.float32)
            weights *= np.float32(1.4 / np.sqrt(WIDTH))
            tensor = TensorProto(name=f"w{number}", data_type=TensorProto.FLOAT, dims=weights.shape)
            tensor.data_location = TensorProto.EXTERNAL
            entries = {"location": "weights.bin", "offset": file.tell(), "length": weights.nbytes}
            for key, value in entries.items():
                tensor.external_data.add(key=key, value=str(value))
            file.write(memoryview(weights).cast("B"))
            constants.append(tensor)
            nodes.append(helper.make_node("MatMul", [f"x{number}", tensor.name], [f"m{number}"], f"product{number}"))
            nodes.append(helper.make_node("Relu", [f"m{number}"], [f"x{number + 1}"], f"relu{number}"))
        size = file.tell()
    graph = helper.make_graph(
        nodes,
        "large",
        [helper.make_tensor_value_info("x0", TensorProto.FLOAT, ["batch", WIDTH])],
        [helper.make_tensor_value_info(f"x{depth}", TensorProto.FLOAT, ["batch", WIDTH])],
        constants,
    )
    model: ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    np.savez(folder / "data.npz", x=random.standard_normal((16, WIDTH), np.float32))
    return size


def write_recipe(folder: Path, target: str, precision: Mapping[str, str]) -> Path:
    """A recipe for one target."""
    recipe = {
        "schema": "trtrecipe/v1",
        "name": "large",
        "model": {"source": "model.onnx", "dims": {"batch": {"min": 1, "opt": 4, "max": 8}}},
        "precision": precision,
        "calibration": {"data": {"npz": "data.npz", "arrays": {"x0": "x"}}, "samples": 16, "method": "minmax"},
        "targets": [target],
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    return path


def build(program: Path, recipe: Path, folder: Path, env: Mapping[str, str]) -> str:
    """A table of the steps of one build."""
    shutil.rmtree(folder / "dist", ignore_errors=True)
    argv = [str(program), "build", str(recipe), "--output", str(folder / "dist"), "-j", "1", "--json"]
    start = time.perf_counter()
    child = subprocess.Popen(argv, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    watch = Watch(child.pid)
    watch.start()
    out, said = child.communicate()
    watch.join()
    if child.returncode:
        sys.exit(f"{' '.join(argv)} ended with exit code {child.returncode}\n{out.decode()}\n{said.decode()}")
    target: dict[str, Any] = json.loads(out)["targets"][0]
    rows = []
    for step in target["steps"]:
        anonymous, resident = watch.most[step["key"]]
        rows.append([step["kind"], f"{step['seconds']:.1f}", f"{anonymous / 2**20:.2f}", f"{resident / 2**20:.2f}"])
    anonymous, resident = watch.most[""]
    whole = f"{time.perf_counter() - start:.1f}"
    rows.append(["all", whole, f"{anonymous / 2**20:.2f}", f"{resident / 2**20:.2f}"])
    return measure.table(["step", "s", "anonymous GiB", "resident GiB"], rows)


class Watch(threading.Thread):
    """Looks at a process and what it starts until it ends. `most`: key of a step → KiB anonymous and resident."""

    def __init__(self, pid: int) -> None:
        super().__init__()
        self._pid = pid
        self.most: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))

    def run(self) -> None:
        """Until the process ends."""
        while Path(f"/proc/{self._pid}/fd").exists() and _status(self._pid):
            found: dict[str, list[tuple[int, int]]] = defaultdict(list)
            pending = [(self._pid, "")]
            while pending:
                pid, key = pending.pop()
                key = key or _key(pid)
                status = _status(pid)
                if status:
                    found[key].append((status.get("RssAnon", 0), status.get("VmRSS", 0)))
                pending += [(inner, key) for inner in _children(pid)]
            found[""] = [each for held in found.values() for each in held]
            for key, held in found.items():
                before = self.most[key]
                self.most[key] = max(before[0], sum(a for a, _ in held)), max(before[1], sum(b for _, b in held))
            time.sleep(0.05)


def _status(pid: int) -> dict[str, int]:
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return {}
    return {name: int(value) for name, value in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)}


def _children(pid: int) -> list[int]:
    try:
        tasks = Path(f"/proc/{pid}/task").iterdir()
        return [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:
        return []


def _key(pid: int) -> str:
    """The key of the step that a worker has locked; "" for what is no worker."""
    try:
        links = [str(file.readlink()) for file in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:
        return ""
    return next((found[0] for link in links if (found := re.search(r"(?<=/)[0-9a-f]{64}(?=(\.lock)?$)", link))), "")


if __name__ == "__main__":
    main()
