"""JSON schemas of configuration classes, for editors: what may stand where, and what it means."""

from __future__ import annotations

import ast
import inspect
import sys
from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

DIALECT = GenerateJsonSchema.schema_dialect


def json_schema(model: type[BaseModel]) -> dict[str, Any]:
    """Of what `model.model_validate` takes, with fields' docstrings as descriptions."""
    return model.model_json_schema(schema_generator=_Described)


class _Described(GenerateJsonSchema):
    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        made = super().model_schema(schema)
        for base in reversed(schema["cls"].__mro__):
            for field, text in _documented(base.__module__).get(base.__qualname__, {}).items():
                if field in made.get("properties", {}):
                    made["properties"][field]["description"] = text
        return made

    def tagged_union_schema(self, schema: core_schema.TaggedUnionSchema) -> JsonSchemaValue:
        """Where `kind` may be left out, a value may fit several members."""
        made = super().tagged_union_schema(schema)
        made["anyOf"] = made.pop("oneOf")
        return made


@cache
def _documented(module: str) -> dict[str, dict[str, str]]:
    """Of each class of a module the docstrings that stand below its fields."""
    if not module.startswith("fmoe."):
        return {}
    parsed = ast.parse(inspect.getsource(sys.modules[module]))
    return {
        node.name: dict(_fields(node))
        for node in ast.walk(parsed)
        if isinstance(node, ast.ClassDef)
    }


def _fields(node: ast.ClassDef) -> list[tuple[str, str]]:
    return [
        (field.target.id, " ".join(inspect.cleandoc(below.value.value).split()))
        for field, below in zip(node.body, node.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(below, ast.Expr)
        and isinstance(below.value, ast.Constant)
        and isinstance(below.value.value, str)
    ]
