"""TFLite files as sources: what they compute, run by LiteRT, against their export; quantization; damaged files."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from ai_edge_litert import schema_py_generated as bindings
from onnx import ModelProto, TensorProto
from support.tflite import FOLDER, Call, Spec, changed, fixture, operators

from trtrecipe.engines.tflite_source import TfliteSource, run_tflite
from trtrecipe.errors import StepError
from trtrecipe.formats import model_format
from trtrecipe.graphs import flatbuffer, from_tflite, tflite_file, tflite_schema
from trtrecipe.graphs.carried import constants, is_pair_node
from trtrecipe.graphs.interface import interface
from trtrecipe.recipe.checks import check
from trtrecipe.steps import compile as build
from trtrecipe.steps import export, lower, prepare

RANDOM = np.random.default_rng(5)
FLOATS = ("attention", "attention_dynamic", "decoder", "recurrent", "vision_dynamic", "vision_float", "vision_float16")
INTEGERS = ("vision_int8", "vision_int8_int8", "vision_int8_tensor", "vision_int8_uint8")
BATCHES = {"attention": "ids", "attention_dynamic": "ids", "vision_dynamic": "image", "vision_float": "image"}
BATCHES |= {"vision_float16": "image"} | dict.fromkeys(INTEGERS, "image")


def exported(path: Path, folder: Path, **params: Any) -> tuple[ModelProto, dict[str, Any]]:
    folder.mkdir(exist_ok=True)
    measured = export.run(export.Params(format="tflite", **params), {"model": path}, folder)
    return onnx.load(folder / "model.onnx"), dict(measured)


def run(model: ModelProto, feeds: Mapping[str, Any]) -> dict[str, Any]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def drawn(model: ModelProto, batch: int = 1, seed: int = 0) -> dict[str, Any]:
    """Inputs: floats of both signs ("positive": of one), integers from 0 to 7."""
    feeds = {}
    random = np.random.default_rng(seed)
    for spec in interface(model).inputs:
        shape = [size if isinstance(size, int) else batch for size in spec.shape]
        if spec.dtype == "float32":
            values = random.standard_normal(shape).astype(np.float32)
            feeds[spec.name] = np.abs(values) + np.float32(0.01) if spec.name == "positive" else values
        elif spec.dtype == "bool":
            feeds[spec.name] = random.integers(0, 2, shape).astype(bool)
        else:
            feeds[spec.name] = random.integers(0, 8, shape).astype(spec.dtype)
    return feeds


def assert_close(found: Mapping[str, Any], wanted: Mapping[str, Any], relative: float = 1e-5) -> None:
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        assert found[name].shape == values.shape, name
        assert found[name].dtype == values.dtype, name
        largest = np.abs(values.astype(np.float64)).max(initial=0)
        np.testing.assert_allclose(found[name], values, rtol=0, atol=relative * max(largest, 1e-3), err_msg=name)


def counts(model: ModelProto) -> dict[str, int]:
    found: dict[str, int] = {}
    for node in model.graph.node:
        found[node.op_type] = found.get(node.op_type, 0) + 1
    return found


# What the exports compute


@pytest.mark.parametrize("name", FLOATS)
def test_float_models_compute_what_litert_does(name: str, tmp_path: Path) -> None:
    open_axis = {}
    if name in BATCHES:
        shape = {"ids": ["batch", 6], "image": ["batch", 16, 16, 3]}[BATCHES[name]]
        open_axis = {"inputs": {BATCHES[name]: {"shape": shape}}, "dims": ["batch"]}
    model, measured = exported(fixture(name), tmp_path, **open_axis)
    assert not {"QuantizeLinear", "DequantizeLinear"} & counts(model).keys()
    for batch in (1, 3) if open_axis else (1,):
        feeds = drawn(model, batch)
        assert_close(run(model, feeds), run_tflite(fixture(name), feeds))
    assert all(output["relative"] < 1e-5 for output in measured["check"]["outputs"].values())


@pytest.mark.parametrize("name", INTEGERS)
def test_models_in_8_bits_stay_within_a_step_of_litert(name: str, tmp_path: Path) -> None:
    model, measured = exported(fixture(name), tmp_path)
    assert measured["check"]["against"] == "the TFLite model computes"
    assert [spec.dtype for spec in (*interface(model).inputs, *interface(model).outputs)] == ["float32", "float32"]
    source = TfliteSource(fixture(name))
    for seed in range(5):
        feeds = drawn(model, seed=seed)
        wanted, found = source.run(feeds)["output_0"], run(model, feeds)["output_0"]
        assert np.abs(found - wanted).max() <= 1.001 * source.steps()["output_0"]
    assert source.steps() == {"output_0": 1 / 256}


def test_every_operator_of_the_zoo_computes_what_litert_does() -> None:
    model = from_tflite.read(fixture("zoo"), None, None).model
    feeds = drawn(model)
    assert_close(run(model, feeds), run_tflite(fixture("zoo"), feeds))


def test_every_operator_of_the_zoo_in_8_bits_is_a_step_off_at_most() -> None:
    """But for two that LiteRT 2.3 has wrong, and what amplifies the one step that the convolution is off."""
    defects = {
        "div",  # saturates to the wrong end: its own error is 2.97 of 2.98
        "reverse",  # copies integers between tensors that the converter gave different scales
    }
    path = fixture("zoo_int8")
    model = from_tflite.read(path, None, None).model
    source = TfliteSource(path)
    graph = from_tflite.choose(tflite_file.read(path), None)
    behind: set[int] = set()
    for operator in graph.graph.operators:
        if operator.name == "CONV_2D" or behind.intersection(operator.inputs):
            behind.update(operator.outputs)
    feeds = drawn(model)
    found, wanted, steps = run(model, feeds), source.run(feeds), source.steps()
    assert len(steps) > 40
    for name, values in wanted.items():
        off = np.abs(found[name].astype(np.float64) - values).max(initial=0)
        if name not in defects and graph.outputs[name] not in behind:
            allowed = 4 if name == "prod" else 1.001  # it rounds after each factor
            assert off <= allowed * steps.get(name, 1e-5 * max(np.abs(values).max(), 1)), name
        elif name not in defects:
            assert off <= 2 * 0.4274, name  # twice the step of the convolution


@pytest.mark.parametrize("signature", ["encode", "decode"])
def test_signature_is_chosen_by_name(signature: str) -> None:
    found = from_tflite.read(fixture("signatures"), signature, None)
    feeds = drawn(found.model)
    wanted = run_tflite(fixture("signatures"), feeds, signature)
    assert_close(run(found.model, feeds), wanted)
    assert list(wanted) == {"encode": ["code"], "decode": ["same", "x"]}[signature]


def test_state_of_an_lstm_starts_at_zero_in_each_run() -> None:
    feeds = {"series": RANDOM.standard_normal((1, 5, 4)).astype(np.float32)}
    source = TfliteSource(fixture("recurrent"))
    np.testing.assert_array_equal(source.run(feeds)["out"], source.run(feeds)["out"])


def f32(*shape: int) -> Any:
    return RANDOM.standard_normal(shape).astype(np.float32)


PICTURE = Spec(f32(2, 4, 6, 8), given=True)
CASES: dict[str, tuple[dict[str, Spec], list[Call]]] = {
    "batch_to_space": (
        {
            "x": Spec(f32(8, 2, 3, 4), given=True),
            "block": Spec(np.int32([2, 2])),
            "crops": Spec(np.int32([[0, 1], [1, 0]])),
            "y": Spec(f32(2, 3, 5, 4)),
        },
        [Call("BATCH_TO_SPACE_ND", ["x", "block", "crops"], ["y"])],
    ),
    "space_to_batch": (
        {
            "x": Spec(f32(2, 3, 5, 4), given=True),
            "block": Spec(np.int32([2, 3])),
            "pads": Spec(np.int32([[1, 0], [0, 1]])),
            "y": Spec(f32(12, 2, 2, 4)),
        },
        [Call("SPACE_TO_BATCH_ND", ["x", "block", "pads"], ["y"])],
    ),
    "prelu_after_conv": (
        {
            "x": PICTURE,
            "w": Spec(f32(4, 3, 3, 8)),
            "b": Spec(f32(4)),
            "c": Spec(f32(2, 4, 6, 4)),
            "slope": Spec(f32(1, 1, 4)),
            "y": Spec(f32(2, 4, 6, 4)),
        },
        [
            Call("CONV_2D", ["x", "w", "b"], ["c"], "Conv2DOptions", {"strideW": 1, "strideH": 1}),
            Call("PRELU", ["c", "slope"], ["y"]),
        ],
    ),
    "same_padding_with_stride": (
        {
            "x": Spec(f32(1, 7, 8, 3), given=True),
            "w": Spec(f32(5, 4, 3, 3)),
            "b": Spec(f32(5)),
            "y": Spec(f32(1, 3, 4, 5)),
        },
        [Call("CONV_2D", ["x", "w", "b"], ["y"], "Conv2DOptions", {"strideW": 2, "strideH": 3})],
    ),
    "transposed_with_bias": (
        {
            "shape": Spec(np.int32([1, 8, 9, 4])),
            "w": Spec(f32(4, 3, 3, 6)),
            "x": Spec(f32(1, 3, 3, 6), given=True),
            "b": Spec(f32(4)),
            "y": Spec(f32(1, 8, 9, 4)),
        },
        [Call("TRANSPOSE_CONV", ["shape", "w", "x", "b"], ["y"], "TransposeConvOptions", {"strideW": 3, "strideH": 3})],
    ),
    "gelu_tanh": (
        {"x": PICTURE, "y": PICTURE},
        [Call("GELU", ["x"], ["y"], "GeluOptions", {"approximate": True})],
    ),
    "relus": (
        {"x": PICTURE, "a": PICTURE, "y": PICTURE},
        [Call("RELU6", ["x"], ["a"]), Call("RELU_0_TO_1", ["a"], ["y"])],
    ),
    "zeros_of_a_shape": (
        {"x": PICTURE, "z": PICTURE, "s": Spec(np.int32([0, 0, 0, 0])), "v": Spec(np.float32(2.5)), "y": PICTURE},
        [
            Call("ZEROS_LIKE", ["x"], ["z"]),
            Call("SHAPE", ["z"], ["s"], "ShapeOptions", {"outType": bindings.TensorType.INT32}),
            Call("FILL", ["s", "v"], ["y"]),
        ],
    ),
    "embedding": (
        {"ids": Spec(np.int32([0, 0, 0]), given=True), "table": Spec(f32(9, 4)), "y": Spec(f32(3, 4))},
        [Call("EMBEDDING_LOOKUP", ["ids", "table"], ["y"])],
    ),
    "comparison": (
        {"x": PICTURE, "b": Spec(np.zeros((2, 4, 6, 8), bool)), "y": PICTURE, "m": Spec(np.float32(0.3))},
        [Call("LESS", ["x", "m"], ["b"]), Call("SELECT_V2", ["b", "x", "m"], ["y"])],
    ),
    "unequal": (
        {"ids": Spec(np.int32([0] * 4), given=True), "two": Spec(np.int32(2)), "y": Spec(np.zeros(4, bool))},
        [Call("NOT_EQUAL", ["ids", "two"], ["y"])],
    ),
    "floor_div": (
        {"x": PICTURE, "half": Spec(np.float32(0.7)), "y": PICTURE},
        [Call("FLOOR_DIV", ["x", "half"], ["y"])],
    ),
    "sum_of_three": (
        {"x": PICTURE, "z": PICTURE, "y": PICTURE},
        [
            Call("ADD", ["x", "x"], ["z"], "AddOptions", {"fusedActivationFunction": 2}),
            Call("ADD_N", ["x", "z", "x"], ["y"]),
        ],
    ),
    "beta": (
        {"x": PICTURE, "y": PICTURE},
        [Call("SOFTMAX", ["x"], ["y"], "SoftmaxOptions", {"beta": 0.4})],
    ),
    "fake_quant": (
        {"x": PICTURE, "y": PICTURE},
        [Call("FAKE_QUANT", ["x"], ["y"], "FakeQuantOptions", {"min": -1.0, "max": 2.0, "numBits": 8})],
    ),
    "unsigned_weights": (
        {
            "x": Spec(np.uint8(np.zeros((1, 5, 5, 3))), given=True, scale=[0.03], zero=[120]),
            "w": Spec(RANDOM.integers(0, 256, (4, 3, 3, 3)).astype(np.uint8), scale=[0.02], zero=[140]),
            "b": Spec(RANDOM.integers(-900, 900, 4).astype(np.int32), scale=[0.0006], zero=[0]),
            "y": Spec(np.uint8(np.zeros((1, 3, 3, 4))), scale=[0.06], zero=[11]),
        },
        [
            Call(
                "CONV_2D",
                ["x", "w", "b"],
                ["y"],
                "Conv2DOptions",
                {"padding": 1, "strideW": 1, "strideH": 1, "fusedActivationFunction": 1},
            )
        ],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_operators_that_the_converter_seldom_writes(name: str, tmp_path: Path) -> None:
    tensors, calls = CASES[name]
    path = operators(tmp_path / "m.tflite", tensors, calls, ["y"])
    model, _ = exported(path, tmp_path / "out")
    feeds = drawn(model)
    source = TfliteSource(path)
    if source.steps():
        off = np.abs(run(model, feeds)["y"] - source.run(feeds)["y"]).max()
        assert off <= 1.001 * source.steps()["y"]
    else:
        assert_close(run(model, feeds), source.run(feeds))


# Names, bytes, layouts


def test_same_bytes_in_every_process_and_for_every_hash_seed() -> None:
    program = (
        "import sys, hashlib\nfrom pathlib import Path\nfrom trtrecipe.graphs.from_tflite import read\n"
        "for name in sys.argv[1:]:\n"
        "    data = read(Path(name), None, None).model.SerializeToString(deterministic=True)\n"
        "    print(hashlib.sha256(data).hexdigest())"
    )
    names = [str(fixture(name)) for name in ("zoo", "vision_int8_uint8", "attention")]

    def digests(seed: str) -> list[str]:
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-c", program, *names], env=environment, capture_output=True, text=True, check=True
        )
        return done.stdout.split()

    found = digests("1")
    assert len(set(found)) == 3
    assert digests("77") == found
    here = [from_tflite.read(Path(name), None, None).model.SerializeToString(deterministic=True) for name in names]
    assert [hashlib.sha256(data).hexdigest() for data in here] == found


def test_names_of_constants_in_the_file_do_not_matter(tmp_path: Path) -> None:
    def change(model: Any) -> None:
        for tensor in model.subgraphs[0].tensors:
            if tensor.name.startswith((b"arith.constant", b"tfl.pseudo")):
                tensor.name += b"_other"

    other = changed("vision_int8", tmp_path / "m.tflite", change)
    models = [from_tflite.read(path, None, None).model for path in (fixture("vision_int8"), other)]
    assert other.read_bytes() != fixture("vision_int8").read_bytes()
    assert models[0].SerializeToString(deterministic=True) == models[1].SerializeToString(deterministic=True)


def test_layers_bear_the_models_names_also_of_what_was_merged(tmp_path: Path) -> None:
    model, _ = exported(fixture("vision_int8"), tmp_path)
    layers = json.loads((tmp_path / "layers.json").read_text())["layers"]
    nodes = {node.name for node in model.graph.node}
    assert nodes.issuperset(name for names in layers.values() for name in names)
    assert "stem/convolution/Conv" in layers["stem"]
    assert layers["stem_norm"] == layers["stem"]
    assert {"depth", "depth_relu", "point", "sum", "squeeze", "excite", "largest", "hidden"} <= layers.keys()


def test_channels_come_first_between_convolutions() -> None:
    """One Transpose where pictures come in and one where they are flattened; none in between."""
    model = from_tflite.read(fixture("vision_float"), None, None).model
    assert counts(model)["Transpose"] == 2


def test_reshapes_need_no_shapes_computed_at_run_time(tmp_path: Path) -> None:
    inputs = {"ids": {"shape": ["batch", 6]}}
    model, _ = exported(fixture("attention"), tmp_path, inputs=inputs, dims=["batch"])
    assert not {"Shape", "Gather", "ReduceProd"} - {"Gather"} & counts(model).keys()
    assert counts(model)["Gather"] == 1  # the embedding


def test_opset_is_raised_where_the_recipe_asks_for_it(tmp_path: Path) -> None:
    assert exported(fixture("vision_int8"), tmp_path / "a")[0].opset_import[0].version == 13
    model, _ = exported(fixture("vision_int8"), tmp_path / "b", opset=17)
    assert model.opset_import[0].version == 17
    feeds = drawn(model)
    source = TfliteSource(fixture("vision_int8"))
    assert np.abs(run(model, feeds)["output_0"] - source.run(feeds)["output_0"]).max() <= 1.001 / 256


# Quantization


def test_weights_keep_their_integers_and_biases_become_floats() -> None:
    model = from_tflite.read(fixture("vision_int8"), None, None).model
    held = constants(model)
    makers = {name: node for node in model.graph.node for name in node.output}
    stem = next(node for node in model.graph.node if node.name == "stem/convolution/Conv")
    weights = makers[stem.input[1]]
    assert weights.op_type == "DequantizeLinear"
    assert held[weights.input[0]].data_type == TensorProto.INT8
    assert list(held[weights.input[0]].dims) == [16, 3, 3, 3]
    assert list(held[weights.input[1]].dims) == [16]
    assert makers[stem.input[0]].op_type == "DequantizeLinear"  # with the Transpose of the layout in front of the pair
    assert held[stem.input[2]].data_type == TensorProto.FLOAT
    stored = next(t for t in tflite_file.read(fixture("vision_int8")).graphs[0].tensors if t.shape == (16, 3, 3, 3))
    integers = onnx.numpy_helper.to_array(held[weights.input[0]])
    np.testing.assert_array_equal(integers, stored.values().transpose(0, 3, 1, 2))


def test_prepare_makes_the_scales_symmetric_and_says_so(tmp_path: Path) -> None:
    model, _ = exported(fixture("vision_int8_uint8"), tmp_path)
    (tmp_path / "p").mkdir()
    notes = prepare.run(prepare.Params(), {"onnx": tmp_path / "model.onnx"}, tmp_path / "p")["notes"]
    result = onnx.load(tmp_path / "p" / "model.onnx")
    held = constants(result)
    pairs = [node for node in result.graph.node if is_pair_node(node)]
    assert {held[node.input[2]].data_type for node in pairs} == {TensorProto.INT8}
    assert not any(onnx.numpy_helper.to_array(held[node.input[2]]).any() for node in pairs)
    assert any(note.startswith("changed: 15 tensors had ranges that are not symmetric") for note in notes)
    feeds = drawn(model)
    before, after = run(model, feeds)["output_0"], run(result, feeds)["output_0"]
    assert np.abs(before - after).max() < 0.1
    assert np.argmax(before) == np.argmax(after)


def test_inputs_of_8_bits_become_floats_and_the_note_says_what_to_give(tmp_path: Path) -> None:
    _, measured = exported(fixture("vision_int8_uint8"), tmp_path)
    (note,) = (note for note in measured["notes"] if note.startswith("input image is UINT8"))
    assert "(integer - 121) * 0.030285051" in note
    with pytest.raises(StepError, match="input image of the model is float32, the recipe says uint8"):
        exported(fixture("vision_int8_uint8"), tmp_path, inputs={"image": {"dtype": "uint8"}})


def test_weights_that_are_only_stored_in_8_bits_become_floats(tmp_path: Path) -> None:
    _, measured = exported(fixture("vision_dynamic"), tmp_path)
    assert "3 weight tensors stored in 8 bits became floats of the same values" in " ".join(measured["notes"])


def test_integer_model_and_another_mode_contradict_each_other(tmp_path: Path) -> None:
    exported(fixture("vision_int8"), tmp_path)
    with pytest.raises(StepError, match="the model is quantized already") as caught:
        lower.check_quantization(onnx.load(tmp_path / "model.onnx"), lower.Params("d", 13, "fp16"))
    assert "start from the float model" in str(caught.value.hint)


@pytest.mark.parametrize(("name", "mode"), [("vision_int8_uint8", "int8"), ("decoder", "fp32")])
def test_tensorrt_for_rtx_builds_it(name: str, mode: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    exported(fixture(name), tmp_path)
    graph = tmp_path / "model.onnx"
    for kind, params in (("p", prepare.Params()), ("l", lower.Params("rtx", 21, mode))):
        (tmp_path / kind).mkdir()
        step = prepare if kind == "p" else lower
        step.run(params, {"onnx": graph, "layers": tmp_path / "layers.json"}, tmp_path / kind)
        graph = tmp_path / kind / "model.onnx"
    (tmp_path / "e").mkdir()
    build.run(build.Params("tensorrt-rtx"), {"onnx": graph}, tmp_path / "e")
    assert (tmp_path / "e" / build.OUTPUTS["engine"]).stat().st_size > 10_000


# What is refused


def test_signature_is_for_tflite_too_and_tags_are_not() -> None:
    recipe = {"model": {"source": "m.tflite", "signature": "encode", "tags": ["serve"]}}
    (finding,) = check(recipe)
    assert finding.message == "model.tags is for a saved_model, and this model is tflite"


def test_format_is_told_from_the_content(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(fixture("vision_float").read_bytes())
    assert model_format(path) == "tflite"


@pytest.mark.parametrize(
    ("signature", "message", "hint"),
    [
        (None, "has several signatures, and no serving_default", "signature: decode"),
        ("run", "has no signature run: its signatures are decode, encode", "signature: decode"),
    ],
)
def test_signature_that_is_not_there(signature: str | None, message: str, hint: str) -> None:
    with pytest.raises(StepError, match=message) as caught:
        from_tflite.read(fixture("signatures"), signature, None)
    assert hint in str(caught.value.hint)


def test_signature_of_a_model_without_any(tmp_path: Path) -> None:
    def change(model: Any) -> None:
        model.signatureDefs = None

    path = changed("vision_float", tmp_path / "m.tflite", change)
    assert [spec.name for spec in interface(from_tflite.read(path, None, None).model).inputs] == [
        "serving_default_image:0"
    ]
    with pytest.raises(StepError, match="has no signature serve: it has no signatures"):
        from_tflite.read(path, "serve", None)


def detector(path: Path) -> Path:
    """The decoder with operators of others at its end."""
    tensors = {
        "x": Spec(f32(1, 4, 4, 2), given=True),
        "scores": Spec(f32(1, 4, 4, 2)),
        "boxes": Spec(f32(1, 4, 4, 2)),
        "found": Spec(f32(10, 4)),
        "erf": Spec(f32(10, 4)),
    }
    calls = [
        Call("LOGISTIC", ["x"], ["scores"]),
        Call("TANH", ["x"], ["boxes"]),
        Call("TFLite_Detection_PostProcess", ["scores", "boxes"], ["found"]),
        Call("FlexErf", ["found"], ["erf"]),
    ]
    return operators(path, tensors, calls, ["erf"])


def test_operators_without_a_form_are_named_with_what_they_read(tmp_path: Path) -> None:
    with pytest.raises(StepError) as caught:
        from_tflite.read(detector(tmp_path / "m.tflite"), None, None)
    assert caught.value.message == (
        "the TFLite model has operators that cannot be written in ONNX:\n"
        "  TFLite_Detection_PostProcess (custom): found, which reads scores, boxes\n"
        "  FlexErf (custom): erf, which reads found"
    )
    assert "model.outputs can name the tensors that they read" in str(caught.value.hint)


def test_model_is_ended_before_operators_that_have_no_form(tmp_path: Path) -> None:
    path = detector(tmp_path / "m.tflite")
    model, measured = exported(path, tmp_path / "out", outputs=["scores", "boxes"])
    assert [spec.name for spec in interface(model).outputs] == ["scores", "boxes"]
    assert measured["check"]["outputs"].keys() == {"scores", "boxes"}
    feeds = drawn(model)
    assert_close(run(model, feeds), TfliteSource(path, None, ["scores", "boxes"]).run(feeds))


def test_an_output_that_is_a_constant_of_the_file(tmp_path: Path) -> None:
    k = np.float32([1, -2, 0.5])
    tensors = {"x": PICTURE, "y": Spec(f32(2, 4, 6, 8)), "k": Spec(k), "s": Spec(np.int8([5, 7]), scale=[0.5])}
    path = operators(tmp_path / "m.tflite", tensors, [Call("RELU", ["x"], ["y"])], ["y", "k", "s"])
    model = from_tflite.read(path, None, None).model
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (name,) = [each.name for each in session.get_inputs()]
    found = session.run(["k", "s"], {name: f32(2, 4, 6, 8)})
    np.testing.assert_array_equal(found[0], k)
    np.testing.assert_array_equal(found[1], np.float32([2.5, 3.5]))


def test_operators_that_have_a_form_only_in_part(tmp_path: Path) -> None:
    def refused(tensors: dict[str, Spec], *calls: Call) -> str:
        with pytest.raises(StepError) as caught:
            from_tflite.read(operators(tmp_path / "m.tflite", tensors, calls, ["y"]), None, None)
        return caught.value.message

    mirrored = {"x": PICTURE, "p": Spec(np.int32([[0, 0], [1, 1], [1, 1], [0, 0]])), "y": Spec(f32(2, 6, 8, 8))}
    call = Call("MIRROR_PAD", ["x", "p"], ["y"], "MirrorPadOptions", {"mode": 1})
    assert "it repeats the edge itself (SYMMETRIC)" in refused(mirrored, call)
    gathered = {"x": PICTURE, "i": Spec(np.int32([[0], [1]])), "y": Spec(f32(2, 1, 6, 8))}
    call = Call("GATHER", ["x", "i"], ["y"], "GatherOptions", {"axis": 1, "batchDims": 1})
    assert "it has batch_dims" in refused(gathered, call)
    wide = {"x": PICTURE, "y": Spec(np.zeros((2, 4, 6, 8), np.int16), scale=[0.1])}
    assert "it makes INT16 with a scale; only 8 bits are supported" in refused(wide, Call("QUANTIZE", ["x"], ["y"]))


def test_long_lstm_with_bounded_cells_is_noted(tmp_path: Path) -> None:
    def change(model: Any) -> None:
        model.subgraphs[0].operators[0].builtinOptions.cellClip = 3.0

    found = from_tflite.read(changed("recurrent", tmp_path / "m.tflite", change), None, None)
    assert "TFLite keeps the cells of this LSTM between ±3" in " ".join(found.notes)
    assert not from_tflite.read(fixture("recurrent"), None, None).notes  # 10, after 5 steps


# Damaged files


def converted(data: bytes, path: Path) -> StepError | None:
    """The refusal, None where the bytes still make a model. Any other exception fails the test."""
    path.write_bytes(data)
    try:
        from_tflite.read(path, None, None)
    except StepError as error:
        return error
    return None


def test_files_that_are_no_tflite(tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    whole = fixture("vision_float").read_bytes()
    assert "has no TFL3 at byte 4" in str(converted(b"\x08\x07" * 40, path))
    assert "is a Git LFS pointer" in str(converted(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", path))
    assert "is damaged, or cut short" in str(converted(whole[:8], path))
    assert "is damaged, or cut short" in str(converted(b"\xff" * 4 + whole[4:], path))


def test_cut_short_at_any_length(tmp_path: Path) -> None:
    whole = fixture("vision_int8").read_bytes()
    for length in range(8, len(whole), 509):
        error = converted(whole[:length], tmp_path / "m.tflite")
        assert error is not None and "is damaged, or cut short" in error.message, length


@pytest.mark.parametrize("name", ["vision_int8_uint8", "decoder", "recurrent"])
def test_altered_bytes_give_a_message_or_another_model(name: str, tmp_path: Path) -> None:
    whole = fixture(name).read_bytes()
    random = np.random.default_rng(3)
    refused = 0
    for _ in range(150):
        data = bytearray(whole)
        for place in random.integers(8, len(data), 12):
            data[place] = random.choice([0, 1, 255, 127, int(random.integers(256))])
        refused += converted(bytes(data), tmp_path / "m.tflite") is not None
    assert refused > 20


def test_the_same_entries_many_times_over_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list may name one table as often as it likes; what is unpacked is bounded all the same."""
    monkeypatch.setattr(flatbuffer, "ITEMS", 5000)

    def change(model: Any) -> None:
        model.subgraphs[0].operators *= 1000

    path = changed("vision_float", tmp_path / "m.tflite", change)
    with pytest.raises(StepError, match="it holds more than 5000 entries"):
        from_tflite.read(path, None, None)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda graph: setattr(graph.operators[0], "inputs", [0, 999, 1]), "CONV_2D refers to tensor 999 of"),
        (lambda graph: setattr(graph.operators[0].builtinOptions, "strideW", 0), "stride_h, stride_w of [2, 0]"),
        (lambda graph: setattr(graph.operators[3], "outputs", graph.operators[0].outputs), "is made twice"),
        (lambda graph: setattr(graph.tensors[0], "shape", [-5, 1, 1, 1]), "has the shape"),
        (lambda graph: setattr(graph.tensors[0], "buffer", 4096), "is in buffer 4096 of"),
        (lambda graph: graph.operators.reverse(), "has 0 bytes"),
    ],
)
def test_references_that_lead_nowhere(change: Any, words: str, tmp_path: Path) -> None:
    def apply(model: Any) -> None:
        for tensor in model.subgraphs[0].tensors:
            tensor.shapeSignature = None
        change(model.subgraphs[0])

    path = changed("vision_float", tmp_path / "m.tflite", apply)
    with pytest.raises(StepError) as caught:
        from_tflite.read(path, None, None)
    assert words in caught.value.message


def test_shapes_that_the_weights_contradict_are_refused(tmp_path: Path) -> None:
    def change(model: Any) -> None:
        model.subgraphs[0].tensors[0].shape = np.int32([1, 16, 16, 6])
        model.subgraphs[0].tensors[0].shapeSignature = np.int32([1, 16, 16, 6])
        model.subgraphs[0].operators[0].inputs[1], model.subgraphs[0].operators[0].inputs[2] = (
            model.subgraphs[0].operators[0].inputs[2],
            model.subgraphs[0].operators[0].inputs[1],
        )

    with pytest.raises(StepError, match="the weights of stem/convolution have the shape"):
        exported(changed("vision_float", tmp_path / "m.tflite", change), tmp_path)


# The schema


def test_slots_are_those_of_litert() -> None:
    """Slot n of a table is at 4 + 2n of its vtable; LiteRT's reader has these numbers in its code."""
    names = {number: name for name, number in vars(bindings.BuiltinOptions).items() if not name.startswith("_")}
    for operator, (union, fields) in tflite_schema.OPTIONS.items():
        table = getattr(bindings, names[union])
        for field, (slot, _, default) in fields.items():
            method = getattr(table, "".join(part.capitalize() for part in field.split("_")))
            code = inspect.getsource(method)
            assert re.search(r"Offset\((\d+)\)", code)[1] == str(4 + 2 * slot), (operator, field)  # type: ignore[index]
            if "Vector" not in code:
                assert float(eval(code.split("return ")[-1].strip())) == default, (operator, field)


def test_operators_and_types_are_numbered_as_in_litert() -> None:
    for ours, theirs in (
        (tflite_schema.OPERATORS, bindings.BuiltinOperator),
        (tflite_schema.KINDS, bindings.TensorType),
    ):
        numbers = {name: number for name, number in vars(theirs).items() if not name.startswith("_")}
        assert {name: numbers[name] for name in ours} == {name: number for number, name in enumerate(ours)}


def test_every_fixture_is_tested() -> None:
    named = {*FLOATS, *INTEGERS, "fake_quant", "signatures", "zoo", "zoo_int8"}
    assert {path.stem for path in FOLDER.glob("*.tflite")} == named


def test_fake_quantization_of_a_float_model_comes_in(tmp_path: Path) -> None:
    model, _ = exported(fixture("fake_quant"), tmp_path)
    assert [node.op_type for node in model.graph.node] == ["Mul", "QuantizeLinear", "DequantizeLinear"]
    feeds = drawn(model)
    assert_close(run(model, feeds), run_tflite(fixture("fake_quant"), feeds))
