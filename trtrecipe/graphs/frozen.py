"""A TensorFlow graph on its way to ONNX: variables are constants, calls are inlined, inputs are placeholders."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from onnx import TensorProto

from trtrecipe.errors import StepError
from trtrecipe.graphs import tensorflow_repairs
from trtrecipe.graphs.edit import reset
from trtrecipe.graphs.interface import DTYPES, TensorSpec
from trtrecipe.graphs.shapes import OPEN
from trtrecipe.graphs.tensorflow_runtime import explained

_NUMERIC = frozenset(DTYPES.values()) - {"string"}
_REFERENCE = 100  # what TensorFlow's types.proto adds to a type for references to variables
PLACEHOLDERS = ("Placeholder", "PlaceholderV2")
END = "trtrecipe_output_"
"""How the nodes that end the graph are called, before their position."""


@dataclass(frozen=True)
class Frozen:
    """A graph and what it takes and gives.

    `graph` is a GraphDef. `tensors`: input name → TensorFlow's name of the placeholder's tensor; `outputs` likewise.
    `weights`: constants that a GraphDef has no room for: the tensor of the placeholder that stands for one → its
    values, which lie in a file.
    """

    graph: Any
    inputs: tuple[TensorSpec, ...]
    tensors: Mapping[str, str]
    outputs: Mapping[str, str]
    weights: Mapping[str, TensorProto] = field(default_factory=dict)


def input_spec(name: str, dtype: str, shape: Any, ranks: Mapping[str, int]) -> TensorSpec:
    """What is known of an input. `shape` is a TensorShapeProto; `ranks`: input → number of axes, by the recipe.

    Raises StepError for types that ONNX models of numbers have not, and where nobody says how many axes there are.
    """
    if dtype not in _NUMERIC:
        raise StepError(
            f"input {name} of the model takes values of type {dtype}, and engines take numbers only",
            hint="export a signature whose inputs are floats, integers or booleans",
        )
    if shape.unknown_rank and name not in ranks:
        raise StepError(
            f"the number of axes of input {name} is not known",
            hint=f"write model.inputs.{name}.shape, or export the model with a shape for that input",
        )
    if shape.unknown_rank:
        return TensorSpec(name, dtype, (OPEN,) * ranks[name])
    return TensorSpec(name, dtype, tuple(dim.size if dim.size >= 0 else OPEN for dim in shape.dim))


def cut_at(definition: Any, tensor: str) -> str:
    """Make the tensor an input of the graph, in place; the name of the placeholder's tensor.

    What computed it stays, and goes when nothing needs it.
    """
    name, _, position = tensor.partition(":")
    node = next(node for node in definition.node if node.name == name)
    if node.op in PLACEHOLDERS:
        return f"{name}:0"
    own = _free(f"{name}/given", {node.name for node in definition.node})
    references = {tensor, name} if position in ("", "0") else {tensor}
    for other in definition.node:
        if references.intersection(other.input):
            reset(other.input, [own if entry in references else entry for entry in other.input])
    placeholder = definition.node.add(name=own, op="Placeholder")
    placeholder.attr["dtype"].type = tensor_type(node, int(position or 0)) or 0
    placeholder.attr["shape"].shape.CopyFrom(shape_of(node, int(position or 0)))
    return f"{own}:0"


def mark(definition: Any, tensor: str, name: str) -> str:
    """Add an Identity called `name` of the tensor, in place; its name."""
    node, _, position = tensor.partition(":")
    source = next(each for each in definition.node if each.name == node)
    end = definition.node.add(name=name, op="Identity", input=[tensor])
    end.attr["T"].type = tensor_type(source, int(position or 0)) or 0
    return name


def settle_defaults(definition: Any) -> None:
    """Let placeholders with a default value have it, in place: what is an input has been cut out already."""
    for node in definition.node:
        if node.op == "PlaceholderWithDefault":
            node.op = "Identity"
            kind = node.attr["dtype"].type
            node.attr.clear()
            node.attr["T"].type = kind


def tensor_type(node: Any, position: int) -> int | None:
    """The element type (DataType) of a node's output, by its operator's definition; None where there is none."""
    from tensorflow.python.framework import op_def_registry

    kinds: list[int] = []
    definition = op_def_registry.get(node.op)
    values = dict(node.attr)  # a map of protobuf makes an entry of whatever it is asked for
    for argument in definition.output_arg if definition is not None else ():
        if argument.type_list_attr:
            kinds += values[argument.type_list_attr].list.type if argument.type_list_attr in values else ()
            continue
        kind = values[argument.type_attr].type if argument.type_attr in values else argument.type
        kinds += [kind] * (values[argument.number_attr].i if argument.number_attr in values else 1)
    return kinds[position] % _REFERENCE if 0 <= position < len(kinds) else None


def shape_of(node: Any, position: int = 0) -> Any:
    """The TensorShapeProto of an output of a node as far as the node itself says it; of unknown rank otherwise."""
    from tensorflow.core.framework import tensor_shape_pb2

    noted = node.attr["_output_shapes"].list.shape if "_output_shapes" in node.attr else ()
    if node.op in (*PLACEHOLDERS, "PlaceholderWithDefault") and "shape" in node.attr:
        return node.attr["shape"].shape
    return noted[position] if position < len(noted) else tensor_shape_pb2.TensorShapeProto(unknown_rank=True)


def _free(name: str, taken: Collection[str]) -> str:
    return next(each for each in (name, *(f"{name}_{n}" for n in range(len(taken)))) if each not in taken)


def inlined(definition: Any, outputs: Collection[str]) -> Any:
    """The graph, ending in the nodes `outputs`, with function calls replaced by the functions' bodies.

    tf2onnx converts no calls. Loops and conditions stay functions.
    """
    from tensorflow.core.protobuf import config_pb2, meta_graph_pb2, rewriter_config_pb2
    from tensorflow.python.grappler import tf_optimizer

    meta_graph = meta_graph_pb2.MetaGraphDef()
    meta_graph.graph_def.CopyFrom(definition)
    tensorflow_repairs.let_inline(meta_graph.graph_def)
    meta_graph.collection_def["train_op"].node_list.value.extend(outputs)
    config = config_pb2.ConfigProto()
    rewrite = config.graph_options.rewrite_options
    rewrite.min_graph_nodes = -1
    rewrite.function_optimization = rewriter_config_pb2.RewriterConfig.AGGRESSIVE
    rewrite.optimizers.append("function")
    with explained("TensorFlow cannot inline the model's functions"):
        graph = tf_optimizer.OptimizeGraph(config, meta_graph)
    tensorflow_repairs.expand_functions(graph, ("Expm1", "Log1p"))
    return graph
