"""What a build on a device costs beside the work itself, on this machine's loopback.

A device of the tests (`tests/support/sshd.py`: a real OpenSSH server, a stand-in for trtexec) is built on in two ways:
by `trtrecipe build`, all of whose other steps are in the store, and by hand, with scp of the graph, ssh of the same
trtexec command, scp of the engine. Then nothing has changed, and `trtrecipe build` is run again: with a look at the
device that is recent enough, which opens no connection, and with TRTRECIPE_PROBE_AGE=0, which asks the device what it
is; by hand that is `ssh DEVICE cat /etc/nv_tegra_release`. Needs Debian's openssh-server.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from measure import (
    Command,
    Sample,
    environment,
    machine,
    median_sample,
    parser,
    progress,
    report,
    require_compiled,
    run,
    run_and_read,
    table,
    trtrecipe_program,
    verdict,
    work_folder,
)

BUILD_SECONDS, NOOP_SECONDS = 1.5, 0.5
TARGET = "jetson-xavier-nx@5.1.4"
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))


def main() -> None:
    """Measure and report."""
    options = parser(__doc__, runs=7).parse_args()
    require_compiled("trtrecipe.device.agent")
    from support.sshd import lab

    with work_folder(options.work) as folder, lab(folder / "lab") as bench:
        measured = _measure(folder, bench, options.runs)
        calls = bench.client_calls()
        run(_build(folder, "within the age"))
        connections = bench.client_calls() - calls
    report("device_overhead", _text(measured, connections, options.runs), options.write)


def _measure(folder: Path, bench: Any, runs: int) -> dict[str, Sample]:
    from support.projects import make_project
    from support.sshd import XAVIER_NX

    device = bench.add("nx", XAVIER_NX)
    device.trtexec_fault(repeats=True)  # so that the steps after it are in the store too
    project = make_project(folder / "project", {"targets": [TARGET], "precision": {"mode": "fp16"}})
    inventory = f"schema: trtrecipe/inventory/v1\ndevices: {{nx: {{profile: jetson-xavier-nx, ssh: {device.host}}}}}\n"
    (project.folder / "devices.yaml").write_text(inventory)
    answer = json.loads(run_and_read(_build(folder, "first"))[1])
    [target] = answer["targets"]
    steps = {step["kind"]: step for step in target["steps"]}
    graph = folder / target["artifacts"]["onnx"]["path"]
    [arguments] = [call["argv"] for call in device.builds("end")]
    samples: dict[str, list[Sample]] = {}
    for turn in range(1 + runs):
        progress(f"run {turn} of {runs}")
        _forget(folder, device, steps["compile"]["key"])
        taken = {"build": run(_build(folder, "build"))}
        taken["build by hand"] = run(_by_hand(folder, device, graph, arguments))
        taken["no-op"] = run(_build(folder, "no-op"))
        taken["no-op that asks"] = run(_build(folder, "no-op that asks", TRTRECIPE_PROBE_AGE="0"))
        taken["asked by hand"] = run(_ssh(folder, device, "cat /etc/os-release"))
        for name, sample in taken.items():
            if turn:
                samples.setdefault(name, []).append(sample)
    progress("")
    return {name: median_sample(several) for name, several in samples.items()}


def _forget(folder: Path, device: Any, key: str) -> None:
    """Let the engine be built again, and the graph be sent again; nothing else runs."""
    (folder / "store" / "v1" / "records" / key[:2] / f"{key[2:]}.json").unlink()
    device.clear()


def _environment(folder: Path, **more: str) -> dict[str, str]:
    return environment(TRTRECIPE_STORE=str(folder / "store"), **more) | {"PATH": os.environ["PATH"]}


def _build(folder: Path, name: str, **more: str) -> Command:
    recipe = str(folder / "project/recipe.yaml")
    command = [str(trtrecipe_program()), "build", recipe, "--json", "--output", str(folder / "dist")]
    return Command(name, command, folder, _environment(folder, **more))


def _by_hand(folder: Path, device: Any, graph: Path, arguments: list[str]) -> Command:
    there = folder / "there"
    there.mkdir(exist_ok=True)
    words = [f"cd {there} &&", str(device.trtexec), *arguments]
    script = (
        f"set -e; scp -q -F {folder}/lab/ssh_config {graph} {device.host}:{there}/model.onnx; "
        f"ssh {device.host} '{' '.join(words)}' >/dev/null; "
        f"scp -q -F {folder}/lab/ssh_config {device.host}:{there}/model.engine {folder}/by-hand.engine"
    )
    return Command("build by hand", ["/bin/sh", "-c", script], folder, _environment(folder))


def _ssh(folder: Path, device: Any, words: str) -> Command:
    return Command("asked by hand", ["ssh", device.host, words], folder, _environment(folder))


def _text(measured: dict[str, Sample], connections: int, runs: int) -> str:
    rows = [[name, f"{sample.wall:.2f}", f"{sample.cpu:.2f}"] for name, sample in measured.items()]
    build = measured["build"].wall - measured["build by hand"].wall
    asks = measured["no-op that asks"].wall - measured["asked by hand"].wall
    return "\n".join([
        f"{machine('trtrecipe')}; medians of {runs} runs.",
        "",
        table(["", "wall s", "CPU s"], rows),
        "",
        f"- a build beyond the same by hand: {verdict(build, BUILD_SECONDS, ' s')}",
        f"- a no-op: {verdict(measured['no-op'].wall, NOOP_SECONDS, ' s')}, {connections} connections",
        f"- a no-op that asks the device, beyond ssh: {verdict(asks, NOOP_SECONDS, ' s')}",
    ])  # fmt: skip


if __name__ == "__main__":
    main()
