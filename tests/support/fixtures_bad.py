"""Models that must be refused, each made in a folder it is given; none of them may run what it carries.

What would run writes the file `executed` beside the model.
"""

from __future__ import annotations

import base64
import json
import marshal
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from support.fixtures_formats import keras_2_h5, keras_file, tf1, values

CANARY = "executed"


def _saved(folder: Path, serve: Callable[..., Any], *specs: Any) -> Path:
    import tensorflow as tf

    module = tf.Module()
    module.serve = tf.function(serve, input_signature=specs or (tf.TensorSpec([1, 2], name="x"),))
    module.scale = tf.Variable(values(64, 64), name="scale")
    tf.saved_model.save(module, str(folder / "model"), signatures=module.serve)
    return folder / "model"


def _edit(path: Path, change: Callable[[Any], None]) -> Path:
    """Change the SavedModel's graph in place."""
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
    change(saved.meta_graphs[0])
    (path / "saved_model.pb").write_bytes(saved.SerializeToString())
    return path


def plain(folder: Path) -> Path:
    """Nothing is wrong with it."""
    import tensorflow as tf

    scale = tf.Variable([2.0], name="own")
    module = tf.Module()
    module.scale = scale
    module.serve = tf.function(lambda x: {"y": x * scale}, input_signature=[tf.TensorSpec([1, 2], name="x")])
    tf.saved_model.save(module, str(folder / "model"), signatures=module.serve)
    return folder / "model"


def reads_a_file(folder: Path) -> Path:
    """A constant file name, which constant folding would read."""
    import tensorflow as tf

    def serve(x: Any) -> Any:
        secret = tf.io.decode_raw(tf.io.read_file("/etc/hostname", name="secret"), tf.uint8)
        return {"y": x + tf.cast(tf.size(secret), tf.float32)}

    return _saved(folder, serve)


def writes_a_file(folder: Path) -> Path:
    """No output needs it; it runs before one."""
    import tensorflow as tf

    def serve(x: Any) -> Any:
        with tf.control_dependencies([tf.io.write_file(str(folder / CANARY), "here", name="leak")]):
            return {"y": tf.identity(x)}

    return _saved(folder, serve)


def calls_python(folder: Path) -> Path:
    """In the body of a loop."""
    import tensorflow as tf

    def step(i: Any, v: Any) -> Any:
        result = tf.py_function(lambda t: (folder / CANARY).write_text("here") and t, [v], tf.float32, name="host")
        return i + 1, tf.ensure_shape(result, [1, 2])

    return _saved(folder, lambda x: {"y": tf.while_loop(lambda i, v: i < 2, step, [0, x])[1]})


def counts_its_runs(folder: Path) -> Path:
    """A variable that each run changes, in a function that another calls."""
    import tensorflow as tf

    module = tf.Module()
    module.runs = tf.Variable(0.0)
    count = tf.function(lambda: module.runs.assign_add(1.0, name="count"))
    module.serve = tf.function(lambda x: {"y": x + count()}, input_signature=[tf.TensorSpec([1, 2], name="x")])
    tf.saved_model.save(module, str(folder / "model"), signatures=module.serve)
    return folder / "model"


def custom_op(folder: Path) -> Path:
    """An operator that no TensorFlow has."""
    import tensorflow as tf

    def rename(meta_graph: Any) -> None:
        for function in meta_graph.graph_def.library.function:
            for node in function.node_def:
                if node.name == "fancy":
                    node.op = "AcmeFancy"

    return _edit(_saved(folder, lambda x: {"y": tf.nn.relu(x, name="fancy") + 1.0}), rename)


def lookup_table(folder: Path) -> Path:
    """Numbers looked up by number."""
    import tensorflow as tf

    keys = tf.constant([0, 1], tf.int64)
    table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(keys, tf.constant([0.5, 1.5])), 0.0)
    module = tf.Module()
    module.table = table
    module.serve = tf.function(
        lambda x: {"y": table.lookup(x, name="find")}, input_signature=[tf.TensorSpec([2], tf.int64, name="x")]
    )
    tf.saved_model.save(module, str(folder / "model"), signatures=module.serve)
    return folder / "model"


def strings_inside(folder: Path) -> Path:
    """Numbers that become text and numbers again."""
    import tensorflow as tf

    return _saved(folder, lambda x: {"y": tf.strings.to_number(tf.strings.as_string(x, name="text"), name="back")})


def strings_as_input(folder: Path) -> Path:
    """Pictures as files, and a second signature that takes numbers."""
    import tensorflow as tf

    module = tf.Module()
    from_file = tf.function(lambda file: {"y": tf.cast(tf.io.decode_png(file[0], 1), tf.float32)})
    from_numbers = tf.function(lambda x: {"y": x + 1.0})
    signatures = {
        "serving_default": from_file.get_concrete_function(tf.TensorSpec([None], tf.string, name="file")),
        "numbers": from_numbers.get_concrete_function(tf.TensorSpec([1, 2], name="x")),
    }
    tf.saved_model.save(module, str(folder / "model"), signatures=signatures)
    return folder / "model"


def complex_input(folder: Path) -> Path:
    """A type that ONNX has no operators for."""
    import tensorflow as tf

    return _saved(folder, lambda x: {"y": tf.abs(x)}, tf.TensorSpec([2], tf.complex64, name="x"))


def no_inputs(folder: Path) -> Path:
    """A signature of constants."""
    import tensorflow as tf

    module = tf.Module()
    module.serve = tf.function(lambda: {"y": tf.constant([1.0])}, input_signature=[])
    tf.saved_model.save(module, str(folder / "model"), signatures=module.serve)
    return folder / "model"


def unknown_rank(folder: Path) -> Path:
    """An input of which not even the number of axes is known."""
    import tensorflow as tf

    return _saved(folder, lambda x: {"y": x + 1.0}, tf.TensorSpec(None, name="x"))


def lfs_variables(folder: Path) -> Path:
    """One file of the folder was not fetched."""
    path = plain(folder) / "variables" / "variables.data-00000-of-00001"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    return folder / "model"


def no_variables(folder: Path) -> Path:
    """The graph was copied without its values."""
    (plain(folder) / "variables" / "variables.index").unlink()
    return folder / "model"


def short_graph(folder: Path) -> Path:
    """saved_model.pb lost its end."""
    path = plain(folder) / "saved_model.pb"
    path.write_bytes(path.read_bytes()[:-100])
    return folder / "model"


def restores_another_file(folder: Path) -> Path:
    """A TensorFlow 1 model that restores from a file of its own choice."""
    import tensorflow as tf

    path = tf1(folder).path

    def redirect(meta_graph: Any) -> None:
        elsewhere = meta_graph.graph_def.node.add(name="elsewhere", op="Const")
        elsewhere.attr["dtype"].type = tf.string.as_datatype_enum
        elsewhere.attr["value"].tensor.CopyFrom(tf.make_tensor_proto("/etc/passwd"))
        for node in meta_graph.graph_def.node:
            if node.op == "RestoreV2":
                node.input[0] = elsewhere.name

    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
    redirect(next(graph for graph in saved.meta_graphs if "serve" in graph.meta_info_def.tags))
    (path / "saved_model.pb").write_bytes(saved.SerializeToString())
    return path


# --- Keras


def _layer(kind: str, name: str, module: str | None = "keras.layers", **config: Any) -> dict[str, Any]:
    return {"module": module, "class_name": kind, "config": {"name": name, **config}, "registered_name": None}


def _keras(folder: Path, *layers: Mapping[str, Any], members: Mapping[str, bytes] | None = None) -> Path:
    """A .keras file with a configuration of our own."""
    start = _layer("InputLayer", "x", batch_shape=[None, 4], dtype="float32")
    config = {"module": "keras", "class_name": "Sequential", "config": {"name": "net", "layers": [start, *layers]}}
    with zipfile.ZipFile(folder / "model.keras", "w") as archive:
        archive.writestr("metadata.json", json.dumps({"keras_version": "3.10.0"}))
        archive.writestr("config.json", json.dumps(config))
        for name, content in (members or {}).items():
            archive.writestr(name, content)
    return folder / "model.keras"


def keras_lambda(folder: Path) -> Path:
    """A Lambda layer."""
    import keras

    layers = [keras.Input((4,)), keras.layers.Lambda(lambda x: x * 2, name="double")]
    keras.Sequential(layers).save(folder / "model.keras")
    return folder / "model.keras"


def keras_2_lambda(folder: Path) -> Path:
    """A Lambda layer in an HDF5 file, whose code Keras 2 would run when it loads the model."""
    import tf_keras

    target = str(folder / CANARY)
    layers = [tf_keras.Input((4,)), tf_keras.layers.Lambda(lambda x: Path(target).touch() or x, name="open")]
    (folder / CANARY).unlink(missing_ok=True)
    tf_keras.Sequential(layers).save(folder / "model.h5", save_format="h5")
    (folder / CANARY).unlink(missing_ok=True)
    return folder / "model.h5"


def keras_lambda_argument(folder: Path) -> Path:
    """A lambda where an activation is expected."""
    code = base64.b64encode(marshal.dumps((lambda x: x).__code__)).decode()
    function = {"class_name": "__lambda__", "config": {"code": code, "defaults": None, "closure": None}}
    return _keras(folder, _layer("Dense", "head", units=2, activation=function))


def keras_dumped_lambda(folder: Path) -> Path:
    """The same as Keras itself writes it: without a class."""
    import keras

    layers = [keras.Input((4,)), keras.layers.Dense(2, activation=lambda x: x * 2, name="head")]
    keras.Sequential(layers).save(folder / "model.keras")
    return folder / "model.keras"


def keras_registered_function(folder: Path) -> Path:
    """A function of the person who wrote the model."""
    function = {"module": "builtins", "class_name": "function", "config": "Acme>mish", "registered_name": "function"}
    return _keras(folder, _layer("Dense", "head", units=2, activation=function))


def keras_custom_class(folder: Path) -> Path:
    """A class of the person who wrote the model."""
    return _keras(folder, {**_layer("Attention", "mine", "acme.nets"), "registered_name": "Acme>Attention"})


def keras_imported_function(folder: Path) -> Path:
    """Functions of Python and of Keras that do more than to compute."""
    system = {"module": "os", "class_name": "function", "config": "system", "registered_name": "system"}
    download = {"module": "keras.utils", "class_name": "function", "config": "get_file", "registered_name": "get_file"}
    return _keras(
        folder, _layer("Dense", "a", units=2, activation=system), _layer("Dense", "b", units=2, activation=download)
    )


def keras_torch(folder: Path) -> Path:
    """A pickle in the configuration."""
    return _keras(folder, _layer("TorchModuleWrapper", "torch", module_=base64.b64encode(pickle.dumps(1)).decode()))


def keras_vocabulary(folder: Path) -> Path:
    """A vocabulary that is a file somewhere."""
    return _keras(folder, _layer("StringLookup", "words", vocabulary="/etc/passwd"))


def keras_2_operation(folder: Path) -> Path:
    """A function of TensorFlow that deletes files, called while the model is loaded."""
    node = {"class_name": "TFOpLambda", "name": "clean", "config": {"name": "clean", "function": "io.gfile.rmtree"}}
    return _keras(folder, node)


def keras_pickle(folder: Path) -> Path:
    """A pickle beside the weights."""
    return _keras(folder, members={"assets/state": pickle.dumps(1)})


def keras_bomb(folder: Path) -> Path:
    """65 MiB of zeros in some 65 KB."""
    path = _keras(folder)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.weights.h5", bytes(65 << 20))
    return path


def keras_bomb_that_lies(folder: Path) -> Path:
    """The same, declared as one byte."""
    path = keras_bomb(folder)
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        at = data.rindex(signature)
        data[at + offset : at + offset + 4] = (1).to_bytes(4, "little")
    path.write_bytes(data)
    return path


def keras_leaves(folder: Path) -> Path:
    """A member that would be written beside the folder."""
    return _keras(folder, members={"../../outside": b"x"})


def keras_short(folder: Path) -> Path:
    """A byte of the weights was changed."""
    path = keras_file(folder).path
    data = bytearray(path.read_bytes())
    data[-2000] ^= 0xFF
    path.write_bytes(data)
    return path


def keras_unknown_layer(folder: Path) -> Path:
    """A layer that Keras does not have."""
    return _keras(folder, _layer("Densest", "head"))


def keras_without_inputs(folder: Path) -> Path:
    """A model that was never called."""
    import keras

    keras.Sequential([keras.layers.Dense(2)]).save(folder / "model.keras")
    return folder / "model.keras"


def h5_short(folder: Path) -> Path:
    """An HDF5 file without its end."""
    path = keras_2_h5(folder).path
    path.write_bytes(path.read_bytes()[:-1000])
    return path


def h5_damaged(folder: Path) -> Path:
    """An HDF5 file whose groups name their members by places that it does not have."""
    path = keras_2_h5(folder).path
    head, *tables = path.read_bytes().split(b"SNOD")
    path.write_bytes(b"SNOD".join([head, *(table[:4] + b"\xff\xff\xff\x7f" + table[8:] for table in tables)]))
    return path


def _h5(folder: Path, change: Callable[[Any], None]) -> Path:
    import h5py

    with h5py.File(folder / "model.h5", "w") as file:
        file.attrs["model_config"] = json.dumps({"class_name": "Sequential", "config": {"name": "net", "layers": []}})
        change(file)
    return folder / "model.h5"


def h5_weights(folder: Path) -> Path:
    """Weights without a model."""
    return _h5(folder, lambda file: file.attrs.__delitem__("model_config"))


def h5_link(folder: Path) -> Path:
    """A link to another file."""
    import h5py

    return _h5(folder, lambda file: file.__setitem__("weights", h5py.ExternalLink("/etc/passwd", "/x")))


def h5_external(folder: Path) -> Path:
    """An array whose bytes lie in another file."""
    return _h5(folder, lambda file: file.create_dataset("w", (4,), "u1", external=[("/etc/passwd", 0, 4)]))


def h5_bomb(folder: Path) -> Path:
    """An array of 4 TiB of which nothing is stored."""
    return _h5(folder, lambda file: file.create_dataset("w", (1 << 40,), "f4", chunks=(1 << 20,)))


# --- frozen graphs


def frozen(folder: Path) -> Path:
    """Two inputs and two ends; a variable; a cut that leaves an input open."""
    import tensorflow as tf

    v1 = tf.compat.v1
    with tf.Graph().as_default() as graph:
        x, m = v1.placeholder(tf.float32, [1, 2], name="x"), v1.placeholder(tf.float32, name="mask")
        kernel = v1.get_variable("kernel", [2, 2], use_resource=False)
        tf.nn.relu(x * m, name="net/relu")
        tf.matmul(x, kernel, name="net/logits")
        tf.constant([1.0], name="net/constant") * 2.0
    (folder / "graph.pb").write_bytes(graph.as_graph_def().SerializeToString())
    return folder / "graph.pb"


def frozen_short(folder: Path) -> Path:
    """A graph that lost its end."""
    path = frozen(folder)
    path.write_bytes(path.read_bytes()[:-10])
    return path
