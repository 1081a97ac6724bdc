"""The way to a device: the OpenSSH client as its user has set it up, and the agent at the other end.

Keys, jump hosts, known hosts and all else are the user's own configuration. What is decided here: nothing is ever
asked (BatchMode), an unknown or changed host key ends it, dead connections are noticed, and all requests of a `Session`
share one connection, unless the user shares connections in a way of their own. Options: ssh_config(5).
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from trtrecipe.device import forms
from trtrecipe.device.link import Dropped, Hear, Json, Refusal, Sink
from trtrecipe.errors import Unreachable

AGENT = Path(__file__).with_name("agent.py")
CONNECT_SECONDS = 10
SILENCE = 120.0
"""Seconds without a byte in either direction after which a request is given up; a build says something every ten."""
PERSIST = 30
"""Seconds that the shared connection outlives its last request, should nobody close it."""
PIECE = 1 << 18
LONGEST_LINE = 16 << 20
MOST_WORDS = 1 << 30
"""Bytes of a line of answer, and of all of them together: a week of progress has a tenth of that."""
MOST_SAID = 1 << 20
"""Bytes of what is said on standard error, before an answer and behind it."""
_PREFIX = "trtrecipe-ssh-"
_OLD = 8 * 24 * 3600

_FIXED = {
    "BatchMode": "yes",
    "ClearAllForwardings": "yes",
    "ForwardAgent": "no",
    "ForwardX11": "no",
    "LogLevel": "ERROR",
    "PermitLocalCommand": "no",
    "RemoteCommand": "none",
    "RequestTTY": "no",
    "VisualHostKey": "no",
}
_UNLESS_SET = {"connecttimeout": CONNECT_SECONDS, "serveraliveinterval": 15, "serveralivecountmax": 4}

# What the client says, by what it means; the first that is found counts. github.com/openssh/openssh-portable:
# sshconnect.c, sshconnect2.c, ssh.c, packet.c, clientloop.c, readconf.c.
_SAID: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (
        ("HOST IDENTIFICATION HAS CHANGED", "REVOKED HOST KEY"),
        "its host key is not the one in known_hosts",
        "if the device was installed anew, remove the old key with ssh-keygen -R HOST; if not, do not connect",
    ),
    (
        ("Host key verification failed", "host key is known for", "authenticity of host"),
        "its host key is not known here",
        "connect once by hand with ssh {ssh}, and compare the fingerprint that it shows",
    ),
    (
        ("Permission denied", "Too many authentication failures", "No supported authentication methods"),
        "it refuses to log in without a password",
        "make `ssh -o BatchMode=yes {ssh} true` work: ssh-copy-id, ssh-agent or IdentityFile in ~/.ssh/config",
    ),
    (
        ("Could not resolve hostname",),
        "no host of that name is known",
        "correct its ssh destination in the inventory, or add a Host to ~/.ssh/config",
    ),
    (
        ("Bad configuration option", "terminating,", "Bad owner or permissions"),
        "the configuration of the ssh client is wrong",
        "make `ssh {ssh} true` work first",
    ),
    (("Connection refused",), "it refuses the connection", "is its SSH server running, and on that port?"),
    (("timed out", "Timeout, server"), "it does not answer", "is it switched on, and on this network?"),
    (("No route to host", "unreachable"), "there is no way to it", "is it switched on, and on this network?"),
)


class Session:
    """Requests to one device. A connection is made with the first, and closed at the end of the `with` block."""

    def __init__(self, ssh: str, exec: Sequence[str] = (), python: str = "python3") -> None:
        self._ssh = ssh
        self._agent = AGENT.read_bytes()
        program = f"import sys;exec(sys.stdin.buffer.read({len(self._agent)}))"
        self._command = shlex.join([*exec, python, "-c", program])
        self._python = python
        self._options: list[str] | None = None
        self._folder: str | None = None

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the shared connection."""
        if self._folder is None:
            return
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            leave = ["ssh", *(self._options or ()), "-O", "exit", "--", self._ssh]
            subprocess.run(leave, stdin=-3, stdout=-3, stderr=-3, timeout=CONNECT_SECONDS, check=False)
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder = self._options = None

    def ask(
        self,
        request: Mapping[str, Any],
        payload: BinaryIO | None = None,
        hear: Hear | None = None,
        into: Sink | None = None,
    ) -> Json:
        """The agent's result. `payload` follows the request, progress goes to `hear`, bytes after the result to `into`.

        Raises Refusal for an error of the agent's and for an answer that is none, Dropped where the connection ended
        early, Unreachable.
        """
        with tempfile.TemporaryFile() as said:  # no pipe: a shared connection would keep that open
            try:
                process = subprocess.Popen(
                    ["ssh", *self._client(), "-T", "--", self._ssh, self._command], stdin=-1, stdout=-1, stderr=said
                )
            except OSError as error:
                raise _no_client(error) from None
            try:
                head = self._agent + json.dumps(request).encode() + b"\n"
                answer = _Answer(hear, into)
                silent = _exchange(process, head, payload, answer, said.fileno())
            finally:
                process.kill()
                process.wait()
            said.seek(0)
            words = forms.lines(said.read(1 << 16).decode("utf-8", "replace"))
        if answer.flood:
            raise Refusal("answer", f"{self._ssh} says without end what is no answer", {}, self._hint())
        if answer.final is None:
            raise self._explain(process.returncode, answer, words, silent)
        if wrong := forms.problems(request, answer.final):
            text = f"{self._ssh} answers {request['op']} as no agent does: {', '.join(wrong[:4])[:400]}"
            raise Refusal("answer", text, {}, self._hint())
        if answer.final["event"] == "error":
            raise Refusal(answer.final["reason"], answer.final["message"], answer.final)
        return answer.final

    def _hint(self) -> str:
        return f"see what `ssh {self._ssh} {self._python} --version` says, and whether that machine is sound"

    def _client(self) -> list[str]:
        """The client's options, from what the user has set."""
        if self._options is None:
            try:
                shown = subprocess.run(
                    ["ssh", "-G", "--", self._ssh], stdin=-3, capture_output=True, timeout=CONNECT_SECONDS, check=False
                )
            except OSError as error:
                raise _no_client(error) from None
            except subprocess.TimeoutExpired:
                raise Unreachable(f"{self._ssh}: ssh -G does not end", "look into ~/.ssh/config") from None
            if shown.returncode:
                raise self._explain(255, _Answer(None, None), shown.stderr.decode("utf-8", "replace"), False)
            found = dict(
                line.partition(" ")[::2] for line in shown.stdout.decode("utf-8", "replace").lower().splitlines()
            )
            self._options = [f"-o{name}={value}" for name, value in self._settings(found).items()]
        return self._options

    def _settings(self, found: Mapping[str, str]) -> dict[str, str]:
        settings = dict(_FIXED)
        if found.get("stricthostkeychecking") in ("no", "off", "false"):
            settings["StrictHostKeyChecking"] = "yes"
        for name, value in _UNLESS_SET.items():
            if found.get(name, "none") in ("none", "0") or (name == "serveralivecountmax" and found[name] == "3"):
                settings[name] = str(value)
        if found.get("controlpath", "none") == "none":
            # A socket's path has no more than 107 bytes, and the client puts 17 of its own at the end (unix(7)).
            _sweep()
            self._folder = tempfile.mkdtemp(prefix=_PREFIX, dir="/tmp")
            settings |= {"ControlMaster": "auto", "ControlPath": f"{self._folder}/c", "ControlPersist": str(PERSIST)}
        return settings

    def _explain(self, status: int, answer: _Answer, words: str, silent: bool) -> Unreachable:
        lines = [line.strip() for line in words.splitlines() if line.strip() and not line.startswith("@@@")]
        last = " ".join(lines[-3:])[-400:]
        for marks, what, hint in _SAID:
            if any(mark in words for mark in marks):
                return Unreachable(f"{self._ssh}: {what} ({last})", hint.format(ssh=self._ssh))
        if silent:
            return Dropped(f"{self._ssh} has said nothing for {SILENCE:.0f} s", "is it overloaded, or off?")
        if status in (126, 127) and not answer.began:
            return Unreachable(
                f"{self._ssh}: {self._python} does not start there ({last or f'status {status}'})",
                "the agent needs Python 3.6 or later: name it in the inventory as `python`",
            )
        if not answer.began and 0 <= status < 255:
            odd = " ".join(answer.odd)[-200:]
            said = last or odd or f"nothing, with status {status}"
            hint = f"is `{self._python} --version` there 3.6 or later? The inventory may name another as `python`"
            return Unreachable(f"{self._ssh}: the agent does not run there: it said {said}", hint)
        return Dropped(f"{self._ssh}: the connection broke ({last or 'nothing was said'})", "build again")


def _sweep() -> None:
    """Remove the folders of commands that were killed: those of this user that are older than any build may take."""
    with contextlib.suppress(OSError):
        for path in Path("/tmp").glob(f"{_PREFIX}*"):
            found = path.lstat()
            if found.st_uid == os.getuid() and time.time() - found.st_mtime > _OLD:
                shutil.rmtree(path, ignore_errors=True)


def _no_client(error: OSError) -> Unreachable:
    return Unreachable(f"the OpenSSH client does not start: {error.strerror}", "install openssh-client")


class _Answer:
    """What comes back: lines until the last event, then bytes."""

    def __init__(self, hear: Hear | None, into: Sink | None) -> None:
        self.final: Json | None = None
        self.began = self.flood = False
        """`flood`: it says more than any agent does; what follows is not listened to."""
        self.odd: list[str] = []
        self._hear, self._into = hear, into
        self._rest = bytearray()
        self._words = self._noise = self._behind = 0

    def take(self, piece: bytes) -> None:
        if self.final is not None:
            self._bytes(piece)
            return
        self._words += len(piece)
        self._rest += piece
        if b"\n" in piece:
            *lines, self._rest = self._rest.split(b"\n")
            for number, line in enumerate(lines, 1):
                self._line(bytes(line))
                if self.final is not None:
                    self._bytes(b"\n".join([*lines[number:], self._rest]))
                    return
        if len(self._rest) > LONGEST_LINE or self._words > MOST_WORDS or self._noise > MOST_SAID:
            self.flood = True

    def _bytes(self, piece: bytes) -> None:
        if self._into is not None and piece:
            self._into.write(piece)
        else:
            self._behind += len(piece)
            self.flood = self._behind > MOST_SAID

    def _line(self, line: bytes) -> None:
        try:
            # A start file's words may end without a line's end.
            event = forms.cleaned(json.loads(line[max(line.find(b'{"'), 0) :]))
        except (ValueError, RecursionError):
            event = None
        if not isinstance(event, dict) or not isinstance(event.get("event"), str):
            # A start file of the login shell that prints: before the agent's first word it does no harm.
            self._noise += len(line) + 1
            self.odd = [*self.odd[-3:], forms.printable(line[:200].decode("utf-8", "replace"))]
            return
        self.began = True
        if event["event"] in ("result", "error"):
            self.final = event
        elif self._hear is not None and not any(forms.misshapen(event, forms.PROGRESS)):
            self._hear(event)


def _exchange(
    process: subprocess.Popen[bytes], head: bytes, payload: BinaryIO | None, answer: _Answer, said: int
) -> bool:
    """Write and read until both ends are closed; whether it was given up for want of any sign of life.

    `said`: the file of standard error.
    """
    assert process.stdin is not None and process.stdout is not None
    pieces = _pieces(head, payload)
    left = memoryview(next(pieces))
    os.set_blocking(process.stdin.fileno(), False)
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdin, selectors.EVENT_WRITE)
        selector.register(process.stdout, selectors.EVENT_READ)
        heard = time.monotonic()
        while selector.get_map():
            ready = selector.select(max(0.0, min(heard + SILENCE - time.monotonic(), 1.0)))
            answer.flood = answer.flood or os.fstat(said).st_size > MOST_SAID
            if answer.flood:
                return False
            if not ready:
                if time.monotonic() - heard >= SILENCE:
                    return True
                continue
            heard = time.monotonic()
            for key, _ in ready:
                if key.fileobj is process.stdout:
                    piece = os.read(process.stdout.fileno(), PIECE)
                    answer.take(piece)
                    if not piece:
                        selector.unregister(process.stdout)
                        _close(selector, process.stdin)
                    continue
                if process.stdin.closed:
                    continue
                try:
                    left = left[os.write(process.stdin.fileno(), left) :]
                except BlockingIOError:
                    continue
                except BrokenPipeError:  # it has answered already, or is gone: what it says will tell
                    _close(selector, process.stdin)
                    continue
                if not left:
                    following = next(pieces, None)
                    if following is None:
                        _close(selector, process.stdin)
                    else:
                        left = memoryview(following)
    for _ in range(2 * CONNECT_SECONDS):
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.5)
            break
        answer.flood = os.fstat(said).st_size > MOST_SAID
        if answer.flood:
            break
    return False


def _close(selector: selectors.BaseSelector, stream: Any) -> None:
    with contextlib.suppress(KeyError, ValueError):  # closed before
        selector.unregister(stream)
    with contextlib.suppress(BrokenPipeError):
        stream.close()


def _pieces(head: bytes, payload: BinaryIO | None) -> Iterator[bytes]:
    yield head
    while payload is not None and (piece := payload.read(PIECE)):
        yield piece
