"""A command is added by a file and its line in `COMMANDS`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fmoe import assembly, model_folder
from fmoe.config import Config
from fmoe.storage.folder import Folder
from pipelines import cli
from pipelines.entry import application, mount, run
from tests.extending.document import section

count = section("A command").count


def typed(*arguments: str) -> object:
    """Its exit code, beside all commands that are there."""
    app = application()
    for name, command in {**cli.COMMANDS, "count": count}.items():
        mount(app, name, command)
    with pytest.raises(SystemExit) as ended:
        run(app, arguments)
    return ended.value.code


def test_it_answers_people_and_scripts(
    small: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = assembly.seeded_mixture(small).state_dict()
    model_folder.save_model(Folder.at(tmp_path), state, small, data_digest="abc", metrics={})
    wanted = sum(p.numel() for p in assembly.seeded_mixture(small).parameters())
    assert typed("count", str(tmp_path)) == 0
    assert capsys.readouterr().out == f"parameters {wanted:,}\n"
    assert typed("count", str(tmp_path), "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"parameters": wanted}


def test_help_names_it_with_its_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert typed("--help") == 0
    assert "count" in capsys.readouterr().out
    assert typed("count", "--help") == 0
    assert "fmoe count models:/fmoe-digits@candidate" in capsys.readouterr().out


def test_a_mistake_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert typed("count", "nonesuch") == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("fmoe: ")
