"""TensorFlow models as something to compare with: the model as it was saved, or the graph that was frozen from it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from trtrecipe.data.preprocess import Array
from trtrecipe.errors import StepError
from trtrecipe.graphs import tensorflow_refusals
from trtrecipe.graphs.frozen import Frozen
from trtrecipe.graphs.saved_model import DEFAULT_SIGNATURE, DEFAULT_TAGS
from trtrecipe.graphs.tensorflow_runtime import explained
from trtrecipe.graphs.values import array_of
from trtrecipe.truth.source import Run, Source


def of_graph(frozen: Frozen) -> Source:
    """The frozen graph, run as it is: TensorFlow's optimizations are off."""
    run = _runner(frozen)
    return Source(
        "the TensorFlow graph it was made from computes",
        lambda feeds: dict(zip(frozen.outputs, run(feeds, list(frozen.outputs.values())), strict=True)),
    )


def of_keras(run: Run) -> Source:
    """The Keras model itself, layer by layer."""
    return Source("the Keras model computes", run)


def of_saved_model(folder: Path, signature: str | None, tags: Collection[str] | None, frozen: Frozen) -> Source:
    """The signature, loaded by TensorFlow's own loader, which finds values of variables in its own way.

    That loader runs what the file says initialises its objects. Where this reaches files or Python, where it fails (old
    optimizers), and for models of TensorFlow 1, whose values come in by the file's own saver anyway, the frozen graph
    serves instead, and a note says so. `signature` and `tags` are as for `saved_model.freeze`.
    """
    tags = list(tags or DEFAULT_TAGS)
    meta_graph = _meta_graph(folder, frozenset(tags))
    if not meta_graph.HasField("object_graph_def"):
        return of_graph(frozen)
    if harmful := tensorflow_refusals.run_when_loaded(meta_graph):
        return _noted(frozen, f"loading it would run {harmful[0]}")
    import tensorflow as tf

    try:
        loaded = tf.saved_model.load(str(folder), tags=tags)
        called = loaded.signatures[signature or DEFAULT_SIGNATURE]
    except Exception as error:  # anything may come out of objects of another version
        return _noted(frozen, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
    outputs = list(frozen.outputs)

    def run(feeds: Mapping[str, Array]) -> dict[str, Array]:
        with explained("TensorFlow cannot run the model"):
            given = {name: tf.constant(value) for name, value in feeds.items()}
            computed = called(**given)
        return {name: computed[name].numpy() for name in outputs}

    def keep(feeds: Mapping[str, Array]) -> dict[str, Array]:
        assert loaded is not None  # its variables live as long as it does
        return run(feeds)

    return Source("the model as it was saved computes", keep)


def intermediate(frozen: Frozen, feeds: Mapping[str, Array], tensors: Collection[str]) -> dict[str, Array]:
    """Values of tensors inside the frozen graph, by their TensorFlow names. Raises StepError."""
    return dict(zip(tensors, _runner(frozen)(feeds, list(tensors)), strict=True))


def _noted(frozen: Frozen, why: str) -> Source:
    note = f"TensorFlow's loader was not used to check the export, the graph was compared with the frozen one: {why}"
    return replace(of_graph(frozen), notes=(note,))


def _runner(frozen: Frozen) -> Any:
    import tensorflow as tf

    v1 = tf.compat.v1
    options = v1.ConfigProto()
    options.graph_options.rewrite_options.disable_meta_optimizer = True
    with explained("TensorFlow cannot load the graph"), tf.Graph().as_default() as graph:
        tf.import_graph_def(frozen.graph, name="")
        session = v1.Session(graph=graph, config=options)

    def run(feeds: Mapping[str, Array], tensors: Collection[str]) -> list[Array]:
        with explained("TensorFlow cannot run the graph"):
            weights = {name: array_of(values) for name, values in frozen.weights.items()}
            given = {frozen.tensors[name]: value for name, value in feeds.items()}
            return list(session.run(list(tensors), {**weights, **given}))

    return run


def _meta_graph(folder: Path, tags: frozenset[str]) -> Any:
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    for meta_graph in saved.meta_graphs:
        if tags == set(meta_graph.meta_info_def.tags):
            return meta_graph
    raise StepError("the SavedModel has changed while it was read", hint="build again")
