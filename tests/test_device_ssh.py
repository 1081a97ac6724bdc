"""The way to a device, over a real SSH server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.sshd import XAVIER_NX, Lab, lab

from trtrecipe.device.ssh import Session
from trtrecipe.errors import StepError, Unreachable


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Lab]:
    with lab(tmp_path / "lab") as made:
        yield made


def test_a_probe_tells_what_the_device_is(bench: Lab) -> None:
    device = bench.add("nx", XAVIER_NX)
    with Session(device.host) as session:
        probe = session.ask({"op": "probe"})
    assert (probe["l4t"], probe["jetpack"], probe["tensorrt"], probe["cuda"]) == ("35.6.0", "5.1.4", "8.5.2", "11.4.315")
    assert probe["model"] == XAVIER_NX.model
    assert probe["trtexec"]["path"] == str(device.trtexec)
    assert device.requests() == ["probe"]
