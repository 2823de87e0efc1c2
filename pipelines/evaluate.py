"""`fmoe evaluate`: the protocol on a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.display import Display
from pipelines.options import DataDir, Gpu, Json, Processes, asked
from pipelines.output import percent, result, say

MODEL = "Model folder, run folder, registry URI, or python:package.module:callable."
Data = Annotated[str | None, typer.Option(help="Data set; by default the model's own.")]
Attacks = Annotated[
    str | None,
    typer.Option(
        help="With commas, of fgsm, pgd, pgd50, autoattack, mixture (attacks on gate and experts, "
        "transfer matrix, temperatures), sweeps (over eps and steps). Default: the recipe's, "
        "mixture and sweeps."
    ),
]
Full = Annotated[
    bool, typer.Option("--full", help="All attacks: what `fmoe promote` asks for. Takes long.")
]
Eps = Annotated[str | None, typer.Option(help="Such as 8/255; default: the recipe's.")]
Norm = Annotated[str | None, typer.Option(help="linf or l2, with an --eps; default: the recipe's.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Only the first N test images.")]
Seed = Annotated[int, typer.Option(help="Of random starts.")]
Fast = Annotated[
    bool,
    typer.Option("--fast", help="Attack a copy with BatchNorm folded; what breaks it must break "
                 "the model itself to count."),
]  # fmt: skip
RobustBench = Annotated[
    Path | None,
    typer.Option(
        "--robustbench-json", help="File to write in the form of RobustBench's model_info."
    ),
]
Report = Annotated[
    Path | None, typer.Option(help="Folder for a page (index.html), its figures and the verdicts.")
]


def evaluate(
    model: Annotated[str, typer.Argument(help=MODEL)],
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
    report: Report = None,
    robustbench_json: RobustBench = None,
    json: Json = False,
) -> None:
    """Clean and robust accuracy on the test split, with 95% intervals, worst case and flags.

    Killed, the same command goes on: finished chunks are kept.

    \b
    fmoe evaluate models:/fmoe-digits@candidate --full --report page --workers 2
    fmoe evaluate runs/my-run --attacks fgsm,pgd50,autoattack --limit 1000
    fmoe evaluate python:mine.nets:robust_resnet --data cifar10 --norm l2 --eps 0.5
    """
    given = dict(locals())
    from fmoe.on_ray import reach

    reach.check()
    from pipelines.judging import model_info
    from pipelines.judging.run import Request, judge

    request = asked(Request, given, besides=["model", "report", "robustbench_json", "json"])
    with result(json) as answer, Display() as display:
        if robustbench_json is not None and attacks is not None:  # else the recipe decides
            model_info.check(attacks.split(","), robustbench_json)
        judged = judge(model, request, display)
        answer |= judged.to_json()
        if robustbench_json is not None:
            model_info.check(answer["robust"], robustbench_json)
            model_info.write(robustbench_json, answer)
            answer["robustbench_json"] = str(robustbench_json)
        if report is not None:
            from pipelines.judging.reporting import write_report

            answer["report"] = str(write_report(judged, answer, report))
        if model.startswith("models:"):
            from pipelines.judging.recording import record

            record(judged, answer)
    judged.kept.drop()
    evaluation = judged.evaluation
    say(
        json,
        f"{judged.data.name}: {evaluation.images} test images, "
        f"{evaluation.settings.threat.norm} eps {evaluation.settings.eps:.5f}",
    )
    for name, value in evaluation.figures.items():
        low, high = answer["interval95"][name]
        say(json, f"  {name:<14} {percent(value):>6}   95% {percent(low)} to {percent(high)}")
    for flag in evaluation.flags:
        say(json, f"  flag: {flag}")
    for note in answer["notes"]:
        say(json, f"  note: {note}")
    reasons = dict.fromkeys(evaluation.skipped.values())
    for reason in reasons:
        names = ", ".join(name for name, why in evaluation.skipped.items() if why == reason)
        say(json, f"  skipped ({reason}): {names}")
    for key in ("report", "recorded", "not_recorded"):
        if key in answer:
            say(json, f"  {key.replace('_', ' ')}: {answer[key]}")


if __name__ == "__main__":
    from pipelines.entry import alone

    alone("evaluate", evaluate)
