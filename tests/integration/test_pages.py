"""Every block of README.md and docs/ that can be run here, as it stands there, in one folder.

Pages come in the order of the site: the model that the tour trains serves the guides after it.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import fmoe as library
from tests import pages
from tests.integration.conftest import Outcome
from tests.pages import Block, Command

Fmoe = Callable[..., Outcome]
PAGES = [page for page in pages.in_order() if any(block.to_run for block in pages.blocks(page))]


@pytest.fixture(scope="module")
def place(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which all pages are run, with an FMOE_HOME beside it."""
    folder = tmp_path_factory.mktemp("pages")
    (folder / "work").mkdir()
    return folder / "work"


@pytest.fixture
def typed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FMOE_HOME", str(place.parent / "home"))
    monkeypatch.syspath_prepend(str(place))
    monkeypatch.chdir(place)


@dataclass
class Here:
    """Commands of fmoe run in this process, so that they find the Ray cluster running."""

    fmoe: Fmoe

    def console(self, command: Command) -> None:
        if command.words[0] == "fmoe" and not set("|&;<>") & set(command.line):
            done = self.fmoe(*command.words[1:])
        else:
            ran = subprocess.run(
                ["bash", "-c", command.line],
                env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            done = Outcome(ran.returncode, ran.stdout, ran.stderr)
        assert done.code == 0, f"{command.where}: {command.line}\n{done.err[-2000:]}"
        missing = command.missing(done.out)
        assert missing is None, f"{command.where}: no line {missing!r} in\n{done.out}"

    def python(self, block: Block) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(block.text, block.where, "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("page", PAGES, ids=pages.named)
def test_blocks_of(page: Path, place: Path, fmoe: Fmoe, typed: None) -> None:
    pages.play(page, place, Here(fmoe))


def test_what_the_tour_left(place: Path, typed: None) -> None:
    card = json.loads(Path("model/model.json").read_text())
    assert (card["input_shape"], len(card["classes"])) == ([1, 8, 8], 10)
    report = json.loads(Path("page/evaluation.json").read_text())
    assert report["images"] == 40
    assert 0.3 < report["worst_case"] <= report["robust"]["pgd"] <= report["clean"]
    assert report["clean"] > 0.9
    assert len(list(Path("scans").glob("*.png"))) == 8


def test_what_the_guide_to_own_images_left(place: Path, fmoe: Fmoe, typed: None) -> None:
    classes = ["disc", "ring", "stripes"]
    assert Path("shapes.png").exists()
    assert "<td>stripes</td>" in Path("shapes-page/index.html").read_text()
    report = json.loads(Path("shapes-page/evaluation.json").read_text())
    assert (report["norm"], report["images"], [*report["by_class"]]) == ("linf", 20, classes)
    assert report["worst_case"] <= report["robust"]["pgd"] <= report["clean"]
    assert report["clean"] > 0.6
    card = json.loads(Path("shapes-model/model.json").read_text())
    assert (card["classes"], card["input_shape"]) == (classes, [3, 40, 48])
    assert card["data"]["images"] == {"train": 210, "val": 30, "test": 60}
    predicted = fmoe("predict", "shapes-model", "shapes/ring/7.png").out
    assert re.search(r"7\.png: (disc|ring|stripes) ", predicted)


def test_a_pulled_model_stands_without_its_data(place: Path, fmoe: Fmoe, typed: None) -> None:
    shutil.rmtree(place.parent / "home" / "data" / "shapes")
    assert library.load("shapes-model").experts
    gone = fmoe("evaluate", "shapes-model")
    assert gone.code == 2
    assert "unknown data set 'shapes' (there are: digits, " in gone.err
