"""A part of a data set in Parquet: files of a few megabytes, in an order that was drawn once.

A row is an image's pixels (uint8 [C,H,W], row by row) and its label. Pixels are decoded and resized
when the set is prepared, so that they are the same on every machine and in every epoch. Any few
files are a sample of the whole part, whatever order its images came in, and those that a run keeps
for validation lie together.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from fmoe.data.images import Pixels
from fmoe.data.readers import Arrays, Kind, checked
from fmoe.data.splits import Split, shuffled
from fmoe.errors import UserError, first_line
from fmoe.storage.folder import Damaged, Folder, sha256

FILE_BYTES = 8 << 20
"""Of pixels in a file."""
MOST_FILE_BYTES = 64 << 20
FILE = r"^(train|val|test)-[0-9]{6}-[0-9a-f]{16}\.parquet$"
IMAGE, LABEL = "image", "label"
AGAIN = "run `fmoe data prepare` again"
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Rows = np.ndarray[Any, np.dtype[np.int64]]


class File(BaseModel):
    """One of a part's files, which has this digest and so many bytes."""

    model_config = ConfigDict(strict=True, extra="forbid")
    file: Annotated[str, Field(pattern=FILE)]
    sha256: Digest
    bytes: Annotated[int, Field(ge=1, le=2 * MOST_FILE_BYTES)]


class Part(BaseModel):
    """What is known of a part. digest: sha256 over its images and labels in their own order; rows:
    images in a file, but for the last one."""

    model_config = ConfigDict(strict=True, extra="forbid")
    images: Annotated[int, Field(ge=1)]
    per_class: list[Annotated[int, Field(ge=0)]]
    digest: Digest
    rows: Annotated[int, Field(ge=1)]
    files: Annotated[list[File], Field(min_length=1)]

    def check(self, shape: tuple[int, int, int]) -> None:
        """Raises `ValueError` where files and images do not fit each other."""
        if len(self.files) != -(-self.images // self.rows):
            raise ValueError(f"files: {len(self.files)} for {self.images} images")
        if self.rows > 1 and self.rows * prod(shape) > MOST_FILE_BYTES:
            raise ValueError(f"rows: {self.rows} images of a file are too many")


@dataclass(frozen=True)
class Given:
    """Images to be written. labels: int64 [N]; read: those of some rows, uint8 [n,C,H,W]."""

    labels: np.ndarray[Any, np.dtype[np.int64]]
    read: Callable[[Rows], Pixels]

    @classmethod
    def of(cls, split: Split) -> Given:
        return cls(split.labels.numpy(), lambda rows: split.images[torch.from_numpy(rows)].numpy())

    def chunks(self, images: int) -> Iterator[Pixels]:
        """All, so many at a time."""
        for start in range(0, len(self.labels), images):
            yield self.read(np.arange(start, min(start + images, len(self.labels))))


def rows_of(shape: tuple[int, ...]) -> int:
    """Images in a file."""
    return max(1, FILE_BYTES // prod(shape))


def write(folder: Folder, name: str, given: Given, shape: tuple[int, int, int]) -> list[File]:
    """name: of the part."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    order, rows = shuffled(len(given.labels)).numpy(), rows_of(shape)
    files = []
    for number, start in enumerate(range(0, len(order), rows)):
        chosen = order[start : start + rows]
        pixels = pa.py_buffer(np.ascontiguousarray(given.read(chosen)))
        size = prod(shape)
        cells = pa.Array.from_buffers(pa.binary(size), len(chosen), [None, pixels])
        table = pa.table({IMAGE: cells, LABEL: given.labels[chosen]})
        sink = io.BytesIO()
        pq.write_table(
            table, sink, compression="zstd", compression_level=1, use_dictionary=False,
            write_statistics=False, row_group_size=rows,
        )  # fmt: skip
        data = sink.getvalue()
        digest = sha256(data)
        file = File(
            file=f"{name}-{number:06d}-{digest[:16]}.parquet", sha256=digest, bytes=len(data)
        )
        folder.write(file.file, data)
        files.append(file)
    return files


@dataclass(frozen=True)
class Shards:
    """A part's files. Pickles: workers are given one."""

    folder: Folder
    about: Part
    kind: Kind

    def __len__(self) -> int:
        return self.about.images

    @functools.cached_property
    def places(self) -> Rows:
        """Where each image is among all that the files hold, one file after another [N]."""
        order = shuffled(len(self)).numpy()
        places = np.empty_like(order)
        places[order] = np.arange(len(order))
        return places

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "places"}

    def read(self, places: Rows) -> Arrays:
        """Images uint8 [n,C,H,W] and labels int64 [n] in these places. A file is read whole, once.

        Raises `UserError`, with the file's name, for what is missing or damaged.
        """
        images = np.empty((len(places), *self.kind.shape), np.uint8)
        labels = np.empty(len(places), np.int64)
        files = places // self.about.rows
        for number in np.unique(files):
            wanted = np.flatnonzero(files == number)
            its_images, its_labels = self.file(int(number))
            rows = places[wanted] - number * self.about.rows
            images[wanted], labels[wanted] = its_images[rows], its_labels[rows]
        return images, labels

    def file(self, number: int) -> Arrays:
        """All of one file. Raises as `read`."""
        entry = self.about.files[number]
        source = f"{self.folder.uri}/{entry.file}"
        rows = min(self.about.rows, self.about.images - number * self.about.rows)
        try:
            data = self.folder.read(entry.file, limit=entry.bytes)
            if sha256(data) != entry.sha256:
                raise Damaged(f"{source}: damaged: its sha256 is not that of the set")
            images, labels = unpacked(data, rows, self.kind.shape)
        except FileNotFoundError:
            raise UserError(f"{source}: missing; {AGAIN}") from None
        except ValueError as error:  # `Damaged` among them
            text = first_line(error)
            text = text if text.startswith(source) else f"{source}: damaged: {text}"
            raise UserError(f"{text}; {AGAIN}") from None
        except OSError as error:
            raise UserError(f"{source}: cannot be read ({first_line(error)})") from None
        return checked(source, images, labels, self.kind)


def unpacked(data: bytes, rows: int, shape: tuple[int, int, int]) -> Arrays:
    """Images [rows,C,H,W] and labels [rows] of a file. What it claims decides nothing: raises
    `ValueError` (pyarrow's errors are such) unless it holds just these."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    size = prod(shape)
    with pq.ParquetFile(pa.BufferReader(data)) as opened:
        metadata, schema = opened.metadata, opened.schema_arrow
        if schema.names != [IMAGE, LABEL] or schema.types != [pa.binary(size), pa.int64()]:
            raise ValueError(f"its columns do not fit images of {size} bytes")
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        told = sum(group.total_byte_size for group in groups)
        if metadata.num_rows != rows or len(groups) != 1 or told > 2 * rows * (size + 64) + 2**16:
            raise ValueError(f"it does not hold {rows} images")
        table = opened.read(use_threads=False).combine_chunks()
    cells, labels = table[IMAGE].chunk(0), table[LABEL].chunk(0)
    if cells.null_count or labels.null_count:
        raise ValueError("it has empty cells")
    pixels = np.frombuffer(cells.buffers()[1], np.uint8, rows * size, cells.offset * size)
    return pixels.reshape(rows, *shape), labels.to_numpy()
