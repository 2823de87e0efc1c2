"""`fmoe data`: data sets."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.options import DataDir, Json
from pipelines.output import result, say

if TYPE_CHECKING:
    from fmoe.data import Before

app: typer.Typer = typer.Typer(help="Data sets.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Data sets, by their names; one that is not known is answered with those there are."""


@app.command()
def prepare(
    name: Annotated[str, typer.Argument(help="Of a data set, such as digits or cifar10.")],
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """Read or download a data set, check all of it, and keep it converted.

    What was kept before is replaced only once the new files are read and checked, and the
    output says what it was.

    \b
    fmoe data prepare digits
    fmoe data prepare svhn                          # downloads it
    fmoe data prepare cifar10 --data-dir ~/data     # from ~/data/cifar10, or ~/data itself:
      Hugging Face   {train,test}-00000-of-00001.parquet, {train,test}/0000.parquet,
                     cifar10-{train,test}.parquet; in the folder itself, plain_text/
                     (cropped_digits/ of SVHN), data/ or default/
      CIFAR-10       cifar-10-python.tar.gz, cifar-10-batches-py/, or the latter itself
      SVHN           {train,test}_32x32.mat
    """
    from fmoe import data

    with result(json) as answer:
        prepared = data.prepare(name, data_dir)
        train, before = len(prepared.train), prepared.before
        answer |= {
            "name": prepared.name,
            "train": train,
            "val": prepared.info.val_images if prepared.info.val_images < train else None,
            "test": len(prepared.test),
            "classes": list(prepared.info.classes),
            "shape": list(prepared.info.shape),
            "digest": prepared.digest,
            "replaced": None if before is None else asdict(before),
        }
        say(
            json,
            f"{prepared.name}: {train} training images, {len(prepared.test)} test images, "
            f"digest {prepared.digest[:16]}",
        )
        if answer["val"] is None:
            say(
                json,
                f"too few to cut the default {prepared.info.val_images} validation images: "
                "train with --set data.val_images=N",
            )
        if before is not None:
            say(json, f"replaced {_described(before)}")


def _described(before: Before) -> str:
    if before.digest is None:
        return "a file that could not be read"
    return f"{before.train} training images, {before.test} test images, digest {before.digest[:16]}"


if __name__ == "__main__":
    from pipelines.entry import alone

    alone("data", app)
