"""Robust accuracy against the number of steps and against eps: what an honest model must show."""

from __future__ import annotations

import torch
from torch import nn

from fmoe.attacks.threat import Threat
from fmoe.evaluation.chunk import Chunk, Columns, right
from fmoe.evaluation.iterated import ascending, until_broken
from fmoe.evaluation.standard import Given

STEPS = 100
MULTIPLES = (0.125, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
"""Of the protocol's eps: 1/255 to 64/255 where that is 8/255."""


def grid(threat: Threat) -> list[Threat]:
    return [threat.scaled(multiple) for multiple in MULTIPLES]


def steps(model: nn.Module, chunk: Chunk, before: Columns, threat: Threat) -> Given:
    """One run of 100 steps; `step` int16 [B]: at which an image broke, -1 where it never did."""
    start = right(before, chunk.y)
    run = ascending(model, chunk.y)
    return {"step": until_broken(run, chunk, start, "steps", threat=threat, steps=STEPS).step}, []


def radius(model: nn.Module, chunk: Chunk, before: Columns, threat: Threat) -> Given:
    """PGD at growing eps on what is left; `radius` float32 [B]: the smallest eps found to break
    the image, 0 where it is wrong without an attack, inf where none did."""
    alive = right(before, chunk.y)
    radius = torch.where(alive, torch.inf, 0.0)
    for place, larger in enumerate(grid(threat)):
        broken = until_broken(
            ascending(model, chunk.y), chunk, alive, "radius", place, threat=larger
        ).broken
        radius = radius.masked_fill(broken, larger.eps)
        alive = alive & ~broken
    return {"radius": radius}, []
