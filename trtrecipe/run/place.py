"""Fills `dist/<recipe>/<target>/` with copies of what was built, and a manifest that says how."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trtrecipe import __version__
from trtrecipe.digest import sha256_file
from trtrecipe.errors import StoreError
from trtrecipe.plan.graph import Graph, RecipePlan
from trtrecipe.plan.resolve import tools_of
from trtrecipe.plan.tools import version
from trtrecipe.run.results import TargetResult
from trtrecipe.store.blobs import Blob, explain_oserror
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


def place(graph: Graph, recipe: RecipePlan, result: TargetResult, store: Store, output: Path) -> dict[str, Path]:
    """Put back what is missing or altered of a target's files; artifact name → path.

    A target that failed, missed a gate or has no choice among its candidates leaves the folder as it was. Every file is
    written and checked beside the folder before any is moved in, the manifest last. Raises StoreError where the folder
    cannot be written, DamagedBlobError where the store's bytes are not what they should be.
    """
    if result.status in ("failed", "gate-failed") or (result.candidates and result.chosen is None):
        return {}
    folder = output / recipe.name / result.plan.target.id
    named = _files(result)
    wanted = {named[name]: blob for name, blob in result.artifacts.items()}
    manifest = _manifest_text(graph, recipe, result, _built_on(graph, result, store)).encode()
    try:
        before = _read_manifest(folder)
        absent = {name: blob for name, blob in wanted.items() if not _is_there(folder / name, blob, store)}
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
    return {name: folder / named[name] for name in result.artifacts} | {"manifest": folder / MANIFEST}


def _files(result: TargetResult) -> dict[str, str]:
    """Artifact name → file name."""
    return FILES | ({"engine": TFLITE} if result.plan.target.profile.family == "tflite" else {})


def _write(folder: Path, absent: Mapping[str, Blob], stale: Mapping[str, str], manifest: bytes, store: Store) -> None:
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
        for name, blob in absent.items():
            store.blobs.copy_out(blob, staging / name)
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
        return {
            entry["file"]: entry["sha256"] for entry in artifacts.values() if entry["file"] in (*FILES.values(), TFLITE)
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _built_on(graph: Graph, result: TargetResult, store: Store) -> dict[str, Any] | None:
    """The fingerprint of the device that the engine was built on; None where it was built here."""
    for step_id, outcome in result.steps:
        if step_id in result.plan.steps and graph.steps[step_id].kind == "compile":
            key = outcome.resolution.key
            record = store.records.read(key) if key is not None and outcome.resolution.outputs is not None else None
            if record is not None and "device" in record.key_document:
                return {name: value for name, value in record.key_document["device"].items() if name != "accepts"}
    return None


def _manifest_text(graph: Graph, recipe: RecipePlan, result: TargetResult, device: Mapping[str, Any] | None) -> str:
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
        "artifacts": {
            name: {"file": _files(result)[name], **asdict(blob)} for name, blob in sorted(result.artifacts.items())
        },
        "metrics": result.metrics,
        "gates": [asdict(gate) for gate in result.gates],
        "search": result.search,
        "candidates": [
            {"mode": each.plan.target.mode, "metrics": each.metrics, "gates": [asdict(gate) for gate in each.gates]}
            for each in result.candidates
        ],
        "notes": list(result.notes),
        "tools": tools,
        "steps": steps,
    }
    return json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
