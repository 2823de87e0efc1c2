"""Encoded pictures to pixels of one size: decoded by all cores, resized, and kept in a file.

Every picture has the size that is asked for, or the first one's. Resizing is Pillow's bilinear
filter on 8 bits, which is antialiased where it makes smaller: height and width each by its own
factor, as `fmoe predict` does. Channels are grey where all pictures are, unless a number is asked
for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import psutil

from fmoe.cpus import usable_cpus
from fmoe.data.facts import LARGEST_SIDE
from fmoe.data.images import resized
from fmoe.data.pictures import decode, in_channels
from fmoe.data.scratch import Image, Scratch
from fmoe.data.sources.source import Arrays, Encoded, Pictures, Wanted
from fmoe.errors import UserError

AT_ONCE = 256
"""Images that are kept together for a later try."""


@dataclass(frozen=True)
class Decoder:
    """work: where pixels are kept until the set is written; progress: told how many are decoded."""

    wanted: Wanted
    work: Path
    progress: Callable[[int], None]

    def all(self, name: str, pictures: Pictures, size: tuple[int, int] | None) -> Scratch:
        """size: of another part's images, if it is decoded.

        Raises `UserError` with the file's name for a picture that cannot be read, or has another
        size.
        """
        total = len(pictures.labels)
        scratch = Scratch.found(self.work, name, total)
        if pictures.version is None or not self._fits(scratch, size):
            scratch.forget()
        if scratch.done:
            self.progress(scratch.done)
        encoded = pictures.read(scratch.done)
        while scratch.done < total:
            count = min(AT_ONCE, total - scratch.done)
            asked = self.wanted.size or (scratch.shape[1:] if scratch.shape else size)
            scratch.append(self._decoded(islice(encoded, count), count, asked))
            self.progress(count)
        return scratch

    def _fits(self, scratch: Scratch, size: tuple[int, int] | None) -> bool:
        wanted = self.wanted.size or size
        return scratch.shape is None or wanted is None or scratch.shape[1:] == wanted

    def fitted(self, given: Arrays) -> Image:
        """Arrays in the size and channels that are asked for."""
        images, size = given.images, self.wanted.size or given.images.shape[2:]
        height, width = size
        if max(size) > LARGEST_SIDE:
            raise UserError(
                f"{given.source}: {height}x{width} pixels; give --size to make the images smaller "
                f"(at most {LARGEST_SIDE} a side)"
            )
        refuse_too_large(len(images), (1, images.shape[1], height, width))
        if (height, width) != images.shape[2:]:
            images = np.stack([resized(image, (height, width)) for image in images])
        if self.wanted.channels not in (None, images.shape[1]):
            images = np.stack([in_channels(image, self.wanted.channels) for image in images])
        self.progress(len(images))
        return images

    def _decoded(
        self, encoded: Iterator[Encoded], count: int, size: tuple[int, int] | None
    ) -> Image:
        """[`count`,C,H,W], in colour where one is."""
        first = next(encoded)
        start = self._one(first, size)
        size = size or (start.shape[1], start.shape[2])
        images = np.empty((count, start.shape[0], *size), np.uint8)
        images[0], place = start, 1
        with ThreadPoolExecutor(usable_cpus()) as pool:
            while some := list(islice(encoded, 64)):
                for image in pool.map(self._one, some, [size] * len(some)):
                    if len(image) > images.shape[1]:
                        images = np.repeat(images, len(image), axis=1)
                    images[place], place = image, place + 1
        assert place == count
        return images

    def _one(self, encoded: Encoded, size: tuple[int, int] | None) -> Image:
        source, data = encoded
        image = decode(data, source, self.wanted.channels)
        if size is None:
            if max(image.shape[1:]) > LARGEST_SIDE:
                raise UserError(
                    f"{source}: {image.shape[1]}x{image.shape[2]} pixels; give --size to make the "
                    f"images smaller (at most {LARGEST_SIDE} a side)"
                )
            return image
        if image.shape[1:] != size and self.wanted.size is None:
            raise UserError(
                f"{source}: has {image.shape[1]}x{image.shape[2]} pixels, and others "
                f"{size[0]}x{size[1]}; give --size to resize all"
            )
        return resized(image, size)


def refuse_too_large(images: int, shape: tuple[int, ...]) -> None:
    """Raises `UserError` where so many of one image's size do not fit into memory, twice."""
    needed = 2 * images * int(np.prod(shape[1:]))
    if needed > psutil.virtual_memory().available:
        raise UserError(
            f"{images} images of {'x'.join(map(str, shape[1:]))} take {needed / 1e9:.1f} GB while "
            "they are prepared, more than there is memory for; give a smaller --size"
        )
