"""A union with one more member, as if its line had been edited: for tests that add a kind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

from fmoe.schema import Spec


@contextmanager
def beside(sibling: type[Spec], new: type[Spec]) -> Iterator[None]:
    """For the time of the block `new` stands wherever `sibling` is a member of a union."""
    fields = [field for spec in below(Spec) for field in spec.model_fields.values()]
    before = [field.annotation for field in fields]
    for field in fields:
        field.annotation = extended(field.annotation, sibling, new)
    rebuild()
    try:
        yield
    finally:
        for field, annotation in zip(fields, before, strict=True):
            field.annotation = annotation
        rebuild()


def below(spec: type[Spec]) -> list[type[Spec]]:
    return [spec, *(found for child in spec.__subclasses__() for found in below(child))]


def extended(annotation: Any, sibling: type[Spec], new: type[Spec]) -> Any:
    if annotation is sibling:
        return sibling | new
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        inner = extended(parts[0], sibling, new)
        return annotation if inner is parts[0] else Annotated[inner, *parts[1:]]
    others = [extended(part, sibling, new) for part in parts]
    if all(other is part for other, part in zip(others, parts, strict=True)):
        return annotation
    return Union[*others] if origin in (Union, UnionType) else origin[*others]


def rebuild() -> None:
    """All configuration classes, what a class contains before the class."""
    done: set[type[BaseModel]] = set()

    def visit(annotation: Any) -> None:
        spec = isinstance(annotation, type) and issubclass(annotation, BaseModel)
        if spec and annotation not in done:
            done.add(annotation)
            for field in annotation.model_fields.values():
                visit(field.annotation)
            annotation.model_rebuild(force=True)
        for part in get_args(annotation):
            visit(part)

    for spec in below(Spec):
        visit(spec)
