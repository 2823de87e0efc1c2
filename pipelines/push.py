"""`fmoe push`: a model folder to the Hugging Face hub. Not run here against the hub itself."""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines.options import Json
from pipelines.output import result, say


def push(
    model: Annotated[str, typer.Argument(help="Model folder, run folder or registry URI.")],
    to: Annotated[str, typer.Argument(metavar="hf:ORG/NAME", help="The repository.")],
    private: Annotated[
        bool, typer.Option("--private", help="Make the repository a private one.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be sent where; send nothing.")
    ] = False,
    json: Json = False,
) -> None:
    """Upload a verified model: weights, configuration, model.json and a model card (README.md).

    The token is HF_TOKEN's, or that of `hf auth login`. Needs the extra `hub`.

    \b
    fmoe push models:/fmoe-digits@champion hf:my-team/robust-digits --dry-run
    fmoe push runs/my-run hf:my-team/robust-digits --private
    """
    from pipelines.pushing import Hub, address, repository, verified

    with result(json) as answer:
        name = repository(to)
        url = address(name)
        hub = None if dry_run else Hub.reached()  # before weights are read
        with verified(model) as files:
            sizes = {file: path.stat().st_size for file, path in files.items()}
            if hub:
                hub.send(name, files, private)
        answer |= {"url": url, "files": sizes, "bytes": sum(sizes.values())}
        for file, size in sizes.items():
            say(json, f"  {file:<20} {size:>12,} bytes")
        say(json, f"{url}: {'would get' if dry_run else 'has'} {sum(sizes.values()):,} bytes")


if __name__ == "__main__":
    from pipelines.entry import alone

    alone("push", push)
