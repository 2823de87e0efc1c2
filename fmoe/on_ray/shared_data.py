"""Training data in Ray's object store: read and verified once, in the driver; or streamed."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray
import torch

from fmoe.data import Split, TrainingData
from fmoe.data.facts import Identity
from fmoe.data.splits import Images
from fmoe.data.streamed import FILES_AT_ONCE, Streamed
from fmoe.on_ray.streaming import AT_ONCE, OnRay

Arrays = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class SharedData:
    """Train and val as arrays in Ray's object store, of which workers on a node share one copy; or
    in files, which they read."""

    name: str
    identity: Identity
    train: Arrays | Streamed
    val: Arrays | Streamed

    @classmethod
    def of(cls, data: TrainingData[Images]) -> SharedData:
        return cls(data.name, data.identity, _shared(data.train), _shared(data.val))

    @property
    def nbytes(self) -> int:
        """That it takes in the object store."""
        return sum(_bytes(part) for part in (self.train, self.val))

    def put(self) -> Any:
        """Its reference in the object store. Files of this machine will be read on it."""
        return ray.put(replace(self, train=_placed(self.train), val=_placed(self.val)))

    def data(self) -> TrainingData[Images]:
        with warnings.catch_warnings():
            # the store's arrays are read-only, and nothing of ours writes to them
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return TrainingData(self.name, _opened(self.train), _opened(self.val), self.identity)


def _shared(images: Images) -> Arrays | Streamed:
    if isinstance(images, Streamed):
        folder = images.shards.folder.patient()  # an outage of its storage is waited out
        return replace(images, shards=replace(images.shards, folder=folder), ahead=OnRay())
    split = images.held()
    return split.images.numpy(), split.labels.numpy()


def _placed(part: Arrays | Streamed) -> Arrays | Streamed:
    if isinstance(part, Streamed) and part.shards.folder.local:
        return replace(part, ahead=OnRay(ray.get_runtime_context().get_node_id()))
    return part


def _bytes(part: Arrays | Streamed) -> int:
    if not isinstance(part, Streamed):
        return sum(array.nbytes for array in part)
    file = part.nbytes // max(1, len(part)) * part.shards.about.rows
    return part.rows.nbytes + (AT_ONCE + 2) * FILES_AT_ONCE * file


def _opened(part: Arrays | Streamed) -> Images:
    if isinstance(part, Streamed):
        return part
    images, labels = part
    return Split(torch.from_numpy(images), torch.from_numpy(labels))
