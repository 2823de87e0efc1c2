"""Progress on stderr: bars where a terminal can redraw them, lines in a log file or a notebook."""

from __future__ import annotations

import os
import time
from datetime import timedelta

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from fmoe.errors import plain

WIDE = 120  # columns from which a bar fits beside the words
NARROW = 60  # columns below which the words are the task's name alone
LINE_SECONDS = 60.0  # seconds between two lines about the same task where nothing is redrawn


def on_stderr() -> Console:
    return Console(stderr=True, highlight=False)


def redraws(console: Console) -> bool:
    """Whether what was written can be written over.

    A notebook's `!command` has a terminal that shows every state of a bar below the one before;
    JPY_PARENT_PID is what a process finds that a notebook's kernel has started.
    """
    return (
        console.is_terminal and not console.is_dumb_terminal and "JPY_PARENT_PID" not in os.environ
    )


def columns(width: int) -> list[ProgressColumn]:
    """One line on a terminal of any width: what is too long is cut, the figures never."""
    cut = Column(no_wrap=True, overflow="ellipsis", ratio=1)
    name, note = "{task.description}", "{task.fields[note]}"
    figures: list[ProgressColumn] = [MofNCompleteColumn(), TimeRemainingColumn(compact=True)]
    if width < NARROW:
        return [TextColumn(name, markup=False, table_column=cut), *figures]
    words = TextColumn(note, markup=False, table_column=cut)
    if width < WIDE:
        return [TextColumn(name, markup=False), *figures, words]
    bar = [BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()]
    return [TextColumn(name, markup=False), *bar, words]


class Display:
    """Bars; elsewhere a line an epoch from who has it, and one a minute about a long task.

    stdout: leave what the command itself writes there alone, which is on its way to a file.
    """

    def __init__(self, *, stdout: bool = False) -> None:
        self.console = on_stderr()
        self.bars = redraws(self.console)
        self.progress = Progress(
            *columns(self.console.width),
            console=self.console,
            disable=not self.bars,
            expand=True,
            redirect_stdout=not stdout,
        )
        self.told: dict[TaskID, float] = {}

    def __enter__(self) -> Display:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def line(self, text: str) -> None:
        self.progress.console.print(Text(plain(text)), soft_wrap=True)

    def task(self, description: str, total: float) -> TaskID:
        task = self.progress.add_task(plain(description), total=total, note="")
        self.told[task] = time.monotonic()
        return task

    def update(self, task: TaskID, completed: float, note: str | None = None) -> None:
        self.progress.update(task, completed=round(completed, 1))
        if note is not None:
            self.progress.update(task, note=plain(note))
        now = time.monotonic()
        if not self.bars and now - self.told[task] >= LINE_SECONDS:
            self.told[task] = now
            self.line(self._told(task))

    def _told(self, task: TaskID) -> str:
        known = next(each for each in self.progress.tasks if each.id == task)
        elapsed = timedelta(seconds=round(known.elapsed or 0))
        words = f"{known.description}  {known.completed:g} of {known.total:g}  {elapsed}"
        return f"{words}  {known.fields['note']}".rstrip()
