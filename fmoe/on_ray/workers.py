"""How many workers a run may have: a number, or a range to go on with what is there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fmoe.errors import UserError

if TYPE_CHECKING:  # the command line reads its options without torch
    from fmoe.config import Parallel


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

    @classmethod
    def of(
        cls, asked: Workers | None, parallel: Parallel | Literal["auto"], option: str = "--workers"
    ) -> Workers:
        """Those that were asked for, or as many as the recipe needs.

        Raises `UserError` for a number that the recipe's `parallel` does not go with. A range may
        come down to one: then fewer workers share the experts.
        """
        if parallel == "auto":
            return asked or cls(1, 1)
        least = parallel.workers or parallel.expert
        if asked is None:
            return cls(least, least)
        if parallel.workers is not None and asked.most != parallel.workers:
            raise UserError(
                f"{option} {asked}: parallel: {{data: {parallel.data}, expert: "
                f"{parallel.expert}}} are {parallel.workers}; leave out one of the two"
            )
        if asked.most % parallel.expert:
            raise UserError(
                f"{option} {asked}: no multiple of parallel.expert: {parallel.expert}, the number "
                "of workers that share the experts"
            )
        return asked

    @property
    def elastic(self) -> bool:
        return self.least < self.most

    def __str__(self) -> str:
        return f"{self.least}..{self.most}" if self.elastic else str(self.most)
