"""Profiles, releases and dialects: data under `targets/data/`, read here and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Dialect:
    """What one TensorRT release (or ONNX Runtime) accepts.

    `id` is e.g. "ort", "rtx", "trt-8.2". `opset_max` is the highest ONNX opset of the default domain that it takes.
    `strongly_typed`: precisions are baked into the graph, there are no precision flags. `operators` maps each ONNX
    operator the release's parser lists to whether it is supported; None where no table exists (the runtime itself is
    then asked). `operators_from` names the release the table was written for, `assumed` says it is an older one.
    """

    id: str
    opset_max: int
    strongly_typed: bool
    operators: tuple[str, ...] | None
    operators_from: str | None
    assumed: bool


@dataclass(frozen=True)
class Release:
    """One JetPack release on one profile: versions as the facts give them; `tensorrt` None is unknown."""

    jetpack: str
    l4t: str
    tensorrt: str | None
    cuda: str | None


@dataclass(frozen=True)
class Profile:
    """What we know of a device type. `precisions` are modes it computes in hardware (fp32, fp16, int8)."""

    id: str
    name: str
    family: str  # "host" | "rtx" | "jetson"
    compute_capability: str | None
    precisions: tuple[str, ...]
    fallbacks: tuple[str, ...]
    dla_cores: str
    releases: tuple[Release, ...]
    notes: tuple[str, ...]
    sources: tuple[str, ...]
