"""`fmoe predict`: labels of images, and which experts decided."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fmoe.errors import UserError
from pipelines.options import Json
from pipelines.output import result, say, show

if TYPE_CHECKING:
    from pipelines.predicting import Predictor


def predict(
    model: Annotated[str, typer.Argument(help="Model folder, run folder or registry URI.")],
    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH...",
            help="Image files, or folders of them; resized to the model's size.",
        ),
    ],
    form: Annotated[
        str,
        typer.Option("--format", metavar="text|csv|jsonl", help="An image a line, as it is told."),
    ] = "text",
    batch: Annotated[int, typer.Option(min=1, help="Images that are asked about at once.")] = 64,
    skip_unreadable: Annotated[
        bool,
        typer.Option(
            "--skip-unreadable", help="Name what is no picture on stderr, and go on to the next."
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Predict the label of each image, with its probability and the gate's weights.

    Of a folder all images in it are taken, 2 before 10. Rows are written as they come; --json
    writes one object at the end.

    \b
    fmoe predict models:/fmoe-cifar10@candidate cat.png dog.jpg
    fmoe predict model photos --format csv > labels.csv
    fmoe predict model photos --format jsonl --skip-unreadable | jq -r .label
    """
    from pipelines.predicting import Form, chosen, head, line

    if form not in list(Form):
        raise UserError(f"--format {form}: expected one of {', '.join(Form)}")
    if json and form != Form.TEXT:
        raise UserError(f"--format {form}: --json writes one object; give one of the two")
    refused: list[str] = []

    def unreadable(error: UserError) -> None:
        if not skip_unreadable:
            raise error
        refused.append(str(error))
        show(f"fmoe: {error}", error=True)

    with result(json) as answer:
        predictor = opened(model, batch, unreadable)
        given = chosen(images)
        if given.passed_over:
            show(f"fmoe: {given.passed_over} files without an image's suffix: left out", error=True)
        answer |= {"predictions": (predictions := []), "unreadable": refused}
        say(json, *head(Form(form), predictor.experts))
        for row in bar(predictor.rows(given.images), len(given.images)):
            if json:
                predictions.append(row)
            else:
                show(line(Form(form), row))
    if refused:
        raise UserError(f"{len(refused)} of {len(given.images)} images could not be read")


def opened(model: str, batch: int, unreadable: Callable[[UserError], None]) -> Predictor:
    """Raises `UserError`."""
    from fmoe import model_folder
    from fmoe.locate import located
    from pipelines.predicting import Predictor

    with located(model) as folder:
        network, config, card = model_folder.load_model(folder)
    facts = model_folder.facts_of(card)
    return Predictor(model, network, facts, config.experts.names, batch, unreadable)


def bar(rows: Iterator[dict[str, Any]], total: int) -> Iterator[dict[str, Any]]:
    """The rows, with a bar where they do not go to the same terminal."""
    if sys.stdout.isatty() and sys.stderr.isatty():
        yield from rows
        return
    from pipelines.display import Display

    with Display(stdout=True) as display:
        task = display.task("predict", total)
        for done, row in enumerate(rows, 1):
            yield row
            display.update(task, done)


if __name__ == "__main__":
    from pipelines.entry import alone

    alone("predict", predict)
