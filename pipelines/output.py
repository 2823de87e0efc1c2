"""What a person or a script sees: progress on stderr, the result on stdout, errors as one line."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


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
            print(line, flush=True)


def percent(value: float) -> str:
    return f"{100 * value:.1f}%"


def figures(values: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {percent(value)}" for name, value in values.items())


class Display:
    """Progress bars on stderr; a line an epoch where stderr is no terminal."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )

    def __enter__(self) -> Display:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def line(self, text: str) -> None:
        self.progress.console.print(text, soft_wrap=True)

    def task(self, description: str, total: float) -> TaskID:
        return self.progress.add_task(description, total=total, note="")

    def update(self, task: TaskID, completed: float, note: str | None = None) -> None:
        self.progress.update(task, completed=round(completed, 1))
        if note is not None:
            self.progress.update(task, note=note)
