"""Small float graphs for tests of quantization, made by hand or drawn by Hypothesis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

IR_VERSIONS = {13: 7, 17: 8, 19: 9, 21: 10, 23: 11}
"""Operator set → the file format that came with it, as in onnx's table of releases."""


class Net:
    """Builds a graph on one input x [2, channels, size, size]. Tensors are named after the node that makes them.

    With `grid`, weights are whole multiples of a power of two, and so are their scales: everything can then be computed
    without rounding.
    """

    def __init__(self, seed: int = 0, channels: int = 16, size: int = 8, grid: bool = False) -> None:
        self.random = np.random.default_rng(seed)
        self.grid = grid
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.shapes: dict[str, tuple[int, ...]] = {"x": (2, channels, size, size)}
        self.counts: dict[str, int] = {}

    def constant(self, name: str, values: np.ndarray) -> str:
        self.constants.append(numpy_helper.from_array(values, name))
        return name

    def weights(self, name: str, shape: Sequence[int], axis: int = 0) -> str:
        if not self.grid:
            fan = np.prod(shape) / shape[axis]
            return self.constant(name, (self.random.standard_normal(shape) / np.sqrt(fan)).astype(np.float32))
        whole = np.moveaxis(self.random.integers(-3, 4, shape), axis, 0)
        whole.reshape(len(whole), -1)[:, 0] = 127  # so that the scale of each channel is the power of two
        return self.constant(name, (np.moveaxis(whole, 0, axis) / 128).astype(np.float32))

    def add_node(self, operator: str, inputs: Sequence[str], shape: tuple[int, ...], **attributes: object) -> str:
        number = self.counts[operator] = self.counts.get(operator, 0) + 1
        name = f"{operator.lower()}{number}"
        self.nodes.append(helper.make_node(operator, inputs, [name], name, **attributes))
        self.shapes[name] = shape
        return name

    def conv(self, x: str, filters: int = 16, kernel: int = 3, group: int = 1, bias: bool = True) -> str:
        n, channels, rows, columns = self.shapes[x]
        name = f"conv{self.counts.get('Conv', 0) + 1}"
        inputs = [x, self.weights(f"{name}/w", (filters, channels // group, kernel, kernel))]
        if bias:
            values = self.random.integers(-64, 65, filters) / 64 if self.grid else self.random.standard_normal(filters)
            inputs.append(self.constant(f"{name}/b", values.astype(np.float32)))
        pads = [kernel // 2] * 4
        return self.add_node("Conv", inputs, (n, filters, rows, columns), pads=pads, group=group)

    def relu(self, x: str) -> str:
        return self.add_node("Relu", [x], self.shapes[x])

    def add(self, a: str, b: str) -> str:
        return self.add_node("Add", [a, b], self.shapes[a])

    def concat(self, *parts: str) -> str:
        n, _, *rest = self.shapes[parts[0]]
        return self.add_node("Concat", parts, (n, sum(self.shapes[part][1] for part in parts), *rest), axis=1)

    def pool(self, x: str, operator: str = "MaxPool") -> str:
        n, channels, rows, columns = self.shapes[x]
        shape = (n, channels, rows // 2, columns // 2)
        return self.add_node(operator, [x], shape, kernel_shape=[2, 2], strides=[2, 2])

    def upsample(self, x: str) -> str:
        n, channels, rows, columns = self.shapes[x]
        scales = self.constant(f"scales{len(self.constants)}", np.float32([1, 1, 2, 2]))
        shape = (n, channels, 2 * rows, 2 * columns)
        return self.add_node(
            "Resize",
            [x, "", scales],
            shape,
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )

    def head(self, x: str, columns: int = 16) -> str:
        """Global pooling and a classifier."""
        n, channels, _, _ = self.shapes[x]
        x = self.add_node("GlobalAveragePool", [x], (n, channels, 1, 1))
        x = self.add_node("Flatten", [x], (n, channels))
        return self.matmul(x, columns)

    def matmul(self, x: str, columns: int) -> str:
        *rest, channels = self.shapes[x]
        name = f"matmul{self.counts.get('MatMul', 0) + 1}"
        return self.add_node("MatMul", [x, self.weights(f"{name}/w", (channels, columns), 1)], (*rest, columns))

    def product(self, a: str, b: str) -> str:
        return self.add_node("MatMul", [a, b], (*self.shapes[a][:-1], self.shapes[b][-1]))

    def transpose(self, x: str, *perm: int) -> str:
        return self.add_node("Transpose", [x], tuple(self.shapes[x][axis] for axis in perm), perm=perm)

    def flat(self, x: str) -> str:
        """[N, C, H, W] → [N, C, H x W]."""
        n, channels, rows, columns = self.shapes[x]
        shape = self.constant(f"shape{len(self.constants)}", np.int64([0, 0, rows * columns]))
        return self.add_node("Reshape", [x, shape], (n, channels, rows * columns))

    def attention(self, x: str) -> str:
        """One head over places [N, places, width]."""
        width = self.shapes[x][-1]
        query, key, value = (self.matmul(x, width) for _ in range(3))
        products = self.product(query, self.transpose(key, 0, 2, 1))
        weights = self.add_node("Softmax", [products], self.shapes[products], axis=-1)
        return self.product(weights, value)

    def model(self, *outputs: str, opset: int = 13) -> onnx.ModelProto:
        """The graph, checked. Every tensor that nothing reads is an output unless some are named."""
        read = {name for node in self.nodes for name in node.input}
        named = outputs or [node.output[0] for node in self.nodes if node.output[0] not in read]
        values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, self.shapes[name]) for name in ("x", *named)]
        graph = helper.make_graph(self.nodes, "net", values[:1], values[1:], self.constants)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=IR_VERSIONS[opset])
        onnx.checker.check_model(made, full_check=True)
        return made


@st.composite
def nets(draw: st.DrawFn, grid: bool = False) -> onnx.ModelProto:
    """Graphs of convolutions, activations, sums, concatenations and pools in any order, often with a classifier."""
    net = Net(draw(st.integers(0, 2**16)), channels=draw(st.sampled_from([8, 16])), grid=grid)
    net.relu(net.conv("x"))
    for _ in range(draw(st.integers(1, 7))):
        _grow(draw, net, grid)
    images = [name for name, shape in net.shapes.items() if len(shape) == 4 and name != "x"]
    if draw(st.booleans()):
        net.head(draw(st.sampled_from(images)), 16 if grid else draw(st.sampled_from([10, 16])))
    return net.model()


def _grow(draw: st.DrawFn, net: Net, grid: bool) -> None:
    """One more piece, on tensors that are there: later ones are taken more often, so that nets grow deep."""
    images = [name for name, shape in net.shapes.items() if len(shape) == 4]
    x = draw(st.sampled_from(images[-3:]))
    alike = [name for name in images if net.shapes[name] == net.shapes[x] and name != x]
    level = [name for name in images if net.shapes[name][2:] == net.shapes[x][2:]]
    kinds = ["conv", "conv", "conv-relu", "depthwise", "relu", "concat"]
    kinds += ["add", "conv-add", "conv-add"] if alike or net.shapes[x][1] == 16 else []
    kinds += ["max", "average"] if net.shapes[x][2] > 2 else ["up"]
    kind = draw(st.sampled_from(kinds))
    kernel = draw(st.sampled_from([1, 3]))
    if kind == "conv":
        net.conv(x, draw(st.sampled_from([8, 16])), kernel, bias=draw(st.booleans()))
    elif kind == "conv-relu":
        net.relu(net.conv(x, 16, kernel))
    elif kind == "depthwise":
        net.conv(x, net.shapes[x][1], 3 if grid else kernel, group=net.shapes[x][1])
    elif kind == "relu":
        net.relu(x)
    elif kind == "concat":
        net.concat(x, draw(st.sampled_from(level)))
    elif kind == "add" and alike:
        net.add(*draw(st.permutations([x, draw(st.sampled_from(alike))])))
    elif kind in ("add", "conv-add"):
        branch = net.conv(x, net.shapes[x][1], kernel)
        other = draw(st.sampled_from([x, *alike]))
        net.relu(net.add(*draw(st.permutations([branch, other]))))
    elif kind == "up":
        net.upsample(x)
    else:
        net.pool(x, "MaxPool" if kind == "max" else "AveragePool")


def thresholds(model: onnx.ModelProto, seed: int, powers: bool = False) -> Mapping[str, float]:
    """A threshold for every tensor, about the size of its values; with `powers`, its scale is a power of two."""
    random = np.random.default_rng(seed)
    names = [value.name for value in model.graph.input] + [name for node in model.graph.node for name in node.output]
    if powers:
        return {name: 127.0 * 2.0 ** int(random.integers(-6, -3)) for name in names}
    return {name: float(np.float32(random.uniform(0.5, 4))) for name in names}
