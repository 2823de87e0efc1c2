"""Products of matrices in float32 on CPUs where MKL, which torch takes for them, is slow.

MKL keeps its best kernels for Intel's CPUs: on an AMD Zen 5 a product of 256x864 by 864x864 takes
it 3.5 ms, and oneDNN 1.7, its copies included.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

CPUS = Path("/proc/cpuinfo")
FEWEST_ROWS = 16
"""Below, oneDNN's copies cost more than is won."""


def add_product(sum_NO: Tensor, a_NI: Tensor, b_OI: Tensor) -> None:
    """sum += a @ b.T, in place."""
    if by_onednn(a_NI):
        sum_NO += _product(a_NI, b_OI)
    else:
        sum_NO.addmm_(a_NI, b_OI.t())


def products(a_GNI: Tensor, b_GOI: Tensor) -> Tensor:
    """[G,N,O]: a @ b.T of each pair."""
    if by_onednn(a_GNI):
        return torch.stack([_product(a, b) for a, b in zip(a_GNI, b_GOI, strict=True)])
    return torch.bmm(a_GNI, b_GOI.transpose(1, 2))


def by_onednn(a: Tensor) -> bool:
    """Whether oneDNN multiplies [...,N,I]: not where gradients of gradients may be asked for, and
    not in what is traced, where N may be unknown."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled():
        return False
    known = a.device.type == "cpu" and a.dtype == torch.float32
    return known and a.shape[-2] >= FEWEST_ROWS and mkl_is_slow()


def _product(a_NI: Tensor, b_OI: Tensor) -> Tensor:
    return F.linear(a_NI.to_mkldnn(), b_OI.to_mkldnn()).to_dense()


@cache
def mkl_is_slow() -> bool:
    """Whether both libraries are there, on a CPU of AMD's."""
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):  # type: ignore[no-untyped-call]
        return False
    try:
        return "AuthenticAMD" in CPUS.read_text()
    except OSError:  # not Linux
        return False
