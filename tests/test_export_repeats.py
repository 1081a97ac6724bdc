"""export: one model, one sequence of bytes, whatever Python's hash seed is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from support.fixtures_formats import tf1

PROGRAM = """
import json, pathlib, sys
from trtrecipe.steps import export, fetch
for number, (source, params) in enumerate(json.loads(sys.argv[1])):
    out = pathlib.Path(sys.argv[2]) / str(number)
    out.mkdir(parents=True)
    fetch.run(fetch.Params("saved_model"), {"source": pathlib.Path(source)}, out)
    export.run(export.Params("saved_model", **params), {"model": out / "model"}, out)
"""


def two_bidirectional_layers(folder: Path) -> dict[str, Any]:
    """On one input, with the same shapes, so that each direction of one fits to the other's; the kernels by path."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(1)
    x = keras.Input((6, 3), name="x")
    both = [
        layers.Bidirectional(layers.LSTM(4, return_sequences=True, name=f"lstm_{name}"), name=name)(x)
        for name in ("first", "second")
    ]
    model = keras.Model(x, dict(zip("ab", both, strict=True)))
    model.export(str(folder), verbose=False)
    return {weight.path: weight.numpy() for weight in model.weights if weight.path.endswith("/kernel")}


def test_three_processes_with_different_hash_seeds(tmp_path: Path) -> None:
    kernels = two_bidirectional_layers(tmp_path / "lstm")
    made = tf1(tmp_path)
    models = [(str(tmp_path / "lstm"), {"inputs": {"x": {"shape": [1, 6, 3]}}}), (str(made.path), dict(made.params))]
    processes = []
    for seed in ("0", "1", "2"):
        command = [sys.executable, "-c", PROGRAM, json.dumps(models), str(tmp_path / f"out{seed}")]
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        processes.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    for process in processes:
        _, said = process.communicate()
        assert process.returncode == 0, said
    for number in range(len(models)):
        for name in ("model.onnx", "layers.json"):
            contents = {(tmp_path / f"out{seed}" / str(number) / name).read_bytes() for seed in range(3)}
            assert len(contents) == 1, (number, name)

    # Each layer's directions are one node: the weights are those of forward and backward of the same layer.
    graph = onnx.load(tmp_path / "out0" / "0" / "model.onnx").graph
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    joined = [weights[node.input[1]] for node in graph.node if node.op_type == "LSTM"]
    assert len(joined) == 2 and all(each.shape[0] == 2 for each in joined)
    for both in joined:
        owners = {path.split("/")[0] for path, value in kernels.items() for row in both if _same(value, row)}
        assert len(owners) == 1


def _same(kernel: Any, row: Any) -> bool:
    """Whether the same numbers are in a Keras kernel and in an ONNX weight, whose gates stand in another order."""
    return kernel.size == row.size and np.array_equal(np.sort(kernel, axis=None), np.sort(row, axis=None))
