"""How many workers a run may have: a number, or a range to go on with what is there."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Workers:
    """least == most is a fixed number."""

    least: int
    most: int

    @classmethod
    def parse(cls, text: str) -> Workers:
        """`4` or `1..4`. Raises ValueError."""
        first, dots, last = text.partition("..")
        if not first.isdecimal() or (dots and not last.isdecimal()):
            raise ValueError(f"{text}: expected a number such as 4, or a range such as 1..4")
        workers = cls(int(first), int(last or first))
        if not 1 <= workers.least <= workers.most:
            raise ValueError(f"{text}: expected at least one worker, and the smaller number first")
        return workers

    @property
    def elastic(self) -> bool:
        return self.least < self.most

    def __str__(self) -> str:
        return f"{self.least}..{self.most}" if self.elastic else str(self.most)
