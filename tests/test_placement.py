"""quant.sites, quant.qdq: where pairs stand, for graphs made by hand and drawn; and that TensorRT builds the result."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from support.nets import Net, nets, thresholds

from trtrecipe.errors import StepError
from trtrecipe.quant.qdq import insert_qdq, settle
from trtrecipe.quant.sites import Sites, find_sites

RELAXED = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
ACTIVATIONS = ("Relu", "Clip", "Sigmoid", "Softmax")
COPIES = ("MaxPool", "Concat", "Resize", "Flatten", "Reshape", "Transpose")


def read_through_pairs(found: Sites) -> list[tuple[str, str]]:
    """(node, tensor) of every site, the node without its operator."""
    return [(site.node.split()[1], site.activation) for site in found.sites]


# Products


def test_both_inputs_of_a_product_of_activations_get_a_pair_and_softmax_its_exact_range() -> None:
    net = Net()
    places = net.transpose(net.flat("x"), 0, 2, 1)
    net.attention(places)
    found = find_sites(net.model())
    assert read_through_pairs(found) == [
        ("matmul1", "transpose1"),
        ("matmul2", "transpose1"),
        ("matmul3", "transpose1"),
        ("matmul4", "matmul1"),
        ("matmul4", "transpose2"),
        ("matmul5", "softmax1"),
        ("matmul5", "matmul3"),
    ]
    assert [site.slot for site in found.sites[3:]] == [0, 1, 0, 1]
    assert [site.exact for site in found.sites if site.activation == "softmax1"] == [1.0]
    assert settle(found, dict.fromkeys(dict(map(reversed, read_through_pairs(found))), 0.3))["softmax1"] == 1.0


def test_range_of_softmax_is_known_behind_a_copy() -> None:
    net = Net()
    flat = net.flat("x")
    weights = net.add_node("Softmax", [flat], net.shapes[flat], axis=-1)
    net.product(net.transpose(weights, 0, 2, 1), flat)
    found = find_sites(net.model())
    assert {site.activation: site.exact for site in found.sites} == {"transpose1": 1.0, "reshape1": None}


def test_weights_on_the_left_get_one_scale() -> None:
    net = Net()
    flat = net.flat("x")
    net.add_node("MatMul", [net.weights("w", (24, 16)), flat], (2, 24, 64))
    (site,) = find_sites(net.model()).sites
    assert (site.activation, site.slot, site.weight, site.weight_slot, site.axis) == (flat, 1, "w", 0, None)


def test_convolution_with_computed_weights_is_left_alone() -> None:
    net = Net()
    net.conv("x")
    computed = net.add_node("Identity", [net.weights("w", (16, 16, 1, 1))], (16, 16, 1, 1))
    net.relu(computed)
    net.add_node("Conv", ["x", "relu1"], (2, 16, 8, 8))
    found = find_sites(net.model())
    assert [site.node for site in found.sites] == ["Conv conv1"]
    assert "the weights are computed" in found.skipped[0]


def test_products_of_other_types_are_left_alone() -> None:
    net = Net()
    net.conv("x")
    flat = net.flat("x")
    double = net.add_node("Cast", [flat], net.shapes[flat], to=onnx.TensorProto.DOUBLE)
    product = net.product(double, net.transpose(double, 0, 2, 1))
    net.add_node("Cast", [product], net.shapes[product], to=onnx.TensorProto.FLOAT)
    found = find_sites(net.model())
    assert [site.node for site in found.sites] == ["Conv conv1"]
    assert "the inputs are DOUBLE, not FLOAT" in found.skipped[0]


# Small layers


@pytest.mark.parametrize(
    ("inner", "columns", "taken"), [(16, 16, True), (15, 64, False), (64, 15, False), (64, 1, False)]
)
def test_products_below_sixteen_either_way_stay_float(inner: int, columns: int, taken: bool) -> None:
    net = Net(channels=inner)
    net.conv("x")
    net.matmul(net.transpose(net.flat("x"), 0, 2, 1), columns)
    found = find_sites(net.model())
    assert any(site.node == "MatMul matmul1" for site in found.sites) is taken
    assert taken or f"({inner} x {columns}) is not quantized" in found.skipped[0]


@pytest.mark.parametrize(
    ("channels", "group", "kernel", "taken"),
    [(16, 16, 3, True), (16, 16, 1, False), (12, 12, 3, False), (64, 4, 1, True), (32, 4, 1, False)],
)
def test_grouped_convolutions_need_kernels_that_fit(channels: int, group: int, kernel: int, taken: bool) -> None:
    net = Net(channels=channels)
    net.conv("x", 16)
    net.conv("x", channels, kernel, group=group)
    found = find_sites(net.model())
    assert any(site.node == "Conv conv2" for site in found.sites) is taken
    assert taken or f"{channels // group} channels per group" in found.skipped[0]


def test_graph_of_nothing_but_small_layers_is_quantized() -> None:
    net = Net(channels=4)
    net.matmul(net.transpose(net.flat("x"), 0, 2, 1), 4)
    found = find_sites(net.model())
    assert [site.node for site in found.sites] == ["MatMul matmul1"]
    assert found.skipped == ()


# Residual sums


def test_identity_branch_gets_the_pair_wherever_it_stands() -> None:
    for swapped in (False, True):
        net = Net()
        stem = net.relu(net.conv("x"))
        branch = net.conv(stem)
        total = net.add(stem, branch) if swapped else net.add(branch, stem)
        net.relu(total)
        (site,) = [site for site in find_sites(net.model()).sites if site.node == "Add add1"]
        assert (site.activation, site.slot) == (stem, 0 if swapped else 1)


def test_of_two_convolutions_the_longer_branch_is_fused() -> None:
    for swapped in (False, True):
        net = Net()
        stem = net.relu(net.conv("x"))
        shortcut = net.conv(stem, kernel=1)
        deep = net.conv(net.relu(net.conv(stem)))
        net.relu(net.add(deep, shortcut) if swapped else net.add(shortcut, deep))
        (site,) = [site for site in find_sites(net.model()).sites if site.node == "Add add1"]
        assert site.activation == shortcut


def test_of_two_equal_branches_the_second_is_fused() -> None:
    net = Net()
    first, second = net.conv("x"), net.conv("x")
    net.add(first, second)
    assert read_through_pairs(find_sites(net.model()))[2:] == [("add1", first)]


def test_convolution_that_something_else_reads_is_not_fused() -> None:
    net = Net()
    stem = net.relu(net.conv("x"))
    branch = net.conv(stem)
    net.add(branch, stem)
    net.relu(branch)
    assert not any(site.node == "Add add1" for site in find_sites(net.model()).sites)


def test_convolution_that_is_an_output_is_not_fused() -> None:
    net = Net()
    stem = net.relu(net.conv("x"))
    net.add(net.conv(stem), stem)
    assert not any(site.node == "Add add1" for site in find_sites(net.model("conv2", "add1")).sites)


def test_sums_with_constants_or_other_shapes_or_of_one_tensor_are_no_residuals() -> None:
    net = Net()
    net.add(net.conv("x"), net.constant("shift", np.ones((2, 16, 8, 8), np.float32)))
    gate = net.add_node("GlobalAveragePool", ["x"], (2, 16, 1, 1))
    net.add(net.conv("x"), gate)
    net.add(*[net.conv("x")] * 2)
    assert [site.node for site in find_sites(net.model()).sites] == ["Conv conv1", "Conv conv2", "Conv conv3"]


def test_sum_with_a_tensor_of_lower_rank_is_no_residual() -> None:
    net = Net(channels=2, size=2)
    net.add(net.conv("x", 2), net.add_node("ReduceMax", ["x"], (2, 2, 2), axes=[0], keepdims=0))
    net.shapes["add1"] = (2, 2, 2, 2)
    assert [site.node for site in find_sites(net.model()).sites] == ["Conv conv1"]


def test_sum_of_float_convolutions_gets_no_pair() -> None:
    net = Net(channels=12)
    net.conv("x", 16)
    branch = net.conv("x", 12, 3, group=12)
    net.add(branch, "x")
    assert [site.node for site in find_sites(net.model()).sites] == ["Conv conv1"]


# Pools and shared scales


def test_average_pool_in_front_of_a_quantized_layer_reads_a_pair() -> None:
    net = Net()
    pooled = net.pool(net.relu(net.conv("x")), "AveragePool")
    net.head(net.conv(pooled))
    assert read_through_pairs(find_sites(net.model())) == [
        ("conv1", "x"),
        ("averagepool1", "relu1"),
        ("conv2", "averagepool1"),
        ("globalaveragepool1", "conv2"),
        ("matmul1", "flatten1"),
    ]


def test_average_pool_in_front_of_a_float_layer_does_not() -> None:
    net = Net()
    net.head(net.relu(net.conv("x")), columns=10)
    assert read_through_pairs(find_sites(net.model())) == [("conv1", "x")]


def test_average_pools_share_no_scale() -> None:
    net = Net()
    net.conv(net.pool(net.relu(net.conv("x")), "AveragePool"))
    assert find_sites(net.model()).groups == ()


def shared(net: Net) -> tuple[tuple[str, ...], ...]:
    return find_sites(net.model()).groups


def test_max_pool_shares_the_scale_of_its_input() -> None:
    net = Net()
    stem = net.relu(net.conv("x"))
    net.conv(stem)
    net.conv(net.pool(stem))
    assert shared(net) == ((stem, "maxpool1"),)


def test_concat_shares_one_scale_among_those_that_have_a_pair() -> None:
    net = Net()
    first, second = net.relu(net.conv("x")), net.relu(net.conv("x"))
    net.conv(first)
    joined = net.concat(first, second)
    net.conv(joined)
    assert shared(net) == ((first, joined),)


def test_scale_is_shared_across_a_tensor_without_a_pair() -> None:
    net = Net()
    whole = net.relu(net.conv("x", 32))
    sizes = net.constant("sizes", np.int64([16, 16]))
    net.nodes.append(helper.make_node("Split", [whole, sizes], ["left", "right"], "split", axis=1))
    net.shapes |= {"left": (2, 16, 8, 8), "right": (2, 16, 8, 8)}
    net.conv("left")
    net.conv(net.upsample("right"))
    assert shared(net) == (("left", "resize1"),)


def test_resize_that_interpolates_shares_none() -> None:
    net = Net()
    stem = net.relu(net.conv("x"))
    net.conv(stem)
    net.conv(net.upsample(stem))
    model = net.model()
    assert find_sites(model).groups == ((stem, "resize1"),)
    resize = next(node for node in model.graph.node if node.op_type == "Resize")
    next(each for each in resize.attribute if each.name == "mode").s = b"linear"
    assert find_sites(model).groups == ()


@pytest.mark.parametrize(("value", "joined"), [(0.0, True), (1.0, False), (None, True)])
def test_padding_with_zeros_is_a_copy(value: float | None, joined: bool) -> None:
    net = Net()
    stem = net.relu(net.conv("x"))
    net.conv(stem)
    inputs = [stem, net.constant("pads", np.int64([0, 0, 1, 1, 0, 0, 1, 1]))]
    inputs += [] if value is None else [net.constant("value", np.float32(value))]
    net.conv(net.add_node("Pad", inputs, (2, 16, 10, 10)))
    assert bool(shared(net)) is joined


def test_constants_in_a_concat_join_nothing() -> None:
    net = Net()
    extra = net.constant("extra", np.ones((2, 16, 8, 8), np.float32))
    net.shapes["extra"] = (2, 16, 8, 8)
    for _ in range(2):
        net.conv(net.concat(net.relu(net.conv("x")), extra))
    assert shared(net) == ()


def test_the_largest_threshold_of_a_group_serves_all() -> None:
    net = Net()
    stem = net.relu(net.conv("x"))
    net.conv(stem)
    net.conv(net.pool(stem))
    quantized, _ = insert_qdq(net.model(), {"x": 1.0, stem: 2.0, "maxpool1": 3.0})
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in quantized.graph.initializer}
    assert held[f"{stem}/scale"] == held["maxpool1/scale"] == np.float32(3) / np.float32(127)


# Kept nodes


def test_kept_convolution_takes_the_pair_of_its_residual_with_it() -> None:
    net = Net()
    stem = net.relu(net.conv("x"))
    net.add(net.conv(stem), stem)
    model = net.model()
    assert read_through_pairs(find_sites(model)) == [("conv1", "x"), ("conv2", stem), ("add1", stem)]
    assert read_through_pairs(find_sites(model, ["conv2"])) == [("conv1", "x")]
    assert read_through_pairs(find_sites(model, ["add1"])) == [("conv1", "x"), ("conv2", stem)]


def test_kept_layer_takes_the_pair_of_the_pool_in_front_with_it() -> None:
    net = Net()
    net.conv(net.pool(net.conv("x"), "AveragePool"))
    assert read_through_pairs(find_sites(net.model(), {"conv2": "fp32"})) == [("conv1", "x")]


def test_everything_kept_is_refused() -> None:
    net = Net()
    net.conv("x")
    with pytest.raises(StepError, match="every layer that can be quantized is kept") as caught:
        find_sites(net.model(), ["conv1"])
    assert "precision.keep" in (caught.value.hint or "")


# Whatever the graph


@st.composite
def quantized(draw: st.DrawFn) -> tuple[onnx.ModelProto, onnx.ModelProto, list[str]]:
    """A float graph, what it becomes, and the nodes that were kept."""
    model = draw(nets())
    sites = find_sites(model).sites
    named = sorted({model.graph.node[site.index].name for site in sites})
    kept = draw(st.lists(st.sampled_from(named), unique=True, max_size=len(named) - 1)) if len(named) > 1 else []
    try:
        return model, insert_qdq(model, thresholds(model, 7), kept)[0], kept
    except StepError:  # nothing is left
        return model, insert_qdq(model, thresholds(model, 7))[0], []


@RELAXED
@given(quantized())
def test_every_rule_holds(drawn: tuple[onnx.ModelProto, onnx.ModelProto, list[str]]) -> None:
    model, result, kept = drawn
    Rules(model, result, kept).check()


class Rules:
    """The rules again, read off the finished graph."""

    def __init__(self, model: onnx.ModelProto, result: onnx.ModelProto, kept: list[str]) -> None:
        self.model, self.result, self.kept = model, result, kept
        self.made = {name: node for node in result.graph.node for name in node.output}
        self.held = {tensor.name: numpy_helper.to_array(tensor) for tensor in result.graph.initializer}
        self.pairs = {
            node.input[0]: node for node in result.graph.node if node.op_type == "QuantizeLinear"
        }  # tensor → the node that quantizes it
        self.float_nodes = [node for node in result.graph.node if not node.op_type.endswith("QuantizeLinear")]
        self.float_nodes = [node for node in self.float_nodes if node.op_type != "DequantizeLinear"]

    def check(self) -> None:
        self.pairs_are_whole()
        self.each_tensor_has_one_pair()
        self.nodes_read_what_they_should()
        self.residuals_are_fusible()
        self.copies_join_equal_scales()
        self.the_float_graph_is_inside()
        ort.InferenceSession(self.result.SerializeToString())

    def readers(self, name: str) -> list[onnx.NodeProto]:
        return [node for node in self.result.graph.node if name in node.input]

    def paired(self, name: str) -> bool:
        return name in self.made and self.made[name].op_type == "DequantizeLinear"

    def source(self, name: str) -> str:
        """The float tensor behind a pair; the tensor itself without one."""
        return self.made[self.made[name].input[0]].input[0] if self.paired(name) else name

    def scale(self, name: str) -> np.ndarray:
        return self.held[self.pairs[name].input[1]]

    def pairs_are_whole(self) -> None:
        for node in self.pairs.values():
            (dequantize,) = self.readers(node.output[0])
            assert dequantize.op_type == "DequantizeLinear"
            assert list(dequantize.input)[1:] == list(node.input)[1:]
            assert list(dequantize.attribute) == list(node.attribute)
            scale, zero = (self.held[name] for name in node.input[1:])
            assert (scale.dtype, zero.dtype, scale.shape) == (np.float32, np.int8, zero.shape)
            assert (scale > 0).all()
            assert not zero.any()
            assert self.readers(dequantize.output[0])
            assert scale.ndim == (node.input[0] in self.held)  # weights per channel, activations per tensor

    def each_tensor_has_one_pair(self) -> None:
        assert len(self.pairs) == sum(node.op_type == "QuantizeLinear" for node in self.result.graph.node)

    def nodes_read_what_they_should(self) -> None:
        for node in self.float_nodes:
            through = [self.paired(name) for name in node.input]
            if node.name in self.kept or node.op_type in (*ACTIVATIONS, *COPIES):
                assert not any(through), node.name
            elif node.op_type in ("Conv", "MatMul"):
                assert through[:2] in ([True, True], [False, False]), node.name
                assert not any(through[2:]), "a pair on a bias"
                assert all(through[:2]) or self.is_small(node), node.name

    def is_small(self, node: onnx.NodeProto) -> bool:
        weights = self.held[node.input[1]]
        if node.op_type == "MatMul":
            return min(weights.shape) < 16
        grouped = any(each.name == "group" and each.i > 1 for each in node.attribute)
        return grouped and weights.shape[1] < 16 and min(weights.shape[2:]) < 3

    def residuals_are_fusible(self) -> None:
        outputs = {value.name for value in self.result.graph.output}
        for node in self.float_nodes:
            if node.op_type != "Add" or node.name in self.kept:
                continue
            fusible = [
                name in self.made
                and self.made[name].op_type == "Conv"
                and self.paired(self.made[name].input[0])
                and len(self.readers(name)) == 1
                and name not in outputs
                for name in map(self.source, node.input)
            ]
            through = [self.paired(name) for name in node.input]
            if sum(through) == 1:
                assert fusible[through.index(False)]
            else:
                assert not any(through)
                assert not any(fusible) or self.source(node.input[0]) == self.source(node.input[1]) or self.kept

    def copies_join_equal_scales(self) -> None:
        for node in self.float_nodes:
            if node.op_type in COPIES:
                inputs = node.input if node.op_type == "Concat" else node.input[:1]
                scales = [self.scale(name) for name in (*inputs, node.output[0]) if name in self.pairs]
                assert len({float(scale) for scale in scales}) <= 1, node.name

    def the_float_graph_is_inside(self) -> None:
        stripped = onnx.ModelProto()
        stripped.CopyFrom(self.result)
        del stripped.graph.node[:]
        for node in self.float_nodes:
            copy = stripped.graph.node.add()
            copy.CopyFrom(node)
            copy.input[:] = [self.source(name) for name in node.input]
        del stripped.graph.initializer[len(self.model.graph.initializer) :]
        assert stripped == self.model


@RELAXED
@given(nets(), st.data())
def test_keeping_more_only_takes_pairs_away(model: onnx.ModelProto, data: st.DataObject) -> None:
    everything = find_sites(model).sites
    kept = data.draw(st.lists(st.sampled_from([node.name for node in model.graph.node]), unique=True))
    try:
        left = find_sites(model, kept).sites
    except StepError:
        return
    assert set(left) <= set(everything)
    assert not {model.graph.node[site.index].name for site in left} & set(kept)


@RELAXED
@given(nets())
def test_knowing_the_shapes_beforehand_changes_nothing(model: onnx.ModelProto) -> None:
    assert find_sites(onnx.shape_inference.infer_shapes(model)) == find_sites(model)


# Operator sets, and TensorRT


def everything(opset: int) -> onnx.ModelProto:
    """Every rule once: stem, residual, both kinds of pool, Concat, Resize, attention, classifier."""
    net = Net(seed=2)
    stem = net.relu(net.conv("x"))
    block = net.relu(net.add(net.conv(stem), stem))
    down = net.concat(net.pool(block), net.pool(block, "AveragePool"))
    up = net.relu(net.add(net.conv(net.upsample(net.conv(down, 16, 1))), net.conv(block, kernel=1)))
    places = net.transpose(net.flat(up), 0, 2, 1)
    net.attention(places)
    net.head(up, 16)
    return insert_qdq(net.model(opset=opset), thresholds(net.model(opset=opset), 1))[0]


@pytest.mark.parametrize("opset", [13, 17, 19, 21, 23])
def test_the_same_pairs_at_every_opset(opset: int) -> None:
    model = everything(opset)
    onnx.checker.check_model(model, full_check=True)
    ort.InferenceSession(model.SerializeToString())
    assert model.opset_import[0].version == opset
    assert model.graph == everything(13).graph
    names = {each.name for node in model.graph.node if node.op_type.endswith("Linear") for each in node.attribute}
    assert names == {"axis"}


@pytest.mark.parametrize("opset", [13, 17, 19, 21])
def test_tensorrt_for_rtx_builds_it(opset: int, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="the rtx extra is not installed")
    from trtrecipe.engines import tensorrt_build

    tensorrt_build.build_for_rtx(everything(opset), tmp_path / "engine", {}, None)
    assert (tmp_path / "engine").stat().st_size > 1000
