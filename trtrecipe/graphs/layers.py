"""The source model's layers and the nodes of the exported graph that compute them.

`layers.json`: {"schema": "trtrecipe/layers/v1", "layers": {layer: [ONNX node names, may be none]}} as canonical JSON.

A layer is a scope: the names of operations are paths, and `block/conv` is the layer of `block/conv/convolution`; every
level is listed, `block` too. A node belongs to the scopes of its own name and to those of the constants that it alone
reads: where batch normalization is merged into the convolution before it, tf2onnx names the one node that remains after
the former, and its weights tell the latter, so that it is listed under both layers. Nodes that `prepare` merges later
are still listed. A layer without nodes was merged without such a trace, or does nothing at inference (Dropout).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from onnx import ModelProto

from trtrecipe.digest import canonical_json
from trtrecipe.errors import StepError
from trtrecipe.graphs.canonical import Renamed
from trtrecipe.graphs.names import is_generated

SCHEMA = "trtrecipe/layers/v1"

Layers = dict[str, list[str]]

NO_LAYER = frozenset(["Const", "Identity", "NoOp", "Placeholder", "VarHandleOp", "ReadVariableOp"])
"""TensorFlow's operations that compute nothing: where their names lead is plumbing."""


def dump(layers: Mapping[str, list[str]]) -> bytes:
    """The document as canonical JSON."""
    return canonical_json({"schema": SCHEMA, "layers": dict(layers)})


def load(path: Path) -> Layers:
    """The layers in `path`. Raises StepError when it is damaged or of another version."""
    try:
        document = json.loads(path.read_bytes())
        if document["schema"] != SCHEMA:
            raise ValueError(f"its schema is {document['schema']}, not {SCHEMA}")
        return {str(layer): [str(node) for node in nodes] for layer, nodes in document["layers"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StepError(f"{path.name} is no usable list of layers: {error}", "build again") from None


def of_onnx(source: Iterable[str], model: ModelProto) -> Layers:
    """The scopes of the node names `source`, as the given model has them, and of the nodes of the exported `model`."""
    layers: Layers = {scope: [] for name in source for scope in scopes(name)}
    for node in model.graph.node:
        for scope in scopes(node.name):
            layers.setdefault(scope, []).append(node.name)
    return layers


def of_tensorflow(operations: Iterable[tuple[str, str]], keras: Iterable[str], exported: Renamed) -> Layers:
    """The layers of a TensorFlow model.

    `operations`: (type, name) of those in its graph; `keras`: paths of its Keras layers, where they are known.
    """
    restored = exported.layers.name
    layers: Layers = {layer: [] for layer in keras}
    layers.update((scope, []) for kind, name in operations if kind not in NO_LAYER for scope in scopes(restored(name)))
    for node in exported.model.graph.node:
        constants = [restored(name) for name in exported.constants[node.name] if not is_generated(name)]
        for scope in dict.fromkeys(scope for name in (node.name, *constants) for scope in scopes(name)):
            layers.setdefault(scope, []).append(node.name)
    return layers


def of_keras(config: Mapping[str, Any]) -> list[str]:
    """Paths of the layers in a Keras model's configuration, those of models inside it as `model/layer`, in its order.

    Raises StepError when it does not say; Keras would not load it either.
    """
    try:
        return list(dict.fromkeys(_keras_layers(config["config"], "")))
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise StepError(
            f"the Keras file does not say what its layers are: {error}", "save the model again: model.save"
        ) from None


def scopes(name: str) -> list[str]:
    """The scopes of a node name, outermost first: of `a/b/c` a, a/b."""
    parts = [part for part in name.split("/") if part]
    return ["/".join(parts[:end]) for end in range(1, len(parts))]


def _keras_layers(config: Any, scope: str) -> Iterator[str]:
    # The first versions of Keras 2 listed the layers of a Sequential model and said nothing else.
    for layer in config if isinstance(config, list) else config.get("layers", ()):
        inner = layer["config"]
        path = scope + str(layer.get("name") or inner.get("name") or "")
        if path != scope:
            yield path
            yield from _keras_layers(inner, f"{path}/")
