"""Pixels of a part that is being prepared, in a file: as many as have been decoded.

How far it is stands beside it, written once the pixels are on the disk, so that a later try goes on
from there.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from fmoe.documents import NotRead, parse_json

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
            told = parse_json(scratch._state.read_bytes())
            channels, height, width = map(int, told["shape"])
            done, size = int(told["done"]), scratch.file.stat().st_size
        except (OSError, NotRead, KeyError, TypeError, ValueError):
            return scratch
        if 0 < done <= most and size >= done * channels * height * width > 0:
            scratch.shape, scratch.done = (channels, height, width), done
        return scratch

    @property
    def file(self) -> Path:
        return self.folder / f"{self.name}.pixels"

    @property
    def _state(self) -> Path:
        return self.folder / f"{self.name}.json"

    def forget(self) -> None:
        """Empty again."""
        self._state.unlink(missing_ok=True)
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
        self._state.unlink(missing_ok=True)
        os.replace(wide.file, self.file)
        wide._state.unlink()
        self.shape = channels, *self.shape[1:]
        self._tell(self.done)

    def _tell(self, done: int) -> None:
        self.done = done
        aside = self._state.with_suffix(".tmp")
        aside.write_text(json.dumps({"shape": self.shape, "done": done}))
        os.replace(aside, self._state)


def in_colour(images: Image, channels: int) -> Image:
    """Grey ones [n,1,H,W] repeated to so many channels."""
    return images if images.shape[1] == channels else np.repeat(images, channels, axis=1)
