"""Parquet as Hugging Face lays it out: encoded pictures and a label in each row.

Pictures are struct<bytes, path>, bytes, or paths of files beside; labels are integers (whose names
stand in the file's own metadata, if they have any) or text. Which files make up a part:
`fmoe.data.sources.shards`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fmoe.data.images import contents
from fmoe.data.readers.arrays import quoted
from fmoe.data.readers.files import ensure_whole
from fmoe.data.readers.parquet import unencoded
from fmoe.data.sources import shards
from fmoe.data.sources.labels import numbered
from fmoe.data.sources.source import Columns, Encoded, Pictures, Source
from fmoe.errors import UserError, first_line

PICTURES = ("image", "img")
LABELS = ("label", "labels")
ROWS_AT_ONCE = 64
MOST_CELL = 1 << 26
"""Bytes of an encoded picture, as of a file."""


@dataclass(frozen=True)
class Table:
    """A file's columns. names: of the classes, label 0 first, where it says. beside: whether
    pictures are in files beside it, or may be."""

    file: Path
    image: str
    label: str
    names: tuple[str, ...] | None
    beside: bool


def found(place: Path) -> bool:
    return bool(shards.files(place))


def source(place: Path, columns: Columns) -> Source:
    """Raises `UserError` with the name of the file that cannot be read, or of the column that is
    not clear."""
    files = {None: [place]} if place.is_file() else shards.parts(place)
    tables = {part: [_table(file, columns) for file in some] for part, some in files.items()}
    names = {table.names for some in tables.values() for table in some}
    if len(names) > 1:
        raise UserError(f"{place}: its files do not have the same names of classes")
    texts = {part: _labels(some) for part, some in tables.items()}
    classes, labels = numbered(str(place), texts, names.pop())
    pictures = {
        part: Pictures(labels[part], partial(_read, some), _version(some))
        for part, some in tables.items()
    }
    return Source(str(place), classes, pictures)


def uses_files(place: Path, columns: Columns) -> bool:
    """Whether its pictures are in files beside the tables."""
    return any(_table(file, columns).beside for file in shards.files(place))


def unreadable(file: Path, error: BaseException) -> UserError:
    return UserError(f"{file}: not a readable Parquet file ({first_line(error)})")


def _table(file: Path, columns: Columns) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    ensure_whole(file)
    try:
        schema = pq.read_schema(file)
    except (pa.ArrowException, OSError) as error:
        raise unreadable(file, error) from None
    features = _features(file, schema.metadata)
    image = columns.image or _only(file, schema, "image", _picture_columns(schema), PICTURES)
    label = columns.label or _only(file, schema, "label", _label_columns(schema, features), LABELS)
    for option, name in (("image", image), ("label", label)):
        if list(schema.names).count(name) != 1:
            raise UserError(
                f"{file}: --{option}-column {name}: no such column (has: {quoted(schema.names)})"
            )
    if not _is_picture(schema.field(image).type):
        raise UserError(
            f"{file}: column `{image}` is {str(schema.field(image).type)[:80]}, not "
            "struct<bytes, path>, bytes or paths"
        )
    if not _is_label(schema.field(label).type):
        raise UserError(
            f"{file}: column `{label}` is {str(schema.field(label).type)[:80]}, not integers or "
            "text"
        )
    names = features.get(label, {}).get("names")
    if names is not None and not (
        isinstance(names, list) and all(isinstance(name, str) for name in names)
    ):
        raise UserError(f"{file}: its Hugging Face metadata cannot be read")
    beside = _may_be_beside(file, image, schema.field(image).type)
    return Table(file, image, label, None if names is None else tuple(names), beside)


def _may_be_beside(file: Path, image: str, kind: Any) -> bool:
    """Unless all cells have bytes, by the file's own statistics."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kind = unencoded(kind)
    if not pa.types.is_struct(kind):
        return _is_text(kind)
    metadata = pq.read_metadata(file)
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        for place in range(row_group.num_columns):
            column = row_group.column(place)
            if column.path_in_schema == f"{image}.bytes":
                statistics = column.statistics
                if statistics is None or not statistics.has_null_count or statistics.null_count:
                    return True
    return False


def _features(file: Path, metadata: dict[bytes, bytes] | None) -> dict[str, Any]:
    text = (metadata or {}).get(b"huggingface")
    if text is None:
        return {}
    try:
        features = json.loads(text)["info"]["features"]
        return {name: about for name, about in features.items() if isinstance(about, dict)}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{file}: its Hugging Face metadata cannot be read") from None


def _only(file: Path, schema: Any, option: str, columns: list[str], usual: tuple[str, ...]) -> str:
    """The column that it must be: the one of a usual name, or the only one of its kind."""
    named = [name for name in usual if name in columns]
    candidates = named or columns
    if len(candidates) == 1:
        return candidates[0]
    what = "none" if not candidates else " or ".join(f"`{name}`" for name in candidates[:8])
    raise UserError(
        f"{file}: which column is the {option}, {what}? Give --{option}-column (has: "
        f"{quoted(schema.names)})"
    )


def _is_picture(kind: Any) -> bool:
    import pyarrow as pa

    kind = unencoded(kind)
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _is_bytes(unencoded(kind.field("bytes").type))
    return _is_bytes(kind) or _is_text(kind)


def _is_bytes(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    kind = unencoded(kind)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_label(kind: Any) -> bool:
    import pyarrow as pa

    kind = unencoded(kind)
    return bool(pa.types.is_integer(kind)) or _is_text(kind)


def _picture_columns(schema: Any) -> list[str]:
    """Those that hold bytes; paths as text only by a usual name."""
    return [
        field.name
        for field in schema
        if _is_picture(field.type) and (not _is_text(field.type) or field.name in PICTURES)
    ]


def _label_columns(schema: Any, features: dict[str, Any]) -> list[str]:
    """Those of a usual name; else of Hugging Face's ClassLabel; else all integers."""
    there = [field.name for field in schema if _is_label(field.type)]
    if named := [name for name in there if name in LABELS]:
        return named
    marked = [name for name in there if features.get(name, {}).get("_type") == "ClassLabel"]
    return marked or [
        field.name for field in schema if _is_label(field.type) and not _is_text(field.type)
    ]


def _labels(tables: list[Table]) -> np.ndarray[Any, Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pieces = []
    for table in tables:
        try:
            column = pq.read_table(table.file, columns=[table.label])[table.label]
        except (pa.ArrowException, OSError, MemoryError) as error:
            raise unreadable(table.file, error) from None
        if column.null_count:
            raise UserError(f"{table.file}: empty cells in `{table.label}`")
        plain = column.cast(unencoded(column.type))
        if _is_text(plain.type):
            pieces.append(np.array(plain.to_pylist(), dtype=np.str_))
        else:
            pieces.append(np.array(plain.to_pylist(), dtype=object))
    if len({piece.dtype.kind for piece in pieces}) > 1:
        raise UserError(f"{tables[0].file.parent}: labels are numbers in one file, text in another")
    whole = np.concatenate(pieces)
    if whole.dtype.kind == "U":
        return whole
    beyond = [label for label in whole if not -(2**63) <= label < 2**63]
    if beyond:
        raise UserError(f"{tables[0].file}: label {beyond[0]} is no class")
    return whole.astype(np.int64)


def _version(tables: list[Table]) -> str | None:
    if any(table.beside for table in tables):
        return None
    state = [(str(table.file), table.image, table.file.stat()) for table in tables]
    told = [(file, image, stat.st_size, stat.st_mtime_ns) for file, image, stat in state]
    return hashlib.sha256(repr(told).encode()).hexdigest()


def _read(tables: list[Table], start: int) -> Iterator[Encoded]:
    """Pictures from the `start`-th row of all files on."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for table in tables:
        try:
            with pq.ParquetFile(table.file) as opened:
                count = opened.metadata.num_rows
                if start < count:
                    yield from _rows(table, opened, start)
                start = max(0, start - count)
        except (pa.ArrowException, OSError, MemoryError) as error:
            raise unreadable(table.file, error) from None


def _rows(table: Table, opened: Any, start: int) -> Iterator[Encoded]:
    row = 0
    for batch in opened.iter_batches(ROWS_AT_ONCE, columns=[table.image]):
        if row + len(batch) <= start:
            row += len(batch)
            continue
        cells = batch[table.image]
        plain = cells.cast(unencoded(cells.type)) if cells.type != unencoded(cells.type) else cells
        for cell in plain:
            if row >= start:
                source = f"{table.file}: row {row}"
                yield _encoded(table, source, cell.as_py())
            row += 1


def _encoded(table: Table, source: str, cell: Any) -> Encoded:
    """A cell's bytes, or those of the file beside that it names."""
    path = None
    if isinstance(cell, dict):
        cell, path = cell.get("bytes"), cell.get("path")
    elif isinstance(cell, str):
        cell, path = None, cell
    if cell is None:
        if not isinstance(path, str) or not path:
            raise UserError(f"{source}: an empty cell in `{table.image}`")
        if "\0" in path:
            raise UserError(f"{source}: a path that no file can have")
        folder = table.file.parent.resolve()
        file = (folder / path).resolve()
        if not file.is_relative_to(folder):
            raise UserError(f"{source}: {path[:200]} is not beside {table.file.name}")
        return f"{file} ({table.file.name}, {source.rpartition(': ')[2]})", contents(file)
    if len(cell) > MOST_CELL:
        raise UserError(f"{source}: a cell of more than {MOST_CELL} bytes")
    return source, bytes(cell)
