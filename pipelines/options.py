"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]
DataDir = Annotated[
    Path | None,
    typer.Option(help="Folder with the data set's files (or FMOE_DATA_DIR)."),
]
Workers = Annotated[int, typer.Option(min=1, help="Worker processes.")]
Gpu = Annotated[
    bool | None,
    typer.Option("--gpu/--cpu", help="One GPU a worker, or none; by default what the cluster has."),
]
