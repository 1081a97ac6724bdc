"""Transposes moved through what works on any order of axes, so that pairs of them meet and cancel.

TensorFlow's images have channels last, ONNX's convolutions have them first: what lies between two convolutions can be
computed in the one order as well as in the other.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from onnx import ModelProto, NodeProto, helper, numpy_helper

from trtrecipe.graphs.edit import attribute, consumers, reset, subgraphs, tensor_names, uses
from trtrecipe.graphs.known import Known, known
from trtrecipe.graphs.layouts import Moved, Perm, inverse, moved
from trtrecipe.graphs.names import Unique

_TRIMMED = 40
"""Nodes of a region up to which parts of it are tried where the whole gains nothing."""


def merge_transposes(model: ModelProto) -> bool:
    """Make one Transpose of two in a row, in place; whether there were any. The first stays if others read it."""
    producers = {name: node for node in model.graph.node for name in node.output}
    changed = False
    for node in model.graph.node:
        outer = _perm(node)
        first = producers.get(node.input[0]) if outer else None
        inner = _perm(first) if first is not None else ()
        if first is None or not inner:
            continue
        node.input[0] = first.input[0]
        reset(node.attribute, [helper.make_attribute("perm", [inner[axis] for axis in outer])])
        changed = True
    return changed


def move_transposes(model: ModelProto) -> bool:
    """Compute regions between Transposes in the other order of axes, in place, where that leaves fewer Transposes.

    Whether there was such a region. Graph inputs and outputs, and all numbers, stay what they are; bodies of If, Loop
    and Scan are left alone.
    """
    perms = list(dict.fromkeys(perm for node in model.graph.node if (perm := _perm(node))))
    before = _count(model)
    kept = [_copied(node) for node in model.graph.node] if perms else []
    changed = False
    for perm in perms:
        changed = _move(model, perm, known(model)) or changed
    while changed and merge_transposes(model):
        pass
    if changed and _count(model) >= before:  # what regions gain was counted one by one
        reset(model.graph.node, kept)
        return False
    return changed


def _copied(node: NodeProto) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    return copy


def _count(model: ModelProto) -> int:
    """Transposes that move something and that an output needs."""
    makers = {name: node for node in model.graph.node for name in node.output}
    pending = [value.name for value in model.graph.output]
    seen: set[str] = set()
    count = 0
    while pending:
        node = makers.get(pending.pop())
        if node is None or node.output[0] in seen:
            continue
        seen.add(node.output[0])
        perm = _perm(node)
        count += perm != tuple(sorted(perm))
        pending.extend(uses(node))
    return count


def _perm(node: NodeProto) -> Perm:
    """What the node transposes; () for what is no Transpose that says so."""
    plain = node.op_type == "Transpose" and not node.domain
    return tuple(attribute(node, "perm", ())) if plain else ()


@dataclass(frozen=True)
class _Graph:
    """The graph around its Transposes of one Perm. `options`: index of a node → how it is moved; () none reads it."""

    perm: Perm
    nodes: list[NodeProto]
    makers: Mapping[str, int]
    readers: Mapping[str, list[int]]
    outputs: frozenset[str]
    options: Mapping[int, Moved]
    facts: Known

    def before(self, index: int) -> list[str]:
        """Tensors that the node would take in the inner order."""
        return list(dict.fromkeys(self.nodes[index].input[position] for position in self.options[index].data))

    def carried(self, index: int) -> list[str]:
        """Outputs of the node that would be in the inner order, with the same Perm."""
        node, option = self.nodes[index], self.options[index]
        return [name for name, perm in zip(node.output, option.results, strict=False) if name and perm == self.perm]


def _move(model: ModelProto, perm: Perm, facts: Known) -> bool:
    graph = _read(model, perm, facts)
    unique = Unique(tensor_names(model.graph) | {node.name for node in model.graph.node})
    touched: set[str] = set()
    for region in list(_regions(graph)):
        chosen = _best(graph, region)
        around = _around(graph, chosen)
        if chosen and not around & touched:  # else what it would gain may be gone: the next round looks again
            _apply(model, graph, chosen, unique)
            touched |= around
    if touched:
        _sort(model)
    return bool(touched)


def _around(graph: _Graph, region: Collection[int]) -> set[str]:
    """Tensors that change with the region: its own, and those of the Transposes next to it."""
    names = {*_entering(graph, region)}
    names.update(name for index in region for name in graph.nodes[index].output if name)
    beside = [graph.nodes[index] for name in names for index in graph.readers.get(name, ())]
    beside += [graph.nodes[graph.makers[name]] for name in names if name in graph.makers]
    for node in beside:
        if _perm(node):
            names.update((node.input[0], node.output[0]))
    return names


def _read(model: ModelProto, perm: Perm, facts: Known) -> _Graph:
    nodes = list(model.graph.node)
    readers: dict[str, list[int]] = {}
    index_of = {id(node): index for index, node in enumerate(nodes)}
    for name, found in consumers(model.graph).items():
        readers[name] = list(dict.fromkeys(index_of[id(node)] for node in found))
    options = {
        index: option
        for index, node in enumerate(nodes)
        if not any(subgraphs(node)) and (option := moved(node, perm, facts)) is not None
    }
    return _Graph(
        perm=perm,
        nodes=nodes,
        makers={name: index for index, node in enumerate(nodes) for name in node.output if name},
        readers=readers,
        outputs=facts.outputs,
        options=options,
        facts=facts,
    )


def _regions(graph: _Graph) -> Iterator[set[int]]:
    """Nodes that can be moved and hang together, of which one reads a Transpose of the Perm."""
    done: set[int] = set()
    for node in graph.nodes:
        if _perm(node) != graph.perm:
            continue
        for seed in graph.readers.get(node.output[0], ()):
            if seed in graph.options and seed not in done and node.output[0] in graph.before(seed):
                region = _grown(graph, seed)
                done |= region
                yield region


def _grown(graph: _Graph, seed: int) -> set[int]:
    region, pending = {seed}, [seed]
    while pending:
        index = pending.pop()
        near = [graph.makers[name] for name in graph.before(index) if name in graph.makers]
        near = [each for each in near if each in graph.options and _joined(graph, each, index)]
        for name in graph.carried(index):
            readers = graph.readers.get(name, ())
            near += [each for each in readers if each in graph.options and name in graph.before(each)]
        for each in near:
            if each not in region:
                region.add(each)
                pending.append(each)
    return region


def _joined(graph: _Graph, maker: int, reader: int) -> bool:
    return bool(set(graph.carried(maker)).intersection(graph.before(reader)))


def _best(graph: _Graph, region: set[int]) -> set[int]:
    """The region, or what is left of it when single nodes are left out, if that saves Transposes; else nothing."""
    best, gain = region, _gain(graph, region)
    while len(best) > 1 and len(region) <= _TRIMMED:
        value, index = max((_gain(graph, best - {index}), -index) for index in best)
        if value < gain or (value == gain and gain > 0):
            break
        best, gain = best - {-index}, value
    return best if gain > 0 else set()


def _gain(graph: _Graph, region: Collection[int]) -> int:
    """How many Transposes fewer there are with the region moved."""
    gain = 0
    for name in _entering(graph, region):
        source = graph.nodes[graph.makers[name]] if name in graph.makers else None
        perm = _perm(source) if source is not None else ()
        gone = bool(perm) and name not in graph.outputs and all(each in region for each in graph.readers[name])
        gain += int(gone) - int(perm != graph.perm)
    for name, perm in _leaving(graph, region):
        for reader in graph.readers.get(name, ()):
            gain += int(reader not in region and perm != () and _merged(perm, _perm(graph.nodes[reader])) == ())
        gain -= int(perm != () and _needed(graph, region, name))
    return gain


def _entering(graph: _Graph, region: Collection[int]) -> list[str]:
    """Tensors from outside that the region's nodes take in the inner order."""
    inside = {name for index in region for name in graph.carried(index)}
    return list(dict.fromkeys(name for index in sorted(region) for name in graph.before(index) if name not in inside))


def _leaving(graph: _Graph, region: Collection[int]) -> list[tuple[str, Perm]]:
    """Results of the region's nodes that something outside reads, and what leads back to them."""
    found = []
    for index in sorted(region):
        for name, perm in zip(graph.nodes[index].output, graph.options[index].results, strict=False):
            outside = [each for each in graph.readers.get(name, ()) if not _reads_inner(graph, region, each, name)]
            if name and (outside or name in graph.outputs):
                found.append((name, perm))
    return found


def _reads_inner(graph: _Graph, region: Collection[int], index: int, name: str) -> bool:
    return index in region and name in graph.before(index)


def _needed(graph: _Graph, region: Collection[int], name: str) -> bool:
    """Whether something other than a Transpose needs the result as it was."""
    return name in graph.outputs or any(
        not _perm(graph.nodes[each])
        for each in graph.readers.get(name, ())
        if not _reads_inner(graph, region, each, name)
    )


def _merged(first: Perm, second: Perm) -> Perm:
    """Both in one; () where they cancel, or where the second is none."""
    if not second or len(first) != len(second):
        return (-1,)
    both = tuple(first[axis] for axis in second)
    return () if both == tuple(range(len(both))) else both


def _apply(model: ModelProto, graph: _Graph, region: set[int], unique: Unique) -> None:
    inner: dict[str, str] = {}
    for name in _entering(graph, region):
        inner[name] = _enter(model, graph, name, unique)
    leaving = dict(_leaving(graph, region))
    for index in sorted(region):
        node, option = graph.nodes[index], graph.options[index]
        for name, perm in zip(node.output, option.results, strict=False):
            if name and perm:
                inner[name] = unique.claim(f"{name}/moved")
    for index in sorted(region):
        _rewrite(model, graph.nodes[index], graph.options[index], inner, unique)
    for name, perm in leaving.items():
        if perm:
            _leave(model, graph, region, name, perm, inner[name], unique)


def _enter(model: ModelProto, graph: _Graph, name: str, unique: Unique) -> str:
    """The tensor in the inner order: what the Transpose of the Perm read, or a new Transpose back."""
    source = graph.nodes[graph.makers[name]] if name in graph.makers else None
    if source is not None and _perm(source) == graph.perm:
        return str(source.input[0])
    return _transpose(model, name, inverse(graph.perm), unique.claim(f"{name}/Transpose"))


def _transpose(model: ModelProto, source: str, perm: Perm, result: str, name: str | None = None) -> str:
    model.graph.node.append(helper.make_node("Transpose", [source], [result], name=name or result, perm=list(perm)))
    return result


def _rewrite(model: ModelProto, node: NodeProto, option: Moved, inner: Mapping[str, str], unique: Unique) -> None:
    for position in option.data:
        node.input[position] = inner[node.input[position]]
    for position, value in option.constants.items():
        name = unique.claim(f"{node.name or node.output[0]}/constant")
        model.graph.initializer.append(numpy_helper.from_array(value, name))
        node.input[position] = name
    kept = [each for each in node.attribute if each.name not in option.attributes]
    reset(node.attribute, [*kept, *(helper.make_attribute(*each) for each in option.attributes.items())])
    results = dict(zip(node.output, option.results, strict=False))
    reset(node.output, [inner[name] if name and results.get(name) else name for name in node.output])


def _leave(
    model: ModelProto, graph: _Graph, region: set[int], name: str, perm: Perm, source: str, unique: Unique
) -> None:
    """Give what reads the result from outside the order that it had; a Transpose takes the inner tensor directly."""
    for index in graph.readers.get(name, ()):
        reader = graph.nodes[index]
        second = _perm(reader)
        if second and index not in region:
            reader.input[0] = source
            both = [perm[axis] for axis in second]
            reset(reader.attribute, [helper.make_attribute("perm", both)])
    if _needed(graph, region, name):
        _transpose(model, source, perm, name, unique.claim(f"{name}/Transpose"))


def _sort(model: ModelProto) -> None:
    """Put every node behind what it reads: new Transposes were added at the end."""
    nodes = list(model.graph.node)
    makers = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    done: set[int] = set()
    order: list[int] = []
    for start in range(len(nodes)):
        stack = [start]
        while stack:
            needed = [makers[name] for name in uses(nodes[stack[-1]]) if name in makers]
            missing = [index for index in needed if index not in done]
            if missing:
                stack.extend(missing)
                continue
            index = stack.pop()
            if index not in done:
                done.add(index)
                order.append(index)
    reset(model.graph.node, [nodes[index] for index in order])
