"""What a worker's device computes, holds and hears in a second.

Peaks of GPUs are their makers', of dense matrix products. What training reaches of them is ours:
it is not measured here (no GPU), and `fmoe plan --calibrate` takes what this machine reaches.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import psutil
import torch

from fmoe.config import Config
from fmoe.cpus import usable_cpus
from fmoe.errors import UserError
from fmoe.numerics.precision import multiplies_bfloat16

REACHED = 0.3
"""Of the peak, by convolutions of some size and all that stands between them."""
GIBIBYTE = 2**30


@dataclass(frozen=True)
class Machine:
    """peaks: operations a second by precision; kernel: seconds that the start of one takes at
    least, so that small networks do not get faster; memory: bytes; reached: share of the peak;
    bfloat16: whether it multiplies in it."""

    name: str
    peaks: dict[str, float]
    memory: float
    kernel: float
    reached: float = REACHED
    bfloat16: bool = True

    def computed(self, config: Config) -> Config:
        """As it is trained there: in float32 where there is no bfloat16."""
        return config if self.bfloat16 else config.model_copy(update={"precision": "float32"})


GPUS = {
    "a100": Machine("a100", {"float32": 156e12, "bfloat16": 312e12}, 80 * GIBIBYTE, 6e-6),
    "h100": Machine("h100", {"float32": 494e12, "bfloat16": 989e12}, 80 * GIBIBYTE, 5e-6),
    "l4": Machine("l4", {"float32": 60e12, "bfloat16": 121e12}, 24 * GIBIBYTE, 6e-6),
    "t4": Machine("t4", {"float32": 8.1e12}, 16 * GIBIBYTE, 8e-6, bfloat16=False),
}
"""float32 is TF32's peak where the GPU has it; the T4 has neither that nor bfloat16."""
KINDS = (*GPUS, "cpu")
LINKS = {"bit": 1.0, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
LATENCY = 2e-4
"""Seconds that a collective takes at least over a network."""


def machine(kind: str, workers: int) -> Machine:
    """Raises `UserError` for a kind that is not known. cpu: this one's cores, shared out."""
    if kind in GPUS:
        return GPUS[kind]
    if kind != "cpu":
        raise UserError(f"--gpu-type {kind}: there are {', '.join(KINDS)}")
    threads = max(1, usable_cpus() // workers)
    peaks = {"float32": products_a_second(torch.float32, threads)}
    low = multiplies_bfloat16(torch.device("cpu"))
    if low:
        peaks["bfloat16"] = products_a_second(torch.bfloat16, threads)
    memory = psutil.virtual_memory().total / min(workers, usable_cpus())
    return Machine("cpu", peaks, memory, 2e-5, 0.2, low)


def products_a_second(dtype: torch.dtype, threads: int, side: int = 1024) -> float:
    """Operations a second of this machine's matrix product."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        a = torch.randn(side, side).to(dtype)
        times = []
        for _ in range(6):
            begin = time.perf_counter()
            a @ a
            times.append(time.perf_counter() - begin)
    finally:
        torch.set_num_threads(before)
    return float(2 * side**3 / min(times))


def link(text: str) -> float:
    """Bytes a second of `10gbit`, `100mbit`. Raises `UserError`."""
    for unit in sorted(LINKS, key=len, reverse=True):
        number = text.lower().removesuffix(unit)
        if text.lower().endswith(unit):
            try:
                value = float(number)
            except ValueError:
                break
            if 0 < value < 1e9:
                return value * LINKS[unit] / 8
            break
    raise UserError(f"--link {text}: expected a speed such as 100mbit or 10gbit")
