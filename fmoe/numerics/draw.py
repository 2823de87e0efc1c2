"""Random numbers that depend on a key and nothing else.

Every draw of a training step comes from a `Draw` keyed by (run seed, global step). So all ranks
draw the same attack, noise for the global batch is the same however many ranks share it, and a
resumed run sees the numbers it would have seen (DESIGN: the draw survives a resume).
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def shard(total: int, rank: int, world_size: int) -> slice:
    """The rows of a global batch that belong to a rank; sizes differ by at most one."""
    size, extra = divmod(total, world_size)
    start = rank * size + min(rank, extra)
    return slice(start, start + size + (rank < extra))


class Draw:
    """A stream of draws for one key.

    total, rows: the global batch's size and this rank's rows (or indices) of it; noise is drawn
    for the whole batch and cut, so that it does not depend on the number of ranks.
    """

    def __init__(
        self, *key: int | str, total: int | None = None, rows: slice | Tensor | None = None
    ):
        self.key = key
        digest = hashlib.sha256(repr(key).encode()).digest()
        self.seed = int.from_bytes(digest[:8], "big") >> 1
        self.total = total
        self.rows: slice | Tensor = slice(None) if rows is None else rows
        self._random = random.Random(self.seed)
        self._generators: dict[torch.device, torch.Generator] = {}

    @classmethod
    def from_global(cls) -> Draw:
        """Keyed by torch's global generator: `torch.manual_seed` decides."""
        return cls(int(torch.randint(2**62, ()).item()))

    def places(self, count: int, device: torch.device) -> Tensor:
        """Of this rank's `count` rows in the global batch, int64."""
        if isinstance(self.rows, Tensor):
            return self.rows.to(device)
        return torch.arange(count, device=device) + (self.rows.start or 0)

    def part(self, start: int, stop: int) -> Draw:
        """The same stream from its beginning, for some of this rank's rows."""
        assert isinstance(self.rows, slice)
        first = self.rows.start or 0
        return Draw(*self.key, total=self.total, rows=slice(first + start, first + stop))

    def generator(self, device: torch.device) -> torch.Generator:
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self.seed)
        return self._generators[device]

    def pick(self, options: Sequence[T], weights: Sequence[float] | None = None) -> T:
        return self._random.choices(options, weights)[0]

    def noise(self, like: Tensor) -> Tensor:
        """Uniform in [-1, 1], of the shape of `like` (this rank's rows)."""
        total = len(like) if self.total is None else self.total
        generator = self.generator(like.device)
        uniform = torch.rand((total, *like.shape[1:]), generator=generator, device=like.device)
        return uniform[self.rows].mul_(2).sub_(1)

    def integers(self, high: int, like: Tensor) -> Tensor:
        """Integers in [0, high), one a row of `like` (this rank's rows)."""
        total = len(like) if self.total is None else self.total
        generator = self.generator(like.device)
        return torch.randint(high, (total,), generator=generator, device=like.device)[self.rows]
