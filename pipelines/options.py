"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fmoe.workers import Workers

Address = Annotated[
    str | None,
    typer.Option(help="The cluster's dashboard; by default http://127.0.0.1:8265."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]
DataDir = Annotated[
    Path | None,
    typer.Option(help="Folder with the data set's files (or FMOE_DATA_DIR)."),
]
Processes = Annotated[int, typer.Option("--workers", min=1, help="Worker processes.")]


def _workers(text: str | Workers) -> Workers:
    return text if isinstance(text, Workers) else Workers.parse(text)


WorkerRange = Annotated[
    Workers,
    typer.Option(
        "--workers",
        parser=_workers,
        metavar="N | A..B",
        help="Worker processes; a range goes on with what the cluster has at the time.",
    ),
]
Gpu = Annotated[
    bool | None,
    typer.Option("--gpu/--cpu", help="One GPU a worker, or none; by default what the cluster has."),
]
