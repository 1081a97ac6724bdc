"""A strict stand-in for trtexec, one file. It measures nothing and its engines run nowhere: for tests alone.

`install(path, "8.5.2")` writes it as an executable that knows exactly the flags of that release (from the package's
own data, which is made from trtexec's option parser), refuses the rest as trtexec does, reads values as trtexec's
parser does, refuses opsets and operators above the release's table, and calibration tables that do not fit the network.
Which layers its DLA takes is made up (ON_DLA); how it is told is not (`place`).
Beside it may lie `<path>.faults.json`:

    seconds: how long the build takes          hang: never ends, deaf to SIGTERM
    do: words for the shell, run in the middle of the build
    refuse_timing: fails by a timing cache that is rubbish
    memory: bytes; a larger workspace fails with cudaErrorMemoryAllocation
    out_of_memory_killer: like memory, by SIGKILL    signal: dies by that signal
    fail: text of an error to end with          full_disk: writes half an engine, fails
    silent_disk: writes nothing, succeeds       banner: another release's number
    says: warnings                              lines: so many more lines of log
    real: builds with TensorRT for RTX instead of the marked fake
    repeats: equal builds give equal engines
    run_fail: like fail, of a run           nan: runs give NaN
    milliseconds: what a run takes, on paper, by precision: int8, float

Each start and end is appended to `<path>.calls.jsonl`. Log lines, messages and exit status as in
github.com/NVIDIA/TensorRT samples/trtexec/trtexec.cpp, samples/common/logging.h and sampleOptions.cpp
(8.2, 10.3, 11.1).
"""

import json
import os
import re
import signal
import struct
import subprocess
import sys
import time

TABLE = None  # the release's table, written in by `install`
REPEATED = ("--plugins", "--staticPlugins")
ON_DLA = ("Conv", "Gemm", "Relu", "Clip", "Sigmoid", "Tanh", "MaxPool", "AveragePool", "Add", "Mul", "Sub")


def install(path, tensorrt, dla_cores=0):
    """Write the executable for TensorRT `tensorrt` on a device with so many DLA cores, and an empty list of calls."""
    from trtrecipe.targets.catalog import load_catalog, operators
    from trtrecipe.targets.trtexec import record

    known = record(tensorrt)
    dialect = load_catalog().dialects.get("trt-" + known.tensorrt)
    table = {
        "tensorrt": tensorrt,
        "dla_cores": dla_cores,
        "flags": dict(known.flags),
        "values": {flag: list(words) for flag, words in known.values.items()},
        "fractions": known.means["workspace"]["fractions"],
        "suffixes": known.means["workspace"]["suffixes"],
        "opset_max": dialect.opset_max if dialect else 99,
        "operators": [op for op, yes in operators(dialect.operators_from).items() if yes] if dialect else None,
    }
    with open(__file__) as source:
        text = source.read().replace("TABLE = None", "TABLE = json.loads(" + repr(json.dumps(table)) + ")", 1)
    os.makedirs(os.path.dirname(str(path)), exist_ok=True)
    with open(str(path), "w") as out:
        out.write("#!" + sys.executable + "\n" + text)
    os.chmod(str(path), 0o755)


class Refused(Exception):
    """What trtexec says before it ends with a failure."""


def split_name(text):
    """A name and its value: by quotes, else at the last colon."""
    quoted = text.split("'")
    if len(quoted) > 1:
        if len(quoted) != 3:
            raise Refused("Found invalid number of 's when parsing " + text)
        return quoted[0] + quoted[1], quoted[2][1:]
    name, colon, value = text.rpartition(":")
    return (name, value) if colon else (value, value)


def pairs(text):
    return dict(split_name(part) for part in text.split(",") if part)


def shape(text):
    return [int(size) for size in text.split("x")]


def memory(text, table):
    """Bytes of a workspace."""
    if not table["fractions"]:
        return int(text) << 20
    number, unit = (text[:-1], text[-1]) if text[-1:] in "BKMG" else (text, "M")
    if unit != "M" and not table["suffixes"]:
        raise Refused("invalid size " + text)
    return int(float(number) * {"B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}[unit])


def parse(argv, table):
    """argv → what it means, by flag. Raises Refused."""
    options, repeated, unknown = {}, {}, []
    for argument in argv:
        flag, equals, value = argument.partition("=")
        kind = table["flags"].get(flag)
        if kind is None or (flag in options and flag not in REPEATED):
            unknown.append((flag + " " + value).strip())
        elif (kind == "value") != bool(equals) or (equals and not value):
            raise Refused(flag + " wants " + ("no value" if kind == "switch" else "a value"))
        elif flag in table["values"] and flag not in ("--memPoolSize", "--layerPrecisions", "--tacticSources"):
            if value.lower() not in [word.lower() for word in table["values"][flag]]:
                raise Refused("Unknown " + flag[2:] + ": " + value)
            options[flag] = value
        elif flag in REPEATED:
            repeated.setdefault(flag, []).append(value)
        else:
            options[flag] = value if equals else True
    if unknown:
        raise Refused("\n".join("Unknown option: " + text for text in unknown))
    options.update(repeated)
    for flag in ("--minShapes", "--optShapes", "--maxShapes", "--shapes"):
        if flag in options:
            options[flag] = {name: shape(text) for name, text in pairs(options[flag]).items()}
    if "--loadInputs" in options:
        options["--loadInputs"] = pairs(options["--loadInputs"])
    if "--layerPrecisions" in options:
        options["--layerPrecisions"] = pairs(options["--layerPrecisions"])
        for word in options["--layerPrecisions"].values():
            if word not in table["values"]["--layerPrecisions"]:
                raise Refused("Invalid DataType " + word)
    if "--workspace" in options:
        options["workspace"] = int(options["--workspace"]) << 20
    for pool, text in pairs(options.get("--memPoolSize", "")).items():
        if pool not in table["values"]["--memPoolSize"]:
            raise Refused("Unknown memory pool: " + pool)
        if pool == "workspace":
            options["workspace"] = memory(text, table)
    for flag in ("--useDLACore", "--builderOptimizationLevel"):
        if flag in options:
            options[flag] = int(options[flag])
    if "--onnx" not in options and "--loadEngine" not in options:
        raise Refused("Model missing or format not recognized")
    return options


def number(tensorrt):
    """TensorRT's own number for a version: 8502, 100300."""
    major, minor, patch = ([int(part) for part in tensorrt.split(".")] + [0, 0])[:3]
    return major * (1000 if major < 10 else 10000) + minor * 100 + patch


def read_bytes(path):
    try:
        with open(path, "rb") as source:
            return source.read()
    except OSError:
        return b""


def note(event):
    with open(os.path.abspath(__file__) + ".calls.jsonl", "a") as calls:
        call = {"event": event, "pid": os.getpid(), "time": time.time(), "argv": sys.argv[1:]}
        calls.write(json.dumps(call) + "\n")


def log(severity, text):
    stamp = time.strftime("[%m/%d/%Y-%H:%M:%S]")
    out = sys.stdout if severity in "IV" else sys.stderr
    for line in text.splitlines():
        out.write(f"{stamp} [{severity}] {line}\n")
        out.flush()


def load(path):
    """The network: (names of nodes, operators, tensors, names of inputs with an open axis, opset)."""
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
        graph = model.graph
        names = [node.name or node.op_type for node in graph.node]
    except Exception as error:
        raise Refused(f"[TRT] ModelImporter.cpp: Failed to parse ONNX model from file: {path} ({error})") from error
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants]
    tensors = {value.name for value in inputs} | {name for node in graph.node for name in node.output}
    opened = [v.name for v in inputs if any(not d.HasField("dim_value") for d in v.type.tensor_type.shape.dim)]
    opset = max([entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")] or [1])
    return names, {node.op_type for node in graph.node}, tensors, opened, opset


def check_network(network, options, table):
    _, operators, tensors, opened, opset = network
    if opset > table["opset_max"]:
        raise Refused("[TRT] opset {} is not supported, {} is the highest".format(opset, table["opset_max"]))
    for operator in sorted(operators):
        if table["operators"] is not None and operator not in table["operators"]:
            raise Refused("[TRT] In node 0 (parseGraph): UNSUPPORTED_NODE: No importer registered for op: " + operator)
    shaped = options.get("--optShapes", {})
    if shaped and not opened:
        raise Refused(
            "Static model does not take explicit shapes since the shape of inference tensors will be "
            "determined by the model itself"
        )
    for name in opened:
        if name not in shaped:
            log(
                "W",
                f"Dynamic dimensions required for input: {name}, but no shapes were provided. "
                "Automatically overriding shape to: 1x1",
            )
    for name in shaped:
        if name not in opened:
            raise Refused(f'Cannot find input tensor with name "{name}" in the network inputs!')
    if "--calib" in options:
        check_table(options["--calib"], tensors, table)


def check_table(path, tensors, table):
    with open(path) as source:
        header, *lines = source.read().splitlines()
    if header != "TRT-{}-EntropyCalibration2".format(number(table["tensorrt"])):
        raise Refused("[TRT] Calibration table does not match calibrator algorithm type.")
    for line in lines:
        name, _, scale = line.rpartition(": ")
        if name not in tensors or not re.match("^[0-9a-f]{8}$", scale):
            raise Refused("[TRT] calibration table: no tensor for " + line)


def check_dla(options, table):
    """As samples/common/sampleEngines.cpp does: nothing but the core is refused, FP16 goes without saying."""
    if options.get("--useDLACore", -1) >= table["dla_cores"]:
        raise Refused("Cannot create DLA engine, {} not available".format(options["--useDLACore"]))


def place(options, table):
    """Say what runs where, as each release does; a layer that must not fall back ends the build."""
    import onnx

    graph = onnx.load(options["--onnx"], load_external_data=False).graph
    low, high = options.get("--minShapes", {}), options.get("--maxShapes", {})
    core = options.get("--useDLACore", -1)
    parts = []
    for node in graph.node:
        name, on_dla = node.name or node.op_type, core >= 0 and node.op_type in ON_DLA
        if on_dla and low != high:
            log("W", f"[TRT] DLA Layer {name} does not support dynamic shapes in any dimension.")
            on_dla = False
        if core >= 0 and not on_dla:
            if "--allowGPUFallback" not in options:
                raise Refused(
                    "[TRT] 2: Error Code 2: Internal Error (Assertion allowGPUFallback failed. "
                    f"Layer '{name}' is not supported on DLA but GPU fallback is not enabled.)"
                )
            kind = node.op_type.upper()
            log("W", f"[TRT] Layer '{name}' ({kind}): Unsupported on DLA. Switching this layer's device type to GPU.")
        if on_dla and parts and parts[-1][0]:
            parts[-1][1].append(name)
        else:
            parts.append((on_dla, [name], node.op_type.upper()))
    release = tuple(int(part) for part in table["tensorrt"].split(".")[:2])
    severity, typed = "V" if release >= (10, 0) else "I", release >= (8, 4)
    if severity == "V" and "--verbose" not in options:
        return
    if severity == "I":
        log(severity, "[TRT] ---------- Layers Running on DLA ----------")
    for _, names, _ in (part for part in parts if part[0]):
        inside = names[0] if len(names) == 1 else f"{names[0]}...{names[-1]}"
        log(severity, f"[TRT] [DlaLayer] {{ForeignNode[{inside}]}}")
    if severity == "I":
        log(severity, "[TRT] ---------- Layers Running on GPU ----------")
    for _, names, kind in (part for part in parts if not part[0]):
        log(severity, f"[TRT] [GpuLayer] {kind + ': ' if typed else ''}{names[0]}")


def engine(path, options, table, faults):
    if faults.get("real"):
        from pathlib import Path

        import onnx

        from trtrecipe.engines import tensorrt_build

        low, opt, high = (options.get(flag, {}) for flag in ("--minShapes", "--optShapes", "--maxShapes"))
        model, dims = onnx.load(options["--onnx"]), {}
        for value in model.graph.input:
            for axis, dim in enumerate(value.type.tensor_type.shape.dim):
                if value.name in low and dim.dim_param:
                    dims[dim.dim_param] = {
                        key: shapes[value.name][axis] for key, shapes in (("min", low), ("opt", opt), ("max", high))
                    }
        tensorrt_build.build_for_rtx(model, Path(path), dims, options.get("workspace"))
        return
    version = [int(part) for part in (table["tensorrt"] + ".0.0.0").split(".")[:4]]
    head = b"ftrt" + struct.pack("<I", 0) + bytes(16) + bytes(version) if version[0] > 8 else b""
    meaning = {flag: value for flag, value in options.items() if flag not in ("--onnx", "--saveEngine")}
    chance = bytes(8) if faults.get("repeats") else os.urandom(8)
    body = b"SURROGATE ENGINE\n" + json.dumps(meaning, sort_keys=True).encode() + b"\n" + chance.hex().encode()
    with open(options["--onnx"], "rb") as model:
        body += b"\n" + model.read()
    with open(path, "wb") as out:
        out.write((head + body)[: (len(head + body) // 2 if faults.get("full_disk") else None)])
    if faults.get("full_disk"):
        raise Refused("Saving engine to file failed.")


def build(options, table, faults):
    log("I", "Start parsing network model")
    network = load(options["--onnx"])
    check_network(network, options, table)
    log("I", "Finish parsing network model")
    check_dla(options, table)
    place(options, table)
    if options.get("--int8") and "--calib" not in options and "QuantizeLinear" not in network[1]:
        log("W", "Int8 calibrator is NULL. Placeholder dynamic ranges are set.")
    workspace = options.get("workspace", 16 << 20)
    for key in ("memory", "out_of_memory_killer"):
        if key in faults and workspace > faults[key]:
            if key == "out_of_memory_killer":
                os.kill(os.getpid(), signal.SIGKILL)
            log("E", f"[TRT] Requested amount of GPU memory ({workspace} bytes) could not be allocated.")
            raise Refused(
                "[TRT] 2: [virtualMemoryBuffer.cpp::resizePhysical::145] Error Code 2: OutOfMemory "
                "(cudaErrorMemoryAllocation: out of memory)"
            )
    if "memory" in faults:
        log("W", "[TRT] Tactic Device request: 900MB Available: 500MB. Device memory is insufficient to use tactic.")
        log("W", "[TRT] Skipping tactic 3 due to insufficient memory on requested size of 900 (out of memory).")
    seconds = faults.get("seconds", 0)
    for name in network[0]:
        if options.get("--verbose"):
            log("V", "[TRT] *************** Autotuning format combination: Float(64,1) -> Float(10,1) ***************")
            log("V", f"[TRT] --------------- Timing Runner: {name} (CaskConvolution[0x80000009])")
        time.sleep(seconds / len(network[0]))
    if "do" in faults:
        subprocess.run(["/bin/sh", "-c", faults["do"]], check=True)
    for line in faults.get("says", ()):
        log("W", f"[TRT] {line}")
    for line in range(faults.get("lines", 0)):
        log("I", f"line {line} of a long log")
    if "signal" in faults:
        os.kill(os.getpid(), faults["signal"])
    if "fail" in faults:
        raise Refused(faults["fail"])
    if faults.get("hang"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        note("hang")
        while True:
            time.sleep(1)
    if "--timingCacheFile" in options:
        if faults.get("refuse_timing") and b"rubbish" in read_bytes(options["--timingCacheFile"]):
            raise Refused("TimingCache creation failed")
        with open(options["--timingCacheFile"], "ab") as cache:
            cache.write(b"timed\n")
    if not faults.get("silent_disk"):
        engine(options["--saveEngine"], options, table, faults)
    log("I", f"Engine built in {seconds:.3f} sec.")
    if "--exportLayerInfo" in options:
        with open(options["--exportLayerInfo"], "w") as out:
            json.dump({"Layers": network[0], "Bindings": sorted(network[2])[:2]}, out)


def network_of(path):
    """What an engine was told, and its ONNX. Raises Refused for what is no engine of this program."""
    with open(path, "rb") as source:
        data = source.read()
    if b"SURROGATE ENGINE\n" not in data:
        raise Refused("[TRT] 1: [stdArchiveReader.cpp] Serialization assertion magicTagRead == kMAGIC_TAG failed.")
    told, _, network = data.partition(b"SURROGATE ENGINE\n")[2].split(b"\n", 2)
    return json.loads(told), network


def feed(value, options, told, table):
    """The values of one input: from its file, else random."""
    import numpy as np

    kind = {"float": "float32", "float16": "float16", "double": "float64"}.get(value.type[7:-1], value.type[7:-1])
    stored = "int32" if kind == "int64" and number(table["tensorrt"]) < 90000 else kind
    opened = any(isinstance(axis, str) for axis in value.shape)
    sizes = options.get("--shapes", {}).get(value.name, [1 if isinstance(d, str) else d for d in value.shape])
    low, high = (told.get(flag, {}).get(value.name, sizes) for flag in ("--minShapes", "--maxShapes"))
    if opened and not all(a <= size <= b for a, size, b in zip(low, sizes, high, strict=True)):
        raise Refused(f"[TRT] 3: [executionContext.cpp] {value.name}: supplied dimensions {sizes} are out of range")
    path = options.get("--loadInputs", {}).get(value.name)
    if path is None:
        return np.random.default_rng(0).uniform(-1, 1, sizes).astype(kind)
    array = np.fromfile(path, stored)
    if array.size != np.prod(sizes):
        raise Refused(f"{path}: the file holds {array.size} values, {value.name} needs {np.prod(sizes)}")
    return array.reshape(sizes).astype(kind)


def shown(values):
    """Values as C++ streams print them, six digits."""
    return ", ".join(f"{float(v):g}" if v.dtype.kind == "f" else str(int(v)) for v in values.ravel())


def times(count, milliseconds, table):
    """As trtexec exports them; the oldest releases name copies otherwise."""
    into, back = ("In", "Out") if number(table["tensorrt"]) < 8400 else ("H2d", "D2h")
    for index in range(count):
        start, compute = 500 + index * milliseconds, milliseconds * (0.8 + index % 10 / 100)
        entry = {f"start{into}Ms": start, "startComputeMs": start + 0.1, "computeMs": compute}
        entry.update({f"end{into}Ms": start + 0.1, "endComputeMs": start + 0.1 + compute})
        entry.update({f"start{back}Ms": start + 0.1 + compute, f"end{back}Ms": start + 0.2 + compute})
        yield {**entry, "latencyMs": compute + 0.2, f"{into[0].lower()}{into[1:]}Ms": 0.1}


def run(options, table, faults):
    """The fake engine carries its ONNX, which ONNX Runtime runs; times are made up: `milliseconds` a run."""
    import numpy as np
    import onnx
    import onnxruntime

    if "run_fail" in faults:
        raise Refused(faults["run_fail"])
    told, network = network_of(options["--loadEngine"])
    session = onnxruntime.InferenceSession(network)
    log("I", "Engine loaded in 0.001 sec.")
    feeds = {value.name: feed(value, options, told, table) for value in session.get_inputs()}
    if set(options.get("--loadInputs", {})) - set(feeds):
        raise Refused("Invalid tensor names found in --loadInputs flag.")
    outputs = session.run(None, feeds)
    if faults.get("nan"):
        outputs = [np.full_like(array, np.nan) if array.dtype.kind == "f" else array for array in outputs]
    names = [value.name for value in session.get_outputs()]
    iterations = int(options.get("--iterations", 10))
    nodes = onnx.load_from_string(network).graph.node
    layers = [node.name or node.op_type for node in nodes]
    int8 = "--int8" in told or any(node.op_type == "QuantizeLinear" for node in nodes)
    takes = faults.get("milliseconds", {}).get("int8" if int8 else "float", 1.0)
    exports = {
        "--exportOutput": "[\n  "
        + ", ".join(
            '{{ "name" : "{}"\n  , "dimensions" : "{}"\n  , "values" : [ {} ]\n  }}\n'.format(
                name, "x".join(map(str, array.shape)), shown(array)
            )
            for name, array in zip(names, outputs, strict=True)
        )
        + "]\n",
        "--exportTimes": json.dumps(list(times(iterations, takes, table))),
        "--exportProfile": json.dumps(
            [{"count": iterations}]
            + [
                {"name": name, "timeMs": index * iterations, "averageMs": index, "percentage": 1}
                for index, name in enumerate(layers, 1)
            ]
        ),
        "--exportLayerInfo": json.dumps({"Layers": layers, "Bindings": names}),
    }
    for flag, text in exports.items():
        if flag in options:
            with open(options[flag], "w") as out:
                out.write(text)


def main():
    here = os.path.abspath(__file__)
    faults = {}
    if os.path.exists(here + ".faults.json"):
        with open(here + ".faults.json") as source:
            faults = json.load(source)

    version = faults.get("banner", number(TABLE["tensorrt"]))
    banner = "&&&& {} TensorRT.trtexec [TensorRT v" + str(version) + "] # " + " ".join(sys.argv)
    sys.stdout.write(banner.format("RUNNING") + "\n")
    sys.stdout.flush()
    note("start")
    try:
        options = parse(sys.argv[1:], TABLE)
        if "--loadEngine" in options:
            run(options, TABLE, faults)
        else:
            build(options, TABLE, faults)
    except Refused as refusal:
        log("E", str(refusal))
        sys.stdout.write(banner.format("FAILED") + "\n")
        note("end")
        return 1
    if "--onnx" in options:
        log("I", "Skipped inference phase since --skipInference is added.")
    sys.stdout.write(banner.format("PASSED") + "\n")
    note("end")
    return 0


if __name__ == "__main__":
    sys.exit(main())
