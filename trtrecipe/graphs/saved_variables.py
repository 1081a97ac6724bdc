"""Values of a SavedModel's variables, taken from its checkpoint by what the file says of them.

TensorFlow's loader runs the graph's own restoring, which is code of whoever wrote the file, and which Keras 3 traces
onto copies of the variables that the signatures read. Here values are read and assigned one by one instead. What is
saved where: tensorflow/core/protobuf/saved_object_graph.proto and trackable_object_graph.proto at v2.21.0.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto

from trtrecipe import parted
from trtrecipe.errors import StepError
from trtrecipe.graphs import tensorflow_refusals, values

_OBJECTS = "_CHECKPOINTABLE_OBJECT_GRAPH"
_MOST = 15 / 16
"""Of `parted.LIMIT`, what variables may take in a graph: the rest is for the graph itself and other constants."""
_ENOUGH = 1 / 8
"""Of `parted.LIMIT`, what those variables take that stay in the graph, once not all can."""
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


def leave_out(meta_graph: Any, folder: Path, ends: Collection[str]) -> dict[str, str]:
    """The large variables, where all together do not fit into a GraphDef, by node: their keys in the checkpoint.

    In place their nodes get no shape, so that a number may stand for each until `stand_in`. The graph is as `prepare`
    left it. Raises StepError where TensorFlow 1 has saved so many.
    """
    if sum(file.stat().st_size for file in (folder / "variables").glob("variables.data-*")) <= _MOST * parted.LIMIT:
        return {}
    needed = tensorflow_refusals.variables(meta_graph.graph_def, ends)
    checkpoint = _checkpoint(folder)
    types, shapes = checkpoint.get_variable_to_dtype_map(), checkpoint.get_variable_to_shape_map()
    nodes = {node.name: node for node in meta_graph.graph_def.node}
    if not meta_graph.HasField("object_graph_def"):
        total = sum(math.prod(shapes[name]) * types[name].size for name in shapes)
        raise StepError(
            f"the SavedModel keeps {total:,} bytes of values as TensorFlow 1 did, and {parted.LIMIT:,} can be read",
            hint="save it with TensorFlow 2, or export it as ONNX with its values in another file",
        )
    keys = _keys(checkpoint, meta_graph, {name: nodes[name] for name in needed})
    sizes = {key: math.prod(shapes[key]) * types[key].size for key in keys.values()}
    total = sum(sizes.values())
    if total <= _MOST * parted.LIMIT:
        return {}
    left: dict[str, str] = {}
    # The largest go first, as some operators are joined only where the values are known.
    for key in sorted(sizes, key=lambda key: (-sizes[key], key)):
        if total <= _ENOUGH * parted.LIMIT or not parted.lies_outside(math.prod(shapes[key]), sizes[key]):
            break
        total -= sizes[key]
        left |= {name: key for name, held in keys.items() if held == key}
    for name in left:
        nodes[name].attr["shape"].shape.Clear()
        nodes[name].attr["shape"].shape.unknown_rank = True
    return left


def stand_in(definition: Any, folder: Path, left: Mapping[str, str]) -> dict[str, TensorProto]:
    """Make placeholders of the constants that stand for the variables in `left`, in place; by the placeholder's tensor,
    the values, which are written to a file in `folder`."""
    if not left:
        return {}
    from onnx import helper

    checkpoint = _checkpoint(folder)
    shapes = checkpoint.get_variable_to_shape_map()
    nodes = {node.name: node for node in definition.node}
    written: dict[str, TensorProto] = {}
    path = folder / "values"
    with path.open("wb") as file:
        for name, key in left.items():
            if name not in nodes:  # nothing reads it
                continue
            if key not in written:
                array = checkpoint.get_tensor(key)
                start = file.seek(parted.after(file.tell()))
                np.ascontiguousarray(array).tofile(file)
                tensor = TensorProto(data_type=helper.np_dtype_to_tensor_dtype(array.dtype), dims=array.shape)
                values.put(tensor, values.Place(str(path.absolute()), start, array.nbytes))
                written[key] = tensor
            node = nodes[name]
            kind = node.attr["dtype"].type
            node.op = "Placeholder"
            node.attr.clear()
            node.attr["dtype"].type = kind
            for size in shapes[key]:
                node.attr["shape"].shape.dim.add(size=size)
    return {f"{name}:0": written[key] for name, key in left.items() if name in nodes}


def settle_loops(definition: Any, weights: Collection[str]) -> None:
    """Give loops the shapes of the placeholders that they take, in place: numbers stood in their place before."""
    if not weights:
        return
    nodes = {node.name: node for node in definition.node}
    for node in definition.node:
        shapes = node.attr["output_shapes"].list.shape if node.op in ("While", "StatelessWhile") else ()
        for shape, entry in zip(shapes, node.input, strict=False):
            origin = nodes[entry.partition(":")[0]]
            while origin.op == "Identity":
                origin = nodes[origin.input[0].partition(":")[0]]
            if f"{origin.name}:0" in weights:
                shape.CopyFrom(origin.attr["shape"].shape)


def restore(
    session: Any, meta_graph: Any, folder: Path, ends: Collection[str], left: Collection[str] = frozenset()
) -> None:
    """Give the variables that the nodes `ends` need their values, those in `left` 0, in the session with the graph.

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
        _assign(session, meta_graph, folder, needed, left)
    else:
        # TensorFlow 1: what is saved under which name, and in how many slices, is said by the graph alone.
        session.run(meta_graph.saver_def.restore_op_name, {meta_graph.saver_def.filename_tensor_name: str(prefix)})


def _assign(session: Any, meta_graph: Any, folder: Path, needed: Collection[str], left: Collection[str]) -> None:
    import tensorflow as tf

    checkpoint = _checkpoint(folder)
    operations = {name: session.graph.get_operation_by_name(name) for name in needed}
    keys = _keys(checkpoint, meta_graph, {name: operation.node_def for name, operation in operations.items()})
    given: dict[Any, Any] = {}
    assigned = []
    for name, operation in operations.items():
        value = checkpoint.get_tensor(keys[name]) if name not in left else _zero(checkpoint, keys[name])
        placeholder = tf.compat.v1.placeholder(value.dtype, value.shape)
        given[placeholder] = value
        assigned.append(tf.raw_ops.AssignVariableOp(resource=operation.outputs[0], value=placeholder))
    # Each run of a session whose graph has grown costs as much as the graph is large: hence one for all variables.
    session.run(assigned, given)


def _zero(checkpoint: Any, key: str) -> Any:
    return np.zeros((), checkpoint.get_variable_to_dtype_map()[key].as_numpy_dtype)


def _checkpoint(folder: Path) -> Any:
    import tensorflow as tf

    return tf.train.load_checkpoint(str(folder / "variables" / "variables"))


def _keys(checkpoint: Any, meta_graph: Any, nodes: Mapping[str, Any]) -> dict[str, str]:
    """The variables' nodes by name → where the checkpoint holds their values. Raises StepError."""
    from tensorflow.core.protobuf import trackable_object_graph_pb2

    if not checkpoint.has_tensor(_OBJECTS):
        raise StepError("the SavedModel's checkpoint does not say which variable is which", hint="save the model again")
    objects = trackable_object_graph_pb2.TrackableObjectGraph.FromString(checkpoint.get_tensor(_OBJECTS))
    exact = dict(_captured_keys(meta_graph, objects))
    by_name = _named_keys(objects)
    keys = {}
    for name, node in nodes.items():
        full_name = node.attr["_full_name"].s.decode()
        keys[name] = exact.get(name) or _only(by_name.get(full_name, set()), full_name)
    return keys


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
