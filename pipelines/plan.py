"""`fmoe plan`: what a run or a study takes, before it is started."""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines import completion
from pipelines.options import DataDir, Json, Overrides, asked
from pipelines.output import result, say


def plan(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE|SPACE",
            help="As `fmoe train` or `fmoe tune` take it.",
            autocompletion=completion.both,
        ),
    ],
    gpus: Annotated[int, typer.Option(min=1, help="Workers, of one GPU each (or CPUs).")] = 1,
    gpu_type: Annotated[
        str, typer.Option(help="a100, h100, l4, t4, or cpu: this machine.")
    ] = "a100",
    link: Annotated[
        str, typer.Option(help="Between two workers, as 100mbit or 10gbit.")
    ] = "10gbit",
    price: Annotated[
        float | None, typer.Option(min=0, help="Of a worker an hour, in any currency.")
    ] = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Time a step on this machine, and scale by it.")
    ] = False,
    study: Annotated[
        bool, typer.Option("--study", help="A name that is both is the space, not the recipe.")
    ] = False,
    workers_per_trial: Annotated[int, typer.Option(min=1, help="Of a study.")] = 1,
    overrides: Overrides = None,
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """Plan a run or a study: hours, memory, traffic, the best `parallel`, the price.

    Nothing is trained and no image is read. What a GPU reaches of its peak is an assumption, which
    --calibrate replaces by what this machine reaches of its own.

    \b
    fmoe plan cifar10 --gpus 8 --gpu-type a100 --price 2.5
    fmoe plan cifar10 --gpus 8 --gpu-type l4 --link 1gbit
    fmoe plan cifar10-small --gpus 2 --gpu-type cpu --calibrate
    fmoe plan cifar10 --study --gpus 16 --workers-per-trial 4
    """
    given = dict(locals())
    from pipelines.planning import Request, planned, table

    request = asked(Request, given, besides=["json"])
    with result(json) as answer:
        answer |= planned(request)
    say(json, *table(answer))


if __name__ == "__main__":
    from pipelines.entry import alone

    alone("plan", plan)
