"""Runs one step in a fresh process: the only place where steps and store meet.

Reads one JSON request line from standard input and writes one JSON answer to standard output; everything that tools
print goes to standard error, which the parent keeps as the step's log. Ends, with its children, when the parent does.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from trtrecipe.data.errors import DataError
from trtrecipe.data.sampling import Sampling
from trtrecipe.data.sources import from_json, in_words, write_samples
from trtrecipe.errors import Problem, StepError, TrtrecipeError, Unreachable
from trtrecipe.plan.sources import ModelSource, source_digest
from trtrecipe.plan.tools import version
from trtrecipe.steps.protocol import Step, keywords
from trtrecipe.steps.registry import STEPS
from trtrecipe.store.blobs import Blob, DamagedBlobError, explain_oserror
from trtrecipe.store.records import Record
from trtrecipe.store.stat import FileChangedError
from trtrecipe.store.store import Store


def main() -> None:
    """Answer the request on standard input."""
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # tools that print to standard output must not garble the answer
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with Store(Path(request["store"])) as store:
        result = _answer(store, request, partial(_say, answer))
    json.dump(result, answer)
    answer.flush()
    # Frameworks' own exit handlers can hang or crash; everything that counts is on disk and answered.
    sys.stderr.flush()
    os._exit(0)


def _end_with_parent() -> None:
    # Reads the descriptor, not sys.stdin: its lock must not be held by a thread when the interpreter ends.
    while os.read(0, 4096):
        pass
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def _say(answer: TextIO, text: str) -> None:
    """A line of progress, before the answer."""
    answer.write(json.dumps({"progress": text}) + "\n")
    answer.flush()


def _answer(store: Store, request: Mapping[str, Any], say: Callable[[str], None]) -> dict[str, Any]:
    key = request["key"]
    lock = store.lock(key)
    try:
        if not lock.acquire():
            return {"status": "busy"}
    except OSError as error:
        return _failure(explain_oserror(error, store.root, "store"))
    try:
        found = store.lookup(key)
        if isinstance(found, Record):
            return {"status": "hit"}
        store.set_aside(key, found)
        with store.work_folder(key) as folder:
            return _run(store, request, folder, say)
    except DamagedBlobError as damage:
        store.blobs.set_aside(damage.blob.sha256)
        return {"status": "damaged", "sha256": damage.blob.sha256}
    except Unreachable as error:
        return _failure(error) | {"status": "pending"}
    except TrtrecipeError as error:
        return _failure(error)
    except OSError as error:
        return _failure(_explain(error, store.root))
    except Exception as error:
        traceback.print_exc()
        return {
            "status": "failed",
            "error": f"unexpected {type(error).__name__}: {error}",
            "hint": "this is a defect of trtrecipe or of a tool it calls; its log has the details",
        }
    finally:
        lock.release()


def _explain(error: OSError, store: Path) -> TrtrecipeError:
    """A step works inside the store's folder: what fails there is the store's, anything else is named."""
    name = error.filename
    if name is None or Path(os.fsdecode(name)).is_relative_to(store):
        return explain_oserror(error, store, "store")
    return StepError(f"{os.fsdecode(name)}: {error.strerror}")


def _failure(error: TrtrecipeError) -> dict[str, Any]:
    return {"status": "failed", "error": error.message, "hint": error.hint}


def _run(store: Store, request: Mapping[str, Any], folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    module = STEPS[request["kind"]]
    _check_tools(request["key_document"]["tools"])
    inputs_folder, out = folder / "in", folder / "out"
    inputs_folder.mkdir()
    out.mkdir()
    # Keras reads and writes a settings file in its home; a step sees none but defaults.
    os.environ["KERAS_HOME"] = str(folder / "keras")
    os.environ["TMPDIR"] = str(folder)
    inputs = {
        role: _bring(store, source, inputs_folder / f"{number:02}")
        for number, (role, source) in enumerate(request["inputs"].items())
    }
    started = time.monotonic()
    run: Callable[..., Mapping[str, Any]] = module.run  # which keywords a kind takes is between it and the plan
    with _resources(store, request, module, say) as resources:
        measurements = dict(run(module.Params(**request["params"]), inputs, out, **resources))
        seconds = time.monotonic() - started
        files = {role: out / name for role, name in module.OUTPUTS.items()}
        absent = [role for role, file in files.items() if not file.is_file()]
        if absent:
            raise StepError(f"step {request['kind']} did not write its output {', '.join(absent)}")
        for source in request["inputs"].values():
            _check_unchanged(store, source)
        store.publish(request["key"], request["key_document"], files, measurements)
    return {"status": "ran", "seconds": round(seconds, 3)}


@contextlib.contextmanager
def _resources(
    store: Store, request: Mapping[str, Any], module: Step, say: Callable[[str], None]
) -> Iterator[dict[str, Any]]:
    """The keywords of the step's `run`. What it keeps for a repetition goes once its outputs are in the store."""
    offered = {"key": request["key"], "say": say}
    resources = request["resources"] | {name: offered[name] for name in offered if name in keywords(module)}
    if "checkpoint" not in keywords(module):
        yield resources
        return
    with store.checkpoint(request["key"]) as folder:
        yield {**resources, "checkpoint": folder}


def _check_tools(tools: Mapping[str, str]) -> None:
    """What this process would import must be what the key says."""
    for tool, expected in tools.items():
        if version(tool) != expected:
            raise StepError(
                f"{tool} is {version(tool) or 'not installed'} here and was {expected} when the build was planned",
                "run the build again once no installation is under way",
            )


def _bring(store: Store, source: Mapping[str, Any], target: Path) -> Path:
    """The input as a path: a copy of a blob or of the selected samples, hashed as it arrives; a model where it is."""
    if "blob" in source:
        store.blobs.copy_out(Blob(**source["blob"]), target)
        return target
    if "path" in source:
        return Path(source["path"])
    data = from_json(source["data"])
    try:
        digest = write_samples(data, Sampling(**source["sampling"]), target)
    except DataError as error:
        raise StepError(error.message, error.hint) from None
    if digest != source["sha256"]:
        raise FileChangedError(in_words(data))
    return target


def _check_unchanged(store: Store, source: Mapping[str, Any]) -> None:
    """A model is read in place: what was read must be what the key says."""
    if "path" not in source:
        return
    path = Path(source["path"])
    try:
        digest = source_digest(ModelSource(path, Problem("")), store.stat)
    except DataError as error:
        raise StepError(error.message, error.hint) from None
    if digest != source["sha256"]:
        raise FileChangedError(path)
