"""What a person or a script gets: the result on stdout, errors as one line.

Names come from outside (files, models, classes): each line goes through `plain` on its way to the
terminal.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fmoe.errors import plain


@contextmanager
def result(as_json: bool) -> Iterator[dict[str, Any]]:
    """Yields a dictionary to fill; with --json it is stdout's only line.

    Libraries that print would spoil it: until then file descriptor 1 is stderr's.
    """
    answer: dict[str, Any] = {}
    if not as_json:
        yield answer
        return
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield answer
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
    print(json.dumps(answer), flush=True)


def say(as_json: bool, *lines: str) -> None:
    """The human result; nothing with --json."""
    if not as_json:
        for line in lines:
            show(line)


def show(line: str, *, error: bool = False) -> None:
    """One line on stdout or stderr, whatever is in it and whatever the terminal can show."""
    stream = sys.stderr if error else sys.stdout
    encoding = stream.encoding or "utf-8"
    print(
        plain(line).encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True
    )


class PlainFormatter(logging.Formatter):
    """For log records whose message names something."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return plain(super().formatMessage(record))


def percent(value: float) -> str:
    return f"{100 * value:.1f}%"


def figures(values: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {percent(value)}" for name, value in values.items())
