"""What the configuration in a Keras file may name: layers and functions of Keras that compute, and nothing else.

Keras's own safe mode does not cover all of it: the loader of HDF5 files in Keras 2 runs Lambda layers whatever it is
told (CVE-2025-9905), functions may be any that can be imported (CVE-2025-1550, CVE-2025-8747), and vocabularies any
file that can be read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from trtrecipe.errors import StepError
from trtrecipe.graphs.sound import listed

SAFELY = "give the model as a SavedModel instead: model.export('model')"

_PARTS = frozenset(
    ["activations", "constraints", "dtype_policies", "engine", "initializers", "layers", "losses", "metrics",
     "mixed_precision", "models", "ops", "optimizers", "quantizers", "random", "regularizers"]
)  # fmt: skip
"""Modules of Keras that a configuration may name."""
_NO_CLASS = frozenset(["load_model", "model_from_json", "save_model", "clone_model"])
"""Functions in these modules that are no part of a model."""
_CODE = {
    "Lambda": "is a Lambda layer, which is Python code",
    "__lambda__": "holds a Python lambda",
    "TorchModuleWrapper": "holds a pickle, which runs code when it is read",
    "TFSMLayer": "reads another SavedModel, by its path",
    "JaxLayer": "is Python code",
    "FlaxLayer": "is Python code",
    "ClassMethod": "calls a Python method by its name",
    "InstanceMethod": "calls a Python method by its name",
    "InstanceProperty": "calls a Python method by its name",
}
"""Class → what it brings in."""
_TABLES = frozenset(["StringLookup", "IntegerLookup", "TextVectorization"])
_OPERATIONS = frozenset(["TFOpLambda", "SlicingOpLambda"])
_COMPUTES = re.compile(
    r"(compat\.v1\.)?"
    r"((math|nn|image|linalg|signal|bitwise|quantization|random|__operators__|keras\.(activations|backend))\.\w+"
    r"|(abs|argmax|argmin|batch_to_space|boolean_mask|broadcast_to|cast|clip_by_value|concat|constant|convert_to_tensor"
    r"|cos|cumsum|divide|einsum|equal|exp|expand_dims|eye|fill|floor|gather|gather_nd|greater|greater_equal|identity"
    r"|less|less_equal|linspace|matmul|maximum|meshgrid|minimum|multiply|negative|norm|not_equal|one_hot|ones|ones_like"
    r"|pad|pow|range|rank|realdiv|reshape|reverse|roll|round|shape|sigmoid|sign|sin|size|slice|space_to_batch|split"
    r"|sqrt|square|squeeze|stack|stop_gradient|strided_slice|subtract|add|tan|tanh|tensordot|tile|transpose|truediv|unstack"
    r"|where|zeros|zeros_like|(tensor_)?scatter_nd\w*|reduce_\w+|logical_\w+))"
)
"""TensorFlow's functions that a model of Keras 2 may call. Called with constants alone, they run while it is loaded."""
_MANGLED = ("keras.src.", "keras.", "tf_keras.src.", "tf_keras.", "tensorflow.keras.", "tensorflow.python.keras.")


def require_no_code(config: Mapping[str, Any]) -> None:
    """Refuse a model's configuration that needs code from elsewhere, or looks values up in tables.

    Raises StepError naming the layers.
    """
    found = list(_objects(config, "the model"))
    problems = {layer: what for layer, value in reversed(found) for what in _problems(value)}
    if problems:
        lines = [f"{layer} {what}" for layer, what in reversed(problems.items())]
        raise StepError(
            "the Keras file carries or names code, and code of models is never run:\n" + listed(lines),
            hint=f"load it where that code is trusted, and {SAFELY}",
        )
    if tables := list(
        dict.fromkeys(f"{layer} ({v['class_name']})" for layer, v in found if v["class_name"] in _TABLES)
    ):
        raise StepError(
            "the Keras model looks values up in tables, which ONNX as TensorRT reads it has no form for:\n"
            + listed(tables),
            hint="leave these layers out, and do the lookup where the data is prepared",
        )


def _objects(config: Mapping[str, Any], layer: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(layer, object) for all that has a class. No recursion: a configuration may be deep."""
    waiting: list[tuple[str, Any]] = [(layer, config)]
    while waiting:
        layer, value = waiting.pop()
        if isinstance(value, list):
            waiting += [(layer, entry) for entry in reversed(value)]
        elif isinstance(value, dict):
            inner = value.get("config")
            if isinstance(inner, dict) and isinstance(inner.get("name"), str):
                layer = f"layer {inner['name']}"
            if isinstance(value.get("class_name"), str):
                yield layer, value
            elif _is_dumped(value.get("value")):
                yield layer, {"class_name": "__lambda__"}
            # What is needed for training only is not loaded.
            kept = [entry for key, entry in value.items() if key not in ("compile_config", "training_config")]
            waiting += [(layer, entry) for entry in reversed(kept)]


def _is_dumped(value: Any) -> bool:
    """Whether it is a lambda as Keras writes one that stands for an activation: code, defaults, closure."""
    return isinstance(value, list) and len(value) == 3 and isinstance(value[0], str) and len(value[0]) > 64


def _problems(value: Mapping[str, Any]) -> Iterator[str]:
    kind, module, inner = value["class_name"], value.get("module"), value.get("config")
    name = inner if kind == "function" and isinstance(inner, str) else kind
    if kind in _CODE:
        yield _CODE[kind]
    elif isinstance(module, str) and not _is_kerass_own(module, name):
        yield f"is of {module}.{name}, which is not part of Keras"
    elif isinstance(value.get("registered_name"), str) and ">" in value["registered_name"] and module is None:
        yield f"is of {value['registered_name']}, which is not part of Keras"
    elif kind == "function" and ">" in name:
        yield f"is of {name}, which is not part of Keras"
    elif kind in _OPERATIONS:
        function = inner.get("function") if isinstance(inner, dict) else None
        if not isinstance(function, str) or not _COMPUTES.fullmatch(function):
            yield f"calls tf.{function}"


def _is_kerass_own(module: str, name: str) -> bool:
    if module == "builtins":  # functions are looked for among Keras's own; types of Python are no layers
        return True
    prefix = next((entry for entry in _MANGLED if f"{module}.".startswith(entry)), None)
    if prefix is None:
        return False
    part = f"{module}.".removeprefix(prefix).partition(".")[0]
    return part in ("", *_PARTS) and name not in _NO_CLASS
