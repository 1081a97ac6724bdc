"""All steps, by kind, in the order of the pipeline."""

from __future__ import annotations

from trtrecipe.steps import (
    benchmark,
    calibrate,
    compile,
    convert,
    export,
    fetch,
    lower,
    prepare,
    quantize,
    reference,
    search,
    table,
    verify,
)
from trtrecipe.steps.protocol import Step

STEPS: dict[str, Step] = {
    "fetch": fetch,
    "export": export,
    "prepare": prepare,
    "lower": lower,
    "reference": reference,
    "calibrate": calibrate,
    "search": search,
    "quantize": quantize,
    "table": table,
    "convert": convert,
    "compile": compile,
    "verify": verify,
    "benchmark": benchmark,
}
