"""`fmoe studies`: what studies there are and what they found."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.options import Json, Port
from pipelines.output import figures, result, say

app: typer.Typer = typer.Typer(help="Studies: list, show, best, dashboard.", no_args_is_help=True)
Storage = Annotated[
    str | None, typer.Option(envvar="FMOE_STORAGE", help="Folder or URI that holds the studies.")
]
Name = Annotated[str, typer.Argument(help="As `fmoe studies list` shows it.")]


@app.callback()
def _group() -> None:
    """Studies of `fmoe tune`."""


@app.command("list")
def list_studies(storage: Storage = None, json: Json = False) -> None:
    """Every study, its trials and its best figure.

    \b
    fmoe studies list
    fmoe studies list --storage s3://bucket/fmoe --json
    """
    from pipelines.study.files import StudyFiles, studies

    with result(json) as answer:
        summaries = [StudyFiles(folder).summary() for folder in studies(storage)]
        answer["studies"] = summaries
        say(json, *(f"{s['study']:<28} {counted(s)}  {s['best_line']}" for s in summaries))
        if not summaries:
            say(json, "no studies; start with `fmoe tune digits`")


@app.command()
def show(name: Name, storage: Storage = None, json: Json = False) -> None:
    """A study's trials, best first.

    \b
    fmoe studies show digits-1a2b3c4d
    """
    from pipelines.study.files import StudyFiles, find

    with result(json) as answer:
        files = StudyFiles(find(name, storage))
        answer |= files.summary() | {"trials": files.trials()}
        say(json, f"{answer['study']}  {counted(answer)}  {answer['study_dir']}")
        for trial in answer["trials"]:
            scores = "  ".join(f"{k} {v:.4f}" for k, v in (trial["metrics"] or {}).items())
            values = " ".join(f"{k}={v}" for k, v in trial["values"].items())
            say(
                json,
                f"{trial['trial']:>4}  {trial['status']:<8} {trial['epochs']:>3} epochs  "
                f"{scores}  {trial['error'] or values or 'as the recipe'}",
            )


@app.command()
def best(name: Name, storage: Storage = None, json: Json = False) -> None:
    """A finished study's winner: settings, figures, registered model.

    \b
    fmoe studies best digits-1a2b3c4d --json
    """
    from pipelines.study.files import StudyFiles, find

    with result(json) as answer:
        study = StudyFiles(find(name, storage)).result()
        answer |= {"study": study["study"], **study["best"]}
        values = " ".join(f"{k}={v}" for k, v in answer["values"].items())
        say(
            json,
            f"trial  {answer['trial']}: {values or 'the recipe as it is'}",
            f"val    {figures(answer['metrics']['validation'])}",
            f"test   {figures(answer['metrics']['test'])}",
            f"model  {answer['model_uri']}",
        )


@app.command()
def dashboard(
    name: Name,
    port: Port = 8080,
    to: Annotated[
        Path | None,
        typer.Option(help="Write it to this SQLite file of Optuna's instead, and serve nothing."),
    ] = None,
    storage: Storage = None,
) -> None:
    """Show a study in Optuna's dashboard, on 127.0.0.1 alone, until Ctrl-C.

    It is a copy: what is done there changes nothing here. Needs `pip install 'fmoe[dashboard]'`.

    \b
    fmoe studies dashboard digits-1a2b3c4d
    fmoe studies dashboard digits-1a2b3c4d --to study.db
    """
    from pipelines.serving import pages_of_study, written
    from pipelines.study.files import StudyFiles, find

    study = StudyFiles(find(name, storage))
    if to is None:
        pages_of_study(study, port)
    else:
        written(study, to)


def counted(summary: dict[str, Any]) -> str:
    counts = ", ".join(f"{count} {status}" for status, count in summary["counts"].items() if count)
    return f"{counts or 'no trials'}{'' if summary['finished'] else ' (not finished)'}"


if __name__ == "__main__":
    from pipelines.entry import alone

    alone("studies", app)
