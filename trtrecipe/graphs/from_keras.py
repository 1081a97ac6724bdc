"""A Keras file → a SavedModel with one signature, by the Keras that wrote it: version 2 (tf-keras) or 3."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtrecipe.errors import StepError
from trtrecipe.graphs.keras_file import KerasFile
from trtrecipe.graphs.saved_model import DEFAULT_SIGNATURE
from trtrecipe.graphs.tensorflow_runtime import explained, tensorflow


@dataclass(frozen=True)
class Saved:
    """`run` computes what the Keras model itself does: input name → array, to output name → array. Raises StepError."""

    folder: Path
    run: Callable[[Mapping[str, Any]], dict[str, Any]]


def to_saved_model(path: Path, file: KerasFile, suffix: str, folder: Path) -> Saved:
    """Save the model in the file at `path` as a SavedModel under `folder`, inputs and outputs named as in the model.

    `file` is what was read of it, and so judged harmless; `suffix`, ".keras" or ".h5", is what Keras goes by. Raises
    StepError.
    """
    tf = tensorflow()
    keras = _keras_2() if file.is_keras_2 else _keras_3()
    named = folder / f"model{suffix}"
    shutil.copyfile(path, named)
    which = f"Keras {'2' if file.is_keras_2 else '3'}" + (f", and {file.version} wrote it" if file.version else "")
    with explained(
        f"the Keras model cannot be loaded (by {which})", "give it as a SavedModel: model.export('model')", folder
    ):
        model = keras.models.load_model(named, compile=False, safe_mode=True)
    if not getattr(model, "inputs", None):
        raise StepError(
            "the Keras model does not say what its inputs are (a subclassed or unbuilt model)",
            hint="export it as a SavedModel with a signature: model.export('model')",
        )
    flat = keras.tree.flatten if hasattr(keras, "tree") else tf.nest.flatten
    pack = keras.tree.pack_sequence_as if hasattr(keras, "tree") else tf.nest.pack_sequence_as
    # A functional model's: a tensor, list or dictionary.
    structure = getattr(model, "_inputs_struct", getattr(model, "_nested_inputs", None))
    signature = [
        tf.TensorSpec(tensor.shape, tensor.dtype, name)
        for tensor, name in zip(model.inputs, _inputs(model), strict=True)
    ]
    names = _outputs(model)

    def serve(*arguments: Any) -> dict[str, Any]:
        given = arguments[0] if structure is None else pack(structure, list(arguments))
        return dict(zip(names, flat(model(given, training=False)), strict=True))

    with explained("Keras cannot export the model"):
        archive = keras.export.ExportArchive()
        archive.track(model)
        archive.add_endpoint(DEFAULT_SIGNATURE, serve, signature)
        archive.write_out(str(folder / "model"), **_QUIETLY[file.is_keras_2])

    def run(feeds: Mapping[str, Any]) -> dict[str, Any]:
        with explained("Keras cannot run the model"):
            given = [tf.constant(feeds[spec.name]) for spec in signature]
            return {name: value.numpy() for name, value in serve(*given).items()}

    return Saved(folder / "model", run)


_QUIETLY: Mapping[bool, Mapping[str, Any]] = {True: {}, False: {"verbose": False}}


def _keras_3() -> Any:
    import keras

    return keras


def _keras_2() -> Any:
    try:
        import tf_keras
    except ImportError as error:
        raise StepError(
            "a model of Keras 2 needs the package tf-keras, which is not installed",
            hint='run: pip install "trtrecipe[tensorflow]"',
        ) from error
    return tf_keras


def _inputs(model: Any) -> list[str]:
    """Names of the flattened inputs; Keras 2 makes them unique itself."""
    return list(getattr(model, "input_names", None) or [tensor.name for tensor in model.inputs])


def _outputs(model: Any) -> list[str]:
    """Names of the flattened outputs: the keys of a dictionary, else the layers that make them."""
    structure = getattr(model, "_outputs_struct", getattr(model, "_nested_outputs", None))
    if isinstance(structure, dict):
        return sorted(structure)  # the order in which Keras flattens it
    if hasattr(model, "output_names") and hasattr(model, "_nested_outputs"):
        return list(model.output_names)
    names = [tensor._keras_history.operation.name for tensor in model.outputs]
    return names if len(set(names)) == len(names) else [f"output_{index}" for index in range(len(names))]
