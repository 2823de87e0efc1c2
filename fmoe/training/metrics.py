"""What every epoch reports, whatever the mixture, by name.

Reported metrics are kept in checkpoints, logged to MLflow, and a space may name any of them as what
a study is after. `MEASURED` are those that the trainer measures as it goes; any other is a function
of what was measured: a new one is a function here, and a line in `COMPUTED`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from fmoe.data import Split
from fmoe.numerics.worker import Worker


@dataclass(frozen=True)
class Measured:
    """An epoch that has been trained and validated.

    metrics: those of `MEASURED` but `seconds`, which is known last. images: how many it was trained
    on. model: with the weights that were trained, in eval mode. val: the validation images that
    every epoch is judged on; of several workers each has all of them, and a function that cuts them
    by `worker` must give all workers the same number (`fmoe.numerics.worker.reduce_sum`).
    """

    metrics: Mapping[str, float]
    images: int
    model: nn.Module
    val: Split
    worker: Worker


TIMES = ("crafting_seconds", "descent_seconds", "data_seconds", "exchange_seconds")
"""Parts of `train_seconds`, where there are such: what workers wait for in exchanges is a part of
crafting or descent, without what DDP does beside the backward pass."""
MEASURED = ("val_robust", "val_clean", "train_loss", "train_accuracy", "seconds", "train_seconds")


def images_per_second(epoch: Measured) -> float:
    return epoch.images / epoch.metrics["train_seconds"]


COMPUTED: dict[str, Callable[[Measured], float]] = {"images_per_second": images_per_second}


def computed(epoch: Measured) -> dict[str, float]:
    with torch.no_grad():
        return {name: function(epoch) for name, function in COMPUTED.items()}


def names() -> tuple[str, ...]:
    """What every epoch reports."""
    return (*MEASURED, *COMPUTED)
