"""The JSON Schema: generated, committed, and of one mind with the loader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from trtrecipe.recipe.schema import recipe_schema, text

ROOT = Path(__file__).parent.parent
SMALL: dict[str, Any] = {
    "schema": "trtrecipe/v1",
    "name": "a",
    "model": {"source": "m.onnx"},
    "precision": {"mode": "fp32"},
    "targets": ["host"],
}
VALIDATOR = jsonschema.Draft202012Validator(recipe_schema())


def test_the_committed_file_is_the_generated_one() -> None:
    path = ROOT / "schemas" / "recipe.v1.schema.json"
    assert path.read_text("utf-8") == text(), "run: trtrecipe schema > schemas/recipe.v1.schema.json"


def test_it_is_a_valid_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(recipe_schema())
    assert json.loads(text()) == recipe_schema()


def test_every_level_is_closed() -> None:
    schema = recipe_schema()
    objects = [schema, *(kind for kind in schema["$defs"].values() if "properties" in kind)]
    assert len(objects) > 10
    assert all(kind["additionalProperties"] is False for kind in objects)


@pytest.mark.parametrize("path", sorted(ROOT.glob("recipes/*/*.yaml")), ids=lambda path: path.name)
def test_our_recipes_fit(path: Path) -> None:
    VALIDATOR.validate(yaml.safe_load(path.read_text("utf-8")))


def test_the_smallest_recipe_fits() -> None:
    VALIDATOR.validate(SMALL)


@pytest.mark.parametrize(
    "change",
    [
        {"schema": "trtrecipe/v2"},
        {"name": "a b"},
        {"colour": "red"},
        {"model": {"sorce": "x"}},
        {"model": {"source": "x", "inputs": {"image": {"shape": [0]}}}},
        {"model": {"source": "x", "inputs": {"image": {"shape": ["a b"]}}}},
        {"model": {"source": "x", "dims": {"a b": {"min": 1, "opt": 1, "max": 1}}}},
        {"model": {"source": "x", "dims": {"batch": {"min": 0, "opt": 1, "max": 1}}}},
        {"precision": {"mode": "int9"}},
        {"preprocess": {"image": [{"rotate": 90}]}},
        {"preprocess": {"image": [{"resize": [8]}]}},
        {"preprocess": {"image": [{"resize": {"size": [8, 8], "filter": "cubic"}}]}},
        {"preprocess": {"image": [{"crop": 8}]}},
        {"calibration": {"data": {"images": "x/*.png", "label": "y.txt"}}},
        {"calibration": {"data": {"tfrecord": "x*"}}},
        {"preprocess": {"image": [{"scale": 1, "normalize": {"mean": [0], "std": [1]}}]}},
        {"calibration": {"data": {"npz": "x"}}},
        {"gates": {"size": "1GB"}},
        {"targets": []},
        {"targets": [{"name": "x"}]},
        {"build": {"workspace": 0}},
    ],
    ids=str,
)
def test_an_editor_marks_what_the_loader_refuses(change: dict[str, Any]) -> None:
    assert not VALIDATOR.is_valid(SMALL | change)
