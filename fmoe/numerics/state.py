"""What parts of a training remember, as tensors by name, checked before it is taken back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from fmoe.errors import UserError

REMEDY = "delete the checkpoints and train again"


class Stateful(Protocol):
    """A part of a training whose tensors a checkpoint keeps, as a family of their own.

    They are the same on all workers: the first one's are kept, and all take them back.
    """

    def state(self) -> dict[str, Tensor]:
        """By name, on any device; a later step may change them in place."""
        ...

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Raises `UserError`, before anything is changed, for any but what `state` would give."""
        ...


def require(given: Mapping[str, Tensor], like: Mapping[str, Tensor], family: str) -> None:
    """Raises `UserError` unless names, types and shapes are those of `like`."""
    for name in sorted(given.keys() ^ like.keys()):
        what = "is missing" if name in like else "is unknown"
        raise UserError(f"the checkpoint does not fit: {family}.{name[:100]} {what}: {REMEDY}")
    for name, tensor in like.items():
        kept = given[name]
        if (kept.dtype, kept.shape) != (tensor.dtype, tensor.shape):
            raise UserError(
                f"the checkpoint does not fit: {family}.{name} is {kept.dtype} "
                f"{list(kept.shape)}, not {tensor.dtype} {list(tensor.shape)}: {REMEDY}"
            )
