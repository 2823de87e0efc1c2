"""docs/own-problem.md: its very lines, from drawn images to a comparison."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import fmoe as library
from tests.integration.conftest import Outcome

PAGE = Path(__file__).parents[2] / "docs" / "own-problem.md"
CLASSES = ["disc", "ring", "stripes"]
BLOCK = re.compile(r"```(python|console)\n(.*?)```", re.DOTALL)


def test_the_tour_runs_as_it_is_written(
    fmoe: Callable[..., Outcome],
    ray_session: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FMOE_HOME", str(tmp_path / "home"))
    run = []
    for kind, text in BLOCK.findall(PAGE.read_text()):
        if kind == "python":
            first = text.splitlines()[0]
            if first.startswith("# "):  # a file of that name
                Path(first.removeprefix("# ")).write_text(text)
            else:
                exec(compile(text, str(PAGE), "exec"), {})
            continue
        for line in text.splitlines():
            command = shlex.split(line.removeprefix("$ fmoe "))
            done = fmoe(*command)
            assert done.code == 0, (line, done.err)
            run.append((command[:2], done.out))
    names = [command[0] for command, _ in run]
    assert names == [
        *("data", "data", "train", "evaluate", "pull", "predict"),
        *("data", "train", "evaluate", "compare"),
    ]
    (predicted,) = (out for command, out in run if command[0] == "predict")
    assert re.search(r"7\.png: (disc|ring|stripes) ", predicted)
    assert (tmp_path / "shapes.png").exists()
    assert "<td>stripes</td>" in (tmp_path / "page" / "index.html").read_text()
    report = json.loads((tmp_path / "page" / "evaluation.json").read_text())
    assert (report["norm"], report["images"], [*report["by_class"]]) == ("linf", 20, CLASSES)
    assert report["worst_case"] <= report["robust"]["autoattack"] <= report["clean"]
    assert report["clean"] > 0.6
    card = json.loads((tmp_path / "model" / "model.json").read_text())
    assert (card["classes"], card["input_shape"]) == (CLASSES, [3, 40, 48])
    assert card["data"]["images"] == {"train": 210, "val": 30, "test": 60}
    # the model stands without the set that it was trained on
    shutil.rmtree(tmp_path / "home" / "data" / "shapes")
    assert library.load(str(tmp_path / "model")).experts
    gone = fmoe("evaluate", tmp_path / "model")
    assert gone.code == 2
    assert "unknown data set 'shapes' (there are: digits, " in gone.err
