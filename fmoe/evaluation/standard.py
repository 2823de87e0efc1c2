"""The standard attacks of the protocol, each judging one chunk of images.

An attack takes the images that are still right and says which of them survive. Draws are those of
the whole chunk, cut to the images attacked: leaving an image out changes no other's verdict.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fmoe.attacks import FGSM, PGD, Attack, Objective
from fmoe.draw import Draw

RESTARTS = 5
ROUNDING = 1e-6


@dataclass(frozen=True)
class Chunk:
    """float images [B,C,H,W] in [0,1], labels [B]; key: seed and place in the data set."""

    x: Tensor
    y: Tensor
    key: tuple[int | str, ...]


Survivors = tuple[Tensor, list[str]]
"""bool [B]: still right after the attack; and the flags that the attack raised."""


def assert_within(x_adv: Tensor, x: Tensor, eps: float) -> None:
    distance = (x_adv - x).abs().max().item()
    assert distance <= eps + ROUNDING, f"an adversarial image is {distance} away, eps is {eps}"
    assert x_adv.min() >= 0, "an adversarial image leaves [0,1]"
    assert x_adv.max() <= 1, "an adversarial image leaves [0,1]"


def survivors(
    model: nn.Module, chunk: Chunk, alive: Tensor, attack: Attack, *key: str | int
) -> Tensor:
    """alive [B] with the images removed that this attack breaks."""
    rows = alive.nonzero()[:, 0]
    if len(rows) == 0:
        return alive
    draw = Draw(*chunk.key, *key, total=len(chunk.y), rows=rows)
    x, y = chunk.x[rows], chunk.y[rows]
    x_adv = attack(model, x, y, draw=draw)
    assert_within(x_adv, x, attack.eps)  # type: ignore[attr-defined]
    with torch.no_grad():
        right = model(x_adv).argmax(1) == y
    left = alive.clone()
    left[rows] = right
    return left


def fgsm(model: nn.Module, chunk: Chunk, alive: Tensor, eps: float) -> Survivors:
    return survivors(model, chunk, alive, FGSM(eps=eps), "fgsm"), []


def pgd(model: nn.Module, chunk: Chunk, alive: Tensor, eps: float) -> Survivors:
    return survivors(model, chunk, alive, PGD(eps=eps, step_size=eps / 4, steps=20), "pgd"), []


def pgd50(model: nn.Module, chunk: Chunk, alive: Tensor, eps: float) -> Survivors:
    losses: tuple[Objective, ...] = ("ce", "margin")
    for loss in losses:
        attack = PGD(eps=eps, step_size=eps / 4, steps=50, loss=loss)
        for restart in range(RESTARTS):
            alive = survivors(model, chunk, alive, attack, "pgd50", loss, restart)
    return alive, []


class _Collect(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(" ".join(record.getMessage().split()))


@contextmanager
def _contained(device: torch.device) -> Iterator[list[str]]:
    """Collects the library's warnings; what it changes for the whole process is put back.

    It seeds torch's generator, ends tracing (debuggers, coverage), and counts its warnings for as
    long as the process lives: a second model would inherit the first one's.
    """
    from pyautoattack import checks

    logger, collect = logging.getLogger("auto-attack"), _Collect()
    trace, propagate = sys.gettrace(), logger.propagate
    for name in checks.funcs:
        checks.funcs[name] = 0
    logger.addHandler(collect)
    logger.propagate = False
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield collect.messages
    finally:
        sys.settrace(trace)
        logger.removeHandler(collect)
        logger.propagate = propagate


def autoattack(model: nn.Module, chunk: Chunk, alive: Tensor, eps: float) -> Survivors:
    """The standard version by pyautoattack; its warnings become flags."""
    from pyautoattack import AutoAttack

    if not alive.any():
        return alive, []
    seed, device = int(chunk.key[0]), chunk.x.device
    x, y = chunk.x[alive].contiguous(), chunk.y[alive]
    with _contained(device) as warnings:
        library = AutoAttack(model, eps=eps, seed=seed, device=device, version="standard")
        x_adv, _ = library.run_standard_evaluation(x, y, batch_size=len(y))
    assert_within(x_adv, x, eps)
    with torch.no_grad():
        right = model(x_adv).argmax(1) == y
    left = alive.clone()
    left[alive] = right
    return left, [f"autoattack: {message}" for message in warnings]


AttackFn = Callable[[nn.Module, Chunk, Tensor, float], Survivors]
ATTACKS: dict[str, AttackFn] = {
    "fgsm": fgsm,
    "pgd": pgd,
    "pgd50": pgd50,
    "autoattack": autoattack,
}
"""A new evaluation attack: a function above and its name here."""
