"""`fmoe pull`: a verified model folder out of the registry."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.options import Json
from pipelines.output import result, say


def pull(
    model: Annotated[str, typer.Argument(help="models:/NAME@ALIAS or models:/NAME/VERSION.")],
    to: Annotated[Path, typer.Option(help="The model folder to write.")],
    json: Json = False,
) -> None:
    """Fetch a registered model; its weights' digest is checked against the registry.

    \b
    fmoe pull models:/fmoe-digits@candidate --to model
    """
    from fmoe.locate import pull as pull_model

    with result(json) as answer:
        pulled = pull_model(model, to)
        answer |= {"path": str(pulled.path), "version": pulled.version, "digest": pulled.digest}
        say(json, f"{pulled.path}: version {pulled.version}, sha256 {pulled.digest[:16]}")


if __name__ == "__main__":
    from pipelines.entry import alone

    alone("pull", pull)
