"""What an ONNX parser may not take of a node. Each check says what it found, or None; `data/preflight.json` names it.

A check is given the node, what is known of the graph, and the rule's own arguments. What cannot be told before the
graph runs (an open axis, an unknown type) is not held against a node, except where the rule asks for what is fixed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto

from trtrecipe.graphs.edit import attribute
from trtrecipe.graphs.interface import DTYPES
from trtrecipe.graphs.known import Known, Shape

Check = Callable[..., str | None]


def _input(node: NodeProto, position: int) -> str:
    return node.input[position] if position < len(node.input) else ""


def _shape(node: NodeProto, known: Known, position: int = 0) -> Shape | None:
    return known.shapes.get(_input(node, position))


def _open(shape: Shape) -> bool:
    return not all(isinstance(size, int) for size in shape)


def rank(node: NodeProto, known: Known, input: int, least: int, most: int) -> str | None:
    """Another number of axes of an input."""
    shape = _shape(node, known, input)
    return None if shape is None or least <= len(shape) <= most else f"its input has {len(shape)} axes"


def types(node: NodeProto, known: Known, input: int, refused: Sequence[str]) -> str | None:
    """An input of a type that is refused."""
    found = DTYPES.get(known.types.get(_input(node, input), TensorProto.UNDEFINED), "")
    return f"its input is {found}" if found in refused else None


def static(node: NodeProto, known: Known, input: int) -> str | None:
    """An input with an open axis, or of which no shape is known."""
    shape = _shape(node, known, input)
    if shape is None:
        return "the shape of its input is not known"
    return "its input has open axes" if _open(shape) else None


def static_axis(node: NodeProto, known: Known) -> str | None:
    """An open axis that the node works along."""
    shape, axis = _shape(node, known), attribute(node, "axis", -1)
    fixed = shape is not None and -len(shape) <= axis < len(shape) and isinstance(shape[axis], int)
    return None if fixed else f"its axis {axis} is open"


def constant(node: NodeProto, known: Known, inputs: Sequence[str], dequantized: bool = False) -> str | None:
    """An input that the graph computes; `dequantized`: one out of DequantizeLinear of a constant counts as constant."""
    for formal in inputs:
        name = known.input(node, formal)
        if name and name not in known.constants and not (dequantized and _dequantized(name, known)):
            return f"{formal} is computed"
    return None


def _dequantized(name: str, known: Known) -> bool:
    """Whether the tensor is a constant but for halves of Q/DQ pairs and Casts."""
    while name not in known.constants:
        node = known.producers.get(name)
        if node is None or node.op_type not in ("DequantizeLinear", "QuantizeLinear", "Cast"):
            return False
        name = node.input[0]
    return True


def absent(node: NodeProto, known: Known, inputs: Sequence[str]) -> str | None:
    """An input that should not be there."""
    return next((f"it reads {formal}" for formal in inputs if known.input(node, formal)), None)


def attribute_is(node: NodeProto, known: Known, name: str, allowed: Sequence[Any]) -> str | None:
    """An attribute with another value."""
    value = _plain(attribute(node, name))
    return None if value is None or value in allowed else f"{name} is {value}"


def _plain(value: Any) -> Any:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def given(node: NodeProto, known: Known, name: str | Sequence[str]) -> str | None:
    """An attribute that is there at all."""
    names = [name] if isinstance(name, str) else name
    return next((f"it has {each}" for each in names if attribute(node, each) is not None), None)


def present(node: NodeProto, known: Known) -> str | None:
    """Any node of the operator."""
    return "it is used"


def outputs(node: NodeProto, known: Known, most: int) -> str | None:
    """More outputs than the parser gives."""
    used = len([name for name in node.output if name])
    return None if used <= most else f"it has {used} outputs"


def all_ones(node: NodeProto, known: Known, name: str) -> str | None:
    """Entries of an attribute that are not 1."""
    value = attribute(node, name)
    return None if value is None or set(value) <= {1} else f"{name} is {list(value)}"


def _pads(node: NodeProto) -> tuple[list[int], list[int]]:
    pads = list(attribute(node, "pads", []))
    return pads[: len(pads) // 2], pads[len(pads) // 2 :]


def uneven_padding(node: NodeProto, known: Known, spatial: int | None) -> str | None:
    """Padding that differs between start and end, over that many axes (None: any)."""
    start, end = _pads(node)
    uneven = start != end and spatial in (None, len(start))
    return f"pads is {start + end}" if uneven else None


def average_padding(node: NodeProto, known: Known) -> str | None:
    """Padding of the first two axes at the end that is neither that at the start nor one more."""
    start, end = _pads(node)
    odd = any(after - before not in (0, 1) for before, after in list(zip(start, end, strict=True))[:2])
    return f"pads is {start + end}" if odd else None


def zeros_on_two_axes(node: NodeProto, known: Known) -> str | None:
    """Padding with something else than zeros, or on axes before the last two."""
    mode, fill = _plain(attribute(node, "mode", b"constant")), known.input(node, "constant_value")
    if mode != "constant":
        return f"mode is {mode}"
    value = known.value(fill) if fill else np.zeros(1)
    if value is None or value.any():
        return "it fills in something else than zeros"
    pads = known.value(known.input(node, "pads"))
    shape = _shape(node, known)
    if pads is None or shape is None:
        return None
    padded = set(np.flatnonzero(pads.reshape(2, -1).any(axis=0)).tolist())
    return f"it pads axes {sorted(padded)}" if len(padded) > 2 or min(padded, default=2) < len(shape) - 2 else None


def negative_indices(node: NodeProto, known: Known, input: str) -> str | None:
    """Constants among which an index counts from the end."""
    value = known.value(known.input(node, input))
    return None if value is None or not (value < 0).any() else f"{input} has {int(value.min())}"


def largest(node: NodeProto, known: Known, input: str, most: int) -> str | None:
    """A constant above a limit."""
    value = known.value(known.input(node, input))
    return None if value is None or value.max(initial=0) <= most else f"{input} is {int(value.max())}"


_ACTIVATIONS = {"RNN": 1, "GRU": 2, "LSTM": 3}


def directions(node: NodeProto, known: Known) -> str | None:
    """Activations, or their parameters, that differ between the two directions."""
    if _plain(attribute(node, "direction", b"forward")) != "bidirectional":
        return None
    for name in ("activations", "activation_alpha", "activation_beta"):
        value = list(attribute(node, name, []))
        count = len(value) // 2 if name != "activations" else _ACTIVATIONS[node.op_type]
        if value and [str(_plain(each)).lower() for each in value[:count]] != [
            str(_plain(each)).lower() for each in value[count:]
        ]:
            return f"{name} is {[_plain(each) for each in value]}"
    return None


def einsum(node: NodeProto, known: Known, forbids: str) -> str | None:
    """An equation with what `forbids` names: "ellipsis", "inputs" (three and more), "diagonal" or "broadcast"."""
    equation = str(_plain(attribute(node, "equation", b""))).replace(" ", "")
    terms = equation.partition("->")[0].split(",")
    capital = any(letter.isupper() for letter in equation)
    found = {
        "ellipsis": "..." in equation or capital,
        "inputs": len(node.input) > 2,
        "diagonal": any(len(set(term)) < len(term) for term in (term.replace("...", "") for term in terms)),
        "broadcast": _broadcasts(node, known, terms),
    }
    return f"its equation is {equation}" if found[forbids] else None


def _broadcasts(node: NodeProto, known: Known, terms: Sequence[str]) -> bool:
    """Whether a letter stands for 1 in one input and for more in another."""
    sizes: dict[str, set[int]] = {}
    for position, term in enumerate(terms):
        shape = _shape(node, known, position) or ()
        if "." not in term and len(term) == len(shape):
            for letter, size in zip(term, shape, strict=True):
                if isinstance(size, int):
                    sizes.setdefault(letter, set()).add(size)
    return any(len(found) > 1 for found in sizes.values())


def computed_floats(node: NodeProto, known: Known) -> str | None:
    """Floating-point inputs that the graph computes."""
    floats = known.types.get(node.input[0]) in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
    computed = any(name not in known.constants for name in node.input)
    return "its floating-point limits are computed" if floats and computed else None


def nearest_rounding(node: NodeProto, known: Known) -> str | None:
    """tf_half_pixel_for_nn with another rounding than round_prefer_floor."""
    rounding = _plain(attribute(node, "nearest_mode", b"round_prefer_floor"))
    coordinates = _plain(attribute(node, "coordinate_transformation_mode", b"half_pixel"))
    odd = coordinates == "tf_half_pixel_for_nn" and rounding != "round_prefer_floor"
    return f"nearest_mode is {rounding} with tf_half_pixel_for_nn" if odd else None


def resized_axes(node: NodeProto, known: Known, mode: str, last: int) -> str | None:
    """Resizing in that mode along an axis before the last few."""
    if _plain(attribute(node, "mode", b"nearest")) != mode:
        return None
    before, after = _shape(node, known), known.shapes.get(node.output[0])
    if before is None or after is None:
        return None
    changed = [axis for axis in range(len(before) - last) if before[axis] != after[axis]]
    scales = known.value(known.input(node, "scales"))
    if scales is not None and len(scales) == len(before):
        changed = [axis for axis in range(len(before) - last) if scales[axis] != 1]
    elif any(not isinstance(size, int) for axis in changed for size in (before[axis], after[axis])):
        return None
    return f"it resizes axis {changed[0]} of {len(before)} in mode {mode}" if changed else None


def squeezes_unknown(node: NodeProto, known: Known) -> str | None:
    """No axes named, and a shape that is open or not known."""
    if known.input(node, "axes") or attribute(node, "axes") is not None:
        return None
    shape = _shape(node, known)
    return "it names no axes, and its input is open" if shape is None or _open(shape) else None


def branches(node: NodeProto, known: Known, same: str) -> str | None:
    """Outputs of the two branches that differ in "rank", in "names", or in shapes that do not "broadcast"."""
    then, other = (attribute(node, f"{name}_branch") for name in ("then", "else"))
    for first, second in zip(then.output, other.output, strict=False):
        shapes = known.shapes.get(first.name), known.shapes.get(second.name)
        if same == "names" and first.name == second.name:
            return f"both branches call an output {first.name}"
        if shapes[0] is None or shapes[1] is None:
            continue
        if same == "rank" and len(shapes[0]) != len(shapes[1]):
            return f"its branches give {len(shapes[0])} and {len(shapes[1])} axes"
        if same == "broadcast" and not _broadcastable(shapes[0], shapes[1]):
            return f"its branches give {_written(shapes[0])} and {_written(shapes[1])}"
    return None


def _broadcastable(first: Shape, second: Shape) -> bool:
    pairs = zip(reversed(first), reversed(second), strict=False)
    return all(a == b or 1 in (a, b) or not (isinstance(a, int) and isinstance(b, int)) for a, b in pairs)


def _written(shape: Shape) -> str:
    return f"[{', '.join('?' if size is None else str(size) for size in shape)}]"


def scan_length(node: NodeProto, known: Known) -> str | None:
    """Outputs that collect something of every round, of a number of rounds that is no constant."""
    body: GraphProto = attribute(node, "body")
    carried = len(body.input) - 2
    collected = [name for name in node.output[carried:] if name]
    rounds = known.value(node.input[0]) if node.input[0] else None
    endless = rounds is None or rounds.max(initial=0) >= np.iinfo(np.int32).max
    return (
        "it collects an output of each round, and the number of rounds is computed" if collected and endless else None
    )


def carried_shapes(node: NodeProto, known: Known) -> str | None:
    """A carried value that comes in with one shape and leaves the body with another."""
    body: GraphProto = attribute(node, "body")
    for position, name in enumerate(node.input[2:]):
        before = known.shapes.get(name)
        after = known.shapes.get(body.output[1 + position].name) if 1 + position < len(body.output) else None
        if before is None or after is None:
            continue
        sizes = zip(before, after, strict=False)
        grown = any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in sizes)
        if grown or len(before) != len(after):
            return f"it carries {_written(before)} in and {_written(after)} on"
    return None


CHECKS: Mapping[str, Check] = {
    "absent": absent,
    "all_ones": all_ones,
    "attribute": attribute_is,
    "average_padding": average_padding,
    "branches": branches,
    "carried_shapes": carried_shapes,
    "computed_floats": computed_floats,
    "constant": constant,
    "directions": directions,
    "einsum": einsum,
    "given": given,
    "largest": largest,
    "nearest_rounding": nearest_rounding,
    "negative_indices": negative_indices,
    "outputs": outputs,
    "present": present,
    "rank": rank,
    "resized_axes": resized_axes,
    "scan_length": scan_length,
    "squeezes_unknown": squeezes_unknown,
    "static": static,
    "static_axis": static_axis,
    "types": types,
    "uneven_padding": uneven_padding,
    "zeros_on_two_axes": zeros_on_two_axes,
}
"""Name in the data → check."""
