"""Markdown in which names from outside are text: a name is a code span, whatever is in it.

Of other people's names nothing may become a link, an image, an element, a formula or a row of a
table, in GitHub's and Hugging Face's Markdown as in MLflow's older one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from fmoe.errors import plain

WRITTEN_OUT = frozenset("`|<>$")
"""What ends a code span or a cell, or is looked for before code spans are."""
LONGEST = 120  # characters of a name


def code(name: object) -> str:
    """A name as a code span of one line; what cannot stand in one is written as \\x60."""
    text = plain(str(name))
    text = "".join(f"\\x{ord(c):02x}" if c in WRITTEN_OUT else c for c in text)
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]}…{text[-LONGEST // 2 :]}"
    return f"`{text}`" if text.strip() else "` `"


def codes(names: Sequence[object], most: int = 20) -> str:
    """The first names, and how many more there are."""
    told = ", ".join(map(code, names[:most]))
    return told if len(names) <= most else f"{told} and {len(names) - most} more"


def block(text: str, language: str = "") -> str:
    """Lines of code, whatever is in them."""
    lines = [plain(line) for line in text.split("\n")]
    longest = max((len(run) for line in lines for run in re.findall("`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    return "\n".join([f"{fence}{language}", *lines, fence])


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The cells are Markdown; all columns but the first are aligned to the right where they are
    called so: `name:`."""
    ruler = ["---:" if name.endswith(":") else "---" for name in head]
    heading = [name.removesuffix(":") for name in head]
    lines = (f"| {' | '.join(row)} |" for row in (heading, ruler, *rows))
    return "\n".join(lines)


def paragraphs(*parts: str) -> str:
    """Those that say something, apart."""
    return "\n\n".join(part for part in parts if part)
