"""What a careful shell script would call to build recipes/digits by hand: one process per tool, no cache, no checks.

Each command is one call of the same library function that trtrecipe's step calls, or of the one that a person would
use in its place, on the same samples, with the same settings where they cost time. `cold_build.py` times them; run one
by itself with `python benchmarks/direct.py NAME FOLDER`, in the order of `TOOLS`. FOLDER holds a copy of the recipe.
A third argument, `--leave-at-once`, ends the process without Python's and TensorFlow's own clean-up.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

SCALE = 0.0625
BATCH = 16  # what trtrecipe's steps use
SAMPLES = 512
MIN, OPT, MAX = 1, 8, 32


def copy(folder: Path) -> None:
    """The model, out of the way of whoever edits it (fetch)."""
    import shutil

    shutil.copytree(folder / "model", folder / "fetched", dirs_exist_ok=True)


def tf2onnx(folder: Path) -> None:
    """SavedModel → ONNX at opset 13, by the lightest way there is: the signature's frozen graph (export)."""
    os.environ |= {"CUDA_VISIBLE_DEVICES": "-1", "TF_ENABLE_ONEDNN_OPTS": "0", "TF_CPP_MIN_LOG_LEVEL": "2"}
    import tensorflow as tf
    import tf2onnx

    v1 = tf.compat.v1
    with v1.Session(graph=tf.Graph()) as session:
        loaded = v1.saved_model.loader.load(session, ["serve"], str(folder / "fetched"))
        signature = loaded.signature_def["serving_default"]
        inputs = [info.name for info in signature.inputs.values()]
        outputs = [info.name for info in signature.outputs.values()]
        nodes = [name.partition(":")[0] for name in outputs]
        frozen = v1.graph_util.convert_variables_to_constants(session, session.graph.as_graph_def(), nodes)
    tf2onnx.convert.from_graph_def(
        frozen, input_names=inputs, output_names=outputs, opset=13, output_path=str(folder / "exported.onnx")
    )


def simplify(folder: Path) -> None:
    """Folding and clean-up by ONNX Runtime's basic level (prepare)."""
    _optimize(folder / "exported.onnx", folder / "prepared.onnx", "ORT_ENABLE_BASIC")


def reference(folder: Path) -> None:
    """FP32 outputs and accuracy on the test split (reference)."""
    import numpy as np

    outputs = _outputs(folder, folder / "exported.onnx")
    np.savez(folder / "reference.npz", outputs)


def quantize(folder: Path) -> None:
    """ONNX Runtime's entropy calibration and its Q/DQ pairs, in one process (calibrate, quantize).

    Bins, levels, samples, batch and observed tensors are trtrecipe's, not ONNX Runtime's defaults: with these, 128
    bins for 128 levels, the search for a threshold has nothing to search, and every output is observed beside inputs.
    """
    import numpy as np
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.calibrate import EntropyCalibrater
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    operators = ["Conv", "Gemm", "MatMul"]
    model = onnx.load(folder / "prepared.onnx")
    samples = np.load(folder / "data.npz")["x_calib"][:SAMPLES].astype(np.float32) * np.float32(SCALE)
    name = model.graph.input[0].name

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
        def __init__(self) -> None:
            self._batches = ({name: samples[start : start + BATCH]} for start in range(0, len(samples), BATCH))

        def get_next(self) -> dict[str, object] | None:
            return next(self._batches, None)

    class Calibrator(EntropyCalibrater):  # type: ignore[misc]  # onnxruntime has no types
        def select_tensors_to_calibrate(self, model):  # type: ignore[no-untyped-def]  # types of what is imported late
            read = {node.input[0] for node in model.graph.node if node.op_type in operators}
            return read, {value.name: value for value in (*model.graph.value_info, *model.graph.input)}

    calibrator = Calibrator(
        folder / "prepared.onnx", augmented_model_path=str(folder / "augmented.onnx"), symmetric=True,
        num_bins=2048, num_quantized_bins=128,
    )  # fmt: skip
    calibrator.augment_graph()
    calibrator.create_inference_session()
    calibrator.collect_data(Reader())
    options = {
        "ActivationSymmetric": True,
        "WeightSymmetric": True,
        "QuantizeBias": False,
        "OpTypesToExcludeOutputQuantization": operators,
    }
    int8 = quantization.QuantType.QInt8
    quantizer = QDQQuantizer(
        model, True, False, int8, int8, calibrator.compute_data(), [], [], operators, options
    )  # fmt: skip
    quantizer.quantize_model()
    quantizer.model.save_model_to_file(str(folder / "quantized.onnx"), False)


def half(folder: Path) -> None:
    """FP16 where there is no quantization (convert)."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    blocked = ["QuantizeLinear", "DequantizeLinear"]
    model = onnx.load(folder / "quantized.onnx")
    onnx.save(convert_float_to_float16(model, keep_io_types=True, op_block_list=blocked), folder / "half.onnx")


def host_engine(folder: Path) -> None:
    """ONNX Runtime's extended optimizations (compile for host)."""
    _optimize(folder / "quantized.onnx", folder / "host.onnx", "ORT_ENABLE_EXTENDED")


def rtx_engine(folder: Path) -> None:
    """TensorRT for RTX with one optimization profile (compile for rtx)."""
    import tensorrt_rtx as trt

    log = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    if not parser.parse((folder / "half.onnx").read_bytes()):
        sys.exit(str(parser.get_error(0)))
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    tensor = network.get_input(0)
    profile.set_shape(tensor.name, *((size, *tensor.shape[1:]) for size in (MIN, OPT, MAX)))
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        sys.exit("no engine")
    (folder / "rtx.engine").write_bytes(engine)


def evaluate_host(folder: Path) -> None:
    """The engine for host against the reference (verify)."""
    _compare(folder, folder / "host.onnx")


def evaluate_rtx(folder: Path) -> None:
    """The graph that the rtx engine was built from, run by ONNX Runtime, against the reference (verify)."""
    _compare(folder, folder / "half.onnx")


def latency(folder: Path) -> None:
    """Latency of the engine for host: 0.25 s to warm up and 2 s that count (benchmark)."""
    from time import perf_counter

    import numpy as np

    session = _session(folder / "host.onnx", threads=0)
    feeds = {session.get_inputs()[0].name: np.random.default_rng(0).standard_normal((OPT, 8, 8, 1), np.float32)}
    for seconds in (0.25, 2.0):
        times, start = [], perf_counter()
        while (now := perf_counter()) - start < seconds:
            session.run(None, feeds)
            times.append(perf_counter() - now)
    print(np.percentile(times, (50, 90, 99)))


def _optimize(source: Path, target: Path, level: str) -> None:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    options.optimized_model_filepath = str(target)
    options.log_severity_level = 3
    ort.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])


def _session(model: Path, threads: int = 1):  # type: ignore[no-untyped-def]  # types of what is imported late
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def _outputs(folder: Path, model: Path):  # type: ignore[no-untyped-def]  # types of what is imported late
    """All outputs on the test split; prints the accuracy."""
    import numpy as np

    data = np.load(folder / "data.npz")
    samples = data["x_test"].astype(np.float32) * np.float32(SCALE)
    session = _session(model)
    name = session.get_inputs()[0].name
    parts = [session.run(None, {name: samples[at : at + BATCH]})[0] for at in range(0, len(samples), BATCH)]
    outputs = np.concatenate(parts)
    print(model.name, "accuracy", float((outputs.argmax(1) == data["y_test"]).mean()))
    return outputs


def _compare(folder: Path, model: Path) -> None:
    import numpy as np

    expected, got = np.load(folder / "reference.npz")["arr_0"], _outputs(folder, model)
    norms = np.linalg.norm(expected, axis=1) * np.linalg.norm(got, axis=1)
    print("worst cosine", float(((expected * got).sum(1) / norms).min()))


TOOLS = {
    tool.__name__: tool
    for tool in (
        copy,
        tf2onnx,
        simplify,
        reference,
        quantize,
        half,
        host_engine,
        rtx_engine,
        evaluate_host,
        evaluate_rtx,
        latency,
    )
}

if __name__ == "__main__":
    TOOLS[sys.argv[1]](Path(sys.argv[2]))
    if "--leave-at-once" in sys.argv:
        os._exit(0)
