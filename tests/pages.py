"""The blocks of code in README.md and docs/, in the order of the site, and how they are run.

A console block is lines after `$ `, each a command (a backslash goes on in the next line), and what
it prints: every such line must be among the command's own, in order; `…` stands for anything. A
Python block is a program of its own. Where a block's first line is `# NAME.EXT`, it is a file of
that name, and is not run. All pages share one folder, so that what one makes serves the next.

Directly before a block may stand a comment:

    <!-- not run: REASON -->
    <!-- run by: FILE -->       a test; as the page's first line, for all its blocks
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from markdown_it import MarkdownIt

ROOT = Path(__file__).parent.parent
README, DOCS = ROOT / "README.md", ROOT / "docs"
FIRST = ("docs/tour.md", "README.md")
"""README's block pulls what the tour trains."""
COMMENT = re.compile(r"<!-- (not run|run by|file map): (.+?) -->")
TOCTREE = re.compile(r"^```\{toctree\}\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"^# ([\w.-]+\.(?:py|yaml|json|toml))$")
RUN = ("console", "python")


@dataclass(frozen=True)
class Block:
    """One fenced block. note: the kind and text of the comment before it."""

    page: str
    line: int
    kind: str
    text: str
    note: tuple[str, str] | None

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def file(self) -> str | None:
        """The name of the file that it is."""
        found = FILE.match(self.text.splitlines()[0]) if self.text else None
        return found[1] if found else None

    @property
    def accounted_for(self) -> bool:
        return self.note is not None or self.kind in RUN or self.file is not None

    @property
    def to_run(self) -> bool:
        return self.note is None

    @property
    def commands(self) -> list[Command]:
        return list(commands(self))


@dataclass(frozen=True)
class Command:
    """line: as it is typed. shown: what the page says that it prints."""

    where: str
    line: str
    shown: tuple[str, ...]

    @property
    def words(self) -> list[str]:
        return shlex.split(self.line.replace("\\\n", ""), comments=True)

    def missing(self, printed: str) -> str | None:
        """The first line that is shown and was not printed, in order."""
        left = iter(printed.splitlines())
        for line in self.shown:
            pattern = re.compile(".*".join(map(re.escape, line.rstrip().split("…"))))
            if line.strip() != "…" and not any(pattern.fullmatch(said.rstrip()) for said in left):
                return line
        return None


def commands(block: Block) -> Iterator[Command]:
    typed: list[str] = []
    shown: list[str] = []
    number = first = block.line
    for line in block.text.splitlines():
        number += 1
        if line.startswith("$ "):
            if typed:
                yield Command(f"{block.page}:{first}", "\n".join(typed), tuple(shown))
            typed, shown, first = [line.removeprefix("$ ")], [], number
        elif typed and typed[-1].endswith("\\") and not shown:
            typed.append(line)
        else:
            shown.append(line)
    if typed:
        yield Command(f"{block.page}:{first}", "\n".join(typed), tuple(shown))


def named(page: Path, root: Path = ROOT) -> str:
    return page.relative_to(root).as_posix()


def blocks(page: Path, root: Path = ROOT) -> list[Block]:
    """Fenced or by four spaces; what is MyST's own (`{toctree}`) is no code."""
    name, found = named(page, root), list[Block]()
    text = page.read_text()
    whole = COMMENT.match(text)
    before = None
    for token in MarkdownIt("commonmark").parse(text):
        note = COMMENT.fullmatch(before.content.strip()) if before else None
        if token.type in ("fence", "code_block") and not token.info.startswith("{"):
            assert token.map
            note = note or (whole if whole and whole[1] == "run by" else None)
            given = (note[1], note[2]) if note else None
            found.append(Block(name, token.map[0] + 1, token.info.strip(), token.content, given))
        before = token if token.type == "html_block" else None
    return found


class Runner(Protocol):
    """Who runs what pages say; every call raises `AssertionError` where it does not go as shown."""

    def console(self, command: Command) -> None: ...

    def python(self, block: Block) -> None: ...


def play(page: Path, place: Path, runner: Runner) -> None:
    """All blocks of the page that are to be run, in `place`."""
    for block in blocks(page):
        if not block.to_run:
            continue
        if block.file:
            (place / block.file).write_text(block.text)
        elif block.kind == "python":
            runner.python(block)
        else:
            for command in block.commands:
                runner.console(command)


def site(index: Path = DOCS / "index.md") -> list[Path]:
    """The site's pages, in the order of its table of contents."""
    pages = [index]
    for tree in TOCTREE.findall(index.read_text()):
        names = [line for line in tree.splitlines() if line and not line.startswith(":")]
        pages += [page for name in names for page in site(index.parent / f"{name}.md")]
    return pages


def in_order() -> list[Path]:
    """README.md and the site's pages as they are run."""
    first = [ROOT / name for name in FIRST]
    return [*first, *(page for page in site() if page not in first)]
