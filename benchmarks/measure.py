"""What the programs of this folder share: timed child processes, medians, Markdown tables, RESULTS.md.

Standard library only and few imports: this process is the floor of the peak memory that the system reports for its
children (Linux carries the parent's peak over at exec), and it must stay below that of the smallest thing measured.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "benchmarks" / "RESULTS.md"
PEERS = REPOSITORY / "build" / "peers"
PEERS_HELP = """To install the peers, from the repository's root:
  python3 -m venv build/peers
  build/peers/bin/pip install --require-hashes -r benchmarks/requirements.txt"""
SECTIONS = (
    "startup",
    "noop_graph",
    "cold_build",
    "hashing",
    "calibration",
    "sources",
    "large_models",
    "device_overhead",
)

_HEADER = """# Measured

One section per program of this folder, each written by the command it names. All figures are medians over interleaved
runs: every command once, then every command again, so that a busy moment of the machine falls on all of them. `CPU` is
user plus system time of the process and the children it waited for, `peak` the largest resident memory of any one of
them. Budgets are ratios against the peer measured in the same run; absolute figures depend on the machine.
"""


class Sample(NamedTuple):
    """One run of a command: seconds on the wall, seconds of CPU, MiB of peak resident memory."""

    wall: float
    cpu: float
    peak: float


class Command(NamedTuple):
    """Something to measure. `ok` lists the exit codes of a run that did what it should."""

    name: str
    argv: Sequence[str]
    cwd: Path
    env: Mapping[str, str]
    ok: tuple[int, ...] = (0,)


def run(command: Command) -> Sample:
    """Run the command to its end. Exits this program with what the command said when it failed."""
    return run_and_read(command)[0]


def run_and_read(command: Command) -> tuple[Sample, bytes]:
    """Like `run`, with what the command wrote to standard output."""
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as answer:
        start = time.perf_counter()
        child = subprocess.Popen(
            command.argv, cwd=command.cwd, env=command.env, stdin=subprocess.DEVNULL, stdout=answer, stderr=said
        )
        _, status, usage = os.wait4(child.pid, 0)
        wall = time.perf_counter() - start
        child.returncode = code = os.waitstatus_to_exitcode(status)  # so that Popen does not wait for it again
        if code not in command.ok:
            said.seek(0)
            words = said.read()[-2000:].decode(errors="replace")
            sys.exit(f"{command.name} ended with exit code {code}: {shlex.join(command.argv)}\n{words}")
        answer.seek(0)
        return Sample(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024), answer.read()


def interleaved(commands: Sequence[Command], runs: int, warm_up: int = 1) -> dict[str, Sample]:
    """The median of every figure of every command, by the command's name."""
    samples: dict[str, list[Sample]] = {command.name: [] for command in commands}
    for turn in range(warm_up + runs):
        for command in commands:
            progress(f"run {turn + 1} of {warm_up + runs}: {command.name}")
            sample = run(command)
            if turn >= warm_up:
                samples[command.name].append(sample)
    progress("")
    return {name: median_sample(taken) for name, taken in samples.items()}


def median_sample(samples: Sequence[Sample]) -> Sample:
    """The median of each figure by itself."""
    return Sample(*(median(list(figures)) for figures in zip(*samples, strict=True)))


def median(values: Sequence[float]) -> float:
    """The middle value, or the mean of the middle two."""
    ordered, middle = sorted(values), len(values) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def progress(text: str) -> None:
    """Show on a terminal what is going on; nothing for the end of it."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\033[K{text}")
        sys.stderr.flush()


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others figures."""
    lines = [headers, ["---", *("---:" for _ in headers[1:])], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def verdict(value: float, limit: float, unit: str = "") -> str:
    """ "value unit (budget ≤ limit: met)" or "missed"."""
    return f"{value:.3g}{unit} (budget ≤ {limit:.3g}{unit}: {'met' if value <= limit else '**missed**'})"


def parser(document: str | None, runs: int, peers: bool = False) -> argparse.ArgumentParser:
    """Options that all programs have; with `peers`, where those are installed."""
    made = argparse.ArgumentParser(
        description=document,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=PEERS_HELP if peers else None,
    )
    made.add_argument("--runs", type=int, default=runs, metavar="N", help=f"measured runs of each (default: {runs})")
    made.add_argument("--write", action="store_true", help="also put the table into benchmarks/RESULTS.md")
    made.add_argument("--work", type=Path, metavar="DIR", help="keep what is prepared here (default: a temporary one)")
    if peers:
        made.add_argument("--peers", type=Path, default=PEERS, metavar="DIR", help="their venv (default: build/peers)")
    return made


@contextmanager
def work_folder(named: Path | None) -> Iterator[Path]:
    """The folder of --work, made if need be, or a temporary one that is removed afterwards."""
    if named is not None:
        named.mkdir(parents=True, exist_ok=True)
        yield named.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="trtrecipe-benchmark-") as folder:
        yield Path(folder)


def environment(**extra: str) -> dict[str, str]:
    """What measured commands see: this program's environment without what changes how Python starts."""
    if os.environ.get("PYTHONDONTWRITEBYTECODE"):
        sys.exit(
            "PYTHONDONTWRITEBYTECODE is set: without compiled files Python starts two to three times more slowly\n"
            "run: env -u PYTHONDONTWRITEBYTECODE python benchmarks/..."
        )
    left_out = {"PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "PYTHONPROFILEIMPORTTIME", "PYTHONTRACEMALLOC"}
    return {name: value for name, value in os.environ.items() if name not in left_out} | extra


def trtrecipe_program() -> Path:
    """The `trtrecipe` beside the Python that runs this. Exits when it is not installed."""
    program = Path(sys.executable).parent / "trtrecipe"
    if not program.is_file():
        sys.exit(
            f"{program} does not exist: run this with the Python of the environment that trtrecipe is installed in"
        )
    return program


def require_compiled(name: str) -> None:
    """Exit unless the module has a compiled file by now: timings without one say nothing."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.cached is None or not Path(spec.cached).is_file():
        sys.exit(f"{name} has no compiled file, and running it made none: is its folder writable?")


def peer(folder: Path, name: str) -> Path | None:
    """The peer's program, or None with a line on stderr saying that it is left out."""
    program = folder.resolve() / "bin" / name
    if program.is_file():
        return program
    sys.stderr.write(f"{name} is left out: {program} does not exist (--help says how to install it)\n")
    return None


def peer_version(program: Path, distribution: str) -> str:
    """ "name version" of a distribution in the environment of `program`."""
    folders = program.parent.parent.glob("lib/python*/site-packages")
    found = metadata.distributions(name=distribution, path=[str(folder) for folder in folders])
    return f"{distribution} {next(iter(found)).version}"


def machine(*distributions: str) -> str:
    """CPU, cores, Python and the versions of what was measured, for a person."""
    name = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    versions = [f"{name} {metadata.version(name)}" for name in distributions]
    listed = ", ".join([f"Python {platform.python_version()}", *versions])
    # This program keeps one core busy by itself; what is beyond that was someone else's work.
    return f"{name}, {os.cpu_count()} cores, load {os.getloadavg()[1]:.1f} in the last five minutes; {listed}"


def report(section: str, body: str, write: bool) -> None:
    """Print the section; with `write`, put it into RESULTS.md in place of the one before."""
    command = shlex.join(["python", f"benchmarks/{section}.py", *_given()])
    text = f"## {section}\n\n`{command}`\n\n{body}\n"
    print(text)
    if write:
        sections = _sections() | {section: text}
        RESULTS.write_text("\n".join([_HEADER, *(sections[name] for name in SECTIONS if name in sections)]))


def _given() -> list[str]:
    """The options of this run, without where things are on this machine."""
    given, rest = [], iter(sys.argv[1:])
    for argument in rest:
        if argument in ("--work", "--peers"):
            next(rest)
        elif not argument.startswith(("--work=", "--peers=")):
            given.append(argument)
    return given


def _sections() -> dict[str, str]:
    if not RESULTS.is_file():
        return {}
    parts = RESULTS.read_text().split("\n## ")[1:]
    return {part.partition("\n")[0]: f"## {part.rstrip()}\n" for part in parts}
