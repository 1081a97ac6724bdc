"""What a first build costs over calling the tools by hand.

Builds recipes/digits (int8, targets host and rtx) with an empty store, one step at a time (-j 1) and two (-j 2), and
calls the same tools one after the other as a careful shell script would (benchmarks/direct.py says how): the same
samples, batch, bins, ranges and benchmark duration, no cache, no checks. Needs the extras tensorflow and rtx.

trtrecipe's workers end without TensorFlow's clean-up, which takes a second or more. A script could do that too, if its
author knew: the total is given both ways, and the budget holds for the smaller one.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import direct
import measure
from measure import Command, Sample

DIGITS = measure.REPOSITORY / "recipes" / "digits"
JOBS = (1, 2)
AT_ONCE = "tf2onnx, leaving at once"
_REMARK = """Step by step with `-j 1`. `s in step` leaves out what every step's process costs: starting, locks, inputs
copied and hashed, outputs hashed and synced to the disk. By hand, `lower` is not needed, and `quantize` is in the call
that calibrates."""
COUNTERPARTS = {
    "fetch": "copy",
    "export": "tf2onnx",
    "prepare": "simplify",
    "reference": "reference",
    "calibrate": "quantize",
    "lower@ort": None,
    "lower@rtx": None,
    "quantize@ort": None,
    "convert@rtx": "half",
    "compile@host": "host_engine",
    "compile@rtx": "rtx_engine",
    "verify@host": "evaluate_host",
    "verify@rtx": "evaluate_rtx",
    "benchmark@host": "latency",
}
"""Step → the call that does its work by hand."""


def main() -> None:
    """Measure, print, and write if asked to."""
    options = measure.parser(__doc__, runs=5).parse_args()
    program = measure.trtrecipe_program()
    env = measure.environment()
    tools: dict[str, list[Sample]] = {name: [] for name in (*direct.TOOLS, AT_ONCE)}
    builds: dict[int, list[Sample]] = {jobs: [] for jobs in JOBS}
    seconds: dict[str, list[float]] = {}
    with measure.work_folder(options.work) as work:
        for turn in range(options.runs + 1):  # the first brings everything into the page cache and does not count
            calls = _by_hand(work, env, turn)
            built = {jobs: _build(program, jobs, work, env, turn) for jobs in JOBS}
            if turn == 0:
                continue
            for name, sample in calls.items():
                tools[name].append(sample)
            for jobs, (sample, _) in built.items():
                builds[jobs].append(sample)
            for step, spent in built[1][1].items():
                seconds.setdefault(step, []).append(spent)
    measure.progress("")
    measure.require_compiled("trtrecipe.run.worker")
    versions = measure.machine("trtrecipe", "tensorflow", "tf2onnx", "onnx", "onnxruntime", "tensorrt-rtx")
    usual, at_once = _total(tools, AT_ONCE), _total(tools, "tf2onnx")
    medians = {jobs: measure.median_sample(taken) for jobs, taken in builds.items()}
    lines = [
        _totals(usual, at_once, medians),
        "",
        "Budget:",
        "",
        *(f"- `-j {jobs}`: {measure.verdict(m.wall / at_once.wall, 1.1, ' x by hand')}" for jobs, m in medians.items()),
        "",
        _REMARK,
        "",
        _steps(tools, seconds),
        "",
        f"{versions}.",
    ]
    measure.report("cold_build", "\n".join(lines), options.write)


def _by_hand(work: Path, env: Mapping[str, str], turn: int) -> dict[str, Sample]:
    folder = work / "by-hand"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(DIGITS, folder)
    samples = {}
    for name in direct.TOOLS:
        measure.progress(f"run {turn}: {name}")
        samples[name] = measure.run(Command(name, [sys.executable, direct.__file__, name, str(folder)], work, env))
    argv = [sys.executable, direct.__file__, "tf2onnx", str(folder), "--leave-at-once"]
    samples[AT_ONCE] = measure.run(Command(AT_ONCE, argv, work, env))
    return samples


def _total(tools: Mapping[str, list[Sample]], without: str) -> Sample:
    """The median over runs of the sum of all calls but one."""
    turns = zip(*(taken for name, taken in tools.items() if name != without), strict=True)
    return measure.median_sample([Sample(*(sum(figures) for figures in zip(*turn, strict=True))) for turn in turns])


def _build(program: Path, jobs: int, work: Path, env: Mapping[str, str], turn: int) -> tuple[Sample, dict[str, float]]:
    """One cold build, and the seconds inside each of its steps."""
    measure.progress(f"run {turn}: trtrecipe build -j {jobs}")
    folder = work / "build"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    argv = [str(program), "build", str(DIGITS / "digits.yaml"), "-j", str(jobs), "--json"]
    sample, said = measure.run_and_read(
        Command("trtrecipe build", argv, folder, {**env, "TRTRECIPE_STORE": str(folder / "store")})
    )
    return sample, _seconds(json.loads(said))


def _seconds(document: Mapping[str, Any]) -> dict[str, float]:
    """Step, named as in COUNTERPARTS → seconds. Steps that targets share appear once."""
    by_key: dict[str, tuple[str, float]] = {}
    for target in document["targets"]:
        for step in target["steps"]:
            names = [name for name in COUNTERPARTS if name.partition("@")[0] == step["kind"]]
            own = {"lower": {"host": "lower@ort", "rtx": "lower@rtx"}}.get(step["kind"], {}).get(target["target"])
            name = own or next((n for n in names if n.endswith(f"@{target['target']}")), names[0])
            by_key.setdefault(step["key"], (name, step["seconds"]))
    merged: dict[str, float] = {}
    for name, spent in by_key.values():
        merged[name] = merged.get(name, 0.0) + spent
    return merged


def _totals(usual: Sample, at_once: Sample, builds: Mapping[int, Sample]) -> str:
    samples = {
        "the tools by hand, one after the other": usual,
        "the same, TensorFlow's process leaving at once": at_once,
        **{f"`trtrecipe build -j {jobs}`": sample for jobs, sample in builds.items()},
    }
    rows = [
        [name, f"{m.wall:.2f}", f"{m.cpu:.2f}", f"{m.wall / usual.wall:.2f}", f"{m.wall / at_once.wall:.2f}"]
        for name, m in samples.items()
    ]
    return measure.table(["cold build", "s", "CPU s", "x by hand", "x by hand, at once"], rows)


def _steps(tools: Mapping[str, list[Sample]], seconds: Mapping[str, list[float]]) -> str:
    rows = []
    for step, tool in COUNTERPARTS.items():
        spent = f"{measure.median(seconds[step]):.2f}" if step in seconds else ""
        call = measure.median_sample(tools[tool]) if tool else None
        rows.append([step, spent, tool or "", f"{call.wall:.2f}" if call else "", f"{call.cpu:.2f}" if call else ""])
        if tool == "tf2onnx":
            call = measure.median_sample(tools[AT_ONCE])
            rows.append(["", "", AT_ONCE, f"{call.wall:.2f}", f"{call.cpu:.2f}"])
    return measure.table(["step", "s in step", "by hand", "s", "CPU s"], rows)


if __name__ == "__main__":
    main()
