"""The project as others get it: sdist, wheel, and the wheel in a virtual environment of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("fmoe", "pipelines", "tune_spaces")
BUILT_FROM = ("pyproject.toml", "README.md", "LICENSE", *PACKAGES)
"""What a wheel is made of; the Dockerfile copies the same."""
BESIDE = (
    "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "Dockerfile", "MANIFEST.in", "Makefile",
    "benchmarks", "cluster.yaml", "constraints.txt", "docs", "notebooks",
    "sky.yaml", "tests",
)  # fmt: skip
"""What is in the sdist beyond that."""


def copied(folder: Path, names: tuple[str, ...]) -> Path:
    """The folder, with a copy of what is named: building writes into the sources' folder."""
    folder.mkdir(parents=True)
    for name in names:
        if (ROOT / name).is_dir():
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, folder / name, ignore=ignore)
        else:
            shutil.copy(ROOT / name, folder)
    return folder


def sdist(source: Path) -> Path:
    """Made by the backend itself."""
    build = "from setuptools import build_meta as b; b.build_sdist('dist')"
    done = subprocess.run(
        [sys.executable, "-c", build], cwd=source, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (file,) = (source / "dist").glob("fmoe-*.tar.gz")
    return file


def wheel(source: Path) -> Path:
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*command, "--no-deps", "--no-build-isolation", "--wheel-dir", "wheels", "."],
        cwd=source,
        check=True,
    )
    (file,) = (source / "wheels").glob("fmoe-*.whl")
    return file


@dataclass(frozen=True)
class Installed:
    """A virtual environment with the wheel, and an empty folder to work in."""

    environment: Path
    folder: Path

    @property
    def packages(self) -> Path:
        (folder,) = self.environment.glob("lib/python*/site-packages")
        return folder

    def run(self, program: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """A program of the environment, in the folder."""
        outer = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return subprocess.run(
            [self.environment / "bin" / program, *arguments],
            cwd=self.folder,
            env={**outer, "FMOE_HOME": str(self.environment / "home")},
            capture_output=True,
            text=True,
            check=False,
        )


def installed(file: Path, folder: Path) -> Installed:
    """The wheel by pip, without its dependencies, which are 5 GB: those are this environment's,
    by paths that are looked at after the wheel's own. An editable install is not among them, since
    Python reads that one's .pth file in a site folder alone."""
    environment = folder / "environment"
    venv.create(environment, symlinks=True)
    pip = [sys.executable, "-m", "pip", "--python", str(environment / "bin" / "python")]
    subprocess.run(
        [*pip, "install", "--quiet", "--disable-pip-version-check", "--no-deps", file], check=True
    )
    there = Installed(environment, folder / "elsewhere")
    there.folder.mkdir()
    paths = [path for path in sys.path if path.endswith("-packages")]
    (there.packages / "dependencies.pth").write_text("\n".join(paths))
    return there
