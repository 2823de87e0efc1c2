"""A kind that a test adds: its name in one union, as an edit of the union's module would put it."""

from __future__ import annotations

import operator
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce
from types import ModuleType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from fmoe.schema import Spec


@contextmanager
def added(module: ModuleType, union: str, member: type[Spec]) -> Iterator[None]:
    """`member` in the union of that name, in every configuration class that names the union.

    What has one kind only is that kind's class.
    """
    old = getattr(module, union)
    swaps: dict[Any, Any] = {old: old | member}
    if get_args(old):
        kinds, *about = get_args(old)
        swaps = {old: Annotated[(kinds | member, *about)], kinds: kinds | member}
    new = swaps[old]
    holders = [m for n, m in sys.modules.items() if n.startswith("fmoe") and hasattr(m, union)]
    fields = [field for spec in specs(Spec) for field in spec.model_fields.values()]
    before = [(field, field.annotation) for field in fields]
    try:
        for holder in holders:
            setattr(holder, union, new)
        for field in fields:
            field.annotation = swapped(field.annotation, swaps)
        rebuild()
        yield
    finally:
        for holder in holders:
            setattr(holder, union, old)
        restore(before)
        rebuild()


def restore(before: list[tuple[FieldInfo, Any]]) -> None:
    for field, annotation in before:
        field.annotation = annotation


def swapped(annotation: Any, swaps: dict[Any, Any]) -> Any:
    """The annotation with every type that is to be swapped, at any depth."""
    for old, new in swaps.items():
        if annotation == old:
            return new
    origin, args = get_origin(annotation), get_args(annotation)
    if not args or not any(isinstance(arg, type) or get_args(arg) for arg in args):
        return annotation
    if origin is Annotated:
        return Annotated[(swapped(args[0], swaps), *args[1:])]
    inside = tuple(swapped(arg, swaps) for arg in args)
    if inside == args:
        return annotation
    is_union = origin is Union or isinstance(annotation, type(int | str))
    return reduce(operator.or_, inside) if is_union else origin[inside]


def specs(base: type[Spec]) -> list[type[Spec]]:
    return [base, *(one for child in base.__subclasses__() for one in specs(child))]


def rebuild() -> None:
    """All configuration classes' validators, of their fields as they are now."""
    for spec in specs(Spec):
        for cached in ("__pydantic_core_schema__", "__pydantic_validator__"):
            if cached in spec.__dict__:
                delattr(spec, cached)
    for spec in specs(Spec):
        spec.model_rebuild(force=True)
