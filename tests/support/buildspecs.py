"""Builds to try on every release."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from trtrecipe.targets.buildspec import MIB, BuildSpec, Dla, Shapes


@st.composite
def shape_ranges(draw: st.DrawFn, fixed: bool) -> Shapes:
    sizes = draw(st.lists(st.lists(st.integers(1, 4096), min_size=3, max_size=3).map(sorted), min_size=1, max_size=4))
    low, opt, high = (tuple(size[end] for size in sizes) for end in range(3))
    return Shapes(opt, opt, opt) if fixed else Shapes(low, opt, high)


NAMES = st.text(st.characters(codec="utf-8", exclude_characters=",'*\0", exclude_categories=["Cs"]), min_size=1)
PATHS = st.sampled_from(["model.x", "/data/with space/a=b.x", "./a:b,c.x", "été.x"])


def optional(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | values


@st.composite
def specs(draw: st.DrawFn) -> BuildSpec:
    """Any spec that some release could build."""
    dla = draw(optional(st.builds(Dla, st.integers(0, 1), st.booleans())))
    strong = dla is None and draw(st.booleans())
    mode = draw(st.sampled_from(["fp16", "int8"] if dla else ["fp32", "fp16", "int8"]))
    fallback = draw(st.sampled_from([None, "fp32", "fp16"])) if mode == "int8" else None
    by_table = mode == "int8" and (dla is not None or (not strong and draw(st.booleans())))
    allowed = ["fp32", "fp16"] if "fp16" in (mode, fallback) else ["fp32"]
    cache = draw(optional(PATHS))
    return BuildSpec(
        onnx=draw(PATHS),
        engine=draw(PATHS),
        workspace=draw(st.integers(1, 1 << 36) | st.integers(1, 1 << 16).map(lambda mib: mib * MIB)),
        mode=mode,
        fallback=fallback,
        quantized=mode == "int8" and not by_table,
        table=draw(PATHS) if by_table else None,
        strongly_typed=strong,
        layers={} if strong else draw(st.dictionaries(NAMES, st.sampled_from(allowed), max_size=3)),
        obey=draw(st.booleans()),
        shapes=draw(st.dictionaries(NAMES, shape_ranges(fixed=dla is not None), max_size=3)),
        timing_cache=cache,
        error_on_timing_cache_miss=cache is not None and draw(st.booleans()),
        dla=dla,
        optimization_level=draw(optional(st.integers(0, 5))),
        plugins=tuple(draw(st.lists(PATHS, unique=True, max_size=2))),
        version_compatible=draw(st.booleans()),
        hardware_compatibility=draw(optional(st.sampled_from(["ampere+", "samecomputecapability"]))),
        tf32=draw(st.booleans()),
        layer_info=draw(optional(PATHS)),
        verbosity=draw(optional(st.sampled_from(["none", "layer_names_only", "detailed"]))),
        verbose=draw(st.booleans()),
    )
