"""quant.table, steps.table: calibration tables of implicit INT8, read, written and made from scales."""

from __future__ import annotations

import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from trtrecipe.errors import StepError
from trtrecipe.quant import scales, table
from trtrecipe.quant.qdq import insert_qdq
from trtrecipe.quant.table import ENTROPY_2, Table, dump, parse
from trtrecipe.steps import table as step

HEADER = b"TRT-8502-EntropyCalibration2\n"
TEXT = HEADER + b"data: 3c008912\nscope/a:0: 4000889a\n(Unnamed Layer* 4) [Constant]_output: 3d65992f\n"

versions = st.one_of(
    st.builds("{}.{}.{}".format, st.integers(7, 9), st.integers(0, 9), st.integers(0, 99)),
    st.builds("10.{}.{}".format, st.integers(0, 99), st.integers(0, 99)),
)
names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n"), min_size=1)
positive = st.floats(min_value=2**-149, max_value=3.4028234663852886e38, width=32)
tables = st.builds(
    Table,
    versions,
    st.from_regex(r"[A-Za-z][A-Za-z0-9]*", fullmatch=True),
    st.dictionaries(names, positive, min_size=1),
)


def float32(digits: str) -> float:
    return struct.unpack(">f", bytes.fromhex(digits))[0]


@given(tables)
def test_every_table_is_read_back_as_it_was_written(given: Table) -> None:
    again = parse(dump(given))
    assert again == given
    assert list(again.scales) == list(given.scales)
    assert dump(again) == dump(given)


@given(st.binary() | st.binary().map(lambda data: TEXT + data) | st.text().map(str.encode))
def test_what_is_read_is_written_the_same_and_nothing_else_is_raised(data: bytes) -> None:
    try:
        found = parse(data)
    except StepError as error:
        assert error.message and "\n" not in error.message
        return
    assert dump(found).rstrip(b"\n") == data.rstrip(b"\n")


def test_a_table_as_tensorrt_writes_it(tmp_path: Path) -> None:
    (tmp_path / "a.cache").write_bytes(TEXT)
    found = table.read(tmp_path / "a.cache")
    assert (found.tensorrt, found.algorithm) == ("8.5.2", ENTROPY_2)
    assert list(found.scales) == ["data", "scope/a:0", "(Unnamed Layer* 4) [Constant]_output"]
    assert found.scales["data"] == float32("3c008912") == pytest.approx(0.00785, rel=1e-3)
    assert found.scales["scope/a:0"] == pytest.approx(2.008, rel=1e-3)
    assert dump(found) == TEXT
    assert parse(TEXT[:-1]) == found  # a last line without its end


@pytest.mark.parametrize(
    ("version", "number"),
    [
        *(("7.1.3", 7103), ("8.0.1", 8001), ("8.2.1", 8201), ("8.5.2", 8502), ("8.5.10", 8510), ("8.6.2", 8602)),
        *(("9.3.0", 9300), ("10.0.1", 100001), ("10.3.0", 100300), ("10.13.2", 101302), ("10.16.2", 101602)),
    ],
)
def test_the_header_number_of_a_version(version: str, number: int) -> None:
    assert table.version_number(version) == number
    assert parse(f"TRT-{number}-MinMaxCalibration\nx: 3f800000\n".encode()) == Table(
        version, "MinMaxCalibration", {"x": 1.0}
    )


@pytest.mark.parametrize(
    ("version", "reason"),
    [
        ("11.0.0", "takes no calibration table: implicit quantization ended with 10.x"),
        ("8.5", "is no exact TensorRT version"),
        ("8.5.2.2", "is no exact TensorRT version"),
        ("8.5.x", "is no exact TensorRT version"),
        ("8.5.²", "is no exact TensorRT version"),
        ("", "is no exact TensorRT version"),
        ("8.10.0", "is not known"),
        ("8.5.100", "is not known"),
        ("6.0.1", "is not known"),
    ],
)
def test_a_version_without_a_header_is_refused(version: str, reason: str) -> None:
    with pytest.raises(StepError, match=reason):
        dump(Table(version, ENTROPY_2, {"x": 1.0}))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "a.cache is empty"),
        (b"\n", "line 1: '' is no header"),
        (b"x: 3f800000\n", "line 1: 'x: 3f800000' is no header"),
        (b"1\nx: 3f800000\n", "line 1: '1' is no header"),
        (b"TRT-8XXX-EntropyCalibration2\nx: 3f800000\n", "is no header"),
        (b"TRT-8502-Entropy 2\nx: 3f800000\n", "is no header"),
        (b"TRT-110000-EntropyCalibration2\nx: 3f800000\n", "110000 is the number of no TensorRT release"),
        (b"TRT-6001-EntropyCalibration2\nx: 3f800000\n", "6001 is the number of no TensorRT release"),
        (b"TRT-08502-EntropyCalibration2\nx: 3f800000\n", "08502 is the number of no TensorRT release"),
        (b"TRT-10300-EntropyCalibration2\nx: 3f800000\n", "10300 is the number of no TensorRT release"),
        (HEADER, "a header and no scales"),
        (HEADER[:-1] + b"\r\nx: 3f800000\r\n", "line 1: it ends in a carriage return"),
        (HEADER + b"x: 3f800000\r\n", "line 2: it ends in a carriage return"),
        (HEADER + b"x: 3f800000\n\ny: 3f800000\n", "line 3: it is empty"),
        (HEADER + b"x: 3f800000\n\n", "line 3: it is empty"),
        (HEADER + b"x: 3f80000\n", "line 2: 'x: 3f80000' is not a tensor name"),
        (HEADER + b"x: 3F800000\n", "is not a tensor name, a colon, a space and 8 lower-case"),
        (HEADER + b"x: 3f80000g\n", "is not a tensor name"),
        (HEADER + b"x:3f800000\n", "is not a tensor name"),
        (HEADER + b"x: 3f800000 \n", "is not a tensor name"),
        (HEADER + b"3f800000\n", "is not a tensor name"),
        (HEADER + b": 3f800000\n", "line 2: the tensor has no name"),
        (HEADER + b"x: 00000000\n", "line 2: its scale is 0.0"),
        (HEADER + b"x: 80000000\n", "line 2: its scale is -0.0"),
        (HEADER + b"x: bf800000\n", "line 2: its scale is -1.0"),
        (HEADER + b"x: 7f800000\n", "line 2: its scale is inf"),
        (HEADER + b"x: 7fc00000\n", "line 2: its scale is nan"),
        (HEADER + b"x: 3f800000\ny: 3f800000\nx: 3f800000\n", "line 4: tensor 'x' is on line 2 already"),
        (HEADER + b"\xff\xfe: 3f800000\n", "line 2: it is not UTF-8 text"),
        (b"\x08\x07" + bytes(range(256)), "line 1"),
        (HEADER + b"n" * 1000 + b"\n", r"n'\.\.\. is not a tensor name"),
    ],
)
def test_what_is_no_table_is_refused_with_line_and_reason(data: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "a.cache").write_bytes(data)
    with pytest.raises(StepError, match=reason) as error:
        table.read(tmp_path / "a.cache")
    assert error.value.message.startswith("a.cache")
    assert len(error.value.message) < 300


def test_a_huge_file_is_refused_before_it_is_read_whole(tmp_path: Path) -> None:
    with (tmp_path / "a.cache").open("wb") as file:
        file.write(HEADER)
        file.truncate(table.LARGEST + 1)
    with pytest.raises(StepError, match="more than 64 MiB"):
        table.read(tmp_path / "a.cache")


@pytest.mark.parametrize(
    ("name", "scale", "reason"),
    [
        ("", 1.0, "has no name"),
        ("a\nb", 1.0, "line feed"),
        ("\udc80", 1.0, "is no text"),
        ("x", 0.0, "not a positive number"),
        ("x", float("nan"), "not a positive number"),
        ("x", 0.1, "not a float32"),
        ("x", 1e39, "not a float32"),
    ],
)
def test_what_a_line_cannot_say_is_not_written(name: str, scale: float, reason: str) -> None:
    with pytest.raises(StepError, match=reason):
        dump(Table("8.5.2", ENTROPY_2, {name: scale}))
    with pytest.raises(StepError, match="cannot name the algorithm"):
        dump(Table("8.5.2", "Entropy\n2", {"x": 1.0}))


def test_reading_a_table_needs_no_heavy_package() -> None:
    code = "import sys, trtrecipe.quant.table; print([n for n in ('numpy', 'onnx', 'onnxruntime') if n in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def graph(*, opset: int = 13) -> onnx.ModelProto:
    """x, mask → Conv, Relu, a Constant that is added, an Identity of integers, an output."""
    weights = numpy_helper.from_array(np.ones((2, 1, 1, 1), np.float32), "w")
    one = numpy_helper.from_array(np.ones((), np.float32), "value")
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["conv:0"], "conv"),
        helper.make_node("Relu", ["conv:0"], ["relu"], "relu"),
        helper.make_node("Constant", [], ["one"], "one", value=one),
        helper.make_node("Add", ["relu", "one"], ["y"], "add"),
        helper.make_node("Identity", ["mask"], ["mask_out"], "copy"),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 2, 2])
    mask = helper.make_tensor_value_info("mask", TensorProto.INT64, ["n"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2, 2, 2])
    out = helper.make_tensor_value_info("mask_out", TensorProto.INT64, ["n"])
    made = helper.make_graph(nodes, "graph", [mask, x], [y, out], [weights])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


THRESHOLDS = {"y": 6.5, "relu": 0.0, "x": 2.5, "conv:0": 1e-38, "elsewhere": 3.0}


def run(folder: Path, thresholds: dict[str, float], tensorrt: str = "8.5.2") -> tuple[Table, dict[str, Any]]:
    (folder / "scales.json").write_bytes(scales.dump(scales.Scales("entropy", 8, thresholds)))
    onnx.save(graph(), str(folder / "model.onnx"))
    inputs = {"onnx": folder / "model.onnx", "scales": folder / "scales.json"}
    measured = step.run(step.Params(tensorrt), inputs, folder)
    return table.read(folder / "calibration.table"), dict(measured)


def test_the_step_writes_a_line_for_every_fp32_activation_in_the_order_of_the_graph(tmp_path: Path) -> None:
    made, measured = run(tmp_path, THRESHOLDS)
    assert (made.tensorrt, made.algorithm) == ("8.5.2", ENTROPY_2)
    assert list(made.scales) == ["x", "conv:0", "relu", "y"]
    assert made.scales["x"] == float(np.float32(2.5) / np.float32(127))
    assert made.scales["relu"] == 1.0
    assert made.scales["conv:0"] == float(np.finfo(np.float32).tiny)
    assert measured["tensors"] == 4
    assert measured["notes"] == ["tensor relu was 0 in every calibration sample; its scale is 1"]


def test_the_table_has_the_scales_of_the_explicit_form(tmp_path: Path) -> None:
    made, _ = run(tmp_path, THRESHOLDS)
    assert made.scales == {name: float(scales.scale_of(THRESHOLDS[name])) for name in made.scales}


@given(st.lists(st.floats(float(np.finfo(np.float32).tiny), 2.0**120, width=32), min_size=4, max_size=4))
def test_scales_from_a_table_make_the_same_table(values: list[float]) -> None:
    given = dict(zip(["x", "conv:0", "relu", "y"], values, strict=True))
    with tempfile.TemporaryDirectory() as folder:
        made, _ = run(Path(folder), {name: 127 * scale for name, scale in given.items()})
    assert made.scales == given


def test_tensors_without_a_range_have_no_line(tmp_path: Path) -> None:
    made, measured = run(tmp_path, {"x": 1.0, "y": 1.0})
    assert list(made.scales) == ["x", "y"]
    [note] = measured["notes"]
    assert note.startswith("2 of the graph's 4 FP32 tensors have no calibrated range") and "conv:0, relu" in note


def test_scales_of_another_graph_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StepError, match="no entry for tensor x, the input of Conv conv"):
        run(tmp_path, {"y": 1.0})
    assert not (tmp_path / "calibration.table").exists()


JOINED = """<ir_version: 8, opset_import: ["" : 13]>
g (float[1,4,8,8] x) => (float[1,4,8,8] y, float[1,4,4,4] q)
<float[4,4,1,1] v = {1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1},
 float[4,8,1,1] w = {1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0}>
{ a = Conv(x, v) r = Relu(a) c = Concat<axis=1>(r, x) y = Conv(c, w)
  p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r) q = Conv(p, v) }"""


@pytest.mark.parametrize("method", ["entropy", "table"])
def test_tensors_that_copies_join_have_the_scale_of_the_explicit_form(method: str, tmp_path: Path) -> None:
    model = onnx.parser.parse_model(JOINED)
    for node in model.graph.node:
        node.name = node.output[0]
    thresholds = {"x": 2.0, "a": 5.0, "r": 9.0, "c": 4.0, "p": 3.0, "y": 7.0, "q": 8.0}
    onnx.save(model, str(tmp_path / "model.onnx"))
    (tmp_path / "scales.json").write_bytes(scales.dump(scales.Scales(method, 8, thresholds)))
    step.run(step.Params("8.5.2"), {"onnx": tmp_path / "model.onnx", "scales": tmp_path / "scales.json"}, tmp_path)
    made = table.read(tmp_path / "calibration.table").scales
    # What Q/DQ read: x, c and p. Copies join r and all of these: what feeds them would be requantized otherwise.
    expected = thresholds if method == "table" else thresholds | dict.fromkeys("xrcp", 4.0)
    assert made == {name: float(scales.scale_of(expected[name])) for name in made}
    if method == "entropy":
        pairs = insert_qdq(model, thresholds)[0]
        held = {tensor.name: numpy_helper.to_array(tensor) for tensor in pairs.graph.initializer}
        for node in pairs.graph.node:
            if node.op_type == "QuantizeLinear" and node.input[0] in made:
                assert float(held[node.input[1]]) == made[node.input[0]]


def test_a_release_without_tables_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StepError, match="takes no calibration table"):
        run(tmp_path, THRESHOLDS, "11.0.0")
