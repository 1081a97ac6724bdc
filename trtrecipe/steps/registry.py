"""All steps, by kind, in the order of the pipeline."""

from __future__ import annotations

from typing import cast

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
    verify,
)
from trtrecipe.steps.protocol import Step

STEPS: dict[str, Step] = {
    "fetch": cast(Step, fetch),
    "export": cast(Step, export),
    "prepare": cast(Step, prepare),
    "lower": cast(Step, lower),
    "reference": cast(Step, reference),
    "calibrate": cast(Step, calibrate),
    "quantize": cast(Step, quantize),
    "convert": cast(Step, convert),
    "compile": cast(Step, compile),
    "verify": cast(Step, verify),
    "benchmark": cast(Step, benchmark),
}
