"""A step's process that died: its tool's last words are in the message, its chatter is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from trtrecipe.run import process
from trtrecipe.run.last_words import last_words

CHATTER = """\
WARNING: All log messages before absl::InitializeLog() is called are written to STDERR
I0000 00:00:1795309829.821208    6762 cudart_stub.cc:31] Could not find cuda drivers on your machine.
E0000 00:00:1795309829.831208    6762 cuda_platform.cc:52] failed call to cuInit
"""
ABORT = """\
F0000 00:00:1795309829.921208    6762 tensor_shape.cc:416] Check failed: size >= 0 (-11 vs. 0)\u0020
*** Check failure stack trace: ***
    @     0x7f297f51d314  absl::lts_20250814::log_internal::LogMessage::SendToLog()
    @     0x7f2988fa6ce3  cfunction_call
"""


@pytest.mark.parametrize(
    ("log", "words"),
    [
        ("", ""),
        (CHATTER, ""),
        (CHATTER + ABORT, "Check failed: size >= 0 (-11 vs. 0)"),
        (
            CHATTER + "terminate called after throwing an instance of 'std::bad_alloc'\n  what():  std::bad_alloc\n",
            "terminate called after throwing an instance of 'std::bad_alloc'; what():  std::bad_alloc",
        ),
        ("first\nsecond\nthird\nfourth\n" + CHATTER, "second; third; fourth"),
        ("x" * 500 + "\n", "x" * 200),
    ],
)
def test_of_a_log(log: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "log").write_text(log)
    assert last_words(tmp_path / "log") == words


def test_of_a_log_that_is_not_there(tmp_path: Path) -> None:
    assert last_words(tmp_path / "log") == ""


@pytest.mark.parametrize(
    ("ending", "said"),
    [
        ("os.abort()", "its process was ended by SIGABRT, after saying: Check failed: size >= 0 (-11 vs. 0)"),
        ("os._exit(3)", "its process ended with exit code 3 and no answer, after saying: Check failed: size >= 0"),
    ],
)
def test_a_process_that_a_tool_ends(ending: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_PROGRAM", f"import os, sys; sys.stderr.write({CHATTER + ABORT!r}); {ending}")
    worker = process.WorkerProcess({"resources": {}}, tmp_path / "log", tmp_path)
    while worker.read():
        pass
    answer = worker.finish()
    assert answer["error"].startswith(said) and "cuda" not in answer["error"]
    assert worker.keep_log() == str(tmp_path / "log")
