"""Every change that one key of a configuration can undergo, found by walking its types."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError

from fmoe.attacks import NFGSM, threat
from fmoe.config import Config, get
from fmoe.config.kinds import kind_of, options
from fmoe.data.sets import names

Tree = dict[str, Any]
EXAMPLES: dict[str, Tree] = {
    "mix": {"of": [{"kind": "fgsm"}, {"kind": "pgd"}], "weights": [1, 2]},
    "shares": {"of": [{"kind": "fgsm"}, {"kind": "pgd"}], "parts": [1, 2]},
    "timm": {"name": "resnet10t", "weights": "a.safetensors", "weights_sha256": "1" + 63 * "0"},
    "Confidence": {"accurate": ["own"], "weight": 0.7},
    "Calibrate": {"accurate": ["own"], "keep": 0.9},
}
"""Members of a union of which the kind alone says too little, by kind, and classes by name."""


@dataclass(frozen=True)
class Change:
    """Two valid configurations that differ at `path`; kinds: the union members that it lies in."""

    path: str
    kinds: tuple[str, ...]
    before: Config
    after: Config

    def __str__(self) -> str:
        return f"{self.path} ({', '.join(self.kinds)})" if self.kinds else self.path


def changes(base: Config) -> Iterator[Change]:
    """One for each leaf of each member of each union, and for each change of member."""
    yield from _of_class(Config, base, (), ())


Keys = tuple[str, ...]
ONE_VALUE = [(NFGSM, "norm")]
"""Fields that have no other value."""


def _of_class(
    cls: type[BaseModel], base: Config, keys: Keys, inside: tuple[type[BaseModel], ...]
) -> Iterator[Change]:
    for name, field in cls.model_fields.items():
        if name != "kind" and (cls, name) not in ONE_VALUE:
            yield from _of(field.annotation, base, (*keys, name), (*inside, cls))


def _of(
    annotation: Any, base: Config, keys: Keys, inside: tuple[type[BaseModel], ...]
) -> Iterator[Change]:
    value, possible = get(base.plain(), ".".join(keys)), options(annotation)
    members = [o for o in possible if isinstance(o, type) and issubclass(o, BaseModel)]
    if not members:
        yield _leaf(possible, value, base, keys, inside)
    for member in members:
        kind = kind_of(member)
        if member in inside:  # a mix of mixes has no end
            continue
        if value is not None and value.get("kind") == kind:
            yield from _of_class(member, base, keys, inside)
            continue
        before, other = _with(member, base, keys)
        yield Change(".".join(keys), _kinds((*inside, member)), before, other)
        yield from _of_class(member, other, keys, inside)
    for option in possible:
        yield from _parts(option, value, base, keys, inside)


def _with(member: type[BaseModel], base: Config, keys: Keys) -> tuple[Config, Config]:
    """Without and with the member; of some there are none without a trunk."""
    kind = kind_of(member)
    example = EXAMPLES.get(kind or member.__name__, {}) | ({} if kind is None else {"kind": kind})
    fresh = _changed(base, ("experts", "start"), "fresh")
    for before in (base, fresh, fresh and _changed(fresh, ("experts", "trunk"), {})):
        after = before and _changed(before, keys, example)
        if before and after:
            return before, after
    raise AssertionError(f"{'.'.join(keys)}: give an example of {member.__name__}")


def _parts(
    option: Any, value: Any, base: Config, keys: Keys, inside: tuple[type[BaseModel], ...]
) -> Iterator[Change]:
    """Of what a dictionary holds, or a list of configurations."""
    if get_origin(option) is dict and isinstance(value, dict):
        for key in value:
            yield from _of(get_args(option)[1], base, (*keys, key), inside)
    if get_origin(option) is list and isinstance(value, list):
        of = get_args(option)[0]
        if any(kind_of(member) for member in options(of)):
            for index in range(len(value)):
                yield from _of(of, base, (*keys, str(index)), inside)


def _leaf(
    possible: list[Any], value: Any, base: Config, keys: Keys, inside: tuple[type[BaseModel], ...]
) -> Change:
    for candidate in _others(possible, value):
        after = _changed(base, keys, candidate)
        if after is not None and after.plain() != base.plain():
            return Change(".".join(keys), _kinds(inside), base, after)
    raise AssertionError(f"{'.'.join(keys)}: teach `_others` another value than {value!r}")


def _others(possible: list[Any], value: Any) -> Iterator[Any]:
    """Values that may be another one of such a type; whether one is valid is tried."""
    for option in possible:
        if get_origin(option) is Literal:
            yield from get_args(option)
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int | float):
        yield from (value + 1, 2 * value, value / 2, 1, 2, 0.5, value + 6)
    elif isinstance(value, str):
        yield from chain(names(), threat.kinds(), [f"{value}x", f"x{value}", value[::-1]])
    elif isinstance(value, list):
        of = [option for option in possible if get_origin(option) is list]
        inner = [member for option in of for member in options(get_args(option)[0])]
        if not value:
            yield from ([{"kind": kind}] for kind in map(kind_of, inner) if kind)
            yield [8]
            return
        yield from (value[:-1], [*value, *value[-1:]], value[::-1])
        yield from ([other, *value[1:]] for other in _others(inner, value[0]))
    elif isinstance(value, dict):
        yield {**value, "added": next(iter(value.values()))}
    else:
        yield from (1, 2, 0.5, True, [1], [0.5])


def _changed(base: Config, keys: Keys, value: Any) -> Config | None:
    """None where that is no configuration."""
    tree = copy.deepcopy(base.plain())
    at: Any = get(tree, ".".join(keys[:-1])) if keys[:-1] else tree
    at[int(keys[-1]) if isinstance(at, list) else keys[-1]] = value
    try:
        return Config.model_validate(tree)
    except ValidationError:
        return None


def _kinds(inside: tuple[type[BaseModel], ...]) -> tuple[str, ...]:
    return tuple(kind for cls in inside if (kind := kind_of(cls)) is not None)
