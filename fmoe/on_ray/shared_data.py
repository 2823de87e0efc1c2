"""Training data in Ray's object store: read and verified once, in the driver."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch

from fmoe.data import Split, TrainingData
from fmoe.data.facts import Identity


@dataclass(frozen=True)
class SharedData:
    """Train and val as arrays in Ray's object store: workers on a node share one copy."""

    name: str
    identity: Identity
    arrays: dict[str, np.ndarray]

    @classmethod
    def of(cls, data: TrainingData) -> SharedData:
        parts = {"train": data.train, "val": data.val}
        arrays = {f"{n}_images": s.images.numpy() for n, s in parts.items()}
        arrays |= {f"{n}_labels": s.labels.numpy() for n, s in parts.items()}
        return cls(data.name, data.identity, arrays)

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays.values())

    def data(self) -> TrainingData:
        def split(part: str) -> Split:
            return Split(
                torch.from_numpy(self.arrays[f"{part}_images"]),
                torch.from_numpy(self.arrays[f"{part}_labels"]),
            )

        with warnings.catch_warnings():
            # the store's arrays are read-only, and nothing of ours writes to them
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return TrainingData(self.name, split("train"), split("val"), self.identity)
