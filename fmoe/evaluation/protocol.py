"""Running the protocol over a data set, and what it finds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fmoe.attacks import eval_mode
from fmoe.data import Split
from fmoe.errors import UserError
from fmoe.evaluation.intervals import wilson
from fmoe.evaluation.standard import ATTACKS, Chunk

PROTOCOL = 1
"""Raised whenever a change could move a figure."""


@dataclass(frozen=True)
class Settings:
    """eps in pixels of [0,1]; batch_size images are one chunk."""

    attacks: tuple[str, ...]
    eps: float
    batch_size: int = 250
    seed: int = 0

    def __post_init__(self) -> None:
        for name in self.attacks:
            if name not in ATTACKS:
                raise UserError(f"unknown attack {name!r} (there are: {', '.join(ATTACKS)})")


@dataclass(frozen=True)
class Verdicts:
    """What was found for some images: bool [N] each; True: right, under attack too."""

    clean: Tensor
    robust: dict[str, Tensor]
    flags: list[str]
    seconds: dict[str, float]


@dataclass(frozen=True)
class Evaluation:
    """Verdicts of all images, and the figures that follow from them."""

    verdicts: Verdicts
    settings: Settings
    seconds: float

    @property
    def images(self) -> int:
        return len(self.verdicts.clean)

    @property
    def clean(self) -> float:
        return self.verdicts.clean.double().mean().item()

    @property
    def robust(self) -> dict[str, float]:
        return {name: v.double().mean().item() for name, v in self.verdicts.robust.items()}

    @property
    def survivors(self) -> Tensor:
        """bool [N]: right, and under every attack that was run."""
        alive = self.verdicts.clean.clone()
        for verdict in self.verdicts.robust.values():
            alive &= verdict
        return alive

    @property
    def worst_case(self) -> float:
        """The share of images that survive every attack that was run."""
        return self.survivors.double().mean().item()

    @property
    def figures(self) -> dict[str, float]:
        """Clean accuracy, each attack's, and the worst case."""
        return {"clean": self.clean, **self.robust, "worst_case": self.worst_case}

    def to_json(self) -> dict[str, Any]:
        n = self.images
        return {
            "clean": self.clean,
            "robust": self.robust,
            "worst_case": self.worst_case,
            "interval95": {k: list(wilson(round(v * n), n)) for k, v in self.figures.items()},
            "flags": self.verdicts.flags,
            "images": n,
            "eps": self.settings.eps,
            "norm": "linf",
            "seed": self.settings.seed,
            "protocol": PROTOCOL,
            "seconds": self.seconds,
            "attack_seconds": self.verdicts.seconds,
        }


def judge_chunk(model: nn.Module, part: Split, start: int, settings: Settings) -> Verdicts:
    """Clean and robust verdicts of one chunk; start: the first image's place in the data set.

    An attack is run on the images that the model gets right: the others count as broken.
    """
    chunk = Chunk(part.pixels(), part.labels, (settings.seed, start))
    robust, flags, seconds = {}, [], {}
    with eval_mode(model):
        with torch.no_grad():
            clean = model(chunk.x).argmax(1) == chunk.y
        for name in settings.attacks:
            begin = time.perf_counter()
            alive, raised = ATTACKS[name](model, chunk, clean, settings.eps)
            robust[name] = alive.cpu()
            flags += raised
            seconds[name] = time.perf_counter() - begin
    return Verdicts(clean.cpu(), robust, flags, seconds)


def summarise(parts: Sequence[Verdicts], settings: Settings, seconds: float) -> Evaluation:
    """All chunks' verdicts, in the order of the images."""
    verdicts = Verdicts(
        torch.cat([part.clean for part in parts]),
        {name: torch.cat([part.robust[name] for part in parts]) for name in settings.attacks},
        sorted({flag for part in parts for flag in part.flags}),
        {name: sum(part.seconds[name] for part in parts) for name in settings.attacks},
    )
    return Evaluation(verdicts, settings, seconds)


def evaluate(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    attacks: Sequence[str] = ("fgsm", "pgd"),
    eps: float = 8 / 255,
    batch_size: int = 250,
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Judges any classifier: images uint8 [N,C,H,W], labels int64 [N].

    `model` maps float images in [0,1] to logits or log-probabilities; eps is in pixels of [0,1].
    Raises `UserError` for an unknown attack, or no images.
    """
    settings = Settings(tuple(attacks), eps, batch_size, seed)
    begin, parts = time.perf_counter(), []
    if len(images) == 0:
        raise UserError("no images to judge")
    split = Split(images, labels).to(torch.device(device))
    model = model.to(device)
    for start in range(0, len(split), batch_size):
        part = split[start : start + batch_size]
        parts.append(judge_chunk(model, part, start, settings))
        if progress:
            progress(min(start + batch_size, len(split)), len(split))
    return summarise(parts, settings, time.perf_counter() - begin)
