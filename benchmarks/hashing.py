"""How fast trtrecipe hashes a data set, beside reading it.

Writes one .npy file of random samples (1 GiB unless --mib says otherwise), then reads and hashes it in a process of its
own each time: with the file in the page cache, and with the file dropped from it first. `read` only reads, in the same
pieces; `hashlib` hashes one piece in memory again and again, which is what SHA-256 allows on this CPU.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import measure
from measure import Command, Sample

PIECE = 1 << 20
SHAPE = (256, 256)  # of one sample, float32: 256 KiB
CALLS = ("read", "digest_samples", "sha256_file", "hashlib")


def main() -> None:
    """Measure, print, and write if asked to; or be the process that is measured."""
    if sys.argv[1:2] and sys.argv[1] in CALLS:
        child(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
        return
    parser = measure.parser(__doc__, runs=5)
    parser.add_argument("--mib", type=int, default=1024, metavar="N", help="size of the file (default: 1024)")
    options = parser.parse_args()
    env = measure.environment()
    with measure.work_folder(options.work) as work:
        file = work / "samples.npy"
        _write(file, options.mib)
        commands = _commands(file, options.mib, work, env)
        cached = measure.interleaved(commands, options.runs)
        cold = _cold(commands, file, options.runs)
    lines = [_table(cached, cold, options.mib), "", "Budgets:", ""]
    for how, medians in (("in the page cache", cached), ("not in the page cache", cold)):
        share = medians["read"].wall / medians["trtrecipe, `digest_samples`"].wall
        word = "met" if share >= 0.8 else "**missed**"
        lines.append(f"- hashing {how}: {share:.2f} x the speed of reading (budget ≥ 0.8: {word})")
    measure.report("hashing", "\n".join([*lines, "", f"{measure.machine('trtrecipe')}."]), options.write)


def _commands(file: Path, mib: int, work: Path, env: dict[str, str]) -> list[Command]:
    def ours(call: str) -> list[str]:
        return [sys.executable, __file__, call, str(file), str(mib)]

    commands = [
        Command("read", ours("read"), work, env),
        Command("trtrecipe, `digest_samples`", ours("digest_samples"), work, env),
        Command("trtrecipe, `sha256_file`", ours("sha256_file"), work, env),
        Command("hashlib, no file", ours("hashlib"), work, env),
    ]
    if (program := shutil.which("sha256sum")) is not None:
        commands.append(Command("sha256sum", [program, str(file)], work, env))
    if (program := shutil.which("openssl")) is not None:
        commands.append(Command("openssl dgst -sha256", [program, "dgst", "-sha256", str(file)], work, env))
    return commands


def _write(file: Path, mib: int) -> None:
    """An .npy file as NumPy writes it, of random bytes: a data set's entropy does not matter to SHA-256."""
    samples = (mib << 20) // (4 * SHAPE[0] * SHAPE[1])
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({samples}, {SHAPE[0]}, {SHAPE[1]}), }}"
    header = text.encode() + b" " * (-(10 + len(text) + 1) % 64) + b"\n"
    with file.open("wb") as opened:
        opened.write(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
        for _ in range(mib):
            opened.write(os.urandom(PIECE))
        opened.flush()
        os.fsync(opened.fileno())


def _cold(commands: list[Command], file: Path, runs: int) -> dict[str, Sample]:
    """Like `measure.interleaved`, each time after the system has let go of the file's pages."""
    samples: dict[str, list[Sample]] = {command.name: [] for command in commands if "no file" not in command.name}
    for turn in range(runs):
        for command in commands:
            if command.name not in samples:
                continue
            measure.progress(f"cold run {turn + 1} of {runs}: {command.name}")
            with file.open("rb") as opened:
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            samples[command.name].append(measure.run(command))
    measure.progress("")
    return {name: measure.median_sample(taken) for name, taken in samples.items()}


def _table(cached: dict[str, Sample], cold: dict[str, Sample], mib: int) -> str:
    rows = []
    for name, warm in cached.items():
        row = [name, f"{warm.wall:.2f}", f"{warm.cpu:.2f}", f"{mib / warm.wall:.0f}"]
        if name in cold:
            row += [f"{cold[name].wall:.2f}", f"{cold[name].cpu:.2f}", f"{mib / cold[name].wall:.0f}"]
        rows.append([*row, *[""] * (7 - len(row)), f"{warm.peak:.0f}"])
    headers = ["what", "cached s", "CPU s", "MiB/s", "not cached s", "CPU s", "MiB/s", "peak MiB"]
    return measure.table(headers, rows)


def child(call: str, file: Path, mib: int) -> None:
    """Read or hash the file once."""
    calls: dict[str, Callable[[], object]] = {
        "read": lambda: _read(file),
        "digest_samples": lambda: _digest_samples(file),
        "sha256_file": lambda: _sha256_file(file),
        "hashlib": lambda: _hashlib(mib),
    }
    calls[call]()


def _read(file: Path) -> None:
    with file.open("rb") as opened:
        while opened.read(PIECE):
            pass


def _digest_samples(file: Path) -> None:
    from trtrecipe.data.sampling import Sampling
    from trtrecipe.data.sources import ArrayData, digest_samples

    digest_samples(ArrayData(file, None), Sampling(None, 0))


def _sha256_file(file: Path) -> None:
    from trtrecipe.digest import sha256_file

    sha256_file(file)


def _hashlib(mib: int) -> None:
    import hashlib

    piece, digest = os.urandom(PIECE), hashlib.sha256()
    for _ in range(mib):
        digest.update(piece)
    digest.hexdigest()


if __name__ == "__main__":
    main()
