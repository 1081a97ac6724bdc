"""What a step's process said last, cut to what matters: shown when it died without an answer of its own."""

from __future__ import annotations

import re
from pathlib import Path

_READ = 64 << 10  # bytes at the end of a log that are looked at
_LINES, _LENGTH = 3, 200
_FATAL = re.compile(r"F\d{4} |.*\bCheck failed|Fatal Python error|terminate called|.*\bwhat\(\):")
"""Lines that say why a program ended itself: of abseil's logging, of CPython, of the C++ library."""
_CHATTER = re.compile(
    r"[IWE]\d{4} |WARNING: All log messages before absl|\*\*\* |\s+@ +0x|To enable the following instructions|\s*$"
    r"|Extension modules|(Current thread|Thread) 0x|  File \""
)
"""Lines that do not: of lower levels, and stack traces."""
_PLACE = re.compile(r"^F\d{4} \S+ +\d+ ([^\]]*\]) ")


def last_words(log: Path) -> str:
    """The lines of the log that tell why the process ended, in one line; empty where none does."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - _READ))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    fatal = [line for line in lines if _FATAL.match(line)]
    chosen = fatal or [line for line in lines if not _CHATTER.match(line)]
    said = [_PLACE.sub("", line).strip()[:_LENGTH] for line in chosen[-_LINES:]]
    return "; ".join(dict.fromkeys(said))
