"""Graphs of TensorFlow that are refused before any part of them runs.

TensorFlow's constant folding, which tf2onnx uses, executes operators: `ReadFile` of a constant name is one of them. So
a graph is judged by the operators that its outputs lead to, in functions too, before TensorFlow sees it. Names of
operators are those registered in TensorFlow 2.21 (tensorflow/core/ops/*.cc).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from trtrecipe.errors import StepError
from trtrecipe.graphs.names import cleaned
from trtrecipe.graphs.sound import listed

_PYTHON = re.compile(r"(Eager)?PyFunc(Stateless)?|GeneratorDataset")
_FILES = re.compile(
    r"ReadFile|WriteFile|MatchingFiles|FileSystemSetConfiguration|ImmutableConst|LoadAndRemapMatrix|RecordInput|DumpTensor"
    r"|GenerateVocabRemapping|FixedUnigramCandidateSampler|Debug(Identity|NumericSummary|NanCount).*|Calibration.*Saver"
    r"|(Save|Restore|DTensorRestore|DistributedSave|MergeV2Checkpoints|CheckpointHasKey).*|.*Dataset.*|.*Iterator.*"
    r"|(WholeFile|TextLine|FixedLengthRecord|TFRecord|LMDB|Identity)Reader.*|Reader(Read|Restore|Serialize|Reset|Num).*"
    r"|(Create|Close|Flush|Write|Import).*(Summary|Event).*|SummaryWriter|Rpc.*|RemoteCall|_?(Host)?(Send|Recv)"
)
_TABLES = re.compile(r".*(HashTable|LookupTable|InitializeTable).*|AnonymousMutableDense.*")
_CHANGES = re.compile(
    r"Assign(Add|Sub)?(VariableOp)?|(Resource)?StridedSliceAssign|Resource(Sparse)?Apply.*|(Sparse)?Apply[A-Z].*"
    r"|ResourceScatter.*|Scatter(Add|Div|Max|Min|Mul|Sub|Update)|ScatterNd(Add|Max|Min|Sub|Update)|(Resource)?CountUpTo"
)
"""Operators that change variables."""
_STRING = (7, 107)  # DT_STRING and its reference form in TensorFlow's types.proto
_PASSES_ON = frozenset(["Const", "Identity", "IdentityN", "Placeholder", "PlaceholderWithDefault", "StopGradient"])
_RESTORES = frozenset(
    ["Assign", "AssignVariableOp", "Const", "Identity", "NoOp", "Placeholder", "PlaceholderWithDefault", "RestoreV2",
     "VarHandleOp", "Variable", "VariableV2"]
)  # fmt: skip


@dataclass(frozen=True)
class _Scope:
    """The main graph, or the body of a function. `ends`: what of it is asked for; "^name" for its effects."""

    nodes: Mapping[str, Any]
    ends: tuple[str, ...]


def require_harmless(definition: Any, ends: Collection[str]) -> None:
    """Refuse the GraphDef when what computes the nodes `ends` runs Python, reaches files, or is no TensorFlow.

    Then also when it works on strings or looks values up in tables: ONNX as TensorRT reads it has neither. Raises
    StepError naming the nodes.
    """
    from tensorflow.python.framework import op_def_registry

    functions = {function.signature.name: function for function in definition.library.function}
    everything = list(_reached(definition, ends, functions, effects=True))
    _refuse(
        [node for node in everything if _PYTHON.fullmatch(node.op)],
        "the model calls Python code, which is not in the file and is never run",
        "export it without tf.py_function and tf.numpy_function",
    )
    _refuse(
        [node for node in everything if _reaches_files(node)],
        "the model reads or writes files, or talks to other processes, while it computes",
        "export a signature that takes all its data as inputs",
    )
    known = {node.op: op_def_registry.get(node.op) for node in everything}
    _refuse(
        [node for node in everything if known[node.op] is None and node.op not in functions],
        "the model uses operators that TensorFlow does not have (custom ops)",
        "replace them by TensorFlow's own operators and export the model again",
    )
    _refuse(
        [node for node in everything if _CHANGES.fullmatch(node.op)],
        "the model changes its variables while it computes, and an engine remembers nothing from run to run",
        "export it for inference (training=False, stateful=False), with states as inputs and outputs",
    )
    values = list(_reached(definition, ends, functions, effects=False))
    _refuse(
        [node for node in values if _TABLES.fullmatch(node.op)],
        "the model looks values up in tables, which ONNX as TensorRT reads it has no form for",
        "export a signature that starts after the lookup, and do the lookup where the data is prepared",
    )
    _refuse(
        [node for node in values if not _calls(node, functions) and _has_strings(node, known[node.op])],
        "the model works on strings, which TensorRT has no form for",
        "export a signature that takes numbers, and do this part where the data is prepared",
    )


def require_plain_restoring(definition: Any, restore: str, file_name: str) -> None:
    """Refuse the saver of a TensorFlow 1 model when it does more than to assign to variables what is in its own files.

    `restore` is the node that is run, `file_name` the tensor that is fed. Raises StepError.
    """
    nodes = {node.name: node for node in definition.node}
    given = _node_of(file_name)
    for node in _walk(_Scope(nodes, (restore,)), effects=True, stop=given):
        from_elsewhere = node.op == "RestoreV2" and not _leads_to(nodes, node.input[0], given)
        if node.op not in _RESTORES or from_elsewhere:
            raise StepError(
                f"the SavedModel restores its variables in a way not known to be harmless: {node.op} {node.name}",
                hint="load the model where it was made and save it again",
            )


def run_when_loaded(meta_graph: Any) -> list[str]:
    """Nodes that reach files, tables or Python and that TensorFlow's own loader of TensorFlow 2 models might run.

    It creates, restores and initialises the objects of the file with the functions that these refer to.
    """
    objects = meta_graph.object_graph_def
    functions = {function.signature.name: function for function in meta_graph.graph_def.library.function}
    waiting = [name for name in objects.concrete_functions if name in functions]
    waiting += [node.bare_concrete_function.concrete_function_name for node in objects.nodes]
    waiting += [name for node in objects.nodes for name in node.function.concrete_functions]
    found, seen = [], set()
    while waiting:
        name = waiting.pop()
        if name not in functions or name in seen:
            continue
        seen.add(name)
        for node in functions[name].node_def:
            if _PYTHON.fullmatch(node.op) or _TABLES.fullmatch(node.op) or _reaches_files(node):
                found.append(f"{node.op} {cleaned(node.name)}")
            waiting += _calls(node, functions)
    return sorted(found)


def variables(definition: Any, ends: Collection[str]) -> list[str]:
    """Names of the variables that what computes `ends` reads."""
    functions = {function.signature.name: function for function in definition.library.function}
    reached = _reached(definition, ends, functions, effects=False)
    return sorted(node.name for node in reached if node.op in ("VarHandleOp", "Variable", "VariableV2"))


def _refuse(nodes: list[Any], what: str, hint: str) -> None:
    if nodes:
        lines = dict.fromkeys(f"{node.op} {cleaned(node.name)}" for node in nodes)
        raise StepError(f"{what}:\n{listed(list(lines))}", hint=hint)


def _reaches_files(node: Any) -> bool:
    if node.op == "PrintV2":  # to the log, unless it says a file
        return "output_stream" in node.attr and bool(node.attr["output_stream"].s.startswith(b"file:"))
    return _FILES.fullmatch(node.op) is not None


def _has_strings(node: Any, kind: Any) -> bool:
    if node.op in _PASSES_ON:
        return False
    for argument in (*kind.input_arg, *kind.output_arg):
        kinds = [argument.type]
        given = argument.type_attr or argument.type_list_attr
        if given:  # looked up only where it is there: a map of protobuf makes an entry of whatever it is asked for
            value = node.attr.get(given)
            kinds = [] if value is None else [value.type, *value.list.type]
        if any(entry in _STRING for entry in kinds):
            return True
    return False


def _reached(definition: Any, ends: Collection[str], functions: Mapping[str, Any], effects: bool) -> Iterator[Any]:
    """The nodes that compute `ends`, those in functions included; with `effects`, what must run before as well."""
    waiting = [_Scope({node.name: node for node in definition.node}, tuple(ends))]
    seen: set[str] = set()
    while waiting:
        for node in _walk(waiting.pop(), effects):
            yield node
            for name in _calls(node, functions):
                if name not in seen:
                    seen.add(name)
                    waiting.append(_body(functions[name], effects))


def _body(function: Any, effects: bool) -> _Scope:
    ends = [*function.ret.values(), *(f"^{name}" for name in function.control_ret.values() if effects)]
    return _Scope({node.name: node for node in function.node_def}, tuple(ends))


def _walk(scope: _Scope, effects: bool, stop: str | None = None) -> Iterator[Any]:
    waiting, seen = [_node_of(end) for end in scope.ends], set()
    while waiting:
        name = waiting.pop()
        if name in seen or name not in scope.nodes:  # an argument of a function is no node
            continue
        seen.add(name)
        node = scope.nodes[name]
        yield node
        if name != stop:
            waiting += [_node_of(entry) for entry in node.input if effects or not entry.startswith("^")]


def _calls(node: Any, functions: Mapping[str, Any]) -> list[str]:
    """The functions that the node calls: it bears the name of one, or has it as an attribute."""
    named = [value.func.name for value in node.attr.values() if value.HasField("func")]
    named += [entry.name for value in node.attr.values() for entry in value.list.func]
    return [name for name in (node.op, *named) if name in functions]


def _node_of(reference: str) -> str:
    return reference.removeprefix("^").partition(":")[0]


def _leads_to(nodes: Mapping[str, Any], reference: str, wanted: str) -> bool:
    """Whether the tensor is the output of the node `wanted`, as it is."""
    name = _node_of(reference)
    while name != wanted and name in nodes and nodes[name].op == "Identity":
        name = _node_of(nodes[name].input[0])
    return name == wanted
