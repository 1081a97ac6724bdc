"""Which tensors cannot be negative, as far as the operators that make them tell."""

from __future__ import annotations

from collections.abc import Iterable

from onnx import ModelProto, NodeProto

from trtrecipe.graphs.carried import constants
from trtrecipe.graphs.carried_pairs import Pair
from trtrecipe.graphs.values import array_of

_NEVER = {"Abs", "Exp", "HardSigmoid", "Relu", "Sigmoid", "Softmax", "Softplus", "Sqrt"}
_PASS_ON = {
    "AveragePool",
    "Cast",
    "DepthToSpace",
    "Flatten",
    "Gather",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "Identity",
    "MaxPool",
    "QuantizeLinear",  # read together with the DequantizeLinear behind it
    "DequantizeLinear",
    "Reshape",
    "Slice",
    "SpaceToDepth",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
}
"""Operators whose results are positive where their first input is."""
_ALL = {"Add", "Concat", "Max", "Min", "Mul", "Sum"}


class Signs:
    """Answers for one graph, read before it is changed."""

    def __init__(self, model: ModelProto, pairs: Iterable[Pair]) -> None:
        self._producers = {name: node for node in model.graph.node for name in node.output}
        self._constants = constants(model)
        nodes = model.graph.node
        self._positive = {nodes[i].output[0] for p in pairs if (p.grid.least >= 0).all() for i in p.dequantize}
        self._known: dict[str, bool] = {}

    def never_negative(self, name: str) -> bool:
        """Whether no entry of the tensor can be below 0."""
        pending = [name]
        while pending:
            current = pending[-1]
            asked = [each for each in self._asked(current) if each not in self._known]
            if asked and current not in self._known:
                pending.extend(asked)
                continue
            self._known.setdefault(current, self._decide(current))
            pending.pop()
        return self._known[name]

    def _asked(self, name: str) -> list[str]:
        """The tensors that the answer for `name` follows from."""
        node = self._producers.get(name)
        if node is None or node.domain or name in self._positive:
            return []
        if node.op_type in _ALL:
            return [each for each in node.input if each]
        return [node.input[0]] if node.op_type in _PASS_ON or node.op_type == "Clip" else []

    def _decide(self, name: str) -> bool:
        if name in self._positive:
            return True
        if name in self._constants:
            return bool((array_of(self._constants[name]) >= 0).all())
        node = self._producers.get(name)
        if node is None or node.domain:
            return False
        if node.op_type in _NEVER or self._clips(node):
            return True
        asked = self._asked(name)
        return bool(asked) and all(self._known[each] for each in asked)

    def _clips(self, node: NodeProto) -> bool:
        if node.op_type != "Clip" or len(node.input) < 2 or not node.input[1]:
            return False
        low = self._constants.get(node.input[1])
        return low is not None and bool((array_of(low) >= 0).all())
