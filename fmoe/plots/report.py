"""Figures of an evaluation's report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.figure import Figure

from fmoe.evaluation import Evaluation
from fmoe.evaluation.examples import Examples
from fmoe.plots.run import label, show

MOST_CLASSES = 40
"""Whose names can be read in a figure."""


def small() -> Figure:
    return Figure(figsize=(5.2, 3.4), layout="constrained")


def charts(
    evaluation: Evaluation,
    answer: Mapping[str, Any],
    examples: Examples | None,
    classes: Sequence[str],
    known: Sequence[str],
) -> dict[str, tuple[Figure, str]]:
    """Name to figure and what it shows in a sentence; those of stages that were not run are left
    out. answer: what `evaluation.to_json()` gave; examples: its weakest; classes: the names of the
    labels; known: those of what the model says."""
    mixture, sweeps = answer["mixture"], answer["sweeps"]
    charts: dict[str, tuple[Figure, str]] = {}
    if "eps" in sweeps:
        charts["accuracy_against_eps"] = (
            against_eps({"": sweeps["eps"]}, evaluation.settings.eps),
            "Share of images that 20-step PGD has not broken at any ε up to the one below. "
            "The dashed line is the ε of the protocol; an honest model falls to chance.",
        )
    if "steps" in sweeps:
        charts["accuracy_against_steps"] = (
            curves({"": sweeps["steps"]}, "PGD steps"),
            "Share of images that are left after so many steps of PGD at the protocol's ε. "
            "The curve must be flat at its end.",
        )
    if "weights" in mixture:
        charts["gate_weights"] = (
            weights(mixture["weights"], mixture["names"]),
            "Mean weight that the gate gives each expert, on clean images and under PGD.",
        )
    if "transfer" in mixture:
        charts["transfer_matrix"] = (
            matrix(mixture["transfer"], [*mixture["names"], "mixture"]),
            "Accuracy of each column on PGD examples that were made on the row. A row of low "
            "figures fools everybody; the diagonal is each model against its own examples.",
        )
    if "temperature" in mixture:
        charts["temperature"] = (
            temperature(mixture["temperature"]),
            "Accuracy if the gate's temperature is changed after training, each attacked anew.",
        )
    confusion = answer.get("confusion")
    if confusion is not None and len(classes) <= MOST_CLASSES:
        charts["confusion"] = (
            confused(confusion["images"], confusion["other"], classes),
            f"What images of each class (rows) are taken for after {confusion['attack']}, in % of "
            "the class. Off the diagonal are the errors that the attack finds.",
        )
    if examples is not None:
        charts["worst_images"] = (
            pictures(examples, classes, known),
            "Images that are right and break at the smallest ε found: clean, attacked at that ε, "
            "and the difference (scaled to be seen).",
        )
    return charts


Points = Sequence[Sequence[float]]
"""(x, share of images) each."""


def curves(lines: Mapping[str, Points], xlabel: str) -> Figure:
    """A line each; with more than one they are named."""
    figure = small()
    axes = figure.subplots()
    for name, points in lines.items():
        shares = [100 * y for _, y in points]
        axes.plot([x for x, _ in points], shares, marker=".", label=label(name))
    axes.set(xlabel=xlabel, ylabel="robust accuracy, %", ylim=(0, 100))
    axes.grid(alpha=0.3)
    if len(lines) > 1:
        axes.legend(fontsize=8)
    return figure


def against_eps(lines: Mapping[str, Points], mark: float) -> Figure:
    """mark: the protocol's eps."""
    figure = curves(lines, "ε in pixels of [0,1]")
    figure.axes[0].axvline(mark, linestyle="--", color="0.5")
    return figure


def weights(means: dict[str, list[float]], labels: Sequence[str]) -> Figure:
    figure = small()
    axes = figure.subplots()
    height = 0.8 / len(means)
    for place, (where, values) in enumerate(means.items()):
        at = [e + place * height for e in range(len(values))]
        axes.barh(at, [100 * v for v in values], height, label="under PGD" if place else where)
    axes.set_yticks([e + height / 2 for e in range(len(labels))], list(map(label, labels)))
    axes.invert_yaxis()
    axes.set(xlabel="mean gate weight, %", xlim=(0, 100))
    axes.legend()
    return figure


def confused(
    counts: Sequence[Sequence[int]], other: Sequence[int], classes: Sequence[str]
) -> Figure:
    """counts: of labels (rows) and predictions (columns); other: of predictions beyond."""
    shares = [
        [count / max(1, sum(row) + beyond) for count in row]
        for row, beyond in zip(counts, other, strict=True)
    ]
    return matrix(shares, classes, down="class", across="taken for", of="share of the class, %")


def matrix(
    rows: Sequence[Sequence[float]],
    labels: Sequence[str],
    *,
    down: str = "examples made on",
    across: str = "judged",
    of: str = "accuracy, %",
) -> Figure:
    """rows: in [0,1]."""
    size = 2.2 + 0.5 * len(labels)
    figure = Figure(figsize=(size + 0.6, size), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(100 * torch.tensor(rows).numpy(), cmap="viridis", vmin=0, vmax=100)
    names = list(map(label, labels))
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel=across, ylabel=down)
    for i, row in enumerate(rows):
        for j, value in enumerate(row):
            color = "black" if value > 0.6 else "white"
            axes.text(j, i, f"{100 * value:.0f}", ha="center", va="center", color=color, fontsize=8)
    figure.colorbar(image, ax=axes, label=of, shrink=0.7)
    return figure


def temperature(rows: Sequence[dict[str, float]]) -> Figure:
    figure = small()
    axes = figure.subplots()
    factors = [row["factor"] for row in rows]
    for key, told in (("clean", "clean"), ("pgd", "20-step PGD")):
        axes.plot(factors, [100 * row[key] for row in rows], marker=".", label=told)
    axes.set_xscale("log", base=2)
    axes.set_xticks(factors, [f"×{factor:g}" for factor in factors])
    axes.set(xlabel="temperature, times the model's", ylabel="accuracy, %", ylim=(0, 100))
    axes.legend()
    axes.grid(alpha=0.3)
    return figure


def pictures(examples: Examples, classes: Sequence[str], known: Sequence[str]) -> Figure:
    """A column an image: clean, attacked, and the difference."""
    figure = Figure(figsize=(1.3 * len(examples), 4.4), layout="constrained")
    axes = figure.subplots(3, len(examples), squeeze=False)
    for column in range(len(examples)):
        for row, picture in enumerate((examples.x, examples.x_adv, examples.difference)):
            show(axes[row][column], picture[column])
        true, said = int(examples.labels[column]), int(examples.said_adv[column])
        axes[0][column].set_title(label(classes[true]), fontsize=8)
        name = class_name(known, said)
        told = f"{name}\nε {examples.eps[column].item():.3f}"
        axes[1][column].set_title(told, fontsize=8, color="firebrick")
    return figure


def class_name(known: Sequence[str], said: int) -> str:
    """A prediction as text; of a model that does not name its classes it may be beyond them."""
    if said < 0:
        return "not finite"
    return label(known[said]) if said < len(known) else f"class {said}"
