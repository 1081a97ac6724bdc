"""Layers too small, or grouped too finely, for INT8 kernels to gain anything: they stay in floating point.

The limits are those of NVIDIA/Model-Optimizer 0.46.0, modelopt/onnx/quantization/graph_utils.py, whose authors measured
that Q/DQ on such layers makes TensorRT slower: `_MIN_MATMUL_DIM`, and for grouped convolutions
`find_nodes_from_convs_to_exclude`.
"""

from __future__ import annotations

from trtrecipe.graphs.edit import attribute
from trtrecipe.quant.overview import Overview

LEAST = 16
"""Rows, columns or channels per group that a tensor-core kernel for INT8 wants."""
_CHANNEL_STEP = 8
_KERNEL = 3


def reason(graph: Overview, index: int) -> tuple[str, str] | None:
    """Why the node at `index`, a Conv, ConvTranspose, MatMul or Gemm, is left alone; None where it is not.

    What it has, and what INT8 kernels want, which is the same sentence for all nodes of a kind.
    """
    operator = graph.operator(index)
    if operator in ("MatMul", "Gemm"):
        return _product(graph, index)
    return _grouped(graph, index) if operator == "Conv" else None


def _product(graph: Overview, index: int) -> tuple[str, str] | None:
    """Left [.., M, K] times right [.., K, N]; what is unknown is taken to be large."""
    node = graph.nodes[index]
    left, right = (graph.shapes.get(name, ()) for name in node.input[:2])
    left = left[::-1] if attribute(node, "transA", 0) else left
    right = right[::-1] if attribute(node, "transB", 0) else right
    columns = right[-1] if len(right) > 1 else len(right) or None  # a vector is one column
    inner = next((size for size in (*right[-2:-1], *left[-1:]) if size is not None), None)
    if (inner or LEAST) >= LEAST and (columns or LEAST) >= LEAST:
        return None
    return f"{_size(inner)} x {_size(columns)}", f"INT8 kernels want to multiply by {LEAST} x {LEAST} values or more"


def _size(extent: int | None) -> str:
    return "?" if extent is None else str(extent)


def _grouped(graph: Overview, index: int) -> tuple[str, str] | None:
    node = graph.nodes[index]
    shape = graph.shapes.get(node.input[1], ())
    if attribute(node, "group", 1) == 1 or len(shape) < 3 or None in shape:
        return None
    channels, per_group, *kernel = (extent or 0 for extent in shape)
    if (channels >= LEAST and per_group >= LEAST) or (channels % _CHANNEL_STEP == 0 and min(kernel) >= _KERNEL):
        return None
    written = " x ".join(map(str, kernel))
    return f"{per_group} channels per group, {channels} filters of {written}", (
        f"of a grouped convolution, INT8 kernels want {LEAST} channels per group and {LEAST} filters, or filters in "
        f"multiples of {_CHANNEL_STEP} and of at least {_KERNEL} each way"
    )
