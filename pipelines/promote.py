"""`fmoe promote`: the candidate becomes champion, if its evaluation says so."""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines.options import Json
from pipelines.output import result, say


def promote(
    name: Annotated[str, typer.Argument(help="A registered model, such as fmoe-cifar10.")],
    to: Annotated[str, typer.Option(help="The alias to move.")] = "champion",
    force: Annotated[
        str | None,
        typer.Option(metavar="REASON", help="Promote whatever the evaluation says; is recorded."),
    ] = None,
    json: Json = False,
) -> None:
    """Move the alias if the candidate is fully evaluated, unflagged and better.

    Fully: `fmoe evaluate models:/NAME@candidate --full` by this code. Better: in worst-case
    accuracy, by more than the 95% interval of the difference on the same images.

    \b
    fmoe promote fmoe-cifar10
    fmoe promote fmoe-cifar10 --force "demo on Friday"
    """
    from pipelines.judging.promoting import decide

    with result(json) as answer:
        answer |= decide(name, to, force)
        word = "promoted" if answer["promoted"] else "not promoted"
        say(json, f"{answer['name']} version {answer['version']}: {word}: {answer['reason']}")


if __name__ == "__main__":
    from pipelines.entry import alone

    alone("promote", promote)
