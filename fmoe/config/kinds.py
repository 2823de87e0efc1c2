"""Which class a path's `kind` names: found by walking the annotations of the configuration.

The same name may stand in several unions (a schedule and a gate may both be `linear`), so a name
alone says nothing: the union does that the path leads to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

MOST_DIGITS = 6  # of a place in a list


def kinds(root: type[BaseModel], tree: Any, keys: Sequence[str]) -> dict[str, type[BaseModel]]:
    """The kinds that are possible at the path `keys` below `root`, by name.

    tree: values from the root on, whose own `kind`s tell which way a path goes.
    """
    annotations: list[Any] = [root]
    for key in keys:
        annotations = [
            below
            for annotation in annotations
            for option in options(annotation)
            for below in step(option, key, tree)
        ]
        tree = child(tree, key)
    members = [option for annotation in annotations for option in options(annotation)]
    return {name: option for option in members if (name := kind_of(option)) is not None}


def options(annotation: Any) -> list[Any]:
    """The members of a union, which may be nested and annotated."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return options(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return [option for part in get_args(annotation) for option in options(part)]
    return [annotation]


def step(option: Any, key: str, tree: Any) -> list[Any]:
    """The annotation of what stands at `key` in an `option`, which has the values `tree`."""
    origin, arguments = get_origin(option), get_args(option)
    if origin is list:
        return [arguments[0]] if key.isdigit() else []
    if origin is dict:
        return [arguments[1]]
    if not (isinstance(option, type) and issubclass(option, BaseModel)):
        return []
    named = tree.get("kind") if isinstance(tree, Mapping) else None
    if named is not None and kind_of(option) not in (None, named):
        return []
    field = option.model_fields.get(key)
    return [] if field is None else [field.annotation]


def kind_of(option: Any) -> str | None:
    """The name by which a union knows a class; None for what is no member of one."""
    if not (isinstance(option, type) and issubclass(option, BaseModel)):
        return None
    field = option.model_fields.get("kind")
    return field.default if field and isinstance(field.default, str) else None


def child(tree: Any, key: str) -> Any:
    if isinstance(tree, Mapping):
        return tree.get(key)
    at = index(tree, key) if isinstance(tree, list) else None
    return None if at is None else tree[at]


def index(values: list[Any], key: str) -> int | None:
    """The place in a list that a path's key says; None where it says none."""
    known = key.isascii() and key.isdigit() and len(key) <= MOST_DIGITS
    return int(key) if known and int(key) < len(values) else None
