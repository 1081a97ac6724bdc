"""The agent: what runs on a device. Standard library only, Python 3.6, nothing of trtrecipe; nothing is installed.

It is read from standard input by `python3 -c 'import sys;exec(sys.stdin.buffer.read(N))'` with its length N. One JSON
request follows on the same stream, on one line: {"op": ..., "cache": folder or absent, ...}. Answers are JSON lines:
{"event": "progress", ...} any number of times, then one {"event": "result", ...} or {"event": "error", "reason",
"message"}, exit status 0 or 1. Operations and their answers: docstrings of the functions in OPERATIONS.

The cache, by default ~/.cache/trtrecipe/device-v1:

    cas/<sha256>         files by content, read-only: models, tables, engines
    incoming/<sha256>    files that are being sent; what is there of one is kept, and sending goes on from its end
    timing/<name>        timing caches
    jobs/<key>/          one build: its inputs by name, runner.lock (held while it runs), state.json, progress.json,
                         build.log, result.json

A build outlives the connection: a runner in a session of its own does it, and whoever asks for the same key follows
that runner or collects its result. The runner holds the device's lock, and so does trtexec while it lives, so two
builds never share the GPU, whatever is killed.
"""

import contextlib
import errno
import fcntl
import glob
import hashlib
import json
import os
import re
import select
import shutil
import signal
import stat
import subprocess
import sys
import time
from typing import Any, BinaryIO, Callable, Dict, Iterator, List, Optional, Set, Tuple

Json = Dict[str, Any]

CHUNK = 1 << 20
LONGEST_REQUEST = 32 << 20
LOG_HEAD = 512 << 10
LOG_TAIL_LINES = 400
LONGEST_LINE = 2000
WORDS = 25
"""Lines of trtexec's that a failure repeats."""
GRACE = 5.0
"""Seconds between SIGTERM and SIGKILL; trtexec is deaf to the first while it times kernels."""
SILENCE = 120
"""Seconds without a byte after which a connection that sends a file is taken for dead."""
MIB = 1 << 20
GIB = 1 << 30
SMALLEST_WORKSPACE = 32 * MIB
"""Where the retries of a build that ran out of memory end."""
LITTLE_SPACE = 1 << 20
"""Bytes: with less left, a build is taken for one that filled the disk, whatever its exit status."""

DIGEST = re.compile("^[0-9a-f]{64}$")
NAME = re.compile("^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$")
MEMORY = re.compile(
    "cudaErrorMemoryAllocation|OutOfMemory|out of memory|std::bad_alloc|cudaErrorOutOfMemory"
    r"|Requested amount of GPU memory|Cannot allocate memory|^Killed\b"
)
TIMING = re.compile(r"-{5,} Timing Runner: (.*?)(?: \([^()]*(?:\[[^\]]*\])?\))?$")
BAD_TIMING = re.compile(r"\] \[E\] .*[Tt]iming ?[Cc]ache")
"""What is said of a timing cache that cannot be used."""
BANNER = re.compile(r"&&&& [A-Z]+ TensorRT\.trtexec \[TensorRT v(\d+)\]")
SPOILED = re.compile("no shapes were provided. Automatically overriding shape")
"""What trtexec says, and goes on, when it builds something else than was asked for."""
UNSCALED = re.compile("Missing scale and zero-point for tensor (.+?), expect")
"""What TensorRT says of a tensor that it finds no scale of: the layers around it do not run in INT8."""
PLACED = re.compile(r"\[(Dla|Gpu)Layer\] (.+?),?\s*$")
"""How TensorRT lists what runs where: as [I] up to 8.6, as [V] in 10.3, GPU layers behind their type from 8.4 on.
Seen in github.com/NVIDIA-AI-IOT/jetson_dla_tutorial README.md (8.4), in users' logs of 8.2.1 (Nano) and of 10.3.0
(AGX Orin, `--verbose`)."""
NOT_ON_DLA = re.compile(r"[Ll]ayer '?(.+?)'? is not supported on DLA(?!,? *falling back)")
"""What ends a build without fallback: "Layer 'x' is not supported on DLA but GPU fallback is not enabled" (10.3)."""
PARTS_KEPT = 400
"""Names that are kept of what runs on DLA, and as many of what runs on the GPU."""


class Failure(Exception):
    """An operation that cannot be done: a word that programs read, a sentence for people, and what else is known."""

    def __init__(self, reason: str, message: str, **more: Any) -> None:
        super().__init__(message)
        self.reason, self.message, self.more = reason, message, more


def say(event: str, **fields: Any) -> None:
    """One line of answer."""
    fields["event"] = event
    sys.stdout.write(json.dumps(fields, sort_keys=True) + "\n")
    sys.stdout.flush()


# Files


def file_sha256(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as source:
        for block in iter(lambda: source.read(CHUNK), b""):
            digest.update(block)
    return digest.hexdigest()


def read_text(path: str) -> Optional[str]:
    """The text of a small file, None where it cannot be read."""
    try:
        with open(path, "rb") as source:
            return source.read(LONGEST_REQUEST).decode("utf-8", "replace")
    except (IOError, OSError):
        return None


def read_json(path: str) -> Optional[Json]:
    text = read_text(path)
    try:
        value = json.loads(text) if text else None
    except ValueError:
        return None  # half written when the power went: as good as absent
    return value if isinstance(value, dict) else None


def write_json(path: str, value: Json) -> None:
    """Replace a file at once: who reads sees the old or the new one."""
    scratch = "{}.{}.tmp".format(path, os.getpid())
    with open(scratch, "w") as out:
        json.dump(value, out, sort_keys=True)
        out.flush()
        os.fsync(out.fileno())
    os.rename(scratch, path)


def remove(path: str) -> None:
    """Whatever is there: in the cache a folder in a file's place is rubbish too."""
    try:
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise


def is_full(error: EnvironmentError) -> bool:
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def free_bytes(path: str) -> int:
    """Bytes that this user can still write where `path` is or will be."""
    while not os.path.exists(path):
        path = os.path.dirname(path)
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


def size_of(path: str) -> int:
    """Bytes of a file, -1 where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return -1
    return found.st_size if stat.S_ISREG(found.st_mode) else -1


def cache_folder(request: Json) -> str:
    """The cache, made if need be, and closed to other users."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    folder = request.get("cache") or os.path.join(base, "trtrecipe", "device-v1")
    for name in ("", "cas", "incoming", "timing", "jobs"):
        os.makedirs(os.path.join(folder, name), mode=0o700, exist_ok=True)
    return os.path.realpath(folder)


def checked(value: Any, pattern: "re.Pattern[str]", what: str) -> str:
    """A name that may become part of a path."""
    if not isinstance(value, str) or not pattern.match(value):
        raise Failure("request", "{} {!r} is not valid".format(what, value))
    return value


def adopt_file(cache: str, path: str, digest: str) -> str:
    """Move a file whose content is known to be `digest` into the cache's content. Returns where it is."""
    with open(path, "rb") as source:
        os.fsync(source.fileno())
    os.chmod(path, 0o400)
    stored = os.path.join(cache, "cas", digest)
    if size_of(stored) < 0:
        remove(stored)
    os.rename(path, stored)
    return stored


# Locks


def try_lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (IOError, OSError) as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def open_device_lock(path: str) -> int:
    """The lock of the device, whoever of its users made it: a lock needs no right to write."""
    flags = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # the folder is everybody's: no links, no pipes
    for _ in range(100):
        try:
            handle = os.open(path, os.O_RDONLY | flags)
            if stat.S_ISREG(os.fstat(handle).st_mode):
                return handle
            os.close(handle)
            raise Failure("lock", "the device's lock {} is no plain file".format(path))
        except OSError as error:
            if error.errno != errno.ENOENT:
                message = "the device's lock {} cannot be opened: {}".format(path, error.strerror)
                raise Failure("lock", message) from error
        with contextlib.suppress(OSError):  # somebody else was faster
            os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | flags, 0o444))
    raise Failure("lock", "the device's lock {} comes and goes".format(path))


def started_at(pid: int) -> Optional[str]:
    """When a process began, by boot and ticks: with its number it names one process for good. None: it is gone."""
    text = read_text("/proc/{}/stat".format(pid))
    fields = text.rpartition(")")[2].split() if text else []
    boot = (read_text("/proc/sys/kernel/random/boot_id") or "").strip()
    return "{} {}".format(boot, fields[19]) if len(fields) > 19 and fields[0] not in "ZX" else None


def kill_group(state: Json) -> None:
    """End the process group of a trtexec whose runner is no more."""
    pid = state.get("trtexec")
    if pid and state.get("trtexec_start") and started_at(pid) == state["trtexec_start"]:
        with contextlib.suppress(OSError):
            os.killpg(pid, signal.SIGKILL)


def end_orphans(cache: str) -> None:
    """End every trtexec that lost its runner: nobody would watch its time or take its engine."""
    for path in glob.glob(os.path.join(cache, "jobs", "*", "state.json")):
        state = read_json(path) or {}
        if state.get("runner_start") and started_at(state.get("runner", 0)) != state["runner_start"]:
            kill_group(state)


# probe


def probe(request: Json) -> Json:
    """What the device is: "model", "compatible", "l4t", "jetpack", "tensorrt", "packages", "cuda", "memory", "disk",
    "power_mode", "clocks", "temperatures", "trtexec", "python", "machine", "cache"; None for what it does not tell.

    "root" stands before every path that is read, "/" by default. Sizes are bytes, clocks Hz, temperatures Celsius.
    """
    root = request.get("root") or "/"
    cache = cache_folder(request)
    packages = installed(root)
    return {
        "model": first_line(root, "proc/device-tree/model"),
        "compatible": [part for part in (text_of(root, "proc/device-tree/compatible") or "").split("\0") if part],
        "l4t": l4t(root, packages),
        "jetpack": (packages.get("nvidia-jetpack") or "").partition("-")[0] or None,
        "tensorrt": tensorrt(root, packages),
        "packages": packages,
        "cuda": cuda(root, packages),
        "memory": memory(root),
        "disk": {"free": free_bytes(cache)},
        "power_mode": power_mode(root),
        "clocks": clocks(root),
        "temperatures": temperatures(root),
        "trtexec": find_trtexec(root, request.get("trtexec")),
        "python": "{}.{}.{}".format(*sys.version_info[:3]),
        "machine": os.uname().machine,
        "cache": cache,
    }


def shown(root: str, trtexec: str) -> Json:
    """The part of a probe that an engine depends on."""
    packages = installed(root)
    return {
        "model": first_line(root, "proc/device-tree/model"),
        "l4t": l4t(root, packages),
        "tensorrt": tensorrt(root, packages),
        "cuda": cuda(root, packages),
        "memory": memory(root),
        "trtexec": find_trtexec(root, trtexec),
    }


def text_of(root: str, path: str) -> Optional[str]:
    return read_text(os.path.join(root, path))


def first_line(root: str, path: str) -> Optional[str]:
    lines = (text_of(root, path) or "").replace("\0", "").strip().splitlines()
    return lines[0] if lines else None


def number_of(root: str, path: str) -> Optional[int]:
    text = (text_of(root, path) or "").strip()
    return int(text) if re.match(r"^-?\d+$", text) else None


def installed(root: str) -> Dict[str, str]:
    """Versions of the packages that decide what a build gives, from dpkg's own list."""
    wanted = re.compile("^(nvidia-jetpack|nvidia-l4t-core|libnvinfer|python3-libnvinfer|libcudnn|cuda-cudart-[0-9])")
    found = {}
    for paragraph in (text_of(root, "var/lib/dpkg/status") or "").split("\n\n"):
        fields = dict(re.findall(r"^(Package|Version|Status): (.*)$", paragraph, re.MULTILINE))
        if wanted.match(fields.get("Package", "")) and fields.get("Status", "").endswith(" installed"):
            found[fields["Package"]] = fields.get("Version", "")
    return found


def l4t(root: str, packages: Dict[str, str]) -> Optional[str]:
    text = text_of(root, "etc/nv_tegra_release") or ""
    found = re.search(r"# R(\d+) \(release\), REVISION: ([\d.]+)", text)
    if found:
        return "{}.{}".format(*found.groups())
    return packages.get("nvidia-l4t-core", "").partition("-")[0] or None


def tensorrt(root: str, packages: Dict[str, str]) -> Optional[str]:
    """major.minor.patch: of the package that trtexec belongs to, else of the library, else of its header."""
    for package in sorted(packages, key=lambda name: (name != "libnvinfer-bin", name)):
        found = re.match(r"(\d+\.\d+\.\d+)", packages[package])
        if found and re.match(r"libnvinfer(-bin|\d+)$", package):
            return found.group(1)
    for path in ("usr/include/aarch64-linux-gnu", "usr/include/x86_64-linux-gnu", "usr/include"):
        text = text_of(root, path + "/NvInferVersion.h") or ""
        parts = dict(re.findall(r"#define (?:NV_TENSORRT|TRT)_(MAJOR|MINOR|PATCH)(?:_ENTERPRISE)? (\d+)\b", text))
        if len(parts) == 3:
            return "{MAJOR}.{MINOR}.{PATCH}".format(**parts)
    return None


def cuda(root: str, packages: Dict[str, str]) -> Optional[str]:
    known = read_json(os.path.join(root, "usr/local/cuda/version.json")) or {}
    if isinstance(known.get("cuda"), dict) and known["cuda"].get("version"):
        return str(known["cuda"]["version"])
    found = re.search(r"CUDA Version ([\d.]+)", text_of(root, "usr/local/cuda/version.txt") or "")
    if found:
        return found.group(1)
    versions = [version for name, version in packages.items() if name.startswith("cuda-cudart-")]
    return versions[0].partition("-")[0] if versions else None


def memory(root: str) -> Dict[str, Optional[int]]:
    text = text_of(root, "proc/meminfo") or ""
    kib = {name: int(size) << 10 for name, size in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)}
    names = {"total": "MemTotal", "available": "MemAvailable", "swap_total": "SwapTotal", "swap_free": "SwapFree"}
    return {key: kib.get(name) for key, name in names.items()}


def power_mode(root: str) -> Optional[Json]:
    """As nvpmodel notes it ("pmode:0002"), with the name that its configuration gives the number."""
    found = re.search(r"pmode:(\d+)", text_of(root, "var/lib/nvpmodel/status") or "")
    if not found:
        return None
    names = dict(re.findall(r"POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)", text_of(root, "etc/nvpmodel.conf") or ""))
    number = int(found.group(1))
    return {"id": number, "name": names.get(str(number))}


def clocks(root: str) -> Json:
    """Processor cores by cpufreq policy and devices (the GPU among them) by devfreq: current, least and most Hz."""
    found = {}
    for pattern, unit, name in (
        ("sys/devices/system/cpu/cpufreq/policy*", 1000, "scaling_{}_freq"),
        ("sys/class/devfreq/*", 1, "{}_freq"),
    ):
        for folder in sorted(glob.glob(os.path.join(root, pattern))):
            values = {end: number_of(folder, name.format(end)) for end in ("cur", "min", "max")}
            known = {end: value * unit for end, value in values.items() if value is not None}
            if known:
                found[os.path.basename(folder)] = known
    return found


def temperatures(root: str) -> Dict[str, float]:
    found = {}
    for folder in sorted(glob.glob(os.path.join(root, "sys/class/thermal/thermal_zone*"))):
        kind, value = first_line(folder, "type"), number_of(folder, "temp")
        if kind and value is not None:
            found[kind] = value / 1000.0
    return found


def conditions(root: str, ask: bool = True) -> Json:
    """What a measurement depends on: "power_mode", "clocks", "temperatures", "power": rail → mW, "events": counts of
    throttling for current since the start, "cooling": devices that cool by slowing down → their state above 0.

    `ask`: ask tegrastats too where no rail is readable, which takes a while. Sources: kernel.org Documentation/hwmon/
    ina3221.rst and driver-api/thermal/sysfs-api.rst; Jetson Linux Developer Guide, "oc*_event_cnt".
    """
    cooling = {}
    for folder in sorted(glob.glob(os.path.join(root, "sys/class/thermal/cooling_device*"))):
        kind, state = first_line(folder, "type"), number_of(folder, "cur_state")
        if kind and "fan" not in kind and state:
            cooling[kind] = state
    events = {}
    for path in sorted(glob.glob(os.path.join(root, "sys/class/hwmon/hwmon*/oc*_event_cnt"))):
        events[os.path.basename(path).partition("_")[0]] = number_of(root, path) or 0
    return {
        "power_mode": power_mode(root),
        "clocks": clocks(root),
        "temperatures": temperatures(root),
        "power": rails(root) or (tegrastats(root) if ask else {}),
        "events": events,
        "cooling": cooling,
    }


def rails(root: str) -> Dict[str, int]:
    """Milliwatts by rail of the INA3221 monitors: as hwmon shows them, and as L4T 32's own driver does."""
    found = {}
    drivers = os.path.join(root, "sys/bus/i2c/drivers")
    for path in sorted(glob.glob(drivers + "/ina3221*/*/hwmon/hwmon*/in[123]_label")):
        name, folder, channel = first_line(root, path), os.path.dirname(path), os.path.basename(path)[2]
        millivolts = number_of(folder, "in{}_input".format(channel))
        milliamperes = number_of(folder, "curr{}_input".format(channel))
        if name and millivolts is not None and milliamperes is not None:
            found[name] = millivolts * milliamperes // 1000
    for path in sorted(glob.glob(drivers + "/ina3221x/*/iio*device*/rail_name_*")):
        name, milliwatts = first_line(root, path), number_of(os.path.dirname(path), "in_power{}_input".format(path[-1]))
        if name and milliwatts is not None:
            found[name] = milliwatts
    return found


def tegrastats(root: str) -> Dict[str, int]:
    """Milliwatts by rail as the first line of tegrastats has them: "VDD_IN 4012mW/4012mW", older ones without units."""
    path = os.path.join(root, "usr/bin/tegrastats")
    if not os.access(path, os.X_OK):
        return {}
    process = subprocess.Popen(
        [path, "--interval", "100"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline() if select.select([process.stdout], [], [], 3)[0] else b""
    finally:
        process.kill()
        process.stdout.close()
        process.wait()
    found = re.findall(r"\b([A-Z][A-Z0-9_]+) (\d+)(?:mW)?/\d+(?:mW)?(?=\s|$)", line.decode("utf-8", "replace"))
    return {name: int(milliwatts) for name, milliwatts in found}


def find_trtexec(root: str, given: Optional[str]) -> Optional[Json]:
    """Path, size and digest of the trtexec that builds: the one asked for, JetPack's own, or the first in PATH."""
    paths = [given] if given else [os.path.join(root, "usr/src/tensorrt/bin/trtexec"), shutil.which("trtexec")]
    for path in paths:
        if path and os.path.isfile(path) and os.access(path, os.X_OK):
            return {"path": os.path.realpath(path), "size": os.stat(path).st_size, "sha256": file_sha256(path)}
    return None


# Files to and from the device


def stage(request: Json) -> Json:
    """Takes "files": [{"sha256", "size"}] and "spare", the bytes to be left.

    Gives "missing": [{"sha256", "size", "offset"}] with what is there of each, "free". Error "space" where it cannot
    fit.
    """
    cache = cache_folder(request)
    missing, needed = [], request.get("spare") or 0
    for entry in request["files"]:
        digest, size = checked(entry["sha256"], DIGEST, "digest"), int(entry["size"])
        if size_of(os.path.join(cache, "cas", digest)) != size:
            offset = min(max(size_of(os.path.join(cache, "incoming", digest)), 0), size)
            missing.append({"sha256": digest, "size": size, "offset": offset})
            needed += size - offset
    free = free_bytes(cache)
    if needed > free:
        message = "{} needs {} bytes and has {}: free space there, or run gc".format(cache, needed, free)
        raise Failure("space", message, needed=needed, free=free)
    return {"missing": missing, "free": free, "cache": cache}


def receive(request: Json) -> Json:
    """Takes "sha256", "size", "offset", then size - offset bytes on the same stream; gives "sha256".

    Error "short" keeps what came, "corrupt" throws it away, "busy" while another connection sends the same.
    """
    cache, digest = cache_folder(request), checked(request["sha256"], DIGEST, "digest")
    size, offset = int(request["size"]), int(request.get("offset") or 0)
    path = os.path.join(cache, "incoming", digest)
    if size_of(path) < 0:
        remove(path)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(handle, "r+b") as out:
        if (
            not try_lock(out.fileno())
            or not os.path.exists(path)
            or not os.path.samestat(os.fstat(out.fileno()), os.stat(path))
        ):  # or it has just been adopted: this is the stored file then, not to be written to
            raise Failure("busy", "another connection is sending {}".format(digest))
        out.seek(0, os.SEEK_END)
        if offset > out.tell():
            raise Failure("offset", "there are {} bytes of {}, not {}".format(out.tell(), digest, offset))
        out.seek(offset)
        out.truncate()
        left = size - offset
        source: Any = sys.stdin.buffer  # of which BinaryIO has no read1
        try:
            while left:
                # A connection that is dead and does not know would keep the file from the next one: end with it.
                signal.alarm(SILENCE)
                block = source.read1(min(CHUNK, left))
                signal.alarm(0)
                if not block:
                    raise Failure("short", "{} bytes of {} did not come".format(left, digest))
                out.write(block)
                left -= len(block)
            out.flush()
        except EnvironmentError as error:
            if is_full(error):
                remove(path)  # nobody is helped by half a file on a full disk
            raise
        return admit(cache, digest, size)


def admit(cache: str, digest: str, size: int) -> Json:
    path = os.path.join(cache, "incoming", digest)
    if size_of(path) < size:
        raise Failure("short", "there are {} of {} bytes of {}".format(max(size_of(path), 0), size, digest))
    if size_of(path) > size or file_sha256(path) != digest:
        remove(path)
        raise Failure("corrupt", "what arrived as {} is something else".format(digest))
    adopt_file(cache, path, digest)
    return {"sha256": digest}


def send(request: Json) -> Json:
    """Takes "sha256", "offset"; gives the result line with "size", then the bytes from there on the same stream."""
    cache, digest = cache_folder(request), checked(request["sha256"], DIGEST, "digest")
    path = os.path.join(cache, "cas", digest)
    if size_of(path) < 0:
        raise Failure("missing", "{} is not on the device".format(digest), missing=[digest])
    with open(path, "rb") as source:
        size = os.fstat(source.fileno()).st_size
        offset = min(int(request.get("offset") or 0), size)
        say("result", size=size, offset=offset)
        source.seek(offset)
        shutil.copyfileobj(source, sys.stdout.buffer, CHUNK)
        sys.stdout.buffer.flush()
    return {}


# run


def run(request: Json, hear: Callable[..., None] = say) -> Json:
    """Run trtexec, to build an engine say, or follow or collect the run of the same key.

    "key"; "files": name → sha256, laid into the job's folder; "trtexec": path, "trtexec_sha256"; "tensorrt": version
    that its banner must show; "arguments", paths relative to the folder; "program": "python" where they are for this
    interpreter instead; "workspace": absent, or {"flag": what stands before a number of MiB among the arguments,
    "bytes", "total", "available"}: bytes asked for, null for a part of what is free (`sizes`), tried with less and
    less while memory runs out; "outputs": {"engine": name, ...} to be kept by content; "table": the name of a
    calibration table, of whose tensors none may be without a scale; "timing_cache": {"name", "file"} or absent;
    "placement": whether to tell what runs on DLA; "seconds": limit of all attempts together; "space": bytes to be left
    on the disk; "lock": the device's lock; "every": seconds between signs of life; "fresh": run even where a finished
    run could be collected; "conditions": true where those of the run are to be told; "root" of the files that they are
    read from; "keep": {"bytes", "seconds"} of the cache (`gc`).

    → "ok", "outputs": role → {"sha256", "size"}, "attempts": [{"workspace", "outcome", "status", "signal", "seconds"}],
    "seconds", "waited", "layers", "timing_cache": {"before", "after"}, "collected" (it was built by an earlier call),
    "placement": {"dla", "gpu": {"count", "names": of the first 400}}, "shown": what an engine depends on, as `probe`
    has it, when it was done; "untidy": why `gc` failed; "conditions": {"before", "after": as `conditions` has them,
    "during": as `summary` has it}, "log": the end of trtexec's log; where not ok, "reason" (memory, timeout, disk,
    spoiled, version, trtexec, dla, lost, or what a job of this interpreter said) and "message". Errors
    "missing" and "damaged" list digests to be staged again, "space", "trtexec", "lock", "died", "cancelled".
    """
    cache = cache_folder(request)
    job = os.path.join(cache, "jobs", checked(request["key"], DIGEST, "key"))
    if not os.path.isdir(job):
        remove(job)
    os.makedirs(job, mode=0o700, exist_ok=True)
    collected = True
    handle = open_runner_lock(job)
    try:
        if try_lock(handle):
            done = finished(cache, job)
            if done is not None and not request.get("fresh"):
                return deliver(job, done, True)
            clean(job)
            os.utime(handle, None)  # since when it runs
            prepare(cache, job, request)
            start_runner(cache, job, request, handle)
            collected = False
    finally:
        os.close(handle)  # the runner has it too, and holds the lock by it
    result = follow(job, float(request.get("every") or 10), hear)
    if result is not None:
        return deliver(job, result, collected)
    if os.path.exists(os.path.join(job, "cancelled.json")):
        raise Failure("cancelled", "it was cancelled")
    if collected:  # another follower was told of a failure, or the runner was killed: begin anew
        return run(request, hear)
    kill_group(read_json(os.path.join(job, "state.json")) or {})
    if free_bytes(job) < LITTLE_SPACE:
        raise Failure("disk", "the disk of {} is full".format(job))
    raise Failure("died", "it ended without a result: was it killed?")


def open_runner_lock(job: str) -> int:
    path = os.path.join(job, "runner.lock")
    if os.path.isdir(path):
        remove(path)
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def finished(cache: str, job: str) -> Optional[Json]:
    """The result of an earlier build that nobody has seen, or that is good and still whole."""
    result = read_json(os.path.join(job, "result.json"))
    try:
        if result is None or (not result["ok"] and result["reason"] and result["message"]):
            return result
        for output in result["outputs"].values():
            stored = os.path.join(cache, "cas", output["sha256"])
            if size_of(stored) != output["size"] or file_sha256(stored) != output["sha256"]:
                return None
        return result
    except (AttributeError, KeyError, TypeError):
        return None  # not what a runner wrote


def deliver(job: str, result: Json, collected: bool) -> Json:
    """The result with what only this call knows. A failure is told once: then the same request builds again."""
    if not result["ok"]:
        with contextlib.suppress(OSError):  # a second follower of the same build may have been faster
            os.rename(os.path.join(job, "result.json"), os.path.join(job, "told.json"))
    return dict(result, collected=collected)


def clean(job: str) -> None:
    """Leave nothing of an earlier build, not even its trtexec."""
    kill_group(read_json(os.path.join(job, "state.json")) or {})
    for name in os.listdir(job):
        if name != "runner.lock":
            remove(os.path.join(job, name))


def prepare(cache: str, job: str, request: Json) -> None:
    """Lay the inputs out, each hashed now, and refuse what cannot work."""
    path = request["trtexec"]
    if not os.path.isfile(path):
        raise Failure("trtexec", "there is no trtexec at {}".format(path))
    if request.get("trtexec_sha256") not in (None, file_sha256(path)):
        raise Failure("trtexec", "{} is not the one that was probed: was JetPack upgraded?".format(path))
    space, free = request.get("space") or 0, free_bytes(job)
    if space > free:
        raise Failure("space", "a build needs {} bytes at {}, which has {}".format(space, job, free), free=free)
    missing = []
    for name, digest in sorted(request["files"].items()):
        stored = os.path.join(cache, "cas", checked(digest, DIGEST, "digest"))
        if size_of(stored) < 0:
            missing.append(digest)
        elif file_sha256(stored) != digest:
            remove(stored)
            missing.append(digest)
        else:
            place(stored, os.path.join(job, checked(name, NAME, "file name")))
    if missing:
        raise Failure("missing", "{} inputs are not on the device, or damaged".format(len(missing)), missing=missing)


def place(stored: str, path: str) -> None:
    """Another name for a file of the cache, or a copy where the file system has no links; use is noted for gc."""
    os.utime(stored, None)
    try:
        os.link(stored, path)
    except OSError:
        shutil.copyfile(stored, path)


def start_runner(cache: str, job: str, request: Json, handle: int) -> None:
    """Fork a process that no connection can take down: its own session, no terminal, none of our streams."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    try:
        os.setsid()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        if os.fork():
            os._exit(0)
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nothing, stream)
        os.chdir(job)
        Runner(cache, job, request).run()
    finally:
        os._exit(0)


def follow(job: str, every: float, hear: Callable[..., None]) -> Optional[Json]:
    """Repeat what the runner notes until its result is there, or the runner is gone without one."""
    handle = open_runner_lock(job)
    seen, said = None, time.monotonic()
    try:
        while True:
            over = try_lock(handle)  # looked at before the result: a runner writes that first, and then ends
            result = read_json(os.path.join(job, "result.json"))
            if over:
                return result
            progress = read_json(os.path.join(job, "progress.json"))
            if progress is not None and (progress != seen or time.monotonic() - said >= every):
                seen, said = progress, time.monotonic()
                hear("progress", **progress)
            time.sleep(0.05)
    finally:
        os.close(handle)


def scaled(table: Optional[str]) -> Set[str]:
    """The tensors of a calibration table, a line each behind its header, names before the last colon."""
    if not table:
        return set()
    with open(table, encoding="utf-8") as lines:
        return {line.rpartition(":")[0] for line in lines.read().splitlines()[1:]}


class Log:
    """trtexec's words, bounded: the beginning and the end; lines of --verbose only count."""

    def __init__(self, path: str, scaled: Set[str]) -> None:
        self.path, self.size, self.dropped = path, 0, 0
        self.scaled = scaled
        self.out = open(path, "wb")  # noqa: SIM115 - until close()
        self.tail: List[str] = []
        self.layers: Set[str] = set()
        self.layer: Optional[str] = None
        self.banner: Optional[str] = None
        self.spoiled: Optional[str] = None
        self.not_on_dla: Optional[str] = None
        self.placement: Json = {where: {"count": 0, "names": []} for where in ("dla", "gpu")}

    def place(self, line: str) -> None:
        """Note where a part of the engine runs."""
        placed = PLACED.search(line)
        if placed:
            listed = self.placement[placed.group(1).lower()]
            listed["count"] += 1
            if listed["count"] <= PARTS_KEPT:
                listed["names"].append(placed.group(2))

    def add(self, line: str) -> None:
        timing = TIMING.search(line)
        if timing:
            self.layer = timing.group(1)
            self.layers.add(self.layer)
        self.place(line)
        if "] [V] " in line[:40]:
            return
        banner = BANNER.search(line)
        self.banner = banner.group(1) if banner else self.banner
        unscaled = UNSCALED.search(line)
        if SPOILED.search(line) or (unscaled and unscaled.group(1) in self.scaled):
            self.spoiled = line
        refused = NOT_ON_DLA.search(line)
        self.not_on_dla = refused.group(1) if refused else self.not_on_dla
        if self.size < LOG_HEAD:
            self.out.write(line.encode("utf-8", "replace") + b"\n")
            self.size += len(line) + 1
        else:
            self.dropped += 1
        self.tail.append(line)
        if len(self.tail) > 2 * LOG_TAIL_LINES:
            del self.tail[:-LOG_TAIL_LINES]

    def close(self) -> None:
        if self.dropped:
            end = self.tail[-min(self.dropped, LOG_TAIL_LINES) :]
            text = "... {} lines left out ...\n".format(self.dropped - len(end)) + "\n".join(end) + "\n"
            self.out.write(text.encode("utf-8", "replace"))
        self.out.close()

    def error(self) -> Optional[Json]:
        """The last word of a program that speaks as the agent does, where that is an error."""
        try:
            said = json.loads(self.tail[-1]) if self.tail else None
        except ValueError:
            return None
        return said if isinstance(said, dict) and said.get("event") == "error" else None

    def out_of_memory(self) -> bool:
        """Whether the last that was said is of memory. A tactic skipped for it long before the end is no failure."""
        return any(MEMORY.search(line) for line in self.tail[-2 * WORDS :] if "] [W] " not in line[:40])


def sizes(workspace: Optional[Json]) -> Iterator[Optional[int]]:
    """Bytes to try one after the other; None where the program takes no workspace.

    What is asked for, else the largest half, quarter, ... of all memory (in whole GiB: the kernel keeps some) that is
    no more than half of what is free; then halves in whole MiB, down to 32 MiB.
    """
    if workspace is None:
        yield None
        return
    size = workspace.get("bytes")
    if size is None:
        total = -(-workspace["total"] // GIB) * GIB
        size = total // 2
        while size > SMALLEST_WORKSPACE and size > (workspace.get("available") or total) // 2:
            size //= 2
        size = max(size // MIB * MIB, SMALLEST_WORKSPACE)
    yield size
    while size > SMALLEST_WORKSPACE:
        size = max(size // 2 // MIB * MIB, SMALLEST_WORKSPACE)
        yield size


def in_mib(size: int) -> str:
    """Exact in decimal, as 2**-20 is."""
    return str(size // MIB) if size % MIB == 0 else "{:.20f}".format(size / MIB).rstrip("0")


def summary(looks: List[Json]) -> Json:
    """Of `conditions` seen during a run, about one a second: "looks", their number; of "clocks" [least, most] current
    Hz, of "power" the mean mW, of "cooling" the highest state."""

    def seen(part: str, field: Optional[str] = None) -> Dict[str, List[int]]:
        found = {}  # type: Dict[str, List[int]]
        for look in looks:
            for name, value in look[part].items():
                found.setdefault(name, []).append(value.get(field, 0) if field else value)
        return found

    return {
        "looks": len(looks),
        "clocks": {name: [min(values), max(values)] for name, values in seen("clocks", "cur").items()},
        "power": {name: sum(values) // len(values) for name, values in seen("power").items()},
        "cooling": {name: max(values) for name, values in seen("cooling").items()},
    }


class Runner:
    """One job, in the process that outlives the connection."""

    def __init__(self, cache: str, job: str, request: Json) -> None:
        self.cache, self.job, self.request = cache, job, request
        self.began = time.monotonic()  # no clock: a Jetson without a battery sets its own once it has a network
        self.state: Json = {"runner": os.getpid(), "runner_start": started_at(os.getpid())}
        self.tries: List[Json] = []
        self.log: Optional[Log] = None
        self.noted = self.waited = 0.0
        self.python = request.get("program") == "python"
        self.program = "python" if self.python else "trtexec"
        self.root = request.get("root") or "/"
        self.looks: List[Json] = []

    def run(self) -> None:
        """Do it all, and leave a result whatever happens."""
        try:
            write_json("state.json", self.state)
            self.note("waiting for the device")
            with self.device() as lock:
                told = self.request.get("conditions")
                before = conditions(self.root) if told else None
                result = self.attempts(lock)
                if told:
                    after = conditions(self.root)
                    result["conditions"] = {"before": before, "after": after, "during": summary(self.looks)}
        except Failure as failure:
            result = dict(failure.more, ok=False, reason=failure.reason, message=failure.message)
        except EnvironmentError as error:
            result = {"ok": False, "reason": "disk" if is_full(error) else "lost", "message": str(error)}
        except Exception as error:  # the one who waits must hear of it
            result = {"ok": False, "reason": "lost", "message": "{}: {}".format(type(error).__name__, error)}
        if not result["ok"]:
            for name in self.request["outputs"].values():
                remove(name)  # half an engine may be what fills the disk
        try:
            tidy(self.cache, self.request.get("keep"))
        except EnvironmentError as error:  # must not cost a good result
            result["untidy"] = str(error)
        if self.request.get("placement") and self.log:
            result["placement"] = self.log.placement
        log = self.log.tail[-WORDS:] if self.log else []
        result.update(attempts=self.tries, seconds=round(time.monotonic() - self.began, 3), log=log)
        write_json("result.json", result)

    @contextlib.contextmanager
    def device(self) -> Iterator[int]:
        lock = open_device_lock(self.request.get("lock") or "/tmp/trtrecipe-device.lock")
        try:
            while not try_lock(lock):
                end_orphans(self.cache)
                time.sleep(0.2)
            self.waited = round(time.monotonic() - self.began, 3)
            yield lock
        finally:
            os.close(lock)

    def note(self, doing: str, **more: Any) -> None:
        write_json("progress.json", dict(more, doing=doing, attempt=len(self.tries) + 1))
        self.noted = time.monotonic()

    def attempts(self, lock: int) -> Json:
        """Try until one succeeds or fails for anything but memory."""
        timing = self.request.get("timing_cache") or {}
        stored = os.path.join(self.cache, "timing", checked(timing["name"], NAME, "name")) if timing else ""
        before = file_sha256(stored) if timing and size_of(stored) >= 0 else None
        tries = list(sizes(self.request.get("workspace")))[::-1]
        ends = time.monotonic() + float(self.request["seconds"])
        failed = Failure("request", "nothing to try")
        while tries:
            size = tries.pop()
            if before:
                shutil.copyfile(stored, timing["file"])
            elif timing:
                remove(timing["file"])
            for name in self.request["outputs"].values():
                remove(checked(name, NAME, "file name"))
            try:
                self.attempt(size, ends, lock)
            except Failure as failure:
                failed = failure
                if before and self.log and any(BAD_TIMING.search(line) for line in self.log.tail[-WORDS:]):
                    remove(stored)  # spoiled by a disk, say: every build would fail by it
                    before = None
                    tries.append(size)
                elif failure.reason != "memory":
                    break
                continue
            after = self.keep_timing(timing["file"], stored) if timing else None
            outputs = {role: self.keep(role, name) for role, name in self.request["outputs"].items()}
            cache = {"before": before, "after": after} if timing else None
            layers = len(self.log.layers) if self.log else 0
            made = {"ok": True, "outputs": outputs, "timing_cache": cache, "waited": self.waited, "layers": layers}
            return dict(made, shown=shown(self.request.get("root") or "/", self.request["trtexec"]))
        raise failed

    def attempt(self, size: Optional[int], ends: float, lock: int) -> None:
        """One run of the program, with a workspace of `size`; raises Failure unless it did what was asked for."""
        started = time.monotonic()
        self.log = log = Log("build.log", scaled(self.request.get("table")))
        outcome = Failure("lost", "{} did not end".format(self.program))
        status: Optional[int] = None
        try:
            status, timed_out = self.execute(size, ends, lock, log)
            problem = self.judge(status, timed_out, log)
            if problem is not None:
                outcome = problem
                raise problem
            outcome = Failure("built", "")
        finally:
            log.close()
            killed = -status if status is not None and status < 0 else None
            self.tries.append({
                "workspace": size,
                "outcome": outcome.reason,
                "status": status if killed is None else None,
                "signal": killed,
                "seconds": round(time.monotonic() - started, 3),
            })  # fmt: skip

    def execute(self, size: Optional[int], ends: float, lock: int, log: Log) -> Tuple[int, bool]:
        """Run it without a shell in a session of its own; its exit status, and whether it ran out of time."""
        command = [sys.executable if self.python else self.request["trtexec"], *self.request["arguments"]]
        if size is not None:
            command.append(self.request["workspace"]["flag"] + in_mib(size))
        environment = dict(os.environ, LC_ALL="C")
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment,
                start_new_session=True, pass_fds=(lock,),
            )  # fmt: skip
        except OSError as error:
            raise Failure(self.program, "{} does not start: {}".format(command[0], error.strerror)) from error
        try:
            self.state.update(trtexec=process.pid, trtexec_start=started_at(process.pid))
            write_json("state.json", self.state)
            return self.watch(process, size, ends, log)
        finally:
            self.kill(process.pid, signal.SIGKILL)  # it, where we failed; and what it may have left behind
            process.wait()

    def watch(self, process: "subprocess.Popen[bytes]", size: Optional[int], ends: float, log: Log) -> Tuple[int, bool]:
        timed_out, deadline, rest, open_ = False, ends, b"", True
        assert process.stdout is not None
        doing = "building" if self.request.get("workspace") else "at work"
        self.note(doing, workspace=size)
        while open_ or process.poll() is None:
            if not open_:
                time.sleep(0.05)
            elif select.select([process.stdout], [], [], 0.1)[0]:
                block = os.read(process.stdout.fileno(), CHUNK)
                open_ = bool(block)
                lines = (rest + block).split(b"\n")
                rest = lines.pop()[:LONGEST_LINE]
                for line in lines:
                    log.add(line[:LONGEST_LINE].decode("utf-8", "replace").rstrip("\r"))
            elif process.poll() is not None:
                break  # whoever inherited the pipe has nothing more to say
            if time.monotonic() > deadline:
                self.kill(process.pid, signal.SIGKILL if timed_out else signal.SIGTERM)
                timed_out, deadline = True, time.monotonic() + GRACE
            if time.monotonic() - self.noted >= 1:
                if self.request.get("conditions"):
                    self.looks.append(conditions(self.root, ask=False))
                self.note(doing, workspace=size, layers=len(log.layers), layer=log.layer,
                          seconds=int(time.monotonic() - self.began))  # fmt: skip
        if rest:
            log.add(rest.decode("utf-8", "replace"))
        process.stdout.close()
        return process.wait(), timed_out

    @staticmethod
    def kill(group: int, number: int) -> None:
        with contextlib.suppress(OSError):
            os.killpg(group, number)

    def judge(self, status: int, timed_out: bool, log: Log) -> Optional[Failure]:
        """What is wrong with a run that ended, None where nothing is."""
        if timed_out:
            return Failure("timeout", "it took longer than {} s".format(self.request["seconds"]))
        expected = self.request.get("tensorrt")
        if expected and log.banner and log.banner != banner_of(expected):
            message = "trtexec is of TensorRT {}, not {}: was JetPack upgraded?".format(log.banner, expected)
            return Failure("version", message)
        free = free_bytes(self.job)
        if free < LITTLE_SPACE:
            return Failure("disk", "the disk of {} is full".format(self.job))
        said = log.error() if status and self.python else None
        if said:
            return Failure(said["reason"], said["message"])
        if status:
            if status in (-signal.SIGKILL, 128 + signal.SIGKILL) or log.out_of_memory():
                return Failure("memory", "the device ran out of memory")
            if log.not_on_dla:
                return Failure("dla", "DLA does not take {!r}, and GPU fallback is off".format(log.not_on_dla))
            if status < 0:
                return Failure(self.program, "{} was ended by signal {}".format(self.program, -status))
            return Failure(self.program, "{} failed with status {}".format(self.program, status))
        if log.spoiled:
            return Failure("spoiled", "trtexec built something else than was asked for: {}".format(log.spoiled))
        for role, name in sorted(self.request["outputs"].items()):
            if size_of(name) < 1:
                return Failure(self.program, "{} ended well but wrote no {}".format(self.program, role))
        return None

    def keep(self, role: str, name: str) -> Json:
        if not stat.S_ISREG(os.lstat(name).st_mode):
            raise Failure(self.program, "{} is no plain file".format(role))
        digest, size = file_sha256(name), os.stat(name).st_size
        adopt_file(self.cache, name, digest)
        return {"sha256": digest, "size": size}

    def keep_timing(self, name: str, stored: str) -> Optional[str]:
        """Under the device's lock, so that no other build's measurements are lost."""
        if size_of(name) < 1:
            return None
        digest = file_sha256(name)
        with open(name, "rb") as source:
            os.fsync(source.fileno())
        if size_of(stored) < 0:
            remove(stored)
        os.rename(name, stored)
        return digest


def banner_of(version: str) -> str:
    """TensorRT's own number for a version: 8.5.2 → 8502, 10.3.0 → 100300 (NvInferVersion.h; 10 changed the scale)."""
    major, minor, patch = [int(part) for part in (version + ".0.0").split(".")[:3]]
    return str(major * (1000 if major < 10 else 10000) + minor * 100 + patch)


def cancel(request: Json) -> Json:
    """Takes "key", or none for every job in the cache; gives "cancelled": [{"key", "seconds" since it was begun}] of
    those that were running; they are no more.
    """
    cache = cache_folder(request)
    if request.get("key") is not None:
        keys = [checked(request["key"], DIGEST, "key")]
    else:
        keys = sorted(name for name in os.listdir(os.path.join(cache, "jobs")) if DIGEST.match(name))
    ended = [{"key": key, "seconds": end_job(os.path.join(cache, "jobs", key))} for key in keys]
    return {"cancelled": [job for job in ended if job["seconds"] is not None]}


def end_job(job: str) -> Optional[int]:
    """For how many seconds it had been running, None where it was not; whoever follows it is told."""
    if not os.path.exists(os.path.join(job, "runner.lock")):
        return None
    handle = open_runner_lock(job)
    try:
        if try_lock(handle):
            return None
        since = max(0, int(time.time() - os.stat(os.path.join(job, "runner.lock")).st_mtime))
        write_json(os.path.join(job, "cancelled.json"), {})  # first: a follower may look as soon as the lock is free
        state: Json = {}
        while not try_lock(handle):
            state = read_json(os.path.join(job, "state.json")) or state
            if state.get("runner_start") and started_at(state.get("runner", 0)) == state["runner_start"]:
                with contextlib.suppress(OSError):
                    os.kill(state["runner"], signal.SIGKILL)
            time.sleep(0.05)
        kill_group(state)
        return since
    finally:
        os.close(handle)


# gc


def gc(request: Json) -> Json:
    """Takes "keep_bytes": size to shrink the content to, least recently used first, and "keep_seconds": what is younger
    stays. Gives "removed", "freed", "kept" in bytes. What a running build uses it has by another name.
    """
    cache = cache_folder(request)
    oldest = time.time() - float(request.get("keep_seconds") or 0)
    removed, freed = 0, 0
    for job in glob.glob(os.path.join(cache, "jobs", "*")):
        if not os.path.isdir(job):
            remove(job)
            continue
        handle = open_runner_lock(job)
        try:
            if os.stat(job).st_mtime <= oldest and try_lock(handle):
                clean(job)
                remove(job)
        finally:
            os.close(handle)
    paths = [path for name in ("cas", "incoming") for path in glob.glob(os.path.join(cache, name, "*"))]
    for path in [path for path in paths if size_of(path) < 0]:
        remove(path)
    stored = [(os.stat(path), path) for path in paths if size_of(path) >= 0]
    total = sum(entry.st_size for entry, path in stored if os.path.basename(os.path.dirname(path)) == "cas")
    stored = [(entry, path) for entry, path in stored if entry.st_mtime <= oldest]
    for entry, path in sorted(stored, key=lambda item: item[0].st_mtime):
        incoming = os.path.basename(os.path.dirname(path)) == "incoming"
        if incoming or total > int(request.get("keep_bytes") or 0):
            with open(path, "rb") as source:
                if not try_lock(source.fileno()):
                    continue  # it is being sent
                remove(path)
            removed, freed = removed + 1, freed + entry.st_size
            total -= 0 if incoming else entry.st_size
    return {"removed": removed, "freed": freed, "kept": total}


def tidy(cache: str, keep: Optional[Json]) -> None:
    """`gc` as a job asks for it: "keep" {"bytes", "seconds"}."""
    if keep is not None:
        gc({"cache": cache, "keep_bytes": keep["bytes"], "keep_seconds": keep["seconds"]})


OPERATIONS = {
    "probe": probe,
    "stage": stage,
    "receive": receive,
    "send": send,
    "run": run,
    "cancel": cancel,
    "gc": gc,
}


def main(stream: BinaryIO) -> int:
    """Answer the request that is the next line of `stream`."""
    try:
        request = json.loads(stream.readline(LONGEST_REQUEST).decode("utf-8"))
        if request.get("op") not in OPERATIONS:
            raise Failure("request", "operations: {}".format(", ".join(sorted(OPERATIONS))))
        result = OPERATIONS[request["op"]](request)
        if request["op"] != "send":  # which has said it before the bytes
            say("result", **result)
        return 0
    except Failure as failure:
        say("error", reason=failure.reason, message=failure.message, **failure.more)
    except (BrokenPipeError, KeyboardInterrupt):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # nobody listens any more, not even to the last flush
    except EnvironmentError as error:
        say("error", reason="space" if is_full(error) else "device", message=str(error))
    except (KeyError, TypeError, ValueError) as error:
        say("error", reason="request", message="the request is not understood: {!r}".format(error))
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.stdin.buffer))
