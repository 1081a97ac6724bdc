"""What in samples a person should look at, before anything is run on them.

Errors are where a result would mean nothing; everything else is a note. Looked at are up to SAMPLES samples, evenly
spread, as many as BYTES of their values allow: enough for a calibration, and bounded for a large evaluation. What shows
without their values (number, types, shapes, image headers, NaN in arrays) was checked for all by `batches.load`.

| rule | |
|---|---|
| no variety | EQUAL or more samples, all of them the same: an error |
| copies | samples whose raw values are the same in every input; with other labels, that is said |
| constant | samples of FEW values or more, all equal |
| outliers | samples whose largest magnitude is over OUTLIER times the median one, of EQUAL samples or more |
| normalize | after it, values should have a standard deviation of about 1, unless std is 1: SPREAD times off is noted |
| scale | without normalize, it is taken to bring values to about 1, or from there: LARGE or SMALL times that is noted |
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from trtrecipe.data import preprocess as preprocessing
from trtrecipe.data.batches import Samples, raw_sample
from trtrecipe.data.encoded import Encoded
from trtrecipe.data.preprocess import Array, Operations
from trtrecipe.errors import StepError
from trtrecipe.graphs.interface import Interface, TensorSpec

SAMPLES = 512
BYTES = 256 << 20
EQUAL = 8
FEW = 16
OUTLIER = 100.0
SPREAD = 20.0
LARGE, SMALL = 100.0, 0.01


@dataclass
class _Seen:
    """What was seen of one input: by sample, and over all values after preprocessing."""

    constant: list[int] = field(default_factory=list)
    turned: list[int] = field(default_factory=list)
    largest: list[float] = field(default_factory=list)
    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    def spread(self) -> float:
        """The standard deviation of all values."""
        mean = self.total / self.count
        return float(np.sqrt(max(self.squares / self.count - mean * mean, 0.0)))


def look(samples: Samples, interface: Interface, preprocess: Mapping[str, Operations]) -> list[str]:
    """Notes on the samples, for a person. Raises StepError when they are all the same, or a file is damaged."""
    seen = {spec.name: _Seen() for spec in interface.inputs}
    digests: dict[bytes, list[int]] = {}
    indices = _spread(samples, interface)
    for index in indices:
        digest = hashlib.sha256()
        for spec in interface.inputs:
            raw = raw_sample(samples, spec, index)
            digest.update(f"{raw.shape}{raw.dtype}".encode() + np.ascontiguousarray(raw).tobytes())
            _note(seen[spec.name], samples, spec, index, raw, preprocess.get(spec.name) or ())
        digests.setdefault(digest.digest(), []).append(index)
    if len(digests) == 1 and samples.count >= EQUAL:
        raise StepError(
            f"all samples are the same: {samples.name(indices[0])}, {samples.name(indices[-1])} and the others",
            "check what the data block of the recipe names",
        )
    said = f"{len(indices)} samples" if len(indices) == samples.count else f"{len(indices)} of {samples.count} samples"
    notes = _copies(samples, digests, said)
    for spec in interface.inputs:
        notes += _of_input(samples, spec, seen[spec.name], indices, preprocess.get(spec.name) or (), said)
    return notes


def _spread(samples: Samples, interface: Interface) -> list[int]:
    """The numbers of the samples that are looked at."""
    each = 1
    for spec in interface.inputs:
        data = samples.arrays[spec.name]
        shape = data.describe(0)[0] if isinstance(data, Encoded) else data.shape[1:]
        each += 4 * int(np.prod(shape, dtype=np.int64))
    wanted = max(1, min(samples.count, SAMPLES, BYTES // each))
    return [index * samples.count // wanted for index in range(wanted)]


def _note(seen: _Seen, samples: Samples, spec: TensorSpec, index: int, raw: Array, operations: Operations) -> None:
    if raw.size >= FEW and raw.min() == raw.max():
        seen.constant.append(index)
    data = samples.arrays[spec.name]
    if isinstance(data, Encoded) and data.is_turned(index):
        seen.turned.append(index)
    values = preprocessing.apply(raw[None], spec, operations).astype(np.float64)
    seen.largest.append(float(np.abs(values).max(initial=0.0)))
    seen.count += values.size
    seen.total += float(values.sum())
    seen.squares += float(np.square(values).sum())


def _copies(samples: Samples, digests: Mapping[bytes, list[int]], said: str) -> list[str]:
    groups = [group for group in digests.values() if len(group) > 1]
    if not groups:
        return []
    copies = sum(len(group) - 1 for group in groups)
    first, second = (samples.name(index) for index in groups[0][:2])
    label = samples.label
    differ = label is not None and any((label[group] != label[group[0]]).any() for group in groups)
    return [
        f"{copies} of {said} {'is an exact copy' if copies == 1 else 'are exact copies'} of others"
        f"{', with other labels' if differ else ''}: {second} is {first}"
    ]


def _of_input(
    samples: Samples, spec: TensorSpec, seen: _Seen, indices: list[int], operations: Operations, said: str
) -> list[str]:
    notes = []
    if seen.constant:
        what = "has one value only" if len(seen.constant) == 1 else "have one value only"
        notes.append(f"{len(seen.constant)} of {said} {what} in input {spec.name}: {samples.name(seen.constant[0])}")
    if seen.turned:
        notes.append(
            f"{len(seen.turned)} of {said} {'asks' if len(seen.turned) == 1 else 'ask'} by EXIF to be turned, which is "
            f"ignored: {samples.name(seen.turned[0])}"
        )
    median = float(np.median(seen.largest))
    far = [place for place, largest in enumerate(seen.largest) if median > 0 and largest > OUTLIER * median]
    if far and len(seen.largest) >= EQUAL:
        worst = max(far, key=lambda place: seen.largest[place])
        notes.append(
            f"{len(far)} of {said} reach more than {OUTLIER:g} times the magnitude of most in input {spec.name}: "
            f"{samples.name(indices[worst])} has {seen.largest[worst]:.4g}, the median is {median:.4g}"
        )
    return notes + _range(spec, seen, operations)


def _range(spec: TensorSpec, seen: _Seen, operations: Operations) -> list[str]:
    """Whether values are where mean and std, or a scale, would bring those they were made for."""
    figures = next((operation["normalize"] for operation in operations if "normalize" in operation), None)
    largest = max(seen.largest)
    if figures is not None:
        spread = seen.spread()
        if any(std != 1 for std in figures["std"]) and seen.count >= FEW and not 1 / SPREAD <= spread <= SPREAD:
            return [
                f"after normalize, values of input {spec.name} have a standard deviation of {spread:.3g} where about 1 "
                "is to be expected: are the raw values in the range that mean and std are for (0 to 1, or 0 to 255)?"
            ]
    scales = [abs(operation["scale"]) for operation in operations if "scale" in operation]
    if figures is None and len(scales) == 1 and largest > 0:
        expected = max(1.0, scales[0])
        if not SMALL <= largest / expected <= LARGE:
            return [
                f"after scale, values of input {spec.name} reach {largest:.3g} where about {expected:g} is to be "
                "expected: are the raw values in the range that the scale is for?"
            ]
    return []
