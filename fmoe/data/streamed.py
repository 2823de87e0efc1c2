"""Labelled images in files, of which a window at a time is in memory.

An epoch goes through a part's files in an order of its own, a few of them at a time (a window),
whose images it shuffles: what is drawn depends on the seed and the epoch alone. Where one window
holds all, that is the order of images in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor

from fmoe.data.readers import Arrays
from fmoe.data.shards import Rows, Shards
from fmoe.data.splits import Split
from fmoe.errors import UserError
from fmoe.numerics.draw import Draw

FILES_AT_ONCE = 4
"""Of a window: 32 MiB of pixels."""
LARGEST_HELD = 2 << 30
"""Bytes of training images from which on they are streamed, unless `data.stream` says."""
CPU = torch.device("cpu")
Read = Callable[[Rows], Arrays]
Ahead = Callable[[Read, Sequence[Rows]], Iterator[Arrays]]
"""What reads several times in order, while what it has read is in use."""


def in_thread(read: Read, wanted: Sequence[Rows]) -> Iterator[Arrays]:
    """One ahead, in a thread of this process, which must not call torch: two threads that do have
    two teams of OpenMP's, and both are slow."""
    with ThreadPoolExecutor(1) as pool:
        futures = (pool.submit(read, rows) for rows in wanted)
        coming = next(futures, None)
        while coming is not None:
            found = coming.result()
            coming = next(futures, None)
            yield found


@dataclass(frozen=True)
class Streamed:
    """The images `rows` of a part [N], in this order. Like a `Split`, but in files."""

    shards: Shards
    rows: Tensor
    ahead: Ahead = in_thread
    device: torch.device = CPU

    @classmethod
    def of(cls, shards: Shards) -> Streamed:
        return cls(shards, torch.arange(len(shards)))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: Any) -> Streamed:
        return replace(self, rows=self.rows[rows])

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.shards.kind.shape

    @property
    def nbytes(self) -> int:
        """Of the pixels of all, were they in memory."""
        return len(self) * prod(self.shape)

    @property
    def places(self) -> Rows:
        return np.asarray(self.shards.places[self.rows.numpy()])

    def to(self, device: torch.device) -> Streamed:
        return replace(self, device=device)

    def held(self) -> Split:
        """In memory. Raises `UserError` where they do not fit."""
        if 2 * self.nbytes > psutil.virtual_memory().available:
            raise UserError(
                f"{self.shards.kind.name}: {len(self)} images of "
                f"{'x'.join(map(str, self.shape))} take {self.nbytes / 1e9:.1f} GB, more than "
                "there is memory for: train with data.stream=true, judge fewer (--limit)"
            )
        images = torch.empty(len(self), *self.shape, dtype=torch.uint8)
        labels = torch.empty(len(self), dtype=torch.int64)
        for places, piece in self.pieces():
            images[places], labels[places] = piece.images, piece.labels
        return Split(images, labels).to(self.device)

    def pieces(self) -> Iterator[tuple[Tensor, Split]]:
        """All of them, a file's at a time, and which they are."""
        places = self.places
        files = places // self.shards.about.rows
        for number in np.unique(files):
            here = np.flatnonzero(files == number)
            images, labels = self.shards.read(places[here])
            yield torch.from_numpy(here), as_split(images, labels)

    def order(self, shuffle: Draw) -> Tensor:
        """Of an epoch, window by window [N]."""
        generator = shuffle.generator(CPU)
        order = torch.randperm(len(self), generator=generator)
        files = torch.from_numpy(self.places // self.shards.about.rows)
        there, which = torch.unique(files, return_inverse=True)
        turns = torch.randperm(len(there), generator=generator)
        windows = turns[which] // FILES_AT_ONCE
        return order[windows[order].argsort(stable=True)]

    def batches(self, rows: Sequence[Tensor]) -> Iterator[Split]:
        """Those of each tensor of rows; reads ahead."""
        if not rows:
            return
        wanted = self[torch.cat(list(rows))].places
        pieces = self.ahead(self.shards.read, windows(wanted, self.shards.about.rows))
        images, labels = np.empty((0, *self.shape), np.uint8), np.empty(0, np.int64)
        for lacking in map(len, rows):
            parts: list[Arrays] = []
            while lacking:
                if not len(labels):
                    images, labels = next(pieces)
                parts.append((images[:lacking], labels[:lacking]))
                images, labels = images[lacking:], labels[lacking:]
                lacking -= len(parts[-1][1])
            yield as_split(*map(np.concatenate, zip(*parts, strict=True))).to(self.device)


def windows(places: Rows, rows: int) -> list[Rows]:
    """Consecutive ones that lie in a few files each."""
    _, first = np.unique(places // rows, return_index=True)
    starts = np.sort(first)[::FILES_AT_ONCE]
    return np.split(places, starts[1:])


def as_split(images: Any, labels: Any) -> Split:
    return Split(torch.from_numpy(images), torch.from_numpy(labels))
