"""Quantization that a model brings along → the form that every TensorRT with explicit quantization takes.

That is: INT8 with zero point 0, FP32 constant scales, weights in FP32 in front of their pair, biases in floating point.
Where the model's own integers are symmetric, each value stays what it was, to the last bit.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from trtrecipe.graphs import carried_pairs
from trtrecipe.graphs.carried import DEQUANTIZE, QUANTIZE, carries, constants, is_pair_node
from trtrecipe.graphs.carried_grid import HIGHEST, LOWEST, Array
from trtrecipe.graphs.carried_layout import move_to_floats, move_to_weights
from trtrecipe.graphs.carried_pairs import Pair
from trtrecipe.graphs.carried_report import Report
from trtrecipe.graphs.carried_signs import Signs
from trtrecipe.graphs.edit import attribute, consumers, replace_uses, reset, tensor_names
from trtrecipe.graphs.names import Unique
from trtrecipe.graphs.passes import simplify
from trtrecipe.graphs.values import array_of

WEIGHTS = {"Conv": (1,), "ConvTranspose": (1,), "Gemm": (0, 1), "MatMul": (0, 1)}
"""Operator → inputs whose constants TensorRT quantizes. Any other constant is as well a float."""

_HALF_LARGEST = 65504.0


def normalise(model: ModelProto, without: Collection[str] = ()) -> tuple[ModelProto, list[str]]:
    """The simplified `model` with its pairs in TensorRT's form, simplified again; and sentences on them.

    `without`: passes that simplifying leaves out. A model without pairs comes back as it is. Raises StepError as
    `explicit` does.
    """
    if not carries(model):
        return model, []
    while move_to_floats(model):
        model = simplify(model, without)
    while move_to_weights(model):
        model = simplify(model, without)
    notes = explicit(model)
    drop_repeated(model)
    return simplify(model, without), notes


def drop_repeated(model: ModelProto) -> None:
    """Let what follows a pair with the scale of the pair right before it read the first one, in place.

    Dequantized integers come out of the same grid as they were. `model` is in explicit form.
    """
    held = {name: array_of(tensor) for name, tensor in constants(model).items()}
    makers = {name: node for node in model.graph.node for name in node.output}
    replaced: dict[str, str] = {}
    for node in model.graph.node:
        before = makers.get(node.input[0]) if node.op_type == QUANTIZE else None
        if before is None or not (is_pair_node(node) and is_pair_node(before)) or before.op_type != DEQUANTIZE:
            continue
        alike = np.array_equal(held[node.input[1]], held[before.input[1]])
        if alike and attribute(node, "axis") == attribute(before, "axis"):
            replaced[node.output[0]] = replaced.get(before.input[0], before.input[0])
    replace_uses(model.graph, replaced)


def explicit(model: ModelProto) -> list[str]:
    """Bring the model's pairs into TensorRT's form, in place; sentences on what they are and on what changed.

    A pair that is symmetric INT8 already, or UINT8 around 128, keeps its scale. Any other gets max(|min|, |max|) / 127
    of the range that its integers stand for; a range that ends at 0 stands for a ReLU (tools leave the node itself out
    then), so one is put in front unless the tensor cannot cross 0 anyway. Pairs stay where they are. Constants that are
    no weights of WEIGHTS, biases above all, become the floats that they stood for. Raises StepError as `read` does.
    """
    pairs = carried_pairs.read(model)
    work = _Work(model, pairs)
    by_position = {index: pair for pair in pairs for index in carried_pairs.positions([pair])}
    nodes: list[NodeProto] = []
    for index, node in enumerate(model.graph.node):
        pair = by_position.get(index)
        if pair is None:
            nodes.append(node)
        elif index == (pair.dequantize[0] if pair.quantize is None else pair.quantize):
            nodes.extend(work.rewrite(pair))
    reset(model.graph.node, nodes)
    return work.report.notes()


class _Work:
    """Makes the new nodes and constants of one pair after the other."""

    def __init__(self, model: ModelProto, pairs: Collection[Pair]) -> None:
        self.graph = model.graph
        self.nodes = list(model.graph.node)
        self.constants = constants(model)
        self.readers = consumers(model.graph)
        self.outputs = {value.name for value in model.graph.output}
        self.signs = Signs(model, pairs)
        self.names = Unique(tensor_names(model.graph) | {node.name for node in model.graph.node})
        self.report = Report()

    def rewrite(self, pair: Pair) -> Iterator[NodeProto]:
        """The nodes in place of the pair's, in order."""
        if self._is_explicit(pair):
            self.report.weights += pair.constant
            self.report.activations += not pair.constant
            yield from (self.nodes[index] for index in carried_pairs.positions([pair]))
            return
        if pair.constant:
            yield from self._constant(pair)
            return
        self.report.activations += 1
        source = pair.source
        if pair.half:
            source = self._claim(f"{pair.source}/float32")
            yield self._cast(pair.source, source, TensorProto.FLOAT)
        bound = self._bound(pair, source)
        if bound is not None:
            source = bound.output[0]
            yield bound
        self._note_change(pair)
        yield from self._pair(pair, source, pair.dequantize, pair.grid.symmetric())

    def _is_explicit(self, pair: Pair) -> bool:
        """Whether the pair is in TensorRT's form already, to the last attribute that may matter."""
        if pair.quantize is None or pair.clip is not None or pair.half or pair.grid.zero.any() or pair.grid.low >= 0:
            return False
        nodes = [self.nodes[index] for index in carried_pairs.positions([pair])]
        plain = {"axis"} if pair.grid.axis is not None else set()
        scales = {tuple(self.constants[node.input[1]].dims) for node in nodes}
        return (
            all(len(node.input) == 3 and {each.name for each in node.attribute} == plain for node in nodes)
            and scales == {pair.grid.scale.shape}
            and (not pair.constant or all(self._is_weight(index) for index in pair.dequantize))
            and not (pair.constant and (pair.grid.scale > _HALF_LARGEST).any())
        )

    # Constants

    def _constant(self, pair: Pair) -> Iterator[NodeProto]:
        grid = pair.grid
        values = array_of(self.constants[pair.source])
        integers = grid.quantize(values.astype(np.float32)) if pair.integers is None else pair.integers
        ends = [index for index in pair.dequantize if self._is_weight(index)] if grid.low >= -255 else []
        floats = grid.dequantize(integers)
        for index in pair.dequantize:
            if index not in ends:
                self._float(index, floats, pair)
        if not ends:
            return
        self.report.weights += 1
        scale = grid.symmetric()
        dead = (scale > _HALF_LARGEST) & _all_zero(integers, grid.zero, grid.axis)
        scale = np.where(dead, np.float32(1), scale)  # a scale that no FP16 holds, for nothing but zeros
        kept = grid.fits().all() and pair.integers is None and grid.least.min() <= LOWEST and not dead.any()
        source = pair.source
        if not kept or pair.half:
            # Rounding to the model's own integers first costs nothing where the scale stays, as the same ones come out.
            inside = floats if grid.fits().all() else np.clip(floats, *_along(grid.bounds(), grid.axis, floats.ndim))
            source = self._add(f"{pair.source}/float32", inside.astype(np.float32))
        self._note_change(pair)
        yield from self._pair(pair, source, ends, scale)

    def _is_weight(self, index: int) -> bool:
        """Whether an operator that INT8 weights are for reads the DequantizeLinear's result, or the caller does."""
        names = [self.nodes[index].output[0]]
        for name in names:  # grows: a Cast in between stands for another precision of the operator
            if name in self.outputs:
                return True
            for node in self.readers.get(name, []):
                slots = () if node.domain else WEIGHTS.get(node.op_type, ())
                if name in {node.input[slot] for slot in slots if slot < len(node.input)}:
                    return True
                if node.op_type == "Cast" and not node.domain:
                    names.append(node.output[0])
        return False

    def _float(self, index: int, floats: Array, pair: Pair) -> None:
        """The DequantizeLinear's result as a constant of that name."""
        name = self.nodes[index].output[0]
        values = floats.astype(np.float16 if pair.half else np.float32)
        self.graph.initializer.append(numpy_helper.from_array(values, name))
        self.report.floats.append(pair.source)

    # Activations

    def _bound(self, pair: Pair, source: str) -> NodeProto | None:
        """The node that keeps values inside the model's range where the new grid reaches beyond it, if one is due."""
        low, high = (float(bound) for bound in pair.grid.bounds())
        least, most = int(pair.grid.least), int(pair.grid.most)
        if least >= 0 and most >= (HIGHEST if pair.grid.fits() else 0):
            if least == 0 and self.signs.never_negative(pair.source):
                return None
            self.report.bounded.append(pair.source)
            if least == 0:
                result = self._claim(f"{pair.source}/Relu")
                return helper.make_node("Relu", [source], [result], name=result)
            return self._clip(pair.source, source, low, None)
        if pair.grid.fits() and (least > LOWEST + 1 or most < HIGHEST):  # integers clipped by the model itself
            self.report.bounded.append(pair.source)
            return self._clip(pair.source, source, low, high)
        if most <= 0:
            self.report.bounded.append(pair.source)
            return self._clip(pair.source, source, None, high)
        if not pair.grid.fits():
            self.report.open_ends.append(pair.source)
        return None

    def _clip(self, name: str, source: str, low: float | None, high: float | None) -> NodeProto:
        result = self._claim(f"{name}/Clip")
        bounds = [
            "" if bound is None else self._add(f"{name}/{end}", np.array(bound, np.float32))
            for end, bound in (("min", low), ("max", high))
        ]
        while not bounds[-1]:
            bounds.pop()
        return helper.make_node("Clip", [source, *bounds], [result], name=result)

    # Both

    def _pair(self, pair: Pair, source: str, ends: Collection[int], scale: Array) -> Iterator[NodeProto]:
        uniform = scale.ndim == 0
        attributes: dict[str, Any] = {} if uniform else {"axis": pair.grid.axis}
        names = [self._add(f"{pair.source}/scale", scale.astype(np.float32))]
        names.append(self._add(f"{pair.source}/zero_point", np.zeros(scale.shape, np.int8)))
        if pair.quantize is None:
            first = self._claim(f"{pair.source}/quantized")
            name = first
        else:
            first, name = self.nodes[pair.quantize].output[0], self.nodes[pair.quantize].name
        yield helper.make_node(QUANTIZE, [source, *names], [first], name=name, **attributes)
        for index in ends:
            node = self.nodes[index]
            result = self._claim(f"{node.output[0]}/float32") if pair.half else node.output[0]
            yield helper.make_node(DEQUANTIZE, [first, *names], [result], name=node.name, **attributes)
            if pair.half:
                yield self._cast(result, node.output[0], TensorProto.FLOAT16)

    def _note_change(self, pair: Pair) -> None:
        fits = pair.grid.fits()
        if fits.all():
            return
        new = pair.grid.symmetric()
        ratio = np.where(fits, 1.0, new.astype(np.float64) / pair.grid.scale)
        worst = int(np.argmax(ratio))
        low, high = (float(np.ravel(bound)[worst]) for bound in pair.grid.bounds())
        self.report.wider.append(
            (float(np.ravel(ratio)[worst]), pair.source, (low, high), float(np.ravel(new)[worst]) * HIGHEST)
        )

    def _cast(self, source: str, result: str, kind: int) -> NodeProto:
        return helper.make_node("Cast", [source], [result], name=self._claim(f"{result}/Cast"), to=kind)

    def _add(self, wanted: str, values: Array) -> str:
        name = self._claim(wanted)
        self.graph.initializer.append(numpy_helper.from_array(values, name))
        return name

    def _claim(self, wanted: str) -> str:
        return self.names.claim(wanted)


def _all_zero(integers: Array, zero: Array, axis: int | None) -> Array:
    """Whether all values are 0: one answer, or one per index of `axis`."""
    moved = integers.reshape(1, -1) if axis is None else np.moveaxis(integers, axis, 0).reshape(len(zero), -1)
    answer: Array = (moved == zero.reshape(-1, 1)).all(axis=1).reshape(zero.shape)
    return answer


def _along(bounds: tuple[Array, Array], axis: int | None, rank: int) -> tuple[Array, Array]:
    if axis is None:
        return bounds
    shape = [-1 if each == axis else 1 for each in range(rank)]
    return bounds[0].reshape(shape), bounds[1].reshape(shape)
