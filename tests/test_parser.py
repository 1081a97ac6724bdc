"""What is known of each release's ONNX parser: tables, types and rules hold together, and keys have them by value."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from trtrecipe.preflight.checks import CHECKS
from trtrecipe.targets import parser
from trtrecipe.targets.catalog import DATA, load_catalog

DIALECTS = {name: each for name, each in load_catalog().dialects.items() if each.operators_from is not None}
DOCUMENT = json.loads((DATA / "preflight.json").read_text("utf-8"))


def of(dialect: str) -> parser.Parser:
    found = DIALECTS[dialect]
    assert found.tensorrt is not None and found.operators_from is not None
    return parser.parser(found.tensorrt, found.operators_from)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_types_are_known_for_what_is_supported(dialect: str) -> None:
    found = of(dialect)
    assert set(found.types) == {operator for operator, supported in found.supported.items() if supported}
    known = {"FP32", "FP16", "BF16", "FP8", "FP4", "INT4", "INT8", "INT32", "INT64", "UINT8", "BOOL"}
    assert all(types and set(types) <= known for types in found.types.values())
    assert found.assumed == DIALECTS[dialect].assumed


@pytest.mark.parametrize("dialect", DIALECTS)
def test_rules_are_about_operators_that_the_release_has(dialect: str) -> None:
    found = of(dialect)
    assert found.rules
    for rule in found.rules:
        assert rule.check in CHECKS
        # one of a rule's operators at least, as published for this release or for a newer one
        assert any(
            found.supported.get(name) or parser.supported_from(name, found.release) or found.assumed
            for name in rule.operators
        ), rule.rule


def test_every_rule_says_what_is_taken_and_where_that_is_written() -> None:
    names = [entry["rule"] for entry in DOCUMENT["rules"]]
    assert len(set(names)) == len(names)
    for entry in (*DOCUMENT["rules"], *DOCUMENT["types"]):
        assert entry["sources"] and set(entry["sources"]) <= set(DOCUMENT["sources"])
    for entry in DOCUMENT["rules"]:
        assert entry["takes"] and entry["verdict"] in ("refused", parser.NOTE)
        assert entry["until"] is None or parser.order(entry["from"]) < parser.order(entry["until"])
    used = {source for entry in (*DOCUMENT["rules"], *DOCUMENT["types"]) for source in entry["sources"]}
    assert used == set(DOCUMENT["sources"])


@pytest.mark.parametrize(
    ("rule", "held", "lifted"),
    [
        ("topk-constant", ["trt-8.0", "trt-8.2", "trt-8.4", "trt-8.5"], ["trt-8.6", "trt-10.3", "trt-10.16"]),
        ("einsum-diagonal", ["trt-8.2", "trt-10.3"], ["trt-8.0", "trt-10.13", "trt-10.16"]),
        ("pad-axes", ["trt-8.5", "trt-10.3"], ["trt-10.13"]),
        ("topk-limit", list(DIALECTS), []),
    ],
)
def test_rules_hold_from_release_to_release(rule: str, held: list[str], lifted: list[str]) -> None:
    for dialect in held:
        assert rule in [each.rule for each in of(dialect).rules]
    for dialect in lifted:
        assert rule not in [each.rule for each in of(dialect).rules]


def test_element_types_by_release() -> None:
    assert "int64" in of("trt-8.6").converted and "int64" not in of("trt-8.6").tensors
    assert "int64" in of("trt-10.3").tensors and "int64" not in of("trt-10.3").converted
    assert of("trt-8.4").interface == () and of("trt-8.5").interface == ("uint8",)
    assert all(of(dialect).converted["float64"] == "float32" for dialect in DIALECTS)


def test_the_release_that_takes_an_operator() -> None:
    assert parser.supported_from("NonZero", "8.2") == "8.5"
    assert parser.supported_from("Attention", "8.2") == "10.16"
    assert parser.supported_from("Det", "8.2") is None
    assert parser.supported_from("Relu", "10.16") is None
    assert parser.order("8.6") < parser.order("10.1")


def test_keys_have_everything_by_value() -> None:
    digests = {name: parser.sha256(each) for name, each in load_catalog().dialects.items()}
    assert digests["rtx"] is None and digests["ort"] is None
    known = [digest for digest in digests.values() if digest is not None]
    assert len(set(known)) == len(known)  # releases that share a table still differ in their rules


def test_planning_stays_light() -> None:
    code = (
        "import sys; before = set(sys.modules); from trtrecipe.targets import catalog, parser;"
        "parser.sha256(catalog.load_catalog().dialects['trt-8.2']);"
        "print(*sorted({m.split('.')[0] for m in set(sys.modules) - before} - sys.stdlib_module_names))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["trtrecipe"]
