"""Reachable devices: how to get there, and what a probe of one means in the catalog's terms."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from trtrecipe.targets.catalog import Profile, Release

GIB = 1 << 30
GPU_CLOCK = re.compile("gpu|gm20b|gp10b|gv11b|ga10b")
"""Names of a Jetson's GPU among the clocks of a probe."""
DEFAULT_SECONDS = 4 * 3600


@dataclass(frozen=True)
class Device:
    """One device of the inventory.

    `profile` is a profile's id; `ssh` a destination as the OpenSSH client takes it, None where only bundles get there.
    `exec` stands before every command there, as ("docker", "exec", "-i", "NAME"). `python`: the interpreter there.
    `seconds`: how long a build may take. `result`: folders with what a bundle gave there, for the one command that
    imports them; `changed`: step → in words, what has changed since that bundle was made.
    """

    name: str
    profile: str
    ssh: str | None = None
    exec: tuple[str, ...] = ()
    python: str = "python3"
    seconds: float = DEFAULT_SECONDS
    labels: tuple[str, ...] = ()
    result: tuple[str, ...] = ()
    changed: tuple[tuple[str, str], ...] = ()

    @property
    def address(self) -> dict[str, Any]:
        """What leads there, and so which device it is: a name may be given to another one."""
        if self.result:
            return {"result": list(self.result), "changed": dict(self.changed)}
        if self.ssh is None:
            return {"bundle": self.name, "profile": self.profile}
        return {"ssh": self.ssh, "exec": list(self.exec), "python": self.python}


@dataclass(frozen=True)
class Fingerprint:
    """What an engine depends on. `trtexec`: SHA-256 of the program; `memory`: bytes, rounded up to whole GiB, as the
    kernel keeps some of it for itself and how much varies."""

    model: str | None
    memory: int
    l4t: str | None
    cuda: str | None
    tensorrt: str
    trtexec: str


@dataclass(frozen=True)
class Seen:
    """The last look at a device: `at`, seconds since the epoch, and the agent's probe as it came."""

    at: float
    probe: Mapping[str, Any]


def fingerprint(probe: Mapping[str, Any]) -> Fingerprint | None:
    """None where the device cannot build: see `lacks`."""
    if any(lacks(probe)):
        return None
    return Fingerprint(
        model=probe["model"],
        memory=-(-probe["memory"]["total"] // GIB) * GIB,
        l4t=probe["l4t"],
        cuda=probe["cuda"],
        tensorrt=probe["tensorrt"],
        trtexec=probe["trtexec"]["sha256"],
    )


def settings(probe: Mapping[str, Any]) -> dict[str, Any]:
    """What of a device decides how fast an engine runs, and stays until somebody changes it: its power mode, and from
    where to where the GPU's clock may go, in Hz."""
    mode, clocks = probe.get("power_mode") or {}, probe.get("clocks") or {}
    limits = [[clock.get("min"), clock.get("max")] for name, clock in sorted(clocks.items()) if GPU_CLOCK.search(name)]
    return {"power_mode": mode.get("name") or mode.get("id"), "gpu_clock": limits}


def lacks(probe: Mapping[str, Any]) -> Iterator[str]:
    """What a device needs to build and does not show."""
    if not probe["tensorrt"]:
        yield "no TensorRT was found on it: neither its packages nor NvInferVersion.h"
    if not probe["trtexec"]:
        yield "no trtexec was found on it: neither /usr/src/tensorrt/bin/trtexec nor one in PATH"
    if not probe["memory"]["total"]:
        yield "it does not tell its memory: /proc/meminfo cannot be read"


def family(tensorrt: str) -> str:
    """major.minor of a TensorRT version."""
    return ".".join(tensorrt.split(".")[:2])


def release_of(profile: Profile, probe: Mapping[str, Any]) -> Release | None:
    """The JetPack release that the device shows, by its L4T; None where the catalog knows none with it."""
    for release in profile.releases:
        if probe["l4t"] in (entry.version for entry in release.l4t):
            return release
    return None


def differences(profile: Profile, probe: Mapping[str, Any]) -> Iterator[str]:
    """Where a device is not what its profile says, in sentences."""
    release = release_of(profile, probe)
    modules = [module.split()[0] for variant in profile.variants for module in variant.modules]
    compatible = " ".join(probe["compatible"])
    if compatible and modules and not any(module in compatible for module in modules):
        yield f"its compatible string {', '.join(probe['compatible'])} names none of {', '.join(modules)}"
    sizes = sorted({size for variant in profile.variants for size in variant.memory_gb})
    total = probe["memory"]["total"]
    if total and sizes and not any(_holds(size, total) for size in sizes):
        yield f"its memory is {total / GIB:.1f} GiB; the profile knows {', '.join(map(str, sizes))} GB"
    if release is None:
        yield f"L4T {probe['l4t']} belongs to no JetPack release that is known of {profile.id}"
        return
    known = [entry.tensorrt for entry in release.l4t if entry.version == probe["l4t"] and entry.tensorrt]
    if probe["tensorrt"] and known and probe["tensorrt"] not in known:
        yield f"TensorRT {probe['tensorrt']}; JetPack {release.jetpack} ships {', '.join(known)}"
    if probe["cuda"] and release.cuda and family(probe["cuda"]) != family(release.cuda):
        yield f"CUDA {probe['cuda']}; JetPack {release.jetpack} ships {release.cuda}"
    if probe["jetpack"] and release.jetpack.partition("-")[0] != probe["jetpack"]:
        yield f"its nvidia-jetpack package is {probe['jetpack']}; L4T {probe['l4t']} belongs to {release.jetpack}"


def dla_cores(profile: Profile, memory: int) -> int | None:
    """How many DLA cores a device of so many bytes has; None where its memory is that of no variant."""
    counts = [
        variant.dla_cores for variant in profile.variants if any(_holds(size, memory) for size in variant.memory_gb)
    ]
    return max(counts, default=None)


def _holds(size: int, memory: int) -> bool:
    """Whether a module of `size` GB shows so many bytes: one of 8 GB shows 7 and some GiB, never more than its 8."""
    return size * 3 / 4 <= memory / GIB <= size


def as_json(found: Fingerprint | None) -> dict[str, Any] | None:
    """The fingerprint as plain data, for keys and documents."""
    return None if found is None else asdict(found)
