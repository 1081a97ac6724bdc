"""A YAML file as plain data that remembers where every value stands.

The tree is built from the parser's events, never by recursion, and holds only what JSON can hold. Scalars follow the
core schema of YAML 1.2, so that `no`, `on`, `1:30` and `2024-01-01` are text, as editors show them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml

from trtrecipe.errors import InputError, Problem
from trtrecipe.recipe.findings import short
from trtrecipe.recipe.text import FORBIDDEN, Position, complaint, decode, read_bytes

MAX_NODES = 20_000
"""Values and keys after every alias has been followed."""
MAX_DEPTH = 64
MAX_DIGITS = 40
MAX_PROBLEMS = 100
"""No one reads more than this; what lies behind shows when these are mended."""

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_WORDS = {"": None, "~": None, "null": None, "Null": None, "NULL": None} | {
    word: word.lower() == "true" for word in ("true", "True", "TRUE", "false", "False", "FALSE")
}
_NUMBER = re.compile(
    r"(?P<int>[-+]?[0-9]+)|0o(?P<oct>[0-7]+)|0x(?P<hex>[0-9a-fA-F]+)"
    r"|(?P<float>[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?)"
    r"|(?P<inf>[-+]?\.(?:inf|Inf|INF))|(?P<nan>\.(?:nan|NaN|NAN))"
)
_BASES = {"int": 10, "oct": 8, "hex": 16}

Loc = tuple[int | str, ...]
"""Keys and list indices that lead from the root to a value."""


@dataclass(frozen=True)
class _Entry:
    """A value where it is used: an alias stands at its own position, its node at the anchor's."""

    node: _Node
    position: Position
    key: Position


@dataclass
class _Node:
    """A value where it is written. Filled while parsing, not changed afterwards."""

    value: Any
    text: str | None = None
    children: dict[int | str, _Entry] = field(default_factory=dict)
    size: int = 1
    height: int = 0
    closed: bool = False


@dataclass(frozen=True)
class Document:
    """One YAML document: `value` is made of dict, list, str, int, float, bool and None, with text as keys."""

    file: str
    value: Any
    _root: _Entry

    def locate(self, loc: Iterable[Any]) -> Position:
        """Where the value at `loc` stands; for what is absent, where the key of its nearest ancestor stands."""
        entry, found, missing = self._walk(loc)
        return entry.key if missing and found else entry.position

    def locate_key(self, loc: Iterable[Any]) -> Position:
        """Where the key (or list item) at `loc` stands, or that of its nearest ancestor."""
        return self._walk(loc)[0].key

    def path(self, loc: Iterable[Any]) -> Loc:
        """`loc` without the items that name nothing in the document."""
        return self._walk(loc)[1]

    def text(self, loc: Iterable[Any]) -> str | None:
        """The scalar at `loc` as it was written, without quotes; None for a list, a mapping or nothing."""
        entry, _, missing = self._walk(loc)
        return None if missing else entry.node.text

    def _walk(self, loc: Iterable[Any]) -> tuple[_Entry, Loc, bool]:
        entry, found, missing = self._root, [], False
        for item in loc:
            child = entry.node.children.get(item)
            missing = child is None
            if child is not None:
                entry = child
                found.append(item)
        return entry, tuple(found), missing


def read(path: Path, kind: str = "recipe", schema: str = "trtrecipe/v1") -> Document:
    """The document in `path`. Raises InputError with every problem found, each with its position if it has one.

    `kind` is what messages call such a file, and `schema` what it begins with.
    """
    return parse(read_bytes(path), str(path), kind, schema)


def parse(data: bytes, file: str, kind: str = "recipe", schema: str = "trtrecipe/v1") -> Document:
    """The document in `data`; `file` is what problems call it. Raises InputError."""
    return _Parser(file, kind, schema).document(decode(data, file))


class _Stop(Exception):
    """Nothing sensible can be read after this problem."""


@dataclass
class _Open:
    """A list or mapping that is still being read."""

    node: _Node
    entry_key: Position
    position: Position
    key: str | None = None
    key_position: Position = (1, 1)
    expects_key: bool = False
    seen: dict[str, Position] = field(default_factory=dict)


class _Parser:
    """Events in, nodes out; problems gather until the end or until reading on makes no sense."""

    def __init__(self, file: str, kind: str, schema: str) -> None:
        self.file, self.kind, self.begin = file, kind, f"begin with schema: {schema}"
        self.problems: list[Problem] = []
        self.anchors: dict[str, _Node] = {}
        self.stack: list[_Open] = []
        self.root: _Entry | None = None
        self.nodes = 0

    def document(self, text: str) -> Document:
        with suppress(_Stop):
            self._read(text)
        if self.problems:
            raise InputError(sorted(self.problems, key=lambda p: (p.line or 0, p.column or 0)))
        assert self.root is not None
        return Document(self.file, self.root.node.value, self.root)

    def _problem(self, position: Position, message: str, hint: str | None = None) -> None:
        self.problems.append(Problem(message, self.file, *position, hint))
        if len(self.problems) >= MAX_PROBLEMS:
            raise _Stop

    def _stop(self, position: Position, message: str, hint: str | None = None) -> NoReturn:
        self._problem(position, message, hint)
        raise _Stop

    def _read(self, text: str) -> None:
        documents = 0
        for event in self._events(text):
            position = (event.start_mark.line + 1, event.start_mark.column + 1)
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    self._stop(position, f"a second document starts here; a {self.kind} file holds one", "remove it")
                if event.version not in (None, (1, 2)):
                    version = ".".join(map(str, event.version))
                    self._problem(position, f"{self.kind}s are YAML 1.2, not {version}", "remove the %YAML line")
            elif isinstance(event, yaml.AliasEvent):
                self._alias(str(event.anchor), position)
            elif isinstance(event, yaml.NodeEvent):
                self._node(event, position)
            elif isinstance(event, yaml.CollectionEndEvent):
                self._close()
        if self.problems:
            return
        if self.root is None or self.root.node.text == "":
            self._stop((1, 1), "the file holds nothing", self.begin)
        if self.root.node.text is not None or isinstance(self.root.node.value, list):
            self._stop(self.root.position, f"a {self.kind} is a mapping of keys to values", self.begin)

    def _events(self, text: str) -> Iterator[Any]:
        loader = _LOADER(text)
        try:
            while loader.check_event():
                yield loader.get_event()
        except yaml.MarkedYAMLError as error:
            self._stop(*complaint(error, text))
        except (ValueError, OverflowError):  # the pure Python parser gives escapes to chr() unchecked
            mark = loader.get_mark()
            self._stop((mark.line + 1, mark.column + 1), "this escape is no Unicode character", "correct or remove it")
        finally:
            loader.dispose()

    def _node(self, event: Any, position: Position) -> None:
        if event.tag is not None:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!", 1)
            self._problem(position, f"tags are not allowed: {short(tag)}", "remove the tag")
        if isinstance(event, yaml.ScalarEvent):
            scalar = self._scalar(event.value, event.implicit[0], position)
            if self._expects_key():
                self._key(scalar, event.implicit[0], event.anchor, position)
            else:
                self._add(scalar, event.anchor, position)
            return
        if self._expects_key():
            self._stop(position, "a key must be text, not a list or a mapping")
        mapping = isinstance(event, yaml.MappingStartEvent)
        node = _Node({} if mapping else [])
        key = self._add(node, event.anchor, position)
        if len(self.stack) >= MAX_DEPTH:
            self._stop(position, f"is nested deeper than {MAX_DEPTH} levels, which no recipe needs")
        self.stack.append(_Open(node, key, position, expects_key=mapping))

    def _expects_key(self) -> bool:
        return bool(self.stack) and self.stack[-1].expects_key

    def _key(self, scalar: _Node, plain: bool, anchor: str | None, position: Position) -> None:
        top, text = self.stack[-1], str(scalar.text)
        if anchor is not None:
            self.anchors[anchor] = scalar
        if text == "<<" and plain:
            hint = "write the keys out, or use an alias for the whole block"
            self._problem(position, "merge keys (<<) are not supported", hint)
        elif text == "" and plain:
            self._problem(position, "a key is missing before ':'")
        elif text in top.seen:
            line, column = top.seen[text]
            message = f"duplicate key '{short(text)}'; it is first at line {line}, column {column}"
            self._problem(position, message, "keep one of the two")
        else:
            top.seen[text] = position
        top.key, top.key_position, top.expects_key = text, position, False

    def _alias(self, anchor: str, position: Position) -> None:
        if self._expects_key():
            self._stop(position, "an alias cannot be a key", "write the key out")
        node = self.anchors.get(anchor)
        if node is None:
            known = ", ".join(f"*{short(name)}" for name in list(self.anchors)[:8])
            hint = f"anchors up to here: {known}" if known else f"there is no &{short(anchor)} before it"
            self._problem(position, f"alias *{short(anchor)} refers to nothing", hint)
            node = _Node(None, text="", closed=True)
        if not node.closed:
            self._stop(position, f"alias *{short(anchor)} stands inside the block that it refers to")
        if len(self.stack) + node.height > MAX_DEPTH:
            self._stop(position, f"with its aliases followed, is nested deeper than {MAX_DEPTH} levels")
        self._add(node, None, position)

    def _add(self, node: _Node, anchor: str | None, position: Position) -> Position:
        """Hang `node` into what is open; returns the position of its key."""
        self._count(node.size, position)
        if anchor is not None:
            self.anchors[anchor] = node
        if not self.stack:
            self.root = _Entry(node, position, position)
            return position
        top = self.stack[-1]
        if isinstance(top.node.value, list):
            key: int | str = len(top.node.value)
            key_position = position
            top.node.value.append(node.value)
        else:
            key, key_position = str(top.key), top.key_position
            top.node.value[key] = node.value
            top.expects_key = True
        top.node.children[key] = _Entry(node, position, key_position)
        top.node.size += node.size
        top.node.height = max(top.node.height, node.height + 1)
        return key_position

    def _close(self) -> None:
        done = self.stack.pop()
        done.node.closed = True
        if self.stack:  # its size was 1 when it was hung in
            parent = self.stack[-1].node
            parent.size += done.node.size - 1
            parent.height = max(parent.height, done.node.height + 1)

    def _count(self, size: int, position: Position) -> None:
        self.nodes += size
        if self.nodes > MAX_NODES:
            message = f"holds more than {MAX_NODES:,} values once every alias is followed, which no recipe needs"
            self._stop(position, message)

    def _visible(self, text: str, position: Position) -> None:
        if found := FORBIDDEN.intersection(text):
            message = f"the escaped character U+{ord(min(found)):04X} cannot be seen and has no place in a recipe"
            self._problem(position, message, "remove it")

    def _scalar(self, text: str, plain: bool, position: Position) -> _Node:
        if not plain:
            self._visible(text, position)
            return _Node(text, text=text, closed=True)
        if text in _WORDS:
            return _Node(_WORDS[text], text=text, closed=True)
        match = _NUMBER.fullmatch(text)
        return _Node(self._number(match, position) if match else text, text=text, closed=True)

    def _number(self, match: re.Match[str], position: Position) -> int | float | None:
        kind = match.lastgroup
        if kind == "nan":
            return float("nan")
        if kind == "inf":
            return float(match[0].replace(".", ""))
        assert kind is not None
        if len(match[kind]) > MAX_DIGITS:
            self._problem(position, f"{short(match[0])} is a number of more than {MAX_DIGITS} characters")
            return None
        return float(match[0]) if kind == "float" else int(match[kind], _BASES[kind])
