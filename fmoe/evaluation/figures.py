"""Figures of the mixture suite and of the sweeps, from the columns of all images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log
from typing import Any

import torch
from torch import Tensor

from fmoe.evaluation.mixture_suite import FACTORS
from fmoe.evaluation.sweeps import STEPS, grid

HALVING = (0, 1, 2, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, STEPS)


def mixture(columns: Mapping[str, Tensor], y: Tensor, names: Sequence[str]) -> dict[str, Any]:
    """What is known of the parts; keys are there as far as their stage was run."""
    found: dict[str, Any] = {}
    if "weights.clean" in columns:
        found["weights"] = {"clean": _means(columns["weights.clean"])}
        found["entropy"] = {"clean": entropy(columns["weights.clean"])}
        if "weights.pgd" in columns:
            found["weights"]["pgd"] = _means(columns["weights.pgd"])
            found["entropy"]["pgd"] = entropy(columns["weights.pgd"])
    if "transfer" in columns:
        matrix = columns["transfer"].double().mean(0)
        experts = columns["experts"].double().mean(0)
        count = len(experts)
        labels = list(names) if len(names) == count else [f"expert {e}" for e in range(count)]
        found["names"] = labels
        found["transfer"] = matrix.tolist()
        found["experts"] = [
            {"name": labels[e], "clean": experts[e].item(), "pgd": matrix[e, e].item()}
            for e in range(count)
        ]
        found["better_alone"] = better_alone(columns, y, labels)
    if "frozen" in columns:
        found["frozen_gate"] = columns["frozen"].double().mean().item()
    if "scale" in columns:
        found["logit_scale"] = _means(columns["scale"])
        found["gradient"] = {
            part: columns[f"gradient.{part}"].double().mean().item() for part in ("gate", "experts")
        }
        found["temperature"] = [
            {
                "factor": factor,
                "clean": columns["temperature.clean"][:, place].double().mean().item(),
                "pgd": columns["temperature.pgd"][:, place].double().mean().item(),
            }
            for place, factor in enumerate(FACTORS)
        ]
    return found


def better_alone(columns: Mapping[str, Tensor], y: Tensor, names: Sequence[str]) -> list[str]:
    """Experts that beat the mixture under PGD without losing clean accuracy to it."""
    matrix, alone = columns["transfer"].double().mean(0), columns["experts"].double().mean(0)
    clean = (columns["prediction.clean"] == y).double().mean().item()
    own = matrix[-1, -1].item()
    return [
        name
        for e, name in enumerate(names)
        if matrix[e, e].item() > own and alone[e].item() >= clean
    ]


def entropy(weights_BE: Tensor) -> float:
    """Mean entropy of the gate's weights as a share of that of equal weights."""
    weights = weights_BE.double()
    nats = -(weights * weights.clamp_min(1e-30).log()).sum(1).mean().item()
    return nats / log(weights.shape[1]) if weights.shape[1] > 1 else 0.0


def sweeps(columns: Mapping[str, Tensor], right: Tensor, eps: float) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "step" in columns:
        found["steps"] = [[k, accuracy_after(columns["step"], right, k)] for k in HALVING]
    if "radius" in columns:
        clean = [[0.0, right.double().mean().item()]]
        # a hair more than the size: it is kept in float32
        found["eps"] = clean + [
            [size, (columns["radius"] > size * (1 + 1e-6)).double().mean().item()]
            for size in grid(eps)
        ]
    return found


def accuracy_after(step: Tensor, right: Tensor, steps: int) -> float:
    broken = (step >= 0) & (step <= steps)
    return (right & ~broken).double().mean().item()


def _means(columns: Tensor) -> list[float]:
    return [float(value) for value in torch.mean(columns.double(), 0)]
