"""Models that are refused: one message each, and nothing of what they carry is run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from support import fixtures_bad

from trtrecipe.errors import StepError
from trtrecipe.formats import model_format
from trtrecipe.steps import export, fetch

TRUSTED = "load it where that code is trusted, and give the model as a SavedModel instead: model.export('model')"
CODE = "the Keras file carries or names code, and code of models is never run:\n  "
NEEDS = "set model.signature to one that"
ENDS = "net/relu, net/logits, mul_1"

# Fixture → parameters of the export → message | hint; … stands for words of another tool, or sizes.
MESSAGES: list[tuple[str, dict[str, Any], str]] = [
    ("plain", {"signature": "predict"}, f"the SavedModel has no signature predict | {NEEDS} exists: serving_default"),
    (
        "plain", {"tags": ["serve", "gpu"]},
        "the SavedModel has no graph with the tags [gpu, serve]; it has: [serve] | "
        "set model.tags to one of these, as in tags: [serve]",
    ),
    (
        "reads_a_file", {},
        "the model reads or writes files, or talks to other processes, while it computes:\n  ReadFile secret | "
        "export a signature that takes all its data as inputs",
    ),
    (
        "writes_a_file", {},
        "the model reads or writes files, or talks to other processes, while it computes:\n  WriteFile leak | "
        "export a signature that takes all its data as inputs",
    ),
    (
        "calls_python", {},
        "the model calls Python code, which is not in the file and is never run:\n  EagerPyFunc while/host | "
        "export it without tf.py_function and tf.numpy_function",
    ),
    (
        "counts_its_runs", {},
        "the model changes its variables while it computes, and an engine remembers nothing from run to run:\n"
        "  AssignAddVariableOp … | "
        "export it for inference (training=False, stateful=False), with states as inputs and outputs",
    ),
    (
        "custom_op", {},
        "the model uses operators that TensorFlow does not have (custom ops):\n  AcmeFancy fancy | "
        "replace them by TensorFlow's own operators and export the model again",
    ),
    (
        "lookup_table", {},
        "the model looks values up in tables, which ONNX as TensorRT reads it has no form for:\n"
        "  HashTableV2 hash_table\n  LookupTableFindV2 find/LookupTableFindV2 | "
        "export a signature that starts after the lookup, and do the lookup where the data is prepared",
    ),
    (
        "strings_inside", {},
        "the model works on strings, which TensorRT has no form for:\n  StringToNumber back\n  AsString text | "
        "export a signature that takes numbers, and do this part where the data is prepared",
    ),
    (
        "strings_as_input", {},
        "input file of signature serving_default takes strings, and engines take numbers only | "
        f"{NEEDS} takes numbers: numbers",
    ),
    (
        "complex_input", {},
        "input x of the model takes values of type complex64, and engines take numbers only | "
        "export a signature whose inputs are floats, integers or booleans",
    ),
    ("no_inputs", {}, f"signature serving_default has no inputs: its outputs are constants | {NEEDS} takes inputs"),
    (
        "unknown_rank", {},
        "the number of axes of input x is not known | "
        "write model.inputs.x.shape, or export the model with a shape for that input",
    ),
    (
        "lfs_variables", {},
        "FOLDER/model/variables/variables.data-00000-of-00001 is a Git LFS pointer, not the file itself | "
        "run git lfs pull in its repository",
    ),
    (
        "no_variables", {},
        "the SavedModel lacks variables/variables.index: 1 variables have no values | "
        "copy the whole folder, with variables/, or export the model again",
    ),
    ("short_graph", {}, "saved_model.pb cannot be read, it is damaged or cut short: … | export the model again"),
    (
        "restores_another_file", {"tags": ["serve", "small"]},
        "the SavedModel restores its variables in a way not known to be harmless: RestoreV2 … | "
        "load the model where it was made and save it again",
    ),
    ("keras_lambda", {}, f"{CODE}layer double is a Lambda layer, which is Python code | {TRUSTED}"),
    ("keras_2_lambda", {}, f"{CODE}layer open is a Lambda layer, which is Python code | {TRUSTED}"),
    ("keras_lambda_argument", {}, f"{CODE}layer head holds a Python lambda | {TRUSTED}"),
    ("keras_dumped_lambda", {}, f"{CODE}layer head holds a Python lambda | {TRUSTED}"),
    ("keras_registered_function", {}, f"{CODE}layer head is of Acme>mish, which is not part of Keras | {TRUSTED}"),
    ("keras_custom_class", {}, f"{CODE}layer mine is of acme.nets.Attention, which is not part of Keras | {TRUSTED}"),
    (
        "keras_imported_function", {},
        f"{CODE}layer a is of os.system, which is not part of Keras\n"
        f"  layer b is of keras.utils.get_file, which is not part of Keras | {TRUSTED}",
    ),
    ("keras_torch", {}, f"{CODE}layer torch holds a pickle, which runs code when it is read | {TRUSTED}"),
    (
        "keras_vocabulary", {},
        "the Keras model looks values up in tables, which ONNX as TensorRT reads it has no form for:\n"
        "  layer words (StringLookup) | leave these layers out, and do the lookup where the data is prepared",
    ),
    ("keras_2_operation", {}, f"{CODE}layer clean calls tf.io.gfile.rmtree | {TRUSTED}"),
    (
        "keras_pickle", {},
        "the Keras file holds assets/state, a pickle, which runs code when it is read | "
        "give the model as a SavedModel instead: model.export('model')",
    ),
    (
        "keras_bomb", {},
        "the Keras file has … bytes and declares to hold …: it would fill the memory | "
        "do not use this file; Keras itself writes models uncompressed",
    ),
    (
        "keras_bomb_that_lies", {},
        "the model file is no .keras file, or it is cut short: Bad CRC-32 for file 'model.weights.h5' | "
        "compare its size with the original's",
    ),
    (
        "keras_leaves", {},
        "the Keras file holds ../../outside, which would leave its folder | do not use this file",
    ),
    (
        "keras_short", {},
        "the model file is no .keras file, or it is cut short: Bad CRC-32 for file 'model.weights.h5' | "
        "compare its size with the original's",
    ),
    (
        "keras_unknown_layer", {},
        "the Keras model cannot be loaded (by Keras 3, and 3.10.0 wrote it): …Densest… | "
        "give it as a SavedModel: model.export('model')",
    ),
    (
        "keras_without_inputs", {},
        "the Keras model does not say what its inputs are (a subclassed or unbuilt model) | "
        "export it as a SavedModel with a signature: model.export('model')",
    ),
    (
        "h5_short", {},
        "the HDF5 data cannot be read, it is damaged or cut short: …truncated file… | "
        "compare the file's size with the original's",
    ),
    (
        "h5_damaged", {},
        "the HDF5 data cannot be read, it is damaged or cut short: … | compare the file's size with the original's",
    ),
    (
        "h5_weights", {},
        "the HDF5 file holds weights alone, and no model | save the whole model: model.save('model.keras')",
    ),
    ("h5_link", {}, "the HDF5 data refers to another file: /weights | save the model again in one file"),
    ("h5_external", {}, "the HDF5 data refers to another file: /w | save the model again in one file"),
    (
        "h5_bomb", {},
        "the HDF5 data has … bytes and declares to hold 4,398,046,511,104: it would fill the memory | "
        "do not use this file; Keras itself writes models uncompressed",
    ),
    (
        "frozen", {},
        "a frozen graph does not say what its outputs are | "
        f"name them in model.outputs; what nothing in the graph reads: {ENDS}",
    ),
    (
        "frozen", {"outputs": ["net/relo"]},
        f"the graph has no tensor net/relo | did you mean net/relu? likely outputs: {ENDS}",
    ),
    (
        "frozen", {"outputs": ["net/relu:1"]},
        "the graph's operation net/relu (Relu) has no output 1 | name another output",
    ),
    (
        "frozen", {"outputs": ["net/logits"]},
        "the graph is not frozen: it reads variables, whose values are not in the file:\n  kernel | "
        "freeze it (convert_variables_to_constants), or give the SavedModel that it was made from",
    ),
    (
        "frozen", {"outputs": ["net/relu"], "inputs": {"x": {}}},
        "the outputs need inputs that model.inputs does not name:\n  mask | name them as well, or name other outputs",
    ),
    (
        "frozen", {"outputs": ["net/relu"]},
        "the number of axes of input mask is not known | "
        "write model.inputs.mask.shape, or export the model with a shape for that input",
    ),
    (
        "frozen", {"outputs": ["mul_1"]},
        "the outputs need no input: they are constants | name other outputs in model.outputs",
    ),
    (
        "frozen", {"outputs": ["mul_1"], "inputs": {"x": {}}},
        "the outputs do not need the input x | the inputs they need: none",
    ),
    (
        "frozen", {"outputs": ["net/relu"], "inputs": {"image": {}}},
        "the graph has no tensor image | likely inputs: x, mask",
    ),
    (
        "frozen", {"outputs": ["net/relu"], "inputs": {"net/relu:0": {}}},
        "net/relu is named both as an input and as an output | name another output",
    ),
    ("frozen_short", {}, "the model file is no GraphDef, or it is cut short: … | compare its size with the original's"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("fixture", "params", "expected"), MESSAGES, ids=[f"{m[0]}-{n}" for n, m in enumerate(MESSAGES)]
)
def test_messages(fixture: str, params: dict[str, Any], expected: str, tmp_path: Path) -> None:
    path = getattr(fixtures_bad, fixture)(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(StepError) as caught:
        format = model_format(path)
        fetch.run(fetch.Params(format), {"source": path}, out)
        export.run(export.Params(format=format, **params), {"model": out / "model"}, out)
    said = f"{caught.value.message} | {caught.value.hint}".replace(str(tmp_path), "FOLDER")
    assert re.fullmatch(".*".join(re.escape(part) for part in expected.split("…")), said, re.DOTALL), said
    assert not (tmp_path / fixtures_bad.CANARY).exists()
    assert not (out / "model.onnx").exists()


def test_every_fixture_is_in_the_table() -> None:
    made = {
        name
        for name, value in vars(fixtures_bad).items()
        if getattr(value, "__module__", None) == fixtures_bad.__name__ and not name.startswith("_")
    }
    assert made == {fixture for fixture, _, _ in MESSAGES}
