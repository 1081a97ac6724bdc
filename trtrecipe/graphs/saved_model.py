"""One signature of a SavedModel, frozen.

Only the signature's graph and the variables behind it are read, not the Python objects beside it: an optimizer or a
custom class that this TensorFlow cannot restore does not matter then. Nothing else of the file is executed either, its
initialisers least of all.
"""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from trtrecipe.errors import StepError
from trtrecipe.graphs import frozen, saved_variables, tensorflow_refusals, tensorflow_repairs
from trtrecipe.graphs.frozen import END, Frozen
from trtrecipe.graphs.tensorflow_runtime import explained, tensorflow

DEFAULT_SIGNATURE = "serving_default"
DEFAULT_TAGS = ("serve",)

_AGAIN = "export the model again; a file under its folder may be damaged or missing"


def unpack(archive: Path, folder: Path) -> Path:
    """Put the files that `fetch` packed under `folder`; that folder. Raises StepError for names that leave it."""
    with tarfile.open(archive) as tar:
        for member in tar:
            name = PurePosixPath(member.name)
            if not member.isreg() or name.is_absolute() or ".." in name.parts:
                raise StepError(f"the model's archive holds {member.name}, which is no plain file inside it")
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            content = tar.extractfile(member)
            assert content is not None  # it is a regular file
            with content, target.open("wb") as file:
                shutil.copyfileobj(content, file, 1 << 20)
    return folder


def freeze(
    folder: Path,
    signature: str | None = None,
    tags: Collection[str] | None = None,
    ranks: Mapping[str, int] | None = None,
) -> Frozen:
    """The graph of one signature of the SavedModel in `folder`, `serving_default` unless named.

    `tags` choose among its graphs, ("serve",) unless given; `ranks`: input → number of axes, by the recipe. Raises
    StepError when there is no such graph or signature, listing those that exist, for what `tensorflow_refusals` names,
    and when TensorFlow cannot load it.
    """
    tf = tensorflow()
    meta_graph = _meta_graph(folder, frozenset(tags or DEFAULT_TAGS))
    chosen = _signature(tf, meta_graph, signature or DEFAULT_SIGNATURE)
    inputs = {name: _tensor(name, info, "input") for name, info in sorted(chosen.inputs.items())}
    outputs = {name: _tensor(name, info, "output") for name, info in sorted(chosen.outputs.items())}
    _require_plain(inputs, outputs, signature or DEFAULT_SIGNATURE)
    specs = tuple(
        frozen.input_spec(name, tf.dtypes.as_dtype(info.dtype).name, info.tensor_shape, ranks or {})
        for name, info in sorted(chosen.inputs.items())
    )
    definition = meta_graph.graph_def
    _require_there(definition, [*inputs.values(), *outputs.values()])
    placed = {name: frozen.cut_at(definition, tensor) for name, tensor in inputs.items()}
    tensorflow_refusals.require_harmless(definition, list(outputs.values()))
    frozen.settle_defaults(definition)
    tensorflow_repairs.read_before_gathering(definition)
    needed = [*placed.values(), *outputs.values(), *saved_variables.prepare(meta_graph, list(outputs.values()))]
    left = saved_variables.leave_out(meta_graph, folder, list(outputs.values()))
    # A function call is inlined only where something behind it is asked for: hence an Identity per output.
    ends = {name: f"{END}{index}" for index, name in enumerate(outputs)}
    v1 = tf.compat.v1
    with explained("TensorFlow cannot load the model", _AGAIN, folder), v1.Session(graph=tf.Graph()) as session:
        definition = v1.graph_util.extract_sub_graph(definition, sorted({name.partition(":")[0] for name in needed}))
        tf.import_graph_def(definition, name="", producer_op_list=meta_graph.meta_info_def.stripped_op_list)
        for name, tensor in outputs.items():
            tf.identity(session.graph.get_tensor_by_name(tensor), name=ends[name])
        saved_variables.restore(session, meta_graph, folder, list(ends.values()), left)
        definition = session.graph.as_graph_def()
        constant = v1.graph_util.convert_variables_to_constants(session, definition, list(ends.values()))
    weights = saved_variables.stand_in(constant, folder, left)
    graph = frozen.inlined(constant, list(ends.values()))
    saved_variables.settle_loops(graph, weights)
    return Frozen(graph, specs, placed, {name: f"{end}:0" for name, end in ends.items()}, weights)


def _meta_graph(folder: Path, tags: frozenset[str]) -> Any:
    from tensorflow.core.protobuf import saved_model_pb2

    with explained("saved_model.pb cannot be read, it is damaged or cut short", "export the model again"):
        saved = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    for meta_graph in saved.meta_graphs:
        if tags == set(meta_graph.meta_info_def.tags):
            return meta_graph
    known = sorted(f"[{', '.join(sorted(graph.meta_info_def.tags))}]" for graph in saved.meta_graphs)
    raise StepError(
        f"the SavedModel has no graph with the tags [{', '.join(sorted(tags))}]; it has: {', '.join(known) or 'none'}",
        hint=f"set model.tags to one of these, as in tags: {known[0]}" if known else "export the model again",
    )


def _signature(tf: Any, meta_graph: Any, name: str) -> Any:
    signatures = {key: value for key, value in meta_graph.signature_def.items() if not key.startswith("__")}
    if name not in signatures:
        known = ", ".join(sorted(signatures))
        raise StepError(
            f"the SavedModel has no signature {name}",
            hint=f"set model.signature to one that exists: {known}" if known else "save the model with a signature",
        )
    strings = [key for key, info in sorted(signatures[name].inputs.items()) if info.dtype == tf.string.as_datatype_enum]
    if strings:
        others = ", ".join(
            key
            for key, value in sorted(signatures.items())
            if not any(info.dtype == tf.string.as_datatype_enum for info in value.inputs.values())
        )
        raise StepError(
            f"input {strings[0]} of signature {name} takes strings, and engines take numbers only",
            hint=f"set model.signature to one that takes numbers: {others}"
            if others
            else "export a signature that starts after decoding, with the decoded numbers as its input",
        )
    return signatures[name]


def _require_plain(inputs: Mapping[str, str], outputs: Mapping[str, str], signature: str) -> None:
    if not outputs:
        raise StepError(f"signature {signature} has no outputs", hint="set model.signature to one that has")
    if not inputs:
        raise StepError(
            f"signature {signature} has no inputs: its outputs are constants",
            hint="set model.signature to one that takes inputs",
        )
    if both := sorted(inputs.keys() & outputs.keys()):
        raise StepError(
            f"the signature calls an input and an output {both[0]}; in ONNX names are unique",
            hint="export it with another name for the output",
        )


def _require_there(definition: Any, tensors: Collection[str]) -> None:
    known = {node.name for node in definition.node}
    if lost := sorted(tensor for tensor in tensors if tensor.partition(":")[0] not in known):
        raise StepError(f"the signature names {lost[0]}, which its graph does not have", hint=_AGAIN)


def _tensor(name: str, info: Any, role: str) -> str:
    if info.WhichOneof("encoding") != "name":
        raise StepError(
            f"{role} {name} of the signature is no plain tensor", hint="export a signature that takes and gives tensors"
        )
    return str(info.name)
