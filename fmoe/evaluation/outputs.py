"""What a model answers, checked on every pass: one tensor of logits [B,K], finite, or not right."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fmoe.errors import UserError
from fmoe.numerics.precision import at_least_float32

NONE = -1
"""The class of an output that is not finite: no label, so that it is never right."""
SUM = 1e-4
"""How far from 1 probabilities may sum."""


def finite(outputs: Tensor) -> Tensor:
    """bool [...]: every one of the last dimension's numbers is."""
    return outputs.isfinite().all(-1)


def classes(outputs: Tensor) -> Tensor:
    """int64 [...] of outputs [...,K]: the largest one's place, `NONE` where one is not finite
    (argmax would name the place of a NaN, and so could be right)."""
    return outputs.argmax(-1).masked_fill(~finite(outputs), NONE)


def are_probabilities(outputs: Tensor) -> Tensor:
    """bool [B]: in [0,1] and summing to 1, as no logits and no log-probabilities do."""
    z = at_least_float32(outputs)
    return (z >= 0).all(1) & (z <= 1 + SUM).all(1) & ((z.sum(1) - 1).abs() <= SUM)


class Logarithm(nn.Module):
    """The log-probabilities of a model that gives probabilities: the same classes, and a
    cross-entropy that is one."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.of(self.model(x))

    @staticmethod
    def of(outputs: Tensor) -> Tensor:
        given = at_least_float32(outputs)
        return given.clamp_min(torch.finfo(given.dtype).tiny).log()


def check(output: Any, images: int, known: int | None = None) -> int:
    """The number of classes K; raises `UserError` for anything but logits [images,K]."""
    if not isinstance(output, Tensor):
        raise UserError(
            f"model: it gives a {type(output).__name__}; expected one tensor of logits [B,K] "
            "(wrap it in a module that returns just them)"
        )
    if not output.is_floating_point():
        raise UserError(f"model: its output is {output.dtype}; expected logits as floats")
    shape = tuple(output.shape)
    if len(shape) != 2 or shape[0] != images or shape[1] < 2:
        raise UserError(
            f"model: its output for {images} images has the shape {shape}; expected [{images},K], "
            "a row per image and a column per class, at least 2"
        )
    if known is not None and shape[1] != known:
        raise UserError(f"model: it gave {known} classes, and now {shape[1]}; expected always K")
    return shape[1]


@contextmanager
def checked(*models: nn.Module, known: int | None = None) -> Iterator[None]:
    """Within, every output of these is checked, and images are theirs: what a model does to its
    input in place (normalising it, say) is done to a copy."""
    classes_seen = known

    def copied(_model: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        return (given[0].clone(), *given[1:])

    def look(_model: nn.Module, given: tuple[Any, ...], output: Any) -> None:
        nonlocal classes_seen
        classes_seen = check(output, len(given[0]), classes_seen)

    with ExitStack() as stack:
        for model in {id(model): model for model in models}.values():
            for handle in (
                model.register_forward_pre_hook(copied), model.register_forward_hook(look),
            ):  # fmt: skip
                stack.callback(handle.remove)
        yield
