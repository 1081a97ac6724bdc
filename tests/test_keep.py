"""graphs.keep: what an entry of precision.keep matches, and what is said where it matches nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from onnx import ModelProto, parser

from trtrecipe.errors import StepError
from trtrecipe.graphs import keep
from trtrecipe.graphs.canonical import canonical
from trtrecipe.graphs.passes import simplify

HEAD = '<ir_version: 8, opset_import: ["" : 17]> '
LAYERS = {
    "digits": ["digits/conv/Conv", "digits/conv/Relu", "digits/logits/MatMul", "digits/logits/Add"],
    "digits/conv": ["digits/conv/Conv", "digits/conv/Relu"],
    "digits/logits": ["digits/logits/MatMul", "digits/logits/Add"],
    "digits/bn": [],
    "old": ["gone/Node"],
    "head": ["Softmax"],
}


def model(text: str, **names: str) -> ModelProto:
    """The graph, its nodes called after what they make, or as `names` says."""
    made = canonical(parser.parse_model(HEAD + text))
    for node in made.graph.node:
        node.name = names.get(node.output[0], node.output[0])
    return made


@pytest.fixture
def digits() -> ModelProto:
    """conv → relu → matmul → add → softmax, and a Neg of the input beside them."""
    return model(
        "g (float[1,4] x, float[4,4] w) => (float[1,4] y, float[1,4] z) "
        "{ c = Abs(x) r = Relu(c) m = MatMul(r, w) a = Add(m, m) y = Softmax(a) z = Neg(x) }",
        c="digits/conv/Conv",
        r="digits/conv/Relu",
        m="digits/logits/MatMul",
        a="digits/logits/Add",
        y="Softmax",
        z="/aside/Neg",
    )


def resolve(model: ModelProto, *entries: dict[str, Any]) -> dict[str, str]:
    return keep.resolve(model, LAYERS, entries, "fp32")


def refused(model: ModelProto, **entry: Any) -> tuple[str, str]:
    with pytest.raises(StepError) as caught:
        resolve(model, entry)
    return caught.value.message, caught.value.hint or ""


LOGITS = ["digits/logits/MatMul", "digits/logits/Add"]
CONV = ["digits/conv/Conv", "digits/conv/Relu"]


@pytest.mark.parametrize(
    ("glob", "expected"),
    [
        ("logits", LOGITS),
        ("digits/logits", LOGITS),
        ("log*", LOGITS),
        ("logits/MatMul", LOGITS[:1]),
        ("digits/logits/MatMul", LOGITS[:1]),
        ("*MatMul", LOGITS[:1]),
        ("digits", CONV + LOGITS),
        ("con[uv]", CONV),
        ("Softmax", ["Softmax"]),
        ("head", ["Softmax"]),
        ("/aside/Neg", ["/aside/Neg"]),
        ("aside", ["/aside/Neg"]),
        ("aside/Neg", ["/aside/Neg"]),
        ("*", [*CONV, *LOGITS, "Softmax", "/aside/Neg"]),
    ],
)
def test_globs_on_layers(glob: str, expected: list[str], digits: ModelProto) -> None:
    assert list(resolve(digits, {"layers": glob})) == expected


def test_without_a_list_of_layers_the_names_of_nodes_do(digits: ModelProto) -> None:
    assert list(keep.resolve(digits, {}, [{"layers": "logits"}], "fp32")) == LOGITS


def test_case_counts(digits: ModelProto) -> None:
    message, hint = refused(digits, layers="Logits")
    assert "precision.keep (layers: Logits) matches no layer and no node" in message
    assert "did you mean logits" in hint


@pytest.mark.parametrize(("glob", "near"), [("logit", "logits"), ("digts/conv", "digits/conv"), ("con", "conv")])
def test_near_matches(glob: str, near: str, digits: ModelProto) -> None:
    assert near in refused(digits, layers=glob)[1]


def test_without_a_near_match_the_layers_that_there_are(digits: ModelProto) -> None:
    assert "the model has digits, digits/conv, digits/logits" in refused(digits, layers="zzz")[1]


def test_all_entries_that_match_nothing_are_told_at_once(digits: ModelProto) -> None:
    with pytest.raises(StepError) as caught:
        resolve(
            digits, {"layers": "Logits"}, {"layers": "logits"}, {"operators": ["Gemm"]}, {"between": ["zzz", "logits"]}
        )
    message = caught.value.message
    assert message.startswith("3 entries of precision.keep match nothing:")
    assert "layers: Logits" in message and "did you mean logits" in message
    assert "operators: [Gemm]" in message and "between: [zzz, logits]" in message


def test_the_last_part_of_a_name_alone(digits: ModelProto) -> None:
    message, hint = refused(digits, layers="MatMul")
    assert "matches no layer" in message
    assert "digits/logits/MatMul" in hint and "operators: [MatMul]" in hint


@pytest.mark.parametrize("glob", ["bn", "digits/bn", "b?", "old"])
def test_a_layer_that_was_merged_into_another(glob: str, digits: ModelProto) -> None:
    message, hint = refused(digits, layers=glob)
    assert ("layer old" if glob == "old" else "layer digits/bn") in message
    assert "nothing of it is left" in message and "batch normalization" in message
    assert "name the layer" in hint


def test_a_normalization_that_was_folded_means_its_convolution() -> None:
    """As prepare does it: the convolution takes over the name of the tensor behind the normalization."""
    graph = parser.parse_model(
        HEAD + "g (float[1,2,4,4] x) => (float[1,2,4,4] y) <float[2,2,1,1] w = {1, 0, 0, 1}, float[2] s = {1, 2}> "
        "{ c = Conv(x, w) b = BatchNormalization(c, s, s, s, s) y = Relu(b) }"
    )
    for node, name in zip(graph.graph.node, ("a/conv/Conv", "a/bn/Norm", "a/act/Relu"), strict=True):
        node.name = name
    graph.graph.node[1].output[0] = graph.graph.node[2].input[0] = "a/bn/Norm"
    folded = simplify(graph)
    assert [node.op_type for node in folded.graph.node] == ["Conv", "Relu"]
    for glob in ("conv", "bn", "a/bn"):
        assert list(keep.resolve(folded, {"a/bn": ["a/bn/Norm"]}, [{"layers": glob}], "fp32")) == ["a/conv/Conv"]


def test_operators(digits: ModelProto) -> None:
    assert list(resolve(digits, {"operators": ["Softmax", "Relu"]})) == ["digits/conv/Relu", "Softmax"]
    message, hint = refused(digits, operators=["Softmax", "Matmul"])
    assert "operators: [Softmax, Matmul]" in message and "no node of the graph is a Matmul" in message
    assert hint == "did you mean MatMul?"
    assert "the graph has Abs, Add" in refused(digits, operators=["LSTM"])[1]


BRANCHES = (
    "g (float[4] x) => (float[4] y, float[4] z) "
    "{ a = Abs(x) b = Relu(a) c = Neg(a) d = Add(b, c) y = Exp(d) e = Sin(b) z = Cos(e) }"
)


def test_between_takes_every_path_and_no_dead_end() -> None:
    graph = model(BRANCHES)
    assert list(resolve(graph, {"between": ["a", "d"]})) == ["a", "b", "c", "d"]
    assert list(resolve(graph, {"between": ["b", "y"]})) == ["b", "d", "y"]
    assert list(resolve(graph, {"between": ["b", "b"]})) == ["b"]
    assert list(resolve(graph, {"between": ["[bc]", "z"]})) == ["b", "e", "z"]


def test_between_without_a_path() -> None:
    graph = model(BRANCHES)
    message, hint = refused(graph, between=["y", "a"])
    assert "between: [y, a]" in message and "no path leads from y to a" in message
    assert "between: [a, y]" in hint
    assert "one path" in refused(graph, between=["c", "z"])[1]
    assert "matches no layer" in refused(graph, between=["a", "nowhere"])[0]


def test_between_follows_what_bodies_read() -> None:
    graph = model(
        "g (float[4] x, bool on) => (float[4] y) { a = Abs(x) "
        "i = If(on) <then_branch = t () => (float[4] p) { p = Neg(a) }, "
        "else_branch = e () => (float[4] q) { q = Sin(x) }> y = Relu(i) }"
    )
    assert list(resolve(graph, {"between": ["a", "y"]})) == ["a", "i", "y"]


def test_what_is_only_in_bodies_is_fp32_anyway() -> None:
    graph = model(
        "g (float[4] x, bool on) => (float[4] y) { y = If(on) <then_branch = t () => (float[4] p) { p = Neg(x) }, "
        "else_branch = e () => (float[4] q) { q = Sin(x) }> }"
    )
    for node in graph.graph.node[0].attribute[0].g.node:
        node.name = "inner/n"
    assert "stay FP32 in any case" in refused(graph, operators=["Sin"])[0]
    assert "stay FP32 in any case" in refused(graph, layers="inner")[0]


def test_the_first_entry_that_matches_decides(digits: ModelProto) -> None:
    entries = [
        {"layers": "logits/Add", "operators": None, "between": None, "precision": "fp16"},
        {"layers": "logits", "operators": None, "between": None, "precision": None},
        {"operators": ["Add"], "precision": "fp32"},
    ]
    assert resolve(digits, *entries) == {"digits/logits/MatMul": "fp32", "digits/logits/Add": "fp16"}
    assert keep.resolve(digits, LAYERS, entries[1:2], "fp16") == dict.fromkeys(LOGITS, "fp16")


def test_an_entry_that_earlier_ones_cover_is_no_error(digits: ModelProto) -> None:
    assert list(resolve(digits, {"layers": "*"}, {"layers": "logits"}))[2:4] == LOGITS


def test_written_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "keep.json"
    path.write_bytes(keep.dump({"b": "fp16", "a": "fp32"}))
    assert path.read_bytes() == b'{"nodes":{"a":"fp32","b":"fp16"},"schema":"trtrecipe/keep/v1"}'
    assert keep.load(path) == {"a": "fp32", "b": "fp16"}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b'{"schema": "trtrecipe/keep/v2", "nodes": {}}',
        b'{"schema": "trtrecipe/keep/v1"}',
        b'{"schema": "trtrecipe/keep/v1", "nodes": ["a"]}',
        b'{"schema": "trtrecipe/keep/v1", "nodes": {"a": "int4"}}',
    ],
)
def test_damaged_documents(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "keep.json"
    path.write_bytes(content)
    with pytest.raises(StepError, match=r"keep\.json"):
        keep.load(path)
