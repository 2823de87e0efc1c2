"""Figures of the mixture suite and of the sweeps, from the columns of all images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log
from typing import Any

import torch
from torch import Tensor

from fmoe.attacks.threat import Threat
from fmoe.evaluation.chunk import WEIGHTS, gate_weights, right, share
from fmoe.evaluation.mixture_suite import TEMPERATURE_FACTORS
from fmoe.evaluation.sweeps import STEPS, grid

CURVE = (0, 1, 2, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, STEPS)
"""Steps at which the accuracy is told."""


def mixture(columns: Mapping[str, Tensor], y: Tensor, names: Sequence[str]) -> dict[str, Any]:
    """What is known of the parts; keys are there as far as their stage was run."""
    figures: dict[str, Any] = {}
    if WEIGHTS + "clean" in columns:
        known = gate_weights(columns)
        figures["names"] = named(known["clean"].shape[1], names)
        figures["weights"] = {where: _means(weights) for where, weights in known.items()}
        figures["entropy"] = {where: entropy(weights) for where, weights in known.items()}
    if "transfer" in columns:
        alone, own, itself = by_themselves(columns, y)
        figures["transfer"] = _means(columns["transfer"])
        figures["experts"] = [
            {"name": name, "clean": alone[e], "pgd": own[e]}
            for e, name in enumerate(named(len(alone), names))
        ]
        figures["itself"] = itself
        figures["better_alone"] = better_alone(columns, y, names)
    if "frozen" in columns:
        figures["frozen_gate"] = share(columns["frozen"])
    if "scale" in columns:
        figures["logit_scale"] = _means(columns["scale"])
        figures["gradient"] = {
            part: share(columns[f"gradient.{part}"]) for part in ("gate", "experts")
        }
        clean, pgd = (_means(columns[f"temperature.{where}"]) for where in ("clean", "pgd"))
        figures["temperature"] = [
            {"factor": factor, "clean": clean[place], "pgd": pgd[place]}
            for place, factor in enumerate(TEMPERATURE_FACTORS)
        ]
    return figures


def named(count: int, names: Sequence[str]) -> list[str]:
    """Experts' names, or their numbers where the names are not those of so many."""
    return list(names) if len(names) == count else [f"expert {e}" for e in range(count)]


def better_alone(columns: Mapping[str, Tensor], y: Tensor, names: Sequence[str]) -> list[str]:
    """Experts that beat the mixture under PGD without losing clean accuracy to it."""
    alone, own, itself = by_themselves(columns, y)
    clean = share(right(columns, y))
    return [
        name
        for e, name in enumerate(named(len(alone), names))
        if own[e] > itself and alone[e] >= clean
    ]


def by_themselves(
    columns: Mapping[str, Tensor], y: Tensor
) -> tuple[list[float], list[float], float]:
    """Each expert's accuracy on clean images, and on its own PGD's last iterates of those that it
    has right; the mixture's of the latter kind."""
    matrix, clean = columns["transfer"], columns["experts"]
    under = matrix.diagonal(dim1=1, dim2=2) & torch.cat([clean, right(columns, y)[:, None]], 1)
    *own, itself = _means(under)
    return _means(clean), own, itself


def entropy(weights_BE: Tensor) -> float:
    """Mean entropy of the gate's weights as a share of that of equal weights."""
    weights = weights_BE.double()
    nats = -(weights * weights.clamp_min(1e-30).log()).sum(1).mean().item()
    return nats / log(weights.shape[1]) if weights.shape[1] > 1 else 0.0


def sweeps(columns: Mapping[str, Tensor], clean: Tensor, threat: Threat) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    if "step" in columns:
        figures["steps"] = [[k, accuracy_after(columns["step"], clean, k)] for k in CURVE]
    if "radius" in columns:
        # a hair more than the size: it is kept in float32
        figures["eps"] = [[0.0, share(clean)]] + [
            [size, share(columns["radius"] > size * (1 + 1e-6))]
            for size in (larger.eps for larger in grid(threat))
        ]
    return figures


def accuracy_after(step: Tensor, clean: Tensor, steps: int) -> float:
    """clean: bool [N], right without an attack."""
    broken = (step >= 0) & (step <= steps)
    return share(clean & ~broken)


def _means(column: Tensor) -> list[Any]:
    """Means over the images, as nested lists."""
    return list(column.double().mean(0).tolist())
