"""Gradient attacks, and the threat models that they stay within."""

from fmoe.attacks.ascent import (
    ModelFn,
    Objective,
    clean_probabilities,
    climb,
    eval_mode,
    input_gradient,
    margin,
    objective_loss,
)
from fmoe.attacks.kinds import FGSM, NFGSM, PGD, Attack, AttackConfig, Clean, Mix, Shares, scalar

__all__ = [
    "FGSM",
    "NFGSM",
    "PGD",
    "Attack",
    "AttackConfig",
    "Clean",
    "Mix",
    "ModelFn",
    "Objective",
    "Shares",
    "clean_probabilities",
    "climb",
    "eval_mode",
    "input_gradient",
    "margin",
    "objective_loss",
    "scalar",
]
