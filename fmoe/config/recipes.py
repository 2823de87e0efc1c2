"""Recipes as users write them: YAML by name or path, with `path=value` overrides on top.

config = load("cifar10", ["experts.backbone.width=16", "joint.epochs=3"])
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fmoe import documents
from fmoe.config import format_1
from fmoe.config.kinds import index, kinds
from fmoe.config.tree import Config
from fmoe.documents import LARGEST_YAML, NotRead
from fmoe.errors import UserError, first_line
from fmoe.schema import faults


def recipes() -> list[str]:
    folder = resources.files("fmoe") / "recipes"
    return sorted(file.name[:-5] for file in folder.iterdir() if file.name.endswith(".yaml"))


def recipe_name(recipe: str) -> str:
    return Path(recipe).stem


def load(recipe: str, overrides: Sequence[str] = ()) -> Config:
    """A packaged recipe by name, or a YAML file by path, with `dotted.path=value` overrides.

    Raises `UserError` with the key's path and what would be allowed.
    """
    tree = read(recipe)
    if "recipe" in tree:
        tree = derived(tree, recipe)
    refuse_moved(tree, recipe)
    for override in overrides:
        put(tree, *parse_override(override), f"--set {override}")
        refuse_moved(tree, f"--set {override}")
    return validate(tree, recipe)


def read(recipe: str) -> dict[str, Any]:
    """What a packaged recipe or a file holds, as it is written. Raises `UserError`."""
    if recipe in recipes():
        text = (resources.files("fmoe") / "recipes" / f"{recipe}.yaml").read_text()
    elif Path(recipe).is_file():
        text = read_text(Path(recipe))
    else:
        raise UserError(
            f"unknown recipe {recipe!r}: there are {', '.join(recipes())}; or give a YAML file"
        )
    return parse_yaml(text, recipe)


def derived(tree: dict[str, Any], source: str) -> dict[str, Any]:
    """The tree of a file that names another `recipe` and what it `set`s of it, by dotted path."""
    base, changes = tree["recipe"], tree.get("set", {})
    if tree.keys() - {"recipe", "set"} or not isinstance(changes, dict):
        raise UserError(f"{source}: a recipe that starts from another has `recipe` and `set` only")
    if base not in recipes() or base == recipe_name(source):
        raise UserError(f"{source}: recipe: {base}: there are {', '.join(recipes())}")
    start = load(base).plain()
    for path, value in changes.items():
        put(start, str(path), value, f"{source}: set")
        refuse_moved(start, f"{source}: set")
    return start


def refuse_moved(tree: dict[str, Any], source: str) -> None:
    """Raises `UserError` for a key of an earlier fmoe, with its path of today."""
    told = format_1.moved(tree)
    if told is not None:
        raise UserError(f"{source}: {told}")


def read_text(path: Path) -> str:
    """A YAML file's text. Raises `UserError`, for a pipe or a file that is too long as well."""
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: is no regular file")
        if path.stat().st_size > LARGEST_YAML:
            raise UserError(f"{path}: too long (at most {LARGEST_YAML} bytes are read)")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable ({first_line(error)})") from None


def parse_yaml(text: str, source: str) -> dict[str, Any]:
    try:
        tree = documents.parse_yaml(text)
    except NotRead as error:
        raise UserError(f"{source}: {error}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{source}: expected keys such as data, experts, gate, joint")
    return tree


def parse_override(override: str) -> tuple[str, Any]:
    """`path=value` -> the dotted path, and the value as YAML reads it. Raises `UserError`."""
    path, equals, text = override.partition("=")
    if not equals:
        raise UserError(f"--set {override}: expected path=value, such as joint.epochs=3")
    try:
        value = documents.parse_yaml(text)
    except NotRead as error:
        raise UserError(f"--set {override[:300]}: the value is {error}") from None
    return path.strip(), value


def put(tree: dict[str, Any], path: str, value: Any, source: str) -> None:
    """Sets the value at a dotted path, in place; list items are numbers, as joint.attack.of.1.eps.

    Another `kind` keeps of its neighbours those that it knows. Raises `UserError`, which starts
    with `source`, where the path cannot be one.
    """
    keys = path.split(".")
    if not all(keys):
        raise UserError(f"{source}: expected path=value, such as joint.epochs=3")
    at: Any = tree
    for key in keys[:-1]:
        if isinstance(at, list):
            at = at[_index(at, key, source)]
        else:
            if not isinstance(at.get(key), dict | list):
                at[key] = {}
            at = at[key]
        if not isinstance(at, dict | list):
            raise UserError(f"{source}: {key} has no keys below it")
    if isinstance(at, list):
        at[_index(at, keys[-1], source)] = value
        return
    if keys[-1] == "kind" and isinstance(value, str):
        known = kinds(Config, tree, keys[:-1])
        for key in at.keys() - known[value].model_fields.keys() if value in known else ():
            del at[key]
    at[keys[-1]] = value


def get(tree: Any, path: str) -> Any:
    """The value at a dotted path. Raises `KeyError` where there is none."""
    for key in path.split("."):
        if isinstance(tree, list) and (at := index(tree, key)) is not None:
            tree = tree[at]
        elif isinstance(tree, dict):
            tree = tree[key]
        else:
            raise KeyError(path)
    return tree


def _index(at: list[Any], key: str, source: str) -> int:
    if (place := index(at, key)) is None:
        raise UserError(f"{source}: {key:.20} is no index of a list of {len(at)}")
    return place


def validate(tree: dict[str, Any], source: str) -> Config:
    """A checked `Config`; whether its data set is here is asked by who reads it.

    Raises `UserError` naming each faulty key's path.
    """
    refuse_moved(tree, source)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"{source}: {faults(error, tree)}") from None
