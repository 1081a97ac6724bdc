"""A frozen graph of TensorFlow 1 (a GraphDef in one file), from named inputs to named outputs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from trtrecipe.errors import StepError
from trtrecipe.graphs import frozen, frozen_interface, tensorflow_refusals
from trtrecipe.graphs.frozen import END, PLACEHOLDERS, Frozen
from trtrecipe.graphs.sound import LISTED, listed
from trtrecipe.graphs.tensorflow_runtime import explained, tensorflow

_NO_RESULT = (*PLACEHOLDERS, "Assert", "Assign", "AssignVariableOp", "Const", "NoOp", "PlaceholderWithDefault")


def plain(name: str) -> str:
    """A tensor's name as it is shown: without `:0`."""
    return name.removesuffix(":0")


def freeze(path: Path, inputs: Collection[str], outputs: Collection[str], ranks: Mapping[str, int]) -> Frozen:
    """The graph in the file, from the tensors `inputs` to the tensors or layers `outputs`, named with or without `:0`.

    Without `inputs`, from the placeholders that the outputs need. `ranks`: input → number of axes, where the recipe
    says it. Raises StepError for names that are not there and for what lies open, listing what there is.
    """
    tf = tensorflow()
    definition = read(path)
    results, starts = last(definition), [node.name for node in definition.node if node.op in PLACEHOLDERS]
    if not outputs:
        raise StepError(
            "a frozen graph does not say what its outputs are",
            hint=f"name them in model.outputs; what nothing in the graph reads: {_some(results)}",
        )
    ends = {plain(name): _known(definition, name, "output", results) for name in outputs}
    given = {plain(name): _known(definition, name, "input", starts) for name in inputs}
    if both := sorted(given.keys() & ends.keys()):
        raise StepError(f"{both[0]} is named both as an input and as an output", hint="name another output")
    given = {name: frozen.cut_at(definition, tensor) for name, tensor in given.items()}
    tensorflow_refusals.require_harmless(definition, list(ends.values()))
    frozen.settle_defaults(definition)
    marked = [frozen.mark(definition, tensor, f"{END}{index}") for index, tensor in enumerate(ends.values())]
    with explained("TensorFlow cannot load the graph", "compare the file with the original"):
        definition = tf.compat.v1.graph_util.extract_sub_graph(definition, marked)
        with tf.Graph().as_default() as graph:
            tf.import_graph_def(definition, name="")
        definition = graph.as_graph_def()
    if held := tensorflow_refusals.variables(definition, marked):
        raise StepError(
            f"the graph is not frozen: it reads variables, whose values are not in the file:\n{listed(held)}",
            hint="freeze it (convert_variables_to_constants), or give the SavedModel that it was made from",
        )
    specs, tensors = _inputs(tf, definition, given, ranks)
    graph_def = frozen.inlined(definition, marked)
    return Frozen(graph_def, specs, tensors, {name: f"{end}:0" for name, end in zip(ends, marked, strict=True)})


def read(path: Path) -> Any:
    """The GraphDef in the file. Raises StepError when it is damaged or empty."""
    from tensorflow.core.framework import graph_pb2

    with explained("the model file is no GraphDef, or it is cut short", "compare its size with the original's"):
        definition = graph_pb2.GraphDef.FromString(path.read_bytes())
    if not definition.node:
        raise StepError("the graph in the model file is empty", hint="check model.source")
    return definition


def _inputs(
    tf: Any, definition: Any, given: Mapping[str, str], ranks: Mapping[str, int]
) -> tuple[tuple[Any, ...], dict[str, str]]:
    """Specs of the inputs by name, and the tensors they are."""
    found = {f"{node.name}:0": node for node in definition.node if node.op in PLACEHOLDERS}
    tensors = dict(given) or {plain(tensor): tensor for tensor in found}
    if not tensors:
        raise StepError("the outputs need no input: they are constants", hint="name other outputs in model.outputs")
    if missing := sorted(plain(tensor) for tensor in found.keys() - set(tensors.values())):
        raise StepError(
            f"the outputs need inputs that model.inputs does not name:\n{listed(missing)}",
            hint="name them as well, or name other outputs",
        )
    if unused := sorted(name for name, tensor in tensors.items() if tensor not in found):
        raise StepError(
            f"the outputs do not need the input {unused[0]}",
            hint=f"the inputs they need: {_some([plain(tensor) for tensor in found])}",
        )
    specs = []
    for name, tensor in sorted(tensors.items()):
        attributes = found[tensor].attr
        dtype = tf.dtypes.as_dtype(attributes["dtype"].type).name
        specs.append(frozen.input_spec(name, dtype, frozen.shape_of(found[tensor]), ranks))
    return tuple(specs), tensors


def _known(definition: Any, name: str, role: str, candidates: list[str]) -> str:
    """The tensor that the recipe calls `name`. Raises StepError where there is none, listing candidates."""
    node, _, position = name.partition(":")
    found = next((each for each in definition.node if each.name == node), None)
    if found is not None and (not position or position.isdecimal()):
        if frozen.tensor_type(found, int(position or 0)) is not None:
            return f"{node}:{position or 0}"
        raise StepError(
            f"the graph's operation {node} ({found.op}) has no output {position or 0}", hint=f"name another {role}"
        )
    starts = {each.name: f"{each.name}:0" for each in definition.node if each.op in PLACEHOLDERS}
    leaving = frozen_interface.layer(Frozen(definition, (), starts, {}), name) if role == "output" else None
    if leaving is not None:
        return leaving
    near = get_close_matches(node, [each.name for each in definition.node], n=1)
    meant = f"did you mean {near[0]}? " if near else ""
    raise StepError(f"the graph has no tensor {name}", hint=f"{meant}likely {role}s: {_some(candidates)}")


def last(definition: Any) -> list[str]:
    """Operations with a result that no other reads."""
    read = {entry.removeprefix("^").partition(":")[0] for node in definition.node for entry in node.input}
    return [node.name for node in definition.node if node.name not in read and node.op not in _NO_RESULT]


def _some(names: list[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more or "none"
