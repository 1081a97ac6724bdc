"""The device list: what is accepted, what is refused and where, and which file counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from trtrecipe.cli.fleet import devices_for, find
from trtrecipe.errors import InputError
from trtrecipe.recipe.inventory import load
from trtrecipe.targets.catalog import load_catalog
from trtrecipe.targets.devices import DEFAULT_SECONDS, Device

HEAD = "schema: trtrecipe/inventory/v1\ndevices:\n"


def loaded(folder: Path, text: str) -> tuple[Device, ...]:
    path = folder / "devices.yaml"
    path.write_text(text)
    return load(path, load_catalog())


def test_all_that_an_entry_may_say(tmp_path: Path) -> None:
    text = f"""{HEAD}  lab-1:
    profile: jetson-orin-nx
    ssh: nvidia@10.0.0.7
    exec: [docker, exec, -i, trt]
    python: /usr/bin/python3.8
    seconds: 600
    labels: [shelf-2]
  lab-2: {{profile: jetson-tx2, ssh: "ssh://tx2.example:2222"}}
"""
    assert loaded(tmp_path, text) == (
        Device(
            "lab-1", "jetson-orin-nx", "nvidia@10.0.0.7", ("docker", "exec", "-i", "trt"),
            "/usr/bin/python3.8", 600, ("shelf-2",),
        ),
        Device("lab-2", "jetson-tx2", "ssh://tx2.example:2222", (), "python3", DEFAULT_SECONDS, ()),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "where", "message", "hint"),
    [
        (HEAD + "  a: {profile: jetson-nx, ssh: h}\n", "3:16", "jetson-nx is no profile", "write"),
        (HEAD + "  a: {profile: jetson-tx2@4.6.4, ssh: h}\n", "3:16", "shows its release itself", "write jetson-tx2"),
        (HEAD + "  a: {profile: host, ssh: h}\n", "3:16", "host is not reached over SSH", "remove"),
        (HEAD + "  a: {profile: jetson-tx2, ssh: h, port: 22}\n", "3:36", "unknown key 'port'", None),
        (HEAD + "  a: {profile: jetson-tx2, ssh: h, labls: [x]}\n", "3:36", "unknown key", "did you mean labels?"),
        (HEAD + "  a: {profile: jetson-tx2, ssh: -oProxyCommand=x}\n", "3:33", "must be a destination", None),
        (HEAD + "  a: {profile: jetson-tx2, ssh: 'h; rm -rf x'}\n", "3:33", "must be a destination", None),
        (HEAD + "  a: {profile: jetson-tx2, ssh: -h@x}\n", "3:33", "must be a destination", None),
        (HEAD + '  a: {profile: jetson-tx2, ssh: "h\\n"}\n', "3:33", "must be a destination", None),
        (HEAD + "  a: {profile: jetson-tx2, ssh: h, python: -x}\n", "3:44", "must be a program", None),
        (HEAD + "  a: {profile: jetson-tx2, ssh: h, exec: [-x, y]}\n", "3:42", "must be a program", None),
        (HEAD + "  a: {profile: jetson-tx2, ssh: h, exec: docker}\n", "3:42", "must be a list", None),
        (HEAD + "  a: {profile: jetson-tx2, ssh: h, seconds: 0}\n", "3:45", "must be more than 0", None),
        (HEAD + "  a b: {profile: jetson-tx2, ssh: h}\n", "3:3", "must begin with a letter or digit", None),
        ("schema: trtrecipe/v1\ndevices: {}\n", "1:9", "must be trtrecipe/inventory/v1", None),
        ("devices: {}\n", "1:1", "the device list lacks the key schema", None),
        ("- a\n", "1:1", "a device list is a mapping", "trtrecipe/inventory/v1"),
    ],
)  # fmt: skip
def test_refused(tmp_path: Path, text: str, where: str, message: str, hint: str | None) -> None:
    with pytest.raises(InputError) as caught:
        loaded(tmp_path, text)
    [problem] = caught.value.problems
    assert problem.where() == f"{tmp_path}/devices.yaml:{where}"
    assert message in problem.message
    assert hint is None or hint in (problem.hint or "")


def test_all_problems_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        loaded(tmp_path, HEAD + "  a: {profile: jetson-nx, ssh: -x}\n  b: {profile: host, seconds: 0}\n")
    assert [problem.line for problem in caught.value.problems] == [3, 3, 4, 4]


def test_the_nearest_file_counts_up_to_the_top_of_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    inner = tmp_path / "top/checkout/recipes/digits"
    inner.mkdir(parents=True)
    (tmp_path / "top/checkout/.git").mkdir()
    outside = tmp_path / "top/devices.yaml"
    outside.write_text(HEAD)
    assert find(inner) is None
    settings = tmp_path / "settings/trtrecipe/devices.yaml"
    settings.parent.mkdir(parents=True)
    settings.write_text(HEAD)
    assert find(inner) == settings
    for nearer in (tmp_path / "top/checkout/devices.yaml", inner / "devices.yaml"):
        nearer.write_text(HEAD)
        assert find(inner) == nearer
    assert find(tmp_path / "top") == outside


def test_two_inventories_may_not_mean_different_devices_by_one_name(tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
        host = "first" if name != "three" else "second"
        (tmp_path / name / "devices.yaml").write_text(f"{HEAD}  a: {{profile: jetson-tx2, ssh: {host}}}\n")
    assert [device.ssh for device in devices_for([tmp_path / "one", tmp_path / "two"])] == ["first"]
    with pytest.raises(InputError, match="the device a of"):
        devices_for([tmp_path / "one", tmp_path / "three"])
