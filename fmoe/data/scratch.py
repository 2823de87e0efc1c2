"""Pixels of a part that is being prepared, in a file: as many as have been decoded.

How far it is stands beside it, written once the pixels are on the disk, so that a later try goes on
from there.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from fmoe.storage.folder import Damaged, Folder

Image = np.ndarray[Any, np.dtype[np.uint8]]
AT_ONCE = 256
"""Images that are given another number of channels."""


@dataclass
class Scratch:
    """name: of its files in `folder`; shape: [C,H,W] of each of the `done` images."""

    folder: Path
    name: str
    shape: tuple[int, int, int] | None = None
    done: int = 0

    @classmethod
    def found(cls, folder: Path, name: str, most: int) -> Scratch:
        """What an interrupted try has left of `most` images, or an empty one."""
        folder.mkdir(parents=True, exist_ok=True)
        scratch = cls(folder, name)
        try:
            told = scratch._told.read_json(scratch._state)
            channels, height, width = map(int, told["shape"])
            done, size = int(told["done"]), scratch.file.stat().st_size
        except (OSError, Damaged, KeyError, TypeError, ValueError):
            return scratch
        if 0 < done <= most and size >= done * channels * height * width > 0:
            scratch.shape, scratch.done = (channels, height, width), done
        return scratch

    @property
    def file(self) -> Path:
        return self.folder / f"{self.name}.pixels"

    @property
    def _state(self) -> str:
        return f"{self.name}.json"

    @property
    def _told(self) -> Folder:
        return Folder.at(self.folder)

    def forget(self) -> None:
        """Empty again."""
        self._told.delete_file(self._state)
        self.shape, self.done = None, 0

    def append(self, images: Image) -> None:
        """[n,C,H,W]; once one is in colour all are."""
        if self.shape is None:
            self.shape = images.shape[1], images.shape[2], images.shape[3]
        if images.shape[1] > self.shape[0]:
            self._widen(images.shape[1])
        images = in_colour(images, self.shape[0])
        with open(self.file, "r+b" if self.done else "wb") as stream:
            stream.seek(self.done * prod(self.shape))
            stream.write(np.ascontiguousarray(images).data)
            stream.truncate()
            stream.flush()
            os.fsync(stream.fileno())
        self._tell(self.done + len(images))

    def read(self, rows: np.ndarray[Any, Any]) -> Image:
        """[n,C,H,W]."""
        assert self.shape is not None
        images = np.empty((len(rows), *self.shape), np.uint8)
        size = prod(self.shape)
        stream = os.open(self.file, os.O_RDONLY)
        try:
            for image, row in zip(images, rows.tolist(), strict=True):
                if os.preadv(stream, [image.reshape(-1).data], row * size) != size:
                    raise OSError(f"{self.file}: cut off")
        finally:
            os.close(stream)
        return images

    def _widen(self, channels: int) -> None:
        assert self.shape is not None
        wide = Scratch(self.folder, f"{self.name}-colour")
        for start in range(0, self.done, AT_ONCE):
            rows = np.arange(start, min(start + AT_ONCE, self.done))
            wide.append(in_colour(self.read(rows), channels))
        self._told.delete_file(self._state)
        os.replace(wide.file, self.file)
        self._told.delete_file(wide._state)
        self.shape = channels, *self.shape[1:]
        self._tell(self.done)

    def _tell(self, done: int) -> None:
        self.done = done
        self._told.write_json(self._state, {"shape": self.shape, "done": done})


def in_colour(images: Image, channels: int) -> Image:
    """Grey ones [n,1,H,W] repeated to so many channels."""
    return images if images.shape[1] == channels else np.repeat(images, channels, axis=1)
