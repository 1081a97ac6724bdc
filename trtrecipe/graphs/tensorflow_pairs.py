"""Which forward and which backward RNN tf2onnx joins into one bidirectional node: the two of one layer.

tf2onnx joins the first that fit, in an order that differs between processes: with two bidirectional layers on one
input, a direction of one may be joined with a direction of the other. The results are right, but not the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from trtrecipe.graphs.names import is_generated


@contextmanager
def joined_by_layer() -> Iterator[None]:
    """Within the block, tf2onnx joins by layer."""
    from tf2onnx.rewriter import rnn_utils

    find = rnn_utils.find_bidirectional_rnns

    def found(graph: Any, operations: Any, kind: Any) -> list[tuple[Any, Any]]:
        return _by_layer(graph, find(graph, operations, kind), kind)

    rnn_utils.find_bidirectional_rnns = found
    try:
        yield
    finally:
        rnn_utils.find_bidirectional_rnns = find


def _by_layer(graph: Any, pairs: list[tuple[Any, Any]], kind: Any) -> list[tuple[Any, Any]]:
    """The same nodes, joined anew among those that read the same tensor: those whose names have most in common."""
    from tf2onnx.rewriter import rnn_utils

    names = {node.name: _reader(graph, node) for pair in pairs for node in pair}
    groups: dict[str, tuple[list[Any], list[Any]]] = {}
    for forward, backward in pairs:
        group = groups.setdefault(_source(forward), ([], []))
        group[0].append(forward)
        group[1].append(backward)
    joined: list[tuple[Any, Any]] = []
    for _, (forwards, backwards) in sorted(groups.items()):
        backwards.sort(key=lambda node: names[node.name])
        for forward in sorted(forwards, key=lambda node: names[node.name]):
            fitting = [each for each in backwards if rnn_utils.belong_to_birnn(graph, forward, each, kind)]
            if fitting:
                best = max(fitting, key=lambda each: _common(names[forward.name], names[each.name]))
                backwards.remove(best)
                joined.append((forward, best))
    return joined


def _source(node: Any) -> str:
    """The tensor that the RNN reads, before it was transposed."""
    name, maker = node.input[0], node.inputs[0]
    while maker is not None and maker.type in ("Transpose", "Identity"):
        name, maker = maker.input[0], maker.inputs[0]
    return str(name)


def _reader(graph: Any, node: Any) -> str:
    """The name that TensorFlow gave to what reads the RNN's outputs, the nearest that is not tf2onnx's own."""
    waiting, seen = [node], {node.name}
    while waiting:
        readers = {
            reader.name: reader
            for each in waiting
            for output in each.output
            for reader in graph.find_output_consumers(output)
            if reader.name not in seen
        }
        if named := sorted(name for name in readers if not is_generated(name)):
            return str(named[0])
        seen |= readers.keys()
        waiting = list(readers.values())
    return ""


def _common(one: str, other: str) -> int:
    """How many leading characters two names share."""
    return next((at for at, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), len(one))
