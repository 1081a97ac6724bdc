"""quant.forms, targets.acceptance: which TensorRT releases take a graph's form of quantization, and why."""

from __future__ import annotations

import json
import re

import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.forms import GRAPHS, constant, graph, node, on_input, on_weights, pair

from trtrecipe.errors import StepError
from trtrecipe.quant.forms import quantization
from trtrecipe.targets import acceptance
from trtrecipe.targets.acceptance import verdicts
from trtrecipe.targets.catalog import DATA

RULES = json.loads((DATA / "qdq.json").read_text("utf-8"))
RELEASES = ["8.0", "8.2", "8.4", "8.5", "8.6", "10.3", "10.13", "10.16", "11.1"]
PLAIN = {"Conv": ["conv"], "QuantizeLinear": ["q"], "DequantizeLinear": ["d"]}


def of_form(form: str) -> list[str]:
    """The verdicts on one form, by release."""
    return [verdict.verdict for verdict in verdicts(13, {}, {form: ["n"]})]


def spread(*changes: tuple[str, str]) -> list[str]:
    """A verdict for every release, from (first release, verdict) pairs."""
    starts = dict(changes)
    found: list[str] = []
    for release in RELEASES:
        found.append(starts.get(release, found[-1] if found else ""))
    return found


@pytest.mark.parametrize("form", GRAPHS)
def test_every_form_is_found_with_its_nodes(form: str) -> None:
    found = quantization(GRAPHS[form]()).forms
    assert form in found
    assert all(found[form])


@pytest.mark.parametrize(
    ("form", "others"),
    [
        ("int8", []),
        ("per-channel-weights", ["int8"]),
        ("zero-point", ["int8"]),
        ("uint8", []),
        ("int32", ["zero-point-left-out", "bias"]),
        ("scale-fp16", ["int8"]),
        ("scale-count", ["int8", "per-channel-weights"]),
        ("axis-left-out", ["int8", "per-channel-weights", "axis-other"]),
        ("int8-weights", ["int8"]),
        ("per-channel-computed", ["int8"]),
        ("per-channel-activation", ["int8"]),
        ("integer-operators", ["int8", "quantize-alone", "dequantize-alone"]),
        ("blocked", ["int8"]),
        ("int4", []),
        ("in-body", []),
        ("other-domain", []),
    ],
)
def test_a_graph_has_no_other_forms_than_its_own(form: str, others: list[str]) -> None:
    assert sorted(quantization(GRAPHS[form]()).forms) == sorted([form, *others])


def test_forms_and_data_name_the_same() -> None:
    assert set(GRAPHS) == set(RULES["forms"])


def test_every_rule_starts_at_the_first_release_and_has_its_sources() -> None:
    for name, form in {**RULES["forms"], "needs": {"entries": RULES["needs"], "sources": []}}.items():
        starts = [tuple(map(int, entry["from"].split("."))) for entry in form["entries"]]
        assert starts[0] == (8, 0) and starts == sorted(set(starts)), name
        assert all(source in RULES["sources"] for source in form["sources"])
        for entry in form["entries"] if name != "needs" else ():
            assert entry["verdict"] in ("accepted", "refused", "assumed")
            assert entry["verdict"] != "refused" or form["sources"] != ["none"]
    used = {source for form in RULES["forms"].values() for source in form["sources"]}
    assert used == set(RULES["sources"])


def test_the_form_that_trtrecipe_writes_is_taken_by_every_release() -> None:
    carried = quantization(on_weights([0.1, 0.2, 0.3], axis=0))
    assert (carried.quantize, carried.dequantize, carried.pairs, carried.per_channel) == (2, 2, 2, 1)
    found = verdicts(13, PLAIN, carried.forms)
    assert [verdict.release for verdict in found] == RELEASES
    assert {verdict.verdict for verdict in found} == {"accepted"}
    needs = {verdict.release: verdict.needs for verdict in found}
    assert needs["8.2"] == needs["10.3"] == "--int8, and --fp16 where that is the fallback"
    assert needs["10.13"] == needs["10.16"] == "a strongly typed network (--stronglyTyped)"
    assert needs["11.1"] == "no flags: every network is strongly typed"


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("zero-point", spread(("8.0", "refused"))),
        ("zero-point-left-out", spread(("8.0", "refused"), ("10.3", "accepted"))),
        ("uint8", spread(("8.0", "refused"))),
        ("int4", spread(("8.0", "refused"), ("10.3", "assumed"))),
        ("fp4", spread(("8.0", "refused"), ("10.13", "assumed"))),
        ("scale-fp16", spread(("8.0", "refused"), ("10.3", "accepted"))),
        ("scale-computed", spread(("8.0", "refused"), ("10.13", "accepted"))),
        ("per-channel-activation", spread(("8.0", "refused"))),
        ("axis-left-out", spread(("8.0", "refused"), ("10.3", "assumed"), ("10.13", "accepted"))),
        ("int8-weights", spread(("8.0", "assumed"), ("11.1", "accepted"))),
        ("bias", spread(("8.0", "refused"), ("8.5", "assumed"))),
        ("integer-operators", spread(("8.0", "refused"))),
        ("dynamic", spread(("8.0", "refused"))),
    ],
)
def test_verdicts_by_release(form: str, expected: list[str]) -> None:
    assert of_form(form) == expected


@pytest.mark.parametrize(
    ("opset", "expected"),
    [
        (13, spread(("8.0", "accepted"))),
        (17, spread(("8.0", "refused"), ("8.4", "accepted"))),
        (19, spread(("8.0", "refused"), ("10.3", "accepted"))),
        (21, spread(("8.0", "refused"), ("10.3", "assumed"), ("10.16", "accepted"))),
        (25, spread(("8.0", "refused"))),
    ],
)
def test_opset_ceilings(opset: int, expected: list[str]) -> None:
    assert [verdict.verdict for verdict in verdicts(opset, PLAIN, {})] == expected


@pytest.mark.parametrize(
    ("operator", "expected"),
    [
        ("NonZero", spread(("8.0", "refused"), ("8.5", "accepted"))),
        ("RMSNormalization", spread(("8.0", "refused"), ("10.3", "assumed"), ("10.16", "accepted"))),
        ("Swish", spread(("8.0", "refused"), ("11.1", "accepted"))),
        ("Compress", spread(("8.0", "refused"))),
        ("com.microsoft.Gelu", spread(("8.0", "refused"))),
    ],
)
def test_operators(operator: str, expected: list[str]) -> None:
    found = verdicts(13, {operator: ["a", "b", "c", "d", "e"]}, {})
    assert [verdict.verdict for verdict in found] == expected
    assert all(verdict.needs is None for verdict in found)
    [reason] = found[0].reasons
    assert reason.about == "operators" and operator in reason.text and "(a, b, c and 2 more)" in reason.text
    assert all(source.startswith("github.com/") for source in reason.sources)


def test_a_reason_names_nodes_and_sources() -> None:
    [reason] = verdicts(13, PLAIN, quantization(on_input(3)).forms)[0].reasons[1:]
    assert reason.about == "zero-point"
    assert reason.text == "a zero point other than 0: only symmetric quantization is supported (y_q, y)"
    assert any("QuantDequantLinearHelper" in source for source in reason.sources)


def test_a_float_graph_carries_nothing() -> None:
    carried = quantization(graph([node("Relu", ["x"], ["y"], "relu")], []))
    assert (carried.quantize, carried.dequantize, carried.pairs, carried.per_channel) == (0, 0, 0, 0)
    assert carried.forms == {}


def test_scales_and_zero_points_in_constant_nodes_and_behind_casts_are_read() -> None:
    scale = numpy_helper.from_array(numpy_helper.to_array(constant("", 0.1)), "value")
    nodes = [
        node("Constant", [], ["s"], "scale", value=scale),
        node("Cast", ["z32"], ["z"], "cast", to=TensorProto.INT8),
        *pair("x", "y"),
    ]
    carried = quantization(graph(nodes, [constant("z32", 0, TensorProto.INT32)]))
    assert list(carried.forms) == ["int8"]


def test_an_initializer_that_is_listed_as_input_is_constant() -> None:
    model = on_weights([0.1, 0.2, 0.3], axis=0)
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    assert list(quantization(model).forms) == ["int8", "per-channel-weights"]


def test_nan_is_no_scale() -> None:
    assert "scale-not-positive" in quantization(on_input(scale=constant("s", float("nan")))).forms


def test_a_damaged_scale_is_named() -> None:
    model = on_input()
    model.graph.initializer[0].ClearField("float_data")
    model.graph.initializer[0].raw_data = b"abc"
    with pytest.raises(StepError, match="constant s is damaged"):
        quantization(model)


def test_nodes_without_names_are_named_by_what_they_compute() -> None:
    model = on_input(3)
    for half in model.graph.node:
        half.name = ""
    assert quantization(model).forms["zero-point"] == ("y_q", "y")


# What the parser of TensorRT for RTX says of the forms, as the nearest thing to TensorRT 11 that can be asked here.
# It takes scales per channel of activations, which NVIDIA's headers exclude, and reads UINT8 as INT8 in silence.
LENIENT = {"per-channel-activation", "uint8"}


@pytest.mark.parametrize("form", [form for form in GRAPHS if form not in LENIENT])
def test_the_newest_verdict_is_what_a_parser_says(form: str) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    expected = of_form(form)[-1]
    if expected == "assumed":
        pytest.skip("nothing is claimed")
    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    network = trt.Builder(logger).create_network(0)
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(GRAPHS[form]().SerializeToString()) == (expected == "accepted")


def test_some_names() -> None:
    assert acceptance.some(["a"]) == "a"
    assert acceptance.some(["a", "b", "c"]) == "a, b, c"
    assert re.search(r"c and 1 more$", acceptance.some(["a", "b", "c", "d"]))


def test_every_graph_of_a_form_loads() -> None:
    for form, make in GRAPHS.items():
        assert onnx.load_model_from_string(make().SerializeToString()).graph.node, form
