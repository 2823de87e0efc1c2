"""`fmoe data`: data sets."""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines.options import DataDir, Json
from pipelines.output import result, say

app: typer.Typer = typer.Typer(help="Data sets.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Data sets: digits (embedded), cifar10, svhn."""


@app.command()
def prepare(
    name: Annotated[str, typer.Argument(help="digits, cifar10 or svhn.")],
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """Read or download a data set, verify it and keep it converted.

    \b
    fmoe data prepare digits
    fmoe data prepare cifar10 --data-dir ~/data     # holds cifar10/train-*.parquet
    fmoe data prepare svhn                          # downloads through torchvision
    """
    from fmoe import data

    with result(json) as answer:
        loaded = data.prepare(name, data_dir)
        answer |= {
            "name": loaded.name,
            "train": len(loaded.train) + len(loaded.val),
            "val": len(loaded.val),
            "test": len(loaded.test),
            "classes": list(loaded.info.classes),
            "shape": list(loaded.info.shape),
            "digest": loaded.digest,
        }
        say(
            json,
            f"{loaded.name}: {answer['train']} training images ({answer['val']} of them for "
            f"validation), {answer['test']} test images, digest {loaded.digest[:16]}",
        )


if __name__ == "__main__":
    import sys

    from pipelines.cli import main

    main(["data", *sys.argv[1:]])
