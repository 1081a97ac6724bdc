"""Devices for tests: a real OpenSSH server on loopback, behind it a Jetson's files and a trtexec surrogate.

The server is Debian's openssh-server, a process of this user with its own host key, port and configuration. What is
made up is the machine behind it: the logins' PATH begins with a `python3` that gives each request of the agent the
folder that stands for the device's root, and does what a test asks for in `faults.json` beside it:

    drop, drop_in: {"op": NAME, "at": byte, "times": count}  the connection ends there, in the answer or in what is sent
    flip, flip_in: {"op": NAME, "at": byte, "times": count}  one bit there is another one
    slow, slow_in: {"op": NAME, "seconds": s}                 so long for each piece of 32 KiB
    do, do_in: {"op": NAME, "sh": words, "at": byte}          the shell runs them before the agent, or at a byte sent

`clock` beside it holds seconds that the agent's clock is wrong by (`do` may write it).

(A bit that flips on the way breaks a real connection; here it stands for a fault of either machine's memory or disk.)
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from support import device_kill, trtexec_surrogate
from trtrecipe.targets.catalog import load_catalog
from trtrecipe.targets.devices import dla_cores

SSHD = shutil.which("sshd") or "/usr/sbin/sshd"


@dataclass(frozen=True)
class Kind:
    """A Jetson as a release shows it."""

    profile: str
    model: str
    compatible: str
    memory: int  # kB of MemTotal
    l4t: str
    jetpack: str
    tensorrt: str
    cuda: str


XAVIER_NX = Kind(
    "jetson-xavier-nx", "NVIDIA Jetson Xavier NX Developer Kit", "nvidia,p3449-0000+p3668-0000\0nvidia,tegra194\0",
    7_120_000, "35.6.0", "5.1.4", "8.5.2", "11.4.315",
)  # fmt: skip
TX2 = Kind(
    "jetson-tx2", "quill", "nvidia,p2597-0000+p3310-1000\0nvidia,tegra186\0",
    8_045_000, "32.7.4", "4.6.4", "8.2.1", "10.2.300",
)  # fmt: skip
ORIN_NX = Kind(
    "jetson-orin-nx", "NVIDIA Jetson Orin NX Engineering Reference Developer Kit",
    "nvidia,p3768-0000+p3767-0000\0nvidia,tegra234\0", 15_650_000, "36.4.3", "6.2", "10.3.0", "12.6.68",
)  # fmt: skip

_PYTHON = '''#!{python} -IS
import io, json, os, re, signal, subprocess, sys, time

HERE = {folder!r}
arguments = sys.argv[1:]
length = int(re.search(r"read\\((\\d+)\\)", arguments[1]).group(1))
source = sys.stdin.buffer
agent = source.read(length).replace(b"\\nGRACE = 5.0", b"\\nGRACE = 0.2")
request = json.loads(source.readline())
request.setdefault("root", HERE + "/root")
request.setdefault("lock", HERE + "/device.lock")
with open(HERE + "/requests.jsonl", "a") as out:
    out.write(json.dumps({{"op": request["op"], "pid": os.getpid()}}) + "\\n")


def fault(kind):
    """The fault of that kind for this request; it is taken away, so that it happens once."""
    path = HERE + "/faults.json"
    try:
        with open(path) as text:
            faults = json.load(text)
    except (OSError, ValueError):
        return None
    found = faults.get(kind)
    if not found or found["op"] != request["op"]:
        return None
    found["times"] = found.get("times", 1) - 1
    if found["times"] <= 0:
        del faults[kind]
    with open(path, "w") as text:
        json.dump(faults, text)
    return found


def drop():
    """Kill the server process of this connection, as when a cable is pulled."""
    with open("/proc/%d/stat" % os.getpid()) as text:
        pid = int(text.read().rpartition(")")[2].split()[1])
    while True:
        with open("/proc/%d/cmdline" % pid) as text:
            name = text.read()
        with open("/proc/%d/stat" % pid) as text:
            parent = int(text.read().rpartition(")")[2].split()[1])
        if name.startswith("sshd:"):
            os.kill(pid, signal.SIGKILL)
            break
        pid = parent
    os.kill(os.getpid(), signal.SIGKILL)


def do(found):
    subprocess.run(["/bin/sh", "-c", found["sh"]], check=True, stdin=-3, stdout=2)


def clock(right=time.time):
    try:
        with open(HERE + "/clock") as text:
            return right() + float(text.read())
    except (OSError, ValueError):
        return right()


class In(io.RawIOBase):
    def __init__(self):
        self.first = json.dumps(request).encode() + b"\\n"
        self.taken, self.drop, self.flip = 0, fault("drop_in"), fault("flip_in")
        self.slow, self.do = fault("slow_in"), fault("do_in")

    def readline(self, limit=-1):
        first, self.first = self.first, b""
        return first

    def read1(self, size=-1):
        return self.read(size)

    def read(self, size=-1):
        if self.slow:
            size = min(size, 1 << 15)
            time.sleep(self.slow["seconds"])
        if self.do and self.taken + size > self.do["at"]:
            do(self.do)
            self.do = None
        if self.drop and self.taken + size > self.drop["at"]:
            size = self.drop["at"] - self.taken
            if size <= 0:
                drop()
        block = bytearray(source.read(size))
        if self.flip and self.taken <= self.flip["at"] < self.taken + len(block):
            block[self.flip["at"] - self.taken] ^= 1
        self.taken += len(block)
        return bytes(block)


class Out(io.RawIOBase):
    def __init__(self):
        self.given, self.drop, self.flip, self.slow = 0, fault("drop"), fault("flip"), fault("slow")

    def writable(self):
        return True

    def write(self, data):
        data = bytearray(data)
        if self.flip and self.given <= self.flip["at"] < self.given + len(data):
            data[self.flip["at"] - self.given] ^= 1
        if self.drop and self.given + len(data) > self.drop["at"]:
            os.write(1, data[: self.drop["at"] - self.given])
            drop()
        left = memoryview(data)
        while left:
            left = left[os.write(1, left[: 1 << 15]) :]
            if self.slow:
                time.sleep(self.slow["seconds"])
        self.given += len(data)
        return len(data)


class Streams:
    def __init__(self, buffer):
        self.buffer = buffer


sys.argv = ["-c"]
time.time = clock
found = fault("do")
if found:
    do(found)
out = Out()
sys.stdin = Streams(In())
sys.stdout = io.TextIOWrapper(io.BufferedWriter(out, 1), write_through=True)
if out.drop and out.drop["at"] == 0:
    drop()
exec(compile(agent, "<agent>", "exec"), {{"__name__": "__main__"}})
'''


# `docker exec -i NAME COMMAND` and nothing else. As with docker, no signal to the client reaches what runs inside
# it has a session, an environment and files of its own, and the client copies its streams.
_DOCKER = """#!{python} -IS
import os, subprocess, sys, threading

CONTAINERS = {folder!r}
words = sys.argv[1:]
if words[:2] != ["exec", "-i"] or len(words) < 4 or words[2].startswith("-"):
    sys.exit("docker: 'exec -i CONTAINER COMMAND' is all that this one knows")
inside = os.path.join(CONTAINERS, words[2])
if not os.path.isdir(inside):
    sys.exit("Error response from daemon: No such container: " + words[2])
if not os.path.exists(inside + "/running"):
    sys.exit("Error response from daemon: container " + words[2] + " is not running")
environment = {{"PATH": inside + "/bin:/usr/bin:/bin", "HOME": inside + "/home", "XDG_CACHE_HOME": inside + "/cache"}}
child = subprocess.Popen(words[3:], stdin=-1, stdout=-1, stderr=2, env=environment, cwd=inside, start_new_session=True)


def copy():
    try:
        while True:
            block = os.read(0, 1 << 16)
            if not block:
                break
            child.stdin.write(block)
            child.stdin.flush()
        child.stdin.close()
    except OSError:
        pass


threading.Thread(target=copy, daemon=True).start()
while True:
    block = os.read(child.stdout.fileno(), 1 << 16)
    if not block:
        break
    os.write(1, block)
code = child.wait()
sys.stdout.flush()
os._exit(code if code >= 0 else 128 - code)
"""


@dataclass
class TestDevice:
    """A device that tests may break. `name` is its name in inventories, `host` what ssh is told."""

    __test__ = False

    name: str
    kind: Kind
    folder: Path
    host: str
    server: subprocess.Popen[bytes] | None = None
    _trtexec: Path | None = None

    @property
    def root(self) -> Path:
        return self.folder / "root"

    @property
    def trtexec(self) -> Path:
        return self.root / "usr/src/tensorrt/bin/trtexec"

    @property
    def cache(self) -> Path:
        return self.folder / "cache/trtrecipe/device-v1"

    def show(self, **changes: Any) -> None:
        """Write the files of the kind, with some of its facts changed: another JetPack is another file."""
        kind = Kind(**{**self.kind.__dict__, **changes})
        major, _, revision = kind.l4t.partition(".")
        files = {
            "proc/device-tree/model": kind.model + "\0",
            "proc/device-tree/compatible": kind.compatible,
            "proc/meminfo": f"MemTotal: {kind.memory} kB\nMemAvailable: {kind.memory * 3 // 4} kB\n"
            "SwapTotal: 4000000 kB\nSwapFree: 4000000 kB\n",
            "etc/nv_tegra_release": f"# R{major} (release), REVISION: {revision}, GCID: 1, BOARD: t186ref\n",
            "usr/local/cuda/version.json": json.dumps({"cuda": {"name": "CUDA SDK", "version": kind.cuda}}),
            "var/lib/nvpmodel/status": "pmode:0002\n",
            "etc/nvpmodel.conf": "< POWER_MODEL ID=2 NAME=MODE_15W_6CORE >\n",
            "var/lib/dpkg/status": "".join(
                f"Package: {package}\nStatus: install ok installed\nVersion: {version}\n\n"
                for package, version in (
                    ("nvidia-jetpack", f"{kind.jetpack}-b1"),
                    ("libnvinfer-bin", f"{kind.tensorrt}-1+cuda{kind.cuda[:4]}"),
                )
            ),
        }
        for name, text in files.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        if not self.trtexec.exists() or kind.tensorrt != self.kind.tensorrt:
            cores = dla_cores(load_catalog().look_up(kind.profile)[0], kind.memory << 10) or 0
            trtexec_surrogate.install(self.trtexec, kind.tensorrt, cores)  # type: ignore[no-untyped-call]  # it becomes a program for old Pythons

    def fault(self, **faults: Any) -> None:
        """What the connection does next."""
        (self.folder / "faults.json").write_text(json.dumps(faults))

    def trtexec_fault(self, **faults: Any) -> None:
        """What trtexec does until it is told otherwise."""
        Path(f"{self.trtexec}.faults.json").write_text(json.dumps(faults))

    def requests(self) -> list[str]:
        """The operations that the agent was asked for."""
        path = self.folder / "requests.jsonl"
        return [json.loads(line)["op"] for line in path.read_text().splitlines()] if path.exists() else []

    def words(self, template: str) -> str:
        """Words for the device's shell: {here}, {root}, {cache}, {trtexec}, and {kill}, see `device_kill`."""
        kill = shlex.join([sys.executable, "-IS", str(device_kill.__file__), str(self.folder)])
        return template.format(here=self.folder, root=self.root, cache=self.cache, trtexec=self.trtexec, kill=kill)

    def cache_on_a_disk(self) -> None:
        """Put the cache on a file system of 16 MiB of its own. Skips the test where this user may not."""
        self.cache.mkdir(parents=True, exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(self.cache)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("mounting a small file system needs root")

    def put_right(self) -> None:
        """The kind's files, its trtexec and its server as they were; a disk of the cache stays, and can be written."""
        if os.path.ismount(self.cache):
            subprocess.run(["mount", "-o", "remount,rw", str(self.cache)], check=True)
            (self.cache / "filler").unlink(missing_ok=True)
        if self._trtexec is not None and (
            not self.trtexec.exists() or self.trtexec.read_bytes() != self._trtexec.read_bytes()
        ):
            shutil.copy2(self._trtexec, self.trtexec)
        self.show()
        if (self.folder / "sshd_config").exists() and (self.server is None or self.server.poll() is not None):
            self.start()

    def clear(self) -> None:
        """Nothing was ever built here."""
        if os.path.ismount(self.cache):
            subprocess.run(["umount", "-l", str(self.cache)], check=True)
        shutil.rmtree(self.folder / "cache", ignore_errors=True)
        (self.folder / "once").unlink(missing_ok=True)

    def calls(self, event: str = "start") -> list[dict[str, Any]]:
        """What trtexec noted."""
        path = Path(f"{self.trtexec}.calls.jsonl")
        found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [call for call in found if call["event"] == event]

    def builds(self, event: str = "start") -> list[dict[str, Any]]:
        """What trtexec noted of builds; it runs engines too."""
        return [call for call in self.calls(event) if any(word.startswith("--saveEngine=") for word in call["argv"])]

    def stop(self) -> None:
        """Switch the server off."""
        if self.server is not None:
            self.server.terminate()
            self.server.wait()
            self.server = None

    def start(self) -> None:
        """Switch the server on, and wait until it listens."""
        config = self.folder / "sshd_config"
        port = int(next(line for line in config.read_text().splitlines() if line.startswith("Port ")).split()[1])
        with (self.folder / "sshd.log").open("ab") as log:
            self.server = subprocess.Popen([SSHD, "-D", "-e", "-f", str(config)], stdin=-3, stdout=log, stderr=log)
        (self.folder / "server.pid").write_text(str(self.server.pid))
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return
            if self.server.poll() is not None:
                break
            time.sleep(0.02)
        raise AssertionError((self.folder / "sshd.log").read_text())


def skip_without_sshd() -> None:
    """Where there is no OpenSSH server, or it would need what this user cannot make."""
    if not os.access(SSHD, os.X_OK) or shutil.which("ssh") is None:
        pytest.skip("needs the OpenSSH client and server (Debian: openssh-client, openssh-server)")
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where a server that starts as root confines itself


class Lab:
    """A client's ssh settings, and devices that it may log in to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.devices: list[TestDevice] = []
        for name in ("user", "host"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(folder / f"{name}_key")]
            subprocess.run(command, check=True)
        self.config, self.known_hosts = folder / "ssh_config", folder / "known_hosts"

    def add(self, name: str, kind: Kind, environment: Mapping[str, str] | None = None) -> TestDevice:
        """Another device, switched on and known."""
        folder = self.folder / name
        for part in ("bin", "home"):
            (folder / part).mkdir(parents=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        device = TestDevice(name, kind, folder, f"test-{name}")
        python = folder / "bin/python3"
        python.write_text(_PYTHON.format(python=sys.executable, folder=str(folder)))
        python.chmod(0o755)
        device.show()
        variables = {
            "PATH": f"{folder}/bin:/usr/bin:/bin",
            "HOME": f"{folder}/home",  # with no start files of a shell
            "XDG_CACHE_HOME": f"{folder}/cache",
            **(environment or {}),
        }
        (folder / "sshd_config").write_text(
            f"Port {port}\nListenAddress 127.0.0.1\nHostKey {self.folder}/host_key\nPidFile none\n"
            f"AuthorizedKeysFile {self.folder}/user_key.pub\nStrictModes no\nUsePAM no\n"
            "PasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\n"
            "MaxStartups 100\nSubsystem sftp internal-sftp\n"
            "SetEnv " + " ".join(f'"{key}={value}"' for key, value in variables.items()) + "\n"
        )
        self.devices.append(device)
        device._trtexec = folder / "trtexec"
        shutil.copy2(device.trtexec, device._trtexec)
        device.start()
        public = " ".join((self.folder / "host_key.pub").read_text().split()[:2])
        with self.known_hosts.open("a") as known:
            known.write(f"[127.0.0.1]:{port} {public}\n")
        with self.config.open("a") as config:
            config.write(
                f"Host test-{name}\n  HostName 127.0.0.1\n  Port {port}\n  User {getpass.getuser()}\n"
                f"  IdentityFile {self.folder}/user_key\n  IdentitiesOnly yes\n  IdentityAgent none\n"
                f"  UserKnownHostsFile {self.known_hosts}\n  GlobalKnownHostsFile none\n"
            )
        return device

    def contain(self, device: TestDevice, name: str, kind: Kind) -> TestDevice:
        """A container of that name on a device, which has a root, a cache and a lock of its own."""
        containers = device.folder / "containers"
        inside = TestDevice(name, kind, containers / name, device.host)
        for part in ("bin", "home"):
            (inside.folder / part).mkdir(parents=True)
        for path, text in (
            (inside.folder / "bin/python3", _PYTHON.format(python=sys.executable, folder=str(inside.folder))),
            (device.folder / "bin/docker", _DOCKER.format(python=sys.executable, folder=str(containers))),
        ):
            path.write_text(text)
            path.chmod(0o755)
        (inside.folder / "running").touch()
        inside.show()
        return inside

    def install_client(self, folder: Path) -> Path:
        """A folder for PATH with `ssh` as a user has it whose ~/.ssh/config is the lab's: OpenSSH looks for that file
        in the home of the password database, whatever HOME says."""
        folder.mkdir(parents=True, exist_ok=True)
        client = folder / "ssh"
        client.write_text(
            f'#!/bin/sh\necho x >> "{self.folder}/client.calls"\nexec {shutil.which("ssh")} -F "{self.config}" "$@"\n'
        )
        client.chmod(0o755)
        return folder

    def client_calls(self) -> int:
        """How often the OpenSSH client was started."""
        path = self.folder / "client.calls"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def stop(self) -> None:
        for device in self.devices:
            device.stop()
            device.clear()


@contextlib.contextmanager
def lab(folder: Path) -> Iterator[Lab]:
    """A lab; its servers end with the block."""
    skip_without_sshd()
    made = Lab(folder)
    path = os.environ["PATH"]
    os.environ["PATH"] = f"{made.install_client(folder / 'client')}:{path}"
    try:
        yield made
    finally:
        os.environ["PATH"] = path
        made.stop()
