"""The code of docs/extending.md, run as it stands there."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

PAGE = Path(__file__).parent.parent.parent / "docs" / "extending.md"
HEADING = re.compile(r"^## (.+)$", re.MULTILINE)
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def sections(text: str) -> dict[str, tuple[int, str]]:
    """Heading to the place where its section starts, and the section."""
    heads = list(HEADING.finditer(text))
    ends = [head.start() for head in heads[1:]] + [len(text)]
    return {
        head[1]: (head.end(), text[head.end() : end]) for head, end in zip(heads, ends, strict=True)
    }


def section(heading: str) -> ModuleType:
    """A module of what the section's Python blocks define, run one after another.

    Errors point to the page's own lines. Raises `KeyError` where there is no such section.
    """
    text = PAGE.read_text()
    start, body = sections(text)[heading]
    module = ModuleType("extending_" + re.sub(r"\W+", "_", heading.lower()))
    sys.modules[module.__name__] = module  # where pydantic looks for what annotations name
    for block in BLOCK.finditer(body):
        lines = text[: start + block.start(1)].count("\n")
        source = "\n" * lines + block[1]
        exec(compile(source, PAGE, "exec"), module.__dict__)
    return module
