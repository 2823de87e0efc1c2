"""What to say where a step does not fit into memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fmoe.config import Joint, Phase
from fmoe.errors import UserError

NOT_ALLOCATED = ("can't allocate memory", "out of memory", "std::bad_alloc")
"""As torch's allocators, and its libraries', say it in a `RuntimeError`."""


@contextmanager
def fitting(phase: Phase) -> Iterator[None]:
    """Raises `UserError` with the settings that take less, where memory ends within."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not ended(error):
            raise
        raise UserError(remedies(phase)) from error


def ended(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(text in str(error) for text in NOT_ALLOCATED)


def remedies(phase: Phase) -> str:
    """What takes less memory for the same batch first, and then a smaller batch."""
    joint = isinstance(phase, Joint)
    path = "joint" if joint else "experts.train"
    options = []
    if 4 * phase.accumulate <= phase.batch_size:  # a part has two images at least
        options.append(f"{path}.accumulate={2 * phase.accumulate}")
    if isinstance(phase, Joint) and not phase.checkpointing:
        options.append("joint.checkpointing=true")
    options.append(f"more workers, or {path}.batch_size below {phase.batch_size}")
    return f"{path}: a step does not fit into memory: --set {', or '.join(options)}"
