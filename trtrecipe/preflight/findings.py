"""What a TensorRT release will not take of a graph, found before any device is touched.

Operators, element types and the forms of single nodes are held against what was published for the release
(`targets.parser`). A finding names every node, the source model's layer it came from, what to change and, where there
is one, the release that takes it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto

from trtrecipe.errors import StepError
from trtrecipe.graphs.edit import all_graphs, all_nodes, all_tensors
from trtrecipe.graphs.interface import DTYPES
from trtrecipe.graphs.known import Known, known
from trtrecipe.graphs.opset import Obstacle
from trtrecipe.graphs.sound import listed
from trtrecipe.graphs.values import array_of
from trtrecipe.preflight.checks import CHECKS
from trtrecipe.preflight.repairs import turned_off
from trtrecipe.targets.parser import NOTE, Parser, supported_from

_NAMED = 3
"""Nodes that one line of a message names."""

_LATER_TYPES: dict[int, str] = {
    TensorProto.FLOAT8E4M3FN: "float8e4m3fn",
    TensorProto.INT4: "int4",
    TensorProto.FLOAT4E2M1: "float4e2m1",
}
"""Element types that graphs of ours do not have, but a release may take."""

_SHORT = {
    "float32": "FP32",
    "float16": "FP16",
    "bfloat16": "BF16",
    "int8": "INT8",
    "int32": "INT32",
    "int64": "INT64",
    "uint8": "UINT8",
    "bool": "BOOL",
}
"""NumPy's name → the name in the tables of operators."""

_DATA_INPUT = {"Where": 1, "OneHot": 2, "Compress": 0}
"""Operator → the input whose type the table's is about, where that is not the first."""

_ANY_TYPE = frozenset(
    ["Cast", "CastLike", "ConstantOfShape", "EyeLike", "If", "Loop", "Range", "Scan", "Shape", "Size"]
)
"""Operators whose first input does not tell the type that they work on."""


@dataclass(frozen=True)
class Finding:
    """One form of one operator that is not taken. `takes`: what is, in words; `since`: the release that takes this."""

    operator: str
    form: str
    nodes: tuple[str, ...]
    takes: str | None = None
    since: str | None = None
    do: str | None = None
    note: bool = False


def inspect(model: ModelProto, parser: Parser, obstacles: Iterable[Obstacle] = ()) -> list[Finding]:
    """Everything that `parser` does not take, in the order of the graph's nodes; and what it takes with a remark.

    `obstacles`: what cannot be written in an opset that it takes.
    """
    facts = known(model)
    found: dict[tuple[str, str], Finding] = {}
    for finding in (*_tensors(model, facts, parser), *_nodes(model, facts, parser), *_opset(obstacles, parser)):
        key = finding.operator, finding.form
        before = found.get(key, finding)
        nodes = dict.fromkeys((*before.nodes, *finding.nodes))
        found[key] = replace(before, nodes=tuple(nodes))
    return list(found.values())


def require(
    findings: Iterable[Finding], parser: Parser, layers: Mapping[str, Iterable[str]], without: Collection[str]
) -> None:
    """Raise StepError for the findings that are no notes, all in one message.

    `without`: the passes that the recipe turns off; one that would have helped is named.
    """
    lines = [line(finding, parser, layers, without) for finding in findings if not finding.note]
    if lines:
        raise StepError(
            f"TensorRT {parser.release} does not take this model:\n{listed(lines)}",
            hint="change these layers in the model, or leave this target out",
        )


def notes(findings: Iterable[Finding], layers: Mapping[str, Iterable[str]]) -> list[str]:
    """A sentence for each finding that refuses nothing."""
    return [
        f"{finding.operator}: {finding.takes or finding.form}: {_where(finding.nodes, _owners(layers))}"
        for finding in findings
        if finding.note
    ]


def line(finding: Finding, parser: Parser, layers: Mapping[str, Iterable[str]], without: Collection[str]) -> str:
    """The finding in one line: operator, form, nodes and their layers, what is taken, since when, what to do."""
    parts = [f"{finding.operator}: {finding.form}: {_where(finding.nodes, _owners(layers))}"]
    if finding.takes:
        parts.append(f"TensorRT {parser.release} takes {finding.takes}")
    if finding.since:
        parts.append(f"TensorRT {finding.since} takes it")
    off = turned_off(finding.operator, without)
    if off:
        parts.append(f"the pass {off}, which model.without_passes turns off, writes it otherwise")
    elif finding.do:
        parts.append(finding.do)
    return "; ".join(parts)


def _opset(obstacles: Iterable[Obstacle], parser: Parser) -> Iterator[Finding]:
    """What the table of operators does not refuse anyway."""
    for each in obstacles:
        if parser.supported.get(each.operator, False):
            yield Finding(each.operator, each.reason, (each.node,), do="export the model at opset 13 (model.opset)")


def _nodes(model: ModelProto, facts: Known, parser: Parser) -> Iterator[Finding]:
    rules: dict[str, list[int]] = {}
    for index, rule in enumerate(parser.rules):
        for operator in rule.operators:
            rules.setdefault(operator, []).append(index)
    for node in all_nodes(model.graph):
        if node.domain or not parser.supported.get(node.op_type, False):
            yield _unsupported(node, parser)
            continue
        for rule in (parser.rules[index] for index in rules.get(node.op_type, ())):
            form = CHECKS[rule.check](node, facts, **rule.given)
            if form is not None:
                yield Finding(node.op_type, form, (_name(node),), rule.takes, rule.until, rule.do, rule.verdict == NOTE)
        unlisted = _unlisted_type(node, facts, parser)
        if unlisted:
            yield unlisted


def _unsupported(node: NodeProto, parser: Parser) -> Finding:
    if node.domain:
        return Finding(f"{node.domain}.{node.op_type}", "no operator of ONNX", (_name(node),))
    form = "not supported"
    if parser.assumed:
        form += f" by TensorRT {parser.operators_from}, the nearest release with a published list"
    return Finding(node.op_type, form, (_name(node),), since=supported_from(node.op_type, parser.release))


def _unlisted_type(node: NodeProto, facts: Known, parser: Parser) -> Finding | None:
    """A type that the table does not list for the operator.

    The tables leave out what the parser's sources and headers take (integers in reductions of shapes), so this refuses
    nothing.
    """
    position = _DATA_INPUT.get(node.op_type, 0)
    if node.op_type in _ANY_TYPE or len(node.input) <= position:
        return None
    name = DTYPES.get(facts.types.get(node.input[position], TensorProto.UNDEFINED), "")
    name = parser.converted.get(name, name)
    kind = _SHORT.get(name)
    allowed = parser.types.get(node.op_type, ())
    if kind is None or name not in parser.tensors or kind in allowed:  # what no operator takes is refused elsewhere
        return None
    form = f"computes on {kind}, where the published list for TensorRT {parser.operators_from} has {', '.join(allowed)}"
    return Finding(node.op_type, form, (_name(node),), note=True)


def _tensors(model: ModelProto, facts: Known, parser: Parser) -> Iterator[Finding]:
    yield from _element_types(model, facts, parser)
    if "int64" in parser.converted:
        yield from _out_of_range(model, parser)


def _element_types(model: ModelProto, facts: Known, parser: Parser) -> Iterator[Finding]:
    """Inputs, outputs and nodes of a type that the release has not."""
    taken = {*parser.tensors, *parser.converted}
    for role, values in (("input", model.graph.input), ("output", model.graph.output)):
        for value in values:
            kind = _type(facts.types.get(value.name, TensorProto.UNDEFINED))
            if kind and kind not in taken and kind not in parser.interface:
                yield _of_type(f"{role} {value.name}", kind, (value.name,), parser)
    for node in all_nodes(model.graph):
        for name in (*node.input, *node.output):
            kind = _type(facts.types.get(name, TensorProto.UNDEFINED))
            if not kind or kind in taken:
                continue
            outside = name in facts.inputs or name in facts.outputs
            if not (kind in parser.interface and outside and node.op_type == "Cast"):
                yield _of_type(node.op_type, kind, (_name(node),), parser)
                break


def _of_type(what: str, kind: str, nodes: tuple[str, ...], parser: Parser) -> Finding:
    takes = ", ".join(parser.tensors)
    if parser.interface:
        takes += f" (and {', '.join(parser.interface)} as an input or output beside a Cast)"
    return Finding(what, f"is {kind}", nodes, takes, do="Cast it to one of these in the model, or in preprocessing")


def _type(kind: int) -> str:
    return DTYPES.get(kind) or _LATER_TYPES.get(kind) or (f"type {kind}" if kind else "")


def _out_of_range(model: ModelProto, parser: Parser) -> Iterator[Finding]:
    """64-bit constants that 32 bits do not hold: the parser clamps them. Limits of a Slice are clamped anyway."""
    limits = np.iinfo(np.int32)
    large = {
        tensor.name
        for tensor in all_tensors(model.graph)
        if tensor.data_type == TensorProto.INT64 and _exceeds(tensor, limits.min, limits.max)
    }
    for graph in all_graphs(model.graph) if large else ():
        for node in graph.node:
            read = (
                node.input[:1] if node.op_type == "Slice" else node.input[1:] if node.op_type == "Loop" else node.input
            )
            if large.intersection(read):
                form = "a constant does not fit 32 bits, to which the release cuts 64-bit integers"
                yield Finding(node.op_type, form, (_name(node),), do="use smaller numbers", since="9.0")


def _exceeds(tensor: TensorProto, least: int, most: int) -> bool:
    values = array_of(tensor)
    return bool(values.size) and not (least <= values.min() and values.max() <= most)


def _name(node: NodeProto) -> str:
    return node.name or next((name for name in node.output if name), node.op_type)


def _where(nodes: tuple[str, ...], owners: Mapping[str, str]) -> str:
    """The first few nodes, each with the innermost layer of the source model that it came from."""
    named = []
    for node in nodes[:_NAMED]:
        owner = _owner(node, owners)
        named.append(f"{node} (layer {owner})" if owner and owner != node else node)
    return ", ".join(named) + (f" and {len(nodes) - _NAMED} more" if len(nodes) > _NAMED else "")


def _owners(layers: Mapping[str, Iterable[str]]) -> dict[str, str]:
    """Node → its innermost layer: the one with the longest path."""
    found: dict[str, str] = {}
    for layer, nodes in layers.items():
        for node in nodes:
            if len(layer) > len(found.get(node, "")):
                found[node] = layer
    return found


def _owner(node: str, owners: Mapping[str, str]) -> str | None:
    """Also of nodes that a repair named after the one it rewrote: `a/b/Cast` is of `a/b`'s layer."""
    while node not in owners and "/" in node:
        node = node.rpartition("/")[0]
    return owners.get(node)
