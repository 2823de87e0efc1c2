"""What an evaluation consists of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fmoe.errors import UserError

PROTOCOL = 3
"""Raised whenever a change could move a figure."""

STANDARD = ("fgsm", "pgd", "pgd50", "autoattack")
MIXTURE = (
    "gate-only", "frozen-gate", "surrogate", "reweighted", "transfer", "saturation",
)  # fmt: skip
SWEEPS = ("steps", "radius")
GROUPS = {"mixture": MIXTURE, "sweeps": SWEEPS}
FULL = (*STANDARD, *GROUPS)
"""What promotion asks for."""


@dataclass(frozen=True)
class Settings:
    """attacks: names of `STANDARD`, `MIXTURE`, `SWEEPS` or of a group (`mixture`, `sweeps`).

    eps in pixels of [0,1]; batch_size images are one chunk. experts: names of a mixture's, for the
    tables. selected_on: the split by which the model was chosen. collapse_stops: whether a
    collapsed gate is a flag, or just a note. fast: attacks run on a folded copy (`fmoe.folding`);
    what breaks it must break the model itself to count.
    """

    attacks: tuple[str, ...]
    eps: float
    batch_size: int = 250
    seed: int = 0
    experts: tuple[str, ...] = ()
    selected_on: Literal["validation", "test"] | None = None
    collapse_stops: bool = True
    fast: bool = False

    def __post_init__(self) -> None:
        known = (*STANDARD, *MIXTURE, *SWEEPS, *GROUPS)
        for name in self.attacks:
            if name not in known:
                raise UserError(f"unknown attack {name!r} (there are: {', '.join(known)})")

    @property
    def stages(self) -> tuple[str, ...]:
        """In the order in which they run: cheap attacks first, since an image that is broken is
        not attacked by the dear ones."""
        wanted = expand(self.attacks)
        return tuple(name for name in (*STANDARD[:3], *MIXTURE, "autoattack", *SWEEPS)
                     if name in wanted)  # fmt: skip


def expand(names: Sequence[str]) -> set[str]:
    return {stage for name in names for stage in GROUPS.get(name, (name,))}
