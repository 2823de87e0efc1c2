"""Hugging Face's Parquet: a column of encoded pictures and one of integer labels.

`img` or `image` (struct<bytes, path>, or bytes alone), and `label` or what `Hub.label` says. Rows
are read a few at a time, so that what a file claims or repeats does not decide how much memory it
takes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from fmoe.cpus import usable_cpus
from fmoe.data.pictures import decode
from fmoe.data.readers.arrays import MOST_IMAGES, PARTS, Arrays, Kind, Part, checked, quoted
from fmoe.data.readers.files import ensure_whole
from fmoe.data.readers.layout import Layout
from fmoe.data.readers.shards import Hub, Naming, complete, namings
from fmoe.errors import UserError, first_line

PICTURES = ("img", "image")
ROWS_AT_ONCE = 64
MOST_CELL = 1 << 20
"""Bytes of an encoded picture: 300 times those of a 3x32x32 as PNG."""
MOST_BYTES = 2 << 30
"""Of a file's two columns, uncompressed: 13 times CIFAR-10's training set as PNG."""


def found(kind: Kind, hub: Hub, place: Path) -> list[Layout]:
    return [_layout(kind, hub, place, naming) for naming in namings(kind.name, hub, place)]


def _layout(kind: Kind, hub: Hub, place: Path, naming: Naming) -> Layout:
    def read(part: Part) -> Arrays:
        if not naming.parts[part]:
            pattern = naming.pattern.replace("PART", part).replace("-00000", "-*")
            raise UserError(
                f"{place}: no {part}-*.parquet beside the {_other(part)} files (no {pattern})"
            )
        pieces = [_file(file, kind, hub) for file in complete(naming.parts[part])]
        images, labels = zip(*pieces, strict=True)
        return np.concatenate(images), np.concatenate(labels)

    some = next(shards for shards in naming.parts.values() if shards)
    return Layout(str(some[0].file.relative_to(place)), read)


def _other(part: Part) -> Part:
    return PARTS[1 - PARTS.index(part)]


def _file(file: Path, kind: Kind, hub: Hub) -> Arrays:
    import pyarrow as pa
    import pyarrow.parquet as pq

    ensure_whole(file)
    try:
        with pq.ParquetFile(file) as opened:
            picture = _columns(file, opened, kind, hub)
            images, labels = _rows(file, opened, (picture, hub.label), kind)
    except (pa.ArrowException, OSError, MemoryError) as error:
        raise UserError(f"{file}: not a readable Parquet file ({first_line(error)})") from None
    return checked(str(file), images, labels, kind)


def _columns(file: Path, opened: Any, kind: Kind, hub: Hub) -> str:
    """The column of pictures, where all that can be known before reading is in order."""
    import pyarrow as pa

    schema, metadata, label = opened.schema_arrow, opened.metadata, hub.label
    names = list(schema.names)
    pictures = [name for name in names if name in PICTURES]
    if len(pictures) != 1:
        problem = "no column `img` or `image`" if not pictures else "two columns of pictures"
        raise UserError(f"{file}: {problem} (has: {quoted(names)})")
    if names.count(label) != 1:
        problem = f"two columns `{label}`" if label in names else f"no column `{label}`"
        raise UserError(f"{file}: {problem} (has: {quoted(names)}), and {kind.name} has one")
    cell = unencoded(schema.field(pictures[0]).type)
    if pa.types.is_struct(cell) and cell.get_field_index("bytes") >= 0:
        cell = unencoded(cell.field("bytes").type)
    if not (pa.types.is_binary(cell) or pa.types.is_large_binary(cell)):
        raise UserError(
            f"{file}: column `{pictures[0]}` is {str(cell)[:80]}, not struct<bytes, path> or bytes"
        )
    if not pa.types.is_integer(unencoded(schema.field(label).type)):
        raise UserError(f"{file}: column `{label}` is not of integers")
    _same_classes(file, schema.metadata, kind, hub)
    size = sum(
        metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups)
    )
    if metadata.num_rows > MOST_IMAGES or size > MOST_BYTES:
        raise UserError(
            f"{file}: {metadata.num_rows} rows of {size} bytes, more than the "
            f"{MOST_IMAGES} rows or {MOST_BYTES} bytes that are read"
        )
    return str(pictures[0])


def unencoded(kind: Any) -> Any:
    """An arrow type without its encoding."""
    import pyarrow as pa

    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _same_classes(file: Path, metadata: dict[bytes, bytes] | None, kind: Kind, hub: Hub) -> None:
    """Labels count the names of the file's own list: another order is another meaning."""
    text = (metadata or {}).get(b"huggingface")
    if text is None:
        return
    try:
        names = json.loads(text)["info"]["features"][hub.label].get("names")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{file}: its Hugging Face metadata cannot be read") from None
    if names is not None and names not in (list(kind.classes), list(hub.names or kind.classes)):
        given = quoted(names) if isinstance(names, list) else "no list"
        raise UserError(f"{file}: label names are {given}; {kind.name} has {quoted(kind.classes)}")


def _rows(file: Path, opened: Any, columns: tuple[str, str], kind: Kind) -> Arrays:
    count = opened.metadata.num_rows
    images = np.empty((count, *kind.shape), np.uint8)
    labels, done = [], 0
    with ThreadPoolExecutor(usable_cpus()) as pool:
        for cells, some in _batches(file, opened, *columns):
            rows = range(done, done + len(cells))
            sources = [f"{file}: row {row}" for row in rows]
            for row, pixels in zip(
                rows, pool.map(_picture, cells, sources, [kind.shape] * len(cells)), strict=True
            ):
                images[row] = pixels
            labels.append(some)
            done += len(cells)
    return images[:done], np.concatenate(labels) if labels else np.empty(0, np.int64)


def _picture(cell: bytes, source: str, shape: tuple[int, int, int]) -> np.ndarray[Any, Any]:
    pixels = decode(cell, source, shape[0], largest=shape[1] * shape[2])
    if pixels.shape != shape:
        raise UserError(
            f"{source}: a picture of {pixels.shape[1]}x{pixels.shape[2]} pixels, "
            f"not {shape[1]}x{shape[2]}"
        )
    return pixels


def _batches(
    file: Path, opened: Any, picture: str, label: str
) -> Iterator[tuple[list[bytes], np.ndarray[Any, Any]]]:
    """Encoded pictures and labels, `ROWS_AT_ONCE` at a time."""
    import pyarrow as pa
    import pyarrow.compute as pc

    for batch in opened.iter_batches(ROWS_AT_ONCE, columns=[picture, label]):
        cells, labels = _decoded(batch[picture]), _decoded(batch[label])
        if cells.null_count or labels.null_count:
            raise UserError(f"{file}: empty cells in `{picture}` or `{label}`")
        if pa.types.is_struct(cells.type):
            cells = _decoded(cells.field("bytes"))
            if cells.null_count:
                raise UserError(
                    f"{file}: cells of `{picture}` without bytes; their files are elsewhere"
                )
        if (pc.max(pc.binary_length(cells)).as_py() or 0) > MOST_CELL:
            raise UserError(f"{file}: a cell of `{picture}` has more than {MOST_CELL} bytes")
        yield cells.to_pylist(), labels.to_numpy(zero_copy_only=False)


def _decoded(array: Any) -> Any:
    import pyarrow as pa

    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array
