"""What may go wrong while a device works, at which stage, and what comes of it: the table that `test_device_faults.py`
tries, and `docs/device-faults.md` made of it.

Run as a program to write the page anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs" / "device-faults.md"
BEGIN, END = "<!-- table: made by tests/support/device_faults.py -->", "<!-- end of table -->"

STAGES = {
    "probe": "looked at",
    "inputs": "inputs compared",
    "sending": "inputs sent",
    "waiting": "waiting",
    "building": "building",
    "fetching": "engine fetched",
}
"""Stage → what happens then, for people."""

ENGINE, AGAIN, ERROR, WAITS = "engine", "engine, built anew", "error", "pending"


@dataclass(frozen=True)
class Outcome:
    """`result`; where that is no engine, `says` is part of what is told. `builds`: how often trtexec has run once the
    same build was asked for again, the fault being gone. `quick`: tried in every run of the suite."""

    result: str
    says: str = ""
    builds: int = 1
    quick: bool = False


@dataclass(frozen=True)
class Fault:
    """`what`, for people. How it is made: `sh`, words for the device's shell, where {NAME} is filled in; `link`, what
    the connection does; `trtexec`, what that does; `home`, files of the login's home; `python`, words of a script in
    Python's place; `disk`: the cache is a disk of 16 MiB; `silence`: seconds after which a silent device is given
    up."""

    what: str
    at: Mapping[str, Outcome]
    sh: str = ""
    link: Mapping[str, Any] = field(default_factory=dict)
    trtexec: Mapping[str, Any] = field(default_factory=dict)
    home: Mapping[str, str] = field(default_factory=dict)
    python: str = ""
    disk: bool = False
    silence: float | None = None


def every(outcome: Outcome, **others: Outcome | None) -> dict[str, Outcome]:
    """The same outcome at all stages but `others`; None where there is nothing to try."""
    found = {stage: others.get(stage, outcome) for stage in STAGES}
    return {stage: outcome for stage, outcome in found.items() if outcome is not None}


def _ok(quick: bool = False) -> Outcome:
    return Outcome(ENGINE, quick=quick)


def _again(quick: bool = False) -> Outcome:
    return Outcome(AGAIN, builds=2, quick=quick)


def _error(says: str, builds: int = 1, quick: bool = False) -> Outcome:
    return Outcome(ERROR, says, builds, quick)


_NOT_WHAT = "nx is no longer what it was when the build was planned"
_CHANGED = "nx changed while the job ran or waited"

FAULTS = {
    "drop": Fault(
        "The connection breaks, once",
        every(_ok(), waiting=None, sending=_ok(True), building=_ok(True), fetching=_ok()),
        link={"drop": {}},
    ),
    "drop-always": Fault(
        "The connection breaks each time",
        every(
            Outcome(WAITS, "the connection broke"),
            waiting=None,
            building=Outcome(WAITS, "the connection broke", quick=True),
        ),
        link={"drop": {"times": 99}},
    ),
    "client": Fault(
        "The ssh client here is killed", every(_ok(), waiting=None), sh="{kill} KILL client"
    ),
    "client-term": Fault("The ssh client here is ended", every(_ok(), waiting=None), sh="{kill} TERM client"),
    "agent": Fault("The agent there is killed", every(_ok(), waiting=None), sh="{kill} KILL agent"),
    "server": Fault(
        "The device's SSH server goes away",
        every(
            Outcome(WAITS, "it refuses the connection")),
        sh="{kill} KILL link server",
    ),
    "silence": Fault(
        "The device says nothing any more",
        every(_ok(), waiting=None, building=None),
        sh="sleep 3",
        silence=1.0,
    ),
    "reboot": Fault(
        "The device starts anew and is back at once",
        every(_ok(), building=_again(True), waiting=_ok()),
        sh="{kill} KILL link agent runner trtexec boot",
    ),
    "runner": Fault(
        "What runs the job there is killed",
        {"waiting": _error("it ended without a result"), "building": _error("it ended without a result", 2, True)},
        sh="{kill} KILL runner",
    ),
    "trtexec-killed": Fault(
        "trtexec is killed, as for want of memory: it is tried with half the workspace",
        {"building": Outcome(ENGINE, builds=2, quick=True)},
        sh="{kill} KILL trtexec; sleep 5",
    ),
    "trtexec-dies": Fault(
        "trtexec dies by a signal",
        {"building": _error("trtexec was ended by signal 11", 2)},
        trtexec={"signal": 11},
    ),
    "memory": Fault(
        "The device runs out of memory with any workspace",
        {"building": _error("every workspace that was tried: 64, 32 MiB", 3, True)},
        trtexec={"memory": 1},
    ),
    "out-of-memory-killer": Fault(
        "trtexec is killed for memory with any workspace",
        {"building": _error("every workspace that was tried: 64, 32 MiB", 3)},
        trtexec={"out_of_memory_killer": 1},
    ),
    "refuses": Fault(
        "trtexec refuses the graph",
        {"building": _error("no importer for op: Foo", 2)},
        trtexec={"fail": "[TRT] no importer for op: Foo"},
    ),
    "half-engine": Fault(
        "trtexec writes half an engine and fails",
        {"building": _error("Saving engine to file failed", 2)},
        trtexec={"full_disk": True},
    ),
    "no-engine": Fault(
        "trtexec says that it succeeded and wrote nothing",
        {"building": _error("wrote no engine", 2)},
        trtexec={"silent_disk": True},
    ),
    "another-release": Fault(
        "trtexec is of another TensorRT than the packages say",
        {"building": _error("trtexec is of TensorRT 8401, not 8.5.2", 2)},
        trtexec={"banner": 8401},
    ),
    "hang": Fault(
        "trtexec never ends", {"building": _error("it took longer than 2 s", 2, True)}, trtexec={"hang": True}
    ),
    "jetpack": Fault(
        "JetPack is upgraded, trtexec stays as it is",
        {
            "probe": _error(f"{_NOT_WHAT}: l4t 35.6.0 -> 35.6.1"),
            "inputs": _error(f"{_CHANGED}: l4t 35.6.0 -> 35.6.1", 2, True),
            "sending": _error(f"{_CHANGED}: l4t 35.6.0 -> 35.6.1", 2),
            "waiting": _error(f"{_CHANGED}: l4t 35.6.0 -> 35.6.1", 2),
            "building": _error(f"{_CHANGED}: l4t 35.6.0 -> 35.6.1", 2),
            "fetching": _ok(),
        },
        sh="sed -i 's/REVISION: 6.0/REVISION: 6.1/' {root}/etc/nv_tegra_release",
    ),
    "trtexec-replaced": Fault(
        "trtexec is replaced",
        {
            "probe": _error(f"{_NOT_WHAT}: trtexec "),
            "inputs": _error("is not the one that was probed"),
            "sending": _error("is not the one that was probed", quick=True),
            "waiting": _error(f"{_CHANGED}: trtexec ", 2),
            "building": _error(f"{_CHANGED}: trtexec ", 2),
            "fetching": _ok(),
        },
        sh="cp {trtexec} {trtexec}.new; echo '# another' >> {trtexec}.new; mv {trtexec}.new {trtexec}",
    ),
    "trtexec-deleted": Fault(
        "trtexec is deleted",
        {
            "probe": _error(f"{_NOT_WHAT}: "),
            "inputs": _error("there is no trtexec at"),
            "sending": _error("there is no trtexec at"),
            "waiting": _error("does not start: No such file or directory"),
            "building": _error(f"{_CHANGED}: ", 2),
            "fetching": _ok(),
        },
        sh="rm {trtexec}",
    ),
    "cache-removed": Fault(
        "The cache there is removed",
        every(
            _ok(),
            waiting=_error("it ended without a result"),
            building=_error("it ended without a result", 2),
            fetching=_again(True),
        ),
        sh="rm -rf {cache}",
    ),
    "cache-rubbish": Fault(
        "The cache there is full of what is not ours",
        every(_ok(), inputs=_ok(True)),
        sh="for each in cas incoming timing jobs; do"
        " mkdir -p {cache}/$each/rubbish/deeper; echo x > {cache}/$each/x; done",
    ),
    "cache-file": Fault(
        "A part of the cache is a file where a folder should be",
        every(
            _error("File exists"),
            sending=_error("ot a directory"),
            waiting=_error("ot a directory", 2),
            building=_error("ot a directory", 2),
            fetching=_error("File exists", 2),
        ),
        sh="mkdir -p {cache}; rm -rf {cache}/cas; echo x > {cache}/cas",
    ),
    "half-json": Fault(
        "Notes in the cache end in the middle",
        every(_ok(), building=_ok(True)),
        sh='for each in {cache}/jobs/*/*.json; do test ! -e $each || printf \'{{"ok": tr\' > $each; done',
    ),
    "read-only": Fault(
        "The cache's disk becomes read-only",
        {
            "probe": _error("Read-only file system"),
            "inputs": _error("Read-only file system", quick=True),
            "fetching": _ok(),
        },
        sh="mount -o remount,ro {cache}",
        disk=True,
    ),
    "full-disk": Fault(
        "The device's disk is full",
        every(
            _error("needs "),
            sending=_error("No space left on device"),
            waiting=_error("is full"),
            building=_error("is full", 2, True),
            fetching=_ok(),
        ),
        sh="dd if=/dev/zero of={cache}/filler bs=64k 2>/dev/null || true",
        disk=True,
    ),
    "clock-forward": Fault(
        "The device's clock is set ten years forward",
        every(_ok(), building=_ok(True)),
        sh="echo 315360000 > {here}/clock",
    ),
    "clock-back": Fault("The device's clock is set ten years back", every(_ok()), sh="echo -315360000 > {here}/clock"),
    "corrupt": Fault(
        "A bit arrives as another one, once",
        {"sending": _ok(), "fetching": _ok(True)},
        link={"flip": {}},
    ),
    "corrupt-always": Fault(
        "A bit arrives as another one each time",
        {
            "sending": _error("is something else", quick=True),
            "fetching": _error("is damaged whenever it arrives"),
        },
        link={"flip": {"times": 99}},
    ),
    "slow": Fault(
        "The link is slow", {"sending": _ok(), "fetching": _ok()}, link={"slow": {"seconds": 0.1}}
    ),
    "noise": Fault(
        "The login shell prints, with and without ends of lines",
        {"probe": _ok(True)},
        home={".bashrc": "echo Welcome; echo '{\"event\": 1}'; printf 'to the lab '"},
    ),
    "no-python": Fault(
        "There is no Python, or one that is too old",
        {"probe": Outcome(WAITS, "--version` there 3.6 or later?", quick=True)},
        python="echo 'SyntaxError: invalid syntax' >&2; exit 1",
    ),
    "lock-folder": Fault(
        "The device's lock is a folder",
        {"inputs": _error("is no plain file")},
        sh="rm -f {here}/device.lock; mkdir {here}/device.lock",
    ),
    "lock-link": Fault(
        "The device's lock is a link, which another user may have made",
        {"inputs": _error("cannot be opened", quick=True)},
        sh="rm -f {here}/device.lock; ln -s {here}/elsewhere {here}/device.lock",
    ),
}  # fmt: skip


def table() -> str:
    """The part of the page between the marks."""
    lines = [
        f"| Fault | {' | '.join(STAGES.values())} |",
        f"|---|{'---|' * len(STAGES)}",
    ]
    lines += [
        f"| {fault.what} | {' | '.join(_cell(fault.at.get(stage)) for stage in STAGES)} |" for fault in FAULTS.values()
    ]
    lines += ["", "What is said, where it is no engine:", ""]
    return "\n".join([*lines, *_words()]) + "\n"


def _cell(outcome: Outcome | None) -> str:
    return "" if outcome is None else outcome.result


def _words() -> Iterator[str]:
    for fault in FAULTS.values():
        said = dict.fromkeys(outcome.says.strip(" :") for outcome in fault.at.values() if outcome.says)
        if said:
            yield f"- {fault.what}: " + "; ".join(f"“… {text} …”" for text in said)


def page(text: str) -> str:
    """`text` with the table that is right."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{table()}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
