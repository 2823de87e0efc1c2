"""The frozen configuration tree, and recipes as users write them."""

from fmoe.config.recipes import (
    get,
    load,
    parse_yaml,
    put,
    read_text,
    recipe_name,
    recipes,
    validate,
)
from fmoe.config.tree import (
    HOW,
    ORIGIN,
    Config,
    Evaluate,
    Experts,
    Joint,
    Member,
    Parallel,
    Phase,
    Role,
    Update,
    fingerprint,
)

__all__ = [
    "HOW",
    "ORIGIN",
    "Config",
    "Evaluate",
    "Experts",
    "Joint",
    "Member",
    "Parallel",
    "Phase",
    "Role",
    "Update",
    "fingerprint",
    "get",
    "load",
    "parse_yaml",
    "put",
    "read_text",
    "recipe_name",
    "recipes",
    "validate",
]
