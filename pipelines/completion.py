"""What a shell offers where a recipe or a space is asked for: nothing heavy is imported for it."""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from pathlib import Path


def of_package(package: str, folder: str = "") -> Callable[[str], list[str]]:
    """Names of the packaged YAML files, and YAML files below the working directory."""

    def offered(incomplete: str) -> list[str]:
        place = resources.files(package) / folder if folder else resources.files(package)
        names = [file.name[:-5] for file in place.iterdir() if file.name.endswith(".yaml")]
        at = Path(incomplete).parent
        if at.is_dir():
            names += [str(file) for file in at.iterdir() if file.suffix in (".yaml", ".yml")]
        return sorted(name for name in names if name.startswith(incomplete))

    return offered


recipes = of_package("fmoe", "recipes")
spaces = of_package("tune_spaces")


def both(incomplete: str) -> list[str]:
    return sorted({*recipes(incomplete), *spaces(incomplete)})
