"""A data set in Ray's object store: read and verified once, in the driver."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch

from fmoe.data import Data, Name, Split


@dataclass(frozen=True)
class SharedData:
    """A data set as arrays in Ray's object store: workers on a node share one copy."""

    name: Name
    digest: str
    arrays: dict[str, np.ndarray]

    @classmethod
    def of(cls, data: Data) -> SharedData:
        parts = {"train": data.train, "val": data.val, "test": data.test}
        arrays = {f"{n}_images": s.images.numpy() for n, s in parts.items()}
        arrays |= {f"{n}_labels": s.labels.numpy() for n, s in parts.items()}
        return cls(data.name, data.digest, arrays)

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays.values())

    def data(self) -> Data:
        def split(part: str) -> Split:
            return Split(
                torch.from_numpy(self.arrays[f"{part}_images"]),
                torch.from_numpy(self.arrays[f"{part}_labels"]),
            )

        with warnings.catch_warnings():
            # the store's arrays are read-only, and nothing of ours writes to them
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return Data(self.name, split("train"), split("val"), split("test"), self.digest)
