"""`fmoe evaluate`: the protocol on a trained model."""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines.options import DataDir, Gpu, Json, Processes
from pipelines.output import Display, percent, result, say


def evaluate(
    model: Annotated[str, typer.Argument(help="Model folder, run folder or registry URI.")],
    data: Annotated[str | None, typer.Option(help="Data set; by default the model's own.")] = None,
    data_dir: DataDir = None,
    attacks: Annotated[
        str | None,
        typer.Option(help="Of fgsm, pgd, pgd50, autoattack, with commas; default: the recipe's."),
    ] = None,
    eps: Annotated[str | None, typer.Option(help="Such as 8/255; default: the recipe's.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N test images.")] = None,
    workers: Processes = 1,
    seed: Annotated[int, typer.Option(help="Of random starts.")] = 0,
    gpu: Gpu = None,
    json: Json = False,
) -> None:
    """Clean and robust accuracy on the test split, with 95% intervals and the worst case.

    \b
    fmoe evaluate models:/fmoe-digits@candidate
    fmoe evaluate runs/my-run --attacks fgsm,pgd50,autoattack --limit 1000 --workers 2
    """
    from fmoe import checkpoint
    from fmoe import data as data_sets
    from fmoe.errors import UserError
    from fmoe.evaluation import Settings
    from fmoe.locate import located
    from fmoe.on_ray import evaluate as on_ray
    from fmoe.on_ray.session import Resources, session
    from fmoe.schema import parse_ratio

    with result(json) as answer, Display() as display:
        with located(model) as folder:
            network, config, _ = checkpoint.load_model(folder)
        try:
            chosen_eps = config.evaluate.eps if eps is None else float(parse_ratio(eps))
        except ValueError:
            raise UserError(f"--eps {eps}: expected a number such as 0.1 or 8/255") from None
        if not 0 <= chosen_eps <= 1:
            raise UserError(f"--eps {eps}: must lie in [0, 1] (pixels of [0,1])")
        names = tuple(attacks.split(",") if attacks else config.evaluate.attacks)
        settings = Settings(names, chosen_eps, config.evaluate.batch_size, seed)
        loaded = data_sets.load(data or config.data.name, data_dir)
        if loaded.info.shape != data_sets.INFO[config.data.name].shape:
            raise UserError(f"--data {data}: the model was made for {config.data.name}")
        test = loaded.test[: limit or config.evaluate.images]
        bar = display.task("evaluate", len(test))
        with session(workers):
            found = on_ray.evaluate(
                network,
                config,
                test,
                settings,
                resources=Resources.per_worker(workers, gpu),
                progress=lambda done, _: display.update(bar, done),
            )
        answer |= found.to_json() | {"model": model, "data": loaded.name, "digest": loaded.digest}
    figures = {"clean": found.clean, **found.robust, "worst_case": found.worst_case}
    say(json, f"{loaded.name}: {found.images} test images, linf eps {chosen_eps:.5f}")
    for name, value in figures.items():
        low, high = answer["interval95"][name]
        say(json, f"  {name:<12} {percent(value):>6}   95% {percent(low)} to {percent(high)}")
    for flag in found.verdicts.flags:
        say(json, f"  flag: {flag}")


if __name__ == "__main__":
    import sys

    from pipelines.cli import main

    main(["evaluate", *sys.argv[1:]])
