"""FAB's projection onto a hyperplane (arXiv 1907.02044, section 2) without sorting the pixels.

pyautoattack finds the length of the step by sorting all pixels by the room that they have; Newton's
method finds the same length, to rounding, in a few sums. FAB asks for it in every iteration.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from pyautoattack import fab_base
from torch import Tensor

STEPS = 30  # three or four are the rule


def projection_linf(points_ND: Tensor, w_ND: Tensor, b_N: Tensor) -> Tensor:
    """The steps d [N,D] of least Linf norm with w·(points + d) = b and points + d in [0,1], for
    points in [0,1]; the largest steps toward b where the box does not reach it."""
    gap = (w_ND * points_ND).sum(1) - b_N
    toward = -torch.where(gap >= 0, 1.0, -1.0)[:, None] * w_ND.sign()
    room = torch.where(toward > 0, 1 - points_ND, points_ND)
    slopes, gap = w_ND.abs(), gap.abs()
    length = torch.zeros_like(gap)
    # what a length closes of the gap is concave in it: from 0 Newton's steps never go too far
    for _ in range(STEPS):
        closed = torch.linalg.vecdot(slopes, torch.minimum(room, length[:, None]))
        slope = torch.linalg.vecdot(slopes, (room > length[:, None]).to(slopes.dtype))
        more = torch.where(slope > 0, (gap - closed) / slope, 0.0).clamp_min(0)
        length += more
        if (more <= 1e-7).all():
            break
    return toward * torch.minimum(room, length[:, None])


@contextmanager
def without_sorting() -> Iterator[None]:
    """The library's FAB projects so within."""
    theirs = fab_base.projection_linf
    fab_base.projection_linf = projection_linf
    try:
        yield
    finally:
        fab_base.projection_linf = theirs
