"""What calibration costs, beside other calibrators: a graph of ResNet-18's shape, samples of 3 x 224 x 224.

The graph's weights are seeded normal values of He's variance, its samples seeded smooth noise, normalized as for
ImageNet; both are written by this program. Every command calibrates once, in a process of its own, as its users do:
trtrecipe runs its calibrate step on the file of samples; ONNX Runtime reads one sample of it at a time, with its own
defaults but for symmetric ranges; NNCF (nncf.quantize) likewise, all of them (its subset size is set to their number);
ModelOpt (modelopt.onnx.quantization.quantize, on the CPU) takes them as one array. The last two also place Q/DQ and
write the graph, which takes them a second or so. Only trtrecipe runs more than 256 samples: ONNX Runtime's entropy and
percentile keep every observed value of every sample, 30 MiB or so each.

"All tensors" is what implicit quantization needs; "2 processes" share the samples where that is worth starting them.

`tensors` is how many scales of activations come out: trtrecipe counts what it quantizes, and has the range of every
other float tensor; ONNX Runtime every float tensor; of the last two, the QuantizeLinear nodes that are not on weights.

ModelOpt and NNCF are measured when they are installed in the environment of --peers; each may have one of its own:
  python3 -m venv build/peers && build/peers/bin/pip install nncf onnxruntime "nvidia-modelopt[onnx]"
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import measure
from measure import Command, Sample

METHODS = ("minmax", "percentile", "entropy", "mse")
VARIANTS = {"all tensors": {"tensors": "all"}, "2 processes": {"jobs": 2}}
"""What a row of ours does beside the usual → the parameters or limits that say so."""
PEERS = ("MinMax", "Percentile", "Entropy")
OTHERS = {"nncf": ("NNCF", "nncf"), "nvidia-modelopt": ("ModelOpt entropy", "modelopt.onnx.quantization")}
"""Distribution → what its row is called, and the module that calibrates."""
SHAPE = (3, 224, 224)
COUNTS = (64, 256, 1024)
MOST_OF_OTHERS = 256  # samples


def main() -> None:
    """Measure, print, and write if asked to; or be the process that is measured."""
    if sys.argv[1:2] == ["child"]:
        child(*sys.argv[2:])
        return
    parser = measure.parser(__doc__, runs=1)
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS, metavar="N", help="numbers of samples")
    parser.add_argument("--peers", type=Path, default=measure.PEERS, metavar="DIR", help="their venv (build/peers)")
    options = parser.parse_args()
    others = _others(options.peers)
    counts = sorted(options.counts)
    env = measure.environment()
    results: dict[tuple[str, int], tuple[Sample, int]] = {}
    with measure.work_folder(options.work) as work:
        measure.run(Command("model", [sys.executable, __file__, "child", "model", str(work)], work, env))
        for count in counts:
            commands = _commands(count, work, env)
            if count <= MOST_OF_OTHERS:
                commands += [_other(name, python, count, work, env) for name, (python, _) in others.items()]
            measure.run(
                Command("samples", [sys.executable, __file__, "child", "samples", str(work), str(count)], work, env)
            )
            for name, (sample, tensors) in _measure(commands, options.runs).items():
                results[name, count] = (sample, tensors)
            (work / f"{count}.npy").unlink()
    lines = [_table(results), "", "Budgets:", "", *_budgets(results, counts)]
    versions = ", ".join([measure.machine("trtrecipe", "onnxruntime", "numpy"), *(said for _, said in others.values())])
    measure.report("calibration", "\n".join([*lines, "", f"{versions}."]), options.write)


def _commands(count: int, work: Path, env: dict[str, str]) -> list[Command]:
    def command(name: str, kind: str, method: str) -> Command:
        return Command(name, [sys.executable, __file__, "child", kind, str(work), str(count), method], work, env)

    ours = [command(f"trtrecipe {method}", "ours", method) for method in METHODS]
    ours += [command(f"trtrecipe entropy, {what}", "ours", f"entropy, {what}") for what in VARIANTS]
    peers = PEERS if count <= MOST_OF_OTHERS else ()
    return ours + [command(f"ONNX Runtime {method}", "onnxruntime", method) for method in peers]


def _others(folder: Path) -> dict[str, tuple[Path, str]]:
    """Of what is installed there: distribution → its Python, and "name version"."""
    python = measure.peer(folder, "python")
    found = {}
    for name, (_, module) in OTHERS.items() if python is not None else ():
        tried = subprocess.run([str(python), "-c", f"import {module}"], capture_output=True, text=True)
        if tried.returncode == 0:
            found[name] = python, measure.peer_version(python, name)
        else:
            sys.stderr.write(f"{name} is left out: {(tried.stderr.strip().splitlines() or ['no message'])[-1]}\n")
    return found


def _other(name: str, python: Path, count: int, work: Path, env: dict[str, str]) -> Command:
    argv = [str(python), __file__, "child", name, str(work), str(count), "entropy"]
    return Command(OTHERS[name][0], argv, work, env)


def _measure(commands: list[Command], runs: int) -> dict[str, tuple[Sample, int]]:
    """The medians of every command, interleaved, and how many scales it gave."""
    taken: dict[str, list[Sample]] = {command.name: [] for command in commands}
    tensors = {}
    for turn in range(runs):
        for command in commands:
            measure.progress(f"run {turn + 1} of {runs}: {command.name}, {command.argv[4]} samples")
            sample, answer = measure.run_and_read(command)
            taken[command.name].append(sample)
            tensors[command.name] = int(answer.split()[-1])
    measure.progress("")
    return {name: (measure.median_sample(samples), tensors[name]) for name, samples in taken.items()}


def _table(results: dict[tuple[str, int], tuple[Sample, int]]) -> str:
    rows = [
        [name, str(count), str(tensors), f"{sample.cpu:.1f}", f"{sample.wall:.1f}", f"{sample.peak:.0f}"]
        for (name, count), (sample, tensors) in sorted(results.items(), key=lambda item: item[0][1])
    ]
    return measure.table(["calibrator", "samples", "tensors", "CPU s", "wall s", "peak MiB"], rows)


def _budgets(results: dict[tuple[str, int], tuple[Sample, int]], counts: list[int]) -> list[str]:
    lines = []
    if ("trtrecipe entropy", 256) in results:
        ours = results["trtrecipe entropy", 256][0]
        lines.append(f"- entropy of 256 samples, CPU: {measure.verdict(ours.cpu, 35, ' s')}")
        lines.append(f"- entropy of 256 samples, peak: {measure.verdict(ours.peak, 350, ' MiB')}")
        theirs = results["ONNX Runtime MinMax", 256][0]
        lines.append(
            f"- entropy of 256 samples, CPU / ONNX Runtime's MinMax: {measure.verdict(ours.cpu / theirs.cpu, 1)}"
        )
    first, last = (results["trtrecipe entropy", count][0].peak for count in (counts[0], counts[-1]))
    growth = f"- peak with {counts[-1]} samples / with {counts[0]}: "
    return [*lines, growth + measure.verdict(last / first, 1.05)]


def child(kind: str, work: str, count: str = "0", method: str = "") -> None:
    """Prepare something, or calibrate and print how many scales there are."""
    sys.path.insert(0, str(measure.REPOSITORY))  # what lies beside this program is measured, installed or not
    folder = Path(work)
    if kind == "model":
        _write_model(folder / "model.onnx")
    elif kind == "samples":
        _write_samples(folder / f"{count}.npy", int(count))
    else:
        shown, sys.stdout = sys.stdout, sys.stderr  # some print their progress
        calibrators = {"ours": _ours, "onnxruntime": _onnxruntime, "nncf": _nncf, "nvidia-modelopt": _modelopt}
        found = calibrators[kind](folder, count, method)
        print(found, file=shown)


def _ours(folder: Path, count: str, method: str) -> int:
    from trtrecipe.steps import calibrate

    out = folder / f"ours-{method}-{count}"
    out.mkdir(exist_ok=True)
    inputs = {"onnx": folder / "model.onnx", "data.image": folder / f"{count}.npy"}
    method, _, what = method.partition(", ")
    asked: dict[str, Any] = VARIANTS.get(what, {})
    params = calibrate.Params(method, tensors=asked.get("tensors", "quantized"))
    calibrate.run(params, inputs, out, jobs=asked.get("jobs", 1))
    return len(json.loads((out / "scales.json").read_text())["tensors"])


def _onnxruntime(folder: Path, count: str, method: str) -> int:
    import numpy as np
    from onnxruntime.quantization.calibrate import CalibrationDataReader, CalibrationMethod, create_calibrator

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
        samples = iter(np.load(folder / f"{count}.npy", mmap_mode="r"))

        def get_next(self) -> dict[str, Any] | None:
            sample = next(self.samples, None)
            return None if sample is None else {"image": np.asarray(sample)[np.newaxis]}

    augmented = str(folder / f"augmented-{method}.onnx")
    calibrator = create_calibrator(
        folder / "model.onnx",
        augmented_model_path=augmented,
        calibrate_method=CalibrationMethod[method],
        extra_options={"symmetric": True},
    )
    calibrator.collect_data(Reader())
    return len(calibrator.compute_data().data)


def _nncf(folder: Path, count: str, method: str) -> int:
    """With the range estimators that are its default; `method` is not used."""
    import nncf
    import numpy as np
    import onnx

    samples = np.load(folder / f"{count}.npy", mmap_mode="r")
    dataset = nncf.Dataset(range(len(samples)), lambda index: {"image": np.asarray(samples[index])[np.newaxis]})
    return _pairs(nncf.quantize(onnx.load(folder / "model.onnx"), dataset, subset_size=len(samples)))


def _modelopt(folder: Path, count: str, method: str) -> int:
    import numpy as np
    import onnx
    from modelopt.onnx.quantization import quantize

    made = folder / "modelopt.onnx"
    quantize(
        str(folder / "model.onnx"),
        calibration_data={"image": np.load(folder / f"{count}.npy")},
        calibration_method=method,
        calibration_eps=["cpu"],
        calibration_shapes="image:1x3x224x224",
        high_precision_dtype="fp32",
        output_path=str(made),
    )
    return _pairs(onnx.load(made))


def _pairs(model: Any) -> int:
    """QuantizeLinear nodes on what is no constant."""
    constants = {tensor.name for tensor in model.graph.initializer}
    nodes = model.graph.node
    constants |= {name for node in nodes if node.op_type == "Constant" for name in node.output}
    return sum(node.op_type == "QuantizeLinear" and node.input[0] not in constants for node in nodes)


def _write_samples(file: Path, count: int) -> None:
    """One sample after the other: noise of a coarse grid, enlarged and smoothed, as photographs are smooth."""
    import numpy as np

    rng = np.random.default_rng(1)
    samples = np.lib.format.open_memmap(file, "w+", np.float32, (count, *SHAPE))
    for index in range(count):
        coarse = np.kron(rng.standard_normal((3, 28, 28)), np.ones((8, 8)))
        for axis in (1, 2):
            coarse = (coarse + np.roll(coarse, 2, axis) + np.roll(coarse, 4, axis)) / 2
        samples[index] = np.clip(coarse + 0.1 * rng.standard_normal(SHAPE), -2.1, 2.6)
    samples.flush()


def _write_model(file: Path) -> None:
    """ResNet-18 with the batch norms folded: biases instead, and the second convolution of a block scaled down."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []

    def constant(name: str, values: Any) -> str:
        weights.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    def node(kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [name], name, **attributes))
        return name

    def conv(x: str, name: str, channels: tuple[int, int], size: int, stride: int, gain: float = 2.0) -> str:
        given, made = channels
        variance = gain / (given * size * size)
        weight = constant(f"{name}.weight", rng.standard_normal((made, given, size, size)) * variance**0.5)
        bias = constant(f"{name}.bias", rng.standard_normal(made) * 0.1)
        shape = {"kernel_shape": [size] * 2, "strides": [stride] * 2, "pads": [size // 2] * 4}
        return node("Conv", [x, weight, bias], name, **shape)

    x = node("Relu", [conv("image", "stem", (3, 64), 7, 2)], "stem.relu")
    x = node("MaxPool", [x], "stem.pool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    given = 64
    for stage, made in enumerate((64, 128, 256, 512)):
        for block in range(2):
            name, stride = f"stage{stage}.block{block}", 2 if stage and not block else 1
            inner = node("Relu", [conv(x, f"{name}.conv1", (given, made), 3, stride)], f"{name}.relu1")
            inner = conv(inner, f"{name}.conv2", (made, made), 3, 1, gain=0.5)
            skip = x if given == made else conv(x, f"{name}.skip", (given, made), 1, stride, gain=1.0)
            x, given = node("Relu", [node("Add", [inner, skip], f"{name}.add")], f"{name}.relu2"), made
    x = node("Flatten", [node("GlobalAveragePool", [x], "pool")], "flat")
    inputs = [
        x,
        constant("fc.weight", rng.standard_normal((512, 1000)) / 512**0.5),
        constant("fc.bias", np.zeros(1000)),
    ]
    nodes.append(helper.make_node("Gemm", inputs, ["logits"], "fc"))
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "resnet18",
        [value("image", TensorProto.FLOAT, ["batch", *SHAPE])],
        [value("logits", TensorProto.FLOAT, ["batch", 1000])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(onnx.shape_inference.infer_shapes(model), str(file))


if __name__ == "__main__":
    main()
