"""The base of every configuration class: frozen, unknown keys refused with what is allowed."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

LONGEST = 500  # characters of a fault: a key or a value may have any length


class Spec(BaseModel):
    """A frozen configuration value. Unknown keys are refused and the allowed ones named."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, data: Any) -> Any:
        if isinstance(data, dict):
            unknown = [str(key) for key in data if key not in cls.model_fields]
            if unknown:
                allowed = ", ".join(cls.model_fields)
                raise ValueError(f"unknown key {', '.join(unknown)} (allowed: {allowed})")
            for key, value in data.items():
                # Python takes True for 1 and pydantic 1 for True: neither is converted here
                kind = cls.model_fields[key].annotation
                wants_bool = kind is bool or kind == bool | None
                if value is None and kind is not bool:
                    continue
                parts = value if isinstance(value, list) else [value]
                if any(isinstance(part, bool) is not wants_bool for part in parts):
                    raise ValueError(f"{key}: {value!r} is {'no' if wants_bool else 'a'} boolean")
        return data


def parse_ratio(value: Any) -> Any:
    """`"8/255"` -> 0.0313…; anything else is left to the type's own check."""
    if isinstance(value, str) and value.count("/") == 1:
        try:
            numerator, denominator = (float(part) for part in value.split("/"))
            return numerator / denominator
        except (ValueError, ZeroDivisionError):
            raise ValueError(f"{value!r} is not a ratio such as 8/255") from None
    return value


def _or_ratio(**bounds: float) -> WithJsonSchema:
    """What an editor is told: a number within bounds, or a ratio."""
    ratio = {"type": "string", "pattern": r"^\s*[0-9.eE+-]+\s*/\s*[0-9.eE+-]+\s*$"}
    return WithJsonSchema({"anyOf": [{"type": "number", **bounds}, ratio]})


Length = Annotated[
    float,
    BeforeValidator(parse_ratio),
    Field(ge=0, allow_inf_nan=False),
    _or_ratio(minimum=0),
]
"""Of a perturbation, in some norm, of pixel values of [0,1]; may be written `8/255`."""
Pixels = Annotated[
    float,
    BeforeValidator(parse_ratio),
    Field(ge=0, le=1, allow_inf_nan=False),
    _or_ratio(minimum=0, maximum=1),
]
"""A distance in pixel values of [0,1]; may be written `8/255`."""

T = TypeVar("T")
Drawn: TypeAlias = T | Annotated[list[T], Field(min_length=1)]
"""A value, or a list from which one is drawn uniformly for every batch."""


def faults(error: ValidationError, tree: Any) -> str:
    """The first three, each with its key's path."""
    told = [_fault(fault["loc"], fault["type"], fault["msg"], tree) for fault in error.errors()]
    more = f" (and {len(told) - 3} more)" if len(told) > 3 else ""
    return f"{'; '.join(told[:3])}{more}"


def _fault(loc: tuple[int | str, ...], kind: str, message: str, tree: Any) -> str:
    path = _path(loc, tree)
    if kind == "missing":
        path = f"{path}.{loc[-1]}" if path else str(loc[-1])
    path = path if len(path) <= LONGEST else f"…{path[-LONGEST:]}"
    message = message.removeprefix("Value error, ")
    message = message if len(message) <= LONGEST else f"{message[:LONGEST]}…"
    return f"{path}: {message}" if path else message


def _path(loc: tuple[int | str, ...], tree: Any) -> str:
    """The key's path as the user wrote it: pydantic adds the names of union members."""
    keys: list[str] = []
    for key in loc:
        inside = isinstance(tree, dict) and key in tree
        if inside or (isinstance(tree, list) and isinstance(key, int) and key < len(tree)):
            tree = tree[key]
            keys.append(str(key))
    return ".".join(keys)
