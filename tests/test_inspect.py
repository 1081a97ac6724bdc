"""inspect: files are told by their content, and what is in them is shown to people and programs."""

from __future__ import annotations

import json
import random
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from support.forms import GRAPHS, constant, graph, node, on_input, on_weights

from trtrecipe.cli.app import run
from trtrecipe.quant.scales import Scales, dump

SCALES = Scales(
    "entropy",
    64,
    {"cut": 2.0, "dead": 0.0, "fine": 1.5, "old": 1.0, "still": 3.0},
    {
        "cut": (-8.0, 8.0),
        "dead": (0.0, 0.0),
        "fine": (-1.0, 1.5),
        "still": (3.0, 3.0),
        "large": (-7e4, 1.0),
        "small": (0.0, 1.0),
    },
    {"cut": 1000, "dead": 1000, "fine": 1000, "still": 1000},
    {"cut": 11, "dead": 0, "fine": 10, "still": 0},
)
TABLE = b"TRT-8502-EntropyCalibration2\nx: 3f800000\nscope/y:0: 3c008912\n"


def inspect(capsys: pytest.CaptureFixture[str], path: Path) -> dict[str, Any]:
    assert run(["inspect", str(path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "trtrecipe/inspect/v1"
    assert document["size"] == path.stat().st_size
    return document  # type: ignore[no-any-return]


def text(capsys: pytest.CaptureFixture[str], path: Path) -> list[str]:
    assert run(["inspect", str(path)]) == 0
    return capsys.readouterr().out.splitlines()


def saved(model: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def test_a_graph(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = on_weights([0.1, 0.2, 0.3], axis=0)
    model.producer_name = "maker"
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    document = inspect(capsys, saved(model, tmp_path / "scales.json"))  # the name says nothing
    assert document["kind"] == "onnx"
    assert (document["ir"], document["opset"], document["producer"]) == (8, 13, "maker")
    assert document["domains"] == {"com.microsoft": 1}
    assert document["inputs"] == [{"name": "x", "dtype": "float32", "shape": ["batch", 2, 4, 4]}]
    assert document["outputs"] == [{"name": "y", "dtype": "float32"}]
    assert document["operators"] == {"DequantizeLinear": 2, "QuantizeLinear": 2, "Conv": 1}
    assert document["constants"] == {"float": {"tensors": 3, "values": 10}, "int8": {"tensors": 2, "values": 4}}
    assert document["quantization"] == {
        "quantize": 2,
        "dequantize": 2,
        "pairs": 2,
        "per_channel": 1,
        "forms": [
            {"form": "int8", "nodes": ["xd_q", "xd", "wd_q", "wd"]},
            {"form": "per-channel-weights", "nodes": ["wd_q", "wd"]},
        ],
    }
    verdicts = {verdict["tensorrt"]: verdict for verdict in document["verdicts"]}
    assert {"8.2", "8.5", "10.3", "11.1"} <= set(verdicts)
    assert {verdict["verdict"] for verdict in document["verdicts"]} == {"accepted"}
    assert verdicts["8.2"]["needs"].startswith("--int8")
    assert [reason["about"] for reason in verdicts["8.2"]["reasons"]] == ["int8", "per-channel-weights"]
    assert all(reason["sources"] for reason in verdicts["8.2"]["reasons"])


def test_a_graph_for_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = text(capsys, saved(on_input(3), tmp_path / "m"))
    assert lines[0].endswith(f"m: onnx, {(tmp_path / 'm').stat().st_size} B")
    assert lines[1] == "opset 13, com.microsoft 1, IR 8"
    assert "  input     x: float32 [1, 2, 4, 4]" in lines
    assert "  output    y: float32, any shape" in lines
    assert "  quantized 1 pairs, 0 of several scales; forms: int8, zero-point" in lines
    assert any(line.split()[:2] == ["8.2", "refused"] for line in lines)
    assert lines[-1] == "all: refused: a zero point other than 0: only symmetric quantization is supported (y_q, y)"


def test_a_float_graph(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = saved(graph([node("Relu", ["x"], ["y"], "relu")], [], opset=17), tmp_path / "m")
    document = inspect(capsys, model)
    assert document["quantization"]["forms"] == []
    assert document["constants"] == {}
    assert all("needs" not in verdict for verdict in document["verdicts"])
    assert [verdict["verdict"] for verdict in document["verdicts"]][:3] == ["refused", "refused", "accepted"]
    lines = text(capsys, model)
    assert "  quantized no" in lines and "  constants none" in lines
    assert lines[-1] == "8.0, 8.2: refused: opset 17 is above 13, the newest published (a build lowers it where it can)"


@pytest.mark.parametrize("form", GRAPHS)
def test_every_form_can_be_shown(form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(GRAPHS[form](), tmp_path / "m")
    document = inspect(capsys, path)
    assert form in [entry["form"] for entry in document["quantization"]["forms"]]
    assert text(capsys, path)


def test_weights_in_another_file_are_not_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = constant("w", np.ones((3, 2, 1, 1)))
    weights.ClearField("float_data")
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.add(key="location", value="../../../etc/passwd")
    model = saved(graph([node("Conv", ["x", "w"], ["y"], "conv")], [weights]), tmp_path / "m")
    assert inspect(capsys, model)["constants"] == {"float": {"tensors": 1, "values": 6}}


def test_unusual_types_and_operators(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = graph([node("Own", ["x"], ["y"], domain="my.domain")], [constant("unused", 0.5, TensorProto.BFLOAT16)])
    model.graph.output[0].CopyFrom(helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None))
    document = inspect(capsys, saved(model, tmp_path / "m"))
    assert document["operators"] == {"my.domain.Own": 1}
    assert document["outputs"] == [{"name": "y", "dtype": "unknown"}]
    assert {verdict["verdict"] for verdict in document["verdicts"]} == {"refused"}
    assert "my.domain.Own is not among" in document["verdicts"][0]["reasons"][0]["text"]


def test_scales(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(dump(SCALES))
    document = inspect(capsys, path)
    assert (document["kind"], document["method"], document["samples"]) == ("scales", "entropy", 64)
    assert document["saturated_above"] == 0.01
    assert document["summary"] == {"tensors": 5, "dead": 1, "constant": 1, "saturated": 1, "overflow": 1}
    tensors = {tensor["name"]: tensor for tensor in document["tensors"]}
    assert tensors["cut"] == {
        "name": "cut", "threshold": 2.0, "min": -8.0, "max": 8.0, "clipped": 0.011, "flags": ["saturated"],
    }  # fmt: skip
    flags = {name: tensor["flags"] for name, tensor in tensors.items()}
    expected = {"cut": ["saturated"], "dead": ["dead"], "fine": [], "old": [], "still": ["constant"]}
    assert flags == expected | {"large": ["overflow"]}
    assert tensors["old"] == {"name": "old", "threshold": 1.0, "flags": []}


def test_scales_for_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "scales.json"
    path.write_bytes(dump(SCALES))
    lines = text(capsys, path)
    assert lines[1] == "method entropy, 64 samples, 5 tensors"
    rows = {line.split()[0]: line.split()[1:] for line in lines if line}
    assert rows["cut"] == ["-8", "8", "2", "1.100%", "saturated"]
    assert rows["fine"] == ["-1", "1.5", "1.5", "1.000%"]
    assert "1 saturated: more than 1% of its values are beyond the threshold" in lines
    assert "1 dead: 0 in every sample" in "\n".join(lines)


def test_scales_of_an_earlier_release(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "scales.json"
    tensors = {"a": {"threshold": 0.0}, "b": {"threshold": 2.0, "min": -1.0, "max": 1.0}}
    path.write_text(json.dumps({"schema": "trtrecipe/scales/v1", "method": "minmax", "samples": 3, "tensors": tensors}))
    document = inspect(capsys, path)
    assert document["tensors"] == [
        {"name": "a", "threshold": 0.0, "flags": ["dead"]},
        {"name": "b", "threshold": 2.0, "min": -1.0, "max": 1.0, "flags": []},
    ]
    assert "CLIPPED" not in "\n".join(text(capsys, path))


def test_a_calibration_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "scales.json"
    path.write_bytes(TABLE)
    document = inspect(capsys, path)
    assert (document["kind"], document["tensorrt"]) == ("calibration_table", "8.5.2")
    assert document["algorithm"] == "EntropyCalibration2"
    assert document["summary"] == {"tensors": 2}
    assert document["tensors"][0] == {"name": "x", "scale": 1.0, "threshold": 127.0}
    lines = text(capsys, path)
    assert lines[0].endswith(f": calibration table, {len(TABLE)} B")
    assert lines[1] == "for TensorRT 8.5.2, algorithm EntropyCalibration2, 2 tensors"
    assert lines[-1].split() == ["scope/y:0", "0.00784518", "0.996338"]


def make_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", "{}")


def make_saved_model(path: Path) -> None:
    path.mkdir()
    (path / "saved_model.pb").touch()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: path.touch(), "is empty"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: path.symlink_to("/dev/zero"), "is no regular file"),
        (make_saved_model, "saved_model.pb holds no graph"),
        (make_zip, "config.json of the Keras file describes no model"),
        (lambda path: path.write_bytes(b"\x1c\0\0\0TFL3" + bytes(60)), "the TFLite file is damaged"),
        (lambda path: np.save(path.open("wb"), np.ones(3)), "is a NumPy array"),
        (lambda path: path.write_text("hello\n"), "is no model of a form that is known"),
        (lambda path: path.write_bytes(struct.pack("<100d", *range(100))), "is no model of a form that is known"),
        (lambda path: path.write_bytes(onnx.ModelProto(ir_version=8).SerializeToString()), "is neither of the kinds"),
        (lambda path: path.write_text('{"schema": "trtrecipe/build/v1"}'), "with the schema 'trtrecipe/build/v1'"),
        (lambda path: path.write_text('{"a": 1}'), "is a JSON document, neither scales nor a manifest"),
        (lambda path: path.write_text("[" * 100_000), "starts like JSON and is not"),
        (lambda path: path.write_text("{nothing"), "starts like JSON and is not"),
        (lambda path: path.write_text('{"schema": "trtrecipe/scales/v1"}'), "is not a usable scales document"),
        (lambda path: path.write_bytes(b"TRT-8502-EntropyCalibration2\nx: 3f80\n"), "line 2"),
        (lambda path: None, "No such file"),
        (lambda path: path.write_bytes(on_input().SerializeToString()[:-40]), "is neither of the kinds"),
    ],
)
def test_what_cannot_be_shown_says_what_is_known(
    make: Any, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "file")
    assert run(["inspect", str(tmp_path / "file"), "--json"]) == 2
    captured = capsys.readouterr()
    [error] = json.loads(captured.out)["errors"]
    assert error["file"] == str(tmp_path / "file")
    assert reason in error["message"]
    assert "Traceback" not in captured.err


def test_a_damaged_graph_is_an_error_of_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = on_input()
    model.graph.initializer[0].ClearField("float_data")
    assert run(["inspect", str(saved(model, tmp_path / "m"))]) == 2
    assert "m: error: constant s is damaged" in capsys.readouterr().err


def test_no_damage_is_more_than_an_error_of_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw = random.Random(5)
    whole = [make().SerializeToString() for make in GRAPHS.values()] + [dump(SCALES), TABLE]
    for _ in range(400):
        data = bytearray(draw.choice(whole))
        at = draw.randrange(len(data))
        data[at : at + draw.choice((0, 1, 1, 1))] = bytes([draw.randrange(256)])[: draw.choice((0, 1, 1))]
        (tmp_path / "m").write_bytes(data)
        assert run(["inspect", str(tmp_path / "m")]) in (0, 2), bytes(data)
        capsys.readouterr()


def test_the_command_line_starts_without_heavy_packages() -> None:
    code = "import sys, trtrecipe.cli.app; print([n for n in ('numpy', 'onnx', 'onnxruntime') if n in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
