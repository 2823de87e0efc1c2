"""`fmoe models`: what the registry holds."""

from __future__ import annotations

import json as json_
from typing import Annotated, Any

import typer

from pipelines.options import Json
from pipelines.output import percent, result, say

app: typer.Typer = typer.Typer(help="Registered models: list, show, history.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="As `fmoe models list` shows it.")]


@app.callback()
def _group() -> None:
    """Models in the MLflow registry."""


@app.command("list")
def list_models(json: Json = False) -> None:
    """Every registered model with its champion and candidate.

    \b
    fmoe models list
    """
    from fmoe.tracking import registry

    with result(json) as answer:
        answer["models"] = []
        for name in registry.names():
            entries = registry.versions(name)
            held = {alias: entry.number for entry in entries for alias in entry.aliases}
            row = {"name": name, "versions": len(entries), "aliases": held}
            answer["models"].append(row)
            aliases = "  ".join(f"{alias} {number}" for alias, number in sorted(held.items()))
            say(json, f"{name:<28} {len(entries):>3} versions  {aliases}")
        if not answer["models"]:
            say(json, "no models; start with `fmoe train digits`")


@app.command()
def show(name: Name, json: Json = False) -> None:
    """A model's versions, newest first, with the figures of their evaluation.

    \b
    fmoe models show fmoe-digits
    """
    from fmoe.tracking import registry

    with result(json) as answer:
        name = registry.checked_name(name)
        entries = registry.versions(name)
        answer |= {"name": name, "versions": [entry.to_json() for entry in entries]}
        for entry in entries:
            aliases = ", ".join(entry.aliases)
            created = f"{entry.created:%Y-%m-%d %H:%M}"
            say(json, f"{entry.number:>4}  {created}  {aliases:<20} {_figures(entry.tags)}")


def _figures(tags: Any) -> str:
    try:
        return _told(tags)
    except (ValueError, TypeError, KeyError, RecursionError):
        return "(tags that fmoe did not write)"


def _told(tags: Any) -> str:
    from fmoe.tracking.tags import EVALUATION, TEST

    if f"{EVALUATION}worst_case" not in tags:
        figures = {k.removeprefix(TEST): float(v) for k, v in tags.items() if k.startswith(TEST)}
        return "  ".join(f"{k} {percent(v)}" for k, v in figures.items()) + "  (at training)"
    flags = len(json_.loads(tags.get(f"{EVALUATION}flags", "[]")))
    how = "full" if tags.get(f"{EVALUATION}full") == "true" else "partial"
    clean, worst = (percent(float(tags[EVALUATION + key])) for key in ("clean", "worst_case"))
    images = tags.get(f"{EVALUATION}images")
    return f"clean {clean}  worst case {worst}  {images} images, {how}, flags: {flags}"


@app.command()
def history(
    name: Name,
    alias: Annotated[str, typer.Option(help="Of which alias.")] = "champion",
    json: Json = False,
) -> None:
    """Which version was champion since when, and why.

    \b
    fmoe models history fmoe-digits
    """
    from fmoe.tracking import registry, tags

    with result(json) as answer:
        name = registry.checked_name(name)
        key = tags.of_alias(alias)
        rows = [
            {
                "version": entry.number,
                **{k.removeprefix(key): v for k, v in entry.tags.items() if k.startswith(key)},
            }
            for entry in registry.versions(name)
            if f"{key}since" in entry.tags
        ]
        rows.sort(key=lambda row: str(row["since"]))
        answer |= {"name": name, "alias": alias, "history": rows}
        for row in rows:
            despite = f" (despite: {row['despite']})" if row.get("despite") else ""
            say(json, f"{row['since']}  version {row['version']}  {row['reason']}{despite}")
        if not rows:
            say(json, f"{name}: no version was ever made {alias}")


if __name__ == "__main__":
    from pipelines.entry import alone

    alone("models", app)
