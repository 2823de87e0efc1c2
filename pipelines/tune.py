"""`fmoe tune`: a study over a recipe's settings; the best trial is tested and registered."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from pipelines import completion
from pipelines.options import DataDir, DryRun, Json, Overrides, asked
from pipelines.output import figures, result, say


def tune(
    space: Annotated[
        str, typer.Argument(help="A packaged space or a file.", autocompletion=completion.spaces)
    ],
    overrides: Overrides = None,
    trials: Annotated[int | None, typer.Option(min=1, help="How many, at most.")] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0.1, help="Start no trial and stop those under way after.")
    ] = None,
    workers: Annotated[
        int, typer.Option("--workers-per-trial", min=1, help="Ray Train workers of each trial.")
    ] = 1,
    gpus: Annotated[
        float | None,
        typer.Option(
            "--gpus-per-worker", min=0, help="May be a fraction; by default 1 where there are any."
        ),
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(metavar="KIND", help="Instead of the space's own, such as asha or fifo."),
    ] = None,
    searcher: Annotated[
        str | None,
        typer.Option(metavar="KIND", help="Instead of the space's own, such as tpe or random."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="By default from the space's settings.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the study that was interrupted.")
    ] = False,
    storage: Annotated[
        str | None,
        typer.Option(envvar="FMOE_STORAGE", help="Folder or URI for studies and experts."),
    ] = None,
    expert_store: Annotated[
        str | None, typer.Option(help="Folder or URI of the expert store.")
    ] = None,
    register_as: Annotated[
        str | None, typer.Option(help="Registered model; by default fmoe-<data>.")
    ] = None,
    data_dir: DataDir = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Search a space of settings; test and register the best mixture.

    Trials are judged on validation images; the best few again under stronger attacks; the winner
    alone sees the test images. Trials share their experts. --resume goes on after anything.

    \b
    fmoe tune digits --trials 12
    fmoe tune cifar10-small --trials 40 --data-dir ~/data
    fmoe tune cifar10 --workers-per-trial 4 --minutes 600
    fmoe tune cifar10 --gpus-per-worker 0.5 --scheduler fifo --searcher random
    fmoe tune digits --trials 12 --resume
    fmoe tune cifar10 --workers-per-trial 4 --dry-run
    """
    given = dict(locals())
    from fmoe.on_ray import reach

    reach.check()
    from fmoe.tuning import search_space

    search_space.written(space)  # a mistake is told before Ray and MLflow are imported
    from pipelines.study.run import Request, run

    request = asked(Request, given, besides=["dry_run", "json"])
    if dry_run:
        from pipelines import preview

        with result(json) as answer:
            answer |= preview.of_study(request)
        say(json, *preview.told(answer))
        return
    with result(json) as answer:
        answer |= run(request)
    best = answer["best"]
    counts = ", ".join(f"{count} {status}" for status, count in answer["counts"].items() if count)
    say(
        json,
        f"study  {answer['study']}: {counts}",
        f"best   trial {best['trial']}: {settings_line(best['values'])}",
        f"val    {figures(best['metrics']['validation'])}",
        f"test   {figures(best['metrics']['test'])}",
        f"model  {best['model_uri']}",
    )


def settings_line(values: dict[str, Any]) -> str:
    return " ".join(f"{path}={value}" for path, value in values.items()) or "the recipe as it is"


if __name__ == "__main__":
    from pipelines.entry import alone

    alone("tune", tune)
