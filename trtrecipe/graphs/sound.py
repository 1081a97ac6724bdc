"""What a source graph must be before anything is done with it. Each check raises StepError naming the nodes."""

from __future__ import annotations

import onnx
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto

from trtrecipe.errors import StepError
from trtrecipe.graphs.carried import INTEGER_OPERATORS
from trtrecipe.graphs.edit import DEFAULT_DOMAINS, all_graphs, all_nodes, all_tensors, attribute
from trtrecipe.graphs.files import opset
from trtrecipe.graphs.light import light
from trtrecipe.graphs.values import array_of, is_outside

LISTED = 8
"""Most lines that one message lists."""

_DOMAINS = (*DEFAULT_DOMAINS, "ai.onnx.ml")
_RANDOM = {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}


def check(model: ModelProto) -> None:
    """The full check of ONNX itself: operators, types, shapes, order of nodes."""
    slim, large = light(model)
    try:
        onnx.checker.check_model(slim, full_check=True)
        for tensor in large:
            if not is_outside(tensor):
                onnx.checker.check_tensor(tensor)
    except Exception as error:  # the checker raises several unrelated types, all of them about the model
        raise StepError(
            f"the graph is not valid ONNX: {' '.join(str(error).split())[:500]}", hint="export the model again"
        ) from error


def require_text(model: ModelProto) -> None:
    """Refuse names that are no text: protobuf hands them over as bytes, on which all else would fail."""
    for graph in all_graphs(model.graph):
        values = [value.name for value in (*graph.input, *graph.output, *graph.value_info)]
        nodes = [
            name
            for node in graph.node
            for name in (node.op_type, node.domain, node.name, *node.input, *node.output, *map(_name, node.attribute))
        ]
        constants = [tensor.name for tensor in graph.initializer]
        dims = [
            dim.dim_param
            for value in (*graph.input, *graph.output, *graph.value_info)
            for dim in value.type.tensor_type.shape.dim
        ]
        for name in (graph.name, *values, *nodes, *constants, *dims):
            if isinstance(name, bytes):
                raise StepError(
                    f"the model is damaged: the name {name!r} is no text", hint="compare the file with the original"
                )


def _name(attribute: AttributeProto) -> str:
    return attribute.name


def require_loadable(model: ModelProto) -> None:
    """Refuse a graph that ONNX Runtime cannot load on the CPU: nothing could be measured with it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(light(model)[0].SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions share no public base class
        raise StepError(
            f"ONNX Runtime cannot load the graph: {' '.join(str(error).split())[:500]}",
            hint="a newer onnxruntime may have the operator",
        ) from error


def foreign(model: ModelProto) -> list[str]:
    """The nodes whose operator ONNX does not define at the model's opset, as `Operator name`."""
    version = opset(model)
    return [
        f"{node.domain + '.' if node.domain else ''}{node.op_type} {node.name or ' '.join(node.output)}"
        for node in all_nodes(model.graph)
        if not _defined(node, version)
    ]


def require_known_operators(model: ModelProto) -> None:
    """Refuse operators of other tools and of training."""
    if found := foreign(model):
        raise StepError(
            "the model uses operators that ONNX does not define at its opset:\n" + listed(found),
            hint="export it with ONNX's own operators only",
        )


def require_inference_form(model: ModelProto) -> None:
    """Refuse a graph in training mode, a random one, one that computes on integers, one without inputs or outputs.

    Quantization in the form of Q/DQ pairs is none of these: prepare brings it into TensorRT's form.
    """
    if training := [_label(node) for node in all_nodes(model.graph) if _trains(node, model)]:
        raise StepError("the model is in training mode:\n" + listed(training), hint="export it for inference")
    if random := [_label(node) for node in all_nodes(model.graph) if node.op_type in _RANDOM]:
        raise drawing(random)
    if quantized := [_label(node) for node in all_nodes(model.graph) if node.op_type in INTEGER_OPERATORS]:
        raise StepError(
            "the model is quantized with operators that compute on integers, which TensorRT has not:\n"
            + listed(quantized),
            hint="quantize it with QuantizeLinear/DequantizeLinear around float operators (ONNX Runtime: "
            "quantize_static with quant_format=QDQ), or give the float model and let trtrecipe quantize it",
        )
    constant = {tensor.name for tensor in model.graph.initializer}
    if all(value.name in constant for value in model.graph.input):
        raise StepError("the model has no inputs: its outputs are constants", hint="export a model that takes inputs")
    if not model.graph.output:
        raise StepError("the model has no outputs", hint="export the model again")


def drawing(nodes: list[str]) -> StepError:
    """The error for a model with such nodes: nothing that is made of it can be compared with it."""
    return StepError(
        "the model draws random numbers while it computes, so no two runs agree:\n" + listed(nodes),
        hint="export it for inference (training=False, without layers of noise), or make the numbers an input",
    )


def require_one_file(model: ModelProto) -> None:
    """Refuse values that lie in other files and that `external_data`, which folds them, saw in none."""
    for tensor in all_tensors(model.graph):
        if tensor.data_location == TensorProto.EXTERNAL:
            raise StepError(
                f"the model keeps the values of {tensor.name} elsewhere, and where is not said in a form that is read",
                hint="save the model again: onnx.save(model, 'model.onnx', save_as_external_data=True)",
            )


def require_dense(model: ModelProto) -> None:
    """Refuse sparse weights."""
    if any(graph.sparse_initializer for graph in all_graphs(model.graph)):
        raise StepError("the model has sparse weights; they are not supported", hint="export it with dense weights")


def listed(lines: list[str]) -> str:
    """The lines, indented; the first few where there are many."""
    more = [f"and {len(lines) - LISTED} more"] if len(lines) > LISTED else []
    return "\n".join(f"  {line}" for line in lines[:LISTED] + more)


def _label(node: NodeProto) -> str:
    return f"{node.op_type} {node.name or ' '.join(node.output)}"


def _defined(node: NodeProto, version: int) -> bool:
    if node.domain not in _DOMAINS:
        return False
    if node.domain not in DEFAULT_DOMAINS:
        return bool(onnx.defs.has(node.op_type, node.domain))
    return bool(onnx.defs.has(node.op_type, version, ""))


def _trains(node: NodeProto, model: ModelProto) -> bool:
    if node.op_type == "BatchNormalization":
        return bool(attribute(node, "training_mode", 0)) or len([name for name in node.output if name]) > 1
    if node.op_type == "Dropout" and len(node.input) > 2 and node.input[2]:
        constants = {tensor.name: tensor for tensor in model.graph.initializer}
        for other in all_nodes(model.graph):
            if other.op_type == "Constant" and other.output[0] == node.input[2]:
                return bool(array_of(attribute(other, "value")))
        mode = constants.get(node.input[2])
        return mode is None or bool(array_of(mode))
    return False
