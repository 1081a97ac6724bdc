"""graphs.float16: what becomes FP16, what stays, and that the result runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from trtrecipe.errors import StepError
from trtrecipe.graphs import float16
from trtrecipe.graphs.canonical import canonical
from trtrecipe.graphs.edit import all_nodes
from trtrecipe.graphs.float16 import to_float16
from trtrecipe.graphs.rounded import rounded
from trtrecipe.steps import convert

F, H, I64, I32 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64, TensorProto.INT32


def constant(name: str, value: object, dtype: type = np.float32) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(value, dtype), name)


def make(
    nodes, constants=(), x=("n", "a", "b", "c"), y=("d", "e", "f", "g"), opset: int = 13, out: int = F
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", F, x)],
        [helper.make_tensor_value_info("y", out, y)],
        list(constants),
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def types(model: onnx.ModelProto) -> dict[str, int]:
    graph = model.graph
    found = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}
    return found | {tensor.name: tensor.data_type for tensor in graph.initializer}


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(["y"], {"x": x})[0]


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


node = helper.make_node


def test_inside_is_fp16_and_the_border_fp32() -> None:
    model = make(
        [node("Add", ["x", "c"], ["a"]), node("Relu", ["a"], ["r"]), node("Mul", ["r", "r"], ["y"])], [constant("c", 1)]
    )
    converted, notes = to_float16(model)
    assert operators(converted) == ["Cast", "Add", "Relu", "Mul", "Cast"]
    held = types(converted)
    assert (held["x"], held["y"]) == (F, F)
    assert (held["c"], held["a"], held["r"]) == (H, H, H)
    assert notes == []
    x = np.ones((1, 4, 4, 4), np.float32)
    np.testing.assert_array_equal(run(converted, x), 4 * x)


def test_qdq_stays_fp32_below_opset_19() -> None:
    nodes = [
        node("Relu", ["x"], ["r"]),
        node("QuantizeLinear", ["r", "s", "z"], ["q"]),
        node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        node("Relu", ["d"], ["y"]),
    ]
    constants = [constant("s", 0.5), constant("z", 0, np.int8)]
    converted, _ = to_float16(make(nodes, constants))
    expected = ["Cast", "Relu", "Cast", "QuantizeLinear", "DequantizeLinear", "Cast", "Relu", "Cast"]
    assert operators(converted) == expected
    assert types(converted)["s"] == F
    converted, _ = to_float16(make(nodes, constants, opset=19))
    assert operators(converted) == ["Cast", "Relu", "QuantizeLinear", "DequantizeLinear", "Relu", "Cast"]
    assert types(converted)["s"] == H


def test_scale_too_small_for_fp16_keeps_its_pair_fp32() -> None:
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["q"], "quantize"),
        node("DequantizeLinear", ["q", "s", "z"], ["d"], "dequantize"),
        node("Relu", ["d"], ["y"]),
    ]
    converted, notes = to_float16(make(nodes, [constant("s", 1e-6), constant("z", 0, np.int8)], opset=19))
    assert types(converted)["s"] == F
    assert [("quantize" in n, "smallest normal" in n) for n in notes] == [(True, True), (True, True)]


def test_overflowing_constant_keeps_its_node_fp32_and_is_reported() -> None:
    nodes = [
        node("Relu", ["x"], ["r"]),
        node("Add", ["r", "big"], ["b"], "huge"),
        node("Sub", ["b", "big"], ["y"], "s"),
    ]
    converted, notes = to_float16(make(nodes, [constant("big", 1e6)]))
    assert types(converted)["big"] == F
    assert types(converted)["b"] == F
    assert len(notes) == 2
    assert "huge" in notes[0]
    assert "big" in notes[0]
    x = np.full((1, 4, 4, 4), 2, np.float32)
    np.testing.assert_array_equal(run(converted, x), x)


def test_infinite_constant_is_no_overflow() -> None:
    converted, notes = to_float16(make([node("Max", ["x", "low"], ["y"])], [constant("low", -np.inf)]))
    assert types(converted)["low"] == H
    assert notes == []


def test_constant_read_in_both_precisions_exists_twice() -> None:
    nodes = [
        node("Add", ["x", "s"], ["a"]),
        node("QuantizeLinear", ["a", "s", "z"], ["q"]),
        node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    converted, _ = to_float16(make(nodes, [constant("s", 0.5), constant("z", 0, np.int8)]))
    assert types(converted)["s"] == F
    assert types(converted)["s/float16"] == H
    assert operators(converted) == ["Cast", "Add", "Cast", "QuantizeLinear", "DequantizeLinear"]


def test_resize_scales_stay_fp32() -> None:
    resize = node("Resize", ["x", "", "scales"], ["y"], mode="nearest")
    converted, _ = to_float16(make([resize], [constant("scales", [1, 1, 2, 2])]))
    assert types(converted)["scales"] == F
    assert operators(converted) == ["Cast", "Resize", "Cast"]
    assert run(converted, np.ones((1, 4, 4, 4), np.float32)).shape == (1, 4, 8, 8)


def test_cast_to_float_becomes_cast_to_fp16() -> None:
    nodes = [node("Cast", ["x"], ["i"], to=I32), node("Cast", ["i"], ["f"], to=F), node("Relu", ["f"], ["y"])]
    converted, _ = to_float16(make(nodes))
    assert operators(converted) == ["Cast", "Cast", "Cast", "Relu", "Cast"]
    assert types(converted)["f"] == H


def test_cast_that_only_fp32_reads_stays() -> None:
    nodes = [
        node("Cast", ["x"], ["i"], to=I32),
        node("Cast", ["i"], ["f"], to=F),
        node("QuantizeLinear", ["f", "s", "z"], ["q"]),
        node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    converted, _ = to_float16(make(nodes, [constant("s", 0.5), constant("z", 0, np.int8)]))
    assert operators(converted) == ["Cast", "Cast", "Cast", "QuantizeLinear", "DequantizeLinear"]
    assert types(converted)["f"] == F


def test_casts_between_the_two_precisions_become_identities() -> None:
    nodes = [node("Cast", ["x"], ["h"], to=H), node("Relu", ["h"], ["r"]), node("Cast", ["r"], ["f"], to=F)]
    converted, _ = to_float16(make([*nodes, node("Relu", ["f"], ["y"])]))
    assert operators(converted) == ["Cast", "Identity", "Relu", "Identity", "Relu", "Cast"]


def test_constant_nodes_are_converted() -> None:
    nodes = [
        node("Constant", [], ["c"], value=constant("", [1.5])),
        node("Constant", [], ["d"], value_float=2.0),
        node("Mul", ["x", "c"], ["m"]),
        node("Mul", ["m", "d"], ["y"]),
    ]
    converted, _ = to_float16(make(nodes))
    assert (types(converted)["c"], types(converted)["d"]) == (H, H)
    np.testing.assert_array_equal(run(converted, np.ones((1, 1, 1, 1), np.float32)), np.float32([[[[3]]]]))


def test_constant_of_shape_is_converted() -> None:
    fill = node("ConstantOfShape", ["shape"], ["k"], value=constant("", [2]))
    model = make([fill, node("Mul", ["x", "k"], ["y"])], [constant("shape", [4], np.int64)])
    converted, _ = to_float16(model)
    assert types(converted)["k"] == H
    np.testing.assert_array_equal(run(converted, np.ones((1, 4), np.float32)[None, None]), np.full((1, 1, 1, 4), 2.0))


def test_random_values_stay_fp32() -> None:
    model = make([node("RandomNormalLike", ["x"], ["k"], seed=1.0), node("Add", ["x", "k"], ["y"])])
    converted, _ = to_float16(model)
    assert types(converted)["k"] == F
    assert operators(converted).count("Cast") == 3


def test_shape_arithmetic_stays_fp32() -> None:
    """4098 / 2 in FP16 would be 2048 or 2050."""
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Cast", ["s"], ["f"], to=F),
        node("Div", ["f", "two"], ["h"]),
        node("Cast", ["h"], ["y"], to=I64),
    ]
    converted, _ = to_float16(make(nodes, [constant("two", 2)], y=(4,), out=I64))
    assert run(converted, np.zeros((4098, 1, 1, 1), np.float32))[0] == 2049


def test_subgraph_keeps_fp32_and_what_it_captures() -> None:
    then = helper.make_graph(
        [node("Add", ["r", "r"], ["t"])], "then", [], [helper.make_tensor_value_info("t", F, ["p", "q", "r", "s"])]
    )
    other = helper.make_graph(
        [node("Neg", ["r"], ["e"])], "else", [], [helper.make_tensor_value_info("e", F, ["p", "q", "r", "s"])]
    )
    nodes = [
        node("Relu", ["x"], ["r"]),
        node("ReduceSum", ["x"], ["total"], keepdims=0),
        node("Greater", ["total", "zero"], ["positive"]),
        node("If", ["positive"], ["i"], then_branch=then, else_branch=other),
        node("Mul", ["i", "r"], ["y"]),
    ]
    converted, _ = to_float16(make(nodes, [constant("zero", 0)]))
    held = types(converted)
    assert (held["r"], held["i"], held["r/float16"], held["i/float16"]) == (F, F, H, H)
    x = np.full((1, 1, 2, 2), 3, np.float32)
    np.testing.assert_array_equal(run(converted, x), 18 * np.ones_like(x))


def test_tensor_of_unknown_type_is_refused() -> None:
    model = make([node("Mystery", ["x"], ["m"], "odd", domain="some.vendor"), node("Relu", ["m"], ["y"])])
    model.opset_import.append(helper.make_opsetid("some.vendor", 1))
    with pytest.raises(StepError, match="tensor m"):
        to_float16(model)


def test_given_model_is_not_changed() -> None:
    model = make([node("Add", ["x", "c"], ["y"])], [constant("c", 1)])
    before = model.SerializeToString(deterministic=True)
    to_float16(model)
    assert model.SerializeToString(deterministic=True) == before


def random_graph(seed: int) -> onnx.ModelProto:
    """A few random nodes over tensors of one shape: constants, tensors read twice, both precisions, bodies."""
    rng = np.random.default_rng(seed)
    pool, nodes, constants = ["x"], [], [constant("s", 0.05), constant("z", 0, np.int8), constant("ten", 10)]

    def pick() -> str:
        return pool[int(rng.integers(len(pool)))]

    def fresh() -> str:
        return f"t{len(nodes)}"

    for step in range(int(rng.integers(2, 12))):
        kind, name = rng.integers(9), fresh()
        if kind == 0:
            nodes.append(node("Tanh", [pick()], [name]))
        elif kind == 1:
            nodes.append(node("Add", [pick(), pick()], [name]))
        elif kind == 2:
            constants.append(constant(f"w{step}", rng.standard_normal((4, 4, 1, 1)) / 4))
            nodes.append(node("Conv", [pick(), f"w{step}"], [name]))
        elif kind == 3:
            nodes.append(node("QuantizeLinear", [pick(), "s", "z"], [f"{name}q"]))
            nodes.append(node("DequantizeLinear", [f"{name}q", "s", "z"], [name]))
        elif kind == 4:
            constants.append(constant(f"c{step}", rng.choice([0.5, -1.0, 1e5])))
            nodes.append(node("Min", [pick(), f"c{step}"], [name]))
        elif kind == 5:
            nodes.append(node("Mul", [pick(), "s"], [name]))
        elif kind == 6:
            nodes.append(node("Cast", [pick()], [f"{name}i"], to=I32))
            nodes.append(node("Cast", [f"{name}i"], [name], to=F))
        elif kind == 7:
            nodes.append(node("Clip", [pick(), "", "ten"], [name]))
        else:
            body = helper.make_graph(
                [node("Neg", [pick()], [f"{name}b"])],
                f"g{step}",
                [],
                [helper.make_tensor_value_info(f"{name}b", F, ["p", "q", "r", "s"])],
            )
            constants.append(constant(f"p{step}", True, np.bool_))
            nodes.append(node("If", [f"p{step}"], [name], then_branch=body, else_branch=body))
        pool.append(name)
    nodes.append(node("Identity" if rng.integers(2) else "Softsign", [pool[-1]], ["y"]))
    return make(nodes, constants)


@pytest.mark.parametrize("seed", range(60))
def test_random_graphs_convert_check_run_and_keep_names(seed: int) -> None:
    model = random_graph(seed)
    converted, _ = to_float16(model)  # checks the result with onnx's full check
    assert converted.SerializeToString(deterministic=True) == to_float16(model)[0].SerializeToString(deterministic=True)
    names = {name for each in converted.graph.node for name in each.output}
    assert {name for each in model.graph.node for name in each.output} <= names
    made, held = {name: each for each in converted.graph.node for name in each.output}, types(converted)
    for each in converted.graph.node:
        if each.op_type == "Cast" and each.input[0] in made and made[each.input[0]].op_type == "Cast":
            chain = [held[made[each.input[0]].input[0]], held[each.input[0]], held[each.output[0]]]
            assert chain not in ([F, H, F], [H, F, H]), "a Cast there and back"
    x = np.random.default_rng(seed).standard_normal((2, 4, 4, 4)).astype(np.float32)
    ours, exact = run(converted, x), run(model, x)
    assert ours.dtype == np.float32
    if "Cast" not in operators(model) and "QuantizeLinear" not in operators(model):  # those make steps of rounding
        np.testing.assert_allclose(ours, exact, atol=0.02 * max(1, np.abs(exact).max()))


def test_rounded_graph_rounds_every_tensor() -> None:
    """Against NumPy, which computes each of these operators in FP32 and rounds the result."""
    rng = np.random.default_rng(0)
    factors = [rng.standard_normal((1, 1, 4, 4)).astype(np.float32) for _ in range(6)]
    nodes, constants, name = [], [], "x"
    for index, factor in enumerate(factors):
        constants.append(constant(f"f{index}", factor))
        nodes.append(node("Mul", [name, f"f{index}"], [f"m{index}"]))
        nodes.append(node("Add", [f"m{index}", "x"], [f"a{index}"]))
        name = f"a{index}"
    converted, _ = to_float16(make([*nodes, node("Neg", [name], ["y"])], constants))
    x = rng.standard_normal((3, 1, 4, 4)).astype(np.float32)
    half = x.astype(np.float16)
    expected = half
    for factor in factors:
        expected = expected * factor.astype(np.float16) + half
    np.testing.assert_array_equal(run(rounded(converted), x), -expected.astype(np.float32))
    assert not np.array_equal(run(rounded(converted), x), run(make([*nodes, node("Neg", [name], ["y"])], constants), x))


def test_rounded_graph_overflows_as_fp16_does() -> None:
    converted, _ = to_float16(make([node("Exp", ["x"], ["e"]), node("Sqrt", ["e"], ["y"])]))
    x = np.full((1, 1, 1, 1), 15, np.float32)
    assert np.isinf(run(rounded(converted), x)).all()


def named_apart(model: onnx.ModelProto) -> None:
    names = [each.name for each in all_nodes(model.graph)]
    assert all(names) and len(set(names)) == len(names)


@pytest.mark.parametrize("given", ["", "y", "same"])
def test_nodes_keep_apart_however_they_are_called(given: str) -> None:
    """Unnamed nodes, nodes called after what they make, and nodes that share a name."""
    nodes = [node("Add", ["x", "c"], ["a"], given and "same"), node("Relu", ["a"], ["y"], given)]
    converted, _ = to_float16(canonical(make(nodes, [constant("c", 1)])))
    named_apart(converted)
    x = np.ones((1, 4, 4, 4), np.float32)
    np.testing.assert_array_equal(run(converted, x), 2 * x)
    named_apart(to_float16(make(nodes, [constant("c", 1)]))[0])


def test_a_body_that_reads_a_tensor_called_like_its_maker() -> None:
    v = helper.make_tensor_value_info
    body = helper.make_graph(
        [node("Identity", ["on"], ["go"], "go"), node("Add", ["s", "r"], ["t"], "t")],
        "body",
        [v("i", I64, []), v("on", TensorProto.BOOL, []), v("s", F, ["n", "a", "b", "c"])],
        [v("go", TensorProto.BOOL, []), v("t", F, ["n", "a", "b", "c"])],
    )
    nodes = [node("Relu", ["x"], ["r"], "r"), node("Loop", ["times", "", "r"], ["y"], "y", body=body)]
    converted, _ = to_float16(make(nodes, [constant("times", 2, np.int64)]))
    named_apart(converted)
    x = np.ones((1, 1, 2, 2), np.float32)
    np.testing.assert_array_equal(run(converted, x), 3 * x)


def test_what_onnx_runtime_cannot_load_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = make([node("Relu", ["x"], ["r"], "same"), node("Relu", ["r"], ["y"], "same")])
    onnx.save(broken, tmp_path / "in.onnx")
    monkeypatch.setattr(float16, "to_float16", lambda model: (model, []))
    with pytest.raises(StepError, match="ONNX Runtime cannot load the graph"):
        convert.run(convert.Params("fp16"), {"onnx": tmp_path / "in.onnx"}, tmp_path)
    assert not (tmp_path / "model.onnx").exists()
