"""To add an option to a command: the option, and a field of its request of the same name."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Annotated, Any, get_args, get_type_hints

import pytest
import typer
from typer.testing import CliRunner

from fmoe.on_ray.workers import Workers
from pipelines import compare, evaluate, train, tune
from pipelines.judging import run as judging
from pipelines.options import Json, WorkerRange, asked
from pipelines.study import run as study_run
from pipelines.training import run as training_run

ASKED: dict[str, tuple[Callable[..., None], type, set[str]]] = {
    "train": (train.train, training_run.Request, {"dry_run", "json"}),
    "tune": (tune.tune, study_run.Request, {"dry_run", "json"}),
    "evaluate": (
        evaluate.evaluate,
        judging.Request,
        {"model", "report", "robustbench_json", "json"},
    ),
    "compare": (compare.compare, judging.Request, {"models", "report", "json"}),
}
"""Each command's function, its request, and what is for the command alone."""


@dataclass(frozen=True)
class WithNote(training_run.Request):
    note: str = "none"


def test_an_option_that_is_added_arrives() -> None:
    app, given = typer.Typer(), []

    @app.command()
    def command(
        recipe: str,
        note: Annotated[str | None, typer.Option()] = None,
        workers: WorkerRange = Workers(1, 1),
        json: Json = False,
    ) -> None:
        given.append(asked(WithNote, dict(locals()), besides=["json", "given"]))

    for arguments in (["digits", "--note", "mine", "--workers", "1..4"], ["digits"]):
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, done.exception
    assert given == [
        WithNote("digits", workers=Workers(1, 4), note="mine"),
        WithNote("digits", workers=Workers(1, 1), note="none"),
    ]


def test_an_option_without_a_field_is_not_dropped_in_silence() -> None:
    with pytest.raises(AssertionError, match=r"training\.run\.Request has no field for \['note'\]"):
        asked(training_run.Request, {"recipe": "digits", "note": "mine"})


@pytest.mark.parametrize("name", ASKED)
def test_every_option_has_a_field_of_its_type(name: str) -> None:
    command, request, own = ASKED[name]
    options, wanted = get_type_hints(command), get_type_hints(request)
    del options["return"]
    taken = {field.name for field in fields(request)}
    assert options.keys() == taken | own
    for option in taken - {"overrides"}:  # a list of --set
        assert options[option] == wanted[option], option
    assert str in get_args(wanted.get("overrides", list[str]))


def test_what_is_typed_is_what_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def run(request: Any) -> dict[str, Any]:
        seen.append(request)
        raise SystemExit(0)

    monkeypatch.setattr(study_run, "run", run)
    from pipelines.cli import app

    line = ["tune", "digits", "--set", "seed=1", "--trials", "3", "--minutes", "2", "--resume"]
    CliRunner().invoke(app, [*line, "--workers-per-trial", "2", "--searcher", "grid"])
    assert seen == [
        study_run.Request(
            "digits",
            overrides=["seed=1"],
            trials=3,
            minutes=2.0,
            resume=True,
            workers=2,
            searcher="grid",
        )
    ]
    assert seen[0].budget == {"trials": 3, "minutes": 2.0}
    assert json.dumps(study_run.Request("digits").budget) == "{}"
