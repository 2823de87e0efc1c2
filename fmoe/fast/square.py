"""Square Attack (arXiv 1912.00049) as pyautoattack runs it, with passes confined to the square.

The library's draws, squares and decisions: most of its 5,000 queries change a few pixels, which
touch little of the early layers (`fmoe.fast.windowed`).
"""

from __future__ import annotations

import math

import torch
from pyautoattack.square import SquareAttack
from torch import Tensor, nn

from fmoe.attacks import margin
from fmoe.fast.windowed import Box, Windowed

ACTIVATION_BYTES = 2**30
"""Bytes of activations to keep at most; what needs more is asked in whole passes."""


def in_windows(library: SquareAttack, model: nn.Module, x: Tensor) -> SquareAttack:
    """The same attack on a folded model with images x [B,C,H,W], confined where that is faster."""
    if x.device.type != "cpu":  # smaller launches, and more of them: not measured there
        return library
    windowed = Windowed(model)
    with torch.no_grad():
        windowed.whole(x[:1])
    return (
        WindowedSquare(library, windowed)
        if 0 < windowed.bytes * len(x) <= ACTIVATION_BYTES
        else library
    )


class WindowedSquare(SquareAttack):  # type: ignore[misc]
    """The library's attack, untargeted, in Linf, with the margin loss."""

    def __init__(self, library: SquareAttack, windowed: Windowed):
        self.__dict__.update(library.__dict__)
        assert (self.norm, self.loss, self.targeted) == ("Linf", "margin", False)
        self.windowed = windowed

    @torch.no_grad()
    def attack_single_run(self, x: Tensor, y: Tensor) -> tuple[None, Tensor]:
        """The images found for x float [B,C,H,W], y int64 [B], broken or not."""
        c, h, w = x.shape[1:]
        asked = self.windowed
        best = torch.clamp(x + self.eps * self.random_choice([len(x), c, 1, w]), 0.0, 1.0)
        rows = torch.arange(len(x), device=x.device)
        least = -margin(asked.whole(best), y)  # broken where it is not above 0
        for query in range(self.n_queries):
            if not (least > 0).all():
                best[rows] = asked.images.settled
                kept = (least > 0).nonzero()[:, 0]
                asked.select(kept)
                rows, x, y, least = rows[kept], x[kept], y[kept], least[kept]
            if len(rows) == 0:
                break
            side = self.side(query, h, w)
            top, left = (int(self.random_int(0, size - side)) for size in (h, w))
            box = Box(top, top + side, left, left + side)
            delta = 2.0 * self.eps * self.random_choice([c, 1, 1])
            centred, origin = box.of(asked.images.settled) + delta, box.of(x)
            new = torch.min(torch.max(centred, origin - self.eps), origin + self.eps)
            reached = -margin(asked.changed(box, new.clamp(0.0, 1.0)), y)
            asked.settle((reached < least).nonzero()[:, 0])
            least = torch.minimum(reached, least)
        best[rows] = asked.images.settled
        return None, best

    def side(self, query: int, h: int, w: int) -> int:
        """Of the square, in pixels."""
        return min(max(round(math.sqrt(self.p_selection(query) * h * w)), 1), h, w)
