"""quant.damage, quant.search and steps.search: which layers INT8 harms, and the fewest to keep out of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from trtrecipe.data.batches import Batch
from trtrecipe.data.outputs import write_npz
from trtrecipe.engines.ort import OrtEngine
from trtrecipe.errors import StepError
from trtrecipe.graphs import keep
from trtrecipe.quant import scales
from trtrecipe.quant.damage import LEAST, MOST, rank
from trtrecipe.quant.qdq import insert_qdq
from trtrecipe.quant.search import PRUNING, Found, fewest
from trtrecipe.quant.sites import find_sites
from trtrecipe.steps import search

LAYERS = 6
SPOILT = 3
COUNT = 48


# fewest: the search itself


def searched(ranking: str, meets: Callable[[set[str]], bool]) -> tuple[Found | None, list[str]]:
    asked: list[str] = []

    def ask(kept: tuple[str, ...]) -> bool:
        asked.append("".join(kept))
        return meets(set(kept))

    return fewest(tuple(ranking), ask), asked


def test_one_layer_at_the_top_takes_one_trial() -> None:
    assert searched("abcdefgh", lambda kept: "a" in kept) == (Found(("a",), True), ["a"])


def test_the_shortest_prefix_is_found_by_doubling_and_halving() -> None:
    found, asked = searched("abcdefghijklmnop", lambda kept: len(kept) >= 6)
    assert found == Found(tuple("abcdef"), True)
    assert asked[:6] == ["a", "ab", "abcd", "abcdefgh", "abcdef", "abcde"]


def test_what_is_not_needed_is_put_back() -> None:
    """The ranking put four harmless layers before the one that counts."""
    found, asked = searched("abcdefgh", lambda kept: "e" in kept)
    assert found == Found(("e",), True)
    assert asked[-1] == "e"


def test_scattered_layers_are_found_in_the_order_of_the_ranking() -> None:
    assert searched("abcdefghij", lambda kept: {"b", "g"} <= kept)[0] == Found(("b", "g"), True)


def test_no_set_is_tried_twice() -> None:
    for needed in ("a", "bd", "aceg", "abcdefgh", "h"):
        _, asked = searched("abcdefgh", lambda kept, needed=needed: set(needed) <= kept)
        assert len(asked) == len(set(asked))
        assert "" not in asked


@pytest.mark.parametrize("needed", ["a", "c", "af", "bdh", "abcdefgh"])
def test_the_result_meets_the_condition_and_loses_it_with_any_member(needed: str) -> None:
    found, _ = searched("abcdefgh", lambda kept: set(needed) <= kept)
    assert found == Found(tuple(needed), True)


def test_nothing_helps() -> None:
    found, asked = searched("abcde", lambda kept: False)
    assert found is None
    assert asked == ["a", "ab", "abcd", "abcde"]


def test_putting_back_has_a_limit_and_says_so() -> None:
    names = [f"layer{number:03}" for number in range(200)]
    asked: list[tuple[str, ...]] = []
    needed = set(names[1::2])  # every second one: nothing can be put back in groups

    def ask(kept: tuple[str, ...]) -> bool:
        asked.append(kept)
        return needed <= set(kept)

    found = fewest(names, ask)
    assert found is not None
    assert not found.complete
    assert needed <= set(found.kept)
    assert len(asked) <= PRUNING + 2 * 8


# Damage and the step, on a net of which one layer cannot be quantized


def net(spoilt: bool = True) -> onnx.ModelProto:
    """LAYERS MatMuls with Relu between. The input of the one at SPOILT has channels of very unequal size."""
    random = np.random.default_rng(3)
    width = 48
    nodes, constants, name = [], [], "x"
    weights = [random.standard_normal((width, width)).astype(np.float32) / 5 for _ in range(LAYERS)]
    if spoilt:
        factors = np.where(np.arange(width) % 2, 256, 1).astype(np.float32)
        weights[SPOILT - 1] *= factors
        weights[SPOILT] /= factors[:, np.newaxis]
    for number, weight in enumerate(weights):
        last = number == LAYERS - 1
        constants.append(numpy_helper.from_array(weight, f"w{number}"))
        product = "y" if last else f"m{number}"
        nodes.append(helper.make_node("MatMul", [name, f"w{number}"], [product], f"matmul{number}"))
        if not last:
            name = f"r{number}"
            nodes.append(helper.make_node("Relu", [product], [name], f"relu{number}"))
    values = [helper.make_tensor_value_info(each, TensorProto.FLOAT, ["n", width]) for each in ("x", "y")]
    graph = helper.make_graph(nodes, "net", [values[0]], [values[1]], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


SAMPLES = np.random.default_rng(4).standard_normal((COUNT, 48)).astype(np.float32)


def outputs_of(model: onnx.ModelProto) -> np.ndarray:
    with OrtEngine(model) as engine:
        return engine.run({"x": SAMPLES})["y"]


def thresholds_of(model: onnx.ModelProto) -> dict[str, float]:
    names = sorted({site.activation for site in find_sites(model).sites})
    observed = onnx.ModelProto()
    observed.CopyFrom(model)
    del observed.graph.output[:]
    observed.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    with OrtEngine(observed) as engine:
        return {name: float(np.abs(values).max()) for name, values in engine.run({"x": SAMPLES}).items()}


def sample(index: int) -> Batch:
    return Batch({"x": SAMPLES[index : index + 1]}, 1, 1)


def test_the_spoilt_layer_is_the_most_harmful_by_far() -> None:
    model = net()
    ranking = rank(model, thresholds_of(model), (), sample, COUNT)
    assert sorted(each.node for each in ranking) == [f"matmul{number}" for number in range(LAYERS)]
    assert ranking[0].node == f"matmul{SPOILT}"
    assert ranking[0].operator == "MatMul"
    assert 100 * ranking[1].damage < ranking[0].damage < 1
    assert [each.damage for each in ranking] == sorted((each.damage for each in ranking), reverse=True)


def test_damage_is_the_noise_in_the_outputs_with_one_layer_quantized() -> None:
    """Where there are so few samples that each layer gets all of them, an evaluation for each says the same."""
    model, few = net(), LEAST
    thresholds = thresholds_of(model)
    names = {f"matmul{number}" for number in range(LAYERS)}
    exact = outputs_of(model)[:few].astype(np.float64)
    for each in rank(model, thresholds, (), sample, few):
        alone = outputs_of(insert_qdq(model, thresholds, names - {each.node})[0])[:few]
        error = np.square(alone - exact).sum()
        # One by one and all together, ONNX Runtime may round the last bit of a product differently.
        assert each.damage == pytest.approx(error / (error + np.square(exact).sum()), rel=1e-2)


@pytest.mark.parametrize(("count", "runs"), [(1, LEAST), (10 * LAYERS, 10), (1000 * LAYERS, MOST)])
def test_each_layer_gets_as_many_samples_as_there_are_for_it_within_limits(count: int, runs: int) -> None:
    asked: list[int] = []

    def batch(index: int) -> Batch:
        asked.append(index)
        return sample(index % COUNT)

    model = net()
    rank(model, thresholds_of(model), (), batch, count)
    assert len(asked) == min(count, runs * LAYERS)
    assert asked == sorted(set(asked))
    assert max(asked) >= 0.98 * (count - 1)  # spread over all of them


def test_kept_layers_are_not_ranked() -> None:
    model = net()
    ranking = rank(model, thresholds_of(model), ("matmul0", f"matmul{SPOILT}"), sample, COUNT)
    assert len(ranking) == LAYERS - 2
    assert not {"matmul0", f"matmul{SPOILT}"} & {each.node for each in ranking}


def test_ranking_is_the_same_each_time() -> None:
    model = net()
    thresholds = thresholds_of(model)
    assert rank(model, thresholds, (), sample, COUNT) == rank(model, thresholds, (), sample, COUNT)


@pytest.mark.parametrize(("operator", "attributes"), [("ArgMax", {"axis": 1}), ("NonZero", {})])
def test_outputs_that_are_integers_or_change_their_shape(operator: str, attributes: dict[str, int]) -> None:
    model = net()
    model.graph.node[-1].output[0] = "last"
    model.graph.node.append(helper.make_node("Relu", ["last"], ["positive"], "positive"))
    model.graph.node.append(helper.make_node(operator, ["positive"], ["y"], "end", **attributes))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.INT64, ["a", "b"]))
    ranking = rank(model, thresholds_of(model), (), sample, COUNT)
    assert ranking[0].node == f"matmul{SPOILT}"
    assert all(0 <= each.damage <= 1 for each in ranking)


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    """What the step reads, for the spoilt net; the label is what FP32 says."""
    model = net()
    thresholds = thresholds_of(model)
    exact = outputs_of(model)
    paths = {"onnx": "model.onnx", "scales": "scales.json", "keep": "keep.json", "reference": "outputs.npz"}
    paths |= {"data.x": "x.npy", "data.label": "label.npy"}
    files = {role: tmp_path / name for role, name in paths.items()}
    onnx.save(model, files["onnx"])
    files["scales"].write_bytes(scales.dump(scales.Scales("minmax", COUNT, thresholds)))
    files["keep"].write_bytes(keep.dump({}))
    write_npz(files["reference"], {"y": exact})
    np.save(files["data.x"], SAMPLES)
    np.save(files["data.label"], exact.argmax(axis=1))
    return files


def run(inputs: dict[str, Path], out: Path, gates: dict[str, Any], fallback: str = "fp32") -> dict[str, Any]:
    out.mkdir()
    params = search.Params(fallback=fallback, gates=gates, metric="top1")
    measured = dict(search.run(params, inputs, out))
    assert sorted(path.name for path in out.iterdir()) == sorted(search.OUTPUTS.values())
    json.dumps(measured, allow_nan=False)
    return measured


def documents(out: Path) -> tuple[dict[str, str], dict[str, Any]]:
    return keep.load(out / "keep.json"), json.loads((out / "search.json").read_text())


@pytest.mark.parametrize("fallback", ["fp32", "fp16"])
def test_the_layer_at_fault_is_kept_and_no_other(inputs: dict[str, Path], tmp_path: Path, fallback: str) -> None:
    measured = run(inputs, tmp_path / "out", {"accuracy": {"max_drop": 0.05}}, fallback)
    kept, report = documents(tmp_path / "out")
    assert kept == {f"matmul{SPOILT}": fallback}
    assert measured["kept"] == report["kept"] == [f"matmul{SPOILT}"]
    assert report["schema"] == "trtrecipe/search/v1"
    assert [row["rank"] for row in report["ranking"]] == list(range(1, LAYERS + 1))
    assert [row["node"] for row in report["ranking"] if row["kept"]] == [f"matmul{SPOILT}"]
    assert measured["ranking"] == report["ranking"]
    trials = report["evaluations"]
    assert [(trial["kept"], trial["met"]) for trial in trials] == [(0, False), (1, True)]
    assert trials[0]["accuracy"] < 0.9 < trials[1]["accuracy"]
    assert measured["evaluations"] == 2
    assert measured["figures"]["accuracy"] == trials[1]["accuracy"]
    assert f"1 of {LAYERS} layers is kept in {fallback.upper()}: matmul{SPOILT}" in measured["notes"][0]


def test_what_is_found_gives_the_figures_that_were_promised(inputs: dict[str, Path], tmp_path: Path) -> None:
    measured = run(inputs, tmp_path / "out", {"cosine": 0.999})
    kept, _ = documents(tmp_path / "out")
    model = onnx.load(inputs["onnx"])
    ours = outputs_of(insert_qdq(model, scales.load(inputs["scales"]).thresholds, kept)[0]).astype(np.float64)
    exact = outputs_of(model).astype(np.float64)
    cosines = (ours * exact).sum(axis=1) / np.sqrt(np.square(ours).sum(axis=1) * np.square(exact).sum(axis=1))
    assert measured["figures"]["cosine"] == pytest.approx(cosines.mean(), abs=1e-6)


def test_a_gate_that_is_met_keeps_nothing(inputs: dict[str, Path], tmp_path: Path) -> None:
    measured = run(inputs, tmp_path / "out", {"cosine": 0.1})
    assert documents(tmp_path / "out")[0] == {}
    assert (measured["kept"], measured["evaluations"], measured["ranking"]) == ([], 1, [])
    assert "nothing is kept" in measured["notes"][0]


def test_what_the_recipe_keeps_is_not_told_as_nothing(inputs: dict[str, Path], tmp_path: Path) -> None:
    first = next(node.name for node in onnx.load(inputs["onnx"]).graph.node if node.op_type in ("Conv", "MatMul"))
    inputs["keep"].write_bytes(keep.dump({first: "fp32"}))
    measured = run(inputs, tmp_path / "out", {"cosine": 0.1})
    assert measured["kept"] == [first]
    assert "every other layer in INT8; nothing more is kept" in measured["notes"][0]


def test_a_model_of_fixed_batch(inputs: dict[str, Path], tmp_path: Path) -> None:
    """9 does not divide the 48 samples."""
    model = onnx.load(inputs["onnx"])
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 9
    onnx.save(model, inputs["onnx"])
    run(inputs, tmp_path / "out", {"accuracy": {"max_drop": 0.05}})
    assert documents(tmp_path / "out")[0] == {f"matmul{SPOILT}": "fp32"}


def test_what_the_recipe_keeps_stays_kept_and_is_not_ranked(inputs: dict[str, Path], tmp_path: Path) -> None:
    inputs["keep"].write_bytes(keep.dump({"matmul0": "fp32", "relu0": "fp16"}))
    measured = run(inputs, tmp_path / "out", {"accuracy": {"max_drop": 0.05}}, "fp16")
    kept, report = documents(tmp_path / "out")
    assert kept == {"matmul0": "fp32", "relu0": "fp16", f"matmul{SPOILT}": "fp16"}
    assert set(measured["kept"]) == set(kept)
    assert report["kept"] == [f"matmul{SPOILT}"]
    assert "matmul0" not in {row["node"] for row in report["ranking"]}


def test_equal_inputs_give_equal_bytes(inputs: dict[str, Path], tmp_path: Path) -> None:
    for name in ("a", "b"):
        run(inputs, tmp_path / name, {"cosine": 0.9998})
    for name in search.OUTPUTS.values():
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def refused(inputs: dict[str, Path], tmp_path: Path, gates: dict[str, Any], fallback: str = "fp32") -> StepError:
    with pytest.raises(StepError) as caught:
        run(inputs, tmp_path / "refused", gates, fallback)
    assert caught.value.hint
    return caught.value


def test_gates_that_only_the_float_model_meets(inputs: dict[str, Path], tmp_path: Path) -> None:
    error = refused(inputs, tmp_path, {"cosine": 0.99999999})
    assert "only with every layer kept" in error.message
    assert "must be >= 0.99999999" in error.message
    assert "cosine 0.99" in error.message  # the best that was reached


def test_gates_that_not_even_the_fallback_meets(inputs: dict[str, Path], tmp_path: Path) -> None:
    error = refused(inputs, tmp_path, {"cosine": 0.9999999999}, "fp16")
    assert "not met even with every layer kept in FP16" in error.message


def test_gates_that_the_reference_itself_misses(inputs: dict[str, Path], tmp_path: Path) -> None:
    np.save(inputs["data.label"], (np.load(inputs["data.label"]) + 1) % 48)
    error = refused(inputs, tmp_path, {"accuracy": {"min": 0.9}})
    assert "the FP32 model itself does not meet the gates: accuracy.min 0, must be >= 0.9" in error.message


def test_gates_that_say_nothing_of_the_outputs(inputs: dict[str, Path], tmp_path: Path) -> None:
    model = net()
    model.graph.node[-1].output[0] = "last"
    model.graph.node.append(helper.make_node("ArgMax", ["last"], ["y"], "best", axis=1))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.INT64, ["n", 1]))
    onnx.save(model, inputs["onnx"])
    write_npz(inputs["reference"], {"y": outputs_of(model)})
    inputs.pop("data.label")
    with pytest.raises(StepError, match=r"gates that can be measured: cosine >= 0.9: not measured"):
        search.run(search.Params("fp32", {"cosine": 0.9}), inputs, tmp_path)


def test_no_gate_to_meet(inputs: dict[str, Path], tmp_path: Path) -> None:
    assert "needs a gate" in refused(inputs, tmp_path, {"accuracy": None, "agreement": None}).message


def test_a_model_with_its_own_quantization(inputs: dict[str, Path], tmp_path: Path) -> None:
    model = net()
    onnx.save(insert_qdq(model, thresholds_of(model))[0], inputs["onnx"])
    assert "quantized already" in refused(inputs, tmp_path, {"cosine": 0.9}).message


def test_overflow_in_the_fallback_is_a_trial_that_failed(inputs: dict[str, Path], tmp_path: Path) -> None:
    """The outputs leave FP16's range, in which no set of layers can help."""
    model = net()
    model.graph.node[-1].output[0] = "last"
    model.graph.initializer.append(numpy_helper.from_array(np.float32(60000), "large"))
    model.graph.node.append(helper.make_node("Mul", ["last", "large"], ["y"], "mul"))
    onnx.save(model, inputs["onnx"])
    write_npz(inputs["reference"], {"y": outputs_of(model)})
    error = refused(inputs, tmp_path, {"cosine": 0.9}, "fp16")
    assert "not met even with every layer kept" in error.message
    assert "infinite" in error.message
