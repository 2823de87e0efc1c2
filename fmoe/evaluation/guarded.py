"""A model as another library may ask it: finite outputs and gradients, whatever it gives.

One image's NaN would spread to its pixels, and pixels that are NaN count as withstood. So outputs
that are not finite are shown as zeros, gradients as 0 there, and whose image it was is noted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fmoe.attacks.threat import Threat
from fmoe.evaluation.chunk import ROUNDING
from fmoe.evaluation.outputs import finite
from fmoe.evaluation.witness import Odd, Witness
from fmoe.numerics.precision import at_least_float32


class _Gradient(torch.autograd.Function):
    """The same images; their gradient with 0 where it is not finite."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, guarded: Guarded) -> Tensor:
        ctx.guarded = guarded
        ctx.save_for_backward(x)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor, None]:
        (gradient,) = given
        bad = ~finite(gradient.flatten(1))
        if bad.any():
            ctx.guarded.note(Odd.GRADIENT, ctx.saved_tensors[0][bad])
        return gradient.nan_to_num(0, 0, 0), None


class Guarded:
    """Asked about images near `x` [R,C,H,W], which are the rows [R] of a chunk.

    lost: bool [R], an output within eps of the image was not finite.
    """

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        x: Tensor,
        threat: Threat,
        witness: Witness | None,
        rows: Tensor,
    ):
        self.model, self.x, self.threat, self.rows = model, x, threat, rows
        self.witness = witness
        self.lost = torch.zeros(len(x), dtype=torch.bool, device=x.device)

    def __call__(self, x: Tensor) -> Tensor:
        needed = torch.is_grad_enabled() and x.requires_grad
        given = _Gradient.apply(x, self) if needed else x
        outputs = at_least_float32(self.model(given))
        sound = finite(outputs)
        if not sound.all():
            self.note(Odd.NON_FINITE, x.detach()[~sound])
            outputs = torch.where(sound[:, None], outputs, 0.0)
        if needed and not outputs.requires_grad:  # libraries ask for a gradient all the same
            outputs = outputs + 0 * given.flatten(1).sum(1, keepdim=True)
        return outputs

    def note(self, kind: Odd, points: Tensor) -> None:
        """points [P,C,H,W] where it happened: of those images within whose eps they lie."""
        near = torch.zeros_like(self.lost)
        for point in torch.unique(points, dim=0):
            near |= self.threat.distance(point, self.x) <= self.threat.eps + ROUNDING
        if kind == Odd.NON_FINITE:
            self.lost |= near
        if self.witness is not None:
            self.witness.see(kind, self.rows[near])
