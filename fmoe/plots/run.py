"""Figures of a run, for MLflow and the run folder."""

from __future__ import annotations

import functools
import io
from collections.abc import Mapping, Sequence, Set

from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from torch import Tensor

from fmoe.errors import plain
from fmoe.evaluation.examples import Examples

History = Sequence[dict[str, float]]
WIDEST = 24  # characters of a name


def label(text: str) -> str:
    """A name from outside as matplotlib draws it: no formula, no character that the font lacks (it
    would be a box, and a warning), no `_` in front, which legends leave out, and short enough to
    leave room for the plot."""
    seen = plain(text)
    drawn = "".join(c if ord(c) in glyphs() else c.encode("unicode_escape").decode() for c in seen)
    if len(drawn) > WIDEST:
        drawn = f"{drawn[: WIDEST // 2]}…{drawn[-WIDEST // 2 :]}"
    drawn = f" {drawn}" if drawn.startswith("_") else drawn
    return drawn.replace("$", r"\$")


@functools.cache
def glyphs() -> Set[int]:
    """Code points that the figures' font has."""
    return get_font(findfont(FontProperties())).get_charmap().keys()


def training_curves(history: History) -> Figure:
    """Loss and accuracies against the epoch."""
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = range(1, len(history) + 1)
    left.plot(epochs, [m["train_loss"] for m in history], marker=".")
    left.set(xlabel="epoch", ylabel="training loss")
    for key, told in (
        ("train_accuracy", "training, adversarial"),
        ("val_clean", "validation, clean"),
        ("val_robust", "validation, robust"),
    ):
        right.plot(epochs, [m[key] for m in history], marker=".", label=told)
    right.set(xlabel="epoch", ylabel="accuracy", ylim=(0, 1))
    right.legend()
    return figure


def expert_curves(experts: Mapping[str, Mapping[int, Mapping[str, float]]]) -> Figure:
    """Validation accuracies of each expert that was trained apart (its metrics by epoch)."""
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    for axes, key in zip(figure.subplots(1, 2), ("val_clean", "val_robust"), strict=True):
        for name, history in experts.items():
            epochs = [epoch for epoch in sorted(history) if key in history[epoch]]
            values = [history[epoch][key] for epoch in epochs]
            axes.plot([e + 1 for e in epochs], values, marker=".", label=label(name))
        told = key.removeprefix("val_")
        axes.set(xlabel="epoch", ylabel=f"validation, {told}", ylim=(0, 1))
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    return figure


def gate_weights(history: History, names: Sequence[str]) -> Figure:
    """Mean weight of each expert on training batches, stacked, against the epoch."""
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    epochs = range(1, len(history) + 1)
    shares = [[m[f"gate_weight_{i}"] for m in history] for i in range(len(names))]
    axes.stackplot(epochs, shares, labels=[label(name) for name in names])
    axes.set(xlabel="epoch", ylabel="mean gate weight", ylim=(0, 1))
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def adversarial_row(examples: Examples, classes: Sequence[str]) -> Figure:
    """Images, their adversarial versions and the difference (scaled to be seen)."""
    eps = examples.eps[0].item()
    figure = Figure(figsize=(1.4 * len(examples), 4.8), layout="constrained")
    grid = figure.subplots(3, len(examples), squeeze=False)
    rows = (
        (examples.x, examples.said),
        (examples.x_adv, examples.said_adv),
        (examples.difference, None),
    )
    for axes, (pictures, said) in zip(grid, rows, strict=True):
        for i, axis in enumerate(axes):
            show(axis, pictures[i])
            if said is not None:
                right = bool(said[i] == examples.labels[i])
                name = label(classes[int(said[i])])
                axis.set_title(name, fontsize=8, color="black" if right else "red")
    for axes, row in zip(grid, ("clean", f"PGD-20, ε={eps:.3f}", "difference"), strict=True):
        axes[0].text(
            -0.1, 0.5, row, rotation=90, va="center", ha="right", transform=axes[0].transAxes
        )
    return figure


def png(figure: Figure, dpi: int = 110) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def show(axis: object, picture_CHW: Tensor) -> None:
    image = picture_CHW.clamp(0, 1).permute(1, 2, 0).squeeze(-1).numpy()
    axis.imshow(image, cmap="gray", vmin=0, vmax=1)  # type: ignore[attr-defined]
    axis.set_axis_off()  # type: ignore[attr-defined]
