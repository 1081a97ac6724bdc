"""Profiles, releases and dialects: what can be named, what is refused, and that the data holds together."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest

from trtrecipe.targets.catalog import DATA, Catalog, Profile, Release, TargetError, load_catalog, operators

PROFILES = [
    "jetson-nano",
    "jetson-tx2",
    "jetson-tx2-nx",
    "jetson-xavier-nx",
    "jetson-agx-xavier",
    "jetson-orin-nano",
    "jetson-orin-nx",
    "jetson-agx-orin",
    "jetson-thor",
    "cuda",
    "rtx",
    "host",
    "tflite",
]
CATALOG = load_catalog()
RELEASES = [(profile, release) for profile in CATALOG.profiles for release in profile.releases]


def test_profiles_are_the_ones_promised_in_order() -> None:
    assert [profile.id for profile in CATALOG.profiles] == PROFILES


@pytest.mark.parametrize(
    ("spec", "tensorrt", "dialect", "opset_max", "strongly_typed", "operators_from", "assumed"),
    [
        ("jetson-nano@4.6", ("8.0.1",), "trt-8.0", 13, False, "8.0", False),
        ("jetson-tx2@4.6.4", ("8.2.1",), "trt-8.2", 13, False, "8.2", False),
        ("jetson-xavier-nx@5.0.2", ("8.4.1",), "trt-8.4", 17, False, "8.4", False),
        ("jetson-agx-orin@5.0-dp", ("8.4.0",), "trt-8.4", 17, False, "8.4", False),
        ("jetson-xavier-nx@5.1.4", ("8.5.2",), "trt-8.5", 17, False, "8.5", False),
        ("jetson-orin-nx@6.0", ("8.6.2",), "trt-8.6", 17, False, "8.6", False),
        ("jetson-orin-nano@6.2", ("10.3.0",), "trt-10.3", 20, False, "10.1", True),
        ("jetson-thor@7.0", ("10.13.2", "10.13.3"), "trt-10.13", 20, True, "10.1", True),
        ("jetson-thor@7.1", ("10.13.3",), "trt-10.13", 20, True, "10.1", True),
        ("jetson-agx-orin@7.2", ("10.16.2",), "trt-10.16", 24, True, "10.16", False),
        ("cuda@8.5", ("8.5.0",), "trt-8.5", 17, False, "8.5", False),
        ("cuda@10.0", ("10.0.0",), "trt-10.0", 17, False, "8.6", True),
        ("cuda@10.1", ("10.1.0",), "trt-10.1", 20, False, "10.1", False),
        ("cuda@10.3", ("10.3.0",), "trt-10.3", 20, False, "10.1", True),
        ("cuda@10.11", ("10.11.0",), "trt-10.11", 20, False, "10.1", True),
        ("cuda@10.12", ("10.12.0",), "trt-10.12", 20, True, "10.1", True),
        ("cuda@11.4", ("11.4.0",), "trt-11.4", 24, True, "10.16", True),
    ],
)
def test_release_has_its_tensorrt_and_dialect(
    spec: str,
    tensorrt: tuple[str, ...],
    dialect: str,
    opset_max: int,
    strongly_typed: bool,
    operators_from: str,
    assumed: bool,
) -> None:
    profile, release = CATALOG.find(spec)
    assert release is not None
    assert release.tensorrt == tensorrt
    found = CATALOG.dialect(profile, release)
    assert (found.id, found.opset_max, found.strongly_typed) == (dialect, opset_max, strongly_typed)
    assert (found.operators_from, found.assumed) == (operators_from, assumed)


@pytest.mark.parametrize(
    ("spec", "dialect", "opset_max", "builder"),
    [("host", "ort", 21, "onnxruntime"), ("rtx", "rtx", 24, "tensorrt-rtx"), ("tflite", "tflite", None, "tflite")],
)
def test_profiles_without_releases(spec: str, dialect: str, opset_max: int | None, builder: str) -> None:
    profile, release = CATALOG.find(spec)
    assert release is None
    assert profile.builder == builder
    found = CATALOG.dialect(profile, release)
    assert (found.id, found.opset_max, found.operators_from) == (dialect, opset_max, None)


@pytest.mark.parametrize(
    ("profile", "compute_capability", "precisions", "dla_cores"),
    [
        ("jetson-nano", "5.3", ("fp32", "fp16"), {0}),
        ("jetson-tx2", "6.2", ("fp32", "fp16"), {0}),
        ("jetson-tx2-nx", "6.2", ("fp32", "fp16"), {0}),
        ("jetson-xavier-nx", "7.2", ("fp32", "fp16", "int8"), {2}),
        ("jetson-agx-xavier", "7.2", ("fp32", "fp16", "int8"), {2}),
        ("jetson-orin-nano", "8.7", ("fp32", "fp16", "int8"), {0}),
        ("jetson-orin-nx", "8.7", ("fp32", "fp16", "int8"), {1, 2}),
        ("jetson-agx-orin", "8.7", ("fp32", "fp16", "int8"), {2}),
        ("jetson-thor", "11.0", ("fp32", "fp16", "int8"), {0}),
    ],
)
def test_what_each_jetson_has(
    profile: str, compute_capability: str, precisions: tuple[str, ...], dla_cores: set[int]
) -> None:
    found, _ = CATALOG.look_up(profile)
    assert found.compute_capabilities == (compute_capability,)
    assert found.precisions == precisions
    assert {variant.dla_cores for variant in found.variants} == dla_cores


@pytest.mark.parametrize(
    ("profile", "release"), RELEASES, ids=lambda value: getattr(value, "id", None) or value.jetpack
)
def test_every_release_resolves_or_is_refused_with_a_reason(profile: Profile, release: Release) -> None:
    spec = f"{profile.id}@{release.jetpack}"
    reason = CATALOG.refusal(release)
    if reason is None:
        assert CATALOG.find(spec) == (profile, release)
        dialect = CATALOG.dialect(profile, release)
        assert dialect.tensorrt == release.family
        assert {version.rpartition(".")[0] for version in release.tensorrt} == {release.family}
        return
    assert not release.tensorrt or release.family == "7.1"
    with pytest.raises(TargetError) as caught:
        CATALOG.find(spec)
    assert reason in caught.value.message
    instead = str(caught.value.hint).removeprefix("write ").partition(";")[0]
    assert CATALOG.find(instead)[0] == profile


@pytest.mark.parametrize(
    ("spec", "message", "hint"),
    [
        ("jetson-nanno@4.6", "unknown profile 'jetson-nanno'", "did you mean jetson-nano@4.6? profiles: jetson-nano,"),
        ("Host", "unknown profile 'Host'", "did you mean host? profiles:"),
        ("", "unknown profile ''", "profiles: jetson-nano,"),
        ("@5.1", "unknown profile ''", "profiles: jetson-nano,"),
        ("toaster", "unknown profile 'toaster'", "profiles: jetson-nano,"),
        ("jetson-orin-nx-16gb@6.2", "jetson-orin-nx-16gb is a variant of jetson-orin-nx", "write jetson-orin-nx@6.2;"),
        (
            "jetson-xavier-nx",
            "jetson-xavier-nx needs a JetPack release",
            "such as jetson-xavier-nx@5.1.6; releases: 4.6,",
        ),
        (
            "jetson-nano@4.6.9",
            "unknown JetPack release '4.6.9'",
            "did you mean jetson-nano@4.6.6? releases: 4.6, 4.6.1",
        ),
        ("jetson-agx-orin@5.0 DP", "unknown JetPack release '5.0 DP'", "did you mean jetson-agx-orin@5.0-dp?"),
        ("jetson-nano@", "unknown JetPack release ''", "releases: 4.6,"),
        ("jetson-tx2@5.1.4", "JetPack 5.1.4 does not support jetson-tx2", "releases: 4.6, 4.6.1"),
        ("jetson-xavier-nx@5.1.7", "which TensorRT JetPack 5.1.7 ships is not known", "write jetson-xavier-nx@5.1.6;"),
        ("jetson-thor@7.2.2", "which TensorRT JetPack 7.2.2 ships is not known", "write jetson-thor@7.2;"),
        ("jetson-tx2@4.5.1", "TensorRT 7.1 takes opset 11 at most and no Q/DQ nodes", "write jetson-tx2@4.6;"),
        ("host@1.20", "host takes no JetPack release", "write host without @"),
        ("rtx@", "rtx takes no JetPack release", "write rtx without @"),
    ],
)
def test_what_cannot_be_served_says_why_and_what_to_write(spec: str, message: str, hint: str) -> None:
    with pytest.raises(TargetError) as caught:
        CATALOG.find(spec)
    assert message in caught.value.message
    assert hint in str(caught.value.hint)
    assert [(p.message, p.hint) for p in caught.value.problems] == [(caught.value.message, caught.value.hint)]


@pytest.mark.parametrize(("rest", "absent"), [("", None), ("@5.1.4", "tx2"), ("@6.2", None)])
def test_jetson_nx_names_both_nx_profiles(rest: str, absent: str | None) -> None:
    with pytest.raises(TargetError) as caught:
        CATALOG.find(f"jetson-nx{rest}")
    text = f"{caught.value.message} {caught.value.hint}"
    assert f"jetson-orin-nx{rest}" in text
    assert (f"jetson-xavier-nx{rest}" in text) == (rest != "@6.2")  # JetPack 6 does not support Xavier
    assert absent is None or absent not in text


@pytest.mark.parametrize("spec", ["jetson-" + "x" * 100_000, "jetson-nano@" + "4" * 100_000])
def test_a_very_long_name_is_cut_in_the_message(spec: str) -> None:
    with pytest.raises(TargetError) as caught:
        CATALOG.find(spec)
    assert len(caught.value.message) < 200


def test_several_l4t_versions_of_one_release_keep_their_own_tensorrt() -> None:
    _, release = CATALOG.find("jetson-thor@7.0")
    assert release is not None
    assert [(entry.version, entry.tensorrt) for entry in release.l4t] == [
        ("38.2.0", "10.13.2"),
        ("38.2.1", "10.13.3"),
        ("38.2.2", None),
    ]
    assert release.variants == ("jetson-agx-thor-t5000",)


def test_dla_ends_with_the_releases_after_10_7() -> None:
    assert {dialect.id for dialect in CATALOG.dialects.values() if not dialect.dla} == {
        "trt-10.13",
        "trt-10.16",
        "rtx",
        "ort",
        "tflite",
    }


@pytest.mark.parametrize(
    ("table", "supported", "unsupported", "unlisted"),
    [
        ("8.2", "QuantizeLinear", "NonZero", "GridSample"),
        ("8.5", "GridSample", "LayerNormalization", "Mish"),
        ("10.1", "Gelu", "DFT", "Attention"),
        ("10.16", "Attention", "DFT", "Swish"),
    ],
)
def test_operator_tables(table: str, supported: str, unsupported: str, unlisted: str) -> None:
    found = operators(table)
    assert found[supported] is True
    assert found[unsupported] is False
    assert unlisted not in found


def test_every_operator_table_serves_and_every_dialect_has_its_table() -> None:
    files = {path.stem.removeprefix("operators-") for path in DATA.glob("operators-*.json")}
    assert files == {dialect.operators_from for dialect in CATALOG.dialects.values()} - {None}
    for dialect in CATALOG.dialects.values():
        if dialect.operators_from:
            assert dialect.assumed == (dialect.operators_from != dialect.tensorrt)


def test_everything_has_sources_and_names_no_place_of_ours() -> None:
    sourced = [*CATALOG.profiles, *CATALOG.dialects.values(), *(release for _, release in RELEASES)]
    assert all(item.sources for item in sourced)
    for path in DATA.glob("*.json"):
        text = path.read_text("utf-8")
        assert "facts/" not in text
        assert ".json" not in text.replace("-debs.json", "").replace("operators-<release>.json", "")


def test_every_release_names_known_devices_only() -> None:
    variants = {variant.id for profile in CATALOG.profiles for variant in profile.variants}
    for release in json.loads((DATA / "jetpack.json").read_text("utf-8"))["releases"]:
        assert release["devices"]
        assert set(release["devices"]) <= variants


def test_a_release_that_nothing_is_known_of_is_refused() -> None:
    profile, release = CATALOG.find("jetson-thor@7.1")
    assert release is not None
    catalog = Catalog(CATALOG.profiles, {}, {})
    with pytest.raises(TargetError, match=r"what TensorRT 10\.13 accepts is not known"):
        catalog.find("jetson-thor@7.1")
    assert catalog.served(profile) == ()
    with pytest.raises(TargetError, match="needs a JetPack release") as caught:
        catalog.find("jetson-thor")
    assert str(caught.value.hint).endswith("releases: none")


def test_catalog_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        CATALOG.profiles[0].id = "other"  # type: ignore[misc]  # that it is frozen is the test


def test_reading_the_catalog_imports_nothing_but_the_standard_library() -> None:
    code = (
        "import sys; before = set(sys.modules); from trtrecipe.targets import catalog, spec; catalog.load_catalog();"
        "print(*sorted({m.split('.')[0] for m in set(sys.modules) - before} - sys.stdlib_module_names))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["trtrecipe"]
