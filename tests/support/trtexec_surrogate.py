"""A strict stand-in for trtexec, one file. It measures nothing and its engines run nowhere: for tests alone.

`install(path, "8.5.2")` writes it as an executable that knows exactly the flags of that release (from the package's
own data, which is made from trtexec's option parser), refuses the rest as trtexec does, reads values as trtexec's
parser does, refuses opsets and operators above the release's table, and calibration tables that do not fit the network.
Beside it may lie `<path>.faults.json`:

    seconds: how long the build takes          hang: never ends, deaf to SIGTERM
    memory: bytes; a larger workspace fails with cudaErrorMemoryAllocation
    do: words for the shell, run in the middle of the build
    refuse_timing: fails by a timing cache that is rubbish
    out_of_memory_killer: like memory, by SIGKILL    signal: dies by that signal
    fail: text of an error to end with          full_disk: writes half an engine, fails
    silent_disk: writes nothing, succeeds       banner: another release's number
    says: warnings                              lines: so many more lines of log
    real: builds with TensorRT for RTX instead of the marked fake

Each start and end is appended to `<path>.calls.jsonl`. Log lines, messages and exit status as in
github.com/NVIDIA/TensorRT samples/trtexec/trtexec.cpp, samples/common/logging.h and sampleOptions.cpp
(8.2, 10.3, 11.1).
"""

import json
import os
import re
import signal
import struct
import sys
import subprocess
import time

TABLE = None  # the release's table, written in by `install`
REPEATED = ("--plugins", "--staticPlugins")


def install(path, tensorrt):
    """Write the executable for TensorRT `tensorrt`, and an empty list of calls."""
    from trtrecipe.targets.catalog import load_catalog, operators
    from trtrecipe.targets.trtexec import record

    known = record(tensorrt)
    dialect = load_catalog().dialects.get("trt-" + known.tensorrt)
    table = {
        "tensorrt": tensorrt,
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


def note(event):
    with open(os.path.abspath(__file__) + ".calls.jsonl", "a") as calls:
        call = {"event": event, "pid": os.getpid(), "time": time.time(), "argv": sys.argv[1:]}
def read_bytes(path):
    try:
        with open(path, "rb") as source:
            return source.read()
    except OSError:
        return b""


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
    body = b"SURROGATE ENGINE\n" + json.dumps(meaning, sort_keys=True).encode() + b"\n" + os.urandom(8).hex().encode()
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
        with open(options["--timingCacheFile"], "ab") as cache:
            cache.write(b"timed\n")
    if not faults.get("silent_disk"):
        engine(options["--saveEngine"], options, table, faults)
    log("I", f"Engine built in {seconds:.3f} sec.")
    if "--exportLayerInfo" in options:
        with open(options["--exportLayerInfo"], "w") as out:
            json.dump({"Layers": network[0], "Bindings": sorted(network[2])[:2]}, out)


def run(options):
    """The fake engine carries its ONNX, which ONNX Runtime runs; times are made up."""
    import numpy as np
    import onnxruntime

    with open(options["--loadEngine"], "rb") as source:
        data = source.read()
    if b"SURROGATE ENGINE\n" not in data:
        raise Refused("[TRT] 1: [stdArchiveReader.cpp] Serialization assertion magicTagRead == kMAGIC_TAG failed.")
    session = onnxruntime.InferenceSession(data.partition(b"SURROGATE ENGINE\n")[2].split(b"\n", 2)[2])
    log("I", "Engine loaded in 0.001 sec.")
    feeds, random = {}, np.random.default_rng(0)
    for value in session.get_inputs():
        sizes = options.get("--shapes", {}).get(value.name, [1 if isinstance(d, str) else d for d in value.shape])
        path = options.get("--loadInputs", {}).get(value.name)
        array = np.fromfile(path, np.float32) if path else random.uniform(-1, 1, sizes).astype(np.float32)
        if array.size < np.prod(sizes):
            raise Refused(f"{path}: the file holds less than {value.name} needs")
        feeds[value.name] = array[: np.prod(sizes)].reshape(sizes) if path else array
    if set(options.get("--loadInputs", {})) - set(feeds):
        raise Refused("Invalid tensor names found in --loadInputs flag.")
    outputs = session.run(None, feeds)
    names = [value.name for value in session.get_outputs()]
    iterations = int(options.get("--iterations", 10))
    exports = {
        "--exportOutput": [
            {
    if "do" in faults:
        subprocess.run(["/bin/sh", "-c", faults["do"]], check=True)
                "name": name,
                "dimensions": "x".join(map(str, array.shape)),
                "values": [float(f"{v:g}") for v in array.flat],
            }
            for name, array in zip(names, outputs, strict=True)
        ],
        "--exportTimes": [
            {"computeMs": 1.0, "latencyMs": 1.0 + n / 1000, "h2dMs": 0, "d2hMs": 0} for n in range(iterations)
        ],
        "--exportProfile": [{"count": iterations}, {"name": "all", "timeMs": 1.0, "averageMs": 1.0, "percentage": 100}],
        "--exportLayerInfo": {"Layers": ["all"], "Bindings": names},
    }
    for flag, value in exports.items():
        if flag in options:
        if faults.get("refuse_timing") and b"rubbish" in read_bytes(options["--timingCacheFile"]):
            raise Refused("TimingCache creation failed")
            with open(options[flag], "w") as out:
                json.dump(value, out)


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
            run(options)
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
