"""Fills `dist/<recipe>/<target>/` with copies of what was built, and a manifest that says how."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trtrecipe import __version__, parted
from trtrecipe.digest import sha256_bytes, sha256_file
from trtrecipe.errors import StoreError
from trtrecipe.plan.graph import Graph, RecipePlan
from trtrecipe.plan.resolve import tools_of
from trtrecipe.plan.tools import version
from trtrecipe.run.results import TargetResult
from trtrecipe.store.blobs import Blob, DamagedBlobError, explain_oserror, wrong_with
from trtrecipe.store.store import Store

FILES = {
    "engine": "model.engine",
    "onnx": "model.onnx",
    "scales": "scales.json",
    "calibration_table": "calibration.table",
    "preprocessing": "preprocessing.json",
}
TFLITE = "model.tflite"  # the engine, where it is one that other tools know by its suffix
MANIFEST = "manifest.json"


_MAY_BE_PARTED = ("engine", "onnx")
DATA = "_data"
"""What the artifact with the values of a model is called behind the name of the model's."""


@dataclass(frozen=True)
class Placed:
    """A file of a result, and what is in it."""

    path: Path
    blob: Blob


def place(graph: Graph, recipe: RecipePlan, result: TargetResult, store: Store, output: Path) -> dict[str, Placed]:
    """Put back what is missing or altered of a target's files; artifact name → where it is now, the manifest too.

    A target that failed, missed a gate or has no choice among its candidates leaves the folder as it was. Every file is
    written and checked beside the folder before any is moved in, the manifest last. Raises StoreError where the folder
    cannot be written, DamagedBlobError where the store's bytes are not what they should be.
    """
    if result.status in ("failed", "gate-failed") or (result.candidates and result.chosen is None):
        return {}
    folder = output / recipe.name / result.plan.target.id
    try:
        placed = _placed(result, store)
        wanted = {each.name: each for each in placed.values()}
        manifest = _manifest_text(graph, recipe, result, placed, _built_on(graph, result, store)).encode()
        before = _read_manifest(folder)
        absent = {name: each for name, each in wanted.items() if not _is_there(folder / name, each.blob, store)}
        stale = {
            name: sha256
            for name, sha256 in before.items()
            if name not in wanted and _digest_or_none(folder / name) == sha256
        }
        manifest_path = folder / MANIFEST
        if absent or stale or not _is_plain(manifest_path) or manifest_path.read_bytes() != manifest:
            _write(folder, absent, stale, manifest, store)
    except OSError as error:
        raise explain_oserror(error, folder, "output folder") from error
    found = {name: Placed(folder / each.name, each.blob) for name, each in placed.items()}
    return found | {"manifest": Placed(manifest_path, Blob(sha256_bytes(manifest), len(manifest)))}


@dataclass(frozen=True)
class _File:
    """A file to be placed as `name`: the blob `source`, or the `part` of it."""

    name: str
    blob: Blob
    source: Blob
    part: parted.File | None = None


def _placed(result: TargetResult, store: Store) -> dict[str, _File]:
    """Artifact name → file. A model that is two files (`parted`) is placed as these."""
    called = FILES | ({"engine": TFLITE} if result.plan.target.profile.family == "tflite" else {})
    placed = {}
    for name, blob in result.artifacts.items():
        held = _parts(blob, store) if name in _MAY_BE_PARTED else None
        if held is None:
            placed[name] = _File(called[name], blob, blob)
            continue
        for suffix, part in zip(("", DATA), held, strict=True):
            placed[name + suffix] = _File(part.name, Blob(part.sha256, part.size), blob, part)
    return placed


def _parts(blob: Blob, store: Store) -> tuple[parted.File, parted.File] | None:
    try:
        return parted.files(store.blobs.path(blob.sha256))
    except OSError as error:
        raise DamagedBlobError(blob, wrong_with(error)) from None


def _write(folder: Path, absent: Mapping[str, _File], stale: Mapping[str, str], manifest: bytes, store: Store) -> None:
    import shutil

    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(".placing-*"):  # by a build that was killed
        shutil.rmtree(left, ignore_errors=True)
    for name in (*absent, MANIFEST):
        if (folder / name).is_dir() and not (folder / name).is_symlink():
            raise StoreError(f"{folder / name} is a folder, where a result belongs", "move it away")
    staging = folder / f".placing-{os.urandom(4).hex()}"
    staging.mkdir()
    try:
        for name, file in absent.items():
            if file.part is None:
                store.blobs.copy_out(file.source, staging / name)
            elif parted.copy(store.blobs.path(file.source.sha256), file.part, staging / name) != file.blob.sha256:
                raise DamagedBlobError(file.source, "damaged")
        (staging / MANIFEST).write_bytes(manifest)
        for name in absent:
            (staging / name).replace(folder / name)
        for name in stale:
            (folder / name).unlink()
        (staging / MANIFEST).replace(folder / MANIFEST)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _is_there(path: Path, blob: Blob, store: Store) -> bool:
    if not _is_plain(path) or path.stat().st_size != blob.size:
        return False
    return store.stat.digest(path, "", lambda: sha256_file(path)) == blob.sha256


def _digest_or_none(path: Path) -> str | None:
    return sha256_file(path) if _is_plain(path) else None


def _is_plain(path: Path) -> bool:
    """Whether a regular file is there, and no link to one."""
    return path.is_file() and not path.is_symlink()


def _read_manifest(folder: Path) -> dict[str, str]:
    """File name → SHA-256 as an earlier build placed them; empty where no readable manifest is."""
    try:
        if not _is_plain(folder / MANIFEST):
            return {}
        artifacts = json.loads((folder / MANIFEST).read_bytes())["artifacts"]
        names = {TFLITE, *FILES.values(), *(parted.data_name(FILES[name]) for name in _MAY_BE_PARTED)}
        return {entry["file"]: entry["sha256"] for entry in artifacts.values() if entry["file"] in names}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _built_on(graph: Graph, result: TargetResult, store: Store) -> dict[str, Any] | None:
    """The fingerprint of the device that the engine was built on, or the GPU of this machine that it is for alone; None
    where it was built here for others."""
    for step_id, outcome in result.steps:
        if step_id in result.plan.steps and graph.steps[step_id].kind == "compile":
            key = outcome.resolution.key if outcome.resolution.outputs is not None else None
            document = (store.records.key_document(key) if key is not None else None) or {}
            if "device" in document:
                return {name: value for name, value in document["device"].items() if name != "accepts"}
            if "gpu" in document:
                return dict(document["gpu"])
    return None


def _manifest_text(
    graph: Graph,
    recipe: RecipePlan,
    result: TargetResult,
    placed: Mapping[str, _File],
    device: Mapping[str, Any] | None,
) -> str:
    """The manifest: made from keys and records, so that the same results always give the same text."""
    target = result.plan.target
    tools: dict[str, str | None] = {"trtrecipe": __version__}
    steps: list[dict[str, Any]] = []
    mine = set(result.plan.steps)
    for step_id, outcome in result.steps:
        if step_id not in mine:  # of a candidate that is not shipped
            continue
        step, resolution = graph.steps[step_id], outcome.resolution
        entry: dict[str, Any] = {"step": step.name, "kind": step.kind}
        if resolution.outputs is None:
            entry["pending"] = resolution.reason or outcome.error
        else:
            tools |= {tool: version(tool) for tool in tools_of(step)}
            entry["key"] = resolution.key
            entry["outputs"] = {role: blob.sha256 for role, blob in resolution.outputs.items()}
        steps.append(entry)
    manifest = {
        "schema": "trtrecipe/manifest/v1",
        "recipe": recipe.name,
        "target": target.id,
        "profile": target.profile.id,
        "jetpack": target.release.jetpack if target.release else None,
        "device": device,
        "dialect": target.dialect.id,
        "precision": {
            "mode": target.mode,
            "fallback": target.fallback,
            "quantization": target.quantization,
            "kept": list(result.kept),
        },
        "status": "pending" if result.status == "pending" else "complete",
        "evaluated": result.plan.evaluates if "evaluated" in result.metrics else None,
        "artifacts": {name: {"file": file.name, **asdict(file.blob)} for name, file in sorted(placed.items())},
        "metrics": result.metrics,
        "gates": [asdict(gate) for gate in result.gates],
        "search": result.search,
        "dla": result.dla,
        "candidates": [
            {"mode": each.plan.target.mode, "metrics": each.metrics, "gates": [asdict(gate) for gate in each.gates]}
            for each in result.candidates
        ],
        "notes": list(result.notes),
        "tools": tools,
        "steps": steps,
    }
    return json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
