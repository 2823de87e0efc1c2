"""How training computes, and where bfloat16 ends: losses and mixing are computed in float32."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

Precision = Literal["float32", "bfloat16"]


def at_least_float32(tensor: Tensor) -> Tensor:
    """float32 of bfloat16; float32 and float64 as they are."""
    return tensor.float() if tensor.dtype.itemsize < 4 else tensor


@dataclass(frozen=True)
class Numerics:
    """See `fmoe.config.Config`, which has the same names."""

    precision: Precision = "float32"
    deterministic: bool = False
    compile: bool = False

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """Around a forward pass in training."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bfloat16")

    @property
    def weights(self) -> torch.dtype | None:
        """What a copy's weights are kept in, so that autocast need not cast them every pass."""
        return torch.bfloat16 if self.precision == "bfloat16" else None

    def prepare(self, device: torch.device) -> None:
        """Settings of the whole process; on a CPU every kernel used here is deterministic."""
        if device.type != "cuda":
            return
        if self.deterministic:  # read when cuBLAS starts
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(self.deterministic)
        torch.backends.cudnn.deterministic = self.deterministic
        torch.backends.cudnn.benchmark = not self.deterministic

    def compile_parts(self, parts: Iterable[nn.Module]) -> None:
        """Each by itself, so that parts of one shape share what is compiled. On GPUs as CUDA
        graphs: inputs keep their shape and weights their place."""
        if not self.compile:
            return
        for part in parts:
            on_gpu = any(parameter.is_cuda for parameter in part.parameters())
            part.compile(mode="reduce-overhead" if on_gpu else None)
