"""JSON and YAML that anybody could have written, read within bounds.

What parsers do with a hostile file is bounded: its size, its depth, how often aliases multiply,
integers that Python cannot print, keys that stand there twice (a parser silently takes the last).
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import yaml

try:
    from yaml import CSafeLoader as SafeLoader  # libyaml's, ten times as fast
except ImportError:  # PyYAML was built without it
    from yaml import SafeLoader  # type: ignore[assignment]

LARGEST_JSON = 16 * 2**20  # bytes; a study's or a run's files have some kilobytes an epoch
LARGEST_YAML = 256 * 2**10  # bytes; a recipe has three kilobytes, and the parser is slow
DEEPEST = 64
MOST_NODES = 20_000  # of a YAML file whose aliases are written out
LONGEST = 4000  # characters of a YAML value
MOST_DIGITS = 400  # of an integer in JSON
INTEGER = 2**63
"""A configuration's integers lie below it: they become sizes and indices."""


class NotRead(ValueError):
    """What a text is that is not read: an adjective, in one line."""


def parse_json(data: bytes) -> dict[str, Any]:
    """A JSON object. Raises `NotRead`. NaN and Infinity are numbers, as Python writes them."""
    if len(data) > LARGEST_JSON:
        raise NotRead(f"too long ({len(data)} bytes, at most {LARGEST_JSON} are read)")
    try:
        tree = json.loads(data, parse_int=_integer, object_pairs_hook=_object)
    except NotRead:
        raise
    except RecursionError:
        raise NotRead(f"nested deeper than {DEEPEST} levels") from None
    except ValueError:  # of JSON or of UTF-8
        tree = None
    if not isinstance(tree, dict):
        raise NotRead("not a JSON object")
    _check_depth(tree)
    return tree


def _integer(digits: str) -> int:
    # beyond some thousands Python itself raises, here and in messages
    if len(digits) > MOST_DIGITS:
        raise NotRead(f"too large (an integer of {len(digits)} digits)")
    return int(digits)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    tree = dict(pairs)
    if len(tree) < len(pairs):
        ((twice, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise NotRead(f"ambiguous (the key {twice[:80]!r} twice)")
    return tree


def _check_depth(tree: Any) -> None:
    level: list[Any] = [tree]
    for _ in range(DEEPEST):
        level = [
            part
            for value in level
            if isinstance(value, dict | list)
            for part in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            return
    raise NotRead(f"nested deeper than {DEEPEST} levels")


def parse_yaml(text: str) -> Any:
    """Raises `NotRead`. Aliases are allowed as long as the tree with them written out is small."""
    if len(text) > LARGEST_YAML:
        raise NotRead(f"too long ({len(text)} characters, at most {LARGEST_YAML} are read)")
    try:
        _check_events(text)
        tree = yaml.load(text, Loader=SafeLoader)
    except NotRead:
        raise
    except (yaml.YAMLError, ValueError, ArithmeticError) as error:  # the latter two: of dates
        raise NotRead(f"not YAML ({' '.join(str(error).split())[:300]})") from None
    _check_integers(tree)
    return tree


@dataclass
class _Open:
    """A collection that has not ended: its nodes so far, aliases written out."""

    anchor: str | None
    mapping: bool
    nodes: int = 1
    parts: int = 0
    keys: set[str] = field(default_factory=set)


def _check_events(text: str) -> None:
    """The parser's events come without recursion and before anything is built of them."""
    stack = [_Open(None, False)]
    sizes: dict[str, int] = {}

    def add(nodes: int, key: str | None = None) -> None:
        top = stack[-1]
        if top.mapping and top.parts % 2 == 0 and key is not None:
            if key in top.keys:
                raise NotRead(f"ambiguous (the key {key[:80]!r} twice)")
            top.keys.add(key)
        top.parts += 1
        top.nodes += nodes
        if top.nodes > MOST_NODES:
            raise NotRead(f"too large (more than {MOST_NODES} values, aliases written out)")

    for event in yaml.parse(text, Loader=SafeLoader):
        if isinstance(event, yaml.NodeEvent) and event.anchor is not None:
            anchor = event.anchor
            if isinstance(event, yaml.AliasEvent):
                if anchor not in sizes:
                    raise NotRead(
                        f"circular (the alias *{anchor[:80]} stands for itself, or for nothing)"
                    )
                add(sizes[anchor])
                continue
            sizes.pop(anchor, None)  # given anew
        if isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent) and event.tag:
            raise NotRead(f"not YAML as it is read here (the tag {event.tag[:80]})")
        if isinstance(event, yaml.ScalarEvent):
            if len(event.value) > LONGEST:
                raise NotRead(f"too long (a value of {len(event.value)} characters)")
            add(1, event.value)
            if event.anchor is not None:
                sizes[event.anchor] = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            if len(stack) > DEEPEST:
                raise NotRead(f"nested deeper than {DEEPEST} levels")
            stack.append(_Open(event.anchor, isinstance(event, yaml.MappingStartEvent)))
        elif isinstance(event, yaml.CollectionEndEvent):
            done = stack.pop()
            add(done.nodes)
            if done.anchor is not None:
                sizes[done.anchor] = done.nodes


def _check_integers(tree: Any) -> None:
    """`tree` is small: the events were counted."""
    if isinstance(tree, dict):
        for part in (*tree, *tree.values()):
            _check_integers(part)
    elif isinstance(tree, list | tuple | set):
        for part in tree:
            _check_integers(part)
    elif isinstance(tree, int) and not -INTEGER <= tree < INTEGER:
        raise NotRead("too large (an integer of more than 64 bits)")
