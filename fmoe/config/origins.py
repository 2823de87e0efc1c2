"""Where each value of a configuration comes from: a recipe, one that it starts from, `--set`.

A value's origin is the last that wrote it or a part of the tree around it; what nobody wrote is the
library's default.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from fmoe.config.kinds import index
from fmoe.config.recipes import load, parse_override, read
from fmoe.config.tree import Config

DEFAULT = "default"


@dataclass(frozen=True)
class Writing:
    """A value that somebody wrote at a dotted path; "" is the whole tree."""

    source: str
    path: str
    value: Any

    def covers(self, path: str) -> bool:
        return self.path in ("", path) or path.startswith(f"{self.path}.")

    def holds(self, path: str) -> bool:
        """Whether a path that it covers is in what was written."""
        value = self.value
        for key in path[len(self.path) :].strip(".").split(".") if path != self.path else ():
            match value:
                case dict():
                    if key not in value:
                        return False
                    value = value[key]
                case list():
                    if (place := index(value, key)) is None:
                        return False
                    value = value[place]
                case _:
                    return True
        return True


def writings(recipe: str, overrides: Sequence[str] = ()) -> list[Writing]:
    """In the order in which they are applied. Raises `UserError` as `load` does."""
    tree = read(recipe)
    if "recipe" in tree:
        written = writings(tree["recipe"])
        written += [Writing(recipe, str(key), value) for key, value in tree.get("set", {}).items()]
    else:
        written = [Writing(recipe, "", tree)]
    return written + [Writing(f"--set {text}", *parse_override(text)) for text in overrides]


def explained(recipe: str, overrides: Sequence[str] = ()) -> tuple[Config, dict[str, str]]:
    """The configuration, and the origin of each value by its dotted path.

    Raises `UserError` as `load` does.
    """
    settings = load(recipe, overrides)
    written = list(reversed(writings(recipe, overrides)))
    origins = {}
    for path, _ in values(settings.plain()):
        last = next((each for each in written if each.covers(path)), None)
        origins[path] = last.source if last and last.holds(path) else DEFAULT
    return settings, origins


def values(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """What is no part with values of its own, by dotted path; a list of plain values is one."""
    for key, value in _parts(tree):
        inner = f"{path}.{key}" if path else key
        if any(True for _ in _parts(value)):
            yield from values(value, inner)
        else:
            yield inner, value


def _parts(tree: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping):
        yield from ((str(key), value) for key, value in tree.items())
    elif isinstance(tree, list) and any(isinstance(value, Mapping) for value in tree):
        yield from ((str(index), value) for index, value in enumerate(tree))


def annotated(settings: Config, origins: Mapping[str, str]) -> Iterator[str]:
    """A recipe's file that gives the configuration: a value a line, with its origin."""
    width = max(len(line) for line, _ in _lines(settings.plain()))
    for line, path in _lines(settings.plain()):
        yield f"{line:<{width}}  # {origins[path]}" if path else line


def _lines(tree: Any, path: str = "", indent: str = "") -> Iterator[tuple[str, str | None]]:
    """Lines of YAML, with the path of the value that a line gives."""
    listed = isinstance(tree, list)
    for key, value in _parts(tree):
        inner = f"{path}.{key}" if path else key
        start = f"{indent}- " if listed else f"{indent}{key}:"
        if not any(True for _ in _parts(value)):
            yield f"{start.rstrip()} {_flow(value)}", inner
        elif listed:
            first, *others = _lines(value, inner, f"{indent}  ")
            yield start + first[0].lstrip(), first[1]
            yield from others
        else:
            yield start, None
            yield from _lines(value, inner, f"{indent}  ")


def _flow(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6)
    return text.removesuffix("\n").removesuffix("\n...")
