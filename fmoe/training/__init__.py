"""Adversarial training: a step, epochs, the expert store, the joint phase."""

from fmoe.training.checks import check_phases
from fmoe.training.loop import Epoch, Training, epochs
from fmoe.training.trainer import Progress, Trainer

__all__ = [
    "Epoch",
    "Progress",
    "Trainer",
    "Training",
    "check_phases",
    "epochs",
]
