"""How training computes, and where bfloat16 ends: losses and mixing are computed in float32."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

Precision = Literal["float32", "bfloat16"]


def at_least_float32(tensor: Tensor) -> Tensor:
    """float32 of bfloat16; float32 and float64 as they are."""
    return tensor.float() if tensor.dtype.itemsize < 4 else tensor


def multiplies_bfloat16(device: torch.device) -> bool:
    """GPUs before Ampere and most laptops' CPUs would emulate it, at several times the cost."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    asked = getattr(torch.cpu, "get_capabilities", None)  # an old torch cannot tell
    able = asked() if asked else {"bf16": True}
    return any(able.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


@contextmanager
def exact() -> Iterator[None]:
    """float32 that is float32 on GPUs, too (they would use TF32 for convolutions), the same
    kernels every time, and none chosen by trying them out: batches shrink as images break."""
    matmul = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    try:
        with torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=False
        ):
            yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = matmul


@dataclass(frozen=True)
class Numerics:
    """See `fmoe.config.Config`, which has the same names."""

    precision: Precision = "float32"
    deterministic: bool = False
    compile: bool = False

    def fitting(self, device: torch.device) -> Numerics:
        """bfloat16 where the device multiplies in it, and float32 elsewhere, with a warning."""
        if self.precision == "float32" or multiplies_bfloat16(device):
            return self
        what = "GPU" if device.type == "cuda" else "CPU"
        warnings.warn(f"this {what} has no bfloat16: training in float32", stacklevel=2)
        return replace(self, precision="float32")

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

    def compile_parts(self, parts: Iterable[nn.Module], *, graphs: bool = True) -> None:
        """Each by itself, so that parts of one shape share what is compiled. On GPUs as CUDA
        graphs: inputs keep their shape and weights their place. Not with activation checkpointing,
        whose second forward pass would write over what a graph's backward pass still needs."""
        if not self.compile:
            return
        for part in parts:
            on_gpu = any(parameter.is_cuda for parameter in part.parameters())
            part.compile(mode="reduce-overhead" if on_gpu and graphs else None)

    def begin_pass(self, device: torch.device) -> None:
        """Before a forward pass of compiled parts: CUDA graphs may take back the last one's
        memory, and not what another part gave in this one."""
        if self.compile and device.type == "cuda":
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
