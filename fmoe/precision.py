"""Where bfloat16 ends: losses and mixing are computed in float32, or float64 if they come so."""

from __future__ import annotations

from torch import Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype.itemsize < 4 else tensor
