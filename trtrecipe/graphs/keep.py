"""Which nodes a recipe keeps in higher precision: `precision.keep` → node names.

`keep.json`: {"schema": "trtrecipe/keep/v1", "nodes": {ONNX node name: "fp32" | "fp16"}} as canonical JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from fnmatch import translate
from pathlib import Path
from typing import Any

from onnx import GraphProto, ModelProto, NodeProto

from trtrecipe.digest import canonical_json
from trtrecipe.errors import StepError
from trtrecipe.graphs.edit import all_nodes, consumers, uses
from trtrecipe.graphs.sound import listed

SCHEMA = "trtrecipe/keep/v1"
PRECISIONS = ("fp32", "fp16")

_SHOWN = 5

Layers = Mapping[str, Sequence[str]]
"""The source model's layers → nodes of the exported graph (`graphs.layers`)."""


def resolve(model: ModelProto, layers: Layers, entries: Sequence[Mapping[str, Any]], default: str) -> dict[str, str]:
    """Node name → precision, of every node of the main graph that an entry matches, in graph order.

    An entry holds exactly one of
    - "layers": a glob (`*`, `?`, `[…]`; case counts, `*` matches `/` too) on the names of `layers`, on whole node names
      and on runs of the parts of such a name: `logits` and `digits/logits` match `digits/logits/MatMul`. The last part
      of a node name says what is computed, not where: alone it matches only if it is the whole name. A node is known by
      the tensors it makes, too: batch normalization that prepare folds into a convolution leaves it the name of its
      output, so that either layer's name means the convolution.
    - "operators": a list of operator types.
    - "between": two such globs; all nodes on any path from nodes of the first to nodes of the second, ends included.
    and "precision", `default` where it is None or absent. The first entry that matches a node decides. Raises StepError
    for entries that match nothing, all at once, with names that come near.
    """
    kept: dict[str, str] = {}
    wrong: list[StepError] = []
    for entry in entries:
        precision = entry.get("precision") or default
        try:
            for name in _matched(model.graph, layers, entry):
                kept.setdefault(name, precision)
        except StepError as error:
            wrong.append(error)
    if len(wrong) == 1:
        raise wrong[0]
    if wrong:
        lines = [error.message + (f"; {error.hint}" if error.hint else "") for error in wrong]
        raise StepError(f"{len(wrong)} entries of precision.keep match nothing:\n" + listed(lines))
    return {node.name: kept[node.name] for node in model.graph.node if node.name in kept}


def dump(nodes: Mapping[str, str]) -> bytes:
    """The document as canonical JSON."""
    return canonical_json({"schema": SCHEMA, "nodes": dict(nodes)})


def load(path: Path) -> dict[str, str]:
    """Node name → precision, from the document in `path`. Raises StepError when it is damaged or of another version."""
    try:
        document = json.loads(path.read_bytes())
        if document["schema"] != SCHEMA:
            raise ValueError(f"its schema is {document['schema']}, not {SCHEMA}")
        nodes = {str(name): str(precision) for name, precision in document["nodes"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StepError(f"{path.name} is no usable list of kept nodes: {error}", "build again") from None
    for name, precision in nodes.items():
        if precision not in PRECISIONS:
            raise StepError(f"{path.name} keeps {name} in {precision}, which is none of {', '.join(PRECISIONS)}")
    return nodes


def written(entry: Mapping[str, Any]) -> str:
    """The entry as a recipe has it: `layers: logits`."""
    kind = _kind(entry)
    value = entry[kind]
    return f"{kind}: {value if isinstance(value, str) else '[' + ', '.join(value) + ']'}"


def _kind(entry: Mapping[str, Any]) -> str:
    return next(kind for kind in ("layers", "operators", "between") if entry.get(kind))


def _matched(graph: GraphProto, layers: Layers, entry: Mapping[str, Any]) -> Collection[str]:
    kind = _kind(entry)
    if kind == "layers":
        return _layers(graph, layers, entry["layers"], entry)
    if kind == "operators":
        return _operators(graph, entry["operators"], entry)
    return _between(graph, layers, entry)


# By layer


def _layers(graph: GraphProto, layers: Layers, glob: str, entry: Mapping[str, Any]) -> set[str]:
    """Names of the nodes that the glob matches; never empty."""
    matches = re.compile(translate(glob)).match
    known = [name for name in layers if any(map(matches, _runs(name)))]
    wanted = {node for name in known for node in layers[name]}
    found = {node.name for node in graph.node if node.name in wanted or any(map(matches, _known_by(node)))}
    if not found:
        raise _unmatched(graph, layers, glob, known, entry)
    return found


def _runs(name: str, upto: int | None = None) -> list[str]:
    """The name, then the runs of its parts up to position `upto`: of `a/b/c` a, a/b, a/b/c, b, b/c, c."""
    parts = [part for part in name.split("/") if part]
    spans = ((start, end) for start in range(len(parts[:upto])) for end in range(start + 1, len(parts) + 1))
    return [name, *("/".join(parts[start:end]) for start, end in spans)]


def _scopes(name: str) -> list[str]:
    """What a glob may match of a node's name: the whole, and every run of its parts but the last part alone."""
    return _runs(name, -1)


def _known_by(node: NodeProto) -> list[str]:
    # What is folded into the node before it leaves the name of its tensor behind.
    return [scope for name in (node.name, *node.output) for scope in _scopes(name)]


def _unmatched(
    graph: GraphProto, layers: Layers, glob: str, known: Sequence[str], entry: Mapping[str, Any]
) -> StepError:
    what = f"precision.keep ({written(entry)})"
    if known:
        return StepError(
            f"{what}: the model has {'layer' if len(known) == 1 else 'layers'} {_some(known)}, but nothing of "
            f"{'it' if len(known) == 1 else 'them'} is left in the graph: merged into the layer before or after, as "
            "batch normalization is into its convolution, or without effect at inference",
            hint="name the layer that took it in",
        )
    names = [*layers, *(node.name for node in graph.node)]
    inner = {node.name for node in all_nodes(graph)} - {node.name for node in graph.node}
    matches = re.compile(translate(glob)).match
    if any(matches(run) for name in sorted(inner) for run in _scopes(name)):
        return StepError(
            f"{what} matches only nodes in the body of an If, Loop or Scan, and those stay FP32 in any case",
            hint="remove the entry",
        )
    tails = {name.rpartition("/")[2] for name in names}
    otherwise = f"the model has {_some(list(layers) or names)}"
    hint = _near(glob, dict.fromkeys(run for name in names for run in _scopes(name)), otherwise)
    if glob in tails:
        full = [name for name in names if name.rpartition("/")[2] == glob]
        hint = f"the last part of a node's name does not do alone; write {_some(full)}, or operators: [{glob}]"
    return StepError(f"{what} matches no layer and no node of the graph", hint=hint)


# By operator


def _operators(graph: GraphProto, operators: Sequence[str], entry: Mapping[str, Any]) -> set[str]:
    present = {node.op_type for node in graph.node}
    for operator in operators:
        if operator in present:
            continue
        if any(node.op_type == operator for node in all_nodes(graph)):
            raise StepError(
                f"precision.keep ({written(entry)}): {operator} is only in the body of an If, Loop or Scan, and those "
                "stay FP32 in any case",
                hint="remove the operator from the entry",
            )
        raise StepError(
            f"precision.keep ({written(entry)}): no node of the graph is a {operator}",
            hint=_near(operator, present, f"the graph has {', '.join(sorted(present))}"),
        )
    return {node.name for node in graph.node if node.op_type in operators}


# Between two


def _between(graph: GraphProto, layers: Layers, entry: Mapping[str, Any]) -> set[str]:
    first, last = entry["between"]
    begin = _layers(graph, layers, first, entry)
    end = _layers(graph, layers, last, entry)
    found = _reached(graph, begin, _next_nodes(graph)) & _reached(graph, end, _previous_nodes(graph))
    if not found:
        swapped = _reached(graph, end, _next_nodes(graph)) & begin
        raise StepError(
            f"precision.keep ({written(entry)}): no path leads from {_some(sorted(begin))} to {_some(sorted(end))}",
            hint=f"there is one the other way round: between: [{last}, {first}]" if swapped else "name two on one path",
        )
    return found


Step = Callable[[NodeProto], Iterable[NodeProto]]


def _next_nodes(graph: GraphProto) -> Step:
    readers = consumers(graph)
    return lambda node: (reader for name in node.output if name for reader in readers.get(name, ()))


def _previous_nodes(graph: GraphProto) -> Step:
    makers = {name: node for node in graph.node for name in node.output if name}
    return lambda node: (makers[name] for name in uses(node) if name in makers)


def _reached(graph: GraphProto, names: Collection[str], step: Step) -> set[str]:
    """`names` and the names of all nodes that `step` leads to from there."""
    found = set(names)
    pending = [node for node in graph.node if node.name in found]
    while pending:
        for node in step(pending.pop()):
            if node.name not in found:
                found.add(node.name)
                pending.append(node)
    return found


# Words


def _near(wanted: str, names: Iterable[str], otherwise: str | None = None) -> str | None:
    """A hint with the names most like `wanted`, by letters or by containing it."""
    from difflib import get_close_matches

    plain = re.sub(r"[*?\[\]]", "", wanted)
    by_lower: dict[str, str] = {}
    for name in names:
        by_lower.setdefault(name.lower(), name)
    close = [by_lower[key] for key in get_close_matches(plain.lower(), by_lower, n=_SHOWN, cutoff=0.6)]
    close += [name for key, name in by_lower.items() if plain and plain.lower() in key and name not in close]
    return f"did you mean {_some(close)}?" if close else otherwise


def _some(names: Sequence[str]) -> str:
    more = [f"and {len(names) - _SHOWN} more"] if len(names) > _SHOWN else []
    return ", ".join([*names[:_SHOWN], *more])
