"""What `evaluate` is given, checked before anything runs: a line that names the argument."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fmoe.attacks import eval_mode
from fmoe.data import Split
from fmoe.errors import UserError, first_line
from fmoe.evaluation.copies import NotCopied, copied
from fmoe.evaluation.outputs import check, checked
from fmoe.numerics.precision import exact

CHANNELS = (1, 3)
"""Where the last dimension is one of these and the second is not, channels are taken to be last."""
INTEGERS = (
    torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
    torch.uint16, torch.uint32, torch.uint64,
)  # fmt: skip


def split(images: Any, labels: Any) -> Split:
    """uint8 [N,C,H,W] and int64 [N] of tensors or NumPy arrays (labels: of a list of ints, too)."""
    images, labels = _images(images), _labels(labels)
    if len(images) != len(labels):
        raise UserError(f"labels: {len(labels)} for {len(images)} images; expected one each")
    if labels.min() < 0:
        raise UserError(f"labels: {int(labels.min())} is among them; expected classes from 0 on")
    return Split(images, labels)


def _images(given: Any) -> Tensor:
    wanted = (
        "expected uint8 [N,C,H,W], pixels from 0 to 255 (normalisation belongs inside the model)"
    )
    if isinstance(given, np.ndarray) and given.dtype == np.uint8:
        given = torch.from_numpy(np.ascontiguousarray(given))
    if not isinstance(given, Tensor):
        kind = f" of {given.dtype}" if isinstance(given, np.ndarray) else ""
        raise UserError(f"images: {type(given).__name__}{kind}; {wanted}")
    if given.dtype != torch.uint8 or given.dim() != 4:
        raise UserError(f"images: {given.dtype} of shape {tuple(given.shape)}; {wanted}")
    if len(given) == 0:
        raise UserError("images: no images to judge")
    shape = tuple(given.shape)
    if given.numel() == 0:
        raise UserError(f"images: of shape {shape}, without a pixel")
    if shape[1] not in CHANNELS and shape[3] in CHANNELS:
        raise UserError(
            f"images: of shape {shape}, channels last; expected [N,C,H,W]: permute(0, 3, 1, 2)"
        )
    return given.detach()


def _labels(given: Any) -> Tensor:
    wanted = "expected whole numbers [N], a class for each image"
    if isinstance(given, list | tuple):
        wrong = [label for label in given if type(label) is not int]
        if wrong:
            raise UserError(f"labels: a {type(wrong[0]).__name__} in a list; {wanted}")
        given = np.array(given, dtype=np.int64)
    if isinstance(given, np.ndarray) and given.dtype.kind in "iu":
        given = torch.from_numpy(given.astype(np.int64))
    if not isinstance(given, Tensor):
        kind = f" of {given.dtype}" if isinstance(given, np.ndarray) else ""
        raise UserError(f"labels: {type(given).__name__}{kind}; {wanted}")
    if given.dtype not in INTEGERS or given.dim() != 1:
        remedy = ""
        if given.dim() == 2:
            remedy = ": labels[:, 0]" if given.shape[1] == 1 else ": labels.argmax(1) of one-hot"
        raise UserError(f"labels: {given.dtype} of shape {tuple(given.shape)}; {wanted}{remedy}")
    return given.detach().long()


def names(attacks: Any) -> tuple[str, ...]:
    """An empty sequence asks for the clean accuracy alone; a name may come twice."""
    if isinstance(attacks, str):
        raise UserError(f"attacks: {attacks!r} is one string; expected a list, as [{attacks!r}]")
    if not isinstance(attacks, Sequence | set | frozenset):
        raise UserError(f"attacks: {type(attacks).__name__}; expected a list of names")
    return tuple(attacks)


def number(value: Any) -> Any:
    """A NumPy number as Python's; the rest is for `Settings` to judge."""
    return value.item() if isinstance(value, np.generic) else value


def place(device: Any) -> torch.device:
    try:
        chosen = torch.device(device)
        torch.zeros(1, device=chosen).cpu()
    except (RuntimeError, TypeError, AssertionError) as error:
        raise UserError(f"device: {device!r} cannot be used: {first_line(error)}") from error
    return chosen


class Scripted(nn.Module):
    """A scripted module takes no hooks, which see what a model is asked and answers."""

    def __init__(self, module: torch.jit.ScriptModule):
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Any:
        return self.module(x)


def classifier(model: Any, given: Split) -> nn.Module:
    """A copy of the model on the images' device (itself where it cannot be copied), asked about
    two images and about one; `UserError` where it cannot answer, or has too few classes."""
    if not isinstance(model, nn.Module):
        kind = "the class" if isinstance(model, type) else "a"
        name = model.__name__ if isinstance(model, type) else type(model).__name__
        raise UserError(f"model: {kind} {name}; expected a torch.nn.Module from images to logits")
    inner = getattr(model, "_orig_mod", None)  # torch.compile's wrapper would compile each copy
    model = inner if isinstance(inner, nn.Module) else model
    if isinstance(model, torch.jit.ScriptModule):
        model = Scripted(model)
    device = given.labels.device
    try:
        ready, tried = copied(model).to(device), copied(model).to(device)
    except NotCopied:  # `judge` says it
        ready = tried = model.to(device)
    classes = _answers(tried, given)
    most = int(given.labels.max())
    if most >= classes:
        raise UserError(
            f"labels: {most} is among them; the model has {classes} classes, 0..{classes - 1}"
        )
    return ready


def _answers(model: nn.Module, given: Split) -> int:
    """The number of classes that it gives."""
    classes = 0
    for images in (given[:2], given[:1]):
        x = images.pixels()
        try:
            with torch.no_grad(), eval_mode(model), exact(), checked(model):
                classes = check(model(x), len(x), classes or None)
        except UserError:
            raise
        except Exception as error:
            raise UserError(_fails(model, x, error)) from error
    return classes


def _fails(model: nn.Module, x: Tensor, error: Exception) -> str:
    kinds = {str(p.dtype) for p in model.parameters() if p.dtype != x.dtype}
    remedy = f" (its parameters are {', '.join(sorted(kinds))}: model.float())" if kinds else ""
    how = "float32 images of shape " + str(tuple(x.shape))
    return f"model: fails on {how}{remedy}: {type(error).__name__}: {first_line(error)}"
