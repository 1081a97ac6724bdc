"""inspect, for ONNX graphs: what they take, give and hold, and which TensorRT releases take them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtrecipe.cli.render import table

if TYPE_CHECKING:
    from onnx import ModelProto

    from trtrecipe.quant.forms import Quantization
    from trtrecipe.targets.acceptance import Verdict


def read(file: Path) -> ModelProto | None:
    """The graph in the file, without weights that lie in others; None when it is no ONNX graph."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # protobuf ships no types

    try:
        model = onnx.load_model(str(file), format="protobuf", load_external_data=False)
    except DecodeError:
        return None
    # Protobuf makes something of many files: a graph has nodes or outputs, and says which operators it is written in.
    whole = model.opset_import and (model.graph.node or model.graph.output)
    return model if whole else None


def show_graph(model: ModelProto) -> tuple[dict[str, Any], list[str]]:
    """What the graph takes, gives and holds, and the verdicts. Raises StepError when its constants are damaged."""
    from trtrecipe.graphs.carried import INTEGER_OPERATORS
    from trtrecipe.graphs.edit import DEFAULT_DOMAINS, all_nodes
    from trtrecipe.graphs.files import opset
    from trtrecipe.graphs.functions import inlined
    from trtrecipe.quant.forms import quantization
    from trtrecipe.targets.acceptance import verdicts

    _require_text(model)
    model = inlined(model)  # as a build does before anything else
    nodes: dict[str, list[str]] = {}
    for node in all_nodes(model.graph):
        operator = node.op_type if node.domain in DEFAULT_DOMAINS else f"{node.domain}.{node.op_type}"
        nodes.setdefault(operator, []).append(node.name or next(iter(node.output), "?"))
    carried = quantization(model)
    # Operators that compute on integers are a form of quantization, and said there.
    used = {operator: names for operator, names in nodes.items() if operator not in INTEGER_OPERATORS}
    judged = verdicts(opset(model), used, carried.forms)
    inputs, outputs = _tensors(model)
    counts = dict(sorted(((name, len(found)) for name, found in nodes.items()), key=lambda item: (-item[1], item[0])))
    described = {
        "ir": model.ir_version,
        "opset": opset(model),
        "domains": {entry.domain: entry.version for entry in model.opset_import if entry.domain not in DEFAULT_DOMAINS},
        "producer": " ".join(filter(None, (model.producer_name, model.producer_version))),
        "inputs": inputs,
        "outputs": outputs,
        "operators": counts,
        "constants": _constants(model),
        "quantization": _quantization(carried),
        "verdicts": [_verdict(verdict) for verdict in judged],
    }
    return described, _lines(described, judged)


def _require_text(model: ModelProto) -> None:
    """Refuse names that are no UTF-8: protobuf hands them out as bytes."""
    from trtrecipe.errors import StepError
    from trtrecipe.graphs.edit import all_graphs

    texts: list[Any] = [model.producer_name, model.producer_version, *(entry.domain for entry in model.opset_import)]
    for graph in all_graphs(model.graph):
        for value in (*graph.input, *graph.output, *graph.value_info):
            texts += [value.name, *(dim.dim_param for dim in value.type.tensor_type.shape.dim)]
        texts += [tensor.name for tensor in graph.initializer]
        for node in graph.node:
            texts += [node.name, node.op_type, node.domain, *node.input, *node.output]
            texts += [attribute.name for attribute in node.attribute]
    if damaged := next((text for text in texts if not isinstance(text, str)), None):
        raise StepError(f"the graph is damaged: {damaged[:40]!r} is no name", "export the model again")


def _tensors(model: ModelProto) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    constant = {tensor.name for tensor in model.graph.initializer}
    inputs = [_tensor(value) for value in model.graph.input if value.name not in constant]
    return inputs, [_tensor(value) for value in model.graph.output]


def _tensor(value: Any) -> dict[str, Any]:
    """Name, type and shape, as far as the graph tells; an open axis is "?"."""
    from trtrecipe.graphs.interface import DTYPES

    kind = value.type.tensor_type
    found: dict[str, Any] = {"name": value.name, "dtype": DTYPES.get(kind.elem_type, "unknown")}
    if kind.HasField("shape"):
        found["shape"] = [
            dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?" for dim in kind.shape.dim
        ]
    return found


def _constants(model: ModelProto) -> dict[str, dict[str, int]]:
    """Element type → how many constants have it, and how many values they hold."""
    from math import prod

    from onnx import TensorProto

    from trtrecipe.graphs.edit import all_tensors

    counts: Counter[str] = Counter()
    values: Counter[str] = Counter()
    for tensor in all_tensors(model.graph):
        known = tensor.data_type in TensorProto.DataType.values()
        kind = TensorProto.DataType.Name(tensor.data_type).lower() if known else "unknown"
        counts[kind] += 1
        values[kind] += prod(tensor.dims)
    return {kind: {"tensors": counts[kind], "values": values[kind]} for kind in sorted(counts)}


def _quantization(carried: Quantization) -> dict[str, Any]:
    return {
        "quantize": carried.quantize,
        "dequantize": carried.dequantize,
        "pairs": carried.pairs,
        "per_channel": carried.per_channel,
        "forms": [{"form": form, "nodes": list(nodes)} for form, nodes in carried.forms.items()],
    }


def _verdict(verdict: Verdict) -> dict[str, Any]:
    reasons = [
        {"verdict": each.verdict, "about": each.about, "text": each.text, "sources": list(each.sources)}
        for each in verdict.reasons
    ]
    needs = {} if verdict.needs is None else {"needs": verdict.needs}
    return {"tensorrt": verdict.release, "verdict": verdict.verdict, **needs, "reasons": reasons}


def _lines(described: dict[str, Any], judged: tuple[Verdict, ...]) -> list[str]:
    from trtrecipe.targets.acceptance import ACCEPTED

    domains = "".join(f", {domain} {version}" for domain, version in described["domains"].items())
    made = f", made by {described['producer']}" if described["producer"] else ""
    lines = [f"opset {described['opset']}{domains}, IR {described['ir']}{made}"]
    for role in ("inputs", "outputs"):
        lines += [f"  {role[:-1]:<10}{_signature(tensor)}" for tensor in described[role]]
    lines.append(
        f"  {'operators':<10}" + ", ".join(f"{name} {count}" for name, count in described["operators"].items())
    )
    held = (f"{kind} {each['tensors']} ({each['values']} values)" for kind, each in described["constants"].items())
    lines.append(f"  {'constants':<10}" + (", ".join(held) or "none"))
    lines.append(f"  {'quantized':<10}" + _carried(described["quantization"]))
    rows = [(each.release, each.verdict, each.needs or "") for each in judged]
    lines += ["", table(("TENSORRT", "VERDICT", "NEEDS"), rows)]
    said: dict[tuple[str, str], list[str]] = {}
    for judgement in judged:
        for reason in judgement.reasons:
            if reason.verdict != ACCEPTED:
                said.setdefault((reason.verdict, reason.text), []).append(judgement.release)
    if said:
        lines.append("")
    for (verdict, text), releases in said.items():
        lines.append(f"{'all' if len(releases) == len(judged) else ', '.join(releases)}: {verdict}: {text}")
    return lines


def _signature(tensor: dict[str, Any]) -> str:
    shape = f" [{', '.join(map(str, tensor['shape']))}]" if "shape" in tensor else ", any shape"
    return f"{tensor['name']}: {tensor['dtype']}{shape}"


def _carried(quantization: dict[str, Any]) -> str:
    if not quantization["forms"]:
        return "no"
    forms = ", ".join(entry["form"] for entry in quantization["forms"])
    return f"{quantization['pairs']} pairs, {quantization['per_channel']} of several scales; forms: {forms}"
