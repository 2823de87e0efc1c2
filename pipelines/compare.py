"""`fmoe compare`: the same protocol on several models, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.display import Display
from pipelines.evaluate import Attacks, Data, Eps, Fast, Full, Limit, Norm, Seed
from pipelines.options import DataDir, Gpu, Json, Processes, asked
from pipelines.output import percent, result, say


def compare(
    models: Annotated[
        list[str], typer.Argument(help="Two or more, as `fmoe evaluate` takes them.")
    ],
    data: Data = None,
    data_dir: DataDir = None,
    attacks: Attacks = None,
    full: Full = False,
    eps: Eps = None,
    norm: Norm = None,
    limit: Limit = None,
    workers: Processes = 1,
    seed: Seed = 0,
    gpu: Gpu = None,
    fast: Fast = False,
    report: Annotated[Path | None, typer.Option(help="Folder for a page (index.html).")] = None,
    json: Json = False,
) -> None:
    """Several models on the same images under the same attacks, with paired significance.

    The attacks and eps are those of the first model's recipe, where they are not given. p-values
    are McNemar's, against the first model.

    \b
    fmoe compare models:/fmoe-cifar10@candidate models:/fmoe-cifar10@champion --limit 1000
    fmoe compare runs/dwf runs/single runs/uniform --attacks fgsm,pgd50 --report page
    """
    given = dict(locals())
    from fmoe.on_ray import reach

    reach.check()
    from fmoe.errors import UserError
    from pipelines.judging.comparing import differences, same_for_all, write_comparison
    from pipelines.judging.run import Judged, Request, judge

    if len(models) < 2:
        raise UserError("compare takes two models or more")
    request = asked(Request, given, besides=["models", "report", "json"])
    with result(json) as answer, Display() as display:
        judged: list[Judged] = []
        for model in models:
            images = judged[0].data if judged else None  # read once
            judged.append(judge(model, same_for_all(request, judged), display, images))
        rows = [one.to_json() | {"figures": one.evaluation.figures} for one in judged]
        answer |= {"models": rows, "differences": differences(judged)}
        if report is not None:
            answer["report"] = str(write_comparison(judged, answer, report))
    for one in judged:
        one.kept.drop()
    _tell(json, answer)


def _tell(json: bool, answer: dict[str, Any]) -> None:
    from pipelines.judging.comparing import columns

    names = columns(model["figures"] for model in answer["models"])
    width = max(len(model["model"]) for model in answer["models"])
    head = "  ".join(f"{name[:12]:>12}" for name in names)
    say(json, f"{'':<{width}}  {head}  flags")
    for model in answer["models"]:
        figures = model["figures"]
        cells = "  ".join(f"{percent(figures[n]) if n in figures else '–':>12}" for n in names)
        say(json, f"{model['model']:<{width}}  {cells}  {len(model['flags']):>5}")
    say(json, "each but fgsm and pgd counts what the attacks before it broke as broken")
    for model in answer["models"]:
        for reason in dict.fromkeys(model["skipped"].values()):
            say(json, f"{model['model']}: not attacked by all of them ({reason})")
    for model in answer["models"]:
        say(json, *(f"{model['model']}: flag: {flag}" for flag in model["flags"]))
        say(json, *(f"{model['model']}: note: {note}" for note in model["notes"]))
    say(json, "", f"against {answer['models'][0]['model']}, image by image:")
    for row in answer["differences"]:
        low, high = row["interval95"]
        say(
            json,
            f"  {row['model']:<{width}}  {row['attack']:<12}  {100 * row['difference']:+5.1f} "
            f"points  95% {100 * low:+.1f} to {100 * high:+.1f}  p {row['p_value']:.2g}",
        )
    if "report" in answer:
        say(json, f"report: {answer['report']}")


if __name__ == "__main__":
    from pipelines.entry import alone

    alone("compare", compare)
