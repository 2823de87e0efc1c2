"""Pages' parts that the code itself knows: the commands with their options, and the recipes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PLACE = re.compile(r"^<!-- generated: ([a-z]+) -->$", re.MULTILINE)


def filled(page: str) -> str:
    """The page with every `<!-- generated: NAME -->` replaced."""
    return PLACE.sub(lambda place: PARTS[place[1]](), page)


def commands() -> str:
    """Every command: what it does, examples, arguments and options."""
    import typer

    from pipelines.cli import app

    return "\n".join(
        line
        for path, command in walk("fmoe", typer.main.get_command(app))
        if path != "fmoe"
        for line in told(path, command)
    )


def walk(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    """The command and those below it, each with what is typed for it."""
    yield path, command
    for name, below in getattr(command, "commands", {}).items():
        yield from walk(f"{path} {name}", below)


def told(path: str, command: Any) -> Iterator[str]:
    """Lines of Markdown: a group has its commands one level below."""
    yield f"{'#' * (path.count(' ') + 1)} {path}"
    yield ""
    for paragraph in (command.help or "").split("\n\n"):
        yield from prose(paragraph)
    if not hasattr(command, "commands"):
        yield from options(path, command.params)


def prose(paragraph: str) -> Iterator[str]:
    """A paragraph of a command's help; what stands after a backspace keeps its lines."""
    if paragraph.startswith("\b"):
        text = paragraph.removeprefix("\b").strip("\n")
        yield from ("```text", *text.splitlines(), "```", "")
    else:
        yield from (plain(" ".join(paragraph.split())), "")


def options(path: str, params: list[Any]) -> Iterator[str]:
    shown = [param for param in params if not param.hidden]
    arguments = [param for param in shown if not param.opts[0].startswith("-")]
    names = " ".join(written(param) for param in arguments)
    yield from (f"Usage: `{' '.join([path, '[OPTIONS]', names]).strip()}`", "")
    yield from ("| | |", "|---|---|")
    for param in [*arguments, *(param for param in shown if param not in arguments)]:
        yield f"| {named(param)} | {plain(param.help or '')}{environment(param)} |"
    yield ""


def written(argument: Any) -> str:
    name = (argument.metavar or argument.name.upper()).rstrip(".")
    return f"{name}{'…' if argument.nargs == -1 else ''}"


def named(param: Any) -> str:
    """`--set PATH=VALUE`, `--gpu`, `--cpu`, or an argument's name."""
    if not param.opts[0].startswith("-"):
        return f"`{cell(written(param))}`"
    value = "" if param.is_flag else f" {param.metavar or param.name.upper()}"
    return ", ".join(f"`{cell(option + value)}`" for option in [*param.opts, *param.secondary_opts])


def environment(param: Any) -> str:
    return f" (or `{param.envvar}`)" if param.envvar else ""


def cell(text: str) -> str:
    return text.replace("|", r"\|")


def plain(text: str) -> str:
    """Text whose stars, pipes and angles are none of Markdown's, outside of backticks; options are
    code, with or without them."""
    parts = text.split("`")
    for place in range(0, len(parts), 2):
        said = re.sub(r"([*_<>\[\]])", r"\\\1", parts[place])
        parts[place] = re.sub(r"(?<![\w-])(--[a-z][a-z-]*)", r"`\1`", said)
    return cell("`".join(parts))


def recipes() -> str:
    """Every packaged recipe as it stands in its file."""
    return files(ROOT / "fmoe" / "recipes")


def spaces() -> str:
    """Every packaged space of studies as it stands in its file."""
    return files(ROOT / "tune_spaces")


def files(folder: Path) -> str:
    lines: list[str] = []
    for file in sorted(folder.glob("*.yaml")):
        lines += [f"## {file.stem}", "", "```yaml", file.read_text().rstrip("\n"), "```", ""]
    return "\n".join(lines)


PARTS: dict[str, Callable[[], str]] = {
    "commands": commands,
    "recipes": recipes,
    "spaces": spaces,
}
