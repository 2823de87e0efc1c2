"""JSON schemas of the files that users write: recipes, and spaces of `fmoe tune`."""

from __future__ import annotations

from typing import Any

from fmoe.config import Config, recipes
from fmoe.json_schema import DIALECT, json_schema
from fmoe.tuning.domains import KINDS
from fmoe.tuning.settings import Study


def recipe() -> dict[str, Any]:
    """Of a recipe: the whole tree, or the recipe that it starts from and what it sets of it."""
    tree = json_schema(Config)
    derived = {
        "type": "object",
        "required": ["recipe"],
        "additionalProperties": False,
        "properties": {
            "recipe": {"enum": recipes(), "description": "A packaged recipe to start from."},
            "set": {"type": "object", "description": "Dotted path to value, as `--set`."},
        },
    }
    definitions = {**tree.pop("$defs"), "Tree": tree, "Derived": derived}
    return {
        "$schema": DIALECT,
        "title": "A recipe of fmoe",
        "if": {"required": ["recipe"]},
        "then": {"$ref": "#/$defs/Derived"},
        "else": {"$ref": "#/$defs/Tree"},
        "$defs": definitions,
    }


def space() -> dict[str, Any]:
    """Of a space: a recipe, what a study is after, and the values of each path."""
    made = json_schema(Study)
    properties: dict[str, Any] = {kind: {"type": "array", "minItems": 1} for kind in KINDS}
    properties["when"] = {
        "type": "object",
        "description": "Only where these paths have these values.",
    }
    domain = {
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
        "oneOf": [{"required": [kind]} for kind in KINDS],
    }
    made["properties"]["space"] |= {
        "additionalProperties": {"$ref": "#/$defs/Domain"},
        "description": "Dotted path of the recipe to the values that trials take there.",
    }
    made["$defs"]["Domain"] = domain
    return {"$schema": DIALECT, **made, "title": "A space of fmoe tune"}
