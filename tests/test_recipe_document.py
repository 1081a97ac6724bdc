"""YAML into plain data with positions; what is refused, where and in which words."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from trtrecipe.errors import InputError
from trtrecipe.recipe import document
from trtrecipe.recipe.document import MAX_DEPTH, MAX_NODES, MAX_PROBLEMS, Document, parse, read
from trtrecipe.recipe.text import MAX_BYTES


@pytest.fixture(params=["C", "Python"], autouse=True)
def loader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both of PyYAML's parsers: which one an installation has must not show."""
    if request.param == "C" and not hasattr(yaml, "CSafeLoader"):
        pytest.skip("PyYAML without libyaml")
    monkeypatch.setattr(document, "_LOADER", yaml.CSafeLoader if request.param == "C" else yaml.SafeLoader)


def _parse(text: str) -> Document:
    return parse(text.encode(), "f")


def _problems(data: str | bytes) -> list[tuple[str, str]]:
    with pytest.raises(InputError) as caught:
        parse(data.encode() if isinstance(data, str) else data, "f")
    assert all(problem.file == "f" for problem in caught.value.problems)
    return [(f"{p.line}:{p.column}", p.message) for p in caught.value.problems]


@pytest.mark.parametrize(
    ("written", "value"),
    [
        *[(word, word) for word in ("no", "on", "yes", "Off", "y", "1:30", "190:20:30", "2024-01-01", "1_000", "0b1")],
        *[(word, word) for word in ("tRue", "nULL", "1e", "0x", "+", ".", "-.nan", "1.2.3", "08:00", "=", "+0x1")],
        *[(word, None) for word in ("", "~", "null", "Null", "NULL")],
        *[(word, True) for word in ("true", "True", "TRUE")],
        *[(word, False) for word in ("false", "False", "FALSE")],
        *[("0", 0), ("-7", -7), ("+7", 7), ("010", 10), ("0o17", 15), ("0x1F", 31), ("9" * 40, int("9" * 40))],
        *[("1.0", 1.0), ("1.", 1.0), (".5", 0.5), ("1e3", 1000.0), ("-1.5E-2", -0.015), ("1e999", math.inf)],
        *[(".inf", math.inf), ("-.INF", -math.inf), ("+.Inf", math.inf)],
        *[('"1"', "1"), ("'no'", "no"), ('"~"', "~"), ('""', ""), ("|\n  1\n", "1\n"), ("'a\n\n  b'", "a\nb")],
    ],
)
def test_scalars_follow_yaml_1_2(written: str, value: Any) -> None:
    found = _parse(f"a: {written}\n").value["a"]
    assert found == value
    assert type(found) is type(value)


def test_nan_is_read() -> None:
    assert math.isnan(_parse("a: .nan").value["a"])


def test_keys_are_text_as_written() -> None:
    assert _parse("1: a\ntrue: b\n1.50: c\nnull: d\n'': e").value == {
        "1": "a",
        "true": "b",
        "1.50": "c",
        "null": "d",
        "": "e",
    }


def test_every_value_knows_its_place() -> None:
    found = _parse("# first\na: 1\nlist:\n  - x\n  - {y: [1,  2]}\nempty:\né: 'ü'\n")
    assert found.value == {"a": 1, "list": ["x", {"y": [1, 2]}], "empty": None, "é": "ü"}
    assert found.locate(()) == (2, 1)
    assert found.locate(("a",)) == (2, 4)
    assert found.locate_key(("a",)) == (2, 1)
    assert found.locate(("list", 0)) == (4, 5)
    assert found.locate(("list", 1, "y", 1)) == (5, 14)
    assert found.locate_key(("list", 1, "y", 1)) == (5, 14)
    assert found.locate_key(("list", 1, "y")) == (5, 6)
    assert found.locate(("é",)) == (7, 4)
    assert found.text(("list", 1, "y", 1)) == "2"
    assert found.text(("list",)) is None


def test_what_is_absent_is_sought_at_its_parents_key() -> None:
    found = _parse("a: 1\nlist:\n  - {y: {z: 1}}\n")
    assert found.locate(("nothing",)) == (1, 1)
    assert found.locate(("list", 0, "y", "nothing")) == (3, 6)
    assert found.locate(("list", 0, "|tag", "y", "|tag", "z")) == (3, 13)
    assert found.path(("list", 0, "|tag", "y", "nothing")) == ("list", 0, "y")
    assert found.text(("nothing",)) is None


def test_columns_count_characters_after_a_byte_order_mark() -> None:
    found = parse("\ufeffa: 'ü𝄞'\r\nb: 2\rc: {é: 3}".encode(), "f")
    assert found.value == {"a": "ü𝄞", "b": 2, "c": {"é": 3}}
    assert found.locate(("b",)) == (2, 4)
    assert found.locate(("c", "é")) == (3, 8)


def test_an_alias_stands_where_it_is_used_and_its_content_where_it_is_written() -> None:
    found = _parse("a: &x {k: [1, 2]}\nb: *x\nc: &name host\nd: *name\n")
    assert found.value["b"] == {"k": [1, 2]}
    assert found.value["d"] == "host"
    assert found.locate(("b",)) == (2, 4)
    assert found.locate(("b", "k", 1)) == (1, 15)


def test_an_anchor_may_be_set_again() -> None:
    assert _parse("a: &x 1\nb: *x\nc: &x 2\nd: *x\n").value == {"a": 1, "b": 1, "c": 2, "d": 2}


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("", "1:1", "the file holds nothing"),
        ("# only a comment\n", "1:1", "the file holds nothing"),
        ("---\n...\n", "1:1", "the file holds nothing"),
        ("- a\n", "1:1", "a recipe is a mapping of keys to values"),
        ("\n  text\n", "2:3", "a recipe is a mapping of keys to values"),
        ("~", "1:1", "a recipe is a mapping of keys to values"),
        ("a: 1\nb: 2\na: 3\n", "3:1", "duplicate key 'a'; it is first at line 1, column 1"),
        ("x: {'1': 1, 1: 2}\n", "1:13", "duplicate key '1'; it is first at line 1, column 5"),
        ("a: !!str 1\n", "1:4", "tags are not allowed: !!str"),
        ("a: !!python/object/apply:os.system [x]\n", "1:4", "tags are not allowed: !!python/object/apply:os.system"),
        ("!mine a: 1\n", "1:1", "tags are not allowed: !mine"),
        ("a: ! x\n", "1:4", "tags are not allowed: !"),
        ("%TAG ! tag:me,2000:\n---\na: !x 1\n", "3:4", "tags are not allowed: tag:me,2000:x"),
        ("%YAML 1.1\n---\na: no\n", "1:1", "recipes are YAML 1.2, not 1.1"),
        ("a: 1\n---\nb: 2\n", "2:1", "a second document starts here; a recipe file holds one"),
        ("a: &x [1, *x]\n", "1:11", "alias *x stands inside the block that it refers to"),
        ("a: &x {b: {c: *x}}\n", "1:15", "alias *x stands inside the block that it refers to"),
        ("a: *x\n", "1:4", "alias *x refers to nothing"),
        ("*x : 1\n", "1:1", "an alias cannot be a key"),
        ("a: &x {b: 1}\nc:\n  <<: *x\n", "3:3", "merge keys (<<) are not supported"),
        ("? [a]\n: 1\n", "1:3", "a key must be text, not a list or a mapping"),
        ("? {a: 1}\n: 1\n", "1:3", "a key must be text, not a list or a mapping"),
        ("?\n: 1\n", "1:2", "a key is missing before ':'"),
        ("{: 1}\n", "1:2", "a value is missing here"),
        ("a: [,]\n", "1:5", "a value is missing here"),
        ("a:\n\tb: 1\n", "2:1", "a tab cannot indent YAML"),
        ("a: @x\n", "1:4", "a value cannot start with '@'"),
        ("a: `x`\n", "1:4", "a value cannot start with '`'"),
        ("a: b: c\n", "1:5", "a ':' cannot stand here"),
        ("a:\n  b: 1\n c: 2\n", "3:2", "this does not fit the block it is in"),
        ("a: [1,\nb: 2\n", "3:1", "expected ',' or the closing bracket of what opens at line 1, column 4"),
        ("a: {b: 1\n", "2:1", "expected ',' or the closing bracket of what opens at line 1, column 4"),
        ("a: 'x\n", "1:4", "the quote opened here is never closed"),
        ("a: 1\nb\n", "2:1", "there is no ':' after this key"),
        ("a: 1\nb", "2:1", "there is no ':' after this key"),
        ("a: [1", "1:6", "expected ',' or the closing bracket of what opens at line 1, column 4"),
        ("a: 1\n...\nb: 2\n", "3:1", "the recipe has ended before this line"),
        ("a: b\x07c\n", "1:5", "the character U+0007 cannot be seen and has no place in a recipe"),
        ("a: 1\nb: x\x00\n", "2:5", "the character U+0000 cannot be seen and has no place in a recipe"),
        ("a: x\u2028b: 1\n", "1:5", "the character U+2028 cannot be seen and has no place in a recipe"),
        ("a: \u202ex\n", "1:4", "the character U+202E cannot be seen and has no place in a recipe"),
        ('a: "x\\0"\n', "1:4", "the escaped character U+0000 cannot be seen and has no place in a recipe"),
        ('a: {"\\e[31m": 1}\n', "1:5", "the escaped character U+001B cannot be seen and has no place in a recipe"),
    ],
)
def test_refused(text: str, place: str, message: str) -> None:
    assert _problems(text) == [(place, message)]


@pytest.mark.parametrize("escape", ["\\ud800", "\\UFFFFFFFF", "\\U00110000", "\\q", "\\x1"])
def test_escapes_that_are_no_character_are_refused(escape: str) -> None:
    [(place, _)] = _problems(f'a: "{escape}"\n')
    assert place in ("1:4", "1:5", "1:6", "1:7")


def test_problems_gather_in_the_order_of_the_file() -> None:
    text = "a: !x 1\nb: *nowhere\na: 2\n<<: 3\nc: @\n"
    assert [place for place, _ in _problems(text)] == ["1:4", "2:4", "3:1", "4:1", "5:4"]


def test_the_list_of_problems_ends() -> None:
    assert len(_problems("a: 1\n" * 10_000)) == MAX_PROBLEMS


def test_an_undefined_alias_is_told_what_there_is() -> None:
    with pytest.raises(InputError) as caught:
        _parse("a: &shape [1]\nb: *shap\n")
    assert caught.value.problems[0].hint == "anchors up to here: *shape"


@pytest.mark.parametrize(
    ("data", "place", "message"),
    [
        (b"a: 1\nb: \xc3\xa9\xff\n", "2:5", "byte 0xff is not UTF-8"),
        (b"\xff\xfea\x00", "1:1", "byte 0xff is not UTF-8"),
        (b"a: \xed\xa0\x80", "1:4", "byte 0xed is not UTF-8"),
    ],
)
def test_other_encodings_are_refused(data: bytes, place: str, message: str) -> None:
    assert _problems(data) == [(place, message)]


def test_aliases_are_counted_as_they_are_followed() -> None:
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))
    [(_, message)] = _problems(bomb)
    assert message == f"holds more than {MAX_NODES:,} values once every alias is followed, which no recipe needs"


def test_values_are_counted_exactly() -> None:
    fits = "a: [" + "x," * (MAX_NODES - 2) + "]"
    assert len(_parse(fits).value["a"]) == MAX_NODES - 2
    assert "holds more than" in _problems(fits + "\nb: 1\n")[0][1]
    half = "a: &a [" + "x," * (MAX_NODES // 2 - 2) + "]\nb: "
    assert len(_parse(half + "*a").value["b"]) == MAX_NODES // 2 - 2
    assert "holds more than" in _problems(half + "[*a, x]")[0][1]


def test_depth_is_bounded_with_aliases_followed() -> None:
    def nested(levels: int, inside: str = "") -> str:
        return "[" * levels + inside + "]" * levels

    _parse("a: " + nested(MAX_DEPTH - 1, "x"))
    assert "nested deeper" in _problems("a: " + nested(MAX_DEPTH, "x"))[0][1]
    half = "a: &a " + nested(40, "x") + "\nb: "
    _parse(half + nested(MAX_DEPTH - 41, "*a"))
    assert "nested deeper" in _problems(half + nested(MAX_DEPTH - 40, "*a"))[0][1]


@pytest.mark.parametrize("number", ["9" * 100_000, "-" + "9" * 41, "1" * 5000 + ".5", "0x" + "f" * 5000])
def test_endless_numbers_are_refused(number: str) -> None:
    [(place, message)] = _problems(f"a: {number}\n")
    assert place == "1:4"
    assert message.endswith("is a number of more than 40 characters")
    assert len(message) < 120


@pytest.mark.parametrize(
    "text",
    [
        *["[" * MAX_BYTES, "{a: " * (MAX_BYTES // 4), "- " * (MAX_BYTES // 2), "? " * (MAX_BYTES // 2)],
        *["[[]," * (MAX_BYTES // 4), "&a " * (MAX_BYTES // 3), "!" * MAX_BYTES, "a: " * (MAX_BYTES // 3)],
        *["'" * MAX_BYTES, '"' + "a" * (MAX_BYTES - 1), "a" * MAX_BYTES, "#" * MAX_BYTES, "\n" * MAX_BYTES],
        *["%" * MAX_BYTES, "".join(" " * i + "a:\n" for i in range(1400)), "---\n" * (MAX_BYTES // 4)],
    ],
    ids=lambda text: repr(text[:6]),
)
def test_hostile_files_are_refused_soon(text: str) -> None:
    start = time.process_time()
    assert _problems(text)
    assert time.process_time() - start < 20  # seconds; a second or two where the parser is pure Python


@pytest.mark.parametrize("text", ["a: " + "x" * 1_000_000, "a: |\n" + "  x\n" * 200_000, "a: '" + "\n" * 900_000 + "'"])
def test_long_text_is_text(text: str) -> None:
    assert isinstance(_parse(text).value["a"], str)


def test_too_many_bytes() -> None:
    with pytest.raises(InputError, match="is larger than 1 MiB"):
        parse(b"#" * (MAX_BYTES + 1), "f")


class TestRead:
    def test_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "r.yaml").write_text("a: 1\n")
        found = read(tmp_path / "r.yaml")
        assert (found.value, found.file) == ({"a": 1}, str(tmp_path / "r.yaml"))

    def test_no_such_file(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="there is no such file"):
            read(tmp_path / "r.yaml")

    def test_a_folder(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="is a folder; a recipe is a YAML file"):
            read(tmp_path)

    def test_below_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "r.yaml").write_text("a: 1\n")
        with pytest.raises(InputError, match="cannot be read: Not a directory"):
            read(tmp_path / "r.yaml" / "x")

    def test_a_name_no_system_takes(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="cannot be read"):
            read(tmp_path / ("x" * 5000))
        with pytest.raises(InputError, match="cannot be read"):
            read(tmp_path / "a\0b")

    def test_a_named_pipe_does_not_block(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(InputError, match="is not a regular file"):
            read(tmp_path / "pipe")

    def test_no_permission(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object) -> int:
            raise PermissionError(13, "Permission denied")

        (tmp_path / "r.yaml").write_text("a: 1\n")
        monkeypatch.setattr(os, "open", refuse)  # file modes do not stop root
        with pytest.raises(InputError, match="may not be read"):
            read(tmp_path / "r.yaml")

    def test_too_large(self, tmp_path: Path) -> None:
        (tmp_path / "r.yaml").write_bytes(b"#" * (MAX_BYTES + 1))
        with pytest.raises(InputError, match="is larger than 1 MiB"):
            read(tmp_path / "r.yaml")
