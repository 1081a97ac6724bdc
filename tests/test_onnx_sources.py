"""ONNX models as people have them: values in other files, old and new operator sets, damage of every kind."""

# ruff: noqa: E501  (the table reads best with one case a line)

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper, parser
from support.projects import make_project

from trtrecipe import external_data
from trtrecipe.cli.app import run
from trtrecipe.errors import Problem, StepError
from trtrecipe.formats import FormatError
from trtrecipe.plan.sources import ModelSource, digest_sources, source_digest
from trtrecipe.steps import export, fetch
from trtrecipe.store.stat import StatCache

AT = Problem("", "recipe.yaml", 3, 9)
GRAPH = (
    '<ir_version: 8, opset_import: ["" : 13, "local" : 1]> g (float[1,2,3] x, bool[1] flags) => (float[1,2,3] y)'
    " { flag = Squeeze(flags) c = local.shifted(x) y = If<then_branch = t () => (float[1,2,3] a) { a = Add(c, w) },"
    "  else_branch = e () => (float[1,2,3] b) { k = Constant<value = float[3] {9, 8, 7}>() b = Mul(c, k) }>(flag) }"
    ' <domain: "local", opset_import: ["" : 13]> shifted (p) => (q)'
    "{ s = Constant<value = float[3] {1, 2, 3}>() q = Add(p, s) }"
)
VALUES = {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}


def _outside(tensor: TensorProto, location: str, **entries: int | str) -> None:
    """Say that the values lie elsewhere; they are gone here."""
    for field in ("raw_data", "float_data", "int64_data"):
        tensor.ClearField(field)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))


def _constants(model: ModelProto) -> list[TensorProto]:
    """The tensors of the Constant nodes, in bodies and functions too."""
    graphs = [model.graph, *(attribute.g for node in model.graph.node for attribute in node.attribute)]
    nodes = [node for graph in (*graphs, *model.functions) for node in graph.node]
    return [node.attribute[0].t for node in nodes if node.op_type == "Constant"]


@pytest.fixture
def parted(tmp_path: Path) -> Path:
    """A model whose values lie in two files: of an initializer, in a body, and in a function, one of them twice."""
    folder = tmp_path / "parted"
    (folder / "more").mkdir(parents=True)
    model = parser.parse_model(GRAPH)
    model.graph.initializer.append(numpy_helper.from_array(VALUES["w"], "w"))
    model.graph.initializer.append(numpy_helper.from_array(VALUES["w"], "again"))
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((0, 4), np.float32), "nothing"))
    onnx.save(model, folder / "whole.onnx")
    body, function = _constants(model)
    (folder / "a.bin").write_bytes(bytes(16) + VALUES["w"].tobytes() + bytes(5))
    (folder / "more" / "b.bin").write_bytes(
        numpy_helper.to_array(body).tobytes() + numpy_helper.to_array(function).tobytes()
    )
    _outside(model.graph.initializer[0], "a.bin", offset=16, length=24)
    _outside(model.graph.initializer[1], "a.bin", offset=16, length=24, checksum="0" * 40)
    _outside(model.graph.initializer[2], "a.bin", offset=0, length=0)
    _outside(body, "more/b.bin")
    _outside(function, "more/b.bin", offset=12)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder / "model.onnx"


def _digest(path: Path, folder: Path) -> str:
    stat = StatCache(folder / "stat.sqlite")
    try:
        return digest_sources([ModelSource(path, AT)], stat)[ModelSource(path, AT)]
    finally:
        stat.close()


def test_the_fields_are_onnxs_own() -> None:
    for message, inner in external_data.MESSAGES.items():
        fields = getattr(onnx, message).DESCRIPTOR.fields
        known = {field.number: field.message_type.name for field in fields if field.message_type}
        assert {number: known.get(number) for number in inner} == inner
        tensors = {number for number, name in known.items() if name in external_data.MESSAGES or name == "TensorProto"}
        assert tensors == set(inner), f"{message} leads to tensors in other ways too"
    names = {field.name: field.number for field in TensorProto.DESCRIPTOR.fields}
    for name in ("DIMS", "DATA_TYPE", "NAME", "RAW_DATA", "EXTERNAL_DATA", "DATA_LOCATION"):
        assert names[name.lower()] == getattr(external_data, name)
    assert external_data.EXTERNAL == TensorProto.EXTERNAL


def test_the_sizes_of_elements_are_onnxs_own() -> None:
    for kind, bits in external_data.BITS.items():
        name = TensorProto.DataType.Name(kind)
        array = np.zeros(8, helper.tensor_dtype_to_np_dtype(kind))
        assert len(numpy_helper.from_array(array).raw_data) == bits, name
    assert TensorProto.STRING not in external_data.BITS


def test_values_from_other_files_become_part_of_the_model(parted: Path, tmp_path: Path) -> None:
    fetch.run(fetch.Params("onnx"), {"source": parted}, tmp_path)
    found = onnx.load(tmp_path / "model")
    for tensor in (*found.graph.initializer, *_constants(found)):
        assert tensor.data_location == TensorProto.DEFAULT and not tensor.external_data
    expected = onnx.load(parted.with_name("whole.onnx"))
    for one, two in zip(found.graph.initializer, expected.graph.initializer, strict=True):
        assert np.array_equal(numpy_helper.to_array(one), numpy_helper.to_array(two))
    x = np.ones((1, 2, 3), np.float32)
    for flag in (True, False):
        results = [
            onnxruntime.InferenceSession(str(path)).run(None, {"x": x, "flags": np.array([flag])})[0]
            for path in (tmp_path / "model", parted.with_name("whole.onnx"))
        ]
        assert np.array_equal(*results)


def test_a_model_gives_the_same_bytes_wherever_its_values_lie(parted: Path, tmp_path: Path) -> None:
    written = []
    for index, path in enumerate((parted, parted.with_name("whole.onnx"))):
        folder = tmp_path / str(index)
        folder.mkdir()
        fetch.run(fetch.Params("onnx"), {"source": path}, folder)
        export.run(export.Params("onnx"), {"model": folder / "model"}, folder)
        written.append((folder / "model.onnx").read_bytes())
    assert written[0] == written[1]


def test_every_byte_beside_the_model_counts(parted: Path, tmp_path: Path) -> None:
    before = _digest(parted, tmp_path)
    assert _digest(parted.with_name("whole.onnx"), tmp_path) != before
    for name in ("a.bin", "more/b.bin"):
        path = parted.parent / name
        kept = path.read_bytes()
        path.write_bytes(kept[:-1] + b"\x01")
        assert _digest(parted, tmp_path) != before
        path.write_bytes(kept)
    assert _digest(parted, tmp_path) == before
    (parted.parent / "c.bin").write_bytes(b"another file")
    assert _digest(parted, tmp_path) == before
    moved = shutil.copytree(parted.parent, tmp_path / "moved") / parted.name
    assert _digest(moved, tmp_path) == before


def test_a_model_in_one_file_has_the_digest_of_that_file(parted: Path, tmp_path: Path) -> None:
    import hashlib

    whole = parted.with_name("whole.onnx")
    assert _digest(whole, tmp_path) == hashlib.sha256(whole.read_bytes()).hexdigest()
    (tmp_path / "calibration.table").write_bytes(b"TRT-8502-EntropyCalibration2\nx: 3c010a14\n")
    assert _digest(tmp_path / "calibration.table", tmp_path)


def test_planning_reads_a_models_fields_once(parted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for file in parted.parent.rglob("*"):
        if file.is_file():
            os.utime(file, (1e9, 1e9))
    stat = StatCache(tmp_path / "stat.sqlite")
    monkeypatch.setattr("trtrecipe.store.stat.SETTLED_NS", -(10**18))
    first = source_digest(ModelSource(parted, AT), stat)
    monkeypatch.setattr(external_data, "parts", lambda path: pytest.fail("read again"))
    assert source_digest(ModelSource(parted, AT), stat) == first
    (parted.parent / "a.bin").unlink()
    with pytest.raises(Exception, match="which is not there"):
        source_digest(ModelSource(parted, AT), stat)
    stat.close()


def _entry(key: str, value: str) -> Callable[[Path], None]:
    """Change an entry of the first tensor."""

    def change(path: Path) -> None:
        model = onnx.load(path, load_external_data=False)
        for entry in model.graph.initializer[0].external_data:
            if entry.key == key:
                entry.value = value
        path.write_bytes(model.SerializeToString())

    return change


def _tensor(**fields: Any) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        model = onnx.load(path, load_external_data=False)
        for name, value in fields.items():
            setattr(model.graph.initializer[0], name, value)
        path.write_bytes(model.SerializeToString())

    return change


def _beside(name: str, change: Callable[[Path], Any]) -> Callable[[Path], None]:
    def changed(path: Path) -> None:
        change(path.parent / name)

    return changed


def _link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def _become_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def _no_location(path: Path) -> None:
    model = onnx.load(path, load_external_data=False)
    del model.graph.initializer[0].external_data[0]
    path.write_bytes(model.SerializeToString())


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 24\n"
AGAIN = "save the model again: onnx.save(model, 'model.onnx', save_as_external_data=True)"
COPY = "copy it again with all its files, or compare their sizes with the original's"
INSIDE = "put the file beside the model, and " + AGAIN


@pytest.mark.parametrize(
    ("damage", "message", "hint"),
    [
        (_entry("location", "../a.bin"), "M keeps the values of w in ../a.bin: only files under its own folder are read", INSIDE),
        (_entry("location", "more/../../a.bin"), "M keeps the values of w in more/../../a.bin: only files under its own folder are read", INSIDE),
        (_entry("location", "/etc/passwd"), "M keeps the values of w in /etc/passwd: only files under its own folder are read", INSIDE),
        (_entry("location", "C:\\a.bin"), "M keeps the values of w in C:\\a.bin: only files under its own folder are read", INSIDE),
        (_entry("location", ""), "M keeps the values of w elsewhere, and does not say in which file", AGAIN),
        (_entry("location", "model.onnx"), "M keeps the values of w in the graph's own file", AGAIN),
        (_no_location, "M keeps the values of w elsewhere, and does not say in which file", AGAIN),
        (_entry("offset", "-1"), "M keeps the values of w elsewhere, and the offset there is '-1'", AGAIN),
        (_entry("length", "many"), "M keeps the values of w elsewhere, and the length there is 'many'", AGAIN),
        (_entry("length", "20"), "M keeps the values of w in 20 bytes of a.bin, and its shape [2, 3] takes 24", AGAIN),
        (_entry("offset", "20"), "M gives again and w some of the same bytes of a.bin (20 to 40)", AGAIN),
        (_entry("offset", "100000000000"), "M needs 100,000,000,024 bytes of a.bin, which has 45", COPY),
        (_tensor(data_type=TensorProto.STRING), "M keeps the values of w in a.bin, and their type cannot be kept so", AGAIN),
        (_beside("a.bin", Path.unlink), "M keeps values in a.bin, which is not there", COPY),
        (_beside("a.bin", _link), "M keeps values in a.bin, which is a link", "put a copy of the file there"),
        (_beside("more", _link), "M keeps values in more/b.bin, and more is a link", "put a copy of the folder there"),
        (_beside("a.bin", _become_a_folder), "M keeps values in a.bin, which is no file", COPY),
        (_beside("a.bin", lambda path: path.write_bytes(bytes(39))), "M needs 40 bytes of a.bin, which has 39", COPY),
        (_beside("a.bin", lambda path: path.write_bytes(LFS)), "F/a.bin is a Git LFS pointer, not the model's values", "run: git lfs pull"),
        (_beside("model.onnx", _cut), "M is cut short, or damaged", COPY),
    ],
)  # fmt: skip
def test_values_that_cannot_be_had(
    damage: Callable[[Path], None], message: str, hint: str, parted: Path, tmp_path: Path
) -> None:
    damage(parted)
    with pytest.raises(Exception) as planned:
        _digest(parted, tmp_path)
    problem = planned.value.problems[0]  # type: ignore[attr-defined]
    said = problem.message.replace(str(parted), "M").replace(str(parted.parent), "F")
    assert (said, problem.hint, problem.where()) == (message, hint, "recipe.yaml:3:9")
    with pytest.raises(StepError) as fetched:
        fetch.run(fetch.Params("onnx"), {"source": parted}, tmp_path)
    assert fetched.value.message == f"the model {problem.message}"


def test_a_model_beyond_what_protobuf_holds_is_planned_by_its_declared_sizes(parted: Path) -> None:
    """The files need not be read, and are holes here."""
    model = onnx.load(parted, load_external_data=False)
    del model.graph.initializer[1:]
    model.graph.initializer[0].dims[:] = [3 << 28]
    del model.graph.initializer[0].external_data[1:]
    parted.write_bytes(model.SerializeToString())
    with (parted.parent / "a.bin").open("wb") as file:
        file.truncate(3 << 30)
    assert external_data.needed(external_data.parts(parted))["a.bin"] == 3 << 30


def test_whatever_the_bytes_are(parted: Path) -> None:
    """Cut anywhere, or with any byte changed: parts or a message, nothing else, and nothing outside the folder."""
    whole = parted.read_bytes()
    for at in range(0, len(whole), 5):
        for damaged in (whole[:at], whole[:at] + bytes([whole[at] ^ 0x7F]) + whole[at + 1 :]):
            parted.write_bytes(damaged)
            try:
                found = external_data.parts(parted)
            except FormatError as error:
                assert str(parted) in error.message
                continue
            for part in found:
                assert (parted.parent / part.location).resolve().is_relative_to(parted.parent.resolve())


def test_messages_nested_without_end(tmp_path: Path) -> None:
    from trtrecipe import wire

    inner = external_data._MARK
    for _ in range(5000):  # a node with an attribute with a graph with a node ...
        for number in (6, 5, 1):
            inner = wire.head(number, len(inner)) + inner
    (tmp_path / "m.onnx").write_bytes(b"\x08\x08" + wire.head(7, len(inner)) + inner)
    with pytest.raises(FormatError, match="is damaged: what is in it does not fit together"):
        external_data.parts(tmp_path / "m.onnx")


def test_a_build_from_several_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And an error at the recipe's line, before anything runs, once one of them is shorter."""
    recipe = {"precision": {"mode": "fp32"}, "calibration": None, "evaluation": None}
    project = make_project(tmp_path / "project", recipe)
    model = onnx.load(project.folder / "model.onnx")
    onnx.save(model, project.folder / "model.onnx", save_as_external_data=True, location="m.bin", size_threshold=0)
    assert run(["build", str(project.recipe), "--output", str(tmp_path / "dist")]) == 0
    assert onnx.load(tmp_path / "dist" / "small" / "host" / "model.onnx").graph.node
    capsys.readouterr()
    _cut(project.folder / "m.bin")
    assert run(["plan", str(project.recipe), "--json"]) == 2
    problem = json.loads(capsys.readouterr().out)["errors"][0]
    assert problem["message"].endswith("needs 1,728 bytes of m.bin, which has 1,725") and problem["line"] == 4


# --- versions


def _network(opset: int) -> ModelProto:
    """What exporters of each year wrote: operators that have changed since, in their form of that opset."""
    rng = np.random.default_rng(1)
    weights = {
        "w": rng.standard_normal((48, 3, 3, 3)),
        "scale": np.ones(48),
        "bias": rng.standard_normal(48),
        "mean": rng.standard_normal(48),
        "var": np.ones(48) * 2,
        "dense": rng.standard_normal((48, 5)),
        "offset": rng.standard_normal(5),
    }
    constants = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c", "scale", "bias", "mean", "var"], ["n"]),
        helper.make_node("Relu", ["n"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("Gemm", ["f", "dense", "offset"], ["d"]),
        helper.make_node("Softmax", ["d"], ["s"], axis=1),
    ]
    if opset < 13:
        nodes.append(helper.make_node("Unsqueeze", ["s"], ["y"], axes=[2]))
    else:
        constants.append(numpy_helper.from_array(np.array([2]), "axes"))
        nodes.append(helper.make_node("Unsqueeze", ["s", "axes"], ["y"]))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 6, 6])]
    ir = 3 if opset < 9 else max(4, helper.find_min_ir_version_for([helper.make_opsetid("", opset)]))
    if ir == 3:  # then every constant is an input with a default
        inputs += [helper.make_tensor_value_info(c.name, c.data_type, c.dims) for c in constants]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 5, 1])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)


@pytest.mark.parametrize("opset", range(7, onnx.defs.onnx_opset_version() + 1))
def test_every_opset_is_read(opset: int, tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(_network(opset).SerializeToString())
    measured = export.run(export.Params("onnx"), {"model": tmp_path / "m"}, tmp_path)
    result = onnx.load(tmp_path / "model.onnx")
    assert [entry.version for entry in result.opset_import] == [max(opset, 13)]
    assert [value.name for value in result.graph.input] == ["x"]
    if opset < 13:
        assert measured["check"]["against"] == f"the given graph at opset {opset} computes"
        assert measured["check"]["outputs"]["y"]["relative"] < 1e-5
    else:
        assert "check" not in measured


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"ir": 99}, "the model is written in IR version 99, and the installed onnx {onnx} knows {ir} at most | "
         "install a newer onnx, or save the model in IR version {ir} or older"),
        ({"opset": 99}, "the model is written in opset 99, and the installed onnx {onnx} knows {opset} at most | "
         "install a newer onnx, or save the model in opset {opset} or older"),
        ({"ir": 2}, "the model is written in IR version 2, and 3 is the oldest that is read | "
         "export it again at opset 13"),
        ({"opset": 6}, "the model is written in opset 6, and 7 is the oldest that is read | "
         "export it again at opset 13"),
    ],
)  # fmt: skip
def test_versions_that_are_not_read(fields: dict[str, int], said: str, tmp_path: Path) -> None:
    model = _network(13)
    model.ir_version = fields.get("ir", 8)
    model.opset_import[0].version = fields.get("opset", 13)
    (tmp_path / "m").write_bytes(model.SerializeToString())
    with pytest.raises(StepError) as caught:
        export.run(export.Params("onnx"), {"model": tmp_path / "m"}, tmp_path)
    newest = {"onnx": onnx.__version__, "ir": onnx.IR_VERSION, "opset": onnx.defs.onnx_opset_version()}
    assert f"{caught.value.message} | {caught.value.hint}" == said.format(**newest)
