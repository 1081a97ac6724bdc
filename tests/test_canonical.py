"""Canonical form: what differs only in order and counters is the same bytes, and computes the same."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper, parser

from trtrecipe.errors import StepError
from trtrecipe.graphs import from_onnx
from trtrecipe.graphs.canonical import canonical
from trtrecipe.graphs.names import LayerNames, Unique, cleaned, is_added, is_generated, rename_interface

BRANCHES = """
<ir_version: 8, opset_import: ["" : 13]>
g (float[2,3] x, bool c) => (float[2,3] y) {
  w = Constant<value = float[3] {1.0, 2.0, 3.0}>()
  y = If (c) <
    then_branch = t () => (float[2,3] a) {
      k = Constant<value = float[3] {1.0, 2.0, 3.0}>() s = Add(x, w) a = Mul(s, k)
    },
    else_branch = e () => (float[2,3] b) { s = Sub(x, w) b = Neg(s) }
  >
}
"""


def data(model: ModelProto) -> bytes:
    return model.SerializeToString(deterministic=True)


def run(model: ModelProto, feeds: dict[str, Any]) -> list[Any]:
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(data(model), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


@st.composite
def graphs(draw: st.DrawFn) -> ModelProto:
    """A random graph of floats [2,3] as tf2onnx would leave it: counters in names, equal constants, dead ends."""
    values = draw(st.lists(st.sampled_from([-1.0, 0.5, 2.0]), min_size=1, max_size=4))
    constants = [f"const_fold_opt__{i}" for i in range(len(values))]
    tensors, nodes = ["in__1", "in__2"], []
    for i in range(draw(st.integers(1, 12))):
        operator = draw(st.sampled_from(["Add", "Mul", "Relu", "Neg", "Concat", "Gemm"]))
        pick = st.sampled_from(tensors + constants)
        name = draw(st.sampled_from([f"net_1/layer_{i}_1/{operator}", f"{operator}__{i}", f"net_1/same_1/op__{i}"]))
        out = f"{name}:0" if draw(st.booleans()) else f"t__{i}"
        if operator in ("Add", "Mul"):
            nodes.append(helper.make_node(operator, [draw(pick), draw(pick)], [out], name))
        elif operator in ("Relu", "Neg"):
            nodes.append(helper.make_node(operator, [draw(pick)], [out], name))
        elif operator == "Concat":
            nodes.append(
                helper.make_node("Concat", [draw(pick), draw(pick)], [f"c__{i}"], f"Concat__{100 + i}", axis=1)
            )
            nodes.append(helper.make_node("MatMul", [f"c__{i}", "wide__0"], [out], name, doc_string=f"d{i}"))
        else:
            nodes.append(
                helper.make_node("Gemm", [draw(pick), "square__0"], [out], name, alpha=0.5, beta=1.0, transB=1)
            )
        tensors.append(out)
    made = tensors[2:]
    outputs = draw(st.lists(st.sampled_from(made), min_size=1, max_size=2, unique=True))
    initializers = [
        numpy_helper.from_array(np.full((2, 3), v, np.float32), n) for n, v in zip(constants, values, strict=True)
    ]
    initializers.append(numpy_helper.from_array(np.eye(3, dtype=np.float32) * 2, "square__0"))
    initializers.append(numpy_helper.from_array(np.linspace(-1, 1, 18, dtype=np.float32).reshape(6, 3), "wide__0"))
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, 3]) for n in tensors[:2]]
    outs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, 3]) for n in outputs]
    graph = helper.make_graph(nodes, "tf2onnx", info, outs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], producer_name="p", ir_version=8)
    rename_interface(model, {"in__1": "a", "in__2": "b"}, {f"out_{i}": name for i, name in enumerate(outputs)})
    return model


def disguised(model: ModelProto, random: random.Random) -> ModelProto:
    """The same computation with other counters, orders and remarks."""
    other = ModelProto()
    other.CopyFrom(model)
    graph = other.graph
    offset = random.randrange(1, 1000)

    def moved(name: str) -> str:
        base, mark, count = name.rpartition("__")
        if not mark:
            return name
        number, colon, tail = count.partition(":")
        return f"{base}__{int(number) + offset}{colon}{tail}"

    for node in graph.node:
        node.name = moved(node.name)
        for field in (node.input, node.output):
            field[:] = [moved(name) for name in field]
        attributes = list(node.attribute)
        random.shuffle(attributes)
        del node.attribute[:]
        node.attribute.extend(attributes)
        node.doc_string = str(offset)
    for tensor in graph.initializer:
        tensor.name = moved(tensor.name)
        if random.random() < 0.5:  # the same values, stored the other way
            tensor.CopyFrom(
                helper.make_tensor(
                    tensor.name, tensor.data_type, list(tensor.dims), numpy_helper.to_array(tensor).ravel().tolist()
                )
            )
    for field in (graph.node, graph.initializer):
        items = list(field)
        random.shuffle(items)
        del field[:]
        field.extend(items)
    other.producer_version = str(offset)
    graph.name = f"g{offset}"
    return other


@settings(max_examples=60, deadline=None)
@given(graphs(), st.randoms(use_true_random=False))
def test_disguise_changes_nothing(model: ModelProto, random: random.Random) -> None:
    first = canonical(model, rename=True)
    assert data(canonical(disguised(model, random), rename=True)) == data(first)
    feeds = {name: np.random.default_rng(0).standard_normal((2, 3), np.float32) for name in ("a", "b")}
    for before, after in zip(run(model, feeds), run(first, feeds), strict=True):
        np.testing.assert_array_equal(before, after)


@settings(max_examples=40, deadline=None)
@given(graphs())
def test_it_is_a_fixed_point_with_unique_names_and_nothing_dead(model: ModelProto) -> None:
    renamed = canonical(model, rename=True)
    assert data(canonical(renamed)) == data(renamed)
    graph = renamed.graph
    assert len({node.name for node in graph.node}) == len(graph.node)
    assert not any("__" in name for node in graph.node for name in (node.name, *node.output))
    used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    assert {tensor.name for tensor in graph.initializer} <= used
    assert all(used.intersection(node.output) for node in graph.node)
    contents = [(tensor.data_type, tuple(tensor.dims), tensor.raw_data) for tensor in graph.initializer]
    assert len(contents) == len(set(contents))


def test_given_names_stay_without_rename() -> None:
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 13]> g (float[2] x__1) => (float[2] "out:0") '
        '{ "layer/a__7" = Relu(x__1) "out:0" = Neg("layer/a__7") }'
    )
    result = canonical(model)
    assert [list(node.output) for node in result.graph.node] == [["layer/a__7"], ["out:0"]]
    assert [node.name for node in result.graph.node] == ["layer/a__7", "out:0"]


def test_bodies_of_control_flow() -> None:
    model = parser.parse_model(BRANCHES)
    for rename in (False, True):
        result = canonical(model, rename=rename)
        for flag in (True, False):
            feeds = {"x": np.arange(6, dtype=np.float32).reshape(2, 3), "c": np.array(flag)}
            np.testing.assert_array_equal(run(model, feeds)[0], run(result, feeds)[0])
        assert [node.op_type for node in result.graph.node] == ["If"]
        assert len(result.graph.initializer) == 1  # read by the bodies alone, and still alive
    names = [n for node in canonical(model, rename=True).graph.node for a in node.attribute for n in _names(a.g)]
    assert len(names) == len(set(names))


def _names(graph: GraphProto) -> list[str]:
    return [name for node in graph.node for name in node.output] + [tensor.name for tensor in graph.initializer]


def test_identities_have_one_form() -> None:
    """Which of two equal outputs tf2onnx makes an Identity of, and where it leaves others, is chance."""
    head = '<ir_version: 8, opset_import: ["" : 13]> '
    head += "g (float[2] x, bool c) => (float[2] y, float[2] z, float[2] k) {{ {} }}"
    branches = "If(c) <then_branch = t () => (float[2] p, float[2] q) {{ {} }}, "
    branches += "else_branch = e () => (float[2] r, float[2] s) {{ r = Neg(x) s = Identity(x) }}>"
    one = head.format(
        "a = Relu(x) y = Identity(a) i = Identity(y) k = Identity(i) "
        "z, u = " + branches.format("p = Neg(a) q = Identity(p)")
    )
    two = head.format(
        "y = Relu(x) k = Identity(y) z, u = "
        + branches.format("q = Neg(m) o = Identity(q) p = Identity(o)")
        + " m = Identity(k)"
    )
    first, second = (canonical(parser.parse_model(text), rename=True) for text in (one, two))
    assert data(first) == data(second)
    for flag in (True, False):
        feeds = {"x": np.array([-1, 2], np.float32), "c": np.array(flag)}
        for before, after in zip(run(parser.parse_model(one), feeds), run(first, feeds), strict=True):
            np.testing.assert_array_equal(before, after)


def test_equal_constants_become_one_but_outputs_keep_their_names() -> None:
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 13]> g (float[2] x) => (float[2] y, float[2] k) '
        "<float[2] k = {1.0, 2.0}, float[2] l = {1.0, 2.0}, float[2] m = {1.0, 2.0}, float[1] n = {1.0}> "
        "{ a = Add(x, l) b = Add(a, m) d = Mul(b, n) y = Mul(d, k) }"
    )
    result = canonical(model)
    assert [tensor.name for tensor in result.graph.initializer] == ["l", "n", "k"]
    feeds = {"x": np.array([3, 4], np.float32)}
    for before, after in zip(run(model, feeds), run(result, feeds), strict=True):
        np.testing.assert_array_equal(before, after)


def test_constants_of_other_type_or_shape_are_not_equal() -> None:
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 13]> g (float[2] x) => (float[2] y, int32[1,1] i) '
        "<float[1] k = {0.0}, float[1,1] l = {0.0}, int32[1,1] m = {0}> "
        "{ a = Add(x, k) b = Add(a, l) y = Squeeze(b, z) z = Constant<value = int64[1] {0}>() i = Identity(m) }"
    )
    assert len(canonical(model).graph.initializer) == 4


def test_versions_and_remarks() -> None:
    model = parser.parse_model(
        '<ir_version: 10, producer_name: "p", opset_import: ["ai.onnx" : 13, "ai.onnx.ml" : 2], doc_string: "d"> '
        "g (float[2] x) => (float[2] y) { y = Relu(x) }"
    )
    model.metadata_props.add(key="when", value="now")
    model.graph.value_info.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, [2]))
    result = canonical(model)
    assert [(entry.domain, entry.version) for entry in result.opset_import] == [("", 13)]
    assert (result.ir_version, result.producer_name, result.doc_string) == (7, "", "")
    assert not result.metadata_props and not result.graph.value_info
    assert model.producer_name == "p"  # the argument is left alone


def test_a_deep_chain_needs_no_recursion() -> None:
    nodes = [helper.make_node("Relu", [f"t{i}"], [f"t{i + 1}"]) for i in range(20_000)]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        list(reversed(nodes)),
        "g",
        [value("t0", TensorProto.FLOAT, [1])],
        [value("t20000", TensorProto.FLOAT, [1])],
    )
    result = canonical(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)]), rename=True)
    assert [node.input[0] for node in result.graph.node][:1] == ["t0"]
    assert len(result.graph.node) == 20_000


def test_a_cycle_is_refused() -> None:
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 13]> g (float[2] x) => (float[2] y) '
        "{ b = Add(x, a) a = Relu(b) y = Neg(a) }"
    )
    with pytest.raises(StepError, match="cycle"):
        canonical(model)


def test_hash_seeds_do_not_matter() -> None:
    program = (
        "import hashlib, sys; from onnx import parser; from trtrecipe.graphs.canonical import canonical;"
        "m = canonical(parser.parse_model(sys.argv[1]), rename=True);"
        "print(hashlib.sha256(m.SerializeToString(deterministic=True)).hexdigest())"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", program, BRANCHES],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
        ).stdout
        for seed in ("0", "1", "2")
    }
    assert len(found) == 1


def test_names_as_tf2onnx_leaves_them() -> None:
    assert is_generated("Conv__66") and is_generated("const_fold_opt__9:0") and is_generated("")
    assert not is_generated("model/conv__66") and not is_generated("conv2d")
    assert is_added("flatten/Reshape__51:0") and not is_added("flatten/Reshape")
    assert cleaned("StatefulPartitionedCall/PartitionedCall_1/net/conv__3/Conv2D:0") == "net/conv/Conv2D"


def test_layer_names_are_the_models_own() -> None:
    layers = LayerNames(["S/net_1/conv2d_1/Conv2D", "S/net_1/conv2d_1_1/Conv2D", "S/net_1/bn_1/batchnorm/mul_1"])
    assert layers.name("S/net_1/conv2d_1/Conv2D") == "net/conv2d/Conv2D"
    shared = LayerNames(["net_1/conv2d_1/Conv2D", "net_1/conv2d_1_1/Conv2D", "net_1/bn_1/batchnorm/mul_1"])
    assert shared.name("net_1/conv2d_1/Conv2D") == "conv2d/Conv2D"
    assert shared.name("net_1/conv2d_1_1/Conv2D") == "conv2d_1/Conv2D"
    assert shared.name("net_1/bn_1/batchnorm/mul_1") == "bn/batchnorm/mul_1"
    assert shared.name("reduce/kernel_1:0") == "reduce/kernel_1"
    mixed = LayerNames(["net/conv/Conv2D", "net/conv_1/Conv2D"])
    assert mixed.name("net/conv_1/Conv2D") == "conv_1/Conv2D"  # not every scope is marked: these are real names


def test_unique_names() -> None:
    unique = Unique({"a"})
    assert [unique.claim(name) for name in ("a", "b", "b", "a", "b_1")] == ["a_1", "b", "b_1", "a_2", "b_1_1"]


def test_interface_names_where_tensors_coincide() -> None:
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 13]> g (float[2] x) => (float[2] y) { image = Relu(x) y = Neg(image) }'
    )
    rename_interface(model, {"x": "image"}, {"first": "y", "second": "y", "same": "x"})
    feeds = {"image": np.array([-1, 2], np.float32)}
    first, second, same = run(canonical(model), feeds)
    np.testing.assert_array_equal(first, [0, -2])
    np.testing.assert_array_equal(second, first)
    np.testing.assert_array_equal(same, [-1, 2])


# --- bodies, duplicates, functions


@st.composite
def nested(draw: st.DrawFn) -> ModelProto:
    """A chain of loops and branches on floats [2,3], some inside others, whose bodies read what is outside of them."""
    count = iter(range(1000))

    def piece(visible: list[str], depth: int) -> tuple[list[onnx.NodeProto], list[TensorProto], str]:
        """Nodes and constants of a graph that sees `visible`, and its result."""
        seen, nodes, constants = list(visible), [], []
        for _ in range(draw(st.integers(1, 3))):
            kind = draw(st.sampled_from(["Add", "Mul", "Neg", "constant", *(["If", "Loop"] if depth else [])]))
            name = f"{kind}__{next(count)}"
            x, y = (draw(st.sampled_from(seen)) for _ in range(2))
            if kind == "constant":
                value = np.full((2, 3), draw(st.sampled_from([-1.0, 0.5])), np.float32)
                if draw(st.booleans()):
                    constants.append(numpy_helper.from_array(value, name))
                else:
                    tensor = numpy_helper.from_array(value, f"t__{next(count)}")
                    nodes.append(helper.make_node("Constant", [], [name], name, value=tensor))
            elif kind in ("Add", "Mul"):
                nodes.append(helper.make_node(kind, [x, y], [name], name))
            elif kind == "Neg":
                nodes.append(helper.make_node(kind, [x], [name], name))
            elif kind == "If":
                bodies = [body(seen, depth - 1, []) for _ in range(2)]
                nodes.append(
                    helper.make_node(kind, ["flag"], [name], name, then_branch=bodies[0], else_branch=bodies[1])
                )
            else:
                nodes.append(helper.make_node(kind, ["rounds", "", x], [name], name, body=body(seen, depth - 1, [x])))
            seen.append(name)
        return nodes, constants, seen[-1]

    def body(visible: list[str], depth: int, carried: list[str]) -> GraphProto:
        inputs, more, first = [], [], None
        if carried:
            round_name, going, first = (f"{role}__{next(count)}" for role in ("round", "going", "state"))
            inputs = [
                helper.make_tensor_value_info(round_name, TensorProto.INT64, []),
                helper.make_tensor_value_info(going, TensorProto.BOOL, []),
                helper.make_tensor_value_info(first, TensorProto.FLOAT, [2, 3]),
            ]
            more = [helper.make_node("Identity", [going], [f"on__{next(count)}"], f"Identity__{next(count)}")]
        nodes, constants, result = piece([*visible, *([first] if first else [])], depth)
        end = f"end__{next(count)}"
        nodes.append(helper.make_node("Add", [result, first or visible[0]], [end], f"Add__{next(count)}"))
        outputs = [helper.make_tensor_value_info(end, TensorProto.FLOAT, [2, 3])]
        if more:
            outputs.insert(0, helper.make_tensor_value_info(more[0].output[0], TensorProto.BOOL, []))
        return helper.make_graph([*more, *nodes], f"b__{next(count)}", inputs, outputs, constants)

    nodes, constants, result = piece(["x"], 2)
    nodes.append(helper.make_node("Add", [result, "x"], ["y"], "end/Add"))
    constants.append(numpy_helper.from_array(np.int64(2), "rounds"))
    value = helper.make_tensor_value_info
    ends = [value("x", TensorProto.FLOAT, [2, 3]), value("flag", TensorProto.BOOL, [])]
    graph = helper.make_graph(nodes, "g", ends, [value("y", TensorProto.FLOAT, [2, 3])], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def in_other_words(model: ModelProto, random: random.Random) -> ModelProto:
    """The same with other generated names, in another order, some constants twice or written the other way."""
    other = ModelProto()
    other.CopyFrom(model)
    names: dict[str, str] = {}

    def renamed(name: str) -> str:
        if "__" not in name:
            return name
        return names.setdefault(name, f"{name.partition('__')[0]}__{5000 + len(names) * 7 + random.randrange(7)}")

    def change(graph: GraphProto) -> None:
        for node in graph.node:
            node.name = renamed(node.name)
            node.input[:] = [renamed(name) for name in node.input]
            node.output[:] = [renamed(name) for name in node.output]
            node.doc_string = str(random.random())
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.GRAPH:
                    change(attribute.g)
        for value in (*graph.input, *graph.output, *graph.initializer):
            value.name = renamed(value.name)
        graph.name = f"g{random.randrange(1000)}"
        constants = [node for node in graph.node if node.op_type == "Constant"]
        for node in constants:
            if random.random() < 0.5:  # a constant as an initializer
                tensor = TensorProto()
                tensor.CopyFrom(node.attribute[0].t)
                tensor.name = node.output[0]
                graph.initializer.append(tensor)
                graph.node.remove(node)
        for tensor in list(graph.initializer):
            readers = [node for node in graph.node if tensor.name in node.input]
            if readers and random.random() < 0.5:  # one reader gets a copy
                copy = TensorProto()
                copy.CopyFrom(tensor)
                copy.name = renamed(f"copy__{tensor.name}")
                graph.initializer.append(copy)
                reader = random.choice(readers)
                reader.input[:] = [copy.name if name == tensor.name else name for name in reader.input]
        items = list(graph.initializer)
        random.shuffle(items)
        del graph.initializer[:]
        graph.initializer.extend(items)
        _shuffle(graph, random)

    change(other.graph)
    return other


def _shuffle(graph: GraphProto, random: random.Random) -> None:
    """Another order in which every node still comes after what it reads, in bodies too."""

    def reads(node: onnx.NodeProto) -> set[str]:
        inner = [attribute.g for attribute in node.attribute if attribute.type == onnx.AttributeProto.GRAPH]
        return set(node.input).union(*(reads(each) for body in inner for each in body.node))

    left, made = list(graph.node), {name for node in graph.node for name in node.output}
    order: list[onnx.NodeProto] = []
    done: set[str] = set()
    while left:
        ready = [node for node in left if not (reads(node) & made) - done]
        node = random.choice(ready)
        left.remove(node)
        order.append(node)
        done.update(node.output)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in order]
    del graph.node[:]
    graph.node.extend(copies)


@settings(max_examples=60, deadline=None)
@given(nested(), st.randoms(use_true_random=False))
def test_bodies_have_one_form_too(model: ModelProto, random: random.Random) -> None:
    other = in_other_words(model, random)
    first = canonical(model, rename=True)
    assert data(canonical(other, rename=True)) == data(first)
    for flag in (True, False):
        feeds = {"x": np.arange(6, dtype=np.float32).reshape(2, 3), "flag": np.array(flag)}
        feeds = {value.name: feeds[value.name] for value in model.graph.input}
        for given_graph in (model, other):
            np.testing.assert_array_equal(run(given_graph, feeds)[0], run(first, feeds)[0])


@settings(max_examples=30, deadline=None)
@given(nested(), st.randoms(use_true_random=False))
def test_given_names_stay_and_order_does_not_matter(model: ModelProto, random: random.Random) -> None:
    other = ModelProto()
    other.CopyFrom(model)
    _shuffle(other.graph, random)
    first = canonical(model)
    assert data(canonical(other)) == data(first) == data(canonical(first))
    assert {node.name for node in first.graph.node} <= {node.name for node in model.graph.node}


def test_functions_are_written_out_in_whatever_order_they_come(tmp_path: Path) -> None:
    text = (
        '<ir_version: 8, opset_import: ["" : 13, "local" : 1]> '
        "g (float[2] x) => (float[2] y) { t = local.twice(x) y = local.less(t) } "
        '<domain: "local", opset_import: ["" : 13]> twice (a) => (b) { one = Add(a, a) b = Neg(one) } '
        '<domain: "local", opset_import: ["" : 13, "local" : 1]> less (a) => (b) { one = local.twice(a) b = Abs(one) }'
    )
    found = set()
    for reverse in (False, True):
        model = parser.parse_model(text)
        if reverse:
            functions = list(model.functions)[::-1]
            del model.functions[:]
            model.functions.extend(functions)
        onnx.save(model, tmp_path / "model.onnx")
        read = canonical(from_onnx.at_opset(from_onnx.read(tmp_path / "model.onnx"), 13))
        assert not read.functions and [node.op_type for node in read.graph.node] == ["Add", "Neg", "Add", "Neg", "Abs"]
        found.add(data(read))
    assert len(found) == 1
