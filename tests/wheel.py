"""The wheel, built from a copy of the sources, since building writes into their folder."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("fmoe", "pipelines", "tune_spaces")


def built(source: Path) -> Path:
    """The wheel's file, in `source`, which is made."""
    source.mkdir(parents=True, exist_ok=True)
    for package in PACKAGES:
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, source / package, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*command, "--no-deps", "--no-build-isolation", "--wheel-dir", "dist", "."],
        cwd=source,
        check=True,
    )
    (file,) = (source / "dist").glob("fmoe-*.whl")
    return file
