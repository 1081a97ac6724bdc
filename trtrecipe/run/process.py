"""Starting, hearing and stopping worker processes. Nothing else here starts a process."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from trtrecipe.run.last_words import last_words

# What a step may see of the environment: where programs, libraries and the GPU are, and how Python is to behave.
_PASSED = (
    "PATH", "HOME", "USER", "TMPDIR", "LD_LIBRARY_PATH", "CUDA_HOME", "CUDA_PATH", "CUDA_VISIBLE_DEVICES",
    "NVIDIA_VISIBLE_DEVICES", "PYTHONHASHSEED", "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX", "VIRTUAL_ENV",
)  # fmt: skip
# What the OpenSSH client needs beside that, in steps that run on a device.
_PASSED_TO_SSH = ("SSH_AUTH_SOCK", "KRB5CCNAME", "XDG_RUNTIME_DIR")
# A program that ends itself so has said why, unlike one that was ended by another.
_CRASHES = {signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV}
_FIXED = {"LC_ALL": "C.UTF-8", "TZ": "UTC", "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}


# The worker imports from where this process does, and from no folder that happens to be the current one. Until its path
# is set it imports nothing but `sys`, which is built in.
_PROGRAM = "import sys; sys.path[:] = sys.argv[1].split(chr(10)); from trtrecipe.run.worker import main; main()"


def step_environment(on_device: bool = False) -> dict[str, str]:
    """The environment of a worker process."""
    passed = _PASSED + _PASSED_TO_SSH if on_device else _PASSED
    return {name: os.environ[name] for name in passed if name in os.environ} | _FIXED


def _import_path() -> list[str]:
    package = Path(__file__).parents[2]
    return list(dict.fromkeys([*(str(Path(entry).absolute()) for entry in sys.path if entry), str(package)]))


class WorkerProcess:
    """A running worker: the leader of its own process group, so that it ends with all its children."""

    def __init__(
        self, request: Mapping[str, Any], log: Path, folder: Path, hear: Callable[[str], None] | None = None
    ) -> None:
        """Start it in `folder` with what its tools print going to `log`, and its progress to `hear`. Raises OSError."""
        import subprocess

        self._hear = hear

        self.log = log
        with log.open("wb") as log_file:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, "\n".join(_import_path())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log_file,
                cwd=folder,
                env=step_environment("device" in request["resources"]),
                start_new_session=True,
            )
        assert self._process.stdin and self._process.stdout
        # The pipe stays open: the worker ends itself when it closes, which it does when this process dies.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        self._answer = b""

    def fileno(self) -> int:
        """The descriptor that becomes readable when the worker answers or ends."""
        assert self._process.stdout
        return self._process.stdout.fileno()

    def read(self) -> bool:
        """Take in what has come; False once the worker has said all it will."""
        piece = os.read(self.fileno(), 1 << 16)
        # Lines of progress come before the answer, which ends without one.
        *lines, self._answer = (self._answer + piece).split(b"\n")
        for line in lines:
            if self._hear is not None:
                self._hear(str(json.loads(line)["progress"]))
        return bool(piece)

    def finish(self) -> dict[str, Any]:
        """The worker's answer once `read` gave False; a worker that died without one is a failure."""
        code = self._process.wait()
        self._close()
        try:
            answer = json.loads(self._answer)
        except ValueError:
            answer = None
        if code == 0 and isinstance(answer, dict):
            return answer
        if code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
            hint = "the machine may be out of memory" if code == -signal.SIGKILL else None
            said = ""
            if -code in _CRASHES:
                said, hint = self._said(), "a tool that the step calls gave up; the log has all that it said"
            return {"status": "failed", "error": f"its process was ended by {name}{said}", "hint": hint}
        return {"status": "failed", "error": f"its process ended with exit code {code} and no answer{self._said()}"}

    def _said(self) -> str:
        words = last_words(self.log)
        return f", after saying: {words}" if words else ""

    def kill(self) -> None:
        """End the worker and all its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._close()

    def _close(self) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()

    def keep_log(self) -> str | None:
        """The path of what the step's tools printed; None, and no file, when they printed nothing."""
        try:
            if self.log.stat().st_size:
                return str(self.log)
        except OSError:
            return None
        self.log.unlink(missing_ok=True)
        return None
