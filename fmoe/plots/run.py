"""Figures of a run, for MLflow and the run folder."""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence, Set

import torch
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from torch import Tensor, nn

from fmoe.attacks import PGD
from fmoe.attacks.threat import Threat
from fmoe.data import Split
from fmoe.errors import plain
from fmoe.numerics.draw import Draw

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


def adversarial_row(
    model: nn.Module, split: Split, threat: Threat, classes: Sequence[str], images: int = 8
) -> Figure:
    """Images, their PGD-20 versions and the difference (scaled to be seen)."""
    part = split[:images]
    x, y = part.pixels(), part.labels
    x_adv = PGD(eps=threat.eps, norm=threat.norm, steps=20)(model, x, y, draw=Draw(0, "plot"))
    with torch.no_grad():
        before, after = model(x).argmax(1).tolist(), model(x_adv).argmax(1).tolist()
    figure = Figure(figsize=(1.4 * images, 4.8), layout="constrained")
    grid = figure.subplots(3, images, squeeze=False)
    rows = ((x, before), (x_adv, after), ((x_adv - x) / (2 * threat.eps) + 0.5, None))
    for axes, (pictures, labels) in zip(grid, rows, strict=True):
        for i, axis in enumerate(axes):
            show(axis, pictures[i])
            if labels is not None:
                right = labels[i] == y[i].item()
                name = label(classes[labels[i]])
                axis.set_title(name, fontsize=8, color="black" if right else "red")
    for axes, row in zip(grid, ("clean", f"PGD-20, ε={threat.eps:.3f}", "difference"), strict=True):
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
