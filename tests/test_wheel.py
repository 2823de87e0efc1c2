"""What is installed is whole: sdist and wheel, and the wheel's commands outside of the checkout."""

from __future__ import annotations

import json
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

import pytest
import torch
from PIL import Image

import fmoe
from fmoe import data
from fmoe.version import VERSION
from tests import built
from tests.built import BESIDE, BUILT_FROM, PACKAGES, ROOT, Installed

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
    return built.wheel(built.copied(tmp_path_factory.mktemp("wheel") / "source", BUILT_FROM))


@pytest.fixture(scope="module")
def unpacked_sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    file = built.sdist(built.copied(folder / "source", (*BUILT_FROM, *BESIDE)))
    assert file.name == f"fmoe-{VERSION}.tar.gz"
    with tarfile.open(file) as packed:
        packed.extractall(folder, filter="data")
    return folder / f"fmoe-{VERSION}"


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return built.installed(wheel, tmp_path_factory.mktemp("installed"))


def contents(wheel: Path) -> dict[str, int]:
    """The check sum of each file."""
    with zipfile.ZipFile(wheel) as packed:
        return {entry.filename: entry.CRC for entry in packed.infolist()}


def files(folder: Path, *names: str) -> set[PurePosixPath]:
    """All that stand in `folder` under these names, as paths from there."""
    roots = [folder / name for name in names]
    below = [path for root in roots for path in (root.rglob("*") if root.is_dir() else [root])]
    return {
        PurePosixPath(path.relative_to(folder))
        for path in below
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_every_data_file_is_in_it(wheel: Path) -> None:
    for package in PACKAGES:
        there = {
            path.relative_to(ROOT).as_posix()
            for pattern in DATA
            for path in (ROOT / package).rglob(pattern)
        }
        assert there
        assert there <= contents(wheel).keys()


def test_the_sdist_is_the_project(unpacked_sdist: Path) -> None:
    """Its tests can be run, and the image built, from it."""
    there = files(unpacked_sdist, *(path.name for path in unpacked_sdist.iterdir()))
    made = {path for path in there if path.parts[0] in ("PKG-INFO", "setup.cfg", "fmoe.egg-info")}
    assert there - made == files(ROOT, *BUILT_FROM, *BESIDE)


def test_a_wheel_of_the_sdist_is_that_of_the_checkout(unpacked_sdist: Path, wheel: Path) -> None:
    assert contents(built.wheel(unpacked_sdist)) == contents(wheel)


def test_the_image_copies_what_a_wheel_is_made_of() -> None:
    copies = [
        line.split()[2:-1]
        for line in (ROOT / "Dockerfile").read_text().splitlines()
        if line.startswith("COPY ") and "/home/ray/source" in line
    ]
    assert {name for names in copies for name in names} == {*BUILT_FROM}


def test_recipes_spaces_and_templates_load_from_it_alone(installed: Installed) -> None:
    done = installed.run("python", "-c", PROBE)
    assert done.returncode == 0, done.stderr
    *modules, recipes, spaces = done.stdout.splitlines()
    assert all(Path(file).is_relative_to(installed.packages) for file in modules), modules
    assert len(modules) == 3
    for names, folder in ((recipes, "fmoe/recipes"), (spaces, "tune_spaces")):
        assert names.split() == sorted(file.stem for file in (ROOT / folder).glob("*.yaml"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["nonesuch"],
            "fmoe: unknown space 'nonesuch': there are cifar10, cifar10-small, "
            "cifar10-small-branched, digits",
        ),
        (["digits", "--set", "no.such=1"], "fmoe: digits: unknown key no (allowed:"),
    ],
)
def test_its_command_knows_spaces_by_name(
    installed: Installed, arguments: list[str], said: str
) -> None:
    done = installed.run("fmoe", "tune", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(said)


def test_its_command_helps_and_names_its_version(installed: Installed) -> None:
    helped = installed.run("fmoe", "--help")
    assert helped.returncode == 0
    assert "predict" in helped.stdout
    assert installed.run("fmoe", "--version").stdout == f"fmoe {VERSION}\n"


def test_its_command_reads_data(installed: Installed) -> None:
    done = installed.run("fmoe", "data", "show", "digits", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["digest"] == data.load("digits").digest
    assert (installed.folder / "digits.png").is_file()


def test_its_command_predicts(installed: Installed, tmp_path: Path) -> None:
    """With a model folder of version 0.1.0."""
    pixels = torch.linspace(0, 255, 64).view(8, 8).to(torch.uint8).numpy()
    Image.fromarray(pixels).save(tmp_path / "a.png")
    model = ROOT / "tests" / "format_1"
    done = installed.run("fmoe", "predict", model, tmp_path / "a.png", "--json")
    assert done.returncode == 0, done.stderr
    (answer,) = json.loads(done.stdout)["predictions"]
    with torch.no_grad():
        probabilities = fmoe.load(str(model))(torch.from_numpy(pixels)[None, None] / 255).exp()[0]
    assert answer["label"] == str(probabilities.argmax().item())
    assert answer["probability"] == pytest.approx(probabilities.max().item())
