"""Several judged models side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from fmoe.errors import UserError
from fmoe.evaluation import Evaluation, mcnemar, paired
from fmoe.evaluation.chunk import share
from fmoe.evaluation.stages import after_suite
from fmoe.plots.report import against_eps
from fmoe.plots.run import label
from pipelines.judging.reporting import PAGE, template, write, write_verdicts, written
from pipelines.judging.run import Judged, Request


def same_for_all(request: Request, judged: Sequence[Judged]) -> Request:
    """The request with what the first model's recipe decided."""
    if not judged:
        return request
    settings = judged[0].evaluation.settings
    return replace(
        request,
        data=judged[0].data.name,
        attacks=None if request.full else ",".join(settings.attacks),
        eps=repr(settings.eps),
        norm=settings.threat.norm,
        limit=judged[0].evaluation.images,
    )


def differences(judged: Sequence[Judged]) -> list[dict[str, Any]]:
    """Each model against the first, by attack: on which images only one of the two is right."""
    first, *others = judged
    # they count what attacks on mixtures have broken: no comparison with a network without any
    after = (*after_suite(), "worst_case")
    rows = []
    for other in others:
        if not same_images(first, other):
            raise UserError(f"{other.name} and {first.name} were judged on different images")
        theirs = verdicts(first.evaluation)
        unlike = set(first.evaluation.skipped) != set(other.evaluation.skipped)
        for attack, ours in verdicts(other.evaluation).items():
            # an attack on mixtures, where the first is no mixture; or a figure of both
            if attack not in theirs or (unlike and attack in after):
                continue
            reference = theirs[attack]
            rows.append(
                {
                    "model": other.name,
                    "attack": attack,
                    "difference": share(ours) - share(reference),
                    "interval95": list(paired(ours, reference)),
                    "only_it": int((ours & ~reference).sum()),
                    "only_first": int((reference & ~ours).sum()),
                    "p_value": mcnemar(ours, reference),
                }
            )
    return rows


def same_images(one: Judged, other: Judged) -> bool:
    return (one.data.test_digest, len(one.test)) == (other.data.test_digest, len(other.test))


def verdicts(evaluation: Evaluation) -> dict[str, Any]:
    return {"clean": evaluation.right, **evaluation.verdicts, "worst_case": evaluation.survivors}


def columns(figures: Iterable[Mapping[str, float]]) -> list[str]:
    """The names that any model's figures have, the worst case last."""
    names = dict.fromkeys(name for one in figures for name in one)
    return sorted(names, key="worst_case".__eq__)


def write_comparison(judged: Sequence[Judged], answer: Mapping[str, Any], folder: Path) -> Path:
    """index.html, the plots, and each model's verdicts in a folder of their own."""
    charts = {
        "accuracies": (
            bars(judged),
            "Accuracy without an attack, under each attack, and in the worst case.",
        )
    }
    if all("radius" in one.evaluation.columns for one in judged):
        charts["accuracy_against_eps"] = (
            against_eps(
                {model["model"]: model["sweeps"]["eps"] for model in answer["models"]},
                answer["models"][0]["eps"],
            ),
            "Share of images that 20-step PGD has not broken at any ε up to the one below.",
        )
    page = template("comparison.html").render(
        title="Robustness side by side",
        answer=answer,
        first=answer["models"][0],
        norm=judged[0].evaluation.settings.threat.symbol,
        names=columns(one.evaluation.figures for one in judged),
        figures=written(charts, folder),
    )
    for place, (one, row) in enumerate(zip(judged, answer["models"], strict=True)):
        write_verdicts(one, row, folder / f"model-{place}")
    write(folder / PAGE, page.encode())
    return folder / PAGE


def bars(judged: Sequence[Judged]) -> Figure:
    figure = Figure(figsize=(7, 3.8), layout="constrained")
    axes = figure.subplots()
    names = columns(one.evaluation.figures for one in judged)
    width = 0.8 / len(judged)
    for place, one in enumerate(judged):
        values = [100 * one.evaluation.figures.get(name, float("nan")) for name in names]
        axes.bar(
            [i + place * width for i in range(len(names))],
            values,
            width,
            label=label(one.name),
        )
    middle = 0.4 - width / 2
    axes.set_xticks([i + middle for i in range(len(names))], names, rotation=30, ha="right")
    axes.set(ylabel="accuracy, %", ylim=(0, 100))
    axes.legend(fontsize=8)
    return figure
