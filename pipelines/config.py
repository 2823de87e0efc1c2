"""`fmoe config`: recipes as they are resolved, and their schema for editors."""

from __future__ import annotations

import json as json_format
from typing import Annotated

import typer

from pipelines import completion
from pipelines.options import Json, Overrides
from pipelines.output import result, say

app: typer.Typer = typer.Typer(help="Recipes: show, schema.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Recipes as they are resolved, and their schema for editors."""


@app.command("show")
def show_recipe(
    recipe: Annotated[
        str, typer.Argument(help="A packaged recipe or a file.", autocompletion=completion.recipes)
    ],
    overrides: Overrides = None,
    json: Json = False,
) -> None:
    """A recipe with all its values, and where each comes from.

    What it prints is a recipe itself. An origin is a recipe's name or file, `--set`, or `default`.

    \b
    fmoe config show digits
    fmoe config show cifar10-small-branched --set joint.epochs=3
    fmoe config show digits --set gate.temperature=2 > mine.yaml
    """
    from fmoe.config.origins import annotated, explained

    with result(json) as answer:
        settings, origins = explained(recipe, overrides or ())
        answer |= {"recipe": recipe, "config": settings.plain(), "origins": origins}
    say(json, *annotated(settings, origins))


@app.command()
def schema(
    space: Annotated[bool, typer.Option("--space", help="Of a space of `fmoe tune`.")] = False,
) -> None:
    """The JSON schema of a recipe, for editors that complete and check YAML.

    An editor with the YAML language server reads it where the first line of a file names it:
    `# yaml-language-server: $schema=recipe.schema.json`.

    \b
    fmoe config schema > recipe.schema.json
    fmoe config schema --space > space.schema.json
    """
    from pipelines import schemas

    schema = schemas.space() if space else schemas.recipe()
    say(False, *json_format.dumps(schema, indent=1).splitlines())


if __name__ == "__main__":
    from pipelines.entry import alone

    alone("config", app)
