"""inspect, for scales.json and calibration tables."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from trtrecipe.cli.render import present, table


def show_scales(file: Path) -> tuple[dict[str, Any], list[str]]:
    """The tensors of the document, with flags. Raises StepError when it is damaged."""
    from trtrecipe.quant.review import FLAGS, SATURATED, review
    from trtrecipe.quant.scales import load

    scales = load(file)
    reviewed = review(scales)
    counts = Counter(flag for tensor in reviewed for flag in tensor.flags)
    tensors = [
        present({
            "name": tensor.name,
            "threshold": tensor.threshold,
            "min": tensor.low,
            "max": tensor.high,
            "clipped": tensor.clipped,
            "flags": list(tensor.flags),
        })
        for tensor in reviewed
    ]  # fmt: skip
    described = {
        "method": scales.method,
        "samples": scales.samples,
        "saturated_above": SATURATED,
        "summary": {"tensors": len(scales.thresholds), **{flag: counts[flag] for flag in FLAGS}},
        "tensors": tensors,
    }
    rows = [
        (
            tensor.name,
            _figure(tensor.low),
            _figure(tensor.high),
            _figure(tensor.threshold),
            "" if tensor.clipped is None else f"{tensor.clipped:.3%}",
            ", ".join(tensor.flags),
        )
        for tensor in reviewed
    ]
    lines = [f"method {scales.method}, {scales.samples} samples, {len(scales.thresholds)} tensors", ""]
    lines.append(table(("TENSOR", "MIN", "MAX", "THRESHOLD", "CLIPPED", "FLAGS"), rows))
    flagged = [f"{counts[flag]} {flag}: {meaning}" for flag, meaning in FLAGS.items() if counts[flag]]
    return described, [*lines, *(["", *flagged] if flagged else [])]


def show_table(file: Path) -> tuple[dict[str, Any], list[str]]:
    """Header and scales of a calibration table. Raises StepError naming the line at fault."""
    from trtrecipe.quant.table import read

    found = read(file)
    described = {
        "tensorrt": found.tensorrt,
        "algorithm": found.algorithm,
        "summary": {"tensors": len(found.scales)},
        "tensors": [{"name": name, "scale": scale, "threshold": 127 * scale} for name, scale in found.scales.items()],
    }
    rows = [(name, _figure(scale), _figure(127 * scale)) for name, scale in found.scales.items()]
    lines = [f"for TensorRT {found.tensorrt}, algorithm {found.algorithm}, {len(found.scales)} tensors", ""]
    return described, [*lines, table(("TENSOR", "SCALE", "THRESHOLD"), rows)]


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
