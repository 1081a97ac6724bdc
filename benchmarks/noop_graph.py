"""How long a build of many steps takes when the store has them all, beside doit on an equal graph.

Graphs of 1,000 and 10,000 steps, as one chain and as independent steps, each step with one input and one output file,
and one of a single step, which shows what starting costs.
trtrecipe's own resolver, scheduler and store see them, in a fresh process per run, from start to exit; its recipes
cannot ask for that many steps, so the graph is made directly, and its results are published without running anything.
doit gets a dodo.py with a task for every step, `file_dep` and `targets` being the same files, and has run once.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import measure
from measure import Command, Sample

BUDGETS = {1_000: 1.0, 10_000: 0.5}  # steps → limit, as a multiple of doit's time
SHAPES = ("chain", "independent")
GRAPHS = [(1, "chain"), *((size, shape) for size in BUDGETS for shape in SHAPES)]
CHILD = Path(__file__).with_name("noop_child.py")


def main() -> None:
    """Measure, print, and write if asked to."""
    options = measure.parser(__doc__, runs=7, peers=True).parse_args()
    measure.trtrecipe_program()
    doit = measure.peer(options.peers, "doit")
    with measure.work_folder(options.work) as work:
        env = measure.environment()
        commands = [
            command
            for size, shape in GRAPHS
            for command in (_ours(shape, size, work, env), _doit(doit, shape, size, work, env) if doit else None)
            if command is not None
        ]
        medians = measure.interleaved(commands, options.runs)
    measure.require_compiled("trtrecipe.run.scheduler")
    versions = [measure.machine("trtrecipe"), *([measure.peer_version(doit, "doit")] if doit else [])]
    lines = [_table(medians), "", "Budgets:", "", *_budgets(medians), "", f"{', '.join(versions)}."]
    measure.report("noop_graph", "\n".join(lines), options.write)


def _ours(shape: str, size: int, work: Path, env: Mapping[str, str]) -> Command:
    """Fill a store with the graph's results."""
    folder = work / f"trtrecipe-{shape}-{size}"
    shutil.rmtree(folder, ignore_errors=True)
    _write_inputs(folder, shape, size)
    arguments = [str(folder), shape, str(size)]
    print(f"filling a store: {shape}, {size} steps ...", file=sys.stderr)
    measure.run(Command("filling the store", [sys.executable, str(CHILD), "fill", *arguments], work, env))
    return Command(_name("trtrecipe", shape, size), [sys.executable, str(CHILD), "no-op", *arguments], work, env)


def _doit(doit: Path, shape: str, size: int, work: Path, env: Mapping[str, str]) -> Command:
    folder = work / f"doit-{shape}-{size}"
    shutil.rmtree(folder, ignore_errors=True)
    _write_inputs(folder, shape, size)
    before = "f'out/{i - 1}' if i else 'in/0'" if shape == "chain" else "f'in/{i}'"
    (folder / "out").mkdir()
    (folder / "dodo.py").write_text(
        "from pathlib import Path\n\n\n"
        "def write(targets):\n"
        "    Path(targets[0]).write_text(targets[0])\n\n\n"
        "def task_step():\n"
        f"    for i in range({size}):\n"
        f"        yield {{'name': str(i), 'actions': [write], 'file_dep': [{before}], 'targets': [f'out/{{i}}']}}\n"
    )
    command = Command(_name("doit", shape, size), [str(doit)], folder, env)
    print(f"running doit once: {shape}, {size} steps ...", file=sys.stderr)
    measure.run(command)
    return command


def _write_inputs(folder: Path, shape: str, size: int) -> None:
    """The files that come from outside: the first step's, or one for every step. An hour old, as sources mostly are."""
    inputs = folder / "in"
    inputs.mkdir(parents=True)
    for number in range(1 if shape == "chain" else size):
        file = inputs / str(number)
        file.write_text(f"input {number}\n")
        os.utime(file, (file.stat().st_mtime - 3600,) * 2)


def _name(tool: str, shape: str, size: int) -> str:
    return f"{tool}, {size:,} steps, {shape}" if size > 1 else f"{tool}, 1 step"


def _table(medians: Mapping[str, Sample]) -> str:
    rows = []
    for name, m in medians.items():
        other = medians.get("doit" + name.partition(",")[1] + name.partition(",")[2]) if name[0] == "t" else None
        ratios = [f"{m.wall / other.wall:.2f}", f"{m.cpu / other.cpu:.2f}"] if other else ["", ""]
        rows.append([name, f"{m.wall:.3f}", f"{m.cpu:.3f}", *ratios, f"{m.peak:.0f}"])
    return measure.table(["graph", "s", "CPU s", "x doit", "x doit, CPU", "peak MiB"], rows)


def _budgets(medians: Mapping[str, Sample]) -> list[str]:
    lines = []
    for size, limit in BUDGETS.items():
        for shape in SHAPES:
            ours, doit = (medians.get(_name(tool, shape, size)) for tool in ("trtrecipe", "doit"))
            assert ours is not None
            against = f"{measure.verdict(ours.wall / doit.wall, limit, ' x doit')}, " if doit else ""
            lines.append(f"- {size:,} steps, {shape}: {against}{measure.verdict(ours.peak, 80, ' MiB')}")
    return lines


if __name__ == "__main__":
    main()
