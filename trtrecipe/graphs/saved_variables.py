"""Values of a SavedModel's variables, taken from its checkpoint by what the file says of them.

TensorFlow's loader runs the graph's own restoring, which is code of whoever wrote the file, and which Keras 3 traces
onto copies of the variables that the signatures read. Here values are read and assigned one by one instead. What is
saved where: tensorflow/core/protobuf/saved_object_graph.proto and trackable_object_graph.proto at v2.21.0.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from trtrecipe.errors import StepError
from trtrecipe.graphs import tensorflow_refusals

_OBJECTS = "_CHECKPOINTABLE_OBJECT_GRAPH"
_CALLS = ("PartitionedCall", "StatefulPartitionedCall")


def prepare(meta_graph: Any, ends: Collection[str]) -> list[str]:
    """Give every variable of the graph a resource of its own, in place; nodes that must stay in the graph.

    Where two go by one name, as those of nested Keras models may, they would share one. Raises StepError for variables
    that nothing restores, and for a saver that is not known to be harmless.
    """
    definition = meta_graph.graph_def
    needed = tensorflow_refusals.variables(definition, ends)
    if not needed:
        return []
    nodes = {node.name: node for node in definition.node}
    reads = [_read_of(definition, nodes, name) for name in needed if nodes[name].op == "VarHandleOp"]
    if meta_graph.HasField("object_graph_def"):
        for node in nodes.values():
            if node.op == "VarHandleOp":
                node.attr["_full_name"].s = node.attr["shared_name"].s
                node.attr["shared_name"].s = node.name.encode()
        return reads
    saver = meta_graph.saver_def
    if not saver.restore_op_name:
        raise StepError("the SavedModel does not say how its variables are restored", hint="save the model again")
    tensorflow_refusals.require_plain_restoring(meta_graph.graph_def, saver.restore_op_name, saver.filename_tensor_name)
    return [*reads, saver.restore_op_name, saver.filename_tensor_name]


def _read_of(definition: Any, nodes: Mapping[str, Any], variable: str) -> str:
    """The node by which TensorFlow's convert_variables_to_constants reads a variable, added where there is none."""
    name = f"{variable}/Read/ReadVariableOp"
    if name not in nodes:
        definition.node.add(name=name, op="ReadVariableOp", input=[variable])
        definition.node[-1].attr["dtype"].type = nodes[variable].attr["dtype"].type
    return name


def restore(session: Any, meta_graph: Any, folder: Path, ends: Collection[str]) -> None:
    """Give the variables that the nodes `ends` need their values, in the session that holds the graph.

    The graph is as `prepare` left it. Raises StepError for variables without a value.
    """
    needed = tensorflow_refusals.variables(session.graph.as_graph_def(), ends)
    if not needed:
        return
    prefix = folder / "variables" / "variables"
    if not Path(f"{prefix}.index").is_file():
        raise StepError(
            f"the SavedModel lacks variables/variables.index: {len(needed)} variables have no values",
            hint="copy the whole folder, with variables/, or export the model again",
        )
    if meta_graph.HasField("object_graph_def"):
        _assign(session, meta_graph, prefix, needed)
    else:
        # TensorFlow 1: what is saved under which name, and in how many slices, is said by the graph alone.
        session.run(meta_graph.saver_def.restore_op_name, {meta_graph.saver_def.filename_tensor_name: str(prefix)})


def _assign(session: Any, meta_graph: Any, prefix: Path, needed: Collection[str]) -> None:
    import tensorflow as tf
    from tensorflow.core.protobuf import trackable_object_graph_pb2

    checkpoint = tf.train.load_checkpoint(str(prefix))
    if not checkpoint.has_tensor(_OBJECTS):
        raise StepError("the SavedModel's checkpoint does not say which variable is which", hint="save the model again")
    objects = trackable_object_graph_pb2.TrackableObjectGraph.FromString(checkpoint.get_tensor(_OBJECTS))
    exact = dict(_captured_keys(meta_graph, objects))
    by_name = _named_keys(objects)
    values: dict[Any, Any] = {}
    assigned = []
    for name in needed:
        operation = session.graph.get_operation_by_name(name)
        full_name = operation.node_def.attr["_full_name"].s.decode()
        key = exact.get(name) or _only(by_name.get(full_name, set()), full_name)
        value = checkpoint.get_tensor(key)
        given = tf.compat.v1.placeholder(value.dtype, value.shape)
        values[given] = value
        assigned.append(tf.raw_ops.AssignVariableOp(resource=operation.outputs[0], value=given))
    # Each run of a session whose graph has grown costs as much as the graph is large: hence one for all variables.
    session.run(assigned, values)


def _only(keys: Collection[str], full_name: str) -> str:
    if len(keys) != 1:
        found = f"{len(keys)} variables called {full_name}; which one its signature reads is not said"
        raise StepError(
            f"the SavedModel has {found}" if keys else f"the SavedModel has no value for the variable {full_name}",
            hint="save the model with model.export(), or give its layers different names",
        )
    return next(iter(keys))


def _named_keys(objects: Any) -> dict[str, set[str]]:
    """Full name of a variable → keys of the checkpoint that hold its value."""
    keys: dict[str, set[str]] = {}
    for node in objects.nodes:
        for entry in node.attributes:
            if entry.name == "VARIABLE_VALUE" and entry.full_name:
                keys.setdefault(entry.full_name, set()).add(entry.checkpoint_key)
    return keys


def _captured_keys(meta_graph: Any, objects: Any) -> Iterator[tuple[str, str]]:
    """(variable's node, checkpoint key) of the variables that called functions capture.

    A call's last inputs are the captures, in the order in which the function lists the objects they stand for.
    """
    functions = meta_graph.object_graph_def.concrete_functions
    paired = _paired(meta_graph.object_graph_def, objects)
    for node in meta_graph.graph_def.node:
        called = node.attr["f"].func.name if node.op in _CALLS else ""
        bound = list(functions[called].bound_inputs) if called in functions else []
        given = [entry for entry in node.input if not entry.startswith("^")]
        for entry, identity in zip(given[len(given) - len(bound) :], bound, strict=True):
            for attribute in objects.nodes[paired[identity]].attributes if identity in paired else ():
                if attribute.name == "VARIABLE_VALUE":
                    yield entry.partition(":")[0], attribute.checkpoint_key


def _paired(saved: Any, objects: Any) -> Mapping[int, int]:
    """Object of the SavedModel → the same in the checkpoint, found along the names that lead there from the root."""
    paired = {0: 0}
    waiting = deque([0])
    while waiting:
        identity = waiting.popleft()
        children = {child.local_name: child.node_id for child in objects.nodes[paired[identity]].children}
        for child in saved.nodes[identity].children:
            if child.local_name in children and child.node_id not in paired:
                paired[child.node_id] = children[child.local_name]
                waiting.append(child.node_id)
    return paired
