"""How long trtrecipe takes when there is nothing to do, beside tools that people know.

Measures --help, validate, plan and a build that finds everything in the store (recipes/digits with its two targets,
and the same model with five), against `python -c pass` of the same Python and, where installed, against DVC and doit
on graphs of as many steps and against Polygraphy's --help. The first run builds the recipes, which takes a minute.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import measure
from measure import Command, Sample

DIGITS = measure.REPOSITORY / "recipes" / "digits"
TARGETS = """targets:
  - host
  - rtx
  - {profile: host, name: host-fp32, precision: {mode: fp32}}
  - {profile: rtx, name: rtx-fp16, precision: {mode: fp16}}
  - {profile: rtx, name: rtx-batch-64, model: {dims: {batch: {min: 1, opt: 64, max: 64}}}}
"""
BASELINE = "`python -c pass`"


def main() -> None:
    """Measure, print, and write if asked to."""
    options = measure.parser(__doc__, runs=15, peers=True).parse_args()
    program = measure.trtrecipe_program()
    with measure.work_folder(options.work) as work:
        env = measure.environment(TRTRECIPE_STORE=str(work / "store"))
        recipe, five = _recipes(work)
        _build(program, [recipe, five], work, env)
        steps = _steps(program, five, work, env)
        commands = [
            Command(BASELINE, [sys.executable, "-c", "pass"], work, env),
            *_ours(program, recipe, five, work, env),
            *_peers(options.peers, steps, work, measure.environment()),
        ]
        medians = measure.interleaved(commands, options.runs)
    measure.require_compiled("trtrecipe.cli.app")
    versions = [measure.machine("trtrecipe", "pydantic", "typer"), *_peer_versions(options.peers)]
    lines = [
        _table(medians),
        "",
        "Budgets:",
        "",
        *_budgets(medians),
        "",
        f"The graph of five targets has {steps} steps, those of DVC and doit are chains of as many.",
        f"{', '.join(versions)}.",
    ]
    measure.report("startup", "\n".join(lines), options.write)


def _recipes(work: Path) -> tuple[Path, Path]:
    """Copies of the digits recipe: as it is, and with five targets."""
    folder = work / "digits"
    shutil.copytree(DIGITS, folder, dirs_exist_ok=True)
    recipe, five = folder / "digits.yaml", folder / "five.yaml"
    head = recipe.read_text().partition("\ntargets:")[0]
    five.write_text(head.replace("name: digits", "name: five", 1) + "\n" + TARGETS)
    return recipe, five


def _build(program: Path, recipes: list[Path], work: Path, env: Mapping[str, str]) -> None:
    print("building what the no-op will find ...", file=sys.stderr)
    for recipe in recipes:
        measure.run(Command("the first build", [str(program), "build", str(recipe)], work, env))


def _steps(program: Path, recipe: Path, work: Path, env: Mapping[str, str]) -> int:
    """Distinct steps of the recipe's graph. Exits unless all of them are hits."""
    said = subprocess.run(
        [program, "build", recipe, "--json"], cwd=work, env=env, check=True, stdout=subprocess.PIPE
    ).stdout
    steps = {step["key"]: step["status"] for target in json.loads(said)["targets"] for step in target["steps"]}
    if set(steps.values()) != {"hit"}:
        sys.exit(f"a second build still runs steps: {steps}")
    return len(steps)


def _ours(program: Path, recipe: Path, five: Path, work: Path, env: Mapping[str, str]) -> list[Command]:
    arguments = {
        "`trtrecipe --help`": ["--help"],
        "`trtrecipe validate`": ["validate", str(recipe)],
        "`trtrecipe plan`": ["plan", str(recipe)],
        "`trtrecipe build`, no-op, 2 targets": ["build", str(recipe)],
        "`trtrecipe build`, no-op, 5 targets": ["build", str(five)],
    }
    return [Command(name, [str(program), *given], work, env) for name, given in arguments.items()]


def _peers(folder: Path, steps: int, work: Path, env: Mapping[str, str]) -> list[Command]:
    commands = []
    if (dvc := measure.peer(folder, "dvc")) is not None:
        commands.append(_dvc(dvc, steps, work / "dvc", env))
    if (doit := measure.peer(folder, "doit")) is not None:
        commands.append(_doit(doit, steps, work / "doit", env))
    if (polygraphy := measure.peer(folder, "polygraphy")) is not None:
        commands.append(Command("`polygraphy --help`", [str(polygraphy), "--help"], work, env))
    return commands


def _dvc(dvc: Path, steps: int, folder: Path, env: Mapping[str, str]) -> Command:
    """A chain of copies, reproduced once. No telemetry, no look for updates, nothing of the user's settings."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    env = {**env, "DVC_NO_ANALYTICS": "1", "DVC_GLOBAL_CONFIG_DIR": str(folder), "DVC_SITE_CACHE_DIR": str(folder)}
    (folder / "0").write_text("start\n")
    stages = "".join(
        f"  s{i}: {{cmd: cp {i - 1} {i}, deps: ['{i - 1}'], outs: ['{i}']}}\n" for i in range(1, steps + 1)
    )
    (folder / "dvc.yaml").write_text(f"stages:\n{stages}")
    for arguments in (["init", "--no-scm"], ["config", "core.check_update", "false"], ["repro"]):
        measure.run(Command(f"dvc {arguments[0]}", [str(dvc), *arguments], folder, env))
    return Command("`dvc repro`, no-op", [str(dvc), "repro"], folder, env)


def _doit(doit: Path, steps: int, folder: Path, env: Mapping[str, str]) -> Command:
    """A chain of copies, run once."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "0").write_text("start\n")
    (folder / "dodo.py").write_text(
        "def task_step():\n"
        f"    for i in range(1, {steps} + 1):\n"
        "        old, new = str(i - 1), str(i)\n"
        "        yield {'name': new, 'actions': [f'cp {old} {new}'], 'file_dep': [old], 'targets': [new]}\n"
    )
    command = Command("`doit`, no-op", [str(doit)], folder, env)
    measure.run(command)
    return command


def _table(medians: Mapping[str, Sample]) -> str:
    base = medians[BASELINE]
    rows = [
        [name, f"{m.wall * 1e3:.0f}", f"{m.cpu * 1e3:.0f}", f"{m.wall / base.wall:.1f}", f"{m.cpu / base.cpu:.1f}",
         f"{m.peak:.0f}"]
        for name, m in medians.items()
    ]  # fmt: skip
    return measure.table(["command", "ms", "CPU ms", "x pass", "x pass, CPU", "peak MiB"], rows)


def _budgets(medians: Mapping[str, Sample]) -> list[str]:
    base = medians[BASELINE].wall
    lines = []
    for name in ("`trtrecipe --help`", "`trtrecipe validate`"):
        wall = medians[name].wall
        lines.append(f"- {name}: {measure.verdict(wall, 0.25, ' s')}, {measure.verdict(wall / base, 12, ' x pass')}")
    name = "`trtrecipe build`, no-op, 5 targets"
    no_op = medians[name]
    lines.append(f"- {name}: {measure.verdict(no_op.wall, 0.5, ' s')}, {measure.verdict(no_op.peak, 60, ' MiB')}")
    return lines


def _peer_versions(folder: Path) -> list[str]:
    programs = {name: folder / "bin" / name for name in ("dvc", "doit", "polygraphy")}
    return [measure.peer_version(program.resolve(), name) for name, program in programs.items() if program.is_file()]


if __name__ == "__main__":
    main()
