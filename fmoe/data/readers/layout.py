"""One layout of a data set in one folder: where it was found, and how a part of it is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fmoe.data.readers.arrays import Arrays, Part


@dataclass(frozen=True)
class Layout:
    """example: a path that stands for it in messages. read: raises `UserError` with the file."""

    example: str
    read: Callable[[Part], Arrays]
