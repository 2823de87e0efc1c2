"""`fmoe train`: pool -> joint -> evaluate -> register, resumable at every step."""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines import completion
from pipelines.options import DataDir, DryRun, Gpu, Json, Overrides, WorkerRange, asked
from pipelines.output import figures, result, say


def train(
    recipe: Annotated[
        str, typer.Argument(help="A packaged recipe or a file.", autocompletion=completion.recipes)
    ],
    overrides: Overrides = None,
    workers: WorkerRange = None,
    name: Annotated[str | None, typer.Option(help="Run name; the same name resumes.")] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            envvar="FMOE_STORAGE", help="Folder or URI for runs and experts (s3://, gs://)."
        ),
    ] = None,
    expert_store: Annotated[
        str | None, typer.Option(help="Folder or URI of the expert store.")
    ] = None,
    register_as: Annotated[
        str | None, typer.Option(help="Registered model; by default fmoe-<data>.")
    ] = None,
    data_dir: DataDir = None,
    gpu: Gpu = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Train a mixture: pre-train its experts, train jointly, evaluate, register.

    The same command again resumes an unfinished run.

    \b
    fmoe train digits --workers 2
    fmoe train cifar10-small --data-dir ~/data --workers 2
    fmoe train cifar10 --workers 8 --storage s3://bucket/fmoe --set seed=1
    fmoe train cifar10 --workers 1..4 --gpu     # elastic: goes on with what is there
    fmoe train cifar10 --workers 4 --set parallel.expert=2   # two hold the experts together
    fmoe train cifar10 --workers 4 --dry-run    # the plan; nothing is started
    fmoe train digits --set gate.temperature=2 --set experts.roles.pgd.count=2
    """
    given = dict(locals())
    from fmoe.on_ray import reach

    reach.check()
    from fmoe import config

    config.load(recipe, overrides or ())  # a mistake is told before Ray and MLflow are imported
    from pipelines.training.run import Request, run

    request = asked(Request, given, besides=["dry_run", "json"])
    if dry_run:
        from pipelines import preview

        with result(json) as answer:
            answer |= preview.of_run(request)
        say(json, *preview.told(answer))
        return
    with result(json) as answer:
        answer |= run(request)
    say(
        json,
        f"run    {answer['run_dir']}",
        f"test   {figures(answer['test'])}  "
        f"({answer['images']} images, {answer.get('norm', 'linf')} eps {answer['eps']:.5f})",
        f"model  {answer['model_uri']}",
    )


if __name__ == "__main__":
    from pipelines.entry import alone

    alone("train", train)
