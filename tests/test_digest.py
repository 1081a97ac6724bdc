"""Canonical JSON and digests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtrecipe.digest import canonical_json, sha256_json

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def _shuffled(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _shuffled(value[key]) for key in reversed(value)}
    return [_shuffled(item) for item in value] if isinstance(value, list) else value


@given(values.filter(lambda value: "\ud800" not in repr(value)))
def test_canonical_json_round_trips_and_ignores_the_order_of_keys(value: Any) -> None:
    try:
        data = canonical_json(value)
    except UnicodeEncodeError:
        return  # a lone surrogate has no UTF-8 form
    assert json.loads(data) == value
    assert canonical_json(_shuffled(value)) == data


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [float("-inf")]])
def test_what_json_cannot_hold_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(value)


def test_different_values_have_different_digests() -> None:
    different: list[Any] = [0, 0.5, "0", None, False, [], {}, [0], {"a": 0}, {"a": "0"}, 1, "1"]
    assert len({sha256_json(value) for value in different}) == len(different)


def test_digest_does_not_depend_on_hash_seed_or_locale() -> None:
    code = "from trtrecipe.digest import sha256_json; print(sha256_json({'b': {'ä', }.pop(), 'a': [1.5, None]}))"
    digests = set()
    for seed, locale in (("0", "C"), ("1", "C.UTF-8"), ("12345", "POSIX")):
        environment = os.environ | {"PYTHONHASHSEED": seed, "LC_ALL": locale}
        digests.add(
            subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True).stdout
        )
    assert len(digests) == 1
