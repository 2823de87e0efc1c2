"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Annotated, Any, TypeVar

import typer

from fmoe.on_ray.workers import Workers

Request = TypeVar("Request")


def asked(
    request: type[Request], given: Mapping[str, Any], *, besides: Collection[str] = ()
) -> Request:
    """A command's request: a dataclass with a field for each option, by the option's name.

    given: the command's `locals()`. besides: the options that are for the command alone. What was
    not given (None) is as the field's default says.
    """
    wanted = {field.name for field in fields(request)}  # type: ignore[arg-type]
    lost = given.keys() - wanted - set(besides)
    assert not lost, f"{request.__module__}.{request.__name__} has no field for {sorted(lost)}"
    return request(**{
        name: value for name, value in given.items() if name in wanted and value is not None
    })  # fmt: skip


Address = Annotated[
    str | None,
    typer.Option(help="The cluster's dashboard; by default http://127.0.0.1:8265."),
]
Port = Annotated[int, typer.Option(min=1, max=65535, help="On 127.0.0.1.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Check everything, show the plan, start nothing.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Override a recipe's value; repeatable."),
]
DataDir = Annotated[
    str | None,
    typer.Option(help="Folder or URI with the data set's files (or FMOE_DATA_DIR)."),
]
Processes = Annotated[int, typer.Option("--workers", min=1, help="Worker processes.")]


def _workers(text: str | Workers) -> Workers:
    return text if isinstance(text, Workers) else Workers.parse(text)


WorkerRange = Annotated[
    Workers | None,
    typer.Option(
        "--workers",
        parser=_workers,
        metavar="N | A..B",
        help="Worker processes, by default those of the recipe's `parallel`; a range goes on with "
        "what the cluster has at the time.",
    ),
]
Gpu = Annotated[
    bool | None,
    typer.Option("--gpu/--cpu", help="One GPU a worker, or none; by default what the cluster has."),
]
