"""A frozen TensorFlow graph → ONNX, with tf2onnx, on the CPU."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from onnx import ModelProto, TensorProto

from trtrecipe.errors import StepError
from trtrecipe.graphs import fake_quant, sound, tensorflow_pairs, tensorflow_repairs
from trtrecipe.graphs.frozen import Frozen
from trtrecipe.graphs.names import cleaned, rename_interface
from trtrecipe.graphs.shapes import Shape
from trtrecipe.graphs.sound import listed
from trtrecipe.graphs.tensorflow_runtime import explained

OPSETS = (13, 16, 17, 18)
"""Tried in turn when the recipe asks for none: the oldest devices take 13, some operators need more."""

_RANDOM = re.compile(r"(Stateless|Parameterized)?(Random|TruncatedNormal|Multinomial|Bernoulli|Binomial)")
_SWITCH = re.compile("(Stateless)?Case")
_LEFT_OUT = ("merge_duplication", "q_dq_optimizer")
"""Optimizers of tf2onnx. Which of two equal nodes stays is left to chance in the first, and with it the name: equal
nodes are merged by us. The second moves Q/DQ away from where the model has them."""


@dataclass(frozen=True)
class _Converted:
    """A graph at one opset. `missing`: its nodes that are no ONNX, as `Operator name`."""

    model: ModelProto
    missing: tuple[str, ...]
    notes: tuple[str, ...]


def to_onnx(frozen: Frozen, shapes: Mapping[str, Shape], opset: int | None) -> tuple[ModelProto, tuple[str, ...]]:
    """The frozen graph as ONNX at that opset, or the first of OPSETS that has what it needs; and notes.

    `shapes` are the inputs' decided shapes. Names inside are tf2onnx's still. Raises StepError that names the
    operators which have no conversion: tf2onnx itself would leave them in the graph and call it a success.
    """
    definition = _with_shapes(frozen, shapes)
    tensorflow_repairs.expand_functions(definition, ("Erfc",))  # here, as TFLite's converter knows a GELU by it
    with explained("TensorFlow cannot compute the model's constants"):
        tensorflow_repairs.compute_factors(definition)
    if switches := [f"{node.op} {cleaned(node.name)}" for node in definition.node if _SWITCH.fullmatch(node.op)]:
        raise _without_conversion(switches)  # tf2onnx fails on them
    versions = OPSETS if opset is None else (opset,)
    # The highest comes second: operators that it lacks too have no conversion, and the others need not be tried.
    tried: dict[int, _Converted] = {}
    for version in dict.fromkeys((versions[0], versions[-1], *versions)):
        tried[version] = _convert(definition, frozen, version)
        missing = _operators(tried[version])
        if missing == _operators(tried[versions[0]]) if version == versions[-1] else not missing:
            break
    chosen = min((version for version, converted in tried.items() if not converted.missing), default=None)
    if chosen is None:
        nodes = [_readable(entry) for entry in tried[versions[-1]].missing]
        if random := [node for node in nodes if _RANDOM.match(node)]:
            raise sound.drawing(random)
        raise _without_conversion(nodes)
    model = tried[chosen].model
    tensorflow_repairs.pad_transposed_convolutions(model)
    tensorflow_repairs.round_to_nearest(model)
    rename_interface(model, {tensor: name for name, tensor in frozen.tensors.items()}, frozen.outputs)
    _put_weights(model, frozen.weights)
    lower = max((version for version in tried if version < chosen), default=None)
    notes = () if lower is None else (_opset_note(chosen, _operators(tried[lower])),)
    return model, (*notes, *tried[chosen].notes)


def _without_conversion(nodes: list[str]) -> StepError:
    return StepError(
        "tf2onnx has no conversion for these operators:\n" + listed(nodes),
        hint="replace them in the TensorFlow model by operators that ONNX has",
    )


def _put_weights(model: ModelProto, weights: Mapping[str, TensorProto]) -> None:
    """Inputs that stand for constants become these, in place."""
    for value in [value for value in model.graph.input if value.name in weights]:
        tensor = model.graph.initializer.add()
        tensor.CopyFrom(weights[value.name])
        tensor.name = value.name
        model.graph.input.remove(value)


def _operators(converted: _Converted) -> list[str]:
    return sorted({entry.partition(" ")[0] for entry in converted.missing})


def _opset_note(version: int, missing: list[str]) -> str:
    return f"exported at opset {version}: lower ones have no form for {', '.join(missing)}"


def _readable(entry: str) -> str:
    operator, _, name = entry.partition(" ")
    return f"{operator} {cleaned(name)}"


def _with_shapes(frozen: Frozen, shapes: Mapping[str, Shape]) -> Any:
    """The graph definition with the inputs' known sizes, so that TensorFlow and tf2onnx can use them."""
    definition = type(frozen.graph)()
    definition.CopyFrom(frozen.graph)
    wanted = {frozen.tensors[name].partition(":")[0]: shape for name, shape in shapes.items()}
    for node in definition.node:
        if "_output_shapes" in node.attr:  # from before, and believed over the placeholder's own
            del node.attr["_output_shapes"]
        if node.op == "Placeholder" and node.name in wanted:
            shape = node.attr["shape"].shape
            shape.Clear()
            for entry in wanted[node.name]:
                shape.dim.add(size=entry if isinstance(entry, int) else -1)
    return definition


def _convert(definition: Any, frozen: Frozen, opset: int) -> _Converted:
    """An optimizer of tf2onnx that fails is left out. That takes a copy of the graph before each of them, a tenth of an
    export's time, and few fail: so the first attempt goes without."""
    converted = _attempt(definition, frozen, opset, False) or _attempt(definition, frozen, opset, True)
    assert converted is not None  # a careful attempt is an error, or one
    return converted


def _attempt(definition: Any, frozen: Frozen, opset: int, careful: bool) -> _Converted | None:
    """The conversion; None where an optimizer failed and the attempt is not a careful one."""
    import tensorflow as tf
    from tf2onnx import optimizer, tf_loader, tfonnx

    inputs, outputs = [*frozen.tensors.values(), *frozen.weights], list(frozen.outputs.values())
    optimizers = {name: kind for name, kind in optimizer._optimizers.items() if name not in _LEFT_OUT}
    with (
        explained("tf2onnx cannot convert the model"),
        tensorflow_repairs.failures_noted() as notes,
        tensorflow_pairs.joined_by_layer(),
        tf.Graph().as_default() as graph,
    ):
        optimized = tf_loader.tf_optimize(inputs, outputs, definition)
        fake_quant.require_expressible(optimized)
        fake_quant.keep_from_folding(optimized)
        tf.import_graph_def(optimized, name="")
        converted = tfonnx.process_tf_graph(
            graph,
            continue_on_error=True,
            custom_op_handlers=fake_quant.handlers(),
            opset=opset,
            input_names=inputs,
            output_names=outputs,
        )
        tensorflow_repairs.give_scalars_an_axis(converted)
        tensorflow_repairs.fit_scales(converted)
        try:
            simplified = optimizer.optimize_graph(converted, catch_errors=careful, optimizers=optimizers)
        except Exception:  # whatever it was: the careful attempt takes note of it
            if careful:
                raise
            return None
        model: ModelProto = simplified.make_model("model")
    return _Converted(model, tuple(sound.foreign(model)), tuple(notes))


def unused_inputs(model: ModelProto, names: Collection[str]) -> list[str]:
    """Those of the signature's inputs that the converted graph does not have."""
    present = {value.name for value in model.graph.input}
    return [name for name in names if name not in present]
