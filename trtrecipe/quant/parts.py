"""The samples of a calibration in parts, each counted by a process of its own.

Processes are started afresh rather than forked, as ONNX Runtime and NumPy have threads. They get what to do as one line
of JSON on standard input, which stays open: when it closes, the parent is gone, and so are they. What they counted they
leave in files; they answer with one line of JSON, {} or {"error", "hint"}.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trtrecipe.data.preprocess import Operations
from trtrecipe.errors import StepError, TrtrecipeError
from trtrecipe.graphs import files
from trtrecipe.quant.counting import Given, Group, Saver, Watch, count
from trtrecipe.quant.counts import Span

_PROGRAM = "import sys; sys.path[:] = sys.argv[1].split(chr(10)); from trtrecipe.quant.parts import main; main()"


@dataclass(frozen=True)
class Part:
    """What one process does: of each group, the samples of `spans`, into the file at the same place in `saved`."""

    inputs: Mapping[str, str]
    preprocess: Mapping[str, Operations]
    watch: Watch
    layouts: Sequence[str]
    spans: Sequence[Sequence[Span]]
    saved: Sequence[str]
    check: Sequence[bool]


def run_all(parts: Sequence[Part]) -> None:
    """Run each part in a process of its own. Raises StepError of the first that fails, and ends the others."""
    waiting: list[subprocess.Popen[bytes]] = []
    try:
        with selectors.DefaultSelector() as selector:
            for part in parts:
                waiting.append(_start(part))
                selector.register(_output(waiting[-1]), selectors.EVENT_READ, waiting[-1])
            while selector.get_map():
                for event, _ in selector.select():
                    selector.unregister(event.fileobj)
                    _finish(event.data)
    finally:
        for process in waiting:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                with contextlib.suppress(BrokenPipeError):
                    if stream is not None:
                        stream.close()


def _start(part: Part) -> subprocess.Popen[bytes]:
    path = [str(Path(entry).absolute()) for entry in sys.path if entry]
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, "\n".join(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it ended at once: its status tells
        process.stdin.write(json.dumps(asdict(part)).encode() + b"\n")
        process.stdin.flush()
    return process


def _output(process: subprocess.Popen[bytes]) -> Any:
    assert process.stdout is not None
    return process.stdout


def _finish(process: subprocess.Popen[bytes]) -> None:
    """The answer of a process that has begun to give it, or has ended. Raises StepError when it failed."""
    said = _output(process).read()
    code = process.wait()
    try:
        answer = json.loads(said)
    except ValueError:
        ended = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        hint = "the machine may be out of memory; use fewer processes (--jobs)" if code == -signal.SIGKILL else None
        raise StepError(f"a process that counts a part of the samples was ended {ended}", hint) from None
    if "error" in answer:
        raise StepError(answer["error"], answer["hint"])


def main() -> None:
    """Count the part on standard input."""
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what tools print must not garble the answer
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    said: dict[str, str | None] = {}
    try:
        _count(_part(request))
    except TrtrecipeError as error:
        said = {"error": error.message, "hint": error.hint}
    except OSError as error:
        said = {"error": f"{error.filename or 'a file of counts'}: {error.strerror}", "hint": None}
    json.dump(said, answer)
    answer.flush()
    sys.stderr.flush()
    os._exit(0)


def _end_with_parent() -> None:
    # Reads the descriptor, not sys.stdin: its lock must not be held by a thread when the interpreter ends.
    while os.read(0, 4096):
        pass
    os._exit(1)


def _part(request: Mapping[str, Any]) -> Part:
    watch = request["watch"]
    groups = tuple(Group(tuple(group["counted"]), tuple(group["ranged"])) for group in watch["groups"])
    return Part(**{**request, "watch": Watch(groups, watch["needed"], watch["makers"])})


def _count(part: Part) -> None:
    inputs = {role: Path(path) for role, path in part.inputs.items()}
    given = Given.open(files.load(inputs["onnx"]), inputs, part.preprocess)
    work = zip(part.watch.groups, part.layouts, part.spans, part.saved, part.check, strict=True)
    for group, layout, spans, path, check in work:
        if spans:
            saver = Saver(Path(path), layout)
            saver.write(count(given, part.watch, group, [(start, stop) for start, stop in spans], saver, check))
