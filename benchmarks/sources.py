"""Which models come in, how close their ONNX is, whether TensorRT for RTX takes it, and what an export costs.

Three parts, all on models that the scripts in `fixtures/` write here first, with random weights that say something:

- every fixture at opset 13 and 17, through `trtrecipe build` for the target `rtx` (fp32; int8 with the model's own
  ranges where it is quantized already): exported or refused, the largest error between source and ONNX as the export
  step measures it, parsed and built by TensorRT for RTX or not;
- ten exports of five models, each in a process with another PYTHONHASHSEED: how many different graphs came out;
- the export of MobileNetV2 beside `python -m tf2onnx.convert` on the same SavedModel, in CPU seconds. Ours is the steps
  fetch and export in one process that ends as a step's process does; its export includes the check against the model.

Needs the extras tensorflow and rtx. With `--only` the first part keeps to some fixtures; `--parts` leaves parts out.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import measure
from measure import Command, Sample

OPSETS = (13, 17)
PARTS = ("table", "hashes", "cost")
HASHED = ("MobileNetV2", "EfficientNetB0", "LSTM", "transformer", "three inputs, three outputs")
EXPORTS = 10
TIMED = "MobileNetV2"
BUDGET = 1.1
_OK = (0, 1, 2, 3, 5)  # how a build may end that says what came of it


def main() -> None:
    """Measure, print, and write if asked to; or be a process that this program starts."""
    if sys.argv[1:2] == ["child"]:
        {"names": _names, "make": _make, "export": _export}[sys.argv[2]](*sys.argv[3:])
        return
    parser = measure.parser(__doc__, runs=5)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to do (default: all)")
    parser.add_argument("--only", nargs="+", metavar="FIXTURE", help="fixtures of the table (default: all)")
    options = parser.parse_args()
    env = measure.environment(CUDA_VISIBLE_DEVICES="-1", TF_CPP_MIN_LOG_LEVEL="3")
    lines: list[str] = []
    with measure.work_folder(options.work) as work:
        if "table" in options.parts:
            lines += [*_table(work, env, options.only), ""]
        if "hashes" in options.parts:
            lines += [*_hashes(work, env), ""]
        if "cost" in options.parts:
            lines += [*_cost(work, env, options.runs), ""]
    measure.progress("")
    versions = measure.machine("trtrecipe", "tensorflow", "keras", "tf-keras", "tf2onnx", "onnx", "tensorrt-rtx")
    measure.report("sources", "\n".join([*lines, f"{versions}."]), options.write)


# --- every fixture


def _table(work: Path, env: Mapping[str, str], only: Sequence[str] | None) -> list[str]:
    names = json.loads(_child(["names"], work, env))
    if unknown := set(only or ()).difference(names):
        sys.exit(f"no fixture is called {', '.join(sorted(unknown))}; there are: {', '.join(names)}")
    rows, refused = [], []
    for name in names if only is None else [name for name in names if name in only]:
        folder = _fixture(name, work, env)
        for opset in OPSETS:
            measure.progress(f"{name}, opset {opset}")
            row, reason = _built(name, folder, opset, work, env)
            rows.append(row)
            refused += [f"- {name}, opset {opset}: {reason}"] if reason else []
    whole = sum(row[2] == "yes" and row[4] == "yes" for row in rows)
    return [
        measure.table(["model", "opset", "exported", "error", "RTX builds", "export s", "RTX s"], rows),
        "",
        f"{whole} of {len(rows)} exported and built. `error` is the largest of any output, as a part of its largest "
        "magnitude, over batches of 1 and 3 (where the batch is open) of inputs drawn from three distributions; "
        "there is none where nothing was converted.",
        *(["", "Refused or failed:", "", *refused] if refused else []),
    ]


def _fixture(name: str, work: Path, env: Mapping[str, str]) -> Path:
    """The folder of the fixture, written by a process of its own unless it is there from before."""
    folder = work / "fixtures" / _slug(name)
    if not (folder / "model.json").is_file():
        measure.progress(f"making {name}")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        _child(["make", name, str(folder)], work, env)
    return folder


def _built(name: str, folder: Path, opset: int, work: Path, env: Mapping[str, str]) -> tuple[list[str], str]:
    """The row, and why there is no engine ("" where there is one)."""
    model = {**json.loads((folder / "model.json").read_text()), "opset": opset}
    quantized = model.pop("quantized", False)
    if any("batch" in spec["shape"] for spec in model.get("inputs", {}).values()):
        model["dims"] = {"batch": {"min": 1, "opt": 1, "max": 4}}
    recipe = {
        "schema": "trtrecipe/v1",
        "name": f"{_slug(name)}-{opset}",
        "model": model,
        "precision": {"mode": "int8" if quantized else "fp32"},
        **({"calibration": {"model": True}} if quantized else {}),
        "targets": ["rtx"],
    }
    file = folder / f"opset-{opset}.yaml"
    file.write_text(json.dumps(recipe, indent=1))  # JSON is YAML
    argv = [str(measure.trtrecipe_program()), "build", str(file), "-j", "1", "--json", "--output", str(work / "dist")]
    store = work / "store"
    shutil.rmtree(store, ignore_errors=True)  # so that every step runs, and can be timed
    _, said = measure.run_and_read(Command(name, argv, folder, {**env, "TRTRECIPE_STORE": str(store)}, ok=_OK))
    document = json.loads(said)
    if "targets" not in document:
        reason = "; ".join(error["message"] for error in document["errors"])
        return [name, str(opset), "refused", "", "", "", ""], _shortened(reason)
    (target,) = document["targets"]
    steps = {step["kind"]: step for step in target["steps"]}
    export, compiled = steps["export"], steps["compile"]
    wrong = next((step for step in target["steps"] if step["status"] == "failed"), None)
    is_exported, is_built = (step["status"] in ("ran", "hit") for step in (export, compiled))
    checked = target.get("metrics", {}).get("export", {}).get("outputs", {})
    worst = max((figures["relative"] for figures in checked.values()), default=None)
    row = [
        name,
        str(opset),
        "yes" if is_exported else "no",
        "" if worst is None else f"{worst:.0e}",
        ("yes" if is_built else "no") if is_exported else "",
        _seconds(export),
        _seconds(compiled),
    ]
    reason = "" if wrong is None else f"{wrong['kind']}: {_shortened(wrong.get('error', ''))}"
    return row, reason


def _seconds(step: Mapping[str, Any]) -> str:
    return f"{step['seconds']:.1f}" if step["status"] == "ran" else ""


def _shortened(words: str) -> str:
    words = " ".join(words.split())
    return words if len(words) <= 300 else f"{words[:300]} ..."


# --- one hash


def _hashes(work: Path, env: Mapping[str, str]) -> list[str]:
    rows = []
    for name in HASHED:
        folder = _fixture(name, work, env)
        found = []
        for seed in range(EXPORTS):
            measure.progress(f"{name}, PYTHONHASHSEED={seed}")
            out = work / "exports" / f"{_slug(name)}-{seed}"
            said = _child(["export", str(folder), str(out)], work, {**env, "PYTHONHASHSEED": str(seed)})
            found.append(said.decode().split()[-1])
            shutil.rmtree(out)
        rows.append([name, str(EXPORTS), str(len(set(found))), found[0][:16]])
    headers = ["model", "exports, each with another PYTHONHASHSEED", "different graphs", "SHA-256 of the first"]
    return [measure.table(headers, rows)]


# --- what it costs


def _cost(work: Path, env: Mapping[str, str], runs: int) -> list[str]:
    folder = _fixture(TIMED, work, env)
    saved = str(folder / "model")
    theirs = [sys.executable, "-m", "tf2onnx.convert", "--saved-model", saved, "--opset", "13", "--output", "peer.onnx"]
    ours = [sys.executable, __file__, "child", "export", str(folder), str(work / "timed")]
    commands = [
        Command("python -m tf2onnx.convert", theirs, work, env),
        Command("trtrecipe: fetch, export, check", ours, work, env),
    ]
    taken = measure.interleaved(commands, runs)
    peer, mine = taken[commands[0].name], taken[commands[1].name]
    return [
        f"Export of {TIMED}:",
        "",
        measure.table(
            ["command", "CPU s", "x tf2onnx", "wall s", "peak MiB"],
            [_cost_row(command.name, taken[command.name], peer) for command in commands],
        ),
        "",
        "Budget:",
        "",
        f"- CPU seconds: {measure.verdict(mine.cpu / peer.cpu, BUDGET, ' x tf2onnx')}",
    ]


def _cost_row(name: str, sample: Sample, peer: Sample) -> list[str]:
    figures = [f"{sample.cpu:.2f}", f"{sample.cpu / peer.cpu:.2f}", f"{sample.wall:.2f}", f"{sample.peak:.0f}"]
    return [f"`{name}`", *figures]


# --- processes that this program starts


def _child(arguments: Sequence[str], work: Path, env: Mapping[str, str]) -> bytes:
    argv = [sys.executable, __file__, "child", *arguments]
    return measure.run_and_read(Command(" ".join(arguments[:2]), argv, work, env))[1]


def _names() -> None:
    from fixtures.formats import FORMATS

    print(json.dumps(list(FORMATS)))


def _make(name: str, folder: str) -> None:
    from fixtures.formats import FORMATS

    model = FORMATS[name](Path(folder))
    (Path(folder) / "model.json").write_text(json.dumps(model))


def _export(folder: str, out: str) -> None:
    """The steps fetch and export on a fixture, at opset 13; prints the SHA-256 of the graph."""
    import hashlib
    import os

    from trtrecipe.formats import model_format
    from trtrecipe.steps import export, fetch

    model = json.loads((Path(folder) / "model.json").read_text())
    source, target = Path(folder) / model["source"], Path(out)
    target.mkdir(parents=True, exist_ok=True)
    kind = model_format(source)
    fetch.run(fetch.Params(format=kind), {"source": source}, target)
    inputs = model.get("inputs", {})
    dims = ["batch"] if any("batch" in spec["shape"] for spec in inputs.values()) else []
    params = export.Params(format=kind, inputs=inputs, dims=dims, opset=13)
    export.run(params, {"model": target / fetch.OUTPUTS["model"]}, target)
    print(hashlib.sha256((target / export.OUTPUTS["onnx"]).read_bytes()).hexdigest())
    sys.stdout.flush()
    os._exit(0)  # as a step's process ends: TensorFlow's own clean-up takes a second


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


if __name__ == "__main__":
    main()
