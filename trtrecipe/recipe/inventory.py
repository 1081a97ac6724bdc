"""`devices.yaml`: the devices that can be reached. It holds no secrets: who may log in is OpenSSH's business."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # as in `recipe.model`

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from trtrecipe.errors import InputError, Problem
from trtrecipe.recipe.document import Document, read
from trtrecipe.recipe.findings import Finding
from trtrecipe.recipe.messages import explain
from trtrecipe.recipe.model import Name, Text
from trtrecipe.targets.catalog import Catalog, TargetError
from trtrecipe.targets.devices import DEFAULT_SECONDS, Device

SCHEMA = "trtrecipe/inventory/v1"

# What ssh takes: host, user@host, or ssh://user@host:port. Never an option, and nothing that a shell would act on.
_DESTINATION = re.compile(
    r"^(ssh://)?([A-Za-z0-9_][A-Za-z0-9_.+-]*@)?\[?[A-Za-z0-9][A-Za-z0-9_.:%-]*\]?(:[0-9]{1,5})?/?$"
)


def _destination(text: str) -> str:
    if not _DESTINATION.fullmatch(text):
        raise ValueError(
            "must be a destination as ssh takes it: a Host of ~/.ssh/config, user@host or ssh://user@host:port"
        )
    return text


def _word(text: str) -> str:
    if not text or not text.isprintable():
        raise ValueError("must be text without control characters")
    return text


def _program(text: str) -> str:
    if text.startswith("-"):
        raise ValueError("must be a program: the shell there takes what begins with - for an option of its own")
    return text


def _command(words: list[str]) -> list[str]:
    return [_program(word) if not number else word for number, word in enumerate(words)]


Word = Annotated[str, AfterValidator(_word)]


class DeviceEntry(BaseModel):
    """One device."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    profile: Text = Field(description="What kind of device it is, without a JetPack release.")
    ssh: Annotated[str, AfterValidator(_destination)] | None = Field(
        None, description="Where `ssh` connects to; absent where only bundles get there."
    )
    exec: Annotated[list[Word], AfterValidator(_command)] = Field(
        default=[], max_length=32, description="Stands before each command, as docker exec."
    )
    python: Annotated[Word, AfterValidator(_program)] = Field("python3", description="The Python there, 3.6 or later.")
    seconds: float = Field(DEFAULT_SECONDS, gt=0, le=7 * 24 * 3600, description="How long one build may take.")
    labels: list[Name] = Field(default=[], max_length=64, description="Words of your own.")


class Inventory(BaseModel):
    """The file."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=True)

    schema_: Literal["trtrecipe/inventory/v1"] = Field(alias="schema")
    devices: dict[Name, DeviceEntry]


def load(path: Path, catalog: Catalog) -> tuple[Device, ...]:
    """The devices in their order. Raises InputError with all problems."""
    document = read(path, "device list", SCHEMA)
    try:
        inventory = Inventory.model_validate(document.value)
    except ValidationError as error:
        findings = [*explain(error, document, Inventory), *_profiles(document, catalog)]
        raise _error(document, findings) from None
    if findings := _profiles(document, catalog):
        raise _error(document, findings)
    return tuple(
        Device(
            name=name,
            profile=entry.profile,
            ssh=entry.ssh,
            exec=tuple(entry.exec),
            python=entry.python,
            seconds=entry.seconds,
            labels=tuple(entry.labels),
        )
        for name, entry in inventory.devices.items()
    )


def _profiles(document: Document, catalog: Catalog) -> list[Finding]:
    """Profiles that are none, or that nothing is built on over SSH; what is malformed is passed over."""
    found = []
    devices = document.value.get("devices")
    for name, entry in devices.items() if isinstance(devices, dict) else ():
        spec: Any = entry.get("profile") if isinstance(entry, dict) else None
        if not isinstance(spec, str) or not spec:
            continue
        at = ("devices", name, "profile")
        try:
            profile, release = catalog.look_up(spec)
        except TargetError as error:
            found.append(Finding(at, error.message, error.hint))
            continue
        if release is not None:
            found.append(Finding(at, f"{spec}: a device shows its release itself", f"write {profile.id}"))
        elif profile.family != "jetson":
            found.append(Finding(at, f"{profile.id} is not reached over SSH", "remove it"))
    return found


def _error(document: Document, findings: list[Finding]) -> InputError:
    problems = []
    for finding in findings:
        line, column = (document.locate_key if finding.at_key else document.locate)(finding.loc)
        message = finding.message.replace("the recipe", "the device list")
        problems.append(Problem(message, document.file, line, column, finding.hint))
    return InputError(sorted(dict.fromkeys(problems), key=lambda p: (p.line or 0, p.column or 0, p.message)))
