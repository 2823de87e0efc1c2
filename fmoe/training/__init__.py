"""Adversarial training: a step, epochs, the expert store, the joint phase."""

from fmoe.training.loop import Epoch, epochs
from fmoe.training.trainer import Progress, Trainer, check_attack, check_batches

__all__ = ["Epoch", "Progress", "Trainer", "check_attack", "check_batches", "epochs"]
