"""Repairs for a release: what its parser does not take, said with what it takes. Each computes the same.

A repair changes the model in place and says what it did, in a sentence for people; () where there was nothing to do.
`REPAIRS` has them in the order in which they run, each under the name by which a recipe turns it off.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from onnx import ModelProto, NodeProto

from trtrecipe.graphs import retype
from trtrecipe.graphs.canonical import canonical
from trtrecipe.graphs.edit import all_nodes, attribute, reset
from trtrecipe.graphs.passes import drop_identities
from trtrecipe.preflight import write_out
from trtrecipe.targets.parser import Parser


@dataclass(frozen=True)
class Repair:
    """`does` completes "the pass ..."; `operators` are those that are refused without it."""

    name: str
    does: str
    apply: Callable[[ModelProto, Parser, int], Sequence[str]]
    operators: tuple[str, ...] = ()


def repair(model: ModelProto, parser: Parser, opset_max: int, without: Collection[str]) -> tuple[ModelProto, list[str]]:
    """The model after every repair that is not in `without`, in canonical form; and what they did.

    `opset_max`: the opset that the graph has to be written in later, at most. A model that needs no repair comes back
    as it is.
    """
    result = ModelProto()
    result.CopyFrom(model)
    notes = [
        f"{each.name}: {note}"
        for each in REPAIRS
        if each.name not in without
        for note in each.apply(result, parser, opset_max)
    ]
    return (canonical(result) if notes else model), notes


def turned_off(operator: str, without: Iterable[str]) -> str | None:
    """The name of the repair that would write the operator otherwise, if it is in `without`."""
    return next((each.name for each in REPAIRS if each.name in without and operator in each.operators), None)


def _narrow_doubles(model: ModelProto, parser: Parser, opset_max: int) -> list[str]:
    notes = retype.doubles_to_floats(model) if "float64" in parser.converted else []
    if notes:
        drop_identities(model)  # Casts between the two
    return notes


def _narrow_integers(model: ModelProto, parser: Parser, opset_max: int) -> list[str]:
    return retype.narrow_interface(model) if "int64" in parser.converted else []


def _sort_top_k(model: ModelProto, parser: Parser, opset_max: int) -> list[str]:
    """Unsorted results come in no order that is promised, so that sorted ones are right as well."""
    found = [node for node in all_nodes(model.graph) if node.op_type == "TopK" and not attribute(node, "sorted", 1)]
    for node in found:
        reset(node.attribute, [each for each in node.attribute if each.name != "sorted"])
    return [f"TensorRT has sorted results only: {_counted(found, 'TopK')} sorted"] if found else []


def _counted(nodes: Sequence[NodeProto], what: str) -> str:
    return f"{len(nodes)} {what}"


REPAIRS: tuple[Repair, ...] = (
    Repair("double-to-float", "makes FP64 FP32, which is what TensorRT computes in", _narrow_doubles),
    Repair("int64-to-int32", "makes INT64 inputs and outputs INT32 for releases before 9.0", _narrow_integers),
    Repair("sort-top-k", "sorts the results of a TopK that promises no order", _sort_top_k, ("TopK",)),
    Repair(
        "write-out-operators",
        "writes an operator that the release lacks with those that it has: " + ", ".join(sorted(write_out.FORMS)),
        write_out.write_out,
        tuple(sorted(write_out.FORMS)),
    ),
)
