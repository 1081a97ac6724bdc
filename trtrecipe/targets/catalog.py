"""Profiles, releases and dialects: data under `targets/data/`, read here and nowhere else.

Reading is layered by cost: profiles, JetPack releases and dialects are small and parsed once; an operator table is
parsed only when a step needs it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from trtrecipe.errors import InputError, Problem

DATA = Path(__file__).parent / "data"
LONGEST = 64
"""Characters of a name that a message repeats, and that near matches are looked for."""


class TargetError(InputError):
    """A `profile@JetPack` that cannot be served: `message` says what and why, `hint` what to write instead."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__([Problem(message, hint=hint)])
        self.hint = hint


@dataclass(frozen=True)
class Dialect:
    """What one TensorRT release family, TensorRT for RTX, ONNX Runtime or TFLite accepts.

    `id` is "trt-8.2", "rtx", "ort", "tflite". `opset_max` is the highest ONNX opset of the default domain that it
    takes, None for what is not made of ONNX graphs. `strongly_typed`: precisions are baked into the graph, there are no
    precision flags. `operators_from` names the release whose operator table serves (see `operators`), None where there
    is none and the runtime itself is asked; `assumed` says that opset ceiling and table were published for an older
    release. `dla` and `workspace`: whether the builder can use DLA cores and takes a workspace limit.
    """

    id: str
    tensorrt: str | None
    opset_max: int | None
    operators_from: str | None
    assumed: bool
    strongly_typed: bool
    precisions: tuple[str, ...]
    dla: bool
    workspace: bool
    notes: tuple[str, ...]
    sources: tuple[str, ...]

    @property
    def implicit(self) -> bool:
        """Whether INT8 can be asked for by a calibration table: in weakly typed networks of TensorRT."""
        return self.tensorrt is not None and not self.strongly_typed


@dataclass(frozen=True)
class L4T:
    """One L4T version of a JetPack release; `tensorrt` None is unknown."""

    version: str
    tensorrt: str | None


@dataclass(frozen=True)
class Release:
    """One JetPack release on one profile, or one release of TensorRT where the profile is of its package.

    `jetpack` is what stands behind the @. A JetPack release may span L4T versions with different TensorRT patches;
    `package` is the TensorRT version of a release of the package, which has no L4T.
    """

    jetpack: str
    name: str
    status: str
    l4t: tuple[L4T, ...]
    cuda: str | None
    python: str
    variants: tuple[str, ...]
    notes: tuple[str, ...]
    sources: tuple[str, ...]
    package: str | None = None

    @property
    def tensorrt(self) -> tuple[str, ...]:
        """The TensorRT versions that it is known to ship, oldest L4T first; empty when unknown."""
        if self.package is not None:
            return (self.package,)
        return tuple(dict.fromkeys(entry.tensorrt for entry in self.l4t if entry.tensorrt))

    @property
    def family(self) -> str | None:
        """TensorRT's major.minor, the same for every L4T version of a release; None when unknown."""
        return ".".join(self.tensorrt[0].split(".")[:2]) if self.tensorrt else None


@dataclass(frozen=True)
class Variant:
    """A memory or module variant of a profile. `dla_cores` counts the hardware; a release may not reach them."""

    id: str
    name: str
    memory_gb: tuple[int, ...]
    dla_cores: int
    modules: tuple[str, ...]


@dataclass(frozen=True)
class Profile:
    """What we know of a device type.

    `family` is "jetson", "cuda", "rtx", "host" or "tflite"; `builder` the tool that makes its engines ("trtexec",
    "tensorrt", "tensorrt-rtx", "onnxruntime", "tflite"). `precisions` are the modes it computes, `fallbacks` those that
    it can compute beside int8. `precision_notes`: what a person should know of a precision, by its name, or "fallback".
    """

    id: str
    name: str
    family: str
    builder: str
    gpu: str | None
    compute_capabilities: tuple[str, ...]
    precisions: tuple[str, ...]
    fallbacks: tuple[str, ...]
    precision_notes: Mapping[str, str]
    variants: tuple[Variant, ...]
    releases: tuple[Release, ...]
    notes: tuple[str, ...]
    sources: tuple[str, ...]

    @property
    def released_as(self) -> str:
        """Of what its releases are: "JetPack" or "TensorRT"."""
        return "TensorRT" if self.family == "cuda" else "JetPack"


def dla_cores(profile: Profile, release: Release | None, dialect: Dialect) -> dict[str, int]:
    """Variant → how many DLA cores a build for that release can use, for those variants that the release runs on."""
    if release is None:
        return {}
    return {
        variant.id: variant.dla_cores if dialect.dla else 0
        for variant in profile.variants
        if variant.id in release.variants
    }


@dataclass(frozen=True)
class Catalog:
    """All profiles in the order of `devices list`, all dialects by id, and TensorRT families refused with a reason.

    `packaged`: the dialects, by id, of TensorRT releases that only profile cuda has; they follow from those in
    `dialects`.
    """

    profiles: tuple[Profile, ...]
    dialects: Mapping[str, Dialect]
    refused: Mapping[str, str]
    packaged: Mapping[str, Dialect] = field(default_factory=dict)

    def find(self, spec: str) -> tuple[Profile, Release | None]:
        """The profile and release that `profile` or `profile@JetPack` names. Raises `TargetError`."""
        profile, release = self.look_up(spec)
        self.dialect(profile, release)
        return profile, release

    def look_up(self, spec: str) -> tuple[Profile, Release | None]:
        """Like `find`, but also what cannot be built for, and a Jetson without a release. Raises `TargetError`."""
        name, at, jetpack = spec.partition("@")
        profile = self._profile(name, at + jetpack)
        if not at:
            return profile, None
        if not profile.releases:
            raise TargetError(f"{profile.id} takes no JetPack release", f"write {profile.id} without @")
        for release in profile.releases:
            if release.jetpack == jetpack:
                return profile, release
        raise self._unknown_release(profile, jetpack)

    def dialect(self, profile: Profile, release: Release | None) -> Dialect:
        """What the builder of that profile at that release accepts. Raises `TargetError` where it cannot be served."""
        if release is None:
            if profile.releases:
                raise TargetError(f"{profile.id} needs a {profile.released_as} release", self._example(profile))
            return self.dialects["ort" if profile.family == "host" else profile.family]
        if reason := self.refusal(release):
            spec = f"{profile.id}@{release.jetpack}"
            raise TargetError(f"{spec} cannot be built for: {reason}", self._instead_of(profile, release))
        return self._dialect(release.family)

    def refusal(self, release: Release) -> str | None:
        """Why nothing can be built for that release, or None."""
        if release.family is None:
            return f"which TensorRT JetPack {release.name} ships is not known"
        if release.family in self.refused:
            return self.refused[release.family]
        if f"trt-{release.family}" not in {**self.dialects, **self.packaged}:
            return f"what TensorRT {release.family} accepts is not known"
        return None

    def installed(self, profile: Profile, tensorrt: str) -> str:
        """The profile's release, as written behind the @, that an installed TensorRT ("10.3.0.26") is served as.

        A newer minor release than the newest known of its major is served as that one; what is not served as any is
        major.minor of the version itself.
        """
        version = [int(part) if part.isdigit() else 0 for part in tensorrt.split(".")[:2]]
        known = [[int(part) for part in release.jetpack.split(".")] for release in profile.releases]
        of_its_major = [each for each in known if each[0] == version[0]]
        return ".".join(map(str, min(version, max(of_its_major)) if of_its_major else version))

    def served(self, profile: Profile) -> tuple[Release, ...]:
        """The profile's releases that engines can be built for, oldest first."""
        return tuple(release for release in profile.releases if self.refusal(release) is None)

    def _dialect(self, family: str | None) -> Dialect:
        return self.dialects.get(f"trt-{family}") or self.packaged[f"trt-{family}"]

    def _profile(self, name: str, at_jetpack: str) -> Profile:
        for profile in self.profiles:
            if profile.id == name:
                return profile
        raise self._unknown_profile(name, at_jetpack)

    def _unknown_profile(self, name: str, at_jetpack: str) -> TargetError:
        known = [profile.id for profile in self.profiles]
        for profile in self.profiles:
            if name in (variant.id for variant in profile.variants):
                hint = f"write {profile.id}{at_jetpack}; which variant it is comes from the device"
                return TargetError(f"{name} is a variant of {profile.id}, not a profile", hint)
        if len(name + at_jetpack) > LONGEST:
            return TargetError(f"unknown profile {name[:LONGEST]!r}...", f"profiles: {', '.join(known)}")
        several = self._profiles_with_words(name, at_jetpack.removeprefix("@"))
        if len(several) > 1:
            hint = f"write {_either([id + at_jetpack for id in several])}"
            return TargetError(f"{name} is no profile, it may mean {_either(several)}", hint)
        close = several or _nearest(name.lower(), known)
        hint = f"did you mean {close[0]}{at_jetpack}? " if close else ""
        return TargetError(f"unknown profile {name!r}", f"{hint}profiles: {', '.join(known)}")

    def _profiles_with_words(self, name: str, jetpack: str) -> list[str]:
        """Profiles whose name has all words of `name` ("jetson-nx"); only those with that release, if there are any."""
        words = set(name.lower().split("-"))
        found = [profile for profile in self.profiles if words < set(profile.id.split("-"))]
        fitting = [profile for profile in found if jetpack in (release.jetpack for release in profile.releases)]
        return [profile.id for profile in fitting or found]

    def _unknown_release(self, profile: Profile, jetpack: str) -> TargetError:
        served = [release.jetpack for release in self.served(profile)]
        releases = f"releases: {', '.join(served)}"
        if len(jetpack) > LONGEST:
            unknown = f"unknown {profile.released_as} release {jetpack[:LONGEST]!r}..."
            return TargetError(f"{unknown} for {profile.id}", releases)
        alike = [other for other in self.profiles if other.released_as == profile.released_as]
        if any(release.jetpack == jetpack for other in alike for release in other.releases):
            return TargetError(f"{profile.released_as} {jetpack} does not support {profile.id}", releases)
        close = _nearest(jetpack.lower().replace(" ", "-"), served)
        hint = f"did you mean {profile.id}@{close[0]}? " if close else ""
        return TargetError(f"unknown {profile.released_as} release {jetpack!r} for {profile.id}", hint + releases)

    def _example(self, profile: Profile) -> str:
        served = self.served(profile)
        names = ", ".join(release.jetpack for release in served)
        such = f", such as {profile.id}@{served[-1].jetpack}" if served else ""
        such += ", or install the tensorrt package" if profile.family == "cuda" else ""
        return f"write it as profile@{profile.released_as}{such}; releases: {names or 'none'}"

    def _instead_of(self, profile: Profile, release: Release) -> str:
        """Where to go from a release that is refused: the nearest older one that is served, else the oldest."""
        served = self.served(profile)
        before = profile.releases[: profile.releases.index(release)]
        choice = [*served[:1], *(known for known in served if known in before)][-1:]
        names = ", ".join(known.jetpack for known in served)
        return "".join(f"write {profile.id}@{known.jetpack}; " for known in choice) + f"releases: {names or 'none'}"


@cache
def load_catalog() -> Catalog:
    """The catalog that ships with the package, read once per process."""
    releases, packages = _read("jetpack.json"), _read("tensorrt.json")
    raw = _read("dialects.json")
    dialects = {entry["id"]: Dialect(**_frozen(entry)) for entry in raw["dialects"]}
    return Catalog(
        profiles=tuple(_profile(entry, releases, packages) for entry in _read("profiles.json")["profiles"]),
        dialects=dialects,
        refused=raw["refused"],
        packaged={
            f"trt-{entry['release']}": _packaged(entry, dialects[entry["like"]], packages)
            for entry in packages["releases"]
            if f"trt-{entry['release']}" not in dialects
        },
    )


@cache
def operators(table: str) -> Mapping[str, bool]:
    """The operator table `Dialect.operators_from` names: ONNX operator → whether the parser supports it.

    Not listed is not known, hence not supported. Raises OSError when there is no such table.
    """
    supported: dict[str, bool] = _read(f"operators-{table}.json")["operators"]
    return supported


def _read(name: str) -> Any:
    return json.loads((DATA / name).read_text("utf-8"))


def _frozen(raw: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in raw.items()}


def _profile(raw: dict[str, Any], releases: Mapping[str, Any], packages: Mapping[str, Any]) -> Profile:
    if raw["family"] == "cuda":
        of_package = tuple(_release_of_package(entry["release"], packages) for entry in packages["releases"])
        return Profile(**_frozen(raw) | {"variants": (), "releases": of_package})
    variants = tuple(Variant(**_frozen(variant)) for variant in raw["variants"])
    ids = [variant.id for variant in variants]
    found = (
        _release(entry, supported, releases["sources"])
        for entry in releases["releases"]
        if (supported := tuple(id for id in ids if id in entry["devices"]))
    )
    return Profile(**_frozen(raw) | {"variants": variants, "releases": tuple(found)})


def _release(raw: dict[str, Any], variants: tuple[str, ...], common_sources: list[str]) -> Release:
    return Release(
        jetpack=raw["jetpack"],
        name=raw["name"],
        status=raw["status"],
        l4t=tuple(L4T(version, tensorrt) for version, tensorrt in raw["l4t"].items()),
        cuda=raw["cuda"],
        python=raw["python"],
        variants=variants,
        notes=tuple(raw["notes"]),
        sources=(*common_sources, *raw["sources"]),
    )


def _release_of_package(release: str, packages: Mapping[str, Any]) -> Release:
    """The package comes for several versions of Python and CUDA, so that a release says nothing of either."""
    return Release(
        jetpack=release,
        name=release,
        status="production",
        l4t=(),
        cuda=None,
        python="",
        variants=(),
        notes=(),
        sources=tuple(packages["sources"]),
        package=f"{release}.0",
    )


def _packaged(raw: Mapping[str, Any], like: Dialect, packages: Mapping[str, Any]) -> Dialect:
    assumed = like.operators_from != raw["release"]
    notes = packages["notes"]
    return replace(
        like,
        id=f"trt-{raw['release']}",
        tensorrt=raw["release"],
        assumed=assumed,
        strongly_typed=raw["strongly_typed"],
        dla=raw["dla"],
        notes=(
            *((notes["table"].format(table=like.operators_from),) if assumed else ()),
            notes["strong" if raw["strongly_typed"] else "weak"],
        ),
        sources=tuple(dict.fromkeys((*like.sources, *packages["sources"]))),
    )


def _nearest(name: str, known: list[str]) -> list[str]:
    from difflib import get_close_matches  # only a mistake needs it

    return get_close_matches(name, known, n=1)


def _either(names: list[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"
