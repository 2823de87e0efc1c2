"""What is installed is whole: the wheel alone, in another folder, without the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.wheel import PACKAGES, ROOT, built

DATA = ("*.yaml", "*.json", "*.html", "py.typed", "README.md")
PROBE = """
import fmoe, pipelines.judging.reporting, tune_spaces
from fmoe import config
from fmoe.tuning import search_space
print(fmoe.__file__, pipelines.judging.reporting.__file__, tune_spaces.__file__, sep="\\n")
for name in config.recipes():
    config.load(name)
for name in search_space.spaces():
    search_space.load(name)
for name in ("page.html", "report.html", "comparison.html", "figures.html"):
    pipelines.judging.reporting.template(name)
print(*config.recipes())
print(*search_space.spaces())
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unpacked."""
    source = tmp_path_factory.mktemp("source")
    with zipfile.ZipFile(built(source)) as packed:
        packed.extractall(source / "unpacked")
    return source / "unpacked"


def test_every_data_file_is_in_it(wheel: Path) -> None:
    for package in PACKAGES:
        there = {
            path.relative_to(ROOT) for pattern in DATA for path in (ROOT / package).rglob(pattern)
        }
        assert there
        assert {path for path in there if not (wheel / path).is_file()} == set()


def run(wheel: Path, folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(wheel)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 2), done.stderr
    return done.stdout + done.stderr


def test_recipes_spaces_and_templates_load_from_it_alone(wheel: Path, tmp_path: Path) -> None:
    *files, recipes, spaces = run(wheel, tmp_path, "-c", PROBE).splitlines()
    assert all(Path(file).is_relative_to(wheel) for file in files), files
    assert len(files) == 3
    for names, folder in ((recipes, "fmoe/recipes"), (spaces, "tune_spaces")):
        assert names.split() == sorted(file.stem for file in (ROOT / folder).glob("*.yaml"))


def test_its_command_knows_spaces_by_name(wheel: Path, tmp_path: Path) -> None:
    said = run(wheel, tmp_path, "-m", "pipelines.cli", "tune", "nonesuch")
    assert said.startswith(
        "fmoe: unknown space 'nonesuch': there are cifar10, cifar10-small, "
        "cifar10-small-branched, digits"
    )
    said = run(wheel, tmp_path, "-m", "pipelines.cli", "tune", "digits", "--set", "no.such=1")
    assert said.startswith("fmoe: digits: unknown key no (allowed:")
