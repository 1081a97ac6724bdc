"""engines: what is built is byte-stable and says clearly what it cannot do; engines on a GPU where there is one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from trtrecipe.engines import open_engine, ort, tensorrt_build
from trtrecipe.errors import StepError
from trtrecipe.graphs import files, keep
from trtrecipe.graphs.float16 import to_float16
from trtrecipe.quant.qdq import insert_qdq
from trtrecipe.steps import benchmark, compile, reference, verify

DIMS = {"batch": {"min": 1, "opt": 4, "max": 8}}


def net() -> onnx.ModelProto:
    """Two Convs with a residual Add, pooling and a classifier; the batch is open."""
    rng = np.random.default_rng(11)

    def weights(name: str, *shape: int) -> onnx.TensorProto:
        values = rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        return numpy_helper.from_array(values.astype(np.float32), name)

    node, value = helper.make_node, helper.make_tensor_value_info
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["c1"], "conv1", pads=[1] * 4),
        node("Relu", ["c1"], ["r1"], "relu1"),
        node("Conv", ["r1", "w2"], ["c2"], "conv2", pads=[1] * 4),
        node("Add", ["c2", "r1"], ["a"], "add"),
        node("Relu", ["a"], ["r2"], "relu2"),
        node("GlobalAveragePool", ["r2"], ["p"], "pool"),
        node("Flatten", ["p"], ["f"], "flatten"),
        node("MatMul", ["f", "fc"], ["m"], "fc"),
        node("Relu", ["m"], ["r3"], "relu3"),
        node("Gemm", ["r3", "g"], ["y"], "gemm", transB=1),
    ]
    constants = [weights("w1", 16, 3, 3, 3), weights("b1", 16), weights("w2", 16, 16, 3, 3), weights("fc", 16, 24)]
    graph = helper.make_graph(
        nodes,
        "graph",
        [value("x", TensorProto.FLOAT, ["batch", 3, 16, 16])],
        [value("y", TensorProto.FLOAT, ["batch", 16])],
        [*constants, weights("g", 16, 24)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def variants() -> dict[str, onnx.ModelProto]:
    quantized, _ = insert_qdq(net(), {"x": 3.0, "r1": 4.0, "r2": 4.0, "f": 2.0, "r3": 2.0})
    return {"fp32": net(), "fp16": to_float16(net())[0], "int8": quantized, "int8-fp16": to_float16(quantized)[0]}


def compiled_elsewhere(folder: Path, model: onnx.ModelProto, builder: str, seed: int) -> bytes:
    """The engine as another process builds it, in a folder, with a hash seed and an environment of its own."""
    folder.mkdir(parents=True)
    files.save(model, folder / "graph.onnx")
    program = (
        "from pathlib import Path; from trtrecipe.steps import compile as step; "
        f"step.run(step.Params({builder!r}, {DIMS!r}), {{'onnx': Path('graph.onnx').absolute()}}, Path.cwd())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": str(seed), "PADDING": "x" * 997 * seed}
    subprocess.run([sys.executable, "-c", program], cwd=folder, env=environment, check=True)
    return (folder / "model.engine").read_bytes()


def assert_stable(tmp_path: Path, variant: str, builder: str) -> None:
    first = compiled_elsewhere(tmp_path / "a", variants()[variant], builder, 1)
    second = compiled_elsewhere(tmp_path / "another" / "folder", variants()[variant], builder, 2)
    assert first == second
    assert str(tmp_path).encode() not in first


@pytest.mark.parametrize("variant", ["fp32", "fp16", "int8", "int8-fp16"])
def test_onnx_runtime_builds_the_same_bytes_anywhere(tmp_path: Path, variant: str) -> None:
    assert_stable(tmp_path, variant, "onnxruntime")


def test_onnx_runtime_keeps_weights_in_8_bit(tmp_path: Path) -> None:
    files.save(variants()["int8"], tmp_path / "model.onnx")
    ort.build(tmp_path / "model.onnx", tmp_path / "engine")
    held = files.load(tmp_path / "engine").graph.initializer
    assert sum(tensor.data_type == TensorProto.INT8 and len(tensor.dims) > 1 for tensor in held) == 4


def test_graph_that_onnx_runtime_cannot_load(tmp_path: Path) -> None:
    model = net()
    model.graph.node[1].op_type = "Reloo"
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(StepError, match="Reloo"):
        ort.build(tmp_path / "model.onnx", tmp_path / "engine")


def test_feed_that_onnx_runtime_cannot_run() -> None:
    with ort.OrtEngine(net()) as engine, pytest.raises(StepError, match="cannot run the graph"):
        engine.run({"x": np.zeros((1, 3), np.float32)})


def test_unknown_runtime_and_builder(tmp_path: Path) -> None:
    with pytest.raises(StepError, match="no runtime is called abacus"):
        open_engine("abacus", tmp_path)
    with pytest.raises(StepError, match="no engine builder is called abacus"):
        compile.run(compile.Params("abacus"), {}, tmp_path)


class TestBuildingForRtx:
    """Needs the tensorrt_rtx package and no GPU."""

    @pytest.fixture(autouse=True)
    def _installed(self) -> None:
        pytest.importorskip("tensorrt_rtx", reason="the rtx extra is not installed")

    @pytest.mark.parametrize("variant", ["fp32", "fp16", "int8", "int8-fp16"])
    def test_same_bytes_anywhere(self, tmp_path: Path, variant: str) -> None:
        assert_stable(tmp_path, variant, "tensorrt-rtx")

    def test_workspace_is_accepted(self, tmp_path: Path) -> None:
        assert tensorrt_build.build_for_rtx(net(), tmp_path / "engine", DIMS, 64 << 20) == []

    def test_operator_that_the_parser_lacks(self, tmp_path: Path) -> None:
        model = net()
        model.graph.node[4].CopyFrom(helper.make_node("Det", ["a"], ["d"], "determinant"))
        model.graph.node[5].input[0] = "a"
        model.graph.node.append(helper.make_node("Identity", ["d"], ["unused"], "end"))
        with pytest.raises(StepError, match=r"cannot read the graph: node determinant \(Det\)"):
            tensorrt_build.build_for_rtx(model, tmp_path / "engine", DIMS, None)
        assert not (tmp_path / "engine").exists()

    def test_range_that_the_graph_cannot_take(self, tmp_path: Path) -> None:
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            [helper.make_node("Conv", ["x", "w"], ["y"], "conv")],
            "graph",
            [value("x", TensorProto.FLOAT, [1, 1, "height", 8])],
            [value("y", TensorProto.FLOAT, [1, 1, "rows", 6])],
            [numpy_helper.from_array(np.ones((1, 1, 3, 3), np.float32), "w")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        with pytest.raises(StepError, match="TensorRT for RTX") as caught:
            tensorrt_build.build_for_rtx(model, tmp_path / "engine", {"height": {"min": 1, "opt": 1, "max": 1}}, None)
        assert "model.dims" in (caught.value.hint or "")

    def test_open_axis_without_a_range(self, tmp_path: Path) -> None:
        with pytest.raises(StepError, match="axis batch of input x"):
            tensorrt_build.build_for_rtx(net(), tmp_path / "engine", {}, None)

    def test_int8_needs_1_7(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import tensorrt_rtx

        monkeypatch.setattr(tensorrt_rtx, "__version__", "1.6.1.120")
        with pytest.raises(StepError, match=r"RTX 1\.6 cannot take INT8: the first that can is 1\.7"):
            tensorrt_build.build_for_rtx(variants()["int8"], tmp_path / "engine", DIMS, None)

    def test_crash_of_the_builder_is_a_message(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        program = tmp_path / "child.py"
        program.write_text("import os, sys; print('dying', file=sys.stderr, flush=True); os.abort()")
        monkeypatch.setattr(tensorrt_build.tensorrt_child, "__file__", str(program))
        with pytest.raises(StepError, match="ended with status -6: dying"):
            tensorrt_build.build_for_rtx(net(), tmp_path / "engine", DIMS, None)

    def test_address_randomization_is_left_as_it_was(self, tmp_path: Path) -> None:
        if not Path("/proc/self/personality").exists():
            pytest.skip("only Linux has personalities")
        before = Path("/proc/self/personality").read_text()
        tensorrt_build.build_for_rtx(net(), tmp_path / "engine", DIMS, None)
        assert Path("/proc/self/personality").read_text() == before


def test_missing_package_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(StepError) as caught:
        tensorrt_build.build_for_rtx(net(), tmp_path / "engine", DIMS, None)
    assert "pip install 'trtrecipe[rtx]'" in (caught.value.hint or "")
    with pytest.raises(StepError):
        open_engine("tensorrt-rtx", tmp_path / "engine")


@pytest.mark.gpu
class TestOnGpu:
    """Run where there is an NVIDIA GPU that the installed tensorrt_rtx or tensorrt supports."""

    @pytest.fixture(params=["tensorrt-rtx", "tensorrt"])
    def runtime(self, request: pytest.FixtureRequest) -> str:
        from trtrecipe.engines import tensorrt_run

        reason = tensorrt_run.unavailable(request.param.replace("-", "_"))
        if reason:
            pytest.skip(reason)
        return str(request.param)

    @pytest.fixture(params=["fp32", "fp16", "int8-fp16"])
    def built(self, request: pytest.FixtureRequest, runtime: str, tmp_path: Path) -> dict[str, Path]:
        from trtrecipe.engines.tensorrt_library import library, version

        installed = version(library(runtime.replace("-", "_")))
        if runtime == "tensorrt-rtx" and request.param.startswith("int8") and installed < (1, 7):
            pytest.skip("this version cannot build INT8")
        files.save(net(), tmp_path / "float.onnx")
        (tmp_path / "keep.json").write_bytes(keep.dump({}))
        mode, _, fallback = request.param.partition("-")
        strong = runtime == "tensorrt-rtx" or installed >= (10, 12)
        variant = request.param if strong else {"int8": "int8"}.get(mode, "fp32")  # by flags otherwise
        files.save(variants()[variant], tmp_path / "model.onnx")
        params = compile.Params(runtime, DIMS, mode=mode, fallback=fallback or None, strongly_typed=strong)
        compile.run(params, {"onnx": tmp_path / "model.onnx", "keep": tmp_path / "keep.json"}, tmp_path)
        return {"float": tmp_path / "float.onnx", "onnx": tmp_path / "model.onnx", "engine": tmp_path / "model.engine"}

    @pytest.mark.parametrize("batch", [1, 3, 8])
    def test_outputs_follow_onnx_runtime(self, runtime: str, built: dict[str, Path], batch: int) -> None:
        x = np.random.default_rng(batch).standard_normal((batch, 3, 16, 16)).astype(np.float32)
        with open_engine(runtime, built["engine"]) as engine, ort.OrtEngine(built["onnx"]) as exact:
            ours, expected = engine.run({"x": x})["y"], exact.run({"x": x})["y"]
            np.testing.assert_allclose(ours, expected, atol=0.02 * np.abs(expected).max())
            np.testing.assert_array_equal(engine.run({"x": x})["y"], ours)

    def test_batch_outside_the_range(self, runtime: str, built: dict[str, Path]) -> None:
        with (
            open_engine(runtime, built["engine"]) as engine,
            pytest.raises(StepError, match=r"refuses shape \[9, 3, 16, 16\]"),
        ):
            engine.run({"x": np.zeros((9, 3, 16, 16), np.float32)})

    def test_verify_and_benchmark(self, runtime: str, built: dict[str, Path], tmp_path: Path) -> None:
        drawn = {"samples": 10, "seed": 0}
        reference.run(reference.Params(drawn=drawn), {"onnx": built["float"]}, tmp_path)
        params = verify.Params(runtime, "engine", drawn=drawn, dims=DIMS)
        figures = verify.run(params, {**built, "reference": tmp_path / "outputs.npz"}, tmp_path)
        assert figures["evaluated"] == "engine"
        assert figures["cosine"] > 0.98
        timed = benchmark.run(benchmark.Params(runtime, DIMS), built, tmp_path)
        assert timed["batch"] == 4
        assert 0 < timed["latency_ms"]["p50"] <= timed["latency_ms"]["p99"]
        assert "compute capability" in timed["conditions"]["device"]
        assert timed["conditions"]["runtime"] == runtime

    def test_damaged_engine(self, runtime: str, built: dict[str, Path]) -> None:
        built["engine"].write_bytes(built["engine"].read_bytes()[:5] + bytes(4096))
        with pytest.raises(StepError, match="cannot load the engine"):
            open_engine(runtime, built["engine"])

    def test_a_table_and_kept_layers(self, tmp_path: Path) -> None:
        """Implicit INT8, and a layer that has to stay in FP32: for releases of tensorrt that have weak typing."""
        from trtrecipe.engines import tensorrt_run
        from trtrecipe.engines.tensorrt_library import library, version
        from trtrecipe.quant import table

        if reason := tensorrt_run.unavailable("tensorrt"):
            pytest.skip(reason)
        if version(library("tensorrt")) >= (11,):
            pytest.skip("this release has no implicit quantization")
        files.save(net(), tmp_path / "model.onnx")
        (tmp_path / "keep.json").write_bytes(keep.dump({"gemm": "fp32"}))
        names = ["x", "c1", "r1", "c2", "a", "r2", "p", "f", "m", "r3", "y"]
        scales = {name: float(np.float32(6 / 127)) for name in names}
        (tmp_path / "table").write_bytes(table.dump(table.Table("8.5.2", table.ENTROPY_2, scales)))
        inputs = {"onnx": tmp_path / "model.onnx", "keep": tmp_path / "keep.json", "table": tmp_path / "table"}
        params = compile.Params("tensorrt", DIMS, mode="int8", fallback="fp16", strongly_typed=False)
        compile.run(params, inputs, tmp_path)
        x = np.random.default_rng(0).standard_normal((4, 3, 16, 16)).astype(np.float32)
        with open_engine("tensorrt", tmp_path / "model.engine") as engine, ort.OrtEngine(net()) as exact:
            ours, expected = engine.run({"x": x})["y"], exact.run({"x": x})["y"]
        assert np.sum(ours * expected) / np.linalg.norm(ours) / np.linalg.norm(expected) > 0.95
