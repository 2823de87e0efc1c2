"""A recorded evaluation as it comes out of a registry: checked before anything is made of it.

Anybody who may write to the registry can have written its files. A Parquet file of some kilobytes
can hold as many rows as it says, so what it says is looked at first.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, Field, ValidationError

from fmoe.documents import LARGEST_JSON, parse_json
from fmoe.schema import faults

LARGEST = 256 * 2**20  # bytes of verdicts
IMAGES = 10_000_000
COLUMNS = 100


class Report(BaseModel):
    """What an evaluation's JSON has, of which types, where it has it. More is allowed."""

    flags: list[str]
    worst_case: float
    images: int = Field(ge=0, le=IMAGES)
    attacks: list[str] = []
    eps: float = 0.0
    recipe_eps: float = 0.0
    test_images: int = 0
    sha256: str | None = None
    protocol: int | str | None = None
    versions: dict[str, Any] = {}
    revision: str | None = None
    selected_on: str | None = None


def report(file: Path) -> dict[str, Any]:
    """Raises `ValueError`."""
    if file.stat().st_size > LARGEST_JSON:
        raise ValueError(f"{file.name}: too long")
    tree = parse_json(file.read_bytes())
    try:
        Report.model_validate(tree, strict=True)
    except ValidationError as error:
        raise ValueError(f"{file.name}: {faults(error, tree)}") from None
    return tree


def verdicts(file: Path, images: int) -> pa.Table:
    """A row per image: `label` and `prediction`, integers, and booleans `success_…`.

    Raises `ValueError`, for another number of rows as well.
    """
    if file.stat().st_size > LARGEST:
        raise ValueError(f"{file.name}: too long")
    with pq.ParquetFile(file) as parquet:
        if parquet.metadata.num_rows != images:
            raise ValueError(f"{file.name} has {parquet.metadata.num_rows} rows, not {images}")
        schema = parquet.schema_arrow
        names = [name for name in schema.names if name.startswith("success_")]
        if len(names) > COLUMNS or len(set(schema.names)) < len(schema.names):
            raise ValueError(f"{file.name}: has too many columns, or one twice")
        for name in ("label", "prediction", *names):
            kind = schema.field(name).type if name in schema.names else None
            fits = pa.types.is_boolean if name in names else pa.types.is_integer
            if kind is None or not fits(kind):
                raise ValueError(f"{file.name}: column {name[:100]} is {kind}")
        return parquet.read(["label", "prediction", *names])
