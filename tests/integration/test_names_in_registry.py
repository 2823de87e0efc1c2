"""Registered models of any name, and of tags that fmoe did not write, are listed as text."""

from __future__ import annotations

import json

import pytest

from fmoe import tracking
from fmoe.errors import plain
from pipelines.cli import main

NAMES = ("it's", 'a "b"', "both ' and \"", "x' or name like '%", "\x1b[2J[red]", "100% `x`")


def ended(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert isinstance(end.value.code, int)
    return end.value.code


def register(name: str, tags: dict[str, str]) -> None:
    store = tracking.client()
    store.create_registered_model(name)
    store.create_model_version(name, "file:///nowhere", tags={"fmoe.sha256": "0" * 64, **tags})


def test_models_of_any_name_are_listed_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    for name in NAMES:
        register(name, {})
    assert ended("models", "list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[:28].rstrip() for line in lines] == [plain(name) for name in sorted(NAMES)]
    assert all(" 1 versions" in line for line in lines)
    for name in NAMES:
        assert ended("models", "show", name, "--json") == 0
        answer = json.loads(capsys.readouterr().out)
        assert (answer["name"], len(answer["versions"])) == (name, 1)


TAGS = (
    {"fmoe.test_clean": "\x1b[31mx"},
    {"fmoe.eval.worst_case": "x", "fmoe.eval.clean": "0.5"},
    {"fmoe.eval.worst_case": "0.5"},
    {"fmoe.eval.worst_case": "0.5", "fmoe.eval.clean": "0.5", "fmoe.eval.flags": "[" * 4000},
    {"fmoe.eval.worst_case": "0.5", "fmoe.eval.clean": "0.5", "fmoe.eval.flags": "3"},
)


def test_tags_that_fmoe_did_not_write_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    for place, tags in enumerate(TAGS):
        register(f"m{place}", tags)
        assert ended("models", "show", f"m{place}") == 0
        (line,) = capsys.readouterr().out.splitlines()
        assert line.endswith("(tags that fmoe did not write)")
