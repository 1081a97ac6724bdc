"""Whatever a file holds: a recipe, or messages with positions. Never anything else."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from trtrecipe.errors import InputError
from trtrecipe.recipe import document, load, messages
from trtrecipe.recipe.rules import target_findings
from trtrecipe.recipe.schema import recipe_schema

ROOT = Path(__file__).parent.parent
VALID = (ROOT / "recipes" / "digits" / "digits.yaml").read_text("utf-8")
WHOLE = """\
schema: trtrecipe/v1
name: whole
model:
  source: model
  format: saved_model
  signature: serve
  tags: [serve, gpu]
  opset: 17
  without_passes: [constants, sort-top-k]
  tolerance: 0.01
  outputs: [block/relu, logits]
  rename: {serving_default_image: image, block/relu: features}
  inputs: {image: {shape: [batch, 3, size, size], dtype: float32, layout: nchw}}
  dims: {batch: {min: 1, opt: 2, max: 4}, size: {min: 8, opt: 8, max: 8}}
precision:
  mode: [int8, fp16]
  fallback: fp16
  quantization: explicit
  search: true
  keep:
    - {layers: logits, precision: fp32}
    - {operators: [Softmax], precision: fp16}
    - {between: [first, last], precision: fp32}
preprocess:
  image:
    - {resize: {size: [9, 9], filter: bilinear}}
    - {resize: {short_side: 8}}
    - {crop: [8, 8]}
    - {colour: bgr}
    - {layout: nchw}
    - {scale: 0.5}
    - {normalize: {mean: [0, 0, 0], std: [1, 1, 1]}}
    - {cast: float32}
calibration: {data: {npy: {image: x.npy}}, samples: 8, seed: 1, method: minmax, memory: 64MiB}
evaluation:
  data: {npz: x.npz, arrays: {image: x, label: y}}
  samples: 8
  seed: 1
  metric: top5
  output: logits
  device_samples: 64
gates:
  accuracy: {max_drop: 0.1, min: 0.5}
  latency_ms: {p50: 1, p90: 2, p99: 3}
  agreement: 0.9
  cosine: 0.9
  size: 1MiB
targets:
  - host
  - profile: rtx
    name: small
    precision: {mode: fp16}
    model: {dims: {batch: {min: 1, opt: 1, max: 1}, size: {min: 8, opt: 8, max: 8}}}
    build: {workspace: 1GiB}
    gates: {accuracy: {max_drop: 0.2}}
build: {workspace: 512MiB, dla: {core: 0, gpu_fallback: true}}
"""
"""Every key of the language but those of FORMS."""
FORMS = {
    "calibration": ["{table: x.cache}", "{model: true}"],
    "evaluation": [
        "{data: {images: 'x/*.png', labels: y.txt}, metric: top1}",
        "{data: {raw: {image: 'x/*'}, labels: y.txt}, metric: top1}",
        "{data: {tfrecord: 'x*', features: {image: x, label: y}}, metric: top1}",
        "{data: {csv: x.csv, columns: {image: x, label: y}}, metric: top1}",
    ],
    "preprocess": ["{image: [{resize: [8, 8]}]}"],
}
"""Key of the recipe → other forms of its block, which exclude what is in WHOLE."""
SCHEMA = recipe_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
WORDS = sorted(set(VALID.replace(",", " ").replace("{", " ").split()))
SIGNS = ["", " ", "  ", "\n", "\t", ":", "- ", *"[]{}#~%", "&a", "*a", "!t", "'", '"', "<<: ", "\0"]
KEYS = sorted({key for kind in [SCHEMA, *SCHEMA["$defs"].values()] for key in kind.get("properties", {})})
VALUES = ["fp32", "int8", "host", "rtx", "jetson-tx2@4.6.4", "top1", "batch", "1GiB", "trtrecipe/v1", "label", "m.onnx"]

scalars = (
    st.none()
    | st.booleans()
    | st.integers(min_value=-(10**38), max_value=10**38)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=12)
    | st.sampled_from(VALUES)
)
keys = st.text(max_size=5) | st.sampled_from(KEYS)


def _trees(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=5), max_leaves=25
    )


trees = _trees(scalars | st.sampled_from([math.nan, math.inf, -math.inf]))
relaxed = settings(deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("arbitrary") / "r.yaml"


@pytest.fixture(autouse=True)
def no_unworded_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every error that pydantic can raise for a recipe has words of ours."""

    def unworded(item: Any, *_: Any) -> Any:
        raise AssertionError(f"no words for {item['type']}")

    monkeypatch.setattr(messages, "_other", unworded)


def _answer(file: Path, data: bytes) -> load.Loaded | None:
    """Load `data`: the recipe, or None after checking that the problems can be shown to a person."""
    file.write_bytes(data)
    try:
        return load.load(file, also=target_findings)
    except InputError as error:
        problems = error.problems
    lines = data.decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    assert problems
    assert [(p.line, p.column) for p in problems] == sorted((p.line or 0, p.column or 0) for p in problems)
    for problem in problems:
        assert problem.line is not None and 1 <= problem.line <= len(lines)
        assert problem.column is not None and 1 <= problem.column <= len(lines[problem.line - 1]) + 1
        assert 0 < len(problem.message) < 500
        assert "\n" not in problem.message + (problem.hint or "")
        assert "pydantic" not in problem.message
    return None


def _dumped(tree: Any) -> bytes:
    return yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "surrogatepass")


def _mutations(written: str, most: int) -> st.SearchStrategy[str]:
    """`written` with up to `most` pieces cut out or replaced."""
    pieces = st.sampled_from([*WORDS, *SIGNS]) | st.text(max_size=3)
    edits = st.tuples(st.integers(0, len(written)), st.integers(0, 12), pieces)

    def apply(chosen: list[tuple[int, int, str]]) -> str:
        text = written
        for start, length, piece in chosen:
            text = text[:start] + piece + text[start + length :]
        return text

    return st.lists(edits, min_size=1, max_size=most).map(apply)


@relaxed
@given(data=st.binary(max_size=300))
@example(data=b"")
@example(data=b"\xff\xfe\x00")
@example(data=b"\x80: 1")
def test_arbitrary_bytes(file: Path, data: bytes) -> None:
    assert _answer(file, data) is None


@relaxed
@given(text=st.text(max_size=300))
def test_arbitrary_text(file: Path, text: str) -> None:
    assert _answer(file, text.encode("utf-8", "surrogatepass")) is None


@settings(relaxed, max_examples=300)
@given(text=_mutations(VALID, 4))
def test_mutated_recipes(file: Path, text: str) -> None:
    _answer(file, text.encode("utf-8", "surrogatepass"))


@settings(relaxed, max_examples=300)
@given(tree=trees)
@example(tree={"preprocess": {"|npz": [{"|scale": 1}]}})
@example(tree={"model": {"inputs": {"[key]": {"[key]": 1}, "shape": {"shape": ["|x"]}}}})
@example(tree={"calibration": {"data": {"npz": {"npz": {"arrays": 1}}}}, "targets": [{"|entry": 1}, ["|entry"]]})
def test_arbitrary_trees(file: Path, tree: Any) -> None:
    _answer(file, json.dumps(tree).encode())
    _answer(file, _dumped(tree))


@settings(relaxed, max_examples=400)
@given(data=st.data())
def test_recipes_with_one_branch_replaced(file: Path, data: st.DataObject) -> None:
    """Reaches every level of the model; and what the loader takes, the JSON Schema takes."""
    node: Any = {"": yaml.safe_load(VALID)}
    root, key = node, ""
    while isinstance(node[key], dict | list) and (node is root or data.draw(st.integers(0, 3))):
        node = node[key]
        key = data.draw(st.sampled_from(list(node) if isinstance(node, dict) else range(len(node))))
    node[key] = data.draw(trees)
    loaded = _answer(file, _dumped(root[""]))
    if loaded is not None:
        VALIDATOR.validate(loaded.document.value)


def _places(node: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield place
    for key, inner in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield from _places(inner, (*place, key))


def _replaced(node: Any, place: tuple[Any, ...], value: Any) -> Any:
    if not place:
        return value
    copy = node.copy()
    copy[place[0]] = _replaced(node[place[0]], place[1:], value)
    return copy


@pytest.mark.parametrize(
    "value", [None, True, 0, 1.5, "", "x", [], [[]], [None], [{}], {}, {"x": 1}, {"label": []}], ids=repr
)
def test_every_place_with_every_kind_of_value(file: Path, value: Any) -> None:
    whole = yaml.safe_load(WHOLE)
    for place in _places(whole):
        _answer(file, _dumped(_replaced(whole, place, value)))


def test_the_whole_recipe_loads(file: Path) -> None:
    loaded = _answer(file, WHOLE.encode())
    assert loaded is not None
    written = WHOLE + "".join(form for forms in FORMS.values() for form in forms)
    assert [key for key in KEYS if f"{key}:" not in written] == []
    VALIDATOR.validate(loaded.document.value)


@pytest.mark.parametrize(("block", "form"), [(block, form) for block, forms in FORMS.items() for form in forms])
def test_other_forms_load(file: Path, block: str, form: str) -> None:
    whole = yaml.safe_load(WHOLE) | {"precision": {"mode": "int8"}, block: yaml.safe_load(form)}
    loaded = _answer(file, _dumped(whole))
    assert loaded is not None
    VALIDATOR.validate(loaded.document.value)


@settings(relaxed, max_examples=200)
@given(tree=st.dictionaries(keys, _trees(scalars), min_size=1, max_size=5))
def test_json_is_read_as_it_is(tree: Any) -> None:
    try:
        found = document.parse(json.dumps(tree, ensure_ascii=False).encode(), "f").value
    except InputError as error:
        assume("has no place in a recipe" not in str(error))
        raise
    except UnicodeEncodeError:  # half of a pair
        assume(False)
    assert json.dumps(found) == json.dumps(tree)
