"""The JSON Schema of recipes, for editors and other tools."""

from __future__ import annotations

import json
from typing import Any

from trtrecipe.recipe.model import Recipe


def recipe_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a trtrecipe/v1 recipe."""
    schema = Recipe.model_json_schema(by_alias=True, mode="validation")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "trtrecipe recipe, version 1"} | {
        key: _tidy(value) for key, value in schema.items() if key != "title"
    }


def text() -> str:
    """The schema as it is kept in schemas/recipe.v1.schema.json."""
    return json.dumps(recipe_schema(), indent=2, ensure_ascii=False) + "\n"


def _tidy(value: Any) -> Any:
    """Without the titles that pydantic makes from names; names that must match a pattern do; 1.0 is written 1."""
    if isinstance(value, dict):
        if "patternProperties" in value and "additionalProperties" not in value:
            value = value | {"additionalProperties": False}
        return {key: _tidy(item) for key, item in value.items() if not (key == "title" and isinstance(item, str))}
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:  # as later releases of pydantic do
        return int(value)
    return [_tidy(item) for item in value] if isinstance(value, list) else value
