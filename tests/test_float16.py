"""graphs.float16, overflow and halves: what becomes FP16, what stays, and that the result runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from trtrecipe.errors import StepError
from trtrecipe.graphs import float16, keep, overflow
from trtrecipe.graphs.canonical import canonical
from trtrecipe.graphs.edit import all_nodes
from trtrecipe.graphs.float16 import to_float16
from trtrecipe.graphs.rounded import rounded
from trtrecipe.quant import scales
from trtrecipe.quant.qdq import insert_qdq
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
    monkeypatch.setattr(float16, "to_float16", lambda model, keep, ranges: (model, []))
    (tmp_path / "keep.json").write_bytes(keep.dump({}))
    inputs = {"onnx": tmp_path / "in.onnx", "keep": tmp_path / "keep.json"}
    with pytest.raises(StepError, match="ONNX Runtime cannot load the graph"):
        convert.run(convert.Params("fp16"), inputs, tmp_path)
    assert not (tmp_path / "model.onnx").exists()


# --- Kept, and blocked by observed range


def observed(model: onnx.ModelProto, *samples: np.ndarray) -> dict[str, tuple[float, float]]:
    """The ranges that calibration would record: of every FP32 activation and input."""
    probe = onnx.shape_inference.infer_shapes(model)
    names = {value.name for value in model.graph.output}
    names |= {v.name for v in probe.graph.value_info if v.type.tensor_type.elem_type == F}
    del probe.graph.output[:]
    probe.graph.output.extend(helper.make_tensor_value_info(name, F, None) for name in sorted(names))
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
    seen = {"x": samples, **{name: [session.run([name], {"x": x})[0] for x in samples] for name in sorted(names)}}
    return {
        name: (float(min(v.min() for v in values)), float(max(v.max() for v in values)))
        for name, values in seen.items()
    }


def precision(model: onnx.ModelProto) -> dict[str, str]:
    """Node name → fp16 or fp32, by the float tensors that it reads and makes; mixed where both."""
    held, found = types(model), {}
    for each in model.graph.node:
        kinds = {held[name] for name in (*each.input, *each.output) if held.get(name) in (F, H)}
        found[each.name] = "mixed" if len(kinds) == 2 else {F: "fp32", H: "fp16"}[kinds.pop()]
    return found


def layer_norm() -> onnx.ModelProto:
    """A layer normalization as TensorFlow writes it, between two scalings; the squares go far."""
    nodes = [
        node("Mul", ["x", "up"], ["s"], "scale"),
        node("ReduceMean", ["s"], ["m"], "mean", axes=[3]),
        node("Sub", ["s", "m"], ["c"], "center"),
        node("Mul", ["c", "c"], ["q"], "square"),
        node("ReduceMean", ["q"], ["v"], "variance", axes=[3]),
        node("Add", ["v", "e"], ["w"], "add"),
        node("Sqrt", ["w"], ["d"], "deviation"),
        node("Div", ["c", "d"], ["n"], "divide"),
        node("Relu", ["n"], ["y"], "act"),
    ]
    return make(nodes, [constant("up", 300), constant("e", 1e-3)])


def samples(seed: int = 0, shape: tuple[int, ...] = (2, 4, 4, 4)) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_what_overflows_in_fp16_stays_fp32_by_its_range() -> None:
    model, x = layer_norm(), samples()
    plain = run(rounded(to_float16(model)[0]), x)
    assert not np.isfinite(plain).all() or np.abs(plain - run(model, x)).max() > 0.5  # it breaks without the ranges
    converted, notes = to_float16(model, ranges=observed(model, x))
    found = precision(converted)
    assert [name for name in ("square", "variance", "add", "deviation") if found[name] != "fp32"] == []
    assert (found["scale"], found["mean"], found["act"]) == ("fp16", "fp16", "fp16")
    exact = run(model, x)
    ours = run(rounded(converted), x)
    assert np.isfinite(ours).all()
    np.testing.assert_allclose(ours, exact, atol=5e-3)
    assert len(notes) == 4
    assert notes[0].startswith("Mul square stays FP32: its output q ranged from ")
    assert "32752, half of its largest value" in notes[0]


def test_a_graph_that_is_not_finite_in_fp16() -> None:
    """Exp beyond 65504, and what divides by it."""
    nodes = [
        node("Exp", ["x"], ["e"], "exp"),
        node("ReduceSum", ["e"], ["t"], "sum"),
        node("Div", ["e", "t"], ["p"], "share"),
        node("Neg", ["p"], ["y"], "out"),
    ]
    model, x = make(nodes), samples() * 4 + 6
    assert not np.isfinite(run(rounded(to_float16(model)[0]), x)).all()
    converted, _ = to_float16(model, ranges=observed(model, x))
    assert precision(converted)["exp"] == precision(converted)["sum"] == precision(converted)["share"] == "fp32"
    np.testing.assert_allclose(run(rounded(converted), x), run(model, x), atol=1e-3)


def test_a_divisor_that_fp16_makes_zero() -> None:
    """The values vanish only in between, and 0 / 0 is left."""
    nodes = [
        node("Mul", ["x", "x"], ["q"], "square"),
        node("Add", ["q", "e"], ["w"], "add"),
        node("Div", ["q", "w"], ["y"], "share"),
    ]
    model = make(nodes, [constant("e", 1e-9)])
    x = samples()
    x[0, 0, 0, 0] = 0
    assert np.isnan(run(rounded(to_float16(model)[0]), x)).any()
    converted, notes = to_float16(model, ranges=observed(model, x))
    assert precision(converted) | {"add": "fp32", "share": "fp32"} == precision(converted)
    assert "so small that FP16 would make it 0" in notes[0]
    np.testing.assert_allclose(run(rounded(converted), x), run(model, x), atol=2e-3)
    assert to_float16(make([node("Div", ["x", "e"], ["y"], "d")], [constant("e", 1e-9)]))[1] != []


def test_values_below_the_normal_range() -> None:
    nodes = [node("Mul", ["x", "small"], ["s"], "down"), node("Mul", ["s", "big"], ["y"], "up")]
    model, x = make(nodes, [constant("small", 1e-6), constant("big", 6e4)]), samples()
    converted, notes = to_float16(model, ranges=observed(model, x))
    assert "Cast" not in operators(converted)
    assert "below FP16's normal range (6.1e-05)" in notes[0]
    zeros = np.zeros_like(x)
    assert to_float16(model, ranges=observed(model, zeros))[1] == []  # dead, and 0 in FP16 too


@pytest.mark.parametrize("top", [overflow.LIMIT, 65504.0, 1e30])
def test_the_limit(top: float) -> None:
    model = make([node("Relu", ["x"], ["r"], "first"), node("Neg", ["r"], ["y"], "second")])
    _, notes = to_float16(model, ranges={"x": (-1, 1), "r": (0, top), "y": (-top, 0)})
    assert len(notes) == (0 if top == overflow.LIMIT else 2)


def inside(operator: str, seen: float, inputs=("x",), constants=(), source: float = 1.0, **attributes) -> list[str]:
    """The notes on an operator whose output reached `seen`, and its input `source`."""
    model = make(
        [node(operator, list(inputs), ["r"], "n", **attributes), node("Relu", ["r"], ["y"])],
        constants, x=(1, 4, 40, 50), opset=13,
    )  # fmt: skip
    return to_float16(model, ranges={"x": (-source, source), "r": (-seen, seen), "y": (0, seen)})[1]


@pytest.mark.parametrize(
    ("least", "given"),
    [
        (overflow.LIMIT / 2000, {"operator": "ReduceMean", "axes": [2, -1]}),
        (overflow.LIMIT / 8000, {"operator": "ReduceMean"}),
        (overflow.LIMIT / 2000, {"operator": "GlobalAveragePool"}),
        (overflow.LIMIT / 12, {"operator": "AveragePool", "kernel_shape": [4, 3]}),
        (overflow.LIMIT, {"operator": "ReduceSum"}),
        (overflow.LIMIT**0.5, {"operator": "ReduceL2"}),
        (overflow.LIMIT**0.5, {"operator": "GlobalLpPool"}),
        (np.log(overflow.LIMIT), {"operator": "ReduceLogSumExp"}),
        (np.log(overflow.LIMIT), {"operator": "ReduceLogSum"}),
        (
            overflow.LIMIT - 20000,
            {
                "operator": "Conv",
                "inputs": ("x", "w", "b"),
                "constants": [constant("w", np.ones((1, 4, 1, 1))), constant("b", [-20000])],
            },
        ),
    ],
    ids=lambda value: value["operator"] if isinstance(value, dict) else "",
)
def test_what_exists_only_inside_an_operator(least: float, given: dict) -> None:
    assert inside(seen=least * 0.999, **given) == []
    notes = inside(seen=least * 1.001, **given)
    assert notes and notes[0].startswith(f"{given['operator']} n stays FP32")


def test_bounds_from_the_input() -> None:
    assert inside("LpNormalization", 1.0, source=25.0) == []  # 50 squares of 25 at most
    assert inside("LpNormalization", 1.0, source=26.0) != []


def test_an_open_axis_bounds_nothing() -> None:
    model = make([node("ReduceMean", ["x"], ["r"], "n"), node("Relu", ["r"], ["y"])])
    assert to_float16(model, ranges={"r": (0, 3e4)})[1] == []


def test_many_blocked_nodes_make_a_short_list() -> None:
    names = [f"t{index}" for index in range(30)]
    nodes = [node("Neg", [a], [b], b) for a, b in zip(["x", *names], [*names, "y"], strict=True)]
    _, notes = to_float16(make(nodes), ranges=dict.fromkeys(names, (-1000000.0, 1000000.0)))
    assert len(notes) == 9 and notes[-1] == "23 more nodes stay FP32 for the ranges seen in calibration"


def test_kept_nodes_are_fp32_with_casts_around() -> None:
    nodes = [
        node("Relu", ["x"], ["a"], "a"),
        node("Exp", ["a"], ["b"], "b"),
        node("Sqrt", ["b"], ["c"], "c"),
        node("Neg", ["c"], ["d"], "d"),
        node("Relu", ["d"], ["y"], "e"),
    ]
    converted, notes = to_float16(make(nodes), {"b": "fp32", "c": "fp32", "e": "fp16"})
    assert operators(converted) == ["Cast", "Relu", "Cast", "Exp", "Sqrt", "Cast", "Neg", "Relu", "Cast"]
    assert [precision(converted)[name] for name in "abcde"] == ["fp16", "fp32", "fp32", "fp16", "fp16"]
    assert notes == []
    with pytest.raises(StepError, match="no node gone"):
        to_float16(make(nodes), {"gone": "fp32"})


def test_moves_between_fp32_nodes_stay_fp32() -> None:
    nodes = [
        node("Exp", ["x"], ["a"], "a"),
        node("Transpose", ["a"], ["t"], "t", perm=[0, 2, 3, 1]),
        node("Concat", ["t", "t"], ["u"], "u", axis=1),
        node("Sqrt", ["u"], ["b"], "b"),
        node("Relu", ["b"], ["y"], "c"),
    ]
    converted, _ = to_float16(make(nodes), {"a": "fp32", "b": "fp32"})
    assert operators(converted) == ["Exp", "Transpose", "Concat", "Sqrt", "Cast", "Relu", "Cast"]
    converted, _ = to_float16(make(nodes), {"b": "fp32"})
    assert operators(converted) == ["Cast", "Exp", "Transpose", "Concat", "Cast", "Sqrt", "Cast", "Relu", "Cast"]
    converted, _ = to_float16(make([node("Transpose", ["x"], ["y"], "t")]))
    assert operators(converted) == ["Transpose"]


def test_moves_that_fp16_reads_too() -> None:
    """One Cast behind the move, instead of one before it and one back."""
    nodes = [
        node("Exp", ["x"], ["a"], "a"),
        node("Transpose", ["a"], ["t"], "t"),
        node("Sqrt", ["t"], ["b"], "b"),
        node("Neg", ["t"], ["n"], "n"),
        node("Add", ["b", "n"], ["y"], "sum"),
    ]
    converted, _ = to_float16(make(nodes), {"a": "fp32", "b": "fp32", "sum": "fp32"})
    assert precision(converted)["t"] == "fp32"
    assert operators(converted).count("Cast") == 2


@pytest.mark.parametrize("opset", [13, 19])
def test_ranges_of_the_float_graph_behind_pairs(opset: int) -> None:
    """The scale says what the pair lets through."""
    weights = np.eye(4, dtype=np.float32).reshape(4, 4, 1, 1)
    nodes = [
        node("Mul", ["x", "up"], ["s"], "scale"),
        node("Conv", ["s", "w"], ["k"], "conv"),
        node("Mul", ["k", "down"], ["y"], "unscale"),
    ]
    model = make(nodes, [constant("up", 4e4), constant("down", 1e-4), constant("w", weights)], opset=opset)
    x = np.clip(samples(), -1, 1)
    ranges = observed(model, x)
    wide, _ = insert_qdq(model, {"s": ranges["s"][1], "w": 1.0})
    found = precision(to_float16(wide, ranges=ranges)[0])
    assert found["scale"] == found["conv"] == found["unscale"] == "fp32"
    narrow, _ = insert_qdq(model, {"s": 1e4, "w": 1.0})
    found = precision(to_float16(narrow, ranges=ranges | {"k": (-1e4, 1e4)})[0])
    assert found["scale"] == "fp32" and found["conv"] == found["unscale"] == "fp16"


def test_convert_takes_what_is_kept_and_what_was_seen(tmp_path: Path) -> None:
    model = make([node("Exp", ["x"], ["e"], "exp"), node("Sqrt", ["e"], ["s"], "root"), node("Neg", ["s"], ["y"], "n")])
    onnx.save(model, tmp_path / "in.onnx")
    (tmp_path / "keep.json").write_bytes(keep.dump({"n": "fp32"}))
    found = scales.Scales("minmax", 1, {"x": 1.0}, {"x": (-1, 12), "e": (0, 1.6e5), "s": (0, 400)})
    (tmp_path / "scales.json").write_bytes(scales.dump(found))
    inputs = {"onnx": tmp_path / "in.onnx", "keep": tmp_path / "keep.json"}
    assert convert.run(convert.Params("fp16"), inputs, tmp_path)["notes"] == []
    assert precision(onnx.load(tmp_path / "model.onnx")) | {"exp": "fp16", "root": "fp16", "n": "fp32"} == precision(
        onnx.load(tmp_path / "model.onnx")
    )
    inputs["scales"] = tmp_path / "scales.json"
    notes = convert.run(convert.Params("fp16"), inputs, tmp_path)["notes"]
    assert [note.split(" stays")[0] for note in notes] == ["Exp exp", "Sqrt root"]
    assert "Cast" not in operators(onnx.load(tmp_path / "model.onnx"))


@pytest.mark.parametrize("seed", [None, 3, 8])
def test_tensorrt_for_rtx_builds_mixed_graphs(seed: int | None, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="the rtx extra is not installed")
    from trtrecipe.engines import tensorrt_build

    model = layer_norm() if seed is None else canonical(random_graph(seed))
    for dim, size in zip(model.graph.input[0].type.tensor_type.shape.dim, (2, 4, 4, 4), strict=True):
        dim.dim_value = size
    kept = {each.name: "fp32" for each in model.graph.node[::2]}
    converted, _ = to_float16(model, kept, observed(model, samples()) if seed is None else {})
    assert {"fp16", "fp32"} <= set(precision(converted).values())
    tensorrt_build.build_for_rtx(converted, tmp_path / "engine", {}, None)
    assert (tmp_path / "engine").stat().st_size > 0


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10_000), data=st.data())
def test_kept_nodes_of_random_graphs_are_fp32(seed: int, data: st.DataObject) -> None:
    """Whatever is kept and blocked: the result type-checks, nothing of a kept node is FP16, names stay."""
    model = canonical(random_graph(seed))
    names = [each.name for each in model.graph.node]
    kept = data.draw(st.dictionaries(st.sampled_from(names), st.sampled_from(["fp32", "fp16"])))
    tensors = [name for each in model.graph.node for name in each.output]
    floats = sorted(name for name, kind in types(onnx.shape_inference.infer_shapes(model)).items() if kind == F)
    reach = st.sampled_from([1.0, 4e4, 1e-6])
    ranges = {name: (-top, top) for name, top in data.draw(st.dictionaries(st.sampled_from(floats), reach)).items()}
    converted, _ = to_float16(model, kept, ranges)  # runs the full check
    held = types(converted)
    for each in converted.graph.node:
        if kept.get(each.name) == "fp32":
            assert all(held.get(name) != H for name in (*each.input, *each.output)), each.name
    for name, (_, top) in ranges.items():
        assert top == 1 or (held[name] == F and f"{name}/float16" not in held), name
    assert set(names) <= {each.name for each in converted.graph.node}
    assert set(tensors) <= {name for each in converted.graph.node for name in each.output}
    made = {name: each for each in converted.graph.node for name in each.output}
    for each in converted.graph.node:
        if each.op_type == "Cast" and each.input[0] in made and made[each.input[0]].op_type == "Cast":
            chain = [held[made[each.input[0]].input[0]], held[each.input[0]], held[each.output[0]]]
            assert chain not in ([F, H, F], [H, F, H]), "a Cast there and back"
